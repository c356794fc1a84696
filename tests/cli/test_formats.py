"""Input as people have it: compressed, in other encodings, tables, JSON, logs, and some of it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from .conftest import Run

TEXT = "one\ntwo\nthree\n"
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def cells(run: Run, tiny: str, source: Path, *options: str) -> int:
    """Of a session that has read a file; every byte is one, and so is what it opens with."""
    done = run("stream", source, "-m", tiny, "--cells", "512", "--json", *options)
    assert done.code == 0, done.err
    return int(str(done.named("read")[-1]["cells"]))


def cells_of(run: Run, tiny: str, tmp_path: Path, entries: list[str]) -> int:
    plain = tmp_path / "plain"
    plain.write_text("".join(f"{one}\n" for one in entries))
    return cells(run, tiny, plain)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_files(run: Run, tiny: str, tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"log.{kind}"
    pack = COMPRESSED[kind]
    source.write_bytes(pack(TEXT.encode()) + pack(b"four\n"))  # as logrotate's tools append them
    assert cells(run, tiny, source) == cells_of(run, tiny, tmp_path, [*TEXT.split(), "four"])


def test_a_compressed_file_that_is_cut(run: Run, tiny: str, tmp_path: Path) -> None:
    source = tmp_path / "log.gz"
    source.write_bytes(gzip.compress(TEXT.encode())[:-9])
    done = run("stream", source, "-m", tiny, "--cells", "64")
    assert done.code == 1 and "cannot be decompressed" in done.err
    source.write_bytes(gzip.compress(TEXT.encode()))
    assert run("stream", source, "-m", tiny, "--follow").code == 1


def test_other_encodings(run: Run, tiny: str, tmp_path: Path) -> None:
    source = tmp_path / "log"
    for encoding in ("latin-1", "utf-16", "cp1252"):
        source.write_bytes("größer\nnaïve\n".encode(encoding))
        found = cells(run, tiny, source, "--encoding", encoding)
        assert found == cells_of(run, tiny, tmp_path, ["größer", "naïve"])
    assert run("stream", source, "-m", tiny, "--encoding", "klingon").code == 1
    source.write_bytes(b"ok\n\xff\xfe\xff")
    refused = run("stream", source, "-m", tiny, "--encoding", "ascii")
    assert refused.code == 1 and "it is not ascii: byte 0xff" in refused.err


def test_tables_objects_and_logs(run: Run, tiny: str, tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.write_text("day,close\n1,9.5\n2,7\n")
    rows = cells_of(run, tiny, tmp_path, ["day=1, close=9.5", "day=2, close=7"])
    assert cells(run, tiny, source, "--format", "csv") == rows
    assert cells(run, tiny, source, "--format", "auto") == rows
    source.write_text("".join(json.dumps({"t": n, "m": "up"}) + "\n" for n in (1, 2)))
    said = cells_of(run, tiny, tmp_path, ["1: up", "2: up"])
    assert cells(run, tiny, source, "--format", "jsonl", "--fields", "{t}: {m}") == said
    source.write_text("<34>Oct 11 22:14:15 host su[230]: failed\n")
    log = cells_of(run, tiny, tmp_path, ["Oct 11 22:14:15 su: failed"])
    assert cells(run, tiny, source, "--format", "syslog") == log


def test_some_of_it(run: Run, tiny: str, tmp_path: Path) -> None:
    source = tmp_path / "log"
    source.write_text(TEXT)
    done = run("stream", source, "-m", tiny, "--cells", "64", "--grep", "^t")
    assert done.code == 0 and "1 lines of" in done.err and "made no entry" in done.err
    assert cells(run, tiny, source, "--grep", "^t") == cells_of(
        run, tiny, tmp_path, ["two", "three"]
    )
    for options, says in (
        (["--grep", "zzz"], "no line of .* made an entry"),
        (["--grep", "("], "no regular expression"),
        (["--max-line", "4"], "line 3 is longer than 4 bytes"),
        (["--format", "jsonl"], "line 1: this line is no JSON"),
        (["--fields", "{a}"], "a template is for the format jsonl"),
    ):
        refused = run("stream", source, "-m", tiny, "--cells", "64", *options)
        assert refused.code == 1
        assert re.search(says, refused.err), refused.err


def test_a_journal_goes_on_with_a_table(run: Run, tiny: str, tmp_path: Path) -> None:
    """The header is known again, and each row is read once."""
    source, kept = tmp_path / "prices.csv", tmp_path / "kept"
    command = ("stream", "-m", tiny, "--journal", kept, "--session", f"p={source}")
    options = ("--format", "csv", "--cells", "128", "--json")
    source.write_text("day,close\n1,9.5\n")
    assert run(*command, *options).named("read")[-1]["version"] == 1
    source.write_text("day,close\n1,9.5\n2,7\n")
    again = run(*command, *options)
    assert again.code == 0 and again.named("read")[-1]["version"] == 2
    tokens = again.named("read")[-1]["cells"]
    assert tokens == cells_of(run, tiny, tmp_path, ["day=1, close=9.5", "day=2, close=7"])
