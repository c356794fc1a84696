"""Steps over several sessions: grouped == alone, whatever is mixed, at every border of a block.

Freed blocks are full of NaN, so whoever reads one shows it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.steps.packing import Row
from jaxstate.testing import TINY_CONFIG, tiny_model
from tests.engine.device_sessions import DeviceSessions, next_step

BLOCK = 4
# Around whole blocks, the window of 7 cells, and its ring of 28, which 57 cells turn twice.
BORDERS: tuple[int, ...] = (1, 3, 4, 5, 6, 7, 8, 9, 12, 27, 28, 29, 32, 55, 56, 57)
CHUNKS: tuple[int, ...] = (1, 3, 4, 7)
DECODES = 3


@functools.cache
def model() -> jaxstate.Model:
    return tiny_model(TINY_CONFIG, seed=3)


@functools.cache
def executor() -> DeviceExecutor:
    return DeviceExecutor(model(), session_cells=64, cells=512, sessions=16, poison=True)


def device() -> DeviceSessions:
    return DeviceSessions(executor())


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def read_together(sessions: DeviceSessions, lengths: list[int]) -> None:
    """All of them at once, in chunks of up to 16 tokens."""
    for name in range(len(lengths)):
        sessions.open(name)
    streams = {name: tokens(name, length) for name, length in enumerate(lengths)}
    while streams:
        step = {name: streams[name][: min(4 + 3 * name, 16)] for name in list(streams)[:4]}
        sessions.extend(step)
        for name, chunk in step.items():
            streams[name] = streams[name][len(chunk) :]
        streams = {name: left for name, left in streams.items() if left}


def test_chunks_of_several_sessions_are_read_as_each_alone() -> None:
    sessions = device()
    read_together(sessions, [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
    for name in sessions.of:
        sessions.check_cells(model(), name)


MIXTURES = [
    [(0, 3)],
    [(0, 3), (0, 4), (0, 1)],
    [(0, 3), (1, 4), (2, 1), (3, 2)],
    [(0, 3), (1, 4), (1, 1), (0, 4)],
    [(2, 9), (2, 16)],
    [(3, 1), (3, 2), (1, 4)],
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_questions_of_several_sessions_are_answered_as_each_alone(
    mixture: list[tuple[int, int]],
) -> None:
    """A start and five decodes, greedy: tokens, log-probabilities and logits of `query`."""
    sessions = device()
    read_together(sessions, [4, 13, 8, 31])
    questions = [tokens(100 + n, length) for n, (_, length) in enumerate(mixture)]
    rows = [
        sessions.row(name, 8 * n, question)
        for n, ((name, _), question) in enumerate(zip(mixture, questions, strict=True))
    ]
    chosen = [executor().run("start", rows).get()]
    for step in range(5):
        steps = [next_step(row, len(q) + step) for row, q in zip(rows, questions, strict=True)]
        chosen.append(executor().run("decode", steps).get())
    for n, (name, _) in enumerate(mixture):
        alone = expected(sessions.read[name], questions[n])
        for step, token in enumerate(alone.tokens):
            assert chosen[step].tokens[n] == token
            np.testing.assert_allclose(chosen[step].logprobs[n], alone.logprobs[step], atol=1e-4)


def expected(read: list[int], question: list[int]) -> jaxstate.QueryResult:
    state = jaxstate.extend(model(), jaxstate.init_state(model(), 64), read)
    return jaxstate.query(model(), state, question, 6)


def test_chunks_and_questions_share_a_step() -> None:
    """Also a chunk and a question of one session: the question sees what was there before."""
    sessions = device()
    read_together(sessions, [4, 13, 8])
    questions = [tokens(7, 3), tokens(8, 4)]
    before = {name: list(read) for name, read in sessions.read.items()}
    rows = [sessions.row(0, 0, questions[0]), sessions.row(1, 4, questions[1])]
    chunks = [sessions.chunk(1, tokens(9, 4)), sessions.chunk(2, tokens(10, 2))]
    chosen = executor().run("start", [*rows, *chunks]).get()
    assert len(chosen.tokens) == 4 and chosen.finite.all()
    for n, name in enumerate((0, 1)):
        alone = expected(before[name], questions[n])
        assert chosen.tokens[n] == alone.tokens[0]
        np.testing.assert_allclose(chosen.logprobs[n], alone.logprobs[0], atol=1e-4)
    for name in sessions.of:
        sessions.check_cells(model(), name)


def test_choices_of_several_sessions_are_scored_as_each_alone() -> None:
    sessions = device()
    read_together(sessions, [4, 13])
    question, choices = tokens(5, 4), [tokens(6, 1), tokens(7, 2)]
    rows = [sessions.row(name, 4 * name, question[:-1]) for name in (0, 1)]
    executor().run("start", rows).get()
    candidates = [
        Row(
            seen=row.seen,
            blocks=row.blocks,
            used_cells=3,
            tokens=np.array([question[-1], *choice], np.int32),
        )
        for row in rows
        for choice in choices
    ]
    totals = executor().run("score", candidates).get().logprobs
    alone = [executor().run("score", [one]).get().logprobs[0] for one in candidates]
    np.testing.assert_allclose(totals, alone, atol=1e-4)
    first = expected(sessions.read[1], question).logits
    shifted = first - np.log(np.exp(first).sum())
    np.testing.assert_allclose(totals[2], shifted[choices[0][0]], atol=1e-4)


@pytest.mark.parametrize("length", range(1, 14))
def test_a_fork_goes_its_own_way_from_every_place_in_a_block(length: int) -> None:
    """Both write behind the same cells, one after the other or in one step."""
    sessions = device()
    sessions.open(0)
    sessions.extend({0: tokens(0, length)})
    sessions.fork(0, 1)
    sessions.fork(0, 2)
    sessions.extend({1: tokens(1, 3)})
    sessions.extend({0: tokens(2, 5), 2: tokens(3, 2)})
    for name in (0, 1, 2):
        sessions.check_cells(model(), name)
    sessions.close(1)
    for name in (0, 2):
        sessions.check_cells(model(), name)
    sessions.tables.check(list(sessions.of.values()), [])


def test_freed_blocks_are_poisoned_and_their_next_owner_does_not_see_it() -> None:
    sessions = device()
    for turn in range(6):
        read_together(sessions, [60, 33, 5])
        for name in (0, 1, 2):
            sessions.check_cells(model(), name)
        for name in (0, 1, 2):
            sessions.close(name)
        assert turn or np.isnan(np.asarray(executor()._pool.cells.groups[1])).any()


def test_a_question_goes_on_at_its_version_while_its_session_grows() -> None:
    """By as much as a chunk: in the ring of a sliding window too."""
    sessions = device()
    read_together(sessions, [13, 30])
    questions = [tokens(7, 3), tokens(8, 4)]
    before = {name: list(read) for name, read in sessions.read.items()}
    rows = [sessions.row(n, 8 * n, questions[n]) for n in (0, 1)]
    chosen = [executor().run("start", rows).get()]
    sessions.extend({0: tokens(9, 16), 1: tokens(10, 11)})
    steps = [next_step(row, len(q)) for row, q in zip(rows, questions, strict=True)]
    chosen.append(executor().run("decode", steps).get())
    for n in (0, 1):
        alone = expected(before[n], questions[n])
        assert [int(one.tokens[n]) for one in chosen] == alone.tokens[:2].tolist()


@pytest.mark.parametrize("length", [0, 1, 4, 6, 7, 8, 33])
def test_cells_come_back_bit_for_bit_into_other_blocks(length: int) -> None:
    sessions = device()
    sessions.open(0)
    if length:
        for start in range(0, length, 16):
            sessions.extend({0: tokens(0, length)[start : start + 16]})
    fetched = executor().fetch(sessions.seen(0), length)
    sessions.open(1)
    sessions.read[1] = list(sessions.read[0])
    sessions.tables.grow(sessions.of[1], length)
    executor().place(sessions.seen(1), fetched)
    again = executor().fetch(sessions.seen(1), length)
    assert fetched.arrays.keys() == again.arrays.keys()
    for name, array in fetched.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    if length:
        sessions.extend({0: tokens(4, 3), 1: tokens(4, 3)})
        sessions.check_cells(model(), 1)


# --- mixtures drawn at random -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is mixed.

    Attributes:
        lengths: of the sessions, whose names are 0, 1, ...
        questions: (session, tokens), one or two for each session, in the order in which they begin.
        chunks: tokens that each session reads beside questions, as long as steps have room.
        orders: of the questions: in each round of decodes, and where they are scored.
        sizes: rows of one step after the other, again and again.
    """

    lengths: list[int]
    questions: list[tuple[int, int]]
    chunks: list[int]
    orders: list[list[int]]
    sizes: list[int]

    def chunk(self, name: int) -> list[int]:
        """As long as it fits into the session, and a question behind it."""
        return tokens(50 + name, min(self.chunks[name], 60 - self.lengths[name]))

    def steps(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        """The numbers, cut into steps."""
        start = step = 0
        while start < len(numbers):
            size = self.sizes[step % len(self.sizes)]
            yield numbers[start : start + size]
            start, step = start + size, step + 1


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    lengths = draw(st.lists(st.sampled_from(BORDERS), min_size=1, max_size=5))
    asked = [name for name in range(len(lengths)) for _ in range(draw(st.integers(1, 2)))]
    order = st.permutations(range(len(asked)))
    return Mixture(
        lengths=lengths,
        questions=[(name, draw(st.integers(1, BLOCK))) for name in draw(st.permutations(asked))],
        chunks=[draw(st.sampled_from(CHUNKS)) for _ in lengths],
        orders=[draw(order) for _ in range(DECODES + 1)],
        sizes=draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)),
    )


@dataclass(kw_only=True)
class Question:
    """One question, what its session had read when it began, and what was chosen so far."""

    row: Row
    read: tuple[int, ...]
    question: list[int]
    chosen: list[tuple[int, float]] = field(default_factory=list)

    def check(self) -> None:
        """Greedy tokens and their log-probabilities are those of `query`."""
        alone = jaxstate.query(model(), functional(self.read), self.question, DECODES + 1)
        chosen = self.chosen[: len(alone.tokens)]  # what comes after an end does not count
        assert [token for token, _ in chosen] == alone.tokens.tolist()
        np.testing.assert_allclose([one for _, one in chosen], alone.logprobs, atol=1e-4)

    def logprob_of(self, choice: Sequence[int]) -> float:
        """Of a choice behind the question, one `query` for each token of it."""
        total = 0.0
        for number, token in enumerate(choice):
            asked = [*self.question, *choice[:number]]
            total += log_softmax(jaxstate.query(model(), functional(self.read), asked, 1).logits)[
                token
            ]
        return total


@functools.lru_cache(maxsize=256)
def functional(read: tuple[int, ...]) -> jaxstate.SessionState:
    """The functional functional's session; questions leave it as it is."""
    return jaxstate.extend(model(), jaxstate.init_state(model(), 64), read)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


def begin(sessions: DeviceSessions, mixture: Mixture) -> list[Question]:
    """Starts all questions; chunks ride where a step has less than four rows."""
    asked: list[Question] = []
    grows = list(range(len(mixture.lengths)))
    for numbers in mixture.steps(range(len(mixture.questions))):
        for number in numbers:
            name, count = mixture.questions[number]
            question = tokens(100 + number, count)
            row = sessions.row(name, 3 * number, question)
            asked.append(Question(row=row, read=tuple(sessions.read[name]), question=question))
        riding = [grows.pop(0) for _ in range(min(4 - len(numbers), len(grows)))]
        chunks = [sessions.chunk(name, mixture.chunk(name)) for name in riding]
        begun = [asked[number] for number in numbers]
        chosen = executor().run("start", [*(one.row for one in begun), *chunks]).get()
        note(begun, chosen.tokens[: len(begun)], chosen.logprobs[: len(begun)])
    return asked


def go_on(mixture: Mixture, asked: list[Question], round: int) -> None:
    """One decode of every question."""
    for numbers in mixture.steps(mixture.orders[round]):
        going = [asked[number] for number in numbers]
        steps = [next_step(one.row, len(one.question) + round) for one in going]
        chosen = executor().run("decode", steps).get()
        note(going, chosen.tokens, chosen.logprobs)


def note(asked: list[Question], chosen: np.ndarray, logprobs: np.ndarray) -> None:
    for one, token, logprob in zip(asked, chosen.tolist(), logprobs.tolist(), strict=True):
        one.chosen.append((token, logprob))


def check_scores(mixture: Mixture, asked: list[Question]) -> None:
    """A choice of one or two tokens for every question, at the version that it saw."""
    for numbers in mixture.steps(mixture.orders[-1]):
        choices = [tokens(300 + number, 1 + number % 2) for number in numbers]
        scored = [asked[number] for number in numbers]
        candidates = [
            Row(
                seen=one.row.seen,
                blocks=one.row.blocks,
                used_cells=len(one.question) - 1,
                tokens=np.array([one.question[-1], *choice], np.int32),
            )
            for one, choice in zip(scored, choices, strict=True)
        ]
        alone = [one.logprob_of(choice) for one, choice in zip(scored, choices, strict=True)]
        np.testing.assert_allclose(
            executor().run("score", candidates).get().logprobs, alone, atol=1e-4
        )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(mixture=mixtures())
def test_whatever_is_mixed_is_as_each_alone(mixture: Mixture) -> None:
    """Questions start beside chunks, go on in any order, are scored;
    then the next mixture gets the blocks, full of NaN."""
    sessions = device()
    read_together(sessions, mixture.lengths)
    asked = begin(sessions, mixture)
    for round in range(DECODES):
        go_on(mixture, asked, round)
    check_scores(mixture, asked)
    for one in asked:
        one.check()
    for name in list(sessions.of):
        sessions.check_cells(model(), name)
        sessions.close(name)
