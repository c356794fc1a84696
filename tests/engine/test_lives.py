"""Forks, saves, restores and closings, at any moment.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

from jaxstate.engine.api.session import Session
from jaxstate.engine.core.session_manager import TOKENS
from jaxstate.engine.executor.protocol import HostCells, Limits, Saved
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import Answer, Closed
from jaxstate.errors import BudgetExceeded, ClosedError, UnknownSession
from jaxstate.testing import FAKE_LIMITS
from tests.engine.rig import AHEAD, Rig, read, said

# --- fork, save, restore ------------------------------------------------------------------------


def test_a_fork_goes_its_own_way() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.flash("fl")
    _, future = rig.manager.fork(session.record, "twin")
    rig.engine.run()
    future.result(timeout=0)
    twin = rig.engine.session("twin")
    assert (twin.version, twin.flashes(), twin.info().tokens) == (1, [], 5)
    assert twin.push("ef").first == 2
    session.push("g")
    rig.engine.run()
    asks = [one.submit("xyz") for one in (session, twin)]
    rig.engine.run()
    assert [said(one) for one in asks] == ["7:3 v2", "8:3 v2"]
    assert rig.cells(twin) == list(b"abcd\nef\n")


def test_a_fork_waits_for_an_entrys_end() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.push("e" * 39)
    rig.turns(1)
    record, future = rig.manager.fork(session.record, "twin")
    with pytest.raises(UnknownSession):
        rig.engine.session("twin")
    rig.turns(1)
    assert not future.done()
    rig.engine.run()
    future.result(timeout=0)
    assert (record.version, record.seen_cells) == (2, 45)
    assert rig.cells(rig.engine.session("twin")) == rig.cells(session)


def test_a_fork_of_a_session_that_is_closed_meanwhile() -> None:
    """It fails with the reason, and all cells and its name are free again."""
    for half_read in (False, True):
        rig = Rig(cells=2 * FAKE_LIMITS.session_cells)
        session = rig.open("abcd")
        if half_read:
            session.push("e" * 39)
            rig.turns(1)
        _, future = rig.manager.fork(session.record, "twin")
        session.close()
        rig.engine.run()
        assert future.done(), f"half_read={half_read}"
        with pytest.raises(ClosedError, match="closed by its user"):
            future.result(timeout=0)
        assert rig.engine.sessions() == []
        rig.check_blocks()
        for name in ("twin", "other"):
            rig.engine.open(name, reserve=FAKE_LIMITS.session_cells)


def test_forks_and_saves_get_their_turn_in_a_flood_of_pushes() -> None:
    """Entries of 4 tokens behind an opening of one: no chunk of 16 ends where an entry ends."""
    rig = Rig()
    session = rig.engine.open(prefix="x")
    session.push(["abc"] * 8)
    rig.turns(2)
    assert session.record.queue.partly_read
    _, future = rig.manager.fork(session.record, "twin")
    for _ in range(30):
        session.push(["abc"] * 4)
        rig.turns(1)
    assert future.done()


def test_a_failed_copy_of_a_shared_block_is_made_again() -> None:
    """A fork needs no device: the two share a block of 5 cells, and whoever grows into it first
    gets a copy. If that fails, nobody knows what is in the block, so all of it is read again."""
    rig = Rig()
    session = rig.open("abcd")
    _, future = rig.manager.fork(session.record, "twin")
    rig.engine.run()
    future.result(timeout=0)
    assert rig.news() == []
    twin = rig.engine.session("twin")
    rig.executor.fail_next("copy")
    twin.push("ef")
    rig.engine.run()
    assert rig.news() == ["extend twin 8"]
    session.push("g")
    rig.engine.run()
    # The other had it alone then, so it needed no copy.
    assert rig.news() == ["extend s1 2"]
    assert rig.cells(twin) == list(b"abcd\nef\n") and rig.cells(session) == list(b"abcd\ng\n")
    assert [one.id for one in rig.engine.sessions()] == ["s1", "twin"]
    asks = [one.submit("xyz") for one in (session, twin)]
    rig.engine.run()
    assert [said(one) for one in asks] == ["7:3 v2", "8:3 v2"]
    rig.at_rest()


def test_saved_and_restored(tmp_path: object) -> None:
    """The save waits for an entry's end; the restored session numbers on."""
    rig = Rig()
    session = rig.open("abcd")
    session.push("e" * 39)
    rig.turns(1)
    path = f"{tmp_path}/saved"
    saved = rig.manager.capture(session.record, {"feed": "prices"})
    rig.turns(1)
    assert not saved.done()
    rig.engine.run()
    session.push("later")
    rig.engine.run()
    saved.result(timeout=0)(path)  # on whatever thread, however late
    read_back = rig.manager.load(path)
    assert read_back.notes == {"feed": "prices", "entries": 2}
    rig.news()
    record, _ = rig.manager.restore("back", read_back, 2, "block", tenant="default")
    back = rig.engine.session("back")  # at once: what it has read is known, wherever it is
    assert (back.version, back.info().residency, back.info().tokens) == (2, "host", 45)
    rig.engine.run()
    assert rig.news() == ["place back"]
    assert (back.info().residency, back.info().tokens) == ("device", 45)
    assert back.push("f").first == 3
    ask = back.submit("xyz")
    rig.engine.run()
    assert said(ask) == "45:3 v2"  # ask before ingest
    assert back.version == 3
    assert record is back.record
    assert rig.cells(back) == list(b"abcd\n" + b"e" * 39 + b"\n" + b"f\n")
    rig.at_rest()


def test_a_save_of_a_session_that_is_closed_meanwhile() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.push("e" * 39)
    rig.turns(1)
    saved = rig.manager.capture(session.record, {})
    session.close()
    rig.engine.run()
    with pytest.raises(ClosedError):
        saved.result(timeout=0)


def saved_cells() -> Saved:
    """Five cells, and what they were made of."""
    tokens = np.array(list(b"abcd\n"), np.int32)
    return Saved(notes={}, cells=HostCells(cells=5, arrays={"cells": tokens, TOKENS: tokens}))


def test_a_restore_of_nothing_leaves_nothing(tmp_path: object) -> None:
    rig = Rig(cells=FAKE_LIMITS.session_cells)
    with pytest.raises(FileNotFoundError):
        rig.engine.restore(f"{tmp_path}/nothing")
    assert rig.engine.sessions() == []
    rig.at_rest()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_restore_that_fails_is_tried_again_then_made_up_for_by_reading(failures: int) -> None:
    rig = Rig(cells=FAKE_LIMITS.session_cells)
    for _ in range(failures):
        rig.executor.fail_next("place")
    rig.manager.restore("back", saved_cells(), 2, "block", tenant="default")
    back = rig.engine.session("back")
    ask = back.submit("xyz")
    rig.engine.run()
    again = "extend back 5" if failures == 2 else "place back"
    assert rig.news()[:2] == [again, "start back x1"]
    assert said(ask) == "5:3 v2" and rig.cells(back) == list(b"abcd\n")
    assert rig.engine.metrics().gauges.host_bytes == 0
    rig.at_rest()


# --- closing ------------------------------------------------------------------------------------


BUSY: dict[str, Callable[[Rig, Session], Future[Answer]]] = {
    "not opened": lambda rig, session: session.submit("xyz"),
    "waiting": lambda rig, session: session.submit("xyz"),
    "blocked": lambda rig, session: session.submit("xyz", min_version=99),
    "reading": lambda rig, session: session.submit("q" * 40),
    "decoding": lambda rig, session: session.submit("xyz"),
    "scoring": lambda rig, session: session.submit("xyz", choices=[*"abcdefghij"]),
    "half an entry": lambda rig, session: session.submit("xyz", min_version=2),
}


@pytest.mark.parametrize("limits", [FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])
@pytest.mark.parametrize("whole", [False, True], ids=["session", "engine"])
@pytest.mark.parametrize("state", BUSY)
def test_closing_while_busy(state: str, whole: bool, limits: Limits) -> None:
    """Whoever waits hears of it, at once and once; the other session goes on, or ends as well."""
    rig = Rig(limits=limits)
    session = rig.engine.open() if state == "not opened" else rig.open("abcd")
    other = rig.open("efgh") if state != "not opened" else None
    events = session.subscribe()
    if state == "half an entry":
        session.push("e" * 39)
    ask = BUSY[state](rig, session)
    waiter = rig.core.wait(session.record, 50)
    session.flash("fl")
    if state not in ("not opened", "waiting"):
        rig.turns(2)
    assert not ask.done()
    launched = [step.sessions for step in rig.executor.steps].count((session.record.key,))
    (rig.engine if whole else session).close()
    rig.engine.run()
    for future in (ask, waiter):
        with pytest.raises(ClosedError, match="closed"):
            future.result(timeout=0)
    last = read(events)
    assert isinstance(last[-1], Closed) and "closed" in last[-1].reason
    assert sum(isinstance(event, Closed) for event in last) == 1
    for call in (
        lambda: session.push("x"),
        lambda: session.submit("x"),
        lambda: session.flash("x"),
        lambda: session.subscribe(),
        lambda: session.wait(timeout=0),
    ):
        with pytest.raises(ClosedError):
            call()
    rig.at_rest()
    session.close()  # again: nothing
    if whole:
        with pytest.raises(ClosedError):
            rig.engine.open()
    elif other is not None:
        future = other.submit("xyz")
        rig.engine.run()
        assert said(future) == "5:3 v1"
        assert "s1" not in [one.id for one in rig.engine.sessions()]
    # Nothing is done for it any more, and only the other's 5 cells are not free again.
    assert [step.sessions for step in rig.executor.steps].count((session.record.key,)) == launched
    assert rig.core.state.tables.primary.held == (other is not None and not whole)


def test_closing_makes_room_for_another_session() -> None:
    """All cells are reserved for the first one, so there are none for others."""
    rig = Rig(cells=FAKE_LIMITS.session_cells)
    session = rig.open("abcd", reserve=FAKE_LIMITS.session_cells)
    for refused in ({"reserve": 1}, {"prefix": "x"}):
        with pytest.raises(BudgetExceeded, match="of 1024 cells 1024 are reserved or pinned"):
            rig.engine.open("two", **refused)  # pyright: ignore
        assert [one.id for one in rig.engine.sessions()] == ["s1"]
    other = rig.open()
    with pytest.raises(BudgetExceeded):
        other.push("efg")
    assert other.info().pending == 0
    session.close()
    other.push("efg")
    ask = other.submit("xyz", min_version=1)
    rig.engine.run()
    assert said(ask) == "4:3 v1"
    rig.engine.open("two", reserve=1)


def test_a_blocked_push_hears_of_the_close() -> None:
    rig = Rig(config=EngineConfig(queue_entries=1))
    session = rig.open()
    session.push("a")
    waiting = rig.push_tokens(session, [(np.zeros(1, np.int32), None)])
    assert isinstance(waiting, Future)
    session.close()
    rig.engine.run()
    with pytest.raises(ClosedError):
        waiting.result(timeout=0)
