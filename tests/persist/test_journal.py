"""The journal by itself: one writer, groups, failures, who may have it, and what is damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jaxstate.errors import JournalDamaged, JournalError, JournalInUse
from jaxstate.persist import changes, journal, logged
from jaxstate.persist.changes import SessionOpened
from jaxstate.persist.journal import Journal, PendingWrite
from jaxstate.persist.places import DATABASE, read_only
from tests.persist.failing import FailingDisk


def opening(key: int, name: str = "", parent: int | None = None, version: int = 0) -> SessionOpened:
    return SessionOpened(
        key=key,
        id=name or f"s{key}",
        tenant="default",
        reserve=0,
        pinned=False,
        policy="block",
        prefix=None if parent else "prefix \ud800\0",  # whatever a text can be
        base_version=version,
        text_fingerprint="t",
        parent=parent,
    )


@contextlib.contextmanager
def opened(path: Path, disk: FailingDisk | None = None) -> Iterator[Journal]:
    made = Journal(path, connect=(disk or FailingDisk()).connect)
    made.start()
    try:
        yield made
    finally:
        made.close()


def texts(path: Path, key: int = 1, after: int = 0) -> list[str]:
    with contextlib.closing(read_only(path)) as source:
        session = logged.session_of(source, key)
        return [entry.text for entry in logged.entries_of(source, session, after)]


def begin(made: Journal, key: int = 1) -> None:
    made.write(changes.opened(opening(key)), "os")


def test_what_is_written_is_there_in_order_and_as_it_was(tmp_path: Path) -> None:
    strange = ["", "\0", "\ud800 half", "ÄÖ€😀", "a\nb", " "]
    with opened(tmp_path) as made:
        begin(made)
        made.write(changes.pushed(1, 1, strange[:2]), "os")
        made.write(changes.pushed(1, 3, strange[2:]), "fsync")
        assert texts(tmp_path) == strange  # beside its writer
    assert texts(tmp_path) == strange and texts(tmp_path, after=4) == strange[4:]
    with opened(tmp_path), contextlib.closing(read_only(tmp_path)) as source:
        assert logged.session_of(source, 1).opening == opening(1)


def test_many_changes_share_one_sync(tmp_path: Path) -> None:
    """Those that come while one is written wait, and are then written together."""
    groups: list[int] = []
    held, go = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        held.set()
        go.wait(10)

    with opened(tmp_path) as made:
        begin(made)
        settle = made.settle

        def count(tickets: Sequence[PendingWrite], error: Exception | None) -> None:
            groups.append(len(tickets))
            settle(tickets, error)

        made.settle = count
        first = PendingWrite(slow, "os")
        made.submit(first)
        assert held.wait(10)
        tickets = [PendingWrite(changes.pushed(1, n, [str(n)]), "fsync") for n in range(1, 51)]
        for ticket in tickets:
            made.submit(ticket)
        go.set()
        for ticket in tickets:
            ticket.settled.result(10)
    assert groups == [1, 50]
    assert texts(tmp_path) == [str(n) for n in range(1, 51)]


def test_only_fsync_syncs(tmp_path: Path) -> None:
    """SQLite syncs its log at commits under FULL, and at checkpoints only under NORMAL."""
    with opened(tmp_path) as made:
        begin(made)
        levels: list[int] = []

        def look(to: sqlite3.Connection) -> None:
            levels.append(to.execute("PRAGMA synchronous").fetchone()[0])

        for level in ("os", "fsync", "memory", "fsync"):
            ticket = PendingWrite(look, level)
            made.submit(ticket)
            while not (ticket.settled.done() or len(levels) == 4):
                time.sleep(0.001)
    assert levels == [1, 2, 1, 2]


def test_a_failure_at_any_statement_changes_nothing(tmp_path: Path) -> None:
    """The n-th statement of a group fails, for every n: nothing of it is there, what comes later
    is."""
    disk = FailingDisk()
    with opened(tmp_path, disk) as made:
        begin(made)
        push = changes.Push(client="c", client_seq=1, receipt="[]", digest=b"d")
        before = disk.count
        made.write(changes.pushed(1, 1, ["first"], push=push), "fsync")
        statements = disk.count - before
        assert statements >= 4  # begin, entries, dropped, receipt, commit
        for number in range(1, statements + 1):
            disk.fails = {disk.count + number}
            push = changes.Push(client="c", client_seq=1 + number, receipt="[]", digest=b"d")
            change = changes.pushed(1, 1 + number, [f"lost {number}"], [(1, 1)], push)
            with pytest.raises(JournalError, match="disk is full; nothing was added"):
                made.write(change, "fsync")
            disk.fails = set()
            assert texts(tmp_path) == ["first", *(f"kept {n}" for n in range(1, number))]
            made.write(changes.pushed(1, 1 + number, [f"kept {number}"]), "fsync")


def test_a_disk_that_fails_stops_the_journal(tmp_path: Path) -> None:
    """A kernel may call clean what never reached the disk: nothing is added on top of it."""
    disk = FailingDisk()
    with opened(tmp_path, disk) as made:
        begin(made)
        made.write(changes.pushed(1, 1, ["a"]), "fsync")
        disk.broken = True
        with pytest.raises(JournalError, match=r"failed: disk I/O error.*opened anew"):
            made.write(changes.pushed(1, 2, ["b"]), "fsync")
        disk.broken = False
        for level in ("memory", "os", "fsync"):
            with pytest.raises(JournalError, match="nothing was added"):
                made.submit(PendingWrite(changes.pushed(1, 2, ["c"]), level))
        with pytest.raises(JournalError, match="nothing was added"):
            made.check()
        assert texts(tmp_path) == ["a"]
    with opened(tmp_path) as again:
        again.write(changes.pushed(1, 2, ["d"]), "fsync")
    assert texts(tmp_path) == ["a", "d"]


def test_a_change_that_cannot_be_rolled_back_at_once_is_later(tmp_path: Path) -> None:
    disk = FailingDisk()
    with opened(tmp_path, disk) as made:
        begin(made)
        disk.fails, disk.stuck = {disk.count + 2}, True  # within the transaction
        with pytest.raises(JournalError, match="disk is full"):
            made.write(changes.pushed(1, 1, ["lost"]), "os")
        disk.stuck = False
        made.write(changes.pushed(1, 1, ["a"]), "os")
    assert texts(tmp_path) == ["a"]


def test_what_was_acknowledged_before_stays_in_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes that nobody waits for are written once the disk works again, before all others."""
    monkeypatch.setattr(journal, "RETRY_S", 0.01)
    disk = FailingDisk()
    with opened(tmp_path, disk) as made:
        begin(made)
        undone: list[str] = []

        def settle(tickets: Sequence[PendingWrite], error: Exception | None) -> None:
            if error is not None:
                everything = [*tickets, *made.drain()]
                undone.extend("x" for one in everything if not one.stays)
                made.put_back([one for one in everything if one.stays])
            for ticket in tickets:
                if error is None:
                    ticket.settled.set_result(None)

        made.settle = settle
        disk.full = True
        for number in range(1, 4):
            made.submit(PendingWrite(changes.pushed(1, number, [str(number)]), "memory"))
        made.submit(PendingWrite(changes.pushed(1, 4, ["undone"]), "os"))
        while not undone:
            time.sleep(0.001)
        disk.full = False
        made.write(changes.pushed(1, 4, ["4"]), "os")
    assert texts(tmp_path) == ["1", "2", "3", "4"]


def wait_for(event: threading.Event) -> None:
    assert event.wait(10)


def test_a_change_that_contradicts_what_is_there_takes_no_other_with_it(tmp_path: Path) -> None:
    """It fails by itself, with what came after it; the journal goes on."""
    with opened(tmp_path) as made:
        begin(made)
        told: list[tuple[int, bool]] = []
        go = threading.Event()

        def settle(tickets: Sequence[PendingWrite], error: Exception | None) -> None:
            told.append((len(tickets), error is None))
            if error is not None:
                made.put_back([one for one in tickets if one.stays])
            for ticket in tickets:
                if error is None:
                    ticket.settled.set_result(None)

        made.settle = settle
        made.submit(PendingWrite(lambda _: wait_for(go), "os"))
        last = PendingWrite(changes.pushed(1, 2, ["b"]), "memory")
        for ticket in (
            PendingWrite(changes.pushed(1, 1, ["a"]), "os"),
            PendingWrite(changes.opened(opening(1)), "memory"),  # there is one of that key
            last,
        ):
            made.submit(ticket)
        go.set()
        last.settled.result(10)
    assert told == [(1, True), (1, True), (2, False), (1, True)]
    assert texts(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("value", ["\ud800", 1 << 70, object()])
def test_a_value_that_no_database_takes_blocks_nobody(tmp_path: Path, value: object) -> None:
    """Not even as what was acknowledged already, and would be tried for ever."""
    with opened(tmp_path) as made:
        begin(made)
        bad = PendingWrite(lambda to: _bind(to, value), "memory")
        made.submit(bad)
        with pytest.raises(JournalError, match="no value for a database"):
            bad.settled.result(10)
        made.write(changes.pushed(1, 1, ["a"]), "os")
    assert texts(tmp_path) == ["a"]


def _bind(to: sqlite3.Connection, value: object) -> None:
    to.execute("SELECT ?", (value,))


def test_an_error_of_who_is_told_does_not_end_the_writer(tmp_path: Path) -> None:
    with opened(tmp_path) as made:
        settle = made.settle
        made.settle = lambda tickets, error: 1 / 0
        with pytest.raises(JournalError, match="division by zero"):
            made.write(changes.opened(opening(1)), "os")
        made.settle = settle
        made.write(changes.pushed(1, 1, ["a"]), "os")
    assert texts(tmp_path) == ["a"]


def test_what_could_never_be_written_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FailingDisk()
    made = Journal(tmp_path, connect=disk.connect)
    made.settle = lambda tickets, error: made.put_back(tickets)
    made.start()
    disk.full = True
    made.submit(PendingWrite(changes.opened(opening(1)), "memory"))
    with caplog.at_level(logging.ERROR):
        made.close()
    assert "1 changes were never written" in caplog.text
    with pytest.raises(JournalError, match="closed"):
        made.submit(PendingWrite(changes.opened(opening(2)), "memory"))


def test_one_engine_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(JournalInUse, match="in use by another engine"):
            Journal(tmp_path)
        code = (
            "import sys; from jaxstate.persist.journal import Journal\n"
            "from jaxstate.errors import JournalInUse\n"
            "try: Journal(sys.argv[1])\n"
            "except JournalInUse: sys.exit(7)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert done.returncode == 7
    with opened(tmp_path):
        pass


def test_places_where_no_journal_can_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    with pytest.raises(JournalError, match="cannot be opened for writing"):
        Journal(file)
    with pytest.raises(JournalError, match="cannot be opened for writing"):
        Journal(file / "below")
    with pytest.raises(JournalDamaged, match="holds no journal"):
        read_only(tmp_path / "nothing")
    assert file.read_text() == "no directory"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_directory_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(JournalError, match="cannot be opened for writing"):
            Journal(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_database_that_is_read_only(tmp_path: Path) -> None:
    """As root may find it: the first write says no."""

    def read_only_connection(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)

    with pytest.raises(JournalError, match="writable"):
        Journal(tmp_path, connect=read_only_connection)
    with opened(tmp_path):  # it let go of the lock
        pass


def test_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = tmp_path / DATABASE
    database.write_bytes(b"no database at all" * 100)
    with pytest.raises(JournalDamaged, match="is not a database"):
        Journal(tmp_path)
    assert database.read_bytes() == b"no database at all" * 100
    database.unlink()
    with contextlib.closing(sqlite3.connect(database)) as other:
        other.executescript("CREATE TABLE mine (x); INSERT INTO mine VALUES (1);")
    with pytest.raises(JournalDamaged, match="not a journal"):
        Journal(tmp_path)
    with contextlib.closing(sqlite3.connect(database)) as other:
        assert other.execute("SELECT x FROM mine").fetchall() == [(1,)]


def test_another_format_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as other:
        other.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
        other.commit()
    with pytest.raises(JournalDamaged, match="has format 99; this version reads format 1"):
        Journal(tmp_path)


def test_a_torn_last_page_is_what_was_never_acknowledged(tmp_path: Path) -> None:
    """However much of the log's end is missing, or wrong: whole changes are there, up to one of
    them, and the journal goes on from there."""
    path = tmp_path / "journal"
    made = Journal(path)
    made.start()
    begin(made)
    for number in range(1, 9):
        made.write(changes.pushed(1, number, [f"{number}" * 300]), "fsync")
    whole = [f"{number}" * 300 for number in range(1, 9)]
    files = {one.name: one.read_bytes() for one in path.iterdir() if one.is_file()}
    made.close()
    log = files[f"{DATABASE}-wal"]
    for torn in (*range(1, 4200, 411), len(log) // 2, len(log) - 40):
        for kind in ("cut", "zeros", "flipped"):
            again = tmp_path / f"{kind}{torn}"
            again.mkdir()
            left = log[:-torn]
            end = {
                "cut": b"",
                "zeros": bytes(torn),
                "flipped": bytes(byte ^ 0x55 for byte in log[-torn:]),
            }[kind]
            (again / DATABASE).write_bytes(files[DATABASE])
            (again / f"{DATABASE}-wal").write_bytes(left + end)
            with opened(again) as found:
                try:
                    there = texts(again)
                except JournalDamaged:  # not even the session's opening is left
                    assert torn > len(log) // 3
                    continue
                assert there == whole[: len(there)]
                assert torn > 4200 or len(there) >= 6
                found.write(changes.pushed(1, len(there) + 1, ["next"]), "os")
            assert texts(again) == [*whole[: len(there)], "next"]


def test_compacting_leaves_nothing_of_what_was_erased(tmp_path: Path) -> None:
    secret = "a secret that is found nowhere"
    with opened(tmp_path) as made:
        for key in (1, 2):
            made.write(changes.opened(opening(key)), "os")
            made.write(changes.pushed(key, 1, [secret if key == 1 else "other"] * 40), "os")
        everything = b"".join(one.read_bytes() for one in tmp_path.iterdir() if one.is_file())
        assert secret.encode() in everything
        made.write(changes.erased(1))
        made.compact()
        everything = b"".join(one.read_bytes() for one in tmp_path.iterdir() if one.is_file())
        assert secret.encode() not in everything
        assert texts(tmp_path, 2) == ["other"] * 40


def test_a_snapshot_that_comes_after_the_end_of_its_session_is_none(tmp_path: Path) -> None:
    """It was under way while the session was closed; its pieces would stay for ever."""
    row = changes.SnapshotRow(
        session=1, version=0, cells=1, bytes=1, fingerprint="f", segments=("a",), answers="[]"
    )
    piece = changes.SegmentRow(name="a", first=0, last=1, tokens=b"", ends=b"")
    with opened(tmp_path) as made:
        begin(made)
        made.write(changes.snapshot_taken(row, [piece], [], keep=2), "os")
        with contextlib.closing(made.read()) as source:
            assert logged.segment_names(source) == {"a"}
        made.write(changes.ended(1), "os")
        made.write(changes.snapshot_taken(row, [piece], [], keep=2), "os")
        made.write(changes.segments_forgotten(), "os")
        with contextlib.closing(made.read()) as source:
            assert logged.snapshots_of(source, 1) == []
            assert logged.segment_names(source) == set()


def test_compacting_waits_until_the_log_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who copies at the same moment makes SQLite give up at once; here it is one who reads."""

    def impatient(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)

    with opened(tmp_path) as made, contextlib.closing(made.read()) as reader:
        begin(made)
        monkeypatch.setattr(journal, "connect", impatient)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sessions").fetchone()
        threading.Timer(0.1, reader.execute, ("COMMIT",)).start()
        made.compact()
        assert (tmp_path / f"{DATABASE}-wal").stat().st_size == 0
        monkeypatch.setattr(journal, "COMPACT_S", 0.02)
        made.write(changes.pushed(1, 1, ["a"]), "os")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sessions").fetchone()
        with pytest.raises(JournalError, match="could not be emptied"):
            made.compact()
        reader.execute("COMMIT")
