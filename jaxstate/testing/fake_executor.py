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
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.tables import BlockCopy, GroupBlock, Seen
from jaxstate.engine.executor.protocol import (
    Candidate,
    Choices,
    Chunk,
    HostCells,
    Limits,
    Lost,
    RowStep,
    RowTokens,
    Saved,
)
from jaxstate.persist.files import Note
from jaxstate.testing.clock import FakeClock
from jaxstate.testing.fake_limits import BLOCK_CELLS, FAKE_LIMITS

T = TypeVar("T")
Call = Literal["copy", "fetch", "place", "extend", "start", "more", "decode", "score"]

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
class _Done(Generic[T]):
    """A result that is there."""

    result: T

    def get(self) -> T:
        """It."""
        return self.result


@dataclass(slots=True)
class _Row:
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
        self._rows: dict[int, _Row] = {}
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

    def extend(self, chunks: Sequence[Chunk]) -> _Done[NDArray[np.bool_]]:
        """Commits a chunk of each of several sessions."""
        longest = max(len(chunk.tokens) for chunk in chunks)
        assert longest <= self._limits.extend_tokens
        sizes = next(sizes for size, sizes in self._limits.chunk_rows if longest <= size)
        assert len(chunks) <= sizes[-1], "too many chunks of that length"
        sessions = _names(chunk.start for chunk in chunks)
        assert len(sessions) == len(chunks), "two chunks of one session"
        self._call("extend", sessions, tokens=sum(len(chunk.tokens) for chunk in chunks))
        self._commit(chunks)
        return _Done(self._finite(chunks))

    def start(self, rows: Sequence[RowTokens], chunks: Sequence[Chunk] = ()) -> _Done[Choices]:
        """Begins rows, and commits chunks."""
        self._check_start(rows, chunks)
        tokens = sum(len(one.tokens) for one in (*rows, *chunks))
        own = _names(chunk.start for chunk in chunks)
        self._call("start", _names(row.seen for row in rows), len(rows), tokens, own)
        started = []
        for row in rows:
            assert row.used_cells == 0
            state = _Row(row.seen.together, len(row.tokens), blocks=row.blocks)
            self._own(state)
            started.append(state)
        said = self._say(started)
        self._commit(chunks)
        logprobs = np.where(self._finite(rows), said.logprobs, np.float32(np.nan))
        return _Done(
            dataclasses.replace(said, logprobs=logprobs, chunks_finite=self._finite(chunks))
        )

    def _finite(self, read: Sequence[Chunk | RowTokens]) -> NDArray[np.bool_]:
        return np.array([self.spoils.isdisjoint(one.tokens.tolist()) for one in read], np.bool_)

    def more(self, row: RowTokens) -> _Done[Choices]:
        """Goes on reading one question."""
        state = self._row(row.seen, row.blocks)
        assert row.used_cells == state.question_tokens
        assert 1 <= len(row.tokens) <= self._limits.question_tokens
        self._call("more", (row.seen.session,), 1, len(row.tokens))
        state.question_tokens += len(row.tokens)
        state.said, state.done = 0, False
        return _Done(self._say([state]))

    def decode(self, rows: Sequence[RowStep]) -> _Done[Choices]:
        """One answer token of each row."""
        assert len({row.blocks[0] for row in rows}) == len(rows), "a row twice in one step"
        self._check_together([row.seen for row in rows])
        states = [self._row(row.seen, row.blocks) for row in rows]
        for row, state in zip(rows, states, strict=True):
            used = state.question_tokens + state.said - 1
            assert state.done or row.used_cells == used, "a row lost count"
        self._call("decode", _names(row.seen for row in rows), len(rows), len(rows))
        return _Done(self._say(states))

    def score(self, candidates: Sequence[Candidate]) -> _Done[NDArray[np.float32]]:
        """Total log-probabilities."""
        self._check_together([one.seen for one in candidates])
        for one in candidates:
            self._check_seen(one.seen)
        tokens = sum(len(one.tokens) for one in candidates)
        self._call("score", _names(one.seen for one in candidates), len(candidates), tokens)
        for one in candidates:
            assert 1 <= len(one.tokens) <= self._limits.choice_tokens
            if one.used_cells:
                row = self._row(one.seen, one.blocks)
                assert row.question_tokens == one.used_cells, "the question was not read"
        scores = [-abs(len(one.tokens) - one.seen.cells % 10) for one in candidates]
        return _Done(np.array(scores, np.float32))

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
        self._commit([Chunk(start=empty, tokens=cells.arrays["cells"].astype(np.int32))])

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

    def _commit(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            assert len(chunk.tokens) >= 1, "a chunk of nothing"
            self._lengths[chunk.start.session] = chunk.start.cells
            self._check_seen(chunk.start)
            self._lengths[chunk.start.session] += len(chunk.tokens)
            (table,) = chunk.start.tables
            positions = chunk.start.cells + np.arange(len(chunk.tokens))
            blocks = table[positions // BLOCK_CELLS]
            assert (blocks >= 0).all(), "a chunk has no blocks"
            assert positions[-1] < self._limits.session_cells
            self._positions[blocks, positions % BLOCK_CELLS] = positions
            self._tokens[blocks, positions % BLOCK_CELLS] = chunk.tokens

    def _check_start(self, rows: Sequence[RowTokens], chunks: Sequence[Chunk] = ()) -> None:
        seen = [*(row.seen for row in rows), *(chunk.start for chunk in chunks)]
        self._check_together(seen)
        longest = max(len(one.tokens) for one in (*rows, *chunks))
        fits = next(count for size, count in self._limits.start_rows if longest <= size)
        assert len(seen) <= fits, "too many rows for tokens of that length"
        for row in rows:
            self._check_seen(row.seen)
            cells = len(row.blocks) * self._limits.tail_block_cells
            assert len(row.tokens) <= cells, "the question does not fit"

    def _check_together(self, seen: Sequence[Seen]) -> None:
        """Rows of one step."""
        assert 1 <= len(seen) <= self._limits.rows
        looks = [one.together for one in seen]
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
        assert (found == np.arange(seen.cells)).all(), "it sees cells that are not its session's"
        return blocks

    def _own(self, row: _Row) -> None:
        """The row's blocks are its own from now on; whoever had them is gone."""
        for block in row.blocks:
            assert 0 <= block < self._limits.tail_blocks
        for slot, other in tuple(self._rows.items()):
            if set(other.blocks) & set(row.blocks):
                del self._rows[slot]
        self._rows[row.blocks[0]] = row

    def _row(self, seen: Seen, blocks: tuple[int, ...]) -> _Row:
        self._check_seen(seen)
        assert blocks[0] in self._rows, "the row is not there any more: its blocks went to another"
        row = self._rows[blocks[0]]
        assert row.blocks == blocks
        assert row.looks_at == seen.together, "a row looks at other cells than it began with"
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
            gaps=np.array([row.looks_at[1] / 100 for row in rows], np.float32),
            done=np.array([row.done for row in rows], np.bool_),
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


def _names(seen: Iterable[Seen]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(one.session for one in seen))
