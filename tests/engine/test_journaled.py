"""What an engine with a journal promises while it runs: once, in order, not before it is kept."""

from __future__ import annotations

import contextlib
import functools
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import jaxstate
from jaxstate.engine.api.session import Session
from jaxstate.engine.durability import transfer as durable
from jaxstate.engine.sessions import dedup as receipts
from jaxstate.engine.sessions.dedup import Pushed
from jaxstate.engine.types.options import Coalesce, EngineConfig
from jaxstate.engine.types.values import Receipt, Span
from jaxstate.errors import ClosedError, InvalidInput, JournalError, QueueFull, SequenceGap
from jaxstate.persist import journal
from jaxstate.persist.journal import Journal, PendingWrite
from jaxstate.persist.logged import keys_of
from jaxstate.persist.places import DATABASE
from jaxstate.records import Durability
from tests.engine.rig import Rig
from tests.persist.failing import FailingDisk
from tests.persist.test_journal import texts


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """Under the journals of this test's engines."""
    made = FailingDisk()
    monkeypatch.setattr(durable, "Journal", functools.partial(Journal, connect=made.connect))
    monkeypatch.setattr(journal, "RETRY_S", 0.01)
    return made


@pytest.fixture
def rig(tmp_path: Path, disk: FailingDisk) -> Iterator[Rig]:
    made = Rig(journal=tmp_path / "j", config=EngineConfig(queue_entries=4))
    yield made
    disk.full = False
    made.engine.close()


def held(rig: Rig) -> Callable[[], None]:
    """The journal writes nothing until what is returned is called."""
    kept, go, begun = rig.core.journal_writer.journal, threading.Event(), threading.Event()
    assert kept is not None

    def wait(_: object) -> None:
        begun.set()
        assert go.wait(20)

    kept.submit(PendingWrite(wait, "os"))
    assert begun.wait(20)
    return go.set


def until(done: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if done():
            return
        time.sleep(0.001)
    raise AssertionError("it never came")


def at_rest(session: Session) -> None:
    """Nothing is on its way to the journal."""
    written = session.noting_all()
    assert written is not None
    written.settled.result(20)


def kept(session: Session) -> list[str]:
    path = session._core.journal_writer.journal
    assert path is not None
    return texts(path.path, session.record.log_key)


@contextlib.contextmanager
def at(path: Path, level: Durability) -> Iterator[Rig]:
    """An engine whose journal keeps what it acknowledges at that level."""
    rig = Rig(journal=path / "j", durability=level)
    try:
        yield rig
    finally:
        rig.engine.close()


@pytest.mark.parametrize("level", ["os", "fsync"])
def test_a_receipt_comes_once_it_is_kept_and_nothing_is_read_before(
    tmp_path: Path, level: Durability
) -> None:
    with at(tmp_path, level) as rig, ThreadPoolExecutor(2) as threads:
        session = rig.open(id="feed")
        go = held(rig)
        first = threads.submit(session.push, ["a", "b"])
        until(lambda: session.info().pending == 2)
        second = threads.submit(session.push, "c")
        until(lambda: session.info().pending == 3)
        rig.engine.run()
        assert not first.done() and session.version == 0 and rig.news() == []
        assert not second.done()
        go()
        assert first.result(20) == Receipt(first=1, last=2, pending=2, durable=level)
        assert second.result(20).durable == level
        assert kept(session) == ["a", "b", "c"]
        rig.engine.run()
        assert session.version == 3 and bytes(rig.cells(session)) == b"a\nb\nc\n"


def test_memory_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    with at(tmp_path, "memory") as rig:
        session = rig.open()
        at_rest(session)
        go = held(rig)
        assert session.push("a", client="feed", client_seq=1).durable == "memory"
        rig.engine.run()
        assert session.version == 1
        go()
        until(lambda: kept(session) == ["a"])


def test_too_many_that_wait_let_the_next_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxstate.engine.core.journal_writer.MOST_WAITING", 2)
    with at(tmp_path, "memory") as rig, ThreadPoolExecutor(1) as thread:
        session = rig.open()
        at_rest(session)
        go = held(rig)
        for text in "ab":
            session.push(text)
        third = thread.submit(session.push, "c")
        until(lambda: session.info().pending == 3)
        time.sleep(0.02)
        assert not third.done()
        assert session.push("d", timeout=0.01).last == 4  # it was taken, and waits no longer
        go()
        assert third.result(20).last == 3


def test_without_a_journal_there_is_only_memory() -> None:
    session = Rig().open()
    assert session.push("a").durable == "memory"
    with pytest.raises(InvalidInput, match="'disk' is none of 'memory', 'os', 'fsync'"):
        Rig(durability="disk")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("journaled", [False, True])
def test_a_repeat_gets_the_first_receipt(tmp_path: Path, journaled: bool) -> None:
    rig = Rig(journal=tmp_path / "j" if journaled else None)
    session, other = rig.open(), rig.open()
    push = functools.partial(session.push, client="feed")
    first = push(["a", "b"], client_seq=17)
    assert (first.first, first.last) == (1, 2)
    later = push("c", client_seq=18)
    rig.engine.run()
    assert push(["a", "b"], client_seq=17) == first and push("c", client_seq=18) == later
    assert session.push(["a", "b"], client="other", client_seq=17).first == 4  # its own numbers
    assert other.push("x", client="feed", client_seq=17).first == 1  # as every session's
    assert push("d", client_seq=30).first == 6  # a gap is none of our business
    assert push("e", client_seq=20).first == 7  # nor is who comes late
    assert push("e", client_seq=20).first == 7
    rig.engine.run()
    assert bytes(rig.cells(session)) == b"a\nb\nc\na\nb\nd\ne\n"
    rig.engine.close()


@pytest.mark.parametrize("journaled", [False, True])
def test_a_number_that_was_used_for_something_else(tmp_path: Path, journaled: bool) -> None:
    """A feed that begins to count anew would lose all that it pushes: it is told."""
    rig = Rig(journal=tmp_path / "j" if journaled else None)
    session = rig.open()
    session.push(["ab", "c"], client="feed", client_seq=1)
    for other in (["a", "bc"], ["ab"], ["abc"], ["ab", "c", ""], ["ab", "d"]):
        with pytest.raises(InvalidInput, match="other entries under number 1 before"):
            session.push(other, client="feed", client_seq=1)
    assert session.info().pending == 2
    rig.engine.close()


def test_strict_order(rig: Rig) -> None:
    session = rig.open()
    push = functools.partial(session.push, client="feed", strict=True)
    push("a", client_seq=5)  # where it begins is its own business
    with pytest.raises(SequenceGap, match=r"pushes number 7, and its last was 5.*Push 6 next"):
        push("c", client_seq=7)
    assert session.info().pending == 1
    push("b", client_seq=6)
    assert push("c", client_seq=7).first == 3
    assert push("b", client_seq=6).first == 2  # a repeat is no gap
    with pytest.raises(SequenceGap, match="Push 8 next"):
        push("z", client_seq=3)  # neither next nor a repeat


def test_who_pushes_must_be_said_whole(rig: Rig) -> None:
    session = rig.open()
    for wrong in (
        {"client": "a"},
        {"client_seq": 1},
        {"strict": True},
        {"client": "", "client_seq": 1},
        {"client": "a" * 129, "client_seq": 1},
        {"client": 7, "client_seq": 1},
        {"client": "a", "client_seq": -1},
        {"client": "a", "client_seq": 1 << 63},
        {"client": "a", "client_seq": 1.0},
        {"client": "a", "client_seq": True},
        {"entries": 7, "client": "a", "client_seq": 1},
        {"entries": ["x", 7], "client": "a", "client_seq": 1},
    ):
        with pytest.raises(InvalidInput):
            session.push(**{"entries": "x", **wrong})  # pyright: ignore
    assert session.push("x", client="a" * 128, client_seq=(1 << 63) - 1).first == 1
    assert session.push("y", client="b", client_seq=0).first == 2


def test_repeats_of_long_ago_are_in_the_journal(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest receipts are kept in memory, once the journal has been asked for the rest."""
    monkeypatch.setattr(receipts, "RECENT", 3)
    session = rig.open()
    given = []
    for number in range(1, 20):
        given.append(session.push(f"{number}", client="feed", client_seq=number))
        rig.engine.run()
    assert len(session.record.receipts._given) <= 3
    for number, receipt in enumerate(given, 1):
        assert session.push(f"{number}", client="feed", client_seq=number) == receipt
    with pytest.raises(InvalidInput, match="other entries"):
        session.push("x", client="feed", client_seq=2)
    assert session.version == 19


def test_a_repeat_while_the_first_is_on_its_way_waits_with_it(rig: Rig, disk: FailingDisk) -> None:
    """And shares its fate."""
    session = rig.open()
    for fails in (False, True):
        number = 2 if fails else 1
        go = held(rig)
        with ThreadPoolExecutor(2) as threads:
            push = functools.partial(session.push, "a", client="feed", client_seq=number)
            both = [threads.submit(push) for _ in range(2)]
            until(lambda: session.info().pending == 1)
            disk.full = fails
            go()
            if fails:
                for one in both:
                    with pytest.raises(JournalError):
                        one.result(20)
                disk.full = False
                assert push().first == 2
            else:
                assert {one.result(20).first for one in both} == {1}
        rig.engine.run()
    assert kept(session) == ["a", "a"]


def test_a_push_that_cannot_be_kept_was_never_there(rig: Rig, disk: FailingDisk) -> None:
    session, other = rig.open(), rig.open()
    session.push("a", client="feed", client_seq=1)
    disk.full = True
    with pytest.raises(JournalError, match="the journal could not be written: database or disk"):
        session.push(["lost", "lost"], client="feed", client_seq=2)
    assert (session.info().pending, session.info().pending_tokens) == (1, 2)
    ask = other.submit("xyz")
    rig.engine.run()
    assert ask.result(0).text and session.version == 1  # everything else goes on
    disk.full = False
    receipt = session.push(["b"], client="feed", client_seq=2)
    assert receipt == Receipt(first=2, last=2, pending=1, durable="os")
    rig.engine.run()
    assert bytes(rig.cells(session)) == b"a\nb\n" and kept(session) == ["a", "b"]
    counts = rig.engine.metrics().counts
    assert (counts.entries_pushed, counts.entries_committed) == (2, 2)
    rig.check_blocks()


def test_what_was_displaced_for_it_comes_back(tmp_path: Path, disk: FailingDisk) -> None:
    config = EngineConfig(queue_entries=3, queue_policy="drop_oldest")
    rig = Rig(journal=tmp_path / "j", config=config)
    session = rig.open()
    session.push(["a", "b", "c"])
    disk.full = True
    with pytest.raises(JournalError):
        session.push(["d", "e"])
    info = session.info()
    assert (info.pending, info.pending_tokens, info.dropped) == (3, 6, 0)
    disk.full = False
    assert session.push("f").dropped == (Span(first=1, last=1),)
    rig.engine.run()
    assert bytes(rig.cells(session)) == b"b\nc\nf\n" and kept(session) == ["b", "c", "f"]
    rig.engine.close()


def test_nobody_waits_for_a_push_that_never_counted(rig: Rig, disk: FailingDisk) -> None:
    session = rig.open()
    session.push("a")
    rig.engine.run()
    go = held(rig)
    with ThreadPoolExecutor(2) as threads:
        lost = threads.submit(session.push, "lost")
        until(lambda: session.info().pending == 1)
        waiting = threads.submit(session.wait, None, 20)
        fresh = threads.submit(session.wait_fresh, 20)
        time.sleep(0.02)
        disk.full = True
        go()
        with pytest.raises(JournalError):
            lost.result(20)
        until(lambda: rig.engine.turn() or (waiting.done() and fresh.done()))
        assert (waiting.result(20), fresh.result(20)) == (1, 1)


def test_several_that_wait_fail_together_and_leave_no_gap(rig: Rig, disk: FailingDisk) -> None:
    session = rig.open()
    go = held(rig)
    with ThreadPoolExecutor(3) as threads:
        pushes: list[Future[Receipt]] = []
        for count in range(1, 4):
            pushes.append(threads.submit(session.push, "x"))
            until(lambda want=count: session.info().pending == want)
        disk.full = True
        go()
        for push in pushes:
            with pytest.raises(JournalError):
                push.result(20)
    disk.full = False
    assert session.info().pending == 0
    assert session.push("y").first == 1
    assert kept(session) == ["y"]


def test_room_that_comes_back_is_given_to_who_waits(rig: Rig, disk: FailingDisk) -> None:
    """A queue that is full of entries on their way to a disk that then fails."""
    session = rig.open()
    go = held(rig)
    with ThreadPoolExecutor(2) as threads:
        full = threads.submit(session.push, list("abcd"))
        until(lambda: session.info().pending == 4)
        waiting = threads.submit(session.push, "e", timeout=20)
        until(lambda: bool(session.record.room_waiters))
        disk.full = True
        go()
        with pytest.raises(JournalError):
            full.result(20)
        disk.full = False
        until(lambda: rig.engine.turn() or waiting.done())
        assert waiting.result(20).first == 1


def test_what_was_acknowledged_at_once_is_written_once_the_disk_works(
    tmp_path: Path, disk: FailingDisk
) -> None:
    with at(tmp_path, "memory") as rig:
        session = rig.open()
        at_rest(session)
        disk.full = True
        for number, text in enumerate("abc", 1):
            session.push(text, client="feed", client_seq=number)
            rig.engine.run()
        with pytest.raises(JournalError, match="could not be written"):
            session.close(erase=True)  # that is always waited for
        assert session.push("d").first == 4
        assert session.push("c", client="feed", client_seq=3).first == 3
        disk.full = False
        until(lambda: kept(session) == ["a", "b", "c", "d"])
        assert session.push("e").first == 5
        rig.engine.run()
        assert session.version == 5
        until(lambda: kept(session) == list("abcde"))


def test_a_disk_that_fails_stops_the_journal_until_it_is_opened_anew(
    tmp_path: Path, disk: FailingDisk
) -> None:
    """Nobody knows what such a disk has of a change: nothing more is added, questions go on, and
    the next engine finds out."""
    rig = Rig(journal=tmp_path / "j", durability="fsync")
    session, other = rig.open(id="feed"), rig.open(id="other")
    session.push("a", client="c", client_seq=1)
    rig.engine.run()
    disk.broken = True
    with pytest.raises(JournalError, match="Whether the changes under way were written shows"):
        session.push("b", client="c", client_seq=2)
    disk.broken = False
    for change in (
        lambda: session.push("b", client="c", client_seq=2),
        lambda: session.flash("abc"),
        lambda: rig.engine.open("third"),
        other.close,
        lambda: other.close(erase=True),
    ):
        with pytest.raises(JournalError, match=r"disk of the journal .* failed.*nothing was added"):
            change()
    ask = session.submit("xyz")
    rig.engine.run()
    assert ask.result(0).version == session.version == 1
    assert [one.id for one in rig.engine.sessions()] == ["feed", "other"]
    assert session.flashes() == [] and session.info().pending == 0
    rig.check_blocks()
    rig.engine.close()
    with at(tmp_path, "fsync") as again:
        session = again.engine.session("feed")
        assert session.push("b", client="c", client_seq=2).first == 2
        again.engine.run()
        assert session.version == 2 and kept(session) == ["a", "b"]


def test_a_session_that_cannot_be_kept_is_not_open(rig: Rig, disk: FailingDisk) -> None:
    disk.full = True
    with pytest.raises(JournalError):
        rig.engine.open("feed", prefix="abc", reserve=64)
    assert rig.engine.sessions() == []
    disk.full = False
    rig.engine.open("feed", prefix="abc", reserve=64)
    rig.engine.run()
    rig.check_blocks()


def test_a_session_whose_end_cannot_be_kept_is_open(rig: Rig, disk: FailingDisk) -> None:
    session = rig.open()
    disk.full = True
    with pytest.raises(JournalError):
        session.close()
    with pytest.raises(JournalError):
        session.close(erase=True)
    disk.full = False
    assert session.push("a").first == 1
    session.close()
    session.close()
    with pytest.raises(ClosedError):
        session.push("b")


@pytest.mark.parametrize("erase", [False, True])
def test_nothing_is_added_to_a_session_that_is_about_to_end(rig: Rig, erase: bool) -> None:
    """It would be behind the end in the journal: texts of a session that was erased would stay, and
    a fork would have lost what it has read."""
    session = rig.open("text", id="feed")
    go, line = held(rig), rig.core.journal_writer.journal
    assert line is not None
    with ThreadPoolExecutor(4) as threads:
        closing = threads.submit(session.close, erase=erase)
        until(lambda: line.waiting == 1)
        late = (
            lambda: session.push("late"),
            lambda: session.flash("abc"),
            lambda: rig.engine.fork(session, rig.engine.turn),
        )
        refused = [threads.submit(act) for act in late]
        try:
            for one in refused:
                with pytest.raises(ClosedError, match="is being closed"):
                    one.result(5)
        finally:
            go()
            until(lambda: (rig.engine.run(), closing.done())[1])
    with contextlib.closing(line.read()) as source:
        for table, wanted in (("entries", 0 if erase else 1), ("questions", 0)):
            assert source.execute(f"SELECT count(*) FROM {table}").fetchone() == (wanted,), table


def test_questions_of_any_text_are_kept_or_refused(rig: Rig) -> None:
    session = rig.open()
    for text in ("\ud800", "a\0b", "Ä€😀"):
        with contextlib.suppress(InvalidInput, JournalError):
            session.flash(text)
    assert session.push("a").first == 1 and kept(session) == ["a"]


def test_a_close_that_comes_too_late_says_so(tmp_path: Path) -> None:
    """It is not in the journal, so the session comes back; without a journal nothing does."""
    rig = Rig(journal=tmp_path / "j")
    session, ended = rig.open(id="feed"), rig.open(id="ended")
    ended.close()
    rig.engine.close()
    ended.close()
    with pytest.raises(ClosedError):
        session.close()
    with session:
        pass
    rig = Rig(journal=tmp_path / "j")
    assert [one.id for one in rig.engine.sessions()] == ["feed"]
    rig.engine.session("feed").close()
    rig.engine.close()
    plain = Rig()
    session = plain.open()
    plain.engine.close()
    session.close()


def test_a_session_that_broke_can_be_ended(rig: Rig) -> None:
    """It would come back, and be computed again."""
    session = rig.open("ab")
    rig.core.results.close(session.record, "the device failed")
    session.close()
    journal = rig.core.journal_writer.journal
    assert journal is not None
    with contextlib.closing(journal.read()) as source:
        assert keys_of(source) == []


def test_questions_that_cannot_be_kept(rig: Rig, disk: FailingDisk) -> None:
    session = rig.open()
    session.flash("abc")
    disk.full = True
    for change in (
        lambda: session.flash("def"),
        lambda: session.unflash("q1"),
    ):
        with pytest.raises(JournalError):
            change()
    assert [one.question for one in session.flashes()] == ["abc"]
    disk.full = False
    session.unflash("q1")
    with pytest.raises(InvalidInput):
        session.unflash("q1")
    session.flash("def")


def test_a_fork_that_cannot_be_kept_is_closed(rig: Rig, disk: FailingDisk) -> None:
    session = rig.open("ab")
    disk.full = True
    record, future = rig.manager.fork(session.record, "fork")
    rig.engine.run()
    future.result(0)
    assert record.written is not None
    with pytest.raises(JournalError):
        record.written.settled.result(20)
    assert [one.id for one in rig.engine.sessions()] == [session.id]
    rig.check_blocks()


def test_functions_cannot_be_kept_but_as_the_engines_own(tmp_path: Path) -> None:
    by_first = Coalesce(lambda text: text[:1])
    rig = Rig(journal=tmp_path / "j", config=EngineConfig(queue_policy=by_first))
    session = rig.engine.open()
    session.push(["a1", "b1", "a2"])
    with pytest.raises(InvalidInput, match="cannot keep the function of Coalesce"):
        rig.engine.open("other", policy=Coalesce(lambda text: text[:2]))
    assert [one.id for one in rig.engine.sessions()] == [session.id]
    assert rig.engine.open("third", policy="reject").id == "third"
    rig.engine.run()
    assert kept(session) == ["b1", "a2"]
    rig.engine.close()


def test_on_the_engines_own_thread_nobody_waits_for_a_disk(tmp_path: Path) -> None:
    """Others would wait too."""
    executor = jaxstate.testing.FakeExecutor(jaxstate.testing.FakeClock())
    model = jaxstate.testing.tiny_model()
    with jaxstate.Engine(model, executor=executor, journal=tmp_path / "j") as engine:
        session = engine.open()
        found: list[object] = []

        def act(_: object) -> None:
            for call in (
                lambda: session.push("a"),
                lambda: session.flash("abc"),
                lambda: engine.open("x"),
                session.close,
                lambda: session.close(erase=True),
            ):
                try:
                    found.append(call())
                except InvalidInput as error:
                    found.append("own thread" in str(error))

        ask = session.submit("xyz")
        ask.add_done_callback(act)
        ask.result(20)
        until(lambda: len(found) == 5)
        assert found == [True] * 5


def test_reject_and_capacity_leave_no_trace(tmp_path: Path) -> None:
    config = EngineConfig(queue_entries=2, queue_policy="reject")
    rig = Rig(journal=tmp_path / "j", config=config)
    session = rig.open()
    session.push(["a", "b"], client="c", client_seq=1)
    with pytest.raises(QueueFull):
        session.push("c", client="c", client_seq=2)
    with pytest.raises(jaxstate.CapacityExceeded):
        session.push("x" * 5000, client="c", client_seq=2)
    rig.engine.run()
    assert session.push("d", client="c", client_seq=2).first == 3
    assert kept(session) == ["a", "b", "d"]
    rig.engine.close()


def test_a_push_that_waits_for_room_is_found_by_its_repeat(rig: Rig) -> None:
    session = rig.open()
    session.push(list("abcd"))
    new = session.prepare("e", "feed", 1)
    waiting = session.push_prepared(new)
    assert isinstance(waiting, Future)
    rig.engine.run()
    first = session.push_prepared(new)
    again = session.push_prepared(new)
    assert isinstance(first, Pushed) and first is again
    until(lambda: first.kept)
    rig.engine.run()
    assert kept(session) == list("abcde")


@contextlib.contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond that: what is written there fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("level", ["os", "fsync"])
def test_a_database_that_is_full_for_real(tmp_path: Path, level: Durability) -> None:
    """SQLite itself finds no room in the middle of a change. What was taken is there, what was
    refused is not, before and after there is room again, and after a restart."""
    rig, taken = Rig(journal=tmp_path / "j", durability=level), dict[str, list[str]]()
    line = rig.core.journal_writer.journal
    assert line is not None
    for name in ("one", "two", "three"):
        session, kept_texts = rig.open(id=name), taken.setdefault(name, [])
        line.write(lambda to: _may_grow(to, 0), "os")
        with pytest.raises(JournalError, match="full"):
            for number in range(200):
                session.push(f"{number}", client="c" * 128, client_seq=number)
                kept_texts.append(f"{number}")
                rig.engine.run()
        assert kept(session) == kept_texts
        rig.engine.run()
        assert session.version == len(kept_texts)
        line.write(lambda to: _may_grow(to, 1 << 20), "os")
        last = session.push("last", client="c" * 128, client_seq=len(kept_texts)).last
        kept_texts.append("last")
        assert last == len(kept_texts)
    assert sum(map(len, taken.values())) > 4
    rig.engine.close()
    for key, texts_of in enumerate(taken.values(), 1):
        assert texts(tmp_path / "j", key) == texts_of


def _may_grow(to: sqlite3.Connection, pages: int) -> None:
    (now,) = to.execute("PRAGMA page_count").fetchone()
    to.execute(f"PRAGMA max_page_count={now + pages}")


@pytest.mark.parametrize("level", ["os", "fsync"])
def test_a_disk_that_fails_for_real(tmp_path: Path, level: Durability) -> None:
    """A write that the system refuses: what was taken is there, and the next engine goes on."""
    rig = Rig(journal=tmp_path / "j", durability=level)
    session, taken = rig.open(id="feed"), list[str]()
    files = [tmp_path / "j" / f"{DATABASE}{end}" for end in ("", "-wal")]
    room = max(one.stat().st_size for one in files) + 40_000
    with files_up_to(room), pytest.raises(JournalError, match="disk of the journal"):
        for _ in range(60):
            text = f"{len(taken)} " + "x" * 50
            session.push(text, client="c", client_seq=len(taken))
            taken.append(text)
    assert len(taken) >= 2 and kept(session) == taken
    with pytest.raises(JournalError, match="nothing was added"):
        session.push("more", client="c", client_seq=len(taken))
    rig.engine.run()
    assert session.version == len(taken)
    rig.engine.close()
    with at(tmp_path, level) as again:
        session = again.engine.session("feed")
        assert session.push("more", client="c", client_seq=len(taken)).last == len(taken) + 1
        assert kept(session) == [*taken, "more"]


def test_closing_the_engine_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    rig = Rig(journal=tmp_path / "j", durability="memory")
    session = rig.open()
    for number in range(300):
        session.push(f"{number % 10}")
        rig.engine.run()
    rig.engine.close()
    rig.engine.close()
    assert texts(tmp_path / "j") == [f"{number % 10}" for number in range(300)]
    with pytest.raises(ClosedError):
        session.push("late")
