"""One session as a file, and a session of which nothing stays."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest

from jaxstate.engine.core.session_manager import erase_session
from jaxstate.engine.types.values import Span
from jaxstate.errors import ClosedError, InvalidInput, JournalDamaged, JournalError
from jaxstate.persist import archive
from jaxstate.persist.places import DATABASE, read_only
from tests.engine.journals import (
    SMALL,
    erase,
    erased_of,
    everything,
    export,
    fetched,
    found,
    killed,
    read_all,
    segments,
    started,
)
from tests.engine.rig import Rig

SECRET = "a secret that is found nowhere"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "j"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "feed.session"


def test_a_session_goes_from_one_engine_to_another(path: Path, file: Path, tmp_path: Path) -> None:
    rig = started(path)
    session = rig.open("abcd" * 8, id="feed", prefix="0123", tenant="acme", policy="drop_oldest")
    receipt = session.push("x", client="c", client_seq=3)
    session.flash("abc", max_tokens=3)
    rig.engine.run()
    answer = session.flashes()[0].answer
    export(rig, session, file)
    whole = bytes(rig.cells(session))
    other = started(tmp_path / "other")
    there = other.open(id="feed")
    with pytest.raises(InvalidInput, match="open already"):
        other.engine.import_session(file)
    back = other.engine.import_session(file, "taken")
    info = back.info()
    assert (back.version, info.pending, info.tenant) == (2, 0, "acme")
    assert back.flashes()[0].answer == answer
    read_all(other)
    assert found(other, "taken") == (2, whole)
    assert fetched(other) == 0  # not even for the flash answer
    assert back.push("x", client="c", client_seq=3) == receipt
    there.close()
    other = started(killed(other))
    read_all(other)
    assert found(other, "taken") == (2, whole)
    rig.engine.close()
    other.engine.close()


def test_into_the_same_engine_it_shares_what_is_there(path: Path, file: Path) -> None:
    rig = started(path)
    session = rig.open("abcd" * 10, id="feed")
    export(rig, session, file)
    seen = segments(path)
    copy = rig.engine.import_session(file, "copy")
    assert segments(path) == seen
    read_all(rig)
    session.push("feed's")
    copy.push("copy's")
    read_all(rig)
    assert found(rig, "feed")[1] == b"abcd" * 10 + b"\nfeed's\n"
    assert found(rig, "copy")[1] == b"abcd" * 10 + b"\ncopy's\n"
    rig.engine.close()


def test_forks_and_displaced_entries_are_flat_in_a_file(
    path: Path, file: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL, queue_entries=2, queue_policy="drop_oldest")
    rig = started(path, config=config)
    session = rig.open("ab", id="feed", prefix="0")
    session.push(["gone", "c"])
    assert session.push("d").dropped == (Span(first=2, last=2),)
    rig.engine.run()
    fork = rig.engine.fork(session, rig.engine.turn)
    fork.push(["e", "f"])
    fork.push("g")
    rig.engine.run()
    export(rig, fork, file)
    with contextlib.closing(sqlite3.connect(file)) as source:
        texts = [bytes(row[0]) for row in source.execute("SELECT text FROM entries")]
    assert b"gone" not in texts and b"c" in texts
    whole = found(rig, fork.id)
    rig.engine.close()
    other = started(tmp_path / "other")
    other.engine.import_session(file, "fork")
    read_all(other)
    assert found(other, "fork") == whole
    assert other.engine.session("fork").push("next").first == whole[0] + 1
    other.engine.close()


def test_a_file_is_written_whole_or_not_at_all(path: Path, file: Path) -> None:
    rig = started(path)
    session = rig.open("abcd", id="feed")
    file.write_text("mine")
    with pytest.raises(InvalidInput, match="exists"):
        export(rig, session, file)
    assert file.read_text() == "mine"
    file.unlink()
    with pytest.raises(JournalError, match="could not be exported"):
        export(rig, session, file.parent / "no such directory" / "file")
    assert [one.name for one in file.parent.iterdir()] == ["j"]
    rig.engine.close()


def test_without_a_snapshot_that_is_there_a_file_has_the_entries(path: Path, file: Path) -> None:
    rig = started(path)
    session = rig.open("abcd" * 10, id="feed")
    rig.engine.snapshot()
    for piece in (path / "segments").iterdir():
        shutil.rmtree(piece)
    export(rig, session, file)
    copy = rig.engine.import_session(file, "copy")
    assert copy.version == -1
    read_all(rig)
    assert found(rig, "copy") == found(rig, "feed")
    rig.engine.close()


def test_damage_anywhere_in_a_file(path: Path, file: Path, tmp_path: Path) -> None:
    """Each stretch of it cut off, zeroed, flipped: it is refused, or all is as it should be; the
    engine goes on, and nothing of it stays where it was refused."""
    rig = started(path)
    session = rig.open("abcd" * 10, id="feed")
    export(rig, session, file)
    whole, content = found(rig, "feed"), file.read_bytes()
    refused = 0
    for number, at in enumerate(range(0, len(content), len(content) // 45)):
        end = min(len(content), at + 300)
        changed = {
            0: content[:at],
            1: content[:at] + bytes(end - at) + content[end:],
            2: content[:at] + bytes(b ^ 0xFF for b in content[at:end]) + content[end:],
        }[number % 3]
        damaged = tmp_path / "damaged"
        damaged.write_bytes(changed)
        try:
            back = rig.engine.import_session(damaged, f"n{number}")
        except JournalError:
            refused += 1
            assert f"n{number}" not in {one.id for one in rig.engine.sessions()}
            continue
        read_all(rig)
        assert found(rig, back.id) == whole
        erase(rig, back)
    assert refused > 10
    assert found(rig, "feed") == whole
    for wrong in (tmp_path, tmp_path / "nothing", path / DATABASE):
        with pytest.raises(JournalDamaged):
            rig.engine.import_session(wrong, "x")
    rig = started(killed(rig))
    assert [one.id for one in rig.engine.sessions()] == ["feed"] and not rig.engine.recovery.failed
    rig.engine.close()


def test_files_that_would_lie_elsewhere_are_refused(path: Path, file: Path) -> None:
    rig = started(path)
    export(rig, rig.open("abcd" * 10, id="feed"), file)
    for sql in (
        "UPDATE files SET name = '../../../escaped'",
        "UPDATE files SET name = '/tmp/escaped'",
        "UPDATE segments SET name = '../escaped' || first;",
    ):
        evil = file.with_name("evil")
        shutil.copy(file, evil)
        with contextlib.closing(sqlite3.connect(evil)) as database:
            database.executescript(sql)
        shutil.rmtree(path / "segments")
        (path / "segments").mkdir()
        with pytest.raises(JournalError, match="elsewhere"):
            rig.engine.import_session(evil, "evil")
    assert not list(file.parent.rglob("escaped"))
    rig.engine.close()


def test_without_a_journal_there_is_no_export(file: Path) -> None:
    rig = Rig()
    session = rig.open("ab")
    for call in (
        lambda: session.export(file),
        lambda: rig.engine.import_session(file),
        lambda: rig.engine.erase("x"),
    ):
        with pytest.raises(InvalidInput, match="needs a journal"):
            call()
    erase(rig, session)  # it leaves the device all the same
    assert not rig.executor._tokens.any()
    with pytest.raises(ClosedError):
        session.push("x")


def test_nothing_of_an_erased_session_stays(path: Path) -> None:
    """Not in the journal, nor its log, nor the snapshots, nor the pool, nor the host's memory; all
    of another's does."""
    rig = started(path)
    other = rig.open("another's text" * 3, id="other")
    session = rig.open(SECRET, id="feed", prefix=SECRET)
    session.push(SECRET, client=SECRET, client_seq=1)
    session.flash(f"{SECRET}?", max_tokens=2)
    rig.engine.run()
    rig.engine.snapshot()
    session.suspending()
    rig.engine.run()
    back = session.submit("xyz")
    rig.engine.run()
    assert back.done() and SECRET.encode() in everything(path)
    assert b"a secret" in bytes(rig.executor._tokens.astype("u1").reshape(-1))
    whole = found(rig, "other")
    erase(rig, session)
    assert SECRET.encode() not in everything(path)
    tokens = rig.executor._tokens.astype("u1").reshape(-1)
    assert b"secret" not in bytes(tokens) and whole[1] == bytes(rig.cells(other))
    assert rig.core.cell_store.where(session.record.key) == "log"
    assert not rig.core.state.prefixes.blocks
    rig.check_blocks()
    with pytest.raises(ClosedError):
        session.push("x")
    rig = started(killed(rig))
    assert [one.id for one in rig.engine.sessions()] == ["other"]
    read_all(rig)
    assert found(rig, "other") == whole
    rig.engine.close()


def test_a_session_that_was_closed_can_still_be_erased(path: Path) -> None:
    rig = started(path)
    rig.open("x", id="feed", prefix=SECRET).close()
    rig.open(SECRET, id="feed")
    assert SECRET.encode() in everything(path)
    with pytest.raises(InvalidInput, match="is open"):
        rig.engine.erase("feed")
    rig.engine.session("feed").close()
    assert b"a secret" in bytes(rig.executor._tokens.astype("u1").reshape(-1))
    assert erased_of(rig, "feed") == 2 and erased_of(rig, "feed") == 0
    assert SECRET.encode() not in everything(path)
    assert not rig.executor._tokens.any() and not rig.core.state.prefixes.blocks
    rig.engine.close()


def test_what_a_fork_has_read_is_the_forks(path: Path) -> None:
    rig = started(path)
    session = rig.open("shared", id="feed")
    fork = rig.engine.fork(session, rig.engine.turn)
    session.push(SECRET)
    fork.push("fork's")
    rig.engine.run()
    whole = found(rig, fork.id)
    erase(rig, session)
    assert SECRET.encode() not in everything(path)
    rig = started(killed(rig))
    read_all(rig)
    assert found(rig, fork.id) == whole == (2, b"shared\nfork's\n")
    erase(rig, rig.engine.session(fork.id))
    assert b"shared" not in everything(rig.core.journal_writer.journal.path)  # pyright: ignore
    with contextlib.closing(read_only(rig.core.journal_writer.journal.path)) as source:  # pyright: ignore
        assert source.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
    rig.engine.close()


def test_an_erase_of_what_is_closed_does_not_touch_what_is_open(path: Path) -> None:
    rig = started(path)
    rig.open("gone", id="feed").close()
    rig.open("there", id="feed")
    assert closed_keys_of(rig, "feed") == [1]
    rig.engine.close()
    with pytest.raises(ClosedError):
        rig.engine.erase("feed")


def closed_keys_of(rig: Rig, name: str) -> list[int]:
    with contextlib.closing(rig.core.journal_writer.journal.read()) as source:  # pyright: ignore
        return archive.closed_keys(source, name)


def test_what_was_set_aside_goes_with_an_erase(path: Path) -> None:
    rig = started(path)
    session = rig.open(SECRET, id="feed")
    rig.engine.snapshot()
    for piece in (path / "segments").iterdir():
        rig.core.journal_writer.journal.segments.set_aside(piece.name)  # pyright: ignore
    assert list((path / "set-aside").iterdir())
    erase(rig, session)
    assert not (path / "set-aside").exists() and SECRET.encode() not in everything(path)
    rig.engine.close()


def test_an_erase_while_the_engine_is_closed_ends(path: Path) -> None:
    """The journal has it, and the loop is gone: nobody waits for ever."""
    rig = started(path)
    session = rig.open("abcd", id="feed")
    noted, wiped = erase_session(rig.core, session.record)
    rig.engine._loop.close(ClosedError("the engine was closed"))
    rig.engine.turn()
    assert noted is not None
    noted.settled.result(20)
    with contextlib.suppress(ClosedError):
        wiped.result(20)
    rig.engine.close()


def test_a_file_is_of_one_moment(path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pushed while it is written is not in it, neither the entry nor the receipt."""
    rig = started(path)
    session = rig.open("abcd", id="feed")
    session.push("x", client="c", client_seq=1)
    rig.engine.run()
    real = archive.root_of

    def meanwhile(*args: object) -> object:
        monkeypatch.setattr(archive, "root_of", real)
        session.push("y", client="c", client_seq=2)
        return real(*args)  # pyright: ignore

    monkeypatch.setattr(archive, "root_of", meanwhile)
    export(rig, session, file)
    copy = rig.engine.import_session(file, "copy")
    assert copy.client_seq("c") == 1
    assert copy.push("y", client="c", client_seq=2).first == 3
    assert copy.push("y", client="c", client_seq=2).first == 3
    read_all(rig)
    assert found(rig, "copy") == found(rig, "feed")
    rig.engine.close()


def test_somebody_who_reads_does_not_keep_others_from_pushing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erase says that the log could not be emptied; pushes go on."""
    monkeypatch.setattr("jaxstate.persist.journal.COMPACT_S", 0.05)
    rig = started(path)
    session, other = rig.open("abcd", id="feed"), rig.open("abcd", id="other")
    with contextlib.closing(read_only(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM entries").fetchone()
        other.push("while it reads")
        with pytest.raises(JournalError, match="somebody reads it"):
            erase(rig, session)
        assert other.push("and after that").first == 3
    assert other.push("and later").first == 4
    rig.engine.close()


def test_a_file_keeps_when_entries_came(path: Path, file: Path) -> None:
    rig = started(path)
    session = rig.open("abcd", id="feed")
    with contextlib.closing(sqlite3.connect(path / DATABASE)) as database:
        database.execute("UPDATE entries SET pushed_s = 1e9")
        database.commit()
    export(rig, session, file)
    with contextlib.closing(sqlite3.connect(file)) as source:
        assert source.execute("SELECT pushed_s FROM entries").fetchall() == [(1e9,)]
    rig.engine.close()


def test_a_backup_of_a_running_engine_comes_back(path: Path) -> None:
    """The database first, by SQLite's own means, then the pieces."""
    rig = started(path)
    session = rig.open("abcd" * 10, id="feed")
    rig.engine.snapshot()
    session.push("tail")
    copy = path.with_name("copy")
    copy.mkdir()
    with (
        contextlib.closing(sqlite3.connect(path / DATABASE)) as live,
        contextlib.closing(sqlite3.connect(copy / DATABASE)) as backup,
    ):
        live.backup(backup)
    session.push("later")
    shutil.copytree(path / "segments", copy / "segments")
    rig.engine.close()
    rig = started(copy)
    read_all(rig)
    assert found(rig, "feed") == (2, b"abcd" * 10 + b"\ntail\n")
    assert rig.engine.recovery.sessions[0].tokens_to_read == 5
    rig.engine.close()
