"""Failures that other engines had (landscape.md 3.2), one test or more for each, by its number."""

from __future__ import annotations

import dataclasses
import gc
import random
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.protocol import Limits
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.engine.types.options import EngineConfig, Policy
from jaxstate.engine.types.values import Answer, Closed, Connected, DataUpdated, Event, FlashReady
from jaxstate.errors import CapacityExceeded, ClosedError, InvalidInput, TimedOut
from jaxstate.testing import FAKE_LIMITS, fake_layout
from tests.engine.rig import AHEAD, Rig, read, said

BOTH = pytest.mark.parametrize("limits", [FAKE_LIMITS, AHEAD], ids=["0 ahead", "1 ahead"])

# Ways to be on the device: a question read in one step, in several, with choices scored in two.
QUESTIONS: dict[str, dict[str, Any]] = {
    "short": {"question": "xyz"},
    "long": {"question": "q" * 40},
    "choices": {"question": "xyz", "choices": [*"abcdefghij"]},
    "min_version": {"question": "xyz", "min_version": 2},
}


def fresh_answer(question: dict[str, Any], entries: list[str]) -> Answer:
    """What an engine says that has done nothing else."""
    rig = Rig()
    session = rig.open()
    session.push(entries)
    rig.engine.run()
    future = session.submit(**question)
    rig.engine.run()
    return future.result(timeout=0)


def same(one: Answer, other: Answer) -> bool:
    return dataclasses.replace(one, latency_s=0.0) == dataclasses.replace(other, latency_s=0.0)


# --- B2, B3 ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", QUESTIONS)
def test_b2_cancelled_at_every_step(kind: str, limits: Limits) -> None:
    """An abort wrote truncated state back: afterwards the session must be as if never asked."""
    question = QUESTIONS[kind]
    expected = fresh_answer(question, ["abcd", "e" * 20])
    steps = 0
    finished = False
    while not finished:
        rig = Rig(limits=limits)
        session = rig.open("abcd")
        session.push("e" * 20)
        future = session.submit(**question)
        rig.turns(steps)
        finished = not future.cancel()
        rig.engine.run()
        rig.at_rest()
        assert rig.cells(session) == list(b"abcd\n" + b"e" * 20 + b"\n")
        assert (session.version, session.info().tokens) == (2, 26)
        again = session.submit(**question)
        rig.engine.run()
        assert same(again.result(timeout=0), expected)
        counts = rig.engine.metrics().counts
        assert counts.asks_cancelled == (not finished)
        steps += 1
    assert steps >= 3


@BOTH
@pytest.mark.parametrize("kind", QUESTIONS)
def test_b3_cancelled_and_asked_again_at_once(kind: str, limits: Limits) -> None:
    """A disconnect raced the next turn, which lost its context or crashed the scheduler: the same
    question comes before the device has heard of the end of the first."""
    question = QUESTIONS[kind]
    finished = False
    steps = 0
    while not finished:
        rig = Rig(limits=limits)
        session = rig.open("abcd")
        session.push("e" * 20)
        future = session.submit(**question)
        rig.turns(steps)
        finished = not future.cancel()
        version = session.version
        again = session.submit(**question)
        rig.engine.run()
        answer = again.result(timeout=0)
        entries = ["abcd", "e" * 20][: answer.version]
        assert answer.version >= version
        assert same(answer, fresh_answer({**question, "min_version": None}, entries))
        rig.at_rest()
        steps += 1


@BOTH
def test_b3_one_of_a_batch_goes_away(limits: Limits) -> None:
    """The others of its decode batch are not disturbed, wherever they are."""
    for steps in range(6):
        for gone in range(3):
            rig = Rig(limits=limits)
            session = rig.open("abcd")
            futures = [session.submit("q" * n) for n in (3, 7, 12)]
            rig.turns(steps)
            futures[gone].cancel()
            rig.engine.run()
            kept = [said(one) for one in futures if not one.cancelled()]
            texts = ["5:3 v1", "5:7 v1", "5:12 v1"]
            cancelled = [one.cancelled() for one in futures]
            assert kept == [t for t, c in zip(texts, cancelled, strict=True) if not c]
            rig.at_rest()


# --- B4 ----------------------------------------------------------------------------------------


def blocked_by_version(rig: Rig, session: Session) -> AskFuture:
    return session.submit("xyz", min_version=99)


def blocked_by_blocks(rig: Rig, session: Session) -> AskFuture:
    """8 blocks each: the ninth ask waits for blocks."""
    for n in range(8):
        session.submit(f"a{n}", max_tokens=60)
    rig.turns(1)
    return session.submit("xyz", max_tokens=60)


def blocked_by_half_an_entry(rig: Rig, session: Session) -> AskFuture:
    session.push("e" * 40)
    rig.turns(1)
    return session.submit("xyz", min_version=2)


def plainly_waiting(rig: Rig, session: Session) -> AskFuture:
    return session.submit("xyz")


def reading(rig: Rig, session: Session) -> AskFuture:
    future = session.submit("q" * 40)
    rig.turns(1)
    return future


def decoding(rig: Rig, session: Session) -> AskFuture:
    future = session.submit("xyz")
    rig.turns(2)
    return future


def scoring(rig: Rig, session: Session) -> AskFuture:
    future = session.submit("xyz", choices=[*"abcdefghij"])
    rig.turns(2)
    return future


def with_riders(rig: Rig, session: Session) -> AskFuture:
    session.flash("fl")
    rig.turns(1)
    future = session.submit("xyz")
    rig.turns(2)
    return future


STATES: list[Callable[[Rig, Session], AskFuture]] = [
    plainly_waiting,
    blocked_by_version,
    blocked_by_blocks,
    blocked_by_half_an_entry,
    reading,
    decoding,
    scoring,
    with_riders,
]


@BOTH
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", ["cancel", "timeout"])
def test_b4_nothing_stays_in_flight(
    state: Callable[[Rig, Session], AskFuture], way: str, limits: Limits
) -> None:
    """A queued request that was aborted stayed "in flight" for ever."""
    rig = Rig(limits=limits)
    session = rig.open("abcd")
    future = state(rig, session)
    assert not future.done()
    future.timed_out = way == "timeout"
    assert future.cancel()
    assert not future.cancel() or future.cancelled()
    rig.engine.run()
    rig.at_rest()
    counts = rig.engine.metrics().counts
    assert (counts.asks_cancelled, counts.asks_timed_out) == (way == "cancel", way == "timeout")
    ask = session.submit("last")
    rig.engine.run()
    assert ask.result(timeout=0).text.endswith(":4")


def test_b4_a_timeout_is_a_cancellation() -> None:
    """`ask` with a timeout leaves nothing behind."""
    rig = Rig()
    session = rig.open("abcd")
    for _ in range(3):
        with pytest.raises(TimedOut, match="was not answered within 0 s"):
            session.ask("xyz", timeout=0)
    assert rig.engine.run() == 0
    rig.at_rest()
    assert rig.engine.metrics().counts.asks_timed_out == 3


def test_b4_waits_that_are_given_up() -> None:
    """A wait that timed out is forgotten with the next commit; the others are told."""
    rig = Rig()
    session = rig.open("abcd")
    for version in (2, 99):
        with pytest.raises(TimedOut):
            session.wait(version, timeout=0)
    kept = rig.core.wait(session._record, 2)
    assert len(session._record.waiters) <= 2
    for _ in range(100):
        with pytest.raises(TimedOut):
            session.wait(99, timeout=0)
    assert len(session._record.waiters) <= 2, "waits that were given up pile up"
    session.push("e")
    rig.engine.run()
    assert kept.done() and session._record.waiters == []


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_b4_random_cancellations(seed: int) -> None:
    """Asks, pushes, flash queries and cancellations in any order: in the end nothing is held."""
    chance = random.Random(seed)
    tight = dataclasses.replace(AHEAD, tail_blocks=9, steps_ahead=chance.randrange(2))
    rig = Rig(limits=tight, ring_cells=chance.choice([None, 12]))
    sessions = [rig.open("abcd"), rig.open("efg")]
    futures: list[AskFuture] = []
    for _ in range(60):
        session = chance.choice(sessions)
        match chance.randrange(7):
            case 0 | 1:
                choices = chance.choice([None, None, ["a", "bb", "ccc"]])
                question = "q" * chance.randrange(1, 50)
                futures.append(session.submit(question, max_tokens=8, choices=choices))
            case 2:
                session.push("e" * chance.randrange(20))
            case 3 if futures:
                chance.choice(futures).cancel()
            case 4 if len(session.flashes()) < 9:
                session.flash(f"f{chance.randrange(10**9)}", max_tokens=chance.randrange(1, 9))
            case 5 if session.flashes():
                session.unflash(chance.choice(session.flashes()).id)
            case _:
                rig.turns(chance.randrange(4))
    rig.engine.run()
    rig.at_rest()
    assert all(future.done() for future in futures)
    for session in sessions:
        assert all(query.fresh for query in session.flashes())
    for future in futures:
        if not future.cancelled() and future.result().choice_logprobs is None:
            answer = future.result()
            usage = answer.usage
            told = f"{usage.context_tokens}:{usage.question_tokens}"
            assert answer.text == told[: len(answer.text)] and len(answer.text) >= 3


# --- B5 ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("ring_cells", [None, 4])
def test_b5_half_an_entry_is_never_a_version(ring_cells: int | None, limits: Limits) -> None:
    """A preempted turn was committed half: a version's cells are always whole entries."""
    texts = ["a" * 3, "b" * 39, "c" * 15, "", "d" * 22]
    version_end = {n: sum(len(text) + 1 for text in texts[:n]) for n in range(len(texts) + 1)}
    policy = Policy(ingest_patience=1)
    rig = Rig(limits=limits, ring_cells=ring_cells, config=EngineConfig(scheduling=policy))
    session = rig.open()
    query = session.flash("fl")
    session.push(texts)
    futures: list[AskFuture] = []
    for turn in range(60):
        if turn % 2 == 0:
            futures.append(session.submit("q" * (turn % 7 + 1), max_tokens=8))
        if turn % 5 == 4:
            futures[-1].cancel()
        rig.turns(1)
        assert session.info().tokens == version_end[session.version]
        if query.answer is not None:
            assert query.answer.text == f"{version_end[query.answer.version]}:2"
    rig.engine.run()
    assert session.version == 5
    for future in futures:
        if not future.cancelled():
            answer = future.result()
            assert answer.usage.context_tokens == version_end[answer.version]
            assert answer.text.startswith(f"{version_end[answer.version]}:")
    rig.at_rest()


@BOTH
def test_b5_evicted_in_the_middle_of_a_question(limits: Limits) -> None:
    """A flash query that loses its blocks half read begins from the start, not from the middle."""
    tight = dataclasses.replace(limits, tail_blocks=8)
    for steps in range(1, 7):
        rig = Rig(limits=tight)
        session = rig.open("abcd")
        query = session.flash("q" * 50, max_tokens=8)  # 8 blocks; read as 32 and 18
        rig.turns(steps)
        ask = session.submit("xyz")
        rig.engine.run()
        assert said(ask) == "5:3 v1"
        assert query.answer is not None and query.answer.text == "5:50" and query.fresh
        rig.at_rest()


@BOTH
def test_b5_dropped_entries_are_dropped_whole(limits: Limits) -> None:
    """What waits may be displaced, what is half read may not: cells hold whole entries only."""
    rig = Rig(limits=limits, config=EngineConfig(queue_entries=2))
    session = rig.open(policy="drop_oldest")
    dropped: set[int] = set()
    for n in range(1, 30):
        receipt = session.push(chr(ord("a") + n % 26) * (n % 23))
        for span in receipt.dropped:
            dropped |= set(range(span.first, span.last + 1))
        if n % 3 == 0:
            rig.turns(1)
    rig.engine.run()
    kept = [n for n in range(1, 30) if n not in dropped]
    expected = b"".join(bytes([ord("a") + n % 26]) * (n % 23) + b"\n" for n in kept)
    assert rig.cells(session) == list(expected)
    assert dropped and session.info().dropped == len(dropped)


# --- B6 ----------------------------------------------------------------------------------------


def says_nothing(rig: Rig) -> None:
    """From now on every answer begins with <eos>."""
    original = rig.executor._say

    def say(rows: Sequence[object], *finite: object) -> object:
        for row in rows:
            if row is not None:
                row.done = True
        return original(rows, *finite)

    rig.executor._say = say  # pyright: ignore


@BOTH
def test_b6_an_answer_of_nothing(limits: Limits) -> None:
    """A turn whose first token was <eos> killed the engine for everyone."""
    rig = Rig(limits=limits)
    session, other = rig.open("abcd"), rig.open("efgh")
    says_nothing(rig)
    query = session.flash("fl")
    futures = [session.submit("xyz"), session.submit("q" * 40), other.submit("xyz", max_tokens=1)]
    rig.engine.run()
    for future in futures:
        answer = future.result(timeout=0)
        assert (answer.text, answer.token_ids, answer.logprob) == ("", (), 0.0)
        assert (answer.finish_reason, answer.usage.answer_tokens) == ("stop", 0)
    assert query.fresh and query.answer is not None and query.answer.text == ""
    rig.at_rest()
    hit = session.submit("fl", max_tokens=1).result(timeout=0)
    assert (hit.source, hit.text) == ("flash", "")


@BOTH
def test_b6_entries_of_nothing(limits: Limits) -> None:
    """An entry without text is its line break; one without tokens is a version all the same."""
    rig = Rig(limits=limits)
    session = rig.open()
    assert session.push("").first == 1
    rig.engine.run()
    assert (session.version, session.info().tokens) == (1, 1)
    nothing = (np.zeros(0, np.int32), None)
    something = (np.full(3, 7, np.int32), None)
    for entries, version, tokens in (
        ([nothing], 2, 1),
        ([nothing, nothing], 4, 1),
        ([nothing, something, nothing], 7, 4),
        ([something, nothing], 9, 7),
    ):
        rig.push_tokens(session, entries)
        ask = session.submit("xyz", min_version=version)
        rig.engine.run()
        assert (session.version, session.info().tokens) == (version, tokens)
        assert said(ask) == f"{tokens}:3 v{version}"
        assert session.info().pending == 0
    rig.at_rest()


def test_b6_entries_of_nothing_in_a_full_session() -> None:
    """They need no cells; and while an ask pins the last cell of a ring they harm nobody."""
    rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, layout=fake_layout(5)), ring_cells=0)
    session = rig.open("abcd")
    ask = session.submit("xyz")
    rig.turns(1)
    rig.push_tokens(session, [(np.zeros(0, np.int32), None)])
    with pytest.raises(CapacityExceeded):
        session.push("")
    rig.engine.run()
    assert said(ask) == "5:3 v1" and session.version == 2


def test_b6_pushes_and_questions_of_nothing() -> None:
    """They are refused by name, and nothing changes."""
    rig = Rig()
    session = rig.open("abcd")
    for nothing in ([], (), None, 3, [None]):
        with pytest.raises(InvalidInput):
            session.push(nothing)  # pyright: ignore
    for question in ("", None, 3):
        with pytest.raises(InvalidInput):
            session.submit(question)  # pyright: ignore
    for settings_ in ({"choices": []}, {"choices": [""]}, {"choices": ["a", "a"]}):
        with pytest.raises(InvalidInput):
            session.submit("xyz", **settings_)
    with pytest.raises(InvalidInput):
        session.submit("xyz", max_tokens=0)
    assert rig.engine.run() == 0
    assert (session.version, session.info().pending) == (1, 0)


def test_b6_an_opening_of_nothing() -> None:
    rig = Rig()
    session = rig.engine.open()
    future = session.submit("xyz")
    rig.engine.run()
    assert (said(future), session.version) == ("0:3 v0", 0)


# --- B7 ----------------------------------------------------------------------------------------


def checked_stream(events: list[Event], everything: list[Event], limit: int) -> None:
    """A subscriber's events: a beginning of what happened, then `Closed`, and nothing after it."""
    assert isinstance(events[0], Connected) and isinstance(events[-1], Closed)
    assert sum(isinstance(event, Connected | Closed) for event in events) == 2
    heard = events[1:-1]
    assert heard == everything[: len(heard)], "an event was lost, merged or out of order"
    if events[-1].reason.startswith("dropped"):
        assert len(events) - 1 >= limit
    else:
        assert heard == everything


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_b7_slow_consumers(seed: int) -> None:
    """A slow consumer got chunks and ends merged, and waited for ever: whoever reads, however
    slowly, gets a beginning of what happened, then `Closed`."""
    chance = random.Random(seed)
    limit = chance.randrange(2, 12)
    limits = dataclasses.replace(FAKE_LIMITS, steps_ahead=chance.randrange(2))
    rig = Rig(limits=limits, config=EngineConfig(events_limit=limit))
    session = rig.open("abcd")
    quick = session.subscribe(flash="always")
    slow = [session.subscribe(flash="always") for _ in range(3)]
    heard: list[list[Event]] = [[], [], []]
    everything: list[Event] = []
    asks: list[tuple[int, AskFuture]] = []
    for n in range(3):
        session.flash(f"f{n}", max_tokens=n + 2)
    for _ in range(80):
        match chance.randrange(5):
            case 0:
                session.push("e" * chance.randrange(20))
            case 1:
                max_tokens = chance.randrange(1, 9)
                asks.append((max_tokens, session.submit("xyz", max_tokens=max_tokens)))
            case 2:
                who = chance.randrange(3)
                for _ in range(chance.randrange(3)):
                    if (event := slow[who].poll()) is not None:
                        heard[who].append(event)
            case _:
                rig.turns(1)
                everything += read(quick)
    for _ in range(500):  # the quick one reads after every turn
        rig.turns(1)
        everything += read(quick)
    session.close()
    rig.engine.run()
    everything += read(quick)
    for who in range(3):
        heard[who] += read(slow[who])
        assert slow[who].ended and slow[who].poll() is None
        checked_stream(heard[who], everything[1:-1], limit)
    checked_stream(everything, everything[1:-1], limit)
    check_versions(everything)
    for max_tokens, future in asks:
        answer = future.result(timeout=0)
        whole = f"{answer.usage.context_tokens}:3"
        ended = "stop" if max_tokens > len(whole) else "length"
        assert (answer.text, answer.finish_reason) == (whole[:max_tokens], ended)


def check_versions(events: list[Event]) -> None:
    """Versions rise; an answer comes after the news of its version, and says what it saw."""
    known = [event.version for event in events[:1] if isinstance(event, Connected)]
    for event in events:
        if isinstance(event, DataUpdated):
            assert event.version > known[-1]
            known.append(event.version)
        elif isinstance(event, FlashReady):
            answer = event.answer
            assert answer.version in known
            whole = f"{answer.usage.context_tokens}:2"
            limit = int(event.question[1]) + 2
            ended = "stop" if limit > len(whole) else "length"
            assert (answer.text, answer.finish_reason) == (whole[:limit], ended)


def test_b7_the_reason_of_the_end_is_the_first_one() -> None:
    """Dropped for slowness, then closed: the subscriber is told of the drop, once."""
    rig = Rig(config=EngineConfig(events_limit=2))
    session = rig.open()
    slow = session.subscribe()
    for _ in range(4):
        session.push("a")
        rig.engine.run()
    session.close()
    rig.engine.run()
    events = read(slow)
    assert [type(event) for event in events] == [Connected, DataUpdated, Closed]
    assert isinstance(events[-1], Closed) and events[-1].reason.startswith("dropped")


def test_b7_cut_off_is_not_taken_for_the_end() -> None:
    """Both in one step: "length" and "stop" stay apart."""
    rig = Rig()
    session = rig.open("abcd")
    futures = [session.submit("xyz", max_tokens=n) for n in (3, 4)]
    futures.append(session.submit("xyz", stop=[":3"]))
    futures.append(session.submit("xyz", max_tokens=3, stop=["3"]))
    rig.engine.run()
    told = [(one.result(0).text, one.result(0).finish_reason) for one in futures]
    assert told == [("5:3", "length"), ("5:3", "stop"), ("5", "stop"), ("5:", "stop")]


def test_b7_whoever_waits_at_the_end_is_told() -> None:
    rig = Rig()
    session = rig.open("abcd")
    future = session.submit("xyz", min_version=9)
    events = session.subscribe()
    rig.engine.close()
    with pytest.raises(ClosedError):
        future.result(timeout=0)
    assert isinstance(read(events)[-1], Closed)


# --- B9 ----------------------------------------------------------------------------------------


def host_calls(act: Callable[[], object]) -> int:
    """How many Python functions `act` calls."""
    count = 0

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    gc.disable()
    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


# A session that is never full.
LARGE = dataclasses.replace(FAKE_LIMITS, layout=fake_layout(10**6, 10**6), max_context=2_000_000)


def test_b9_work_per_push_and_per_ask_does_not_grow() -> None:
    """The cost of a turn grew with what had been read: number 5,000 costs what number 100 did, in
    device steps exactly, in host work to a few calls."""
    rig = Rig(limits=LARGE, config=EngineConfig(events_limit=20_000))
    session = rig.open()
    for n in range(2):
        session.flash(f"f{n}", max_tokens=2)
    events = session.subscribe(flash="always")

    def push() -> None:
        session.push("e")
        rig.engine.run()

    def ask() -> None:
        session.submit("xyz", max_tokens=2)
        rig.engine.run()

    costs: list[tuple[int, int, list[str]]] = []
    for n in range(1, 5_001):
        if n in (100, 5_000):
            rig.news()
            pushed = host_calls(push)
            asked = host_calls(ask)
            costs.append((pushed, asked, rig.news()))
        else:
            push()
        if n % 100 == 0:
            read(events)
    assert session.version == 5_000
    (push_early, ask_early, steps_early), (push_late, ask_late, steps_late) = costs
    assert steps_early == steps_late
    assert steps_late == [
        "extend s1 2",
        "start s1 x2",
        "decode s1 x2",
        "start s1 x1",
        "decode s1 x1",
    ]
    assert abs(push_late - push_early) <= 5
    assert abs(ask_late - ask_early) <= 5


def test_b9_a_full_queue_costs_no_more_than_a_short_one() -> None:
    """A turn does not look at what waits: with 4,000 entries waiting, as many calls as with 40."""
    costs = []
    for waiting in (40, 4_000):
        rig = Rig(limits=LARGE)
        session = rig.open(policy="drop_oldest")
        session.push(["e"] * waiting)
        rig.turns(1)
        pushed = host_calls(lambda one=session: one.push("e"))
        costs.append((host_calls(rig.engine.turn), pushed))
    assert abs(costs[0][0] - costs[1][0]) <= 2
    assert abs(costs[0][1] - costs[1][1]) <= 2


def test_b9_asks_that_wait_cost_no_more_than_a_step_takes() -> None:
    """A step looks at as many as it could begin: with 1,000 waiting, as many calls as with 100."""
    costs = []
    for waiting in (100, 1_000):
        rig = Rig()
        session = rig.open("abcd")
        for _ in range(waiting):
            session.submit("xyz", max_tokens=2)
        rig.turns(2)
        costs.append(host_calls(rig.engine.turn))
    assert abs(costs[0] - costs[1]) <= 5


def test_b9_sessions_that_do_nothing_cost_nothing_on_the_device() -> None:
    rig = Rig()
    sessions = [rig.open("abcd") for _ in range(20)]
    sessions[7].push("e")
    rig.engine.run()
    assert rig.news() == ["extend s8 2"]
