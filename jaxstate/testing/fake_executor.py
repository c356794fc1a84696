"""An accelerator whose answers and times can be worked out by hand.

Comes in: what `Executor` says. Goes out: after every question, the answer `<seen>:<question>`, one
byte a token, then <eos>: how many cells of the session it saw, and how many tokens the question
had. A question of 5 tokens that saw 120 cells is answered "120:5", whatever was read. Its first
token has a gap of `seen` / 100 logits, and every token a log-probability of -1. A choice of n
tokens has the total log-probability -|n - seen % 10|: at 123 cells a choice of 3 tokens wins.

Each call lets the clock pass: 1 s for an extend, 0.5 s for a start, more or logits, 0.1 s for a
decode, 0.3 s for a score; results are there at once. Does not know: models, arrays on devices.

Every rule of the protocol is asserted: blocks with one owner, sizes within the limits, cells that
are still there, sessions that exist. `steps` tells what was called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxstate.engine.executor import (
    Candidate,
    Choices,
    Limits,
    RowStep,
    RowTokens,
    Saved,
    Tokens,
)
from jaxstate.engine.sizes import RowSizes
from jaxstate.testing.clock import FakeClock

T = TypeVar("T")
Call = Literal[
    "open", "close", "copy", "capture", "extend", "start", "more", "decode", "score", "logits"
]

FAKE_LIMITS = Limits(
    session_cells=1024,
    max_context=4096,
    extend_tokens=16,
    question_tokens=32,
    choice_tokens=8,
    rows=8,
    row_sizes=RowSizes(sizes=tuple(range(1, 9)), overhead_tokens=1),  # nothing is ever padded
    start_rows=((16, 8), (32, 4)),
    tail_cells=64,
    tail_blocks=64,
    tail_block_cells=8,
    idle_tokens=128,
    steps_ahead=0,
)
COST_S: dict[Call, float] = {
    "open": 0.0,
    "close": 0.0,
    "copy": 0.0,
    "capture": 0.0,
    "extend": 1.0,
    "start": 0.5,
    "more": 0.5,
    "logits": 0.5,
    "decode": 0.1,
    "score": 0.3,
}
_EOS = 257


@dataclass(frozen=True, slots=True)
class FakeStep:
    """One call.

    Attributes:
        call: which.
        session: its session.
        rows: rows or candidates; 0 where there are none.
        tokens: tokens read in all.
        began_s: the clock before it.
    """

    call: Call
    session: int
    rows: int
    tokens: int
    began_s: float


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """A result that is there."""

    result: T

    def get(self) -> T:
        """It."""
        return self.result


@dataclass(slots=True)
class _Row:
    """What one row has been through."""

    seen_cells: int
    question_tokens: int
    said: int = 0
    done: bool = False
    blocks: tuple[int, ...] = ()

    def says(self) -> str:
        return f"{self.seen_cells}:{self.question_tokens}"


class FakeExecutor:
    """Implements `Executor` by arithmetic.

    Args:
        clock: passes with every call.
        limits: of every step.
        ring_cells: how many cells a session may grow before a row that is under way loses sight of
            its cells; None for ever, as in a model without sliding windows.
        fail: calls that raise, once each, when they come ("extend", …).

    Attributes:
        steps: every call so far.
        loses_rows: whether a call that raises takes all rows with it.
    """

    def __init__(
        self,
        clock: FakeClock,
        *,
        limits: Limits = FAKE_LIMITS,
        ring_cells: int | None = None,
        fail: Sequence[Call] = (),
    ) -> None:
        self.steps: list[FakeStep] = []
        self.loses_rows = False
        self._clock = clock
        self._limits = limits
        self._ring_cells = ring_cells
        self._fail = list(fail)
        self._cells: dict[int, list[int]] = {}
        self._rows: dict[int, _Row] = {}

    @property
    def limits(self) -> Limits:
        """What one step can take."""
        return self._limits

    def fail_next(self, call: Call) -> None:
        """Lets the next call of that kind raise."""
        self._fail.append(call)

    def readable_until(self, seen_cells: int) -> int:
        """`seen_cells` and what a ring has to spare."""
        return 1 << 30 if self._ring_cells is None else seen_cells + self._ring_cells

    def session_bytes(self) -> int:
        """A byte a cell."""
        return self._limits.session_cells

    def cells(self, session: int) -> list[int]:
        """The tokens that a session has read."""
        return list(self._cells[session])

    def open(self, session: int) -> None:
        """Makes an empty session."""
        assert session not in self._cells
        self._call("open", session)
        self._cells[session] = []

    def close(self, session: int) -> None:
        """Forgets a session, also one that never came to be."""
        self._call("close", session)
        self._cells.pop(session, None)

    def copy(self, session: int, into: int) -> None:
        """Makes a session that is equal to another."""
        self._call("copy", into)
        self._cells[into] = list(self._cells[session])

    def extend(self, session: int, tokens: Tokens) -> _Done[None]:
        """Commits tokens."""
        cells = self._cells[session]
        assert 1 <= len(tokens) <= self._limits.extend_tokens
        assert len(cells) + len(tokens) <= self._limits.session_cells
        self._call("extend", session, tokens=len(tokens))
        cells += [int(token) for token in tokens]
        return _Done(None)

    def start(self, session: int, seen_cells: int, rows: Sequence[RowTokens]) -> _Done[Choices]:
        """Begins rows."""
        self._check_start(session, seen_cells, rows)
        self._call("start", session, len(rows), sum(len(row.tokens) for row in rows))
        started = []
        for row in rows:
            assert row.used_cells == 0
            state = _Row(seen_cells, len(row.tokens), blocks=row.blocks)
            self._own(state)
            started.append(state)
        return _Done(self._say(started))

    def more(self, session: int, seen_cells: int, row: RowTokens) -> _Done[Choices]:
        """Goes on reading one question."""
        state = self._row(session, seen_cells, row.blocks)
        assert row.used_cells == state.question_tokens
        assert 1 <= len(row.tokens) <= self._limits.question_tokens
        self._call("more", session, 1, len(row.tokens))
        state.question_tokens += len(row.tokens)
        state.said, state.done = 0, False
        return _Done(self._say([state]))

    def decode(self, session: int, seen_cells: int, rows: Sequence[RowStep]) -> _Done[Choices]:
        """One answer token of each row."""
        assert 1 <= len(rows) <= self._limits.rows
        assert len({row.blocks[0] for row in rows}) == len(rows), "a row twice in one step"
        states = [self._row(session, seen_cells, row.blocks) for row in rows]
        for row, state in zip(rows, states, strict=True):
            used = state.question_tokens + state.said - 1
            assert state.done or row.used_cells == used, "a row lost count"
        self._call("decode", session, len(rows), len(rows))
        return _Done(self._say(states))

    def score(
        self, session: int, seen_cells: int, candidates: Sequence[Candidate]
    ) -> _Done[NDArray[np.float32]]:
        """Total log-probabilities."""
        assert 1 <= len(candidates) <= self._limits.rows
        self._check_seen(session, seen_cells)
        self._call("score", session, len(candidates), sum(len(one.tokens) for one in candidates))
        for one in candidates:
            assert 1 <= len(one.tokens) <= self._limits.choice_tokens
            if one.used_cells:
                row = self._row(session, seen_cells, one.blocks)
                assert row.question_tokens == one.used_cells, "the question was not read"
        scores = [-abs(len(one.tokens) - seen_cells % 10) for one in candidates]
        return _Done(np.array(scores, np.float32))

    def logits(
        self, session: int, seen_cells: int, rows: Sequence[RowTokens]
    ) -> _Done[NDArray[np.float32]]:
        """Log-probabilities over 258 tokens: minus the distance to `seen_cells` modulo 256."""
        self._check_start(session, seen_cells, rows, owned=False)
        self._call("logits", session, len(rows), sum(len(row.tokens) for row in rows))
        distances = np.abs(np.arange(258) - seen_cells % 256)
        return _Done(np.tile(-distances.astype(np.float32), (len(rows), 1)))

    def capture(
        self, session: int, notes: dict[str, str | int]
    ) -> Callable[[str | os.PathLike[str]], None]:
        """Copies a session's tokens; what it returns writes them, with the notes."""
        cells = np.array(self._cells[session], np.int32)
        self._call("capture", session)
        return lambda path: np.savez(os.fspath(path), cells=cells, notes=json.dumps(notes))

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads them."""
        with np.load(f"{os.fspath(path)}.npz") as saved:
            cells = [int(token) for token in saved["cells"]]
            notes = json.loads(str(saved["notes"]))

        def place(session: int) -> int:
            self._cells[session] = list(cells)
            return len(cells)

        return Saved(notes=notes, place=place)

    def recover(self) -> bool:
        """Keeps its rows, unless it is told to lose them (`loses_rows`)."""
        if self.loses_rows:
            self._rows.clear()
        return self.loses_rows

    def compilations(self) -> int:
        """Nothing ever compiles."""
        return 0

    def _check_start(
        self, session: int, seen_cells: int, rows: Sequence[RowTokens], *, owned: bool = True
    ) -> None:
        self._check_seen(session, seen_cells)
        longest = max(len(row.tokens) for row in rows)
        fits = next(count for size, count in self._limits.start_rows if longest <= size)
        assert len(rows) <= fits, "too many rows for tokens of that length"
        for row in rows if owned else ():
            cells = len(row.blocks) * self._limits.tail_block_cells
            assert len(row.tokens) <= cells, "the question does not fit into its blocks"

    def _check_seen(self, session: int, seen_cells: int) -> None:
        length = len(self._cells[session])
        assert seen_cells <= length, "it would see cells that are not committed"
        assert length <= self.readable_until(seen_cells), "cells that it sees were overwritten"

    def _own(self, row: _Row) -> None:
        """The row's blocks are its own from now on; whoever had them is gone."""
        for block in row.blocks:
            assert 0 <= block < self._limits.tail_blocks
        for slot, other in tuple(self._rows.items()):
            if set(other.blocks) & set(row.blocks):
                del self._rows[slot]
        self._rows[row.blocks[0]] = row

    def _row(self, session: int, seen_cells: int, blocks: tuple[int, ...]) -> _Row:
        self._check_seen(session, seen_cells)
        assert blocks[0] in self._rows, "the row is not there any more: its blocks went to another"
        row = self._rows[blocks[0]]
        assert row.blocks == blocks
        assert row.seen_cells == seen_cells, "a row looks at other cells than it began with"
        return row

    def _say(self, rows: Sequence[_Row]) -> Choices:
        tokens: list[int] = []
        for row in rows:
            text = row.says().encode()
            tokens.append(text[row.said] if row.said < len(text) and not row.done else _EOS)
            row.done = row.done or tokens[-1] == _EOS
            row.said += 1
        return Choices(
            tokens=np.array(tokens, np.int32),
            logprobs=np.full(len(rows), -1.0, np.float32),
            gaps=np.array([row.seen_cells / 100 for row in rows], np.float32),
            done=np.array([row.done for row in rows], np.bool_),
        )

    def _call(self, call: Call, session: int, rows: int = 0, tokens: int = 0) -> None:
        if call in self._fail:
            self._fail.remove(call)
            raise RuntimeError(f"the fake device fails in {call}")
        self.steps.append(FakeStep(call, session, rows, tokens, self._clock.now_s))
        self._clock.pass_s(COST_S[call])
