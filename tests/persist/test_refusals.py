"""Saved sessions that cannot be used or written: one error, in plain words."""

from __future__ import annotations

import json
import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

import jaxstate
from jaxstate.errors import FingerprintMismatch, SnapshotDamaged, SnapshotError
from jaxstate.persist import files
from jaxstate.testing import tiny_model


def saved(path: Path, dtype: str = "float32") -> Path:
    model = tiny_model(dtype=dtype)
    state = jaxstate.extend(model, jaxstate.init_state(model, 32), [1, 2, 3])
    jaxstate.save_state(path, model, state)
    return path


def test_another_dtype_is_called_that(tmp_path: Path) -> None:
    saved(tmp_path / "s")
    with pytest.raises(FingerprintMismatch, match=r'in float32.*in bfloat16.*dtype="float32"'):
        jaxstate.restore_state(tmp_path / "s", tiny_model(dtype="bfloat16"))
    with pytest.raises(FingerprintMismatch, match="another model"):
        jaxstate.restore_state(tmp_path / "s", tiny_model(seed=9))


def test_records_that_are_older_than_the_dtype_are_read(tmp_path: Path) -> None:
    record = saved(tmp_path / "s") / files.RECORD_NAME
    outer = json.loads(record.read_text())
    del outer["session"]["dtype"]
    outer["checksum"] = files._record_checksum(outer["session"])
    record.write_text(json.dumps(outer))
    assert int(jaxstate.restore_state(tmp_path / "s", tiny_model()).length) == 3
    with pytest.raises(FingerprintMismatch, match="with the same dtype"):
        jaxstate.restore_state(tmp_path / "s", tiny_model(dtype="bfloat16"))


def test_nothing_there_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(
        SnapshotDamaged, match=r"is not a readable snapshot: there is no session\.json in it"
    ):
        jaxstate.restore_state(tmp_path / "none", tiny_model())


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100))
    with pytest.raises(SnapshotError, match=r"it takes .* GB, and the disk has 0.00 GB left"):
        saved(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_save_that_fails_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(place: Path, arrays: object) -> None:
        record = logging.LogRecord("absl", logging.ERROR, "x/orbax/y.py", 1, "failed", None, None)
        logging.getLogger("absl").handle(record)
        raise OSError("the disk is on fire")

    monkeypatch.setattr(files, "_write_cells", failing)
    with pytest.raises(SnapshotError, match="the disk is on fire; what was there is unchanged"):
        saved(tmp_path / "s")
    assert not caplog.records
    logging.getLogger("absl").error("of something else, later")
    assert len(caplog.records) == 1


def test_relative_paths_are_resolved_when_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    monkeypatch.chdir(tmp_path / "before")
    model = tiny_model()
    with jaxstate.Engine(model, warm_up=False, cells=64, journal="kept") as engine:
        session = engine.open("s")
        session.push("abc")
        monkeypatch.chdir(tmp_path / "after")
        session.wait()
        session.close()
    assert (tmp_path / "before" / "kept" / "journal.db").exists()
    assert not list((tmp_path / "after").iterdir())
