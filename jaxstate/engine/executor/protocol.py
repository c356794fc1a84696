"""What the engine asks of an accelerator, and nothing else: the seam between decisions and devices.

Comes in: tokens, tables and block numbers, as plain Python and numpy. Goes out: `Pending` results,
so that a step can be launched before the last one's result is fetched. `DeviceExecutor` runs real
steps, `jaxstate.testing.FakeExecutor` does arithmetic that can be checked by hand. Does not know:
text, queues, versions, urgency, and which sessions there are: it has a pool of blocks, and whoever
calls says where a session's cells lie (`Seen`).

A *row* is one question under way. Its private cells lie in tail blocks that the engine hands out;
the first of them also names the row on the device, so a block belongs to one row at a time. Rows of
several sessions may share a step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import PoolLayout
from jaxstate.cells.tables import BlockCopy, GroupBlock, Seen
from jaxstate.persist.files import Arrays, Note
from jaxstate.steps.packing import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSizes:
    """The sizes in which steps over rows come, and what a step costs.

    Attributes:
        sizes: numbers of rows, ascending from 1; fewer are padded to the next.
        overhead_tokens: a step takes as long as reading so many tokens, beside the tokens of its
            padded rows (reading the weights, above all).
    """

    sizes: tuple[int, ...]
    overhead_tokens: int

    def take(self, waiting: int, tokens: int, most: int) -> int:
        """How many rows of so many tokens to take: as many as make a row cheapest.

        Nine rows in a step for 64 pay for 55 that are padding: eight first, then one, cost less.
        But rows never go one by one where several can go together and read their session once.

        Args:
            waiting: rows that there are, >= 1.
            tokens: of the longest, padded, >= 1.
            most: rows that the step may have, >= 1.
        """
        fitting = [size for size in self.sizes if size <= most]
        several = [size for size in fitting if size > 1] if waiting > 1 else []
        cheapest = min(
            several or fitting, key=lambda size: (self._cost_per_row(size, waiting, tokens), -size)
        )
        return min(waiting, cheapest)

    def _cost_per_row(self, size: int, waiting: int, tokens: int) -> float:
        return (self.overhead_tokens + size * tokens) / min(waiting, size)


Tokens = NDArray[np.int32]


StepKind = Literal["extend", "start", "more", "decode", "score"]


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def size_for(tokens: int, sizes: Sequence[tuple[int, T]]) -> tuple[int, T]:
    """The smallest of ascending sizes that so many tokens fit in, with what is declared for it; the
    caller has seen to it that there is one."""
    return next(one for one in sizes if tokens <= one[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one step can take.

    Attributes:
        layout: of every session, and of the pool that they share.
        sessions: how many may lie in the pool at once.
        itemsize: bytes of one number of a cell.
        max_context: positions that the model was made for.
        extend_tokens: tokens of one chunk at most.
        chunk_rows: (tokens, sizes), ascending in tokens up to `extend_tokens`: chunks of at most so
            many tokens are read together in these numbers.
        step_sessions: sessions that one step may serve; 1 if steps are not shared.
        session_rows: rows of each session at most, in a step that serves several.
        question_tokens: tokens that one row reads in one step at most.
        choice_tokens: tokens of one choice at most.
        rows: rows of one step at most.
        row_sizes: in which numbers of rows steps come.
        start_rows: (tokens, rows), ascending in tokens up to `question_tokens`: one `start` takes
            so many rows of at most so many tokens.
        tail_cells: cells of one row at most.
        tail_blocks: blocks that all rows share.
        tail_block_cells: cells of each.
        idle_tokens: padded tokens of an idle step at most, so that an ask never waits long for one.
        steps_ahead: steps that may be launched before the last one's result is fetched.
    """

    layout: PoolLayout
    sessions: int
    itemsize: int
    max_context: int
    extend_tokens: int
    chunk_rows: tuple[tuple[int, tuple[int, ...]], ...]
    step_sessions: int
    session_rows: int
    question_tokens: int
    choice_tokens: int
    rows: int
    row_sizes: RowSizes
    start_rows: tuple[tuple[int, int], ...]
    tail_cells: int
    tail_blocks: int
    tail_block_cells: int
    idle_tokens: int
    steps_ahead: int

    @property
    def session_cells(self) -> int:
        """Capacity of every session."""
        return self.layout.cells

    def idle_start(self, tokens: int) -> tuple[int, int]:
        """To how many tokens a question is padded, and how many may begin in one idle step."""
        size, rows = size_for(tokens, self.start_rows)
        return size, min(rows, self.idle_rows(size))

    def idle_rows(self, tokens: int) -> int:
        """Rows of so many tokens that an idle step may have."""
        return max(1, self.idle_tokens // tokens)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepOutput:
    """What a step says of its rows, in their order.

    Attributes:
        tokens: int32 [n], chosen after each row.
        logprobs: float32 [n], of those tokens under the plain softmax; where answers are scored,
            the total of each.
        gaps: float32 [n], the largest logit minus the second largest.
        done: bool [n], a stop token was chosen now or before.
        finite: bool [n], whether the numbers of each row are all finite. Where they are not, the
            others mean nothing.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    gaps: NDArray[np.float32]
    done: NDArray[np.bool_]
    finite: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostCells:
    """A session's cells on the host, all that it still needs.

    Attributes:
        cells: how many it has.
        arrays: of every layer, as a snapshot holds them.
    """

    cells: int
    arrays: Arrays

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saved:
    """A saved session that was read and checked, and is on the host.

    Attributes:
        notes: that were kept with it.
        cells: its cells.
    """

    notes: Mapping[str, object]
    cells: HostCells


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What a step that failed took with it: the rows under way, the cells of all sessions."""

    rows: bool
    cells: bool


class Pending(Protocol[T_co]):
    """A launched step's result."""

    def get(self) -> T_co:
        """Waits for the device and returns it."""
        ...


class Executor(Protocol):
    """One accelerator with a pool of blocks. One thread calls it; steps are done in order.

    A row may look at fewer cells than its session has by now; `readable_until` says how far the
    session may have grown.
    """

    @property
    def limits(self) -> Limits:
        """What one step can take."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the model, its tokenizer and the layout of cells: cells of another mean nothing."""
        ...

    def readable_until(self, seen_cells: int) -> int:
        """The largest length of a session at which `seen_cells` of it can still be looked at."""
        ...

    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        """Launches a step.

        Args:
            kind: `extend` commits a chunk of each of several sessions; `start` begins questions and
                commits chunks beside them; `more` goes on reading one question; `decode` reads back
                what each row chose last and chooses the next (done rows stay done); `score` adds up
                what given answers have after their questions.
            rows: of the step, chunks last.
        """
        ...

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copies blocks, before whatever is launched next."""
        ...

    def freed(self, blocks: Sequence[GroupBlock]) -> None:
        """Nobody has these blocks; whoever reads them from now on is wrong."""
        ...

    def wipe(self, blocks: Sequence[GroupBlock]) -> None:
        """Overwrites blocks that nobody has, so that nothing is left in them."""
        ...

    def fetch(self, seen: Seen, readable_cells: int) -> HostCells:
        """A session's cells, copied to the host; who sees only `readable_cells` of them finds all
        that it needs there."""
        ...

    def fetch_part(self, seen: Seen, first: int, last: int) -> HostCells:
        """Cells first .. last - 1 of a session, copied to the host. Layers with a sliding window
        have all that they still need in the last part, and nothing in others."""
        ...

    def place(self, seen: Seen, cells: HostCells) -> None:
        """Writes cells to where a session's table says; as many as it sees."""
        ...

    def save(
        self, path: str | os.PathLike[str], cells: HostCells, notes: Mapping[str, Note]
    ) -> None:
        """Writes cells to a directory; may be called on any thread."""
        ...

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a saved session; may be called on any thread."""
        ...

    def recover(self) -> Lost:
        """Makes sure, after a step failed, that steps can go on; says what is lost.

        A step takes the pools that it writes over, so one that fails may take them with it.
        """
        ...

    def release(self) -> None:
        """Gives the device's memory back; nothing is launched after it."""
        ...

    def compilations(self) -> int:
        """Steps compiled so far in this process."""
        ...
