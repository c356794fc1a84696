"""Damaged files and failing disks: an exact restore or one clear error, and nothing lost.

A damaged file may be refused (`SnapshotDamaged`) or not matter (an exact restore); there is no
third. Sessions in memory notice nothing.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import jaxstate
from jaxstate.errors import FingerprintMismatch, SnapshotDamaged, SnapshotError
from jaxstate.persist import files
from jaxstate.testing import TINY_CONFIG
from tests.persist.sessions import answers, check_equal, contents, kept, model_of, names_in, read

pytest.importorskip("resource", reason="limits of the operating system")

# When one of several reads fails, the others of Orbax call back into an event loop that is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Orbax's abandoned tasks complain when they are collected: here, not in a later test."""
    yield
    gc.collect()


@functools.cache
def healthy() -> tuple[jaxstate.SessionState, list[bytes], list[tuple[bytes, ...]]]:
    live = read(21)
    return live, kept(live), answers(model_of(), live)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("healthy") / "s"
    jaxstate.save_state(folder, model_of(), healthy()[0], notes={"note": "x"})
    yield folder
    live, cells, told = healthy()
    assert kept(live) == cells
    assert answers(model_of(), live) == told


def files_of(folder: Path) -> list[str]:
    return sorted(contents(folder))


Damage = Callable[[bytes], bytes | None]


def refused_or_exact(original: Path, folder: Path, file: str, damage: Damage) -> bool:
    """Restores a damaged copy; True if it was refused. A live session notices nothing."""
    copy = folder / "copy"
    shutil.copytree(original, copy)
    data = damage((copy / file).read_bytes())
    if data is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(data)
    try:
        back = jaxstate.restore_state(copy, model_of())
    except SnapshotDamaged as error:
        assert str(error)
        return True
    finally:
        shutil.rmtree(copy)
    _, cells, told = healthy()
    assert kept(back) == cells, f"garbage restored from a damaged {file}"
    assert answers(model_of(), back) == told
    return False


def test_there_are_files_to_damage(snapshot: Path) -> None:
    files = files_of(snapshot)
    assert "session.json" in files
    # Keys and values of the cells in use are in there somewhere.
    cell = 2 * TINY_CONFIG.kv_dim * 4
    assert sum(map(len, contents(snapshot).values())) > (21 + 6) * cell


def test_a_missing_file_is_noticed_or_does_not_matter(snapshot: Path, tmp_path: Path) -> None:
    refused = {
        file
        for file in files_of(snapshot)
        if refused_or_exact(snapshot, tmp_path, file, lambda data: None)
    }
    assert "session.json" in refused
    assert len(refused) >= 3
    check_healthy()


def test_a_truncated_file_is_noticed_or_does_not_matter(snapshot: Path, tmp_path: Path) -> None:
    refused = set()
    for file in files_of(snapshot):
        for part in (0.0, 0.1, 0.5, 0.9, 1.0):
            cut = functools.partial(truncated, part=part)
            if refused_or_exact(snapshot, tmp_path, file, cut):
                refused.add((file, part))
    assert {("session.json", part) for part in (0.0, 0.1, 0.5, 0.9)} <= refused
    check_healthy()


def truncated(data: bytes, part: float) -> bytes:
    """The first part of it; all but the last byte for 1.0."""
    return data[: min(int(len(data) * part), len(data) - 1)]


def flipped(data: bytes, at: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= mask
    return bytes(changed)


def test_a_flipped_byte_is_noticed_or_does_not_matter(snapshot: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    refused = 0
    for file, data in contents(snapshot).items():
        if not data:
            continue
        places = {0, len(data) - 1, *random.integers(0, len(data), 14).tolist()}
        for at in sorted(places):
            mask = int(random.choice([0x01, 0x20, 0x80, 0xFF]))
            flip = functools.partial(flipped, at=at, mask=mask)
            refused += refused_or_exact(snapshot, tmp_path, file, flip)
    assert refused > 30
    check_healthy()


@pytest.mark.parametrize("what", ["grown", "zeros", "text"])
def test_a_replaced_file_is_noticed_or_does_not_matter(
    snapshot: Path, tmp_path: Path, what: str
) -> None:
    changes: dict[str, Damage] = {
        "grown": lambda data: data + b"\0" * 100,
        "zeros": lambda data: bytes(len(data)),
        "text": lambda data: b'{"session": []}',
    }
    for file in files_of(snapshot):
        refused_or_exact(snapshot, tmp_path, file, changes[what])
    check_healthy()


def test_every_record_that_is_no_record_is_damage(snapshot: Path, tmp_path: Path) -> None:
    """JSON of a wrong shape, of another format, or that is no text."""
    whole = (snapshot / "session.json").read_bytes()
    for data in (
        *(b"", b"null", b"[]", b"7", b'"x"', b"{}", b"\xff\xfe", b"{" * 5000),
        *(whole.replace(b'"format": 1', b'"format": 2'), whole.replace(b"21", b"20")),
        *(whole.replace(b'"length"', b'"lengthy"'), whole.replace(b'"note": "x"', b'"note": "y"')),
    ):
        assert refused_or_exact(snapshot, tmp_path, "session.json", lambda _, data=data: data), data
    check_healthy()


def test_a_record_that_is_nothing_but_brackets_is_damage(snapshot: Path, tmp_path: Path) -> None:
    assert refused_or_exact(snapshot, tmp_path, "session.json", lambda _: b"[" * 100_000)


def test_cells_of_another_snapshot_are_noticed(snapshot: Path, tmp_path: Path) -> None:
    """A record and cells that are both whole, but not of one session."""
    jaxstate.save_state(tmp_path / "other", model_of(), read(22))
    shutil.copytree(snapshot, tmp_path / "mixed")
    (own,), (other,) = ((tmp_path / name).glob("cells.*") for name in ("mixed", "other"))
    shutil.rmtree(own)
    shutil.copytree(other, own)
    with pytest.raises(SnapshotDamaged, match="checksum"):
        jaxstate.restore_state(tmp_path / "mixed", model_of())
    check_healthy()


def check_healthy() -> None:
    live, cells, told = healthy()
    assert kept(live) == cells
    assert answers(model_of(), live) == told


# Failing writes


class DiskFull(OSError):
    """What the tests make the file system say."""


def fail_at(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int
) -> Callable[[], int]:
    """Makes the call-th use of owner.name fail; returns how often it was used."""
    original, uses = getattr(owner, name), [0]

    def failing(*args: object, **kwargs: object) -> object:
        uses[0] += 1
        if uses[0] == call:
            raise DiskFull("no space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    return lambda: uses[0]


@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier one", "first"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        ("Path", "write_text", 1),
        ("Path", "mkdir", 2),
        ("Path", "rename", 1),
        ("Path", "rename", 2),
        ("Path", "replace", 1),
        ("Path", "open", 1),
        ("checkpointer", "save", 1),
        ("os", "fsync", 1),
    ],
)
def test_a_failing_write_leaves_the_old_snapshot_and_no_debris(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: str,
    name: str,
    call: int,
    earlier: bool,
) -> None:
    """Whichever use of the file system fails; a save that does not use it has nothing to fail."""
    from orbax import checkpoint

    model, old, new = model_of(), read(12), read(33)
    if earlier:
        jaxstate.save_state(tmp_path / "s", model, old)
    before = contents(tmp_path)
    owners = {"Path": Path, "checkpointer": checkpoint.StandardCheckpointer, "os": os}
    with monkeypatch.context() as patch:
        fail_at(patch, owners[owner], name, call)
        failed = False
        try:
            jaxstate.save_state(tmp_path / "s", model, new)
        except SnapshotError as error:
            assert isinstance(error.__cause__, DiskFull)
            failed = True
    if failed:
        assert contents(tmp_path) == before
        assert names_in(tmp_path) == (["s"] if earlier else [])
        if earlier:
            check_equal(jaxstate.restore_state(tmp_path / "s", model), old, model)
        jaxstate.save_state(tmp_path / "s", model, new)
    check_equal(jaxstate.restore_state(tmp_path / "s", model), new, model)
    assert names_in(tmp_path) == ["s"]


@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier one", "first"])
def test_what_is_current_is_never_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """The last sync fails, when the record names the new cells already: both stay."""
    model, old, new = model_of(), read(12), read(33)
    if earlier:
        jaxstate.save_state(tmp_path / "s", model, old)
    synced = files.sync_tree

    def fails(folder: Path, *, deep: bool = True) -> None:
        if folder == tmp_path / "s":
            raise DiskFull("no space left on device")
        synced(folder, deep=deep)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_tree", fails)
        with pytest.raises(SnapshotError, match="may not be on the disk yet"):
            jaxstate.save_state(tmp_path / "s", model, new)
    check_equal(jaxstate.restore_state(tmp_path / "s", model), new, model)
    jaxstate.save_state(tmp_path / "s", model, old)
    check_equal(jaxstate.restore_state(tmp_path / "s", model), old, model)
    assert len(names_in(tmp_path / "s")) == 2


@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier one", "first"])
def test_a_writer_that_goes_on_after_a_failure_leaves_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """When one of Orbax's writers fails the others are still at work, and make their directories
    again after these were removed: with a full disk that happened in one save of eight."""
    from orbax import checkpoint

    model, old = model_of(), read(12)
    if earlier:
        jaxstate.save_state(tmp_path / "s", model, old)
    before = contents(tmp_path)
    writers: list[threading.Thread] = []

    def fails(self: object, place: Path, arrays: object) -> None:
        def go_on() -> None:
            again = Path(f"{place}.orbax-checkpoint-tmp", "ocdbt", "d")
            for _ in range(6):
                # Its parents may be removed between making them and making it: that is the race.
                with contextlib.suppress(FileNotFoundError):
                    again.mkdir(parents=True, exist_ok=True)
                time.sleep(0.03)

        writers.append(threading.Thread(target=go_on))
        writers[-1].start()
        raise DiskFull("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.StandardCheckpointer, "save", fails)
        with pytest.raises(SnapshotError, match="no space left"):
            jaxstate.save_state(tmp_path / "s", model, read(33))
    writers[0].join()
    assert contents(tmp_path) == before
    assert names_in(tmp_path) == (["s"] if earlier else [])


WITHOUT_ROOM = """
import logging, resource, sys
import jaxstate
from tests.persist.sessions import model_of, read

path, room = sys.argv[1], int(sys.argv[2])
model, state = model_of(), read(70)
jaxstate.ready_logits(model, state)
logging.disable()  # a log file could not grow either
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    jaxstate.save_state(path, model, state)
except jaxstate.SnapshotError:
    sys.exit(7)
"""


@pytest.mark.parametrize("room", [0, 1000])
@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier one", "first"])
def test_a_disk_without_room_leaves_the_old_snapshot_and_no_debris(
    tmp_path: Path, room: int, earlier: bool
) -> None:
    """The operating system refuses to let any file of a child grow past `room` bytes."""
    model, old = model_of(), read(2)
    if earlier:
        jaxstate.save_state(tmp_path / "s", model, old)
    before = contents(tmp_path)
    child = run_child(WITHOUT_ROOM, str(tmp_path / "s"), str(room))
    assert child.returncode == 7, child.stderr
    assert contents(tmp_path) == before
    assert names_in(tmp_path) == (["s"] if earlier else [])
    jaxstate.save_state(tmp_path / "s", model, old)
    check_equal(jaxstate.restore_state(tmp_path / "s", model), old, model)


def run_child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_a_killed_process_left_does_not_stop_the_next_save(tmp_path: Path) -> None:
    model, live = model_of(), read(12)
    for left in ("cells.0123abcd", "cells.0123abcd.orbax-checkpoint-tmp"):
        (tmp_path / "s" / left).mkdir(parents=True)
    (tmp_path / "s" / "session.json.cells.0123abcd").write_text("{")
    jaxstate.save_state(tmp_path / "s", model, live)
    check_equal(jaxstate.restore_state(tmp_path / "s", model), live, model)
    assert len(names_in(tmp_path / "s")) == 2


KILLED_AT = """
import os, sys
import jaxstate
from jaxstate.testing import TINY_CONFIG
from tests.persist.sessions import STEPS
from tests.reference import random_model

path, call = sys.argv[1], int(sys.argv[2])
model = random_model(TINY_CONFIG, STEPS, seed=5)
state = jaxstate.init_state(model, 8)
jaxstate.save_state(path, model, state, notes={"save": 1})
uses = 0

def deadly(original):
    def use(*args, **kwargs):
        global uses
        uses += 1
        if uses == call:
            os._exit(9)
        return original(*args, **kwargs)
    return use

for name in ("rename", "replace"):
    setattr(os, name, deadly(getattr(os, name)))
jaxstate.save_state(path, model, state, notes={"save": 2})
os._exit(0)
"""


def test_a_process_killed_while_it_replaces_a_snapshot_leaves_one(tmp_path: Path) -> None:
    """The old one or the new one, at whichever renaming it dies."""
    for call in range(2, 9):  # the first is inside Orbax
        folder = tmp_path / str(call)
        folder.mkdir()
        child = run_child(KILLED_AT, str(folder / "s"), str(call))
        assert child.returncode in (0, 9), child.stderr
        # Orbax renames too: making the new record current is among the later ones.
        assert jaxstate.inspect_snapshot(folder / "s").notes["save"] in (1, 2), f"renaming {call}"
        if child.returncode == 0:
            return
    raise AssertionError("a save uses more renamings than this test tries")


def test_errors_of_snapshots_are_one_family() -> None:
    for error in (SnapshotDamaged, FingerprintMismatch):
        assert issubclass(error, SnapshotError)
