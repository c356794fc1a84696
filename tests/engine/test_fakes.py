"""The fake device's arithmetic, as its documentation says it, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from jaxstate.engine.executor import Candidate, Choices, Limits, RowStep, RowTokens, Tokens
from jaxstate.records import Sampling
from jaxstate.testing import FAKE_LIMITS, FakeClock, FakeExecutor, FakeStep, SteppedEngine

EOS = 257


def tokens(count: int, value: int = 7) -> Tokens:
    return np.full(count, value, np.int32)


def row(blocks: Sequence[int], count: int, used: int = 0) -> RowTokens:
    return RowTokens(
        blocks=tuple(blocks), used_cells=used, tokens=tokens(count), sampling=Sampling()
    )


def step(blocks: Sequence[int], used: int) -> RowStep:
    return RowStep(blocks=tuple(blocks), used_cells=used, sampling=Sampling())


def candidate(blocks: Sequence[int], used: int, count: int) -> Candidate:
    return Candidate(blocks=tuple(blocks), used_cells=used, last_token=1, tokens=tokens(count))


def device(cells: int = 0, ring_cells: int | None = None) -> FakeExecutor:
    """Session 1 with so many cells, read 16 at a time."""
    fake = FakeExecutor(FakeClock(), ring_cells=ring_cells)
    fake.open(1)
    while left := cells - len(fake.cells(1)):
        fake.extend(1, tokens(min(16, left)))
    return fake


def chosen(choices: Choices) -> list[int]:
    return choices.tokens.tolist()


def test_a_clock_that_is_told() -> None:
    clock = FakeClock()
    assert clock() == clock.now_s == 0.0
    clock.pass_s(1.5)
    clock.pass_s(0.0)
    assert clock() == 1.5
    with pytest.raises(AssertionError, match="backwards"):
        clock.pass_s(-0.1)


def test_an_answer_says_what_was_seen_and_asked() -> None:
    """A question of 5 tokens at 120 cells: "120:5", then <eos> for ever."""
    fake = device(120)
    first = fake.start(1, 120, [row([0, 1], 5)]).get()
    said = chosen(first)
    assert first.gaps.tolist() == [pytest.approx(1.2)]  # 120 / 100
    assert first.logprobs.tolist() == [-1.0] and first.done.tolist() == [False]
    for used in range(5, 9):
        choices = fake.decode(1, 120, [step([0, 1], used)]).get()
        assert choices.done.tolist() == [False]
        said += chosen(choices)
    assert bytes(said) == b"120:5"
    for _ in range(2):
        end = fake.decode(1, 120, [step([0, 1], 9)]).get()
        assert chosen(end) == [EOS] and end.done.tolist() == [True]
    assert first.tokens.dtype == np.int32 and first.logprobs.dtype == np.float32


def test_a_question_in_two_parts() -> None:
    """What is chosen before its end does not count: 32 + 6 tokens at 3 cells say "3:38"."""
    fake = device(3)
    blocks = [5, 2, 9, 0, 1]
    fake.start(1, 3, [row(blocks, 32)])
    said = chosen(fake.more(1, 3, row(blocks, 6, used=32)).get())
    for used in range(38, 41):
        said += chosen(fake.decode(1, 3, [step(blocks, used)]).get())
    assert bytes(said) == b"3:38"


def test_rows_are_their_own() -> None:
    """Two rows that began at 4 and 9 cells: "4:1" and "9:2"."""
    fake = device(9)
    one = chosen(fake.start(1, 4, [row([0], 1)]).get())
    two = chosen(fake.start(1, 9, [row([1], 2)]).get())
    for n in range(2):
        one += chosen(fake.decode(1, 4, [step([0], 1 + n)]).get())
        two += chosen(fake.decode(1, 9, [step([1], 2 + n)]).get())
    assert (bytes(one), bytes(two)) == (b"4:1", b"9:2")


def test_choices_are_scored_by_their_length() -> None:
    """-|n - seen % 10|: at 123 cells a choice of 3 tokens wins."""
    fake = device(123)
    fake.start(1, 123, [row([0], 4)])
    totals = fake.score(1, 123, [candidate([0], 4, n) for n in range(1, 6)]).get()
    assert totals.tolist() == [-2.0, -1.0, 0.0, -1.0, -2.0]
    assert fake.score(1, 120, [candidate([], 0, 2)]).get().tolist() == [-2.0]


def test_log_probabilities_fall_with_the_distance() -> None:
    fake = device(300)
    logprobs = fake.logits(1, 300, [row([], 3), row([], 1)]).get()
    assert logprobs.shape == (2, 258)
    assert logprobs[0, 44] == 0.0 and logprobs[0, 47] == -3.0  # 300 % 256 is 44
    assert np.array_equal(logprobs[0], logprobs[1])


def test_what_each_call_costs() -> None:
    """1 s an extend; 0.5 s a start, more, logits; 0.1 s a decode; 0.3 s a score; else nothing."""
    fake = device()
    clock = fake._clock
    fake.extend(1, tokens(4))
    fake.copy(1, 2)
    fake.start(1, 4, [row([0, 1, 2, 3, 4], 32)])
    fake.more(1, 4, row([0, 1, 2, 3, 4], 2, used=32))
    fake.decode(1, 4, [step([0, 1, 2, 3, 4], 34)])
    fake.score(1, 4, [candidate([], 0, 2), candidate([], 0, 3)])
    fake.logits(1, 4, [row([], 3)])
    fake.close(2)
    assert fake.steps == [
        FakeStep("open", 1, 0, 0, 0.0),
        FakeStep("extend", 1, 0, 4, 0.0),
        FakeStep("copy", 2, 0, 0, 1.0),
        FakeStep("start", 1, 1, 32, 1.0),
        FakeStep("more", 1, 1, 2, 1.5),
        FakeStep("decode", 1, 1, 1, 2.0),
        FakeStep("score", 1, 2, 5, pytest.approx(2.1)),  # pyright: ignore
        FakeStep("logits", 1, 1, 3, pytest.approx(2.4)),  # pyright: ignore
        FakeStep("close", 2, 0, 0, pytest.approx(2.9)),  # pyright: ignore
    ]
    assert clock.now_s == pytest.approx(2.9)


def test_sessions_are_copies_of_what_they_read(tmp_path: object) -> None:
    fake = device()
    fake.extend(1, np.array([4, 5], np.int32))
    fake.copy(1, 2)
    fake.extend(1, np.array([6], np.int32))
    assert (fake.cells(1), fake.cells(2)) == ([4, 5, 6], [4, 5])
    write = fake.capture(1, {"entries": 7})
    fake.extend(1, np.array([7], np.int32))
    write(f"{tmp_path}/one")
    saved = fake.load(f"{tmp_path}/one")
    assert saved.notes == {"entries": 7} and saved.place(3) == 3
    assert fake.cells(3) == [4, 5, 6]
    fake.close(3)
    fake.close(99)
    with pytest.raises(KeyError):
        fake.cells(3)
    assert (fake.session_bytes(), fake.compilations()) == (1024, 0)
    assert fake.limits is FAKE_LIMITS


@pytest.mark.parametrize(
    "call", ["open", "copy", "extend", "start", "more", "decode", "score", "logits", "close"]
)
def test_a_call_that_fails_fails_once(call: str) -> None:
    """Nothing is noted of it, no time passes, and the next one of its kind goes well."""
    fake = device(4)
    fake.start(1, 4, [row([0, 1], 3)])
    acts = {
        "open": lambda: fake.open(2),
        "copy": lambda: fake.copy(1, 2),
        "extend": lambda: fake.extend(1, tokens(1)),
        "start": lambda: fake.start(1, 4, [row([3], 3)]),
        "more": lambda: fake.more(1, 4, row([0, 1], 3, used=3)),
        "decode": lambda: fake.decode(1, 4, [step([0, 1], 3)]),
        "score": lambda: fake.score(1, 4, [candidate([0, 1], 3, 2)]),
        "logits": lambda: fake.logits(1, 4, [row([], 3)]),
        "close": lambda: fake.close(1),
    }
    steps, now_s, cells = list(fake.steps), fake._clock.now_s, fake.cells(1)
    fake.fail_next(call)  # pyright: ignore
    with pytest.raises(RuntimeError, match=f"fails in {call}"):
        acts[call]()
    assert (fake.steps, fake._clock.now_s, fake.cells(1)) == (steps, now_s, cells)
    acts[call]()
    assert fake.steps[-1].call == call


def test_calls_that_fail_from_the_start() -> None:
    fake = FakeExecutor(FakeClock(), fail=["open"])
    with pytest.raises(RuntimeError, match="fails in open"):
        fake.open(1)
    fake.open(1)


def test_a_ring() -> None:
    """With 3 cells to spare, a row that began at 4 is readable up to 7 cells."""
    assert device().readable_until(4) > 10**6
    fake = device(4, ring_cells=3)
    assert fake.readable_until(4) == 7
    fake.start(1, 4, [row([0], 3)])
    fake.extend(1, tokens(3))
    fake.decode(1, 4, [step([0], 3)])
    fake.extend(1, tokens(1))
    with pytest.raises(AssertionError, match="overwritten"):
        fake.decode(1, 4, [step([0], 4)])


def broken_rules() -> dict[str, object]:
    one = row([0], 3)
    return {
        "committed": lambda fake: fake.start(1, 21, [one]),
        "too many rows": lambda fake: fake.start(1, 20, [row([n], 3) for n in range(9)]),
        "too many": lambda fake: fake.start(1, 20, [row([n, 9, 10, 11], 17) for n in range(5)]),
        "does not fit": lambda fake: fake.start(1, 20, [row([0], 9)]),
        "lost count": lambda fake: fake.decode(1, 20, [step([60], 4)]),
        "row twice": lambda fake: fake.decode(1, 20, [step([60], 3), step([60], 3)]),
        "not there": lambda fake: fake.decode(1, 20, [step([50], 3)]),
        "other cells": lambda fake: fake.decode(1, 19, [step([60], 3)]),
        "was not read": lambda fake: fake.score(1, 20, [candidate([60], 2, 1)]),
        "tokens": lambda fake: fake.extend(1, tokens(17)),
        "no tokens": lambda fake: fake.extend(1, tokens(0)),
        "no rows": lambda fake: fake.decode(1, 20, []),
        "long choice": lambda fake: fake.score(1, 20, [candidate([], 0, 9)]),
        "no block": lambda fake: fake.start(1, 20, [row([64], 3)]),
        "open twice": lambda fake: fake.open(1),
    }


@pytest.mark.parametrize("rule", broken_rules())
def test_every_rule_is_asserted(rule: str) -> None:
    fake = device(20)
    fake.start(1, 20, [row([60], 3)])
    with pytest.raises(AssertionError):
        broken_rules()[rule](fake)  # pyright: ignore


def test_whoever_had_a_block_is_gone() -> None:
    fake = device(4)
    fake.start(1, 4, [row([0, 1], 9)])
    fake.start(1, 4, [row([1], 3)])
    with pytest.raises(AssertionError, match="blocks went to another"):
        fake.decode(1, 4, [step([0, 1], 9)])


def test_a_full_session() -> None:
    fake = device(1024)
    with pytest.raises(AssertionError):
        fake.extend(1, tokens(1))


def test_a_stepped_engine_ends() -> None:
    """`run` counts the turns that did something, and gives up on what never ends."""
    clock = FakeClock()
    engine = SteppedEngine(FakeExecutor(clock), clock)
    session = engine.open()
    assert engine.run() == 2  # open, and the opening: <bos>
    assert (session.version, session.info().tokens) == (0, 1)
    assert (engine.turn(), engine.run(), engine.until_s) == (False, 0, None)
    future = session.submit("Why?")
    assert engine.run() == 5  # "1:23" and <eos>: a start and four decodes
    assert future.result(timeout=0).text == "1:23"  # 4 bytes in a template of 19
    session.submit("Why?")
    with pytest.raises(AssertionError, match="still busy after 2 turns"):
        engine.run(turns=2)


def test_limits_hang_together() -> None:
    """What the rows of a step need is there."""
    limits: Limits = FAKE_LIMITS
    assert limits.tail_blocks * limits.tail_block_cells >= limits.tail_cells
    assert limits.start_rows[-1][0] == limits.question_tokens
