"""Streams and questions as arrays: a session's rows first, then one row for each question.

Comes in: a stage's shape, a seed and a number. Goes out: that batch, the same every time. Does not
know: models, devices (workers make batches without touching one).

    rows   0 .. n - 1   the session, `row_tokens` to a row, positions from 0 on
    rows   n ..         a question and its answer, positions from where in the session it was asked

A question sees the session before that place and nothing of other questions, as when it is asked
of a live session (`jaxstate.model.context.Packed`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxstate.text import Template, Tokenizer
from jaxstate.training.config import Stage
from jaxstate.training.data import FAMILIES, Question, Stream

_EARLIEST = 0.02  # questions come after that share of a session
_TRIES = 20
NOTHING = -1


@dataclass(frozen=True)
class Batch:
    """B sequences of R rows of T tokens.

    Attributes:
        tokens: int32 [B, R, T]; zeros where there is nothing.
        positions: int32 [B, R, T].
        targets: int32 [B, R, T], the token that comes next.
        in_session: bool [B, R, T], whether that token is the session's.
        in_answer: bool [B, R, T], whether that token is an answer's, its end included.
        families: int32 [B, Q], which of `FAMILIES` a question is of; `NOTHING` where none is asked.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    targets: NDArray[np.int32]
    in_session: NDArray[np.bool_]
    in_answer: NDArray[np.bool_]
    families: NDArray[np.int32]


@dataclass(frozen=True)
class _Asked:
    """A question at a place in a session, in tokens."""

    at: int
    question: list[int]
    answer: list[int]
    family: int


_NOBODY = _Asked(0, [0], [], NOTHING)  # a row that nothing is learnt from


def make_batch(
    tokenizer: Tokenizer, template: Template, stage: Stage, row_tokens: int, seed: str
) -> Batch:
    """The batch of that seed.

    Args:
        tokenizer, template: the model's.
        stage: its shape.
        row_tokens: T.
        seed: tells it from other batches.
    """
    writer = _Writer(tokenizer, template, stage, row_tokens)
    for number in range(stage.sequences):
        writer.write(number, random.Random(f"{seed}/{number}"))
    return writer.batch


class _Writer:
    """Fills a batch, sequence by sequence."""

    def __init__(
        self, tokenizer: Tokenizer, template: Template, stage: Stage, row_tokens: int
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._stage, self._row_tokens = stage, row_tokens
        rows = stage.session_tokens // row_tokens + stage.questions
        shape = (stage.sequences, rows, row_tokens)
        zeros = np.zeros(shape, np.int32)
        self.batch = Batch(
            tokens=zeros,
            positions=zeros.copy(),
            targets=zeros.copy(),
            in_session=np.zeros(shape, np.bool_),
            in_answer=np.zeros(shape, np.bool_),
            families=np.full((stage.sequences, stage.questions), NOTHING, np.int32),
        )

    def write(self, number: int, rng: random.Random) -> None:
        """One sequence."""
        session, asked = self._read(rng)
        size, row = self._stage.session_tokens, self._row_tokens
        ids = np.zeros(size + 1, np.int32)
        ids[: len(session)] = session
        rows, batch = size // row, self.batch
        batch.tokens[number, :rows] = ids[:-1].reshape(rows, row)
        batch.targets[number, :rows] = ids[1:].reshape(rows, row)
        places = np.arange(size, dtype=np.int32)
        batch.positions[number, :rows] = places.reshape(rows, row)
        batch.in_session[number, :rows] = (places + 1 < len(session)).reshape(rows, row)
        for offset, one in enumerate(asked):
            self._write_question(number, rows + offset, one)
            batch.families[number, offset] = one.family

    def _write_question(self, number: int, row: int, one: _Asked) -> None:
        both, batch = one.question + one.answer, self.batch
        end = len(both) - 1
        batch.tokens[number, row, :end] = both[:-1]
        batch.targets[number, row, :end] = both[1:]
        batch.positions[number, row] = one.at + np.arange(self._row_tokens, dtype=np.int32)
        batch.in_answer[number, row, len(one.question) - 1 : end] = True

    def _read(self, rng: random.Random) -> tuple[list[int], list[_Asked]]:
        """A session up to its capacity, and questions at random places."""
        stage, stream = self._stage, Stream(rng)
        size = stage.session_tokens
        places = _places(stage, rng)
        session = self._template.open_tokens(self._tokenizer, "")
        asked: list[_Asked] = []
        seen_tokens = [rows * self._row_tokens for rows in stage.seen_rows(self._row_tokens)]
        longest = 0
        while True:
            # Before the next entry is made: a stream answers from all that it has said.
            last = len(session) + longest > size
            while len(asked) < len(places) and (last or places[len(asked)] <= len(session)):
                most = seen_tokens[len(asked) * stage.runs // stage.questions]
                asked.append(self._ask(stream, len(session)) if len(session) <= most else _NOBODY)
            entry = self._template.entry_tokens(self._tokenizer, stream.entry())
            if len(session) + len(entry) > size:
                return session, asked
            session += entry
            longest = max(longest, len(entry))

    def _ask(self, stream: Stream, at: int) -> _Asked:
        """A question about what was just read that fits into a row."""
        for _ in range(_TRIES):
            question = stream.question()
            if question is not None:
                one = self._in_tokens(question, at)
                if len(one.question) + len(one.answer) <= self._row_tokens:
                    return one
        return _NOBODY

    def _in_tokens(self, question: Question, at: int) -> _Asked:
        end = self._template.stops(self._tokenizer)[0]
        return _Asked(
            at=at,
            question=self._template.question_tokens(self._tokenizer, question.text),
            answer=self._template.answer_tokens(
                self._tokenizer, question.text, question.answer + end
            ),
            family=FAMILIES.index(question.family),
        )


def _places(stage: Stage, rng: random.Random) -> list[int]:
    """Where in a session questions are asked, in tokens: as many in each run's part of it."""
    share, each = 1 / stage.runs, stage.questions // stage.runs
    found = [
        round(stage.session_tokens * rng.uniform(max(run * share, _EARLIEST), (run + 1) * share))
        for run in range(stage.runs)
        for _ in range(each)
    ]
    return sorted(found)
