"""Flash queries: batches, coalescing, freshness, intervals, deadlines.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxstate.engine.executor.protocol import RowSizes
from jaxstate.engine.flash.conditions import ConfidenceAbove, Equals
from jaxstate.engine.types.values import FlashReady
from jaxstate.errors import ClosedError, FlashLimit, InvalidInput, TimedOut
from jaxstate.testing import FAKE_LIMITS
from tests.engine.rig import Rig, read, short


def test_all_flash_queries_of_a_session_in_one_batch() -> None:
    rig = Rig()
    session = rig.open("abcd")
    queries = [session.flash(f"question {n}") for n in range(8)]
    rig.engine.run()
    assert rig.news() == ["start s1 x8"] + ["decode s1 x8"] * 4  # "5:10" and <eos>
    for query in queries:
        assert query.fresh and query.answer is not None
        assert (query.answer.text, query.answer.version) == ("5:10", 1)


def test_more_flash_queries_than_a_step_takes() -> None:
    """Questions of 20 tokens begin four at a time; all begin before any goes on."""
    rig = Rig()
    session = rig.open("abcd")
    for n in range(6):
        session.flash(f"a question number {n} ?")  # 21 tokens
    rig.engine.run()
    assert rig.news() == ["start s1 x4", "start s1 x2"] + ["decode s1 x6"] * 4


def test_more_flash_queries_than_rows() -> None:
    rig = Rig()
    session = rig.open("abcd")
    queries = [session.flash(f"f{n:02}", max_tokens=2) for n in range(19)]
    rig.engine.run()
    assert rig.news() == [
        "start s1 x8",
        "decode s1 x8",
        "start s1 x8",
        "decode s1 x8",
        "start s1 x3",
        "decode s1 x3",
    ]
    assert all(query.fresh for query in queries)


def test_commits_during_a_flash_batch_are_coalesced() -> None:
    """Three commits while version 1 is being answered: version 1 is finished as version 1, then
    version 4 is next; 2 and 3 are never computed."""
    rig = Rig()
    session = rig.open("abcd")
    events = session.subscribe(flash="always")
    query = session.flash("fl")
    rig.turns(1)
    for text in ("e", "f", "g"):  # 2 tokens each
        session.push(text)
        rig.turns(1)
    assert session.version == 4 and not query.fresh
    rig.engine.run()
    assert short(read(events)) == ["C1", "D2", "D3", "D4", "F1=5:2", "F4=11:2"]
    assert query.fresh
    counts = rig.engine.metrics().counts
    assert (counts.flash_answers, counts.flash_answers_stale) == (2, 1)


def test_an_old_answer_is_shown_as_old() -> None:
    rig = Rig()
    session = rig.open("abcd")
    query = session.flash("fl")
    assert query.answer is None and not query.fresh
    rig.engine.run()
    assert query.fresh
    session.push("efg")
    assert query.fresh  # nothing is committed yet
    rig.turns(1)
    assert session.version == 2
    assert not query.fresh
    assert query.answer is not None and query.answer.version == 1
    rig.engine.run()
    assert query.fresh and query.answer.version == 2 and query.answer.text == "9:2"


def test_an_unchanged_session_is_not_answered_again() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.flash("fl")
    rig.engine.run()
    rig.news()
    rig.clock.pass_s(1000.0)
    assert rig.engine.run() == 0
    assert rig.news() == []
    assert rig.engine.until_s is None


def test_register_list_remove() -> None:
    rig = Rig()
    session = rig.open("abcd")
    first, second = session.flash("f1"), session.flash("f2")
    assert [(one.id, one.question) for one in session.flashes()] == [
        (first.id, "f1"),
        (second.id, "f2"),
    ]
    with pytest.raises(InvalidInput, match="registered already"):
        session.flash("f1")
    session.unflash(first.id)
    with pytest.raises(InvalidInput, match="no flash query"):
        session.unflash(first.id)
    again = session.flash("f1")
    assert again.id != first.id
    assert [one.question for one in session.flashes()] == ["f2", "f1"]
    assert session.info().flashes == 2
    rig.engine.run()
    assert again.fresh and first.answer is None


def test_64_by_default_and_a_clear_refusal() -> None:
    rig = Rig()
    session = rig.open()
    for n in range(64):
        session.flash(f"f{n}")
    with pytest.raises(FlashLimit, match=r"64 registered questions.*unflash.*flash_limit"):
        session.flash("one more")
    assert len(session.flashes()) == 64
    session.unflash(session.flashes()[0].id)
    session.flash("one more")
    rig.engine.run()
    assert all(one.fresh for one in session.flashes())


def test_removed_while_under_way() -> None:
    """Its answer is forgotten; the others of the batch are answered."""
    rig = Rig()
    session = rig.open("abcd")
    events = session.subscribe(flash="always")
    gone, kept = session.flash("f1"), session.flash("f22")
    rig.turns(2)
    session.unflash(gone.id)
    again = session.flash("f1")
    rig.engine.run()
    assert gone.answer is None
    assert kept.fresh and again.fresh
    answered = [event.id for event in read(events) if isinstance(event, FlashReady)]
    assert sorted(answered) == sorted([kept.id, again.id])
    rig.at_rest()


def test_a_flash_query_with_choices() -> None:
    rig = Rig()
    session = rig.open("a" * 12)  # 13 cells: 3 tokens win
    query = session.flash("up?", choices=["yes", "no"])
    rig.engine.run()
    assert query.answer is not None
    assert (query.answer.text, query.answer.choice_logprobs) == ("yes", (0.0, -1.0))
    assert query.answer.probability == pytest.approx(1 / (1 + np.exp(-1)))
    session.push("a" * 8)  # 22 cells: 2 tokens win
    rig.engine.run()
    assert query.answer.text == "no"


def test_flash_queries_of_two_sessions_take_turns() -> None:
    """Who was served longest ago goes next; a session's own batch stays together."""
    rig = Rig()
    one, two = rig.open("abcd"), rig.open("efgh")
    for session in (one, two):
        session.flash("f1", max_tokens=3)
        session.flash("f2", max_tokens=3)
    rig.engine.run()
    assert rig.news() == [
        "start s1 x2",
        "start s2 x2",
        "decode s1 x2",
        "decode s2 x2",
        "decode s1 x2",
        "decode s2 x2",
    ]


def test_min_interval() -> None:
    """Begun at 1.0, so not again before 11.0, however many commits there are."""
    rig = Rig()
    session = rig.open("abcd")
    query = session.flash("fl", max_tokens=1, min_interval_s=10.0)
    rig.engine.run()  # 1.0 .. 1.5
    for _ in range(3):
        session.push("e")
        rig.engine.run()  # .. 4.5
    assert rig.news(times=True)[-1] == "3.5 extend s1 2"
    assert not query.fresh
    assert rig.engine.until_s == pytest.approx(11.0)
    rig.clock.pass_s(11.0 - 4.5 - 0.25)
    assert rig.engine.run() == 0
    assert rig.engine.until_s == pytest.approx(11.0)
    rig.clock.pass_s(0.25)
    assert rig.engine.run() == 1
    assert rig.news(times=True) == ["11 start s1 x1"]
    assert query.fresh and rig.engine.until_s is None


def test_a_min_interval_holds_back_nobody_else() -> None:
    rig = Rig()
    session = rig.open("abcd")
    slow = session.flash("slow", min_interval_s=100.0)
    quick = session.flash("quick")
    rig.engine.run()
    session.push("e")
    rig.engine.run()
    assert quick.fresh and not slow.fresh


def test_a_deadline_makes_a_flash_query_as_urgent_as_an_ask() -> None:
    """24 asks of 8 rows each wait. Without a deadline a flash query comes after all of them; with
    one of 1 s (registered at 2.0, overdue at 3.0), in between."""
    order: dict[float | None, int] = {}
    for deadline_s in (None, 1.0):
        rig = Rig()
        session, busy = rig.open("abcd"), rig.open("efgh")
        session.flash("fl", max_tokens=1, deadline_s=deadline_s)
        futures = [busy.submit(f"ask {n:02}", max_tokens=8) for n in range(24)]
        rig.engine.run()
        assert all(one.done() for one in futures)
        order[deadline_s] = next(i for i, told in enumerate(rig.news()) if " s1 " in told)
    # 2.0 start, 2.5 decode, 2.6 start, 3.1 decode, 3.2 start: the flash query, waiting since 2.0,
    # comes before the asks of the same moment; without, after 3 starts and 3 * 3 decodes
    assert order == {1.0: 4, None: 12}


def test_a_deadline_holds_in_a_flood_of_asks() -> None:
    """There is always an ask that waits to begin, and still an overdue question gets its turn."""
    rig = Rig()
    session, busy = rig.open("abcd"), rig.open("efgh")
    query = session.flash("fl", max_tokens=1, deadline_s=2.0)
    rig.engine.run()
    session.push("e")
    rig.turns(1)
    rig.news()
    committed_s = rig.clock.now_s
    n = 0
    while not query.fresh and n < 100:
        busy.submit(f"a{n}", max_tokens=2)
        rig.turns(1)
        n += 1
    assert query.fresh
    # overdue 2 s after the commit; then one begin and one decode of asks at most
    assert rig.clock.now_s - committed_s <= 2.0 + 0.5 + 0.1 + 0.5 + 0.5 + 1e-6


def test_conditions_and_callbacks() -> None:
    """`on_fire` for each crossing, once: 5 cells a gap of 0.05, 12 cells 0.12, and so on."""
    rig = Rig()
    session = rig.open("abcd")
    high: list[str] = []
    changed: list[str] = []
    session.flash("high?", when=ConfidenceAbove(0.1), on_fire=lambda a: high.append(a.text))
    session.flash("text?", max_tokens=1, on_fire=lambda a: changed.append(a.text))
    events = session.subscribe()
    rig.engine.run()  # 5 cells
    for size in (4, 1, 4):  # 10, 12, 17 cells
        session.push("e" * size)
        rig.engine.run()
    assert high == ["10:5"]  # at 10 it comes to be so; at 12 and 17 it stays so
    assert changed == ["5", "1"]  # first texts "5", "1", "1", "1"
    fired = [event for event in read(events) if isinstance(event, FlashReady)]
    assert [(event.question, event.fired) for event in fired] == [
        ("text?", True),
        ("text?", True),
        ("high?", True),
    ]


def test_equals_fires_each_time_it_comes_to_hold() -> None:
    rig = Rig()
    session = rig.open("a" * 12)  # 13: yes
    fired: list[int] = []
    session.flash(
        "up?",
        choices=["yes", "no"],
        when=Equals("yes"),
        on_fire=lambda answer: fired.append(answer.version),
    )
    rig.engine.run()
    for size in (1, 6, 1, 7):  # 15 yes, 22 no, 24 yes, 32 no
        session.push("a" * size)
        rig.engine.run()
    assert fired == [1, 4]


COARSE = dataclasses.replace(
    FAKE_LIMITS,
    rows=64,
    row_sizes=RowSizes(sizes=(1, 8, 64), overhead_tokens=32),
    start_rows=((16, 64), (32, 32)),
    tail_blocks=256,
)


def test_no_step_is_mostly_padding() -> None:
    """Steps come for 1, 8 and 64 rows: ten questions go as eight and two, not as ten of 64."""
    rig = Rig(limits=COARSE)
    session = rig.open("abcd")
    for n in range(10):
        session.flash(f"q{n}", max_tokens=2)
    for _ in range(9):
        session.submit("xyz", max_tokens=1)
    rig.engine.run()
    assert rig.news() == [
        "start s1 x8",  # the asks
        "start s1 x1",
        "start s1 x8",
        "start s1 x2",
        "decode s1 x8",
        "decode s1 x2",
    ]


def test_idle_steps_are_bounded_in_tokens() -> None:
    """128 tokens at most: of questions padded to 32, four begin in one idle step; the same asks
    begin all together. Of 18 choices 8 are scored at a time: there is no larger size here."""
    rig = Rig(limits=dataclasses.replace(COARSE, row_sizes=FAKE_LIMITS.row_sizes))
    session = rig.open("abcd")
    for n in range(6):
        session.flash(f"q{n}" * 10, max_tokens=1)
    rig.engine.run()
    assert rig.news() == ["start s1 x4", "start s1 x2"]
    futures = [session.submit("z" * 20, max_tokens=1) for _ in range(6)]
    rig.engine.run()
    assert rig.news() == ["start s1 x6"] and all(one.done() for one in futures)
    for n in range(2):
        session.flash(f"c{n}", choices=[letter * 8 for letter in "abcdefghi"])
    rig.engine.run()
    assert rig.news() == ["start s1 x2", "score s1 x8", "score s1 x8", "score s1 x2"]


def test_the_latency_of_one_that_was_registered_late() -> None:
    """It counts from the registration, not from a commit an hour before."""
    rig = Rig()
    session = rig.open("abcd")
    rig.clock.pass_s(3600.0)
    query = session.flash("fl", max_tokens=1)
    rig.engine.run()
    assert query.answer is not None and query.answer.latency_s == pytest.approx(0.5)
    assert rig.engine.metrics().flash_refresh_s.largest == pytest.approx(0.5)
    session.push("e")
    rig.engine.run()
    assert query.answer.latency_s == pytest.approx(0.5)


class TestWaitFresh:
    """Waiting for the moment at which nothing is left to read or to answer."""

    def test_it_ends_with_the_last_answer_at_the_newest_version(self) -> None:
        rig = Rig()
        session = rig.open("abcd")
        query = session.flash("fl", max_tokens=2)
        future = session.waiting_fresh()
        while not future.done():
            assert not query.fresh
            rig.turns(1)
        assert query.fresh and rig.news() == ["start s1 x1", "decode s1 x1"]
        session.push(["e", "f"])
        future = session.waiting_fresh()
        while not future.done():
            assert not query.fresh or session.version < 3
            rig.turns(1)
        assert query.fresh and session.version == 3
        assert rig.news() == ["extend s1 4", "start s1 x1", "decode s1 x1"]

    def test_not_before_a_step_that_was_launched_ahead_is_committed(self) -> None:
        rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, steps_ahead=1))
        session = rig.open("abcd")
        query = session.flash("fl")
        rig.engine.run()
        session.push("efgh")
        future = session.waiting_fresh()
        while not future.done():
            rig.turns(1)
        assert session.version == 2 and query.fresh

    def test_nothing_to_do_and_nothing_registered(self) -> None:
        rig = Rig()
        session = rig.engine.open()
        future = session.waiting_fresh()
        assert not future.done()
        rig.engine.run()
        assert future.done() and session.version == 0
        future = session.waiting_fresh()
        rig.turns(1)
        assert future.done()

    def test_a_question_that_cannot_be_answered_is_not_waited_for(self) -> None:
        rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, max_context=10))
        session = rig.open("abcd")
        query = session.flash("q" * 9, max_tokens=2)
        future = session.waiting_fresh()
        rig.engine.run()
        assert future.done() and not query.fresh and query.error is not None

    def test_another_sessions_questions_are_not_waited_for(self) -> None:
        rig = Rig()
        session, other = rig.open("abcd"), rig.open("efgh")
        other.flash("fl", min_interval_s=1e6)
        rig.engine.run()
        other.push("x")
        rig.engine.run()
        mine, others = session.waiting_fresh(), other.waiting_fresh()
        rig.engine.run()
        assert mine.done() and not others.done()

    def test_given_up_or_closed(self) -> None:
        rig = Rig()
        session = rig.open("abcd")
        session.flash("fl")
        with pytest.raises(TimedOut, match="the flash queries were not answered within 0 s"):
            session.wait_fresh(timeout=0)
        kept = session.waiting_fresh()
        session.close()
        rig.engine.run()
        with pytest.raises(ClosedError):
            kept.result(timeout=0)
        assert rig.core.state.fresh_waiters == []
        with pytest.raises(ClosedError):
            session.wait_fresh()
