"""An accelerator whose answers and times can be worked out by hand.

Comes in: what `Executor` says. Goes out: after every question, the answer `<seen>:<question>`, one
byte a token, then <eos>: how many cells of the session it saw, and how many tokens the question
had. A question of 5 tokens that saw 120 cells is answered "120:5", whatever was read. Its first
token has a gap of `seen` / 100 logits, and every token a log-probability of -1. A choice of n
tokens has the total log-probability -|n - seen % 10|: at 123 cells a choice of 3 tokens wins.

Each call lets the clock pass: 1 s for an extend, 0.5 s for a start or more, 0.1 s for a
decode, 0.3 s for a score, 2 s for a fetch, 1.5 s for a place, however many sessions it serves;
results are there at once. Does not know: models, arrays on devices.

A cell holds its position and its token, so whoever looks at cells through a table finds out whether
they are the ones that it means. Every rule of the protocol is asserted: tail blocks with one owner,
sizes within the limits, cells that are still there. `steps` tells what was called.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.tables import BlockCopy, GroupBlock, Seen
from jaxstate.engine.executor.protocol import (
    HostCells,
    Limits,
    Lost,
    Pending,
    Saved,
    StepKind,
    StepOutput,
)
from jaxstate.persist.files import Note
from jaxstate.steps.packing import Row
from jaxstate.testing.clock import FakeClock
from jaxstate.testing.fake_limits import BLOCK_CELLS, FAKE_LIMITS

Call = StepKind | Literal["copy", "fetch", "place"]

COST_S: dict[Call, float] = {
    "copy": 0.0,
    "fetch": 2.0,
    "place": 1.5,
    "extend": 1.0,
    "start": 0.5,
    "more": 0.5,
    "decode": 0.1,
    "score": 0.3,
}
_EOS = 257


@dataclass(frozen=True, slots=True)
class FakeStep:
    """One call.

    Attributes:
        call: which.
        sessions: whose rows or chunks it served, each once, in order.
        rows: rows or candidates; 0 where there are none.
        tokens: tokens read in all.
        began_s: the clock before it.
        chunks: sessions whose chunks a start committed, each once, in order.
    """

    call: Call
    sessions: tuple[int, ...]
    rows: int
    tokens: int
    began_s: float
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Done:
    """A result that is there."""

    output: StepOutput

    def get(self) -> StepOutput:
        """It."""
        return self.output


@dataclass(slots=True)
class _Question:
    """What one row has been through."""

    looks_at: tuple[int, int]
    question_tokens: int
    said: int = 0
    done: bool = False
    blocks: tuple[int, ...] = ()

    def says(self) -> str:
        return f"{self.looks_at[1]}:{self.question_tokens}"


class FakeExecutor:
    """Implements `Executor` by arithmetic.

    Args:
        clock: passes with every call.
        limits: of every step.
        ring_cells: how many cells a session may grow before a row that is under way loses sight of
            its cells; None for ever, as in a model without sliding windows.
        fail: calls that raise, once each, when they come ("extend", …).

    Attributes:
        spoils: tokens that make the numbers of whatever reads them NaN.
        steps: every call so far.
        loses: what a call that raises takes with it.
        fingerprint: of the cells, as for any device.
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
        self.spoils: set[int] = set()
        self.loses = Lost(rows=False, cells=False)
        self.fingerprint = "fake"
        self._clock = clock
        self._limits = limits
        self._ring_cells = ring_cells
        self._fail = list(fail)
        # What each cell holds: its position, -1 where it is nobody's, and its token.
        shape = (limits.layout.group_blocks[0], limits.layout.block_cells)
        self._positions = np.full(shape, -1, np.int64)
        self._tokens = np.zeros(shape, np.int32)
        self._rows: dict[int, _Question] = {}
        self._owners: dict[int, _Question] = {}
        # How far each session was read, which is what a ring forgets by.
        self._lengths: dict[int, int] = {}

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

    def cells(self, seen: Seen) -> list[int]:
        """The tokens in a session's cells."""
        blocks = self._check_seen(seen)
        return self._tokens[blocks].reshape(-1)[: seen.cells].tolist()

    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        """Does the step."""
        steps = {
            "extend": self._extend,
            "start": self._start,
            "more": self._more,
            "decode": self._decode,
            "score": self._score,
        }
        return _Done(steps[kind](rows))

    def _extend(self, chunks: Sequence[Row]) -> StepOutput:
        longest = max(len(chunk.tokens) for chunk in chunks)
        assert longest <= self._limits.extend_tokens
        sizes = next(sizes for size, sizes in self._limits.chunk_rows if longest <= size)
        assert len(chunks) <= sizes[-1], "too many chunks of that length"
        sessions = _names(chunks)
        assert len(sessions) == len(chunks), "two chunks of one session"
        self._call("extend", sessions, tokens=sum(len(chunk.tokens) for chunk in chunks))
        self._commit(chunks)
        return self._say([None] * len(chunks), self._finite(chunks))

    def _start(self, rows: Sequence[Row]) -> StepOutput:
        asked = [row for row in rows if not row.commits]
        chunks = list(rows[len(asked) :])
        assert all(row.commits for row in chunks), "chunks come last"
        self._check_start(asked, chunks)
        tokens = sum(len(one.tokens) for one in rows)
        self._call("start", _names(asked), len(asked), tokens, _names(chunks))
        started: list[_Question | None] = []
        for row in asked:
            assert row.used_cells == 0
            state = _Question(row.seen.together, len(row.tokens), blocks=row.blocks)
            self._own(state)
            started.append(state)
        self._commit(chunks)
        return self._say([*started, *[None] * len(chunks)], self._finite(rows))

    def _finite(self, read: Sequence[Row]) -> NDArray[np.bool_]:
        return np.array([self.spoils.isdisjoint(one.tokens.tolist()) for one in read], np.bool_)

    def _more(self, rows: Sequence[Row]) -> StepOutput:
        (row,) = rows
        state = self._row(row)
        assert row.used_cells == state.question_tokens
        assert 1 <= len(row.tokens) <= self._limits.question_tokens
        self._call("more", (row.seen.session,), 1, len(row.tokens))
        state.question_tokens += len(row.tokens)
        state.said, state.done = 0, False
        return self._say([state])

    def _decode(self, rows: Sequence[Row]) -> StepOutput:
        assert len({row.blocks[0] for row in rows}) == len(rows), "a row twice in one step"
        self._check_together(rows)
        states = [self._row(row) for row in rows]
        for row, state in zip(rows, states, strict=True):
            used = state.question_tokens + state.said - 1
            assert state.done or row.used_cells == used, "a row lost count"
        self._call("decode", _names(rows), len(rows), len(rows))
        return self._say(states)

    def _score(self, rows: Sequence[Row]) -> StepOutput:
        self._check_together(rows)
        for one in rows:
            self._check_seen(one.seen)
        choices = [len(one.tokens) - 1 for one in rows]  # the question's last token comes first
        self._call("score", _names(rows), len(rows), sum(choices))
        for one, tokens in zip(rows, choices, strict=True):
            assert 1 <= tokens <= self._limits.choice_tokens
            if one.used_cells:
                row = self._row(one)
                assert row.question_tokens == one.used_cells, "the question was not read"
        scores = [
            -abs(tokens - one.seen.cells % 10) for one, tokens in zip(rows, choices, strict=True)
        ]
        said = self._say([None] * len(rows))
        return dataclasses.replace(said, logprobs=np.array(scores, np.float32))

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copies blocks."""
        self._call("copy", ())
        for one in copies:
            self._positions[one.target] = self._positions[one.source]
            self._tokens[one.target] = self._tokens[one.source]

    def freed(self, blocks: Sequence[GroupBlock]) -> None:
        """What is in them is nobody's."""
        self._positions[[one.block for one in blocks]] = -1

    def wipe(self, blocks: Sequence[GroupBlock]) -> None:
        """Nothing is left in them."""
        numbers = [one.block for one in blocks]
        self._positions[numbers], self._tokens[numbers] = -1, 0

    def fetch(self, seen: Seen, readable_cells: int) -> HostCells:
        """A session's tokens."""
        assert seen.cells <= self.readable_until(readable_cells)
        cells = self.cells(seen)
        self._call("fetch", (seen.session,))
        return HostCells(cells=len(cells), arrays={"cells": np.array(cells, np.int32)})

    def fetch_part(self, seen: Seen, first: int, last: int) -> HostCells:
        """Some of a session's tokens."""
        cells = self.cells(seen)[first:last]
        self._call("fetch", (seen.session,))
        return HostCells(cells=last, arrays={"cells": np.array(cells, np.int32)})

    def place(self, seen: Seen, cells: HostCells) -> None:
        """Puts them back."""
        assert seen.cells == cells.cells
        self._call("place", (seen.session,))
        if cells.cells == 0:
            return
        empty = dataclasses.replace(seen, cells=0)
        tokens = cells.arrays["cells"].astype(np.int32)
        self._commit([Row(seen=empty, tokens=tokens, commits=True)])

    def save(
        self, path: str | os.PathLike[str], cells: HostCells, notes: Mapping[str, Note]
    ) -> None:
        """Writes tokens and notes."""
        with open(f"{os.fspath(path)}.npz", "wb") as file:
            arrays = {**cells.arrays, "notes": np.array(json.dumps(dict(notes)))}
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads them."""
        with open(f"{os.fspath(path)}.npz", "rb") as file, np.load(file) as saved:
            arrays = {name: saved[name] for name in saved.files if name != "notes"}
            notes = json.loads(str(saved["notes"]))
        return Saved(notes=notes, cells=HostCells(cells=len(arrays["cells"]), arrays=arrays))

    def recover(self) -> Lost:
        """Keeps what it has, unless it is told to lose it (`loses`)."""
        if self.loses.rows:
            self._rows.clear()
        if self.loses.cells:
            self._positions[:] = -1
        return self.loses

    def release(self) -> None:
        """Keeps what it has, so that tests can look at it."""

    def compilations(self) -> int:
        """Nothing ever compiles."""
        return 0

    def _commit(self, chunks: Sequence[Row]) -> None:
        for chunk in chunks:
            assert len(chunk.tokens) >= 1, "a chunk of nothing"
            self._lengths[chunk.seen.session] = chunk.seen.cells
            self._check_seen(chunk.seen)
            self._lengths[chunk.seen.session] += len(chunk.tokens)
            (table,) = chunk.seen.tables
            positions = chunk.seen.cells + np.arange(len(chunk.tokens))
            blocks = table[positions // BLOCK_CELLS]
            assert (blocks >= 0).all(), "a chunk has no blocks"
            assert positions[-1] < self._limits.session_cells
            self._positions[blocks, positions % BLOCK_CELLS] = positions + chunk.seen.slid_cells
            self._tokens[blocks, positions % BLOCK_CELLS] = chunk.tokens

    def _check_start(self, rows: Sequence[Row], chunks: Sequence[Row]) -> None:
        both = [*rows, *chunks]
        self._check_together(both)
        longest = max(len(one.tokens) for one in both)
        fits = next(count for size, count in self._limits.start_rows if longest <= size)
        assert len(both) <= fits, "too many rows for tokens of that length"
        for row in rows:
            self._check_seen(row.seen)
            cells = len(row.blocks) * self._limits.tail_block_cells
            assert len(row.tokens) <= cells, "the question does not fit"

    def _check_together(self, rows: Sequence[Row]) -> None:
        """Rows of one step."""
        assert 1 <= len(rows) <= self._limits.rows
        looks = [row.seen.together for row in rows]
        assert len({session for session, _ in looks}) <= self._limits.step_sessions
        if len(set(looks)) > 1:
            most = max(looks.count(one) for one in looks)
            assert most <= self._limits.session_rows, "too many rows of one session beside others"

    def _check_seen(self, seen: Seen) -> NDArray[np.int32]:
        """The blocks of the cells that it sees, all of which are what it takes them for."""
        length = self._lengths.get(seen.session, seen.cells)
        assert length <= self.readable_until(seen.cells), "its cells were overwritten since"
        (table,) = seen.tables
        blocks = table[: -(-seen.cells // BLOCK_CELLS)]
        assert (blocks >= 0).all(), "it would see cells that are not there"
        found = self._positions[blocks].reshape(-1)[: seen.cells]
        # Those behind what was dropped kept their positions.
        beyond = found - np.arange(seen.cells)
        kept = np.isin(beyond, (0, seen.slid_cells)).all() and (np.diff(beyond) >= 0).all()
        assert kept, "it sees cells that are not its session's"
        return blocks

    def _own(self, row: _Question) -> None:
        """The row's blocks are its own from now on; whoever had them is gone."""
        for block in row.blocks:
            assert 0 <= block < self._limits.tail_blocks
            other = self._owners.get(block)
            if other is not None and self._rows.get(other.blocks[0]) is other:
                del self._rows[other.blocks[0]]
            self._owners[block] = row
        self._rows[row.blocks[0]] = row

    def _row(self, row: Row) -> _Question:
        self._check_seen(row.seen)
        assert row.blocks[0] in self._rows, (
            "the row is not there any more: its blocks went to another"
        )
        state = self._rows[row.blocks[0]]
        assert state.blocks == row.blocks
        assert state.looks_at == row.seen.together, "a row looks at other cells than it began with"
        return state

    def _say(
        self, questions: Sequence[_Question | None], finite: NDArray[np.bool_] | None = None
    ) -> StepOutput:
        """The next byte of each answer; of what is no question nothing."""
        tokens, gaps, done = [], [], []
        for one in questions:
            token, gap = _EOS, 0.0
            if one is not None:
                text, gap = one.says().encode(), one.looks_at[1] / 100
                token = text[one.said] if one.said < len(text) and not one.done else _EOS
                one.done = one.done or token == _EOS
                one.said += 1
            tokens.append(token)
            gaps.append(gap)
            done.append(one is not None and one.done)
        count = len(questions)
        finite = np.ones(count, np.bool_) if finite is None else finite
        return StepOutput(
            tokens=np.array(tokens, np.int32),
            logprobs=np.where(finite, np.float32(-1.0), np.float32(np.nan)),
            gaps=np.array(gaps, np.float32),
            done=np.array(done, np.bool_),
            finite=finite,
        )

    def _call(
        self,
        call: Call,
        sessions: tuple[int, ...],
        rows: int = 0,
        tokens: int = 0,
        chunks: tuple[int, ...] = (),
    ) -> None:
        if call in self._fail:
            self._fail.remove(call)
            raise RuntimeError(f"the fake device fails in {call}")
        self.steps.append(FakeStep(call, sessions, rows, tokens, self._clock.now_s, chunks))
        self._clock.pass_s(COST_S[call])


def _names(rows: Iterable[Row]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(row.seen.session for row in rows))
