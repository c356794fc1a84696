"""A device that fails.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

import pytest

from jaxstate.engine.executor.protocol import Limits, Lost
from jaxstate.engine.types.values import Closed
from jaxstate.errors import ClosedError, StepFailed, UnknownSession
from jaxstate.testing import FAKE_LIMITS, SHARED_LIMITS
from tests.engine.rig import AHEAD, Rig, read, said, short


@pytest.mark.parametrize("limits", [FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])
@pytest.mark.parametrize("call", ["start", "more", "decode", "score"])
def test_a_failed_step_fails_its_asks_only(call: str, limits: Limits) -> None:
    rig = Rig(limits=limits)
    session, other = rig.open("abcd"), rig.open("efgh")
    choices = ["a", "bb"] if call == "score" else None
    rig.executor.fail_next(call)  # pyright: ignore
    failed = session.submit("q" * 40, choices=choices)
    rig.engine.run()
    with pytest.raises(StepFailed, match=f"fails in {call}") as caught:
        failed.result(timeout=0)
    assert isinstance(caught.value.__cause__, RuntimeError)
    rig.at_rest()
    futures = [one.submit("xyz") for one in (session, other)]
    rig.engine.run()
    assert [said(one) for one in futures] == ["5:3 v1", "5:3 v1"]
    assert rig.engine.metrics().counts.asks_failed == 1
    assert rig.cells(session) == list(b"abcd\n")


@pytest.mark.parametrize("limits", [FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])
@pytest.mark.parametrize("cells", [False, True], ids=["rows", "rows and cells"])
@pytest.mark.parametrize("call", ["start", "more", "decode", "score"])
def test_a_device_that_lost_its_pools_goes_on_with_new_ones(
    call: str, cells: bool, limits: Limits
) -> None:
    """A step takes the pools that it writes over: if it fails, every question under way is lost
    with the rows. Asks are told, registered questions begin again, whatever waits is answered; and
    if the cells are lost as well, a session is read again before anything is asked of it."""
    rig = Rig(limits=limits)
    session, other = rig.open("abcd"), rig.open("efgh")
    query = other.flash("fl", max_tokens=9)
    rig.turns(2)  # under way, with more to come
    decoding, reading = other.submit("xyz"), other.submit("q" * 60, max_tokens=1)
    rig.turns(4)
    scored = session.submit("q" * 40, choices=["a", "bb"])
    rig.executor.loses = Lost(rows=True, cells=cells)
    rig.executor.fail_next(call)  # pyright: ignore
    rig.engine.run()
    rig.executor.loses = Lost(rows=False, cells=False)
    for future in (decoding, reading, scored):
        assert future.done()
    assert any(one.exception() for one in (decoding, reading, scored))
    rig.at_rest()
    futures = [one.submit("xyz") for one in (session, other)]
    other.push("i")
    rig.engine.run()
    assert [said(one) for one in futures] == ["5:3 v1", "5:3 v1"]
    assert query.fresh and query.answer is not None and query.answer.text == "7:2"
    # Two sessions of 5 tokens, each of which was asked since.
    assert rig.engine.metrics().counts.tokens_rebuilt == (10 if cells else 0)
    assert rig.cells(other) == list(b"efgh\ni\n")
    rig.at_rest()


def test_one_clients_delivery_that_fails_keeps_nobody_elses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    session, other = rig.open("abcd"), rig.open("efgh")
    broken = session.subscribe()
    broken.offer = lambda event: 1 / 0  # pyright: ignore
    session.push("e")
    future = session.submit("xyz", min_version=2, max_tokens=1)
    rig.engine.run()
    assert said(future) == "7 v2" and "a delivery failed" in caplog.text
    events = other.subscribe()
    other.push("e")
    rig.engine.run()
    assert short(read(events)) == ["C1", "D2"]


def test_a_session_that_closes_while_its_subscriber_is_dropped() -> None:
    """The client's thread closes it at the moment at which the loop finds the subscriber gone."""
    rig = Rig()
    session, other = rig.open("abcd"), rig.open("efgh")
    gone = session.subscribe()

    def offer(event: object) -> bool:
        session.close()
        return False

    gone.offer = offer
    session.push("e")
    future = other.submit("xyz", max_tokens=1)
    rig.engine.run()
    assert said(future) == "5 v1" and rig.core.ended is None
    assert [one.id for one in rig.engine.sessions()] == [other.id]


def test_a_failed_step_fails_all_that_shared_it() -> None:
    """An ask and the flash row that rides with it; the flash query is tried at the next version."""
    rig = Rig()
    session = rig.open("abcd")
    query = session.flash("fl")
    rig.turns(1)
    future = session.submit("xyz")
    rig.turns(1)
    rig.executor.fail_next("decode")
    rig.engine.run()
    with pytest.raises(StepFailed):
        future.result(timeout=0)
    assert query.answer is None and query.error is not None and "decode" in query.error
    rig.at_rest()
    session.push("e")
    rig.engine.run()
    assert query.fresh and query.error is None


@pytest.mark.parametrize("call", ["start", "decode"])
def test_a_failed_flash_step_is_not_tried_again_before_the_next_commit(call: str) -> None:
    rig = Rig()
    session = rig.open("abcd")
    query = session.flash("fl")
    rig.executor.fail_next(call)  # pyright: ignore
    rig.engine.run()
    assert query.error is not None and query.answer is None and not query.fresh
    assert rig.engine.run() == 0
    session.push("e")
    rig.engine.run()
    assert query.fresh and query.error is None
    rig.at_rest()


def test_a_failed_flash_step_keeps_the_old_answer_as_old() -> None:
    rig = Rig()
    session = rig.open("abcd")
    query = session.flash("fl")
    rig.engine.run()
    session.push("e")
    rig.executor.fail_next("start")
    rig.engine.run()
    assert query.answer is not None and query.answer.version == 1
    assert not query.fresh and query.error is not None


@pytest.mark.parametrize("limits", [FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])
def test_what_a_failed_extend_was_to_read_is_read_again(limits: Limits) -> None:
    """41 tokens behind 5: chunks of 16, 16, 9. The second fails, and nothing else is read twice."""
    rig = Rig(limits=limits)
    session, other = rig.open("abcd"), rig.open("efgh")
    events = session.subscribe()
    session.push("e" * 40)
    rig.turns(1)
    waiter = rig.core.wait(session.record, 2)
    ask, beside = session.submit("xyz", min_version=2), other.submit("xyz", max_tokens=1)
    rig.executor.fail_next("extend")
    rig.engine.run()
    assert waiter.done() and waiter.exception() is None
    assert (said(ask), said(beside)) == ("46:3 v2", "5 v1")
    assert [step for step in rig.news() if " s1 " in step] == [
        *["extend s1 16", "extend s1 16", "extend s1 9"],
        # The last one was launched before the end of the answer was known, if steps are.
        *["start s1 x1", *["decode s1 x1"] * (4 + limits.steps_ahead)],
    ]
    assert rig.cells(session) == list(b"abcd\n" + b"e" * 40 + b"\n")
    assert short(read(events)) == ["C1", "D2"]
    assert rig.engine.metrics().counts.asks_failed == 0
    rig.at_rest()


def test_an_extend_that_fails_now_and_then_closes_nothing() -> None:
    """Each time, the next one goes well: failures that are not in a row are as many as they may."""
    rig = Rig()
    session = rig.open("abcd")
    for _ in range(4):
        rig.executor.fail_next("extend")
        session.push("e" * 20)  # two chunks
        rig.engine.run()
    assert (session.version, session.info().tokens) == (5, 5 + 4 * 21)
    assert rig.cells(session) == list(b"abcd\n" + (b"e" * 20 + b"\n") * 4)
    rig.at_rest()


@pytest.mark.parametrize("limits", [FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])
def test_two_failed_extends_in_a_row_close_their_session_and_no_other(limits: Limits) -> None:
    rig = Rig(limits=limits)
    session, other = rig.open("abcd"), rig.open("efgh")
    events = session.subscribe()
    session.push("e" * 40)
    rig.turns(1)
    waiter = rig.core.wait(session.record, 2)
    ask = session.submit("xyz", min_version=2)
    for _ in range(2):
        rig.executor.fail_next("extend")
    rig.engine.run()
    for future in (waiter, ask):
        with pytest.raises(StepFailed, match="fails in extend") as caught:
            future.result(timeout=0)
        assert isinstance(caught.value.__cause__, RuntimeError)
    last = read(events)[-1]
    assert isinstance(last, Closed) and "fails in extend" in last.reason
    with pytest.raises(ClosedError, match="fails in extend"):
        session.push("f")
    with pytest.raises(ClosedError, match="fails in extend"):
        session.submit("xyz")
    with pytest.raises(UnknownSession):
        rig.engine.session(session.id)
    assert rig.core.state.tables.primary.held == 1, "its blocks are free, the other's 5 cells not"
    future = other.submit("xyz")
    rig.engine.run()
    assert said(future) == "5:3 v1"
    rig.at_rest()


@pytest.mark.parametrize("limits", [FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])
def test_an_extend_that_takes_all_cells_with_it(limits: Limits) -> None:
    """As it does on a real device: the one session has taken 5, 16 and 16 tokens by then, the other
    5; both are read again, and the last 9 of the entry for the first time."""
    rig = Rig(limits=limits)
    session, other = rig.open("abcd"), rig.open("efgh")
    session.push("e" * 40)
    rig.turns(1)
    asks = [session.submit("xyz", min_version=2)]
    rig.executor.loses = Lost(rows=True, cells=True)
    rig.executor.fail_next("extend")
    rig.turns(1)
    asks.append(other.submit("xyz"))
    rig.engine.run()
    assert [said(one) for one in asks] == ["46:3 v2", "5:3 v1"]
    steps = rig.news()
    assert [step for step in steps if step.startswith("extend s1")] == [
        "extend s1 16",  # before
        *["extend s1 16", "extend s1 16", "extend s1 5", "extend s1 9"],
    ]
    assert [step for step in steps if step.startswith("extend s2")] == ["extend s2 5"]
    assert rig.engine.metrics().counts.tokens_rebuilt == 5 + 16 + 5
    assert rig.cells(session) == list(b"abcd\n" + b"e" * 40 + b"\n")
    rig.at_rest()


def test_an_opening_that_cannot_be_read_closes_that_session() -> None:
    rig = Rig()
    for _ in range(2):
        rig.executor.fail_next("extend")
    session = rig.engine.open("mine", prefix="abcd")
    events = session.subscribe()
    ask = session.submit("xyz")
    rig.engine.run()
    with pytest.raises(StepFailed, match="fails in extend"):
        ask.result(timeout=0)
    assert short(read(events)) == ["C-1", "X"]
    rig.executor.fail_next("extend")  # once is not too often
    again = rig.engine.open("mine", prefix="abcd")
    future = again.submit("xyz")
    rig.engine.run()
    assert said(future) == "4:3 v0"


def test_a_session_that_closes_needs_nothing_of_the_device() -> None:
    """So there is nothing that could fail: its blocks are anybody's at once."""
    rig = Rig()
    session, other = rig.open("abcd"), rig.open("efgh")
    session.close()
    assert rig.core.state.tables.primary.held == 1
    assert rig.engine.run() == 0 and rig.news() == []
    rig.check_blocks()
    future = other.submit("xyz")
    rig.engine.run()
    assert said(future) == "5:3 v1"


@pytest.mark.parametrize("cells", [False, True], ids=["cells stay", "cells lost"])
def test_an_entry_without_tokens_lands_though_its_step_failed(cells: bool) -> None:
    """An empty opening, in one step with another session's chunk that fails, twice at most."""
    rig = Rig(limits=SHARED_LIMITS)
    session = rig.open("abcd")
    session.push("efg")
    empty = rig.engine.open(prefix="")
    rig.executor.loses = Lost(rows=cells, cells=cells)
    rig.executor.fail_next("extend")
    opened, ask = empty.waiting(0), empty.submit("xyz")
    rig.engine.run()
    assert opened.done() and opened.exception() is None
    assert said(ask) == "0:3 v0"
    assert session.version == 2 and rig.cells(session) == list(b"abcd\nefg\n")
    rig.at_rest()


def test_sessions_whose_step_failed_are_read_one_by_one() -> None:
    """So the one that cannot be read takes no other with it."""
    rig = Rig(limits=SHARED_LIMITS)
    sessions = [rig.open("abcd") for _ in range(3)]
    rig.news()
    for session in sessions:
        session.push("efg")
    for _ in range(2):
        rig.executor.fail_next("extend")
    rig.engine.run()
    assert [step for step in rig.news() if step.startswith("extend")] == [
        "extend s2 4",
        "extend s3 4",
    ]
    assert [session.record.closed for session in sessions] == [True, False, False]
    assert [session.version for session in sessions[1:]] == [2, 2]
    sessions[1].push("hi")
    sessions[2].push("hi")
    rig.engine.run()
    assert rig.news() == ["extend s2 s3 6"], "and together again once that went well"
    rig.at_rest()
