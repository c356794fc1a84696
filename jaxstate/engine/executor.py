"""What the engine asks of an accelerator, and nothing else: the seam between decisions and devices.

Comes in: tokens and block numbers, as plain Python and numpy. Goes out: `Pending` results, so that
a step can be launched before the last one's result is fetched. `DeviceExecutor` runs real steps,
`jaxstate.testing.FakeExecutor` does arithmetic that can be checked by hand. Does not know: text,
queues, versions, urgency.

A *row* is one question under way. Its private cells lie in tail blocks that the engine hands out;
the first of them also names the row on the device, so a block belongs to one row at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxstate.engine.sizes import RowSizes
from jaxstate.records import Sampling

Tokens = NDArray[np.int32]
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one step can take.

    Attributes:
        session_cells: capacity of every session.
        max_context: positions that the model was made for.
        extend_tokens: tokens of one `extend` at most.
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

    session_cells: int
    max_context: int
    extend_tokens: int
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

    def idle_start(self, tokens: int) -> tuple[int, int]:
        """To how many tokens a question is padded, and how many may begin in one idle step."""
        size, rows = next(one for one in self.start_rows if tokens <= one[0])
        return size, min(rows, self.idle_rows(size))

    def idle_rows(self, tokens: int) -> int:
        """Rows of so many tokens that an idle step may have."""
        return max(1, self.idle_tokens // tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTokens:
    """Tokens that one row reads.

    Attributes:
        blocks: the row's tail blocks, enough for the cells in use and these.
        used_cells: of its tail so far.
        tokens: int32 [n], n >= 1.
        sampling: how the token after them is chosen.
    """

    blocks: tuple[int, ...]
    used_cells: int
    tokens: Tokens
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStep:
    """One row that reads back the token it chose last.

    Attributes:
        blocks: the row's tail blocks.
        used_cells: of its tail so far; the token becomes one more.
        sampling: how the next token is chosen.
    """

    blocks: tuple[int, ...]
    used_cells: int
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One given answer to be scored after a row's question.

    Attributes:
        blocks: the row's tail blocks; several candidates may share them.
        used_cells: of the tail: the question without its last token.
        last_token: the question's last token.
        tokens: int32 [n], n >= 1: the candidate.
    """

    blocks: tuple[int, ...]
    used_cells: int
    last_token: int
    tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """What a step chose, row by row, in the order of its rows.

    Attributes:
        tokens: int32 [n].
        logprobs: float32 [n], of those tokens under the plain softmax.
        gaps: float32 [n], the largest logit minus the second largest.
        done: bool [n], a stop token was chosen now or before.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    gaps: NDArray[np.float32]
    done: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saved:
    """A saved session that was read and checked, and is on the host.

    Attributes:
        notes: that were kept with it.
        place: makes a session of that name from it, and returns its cells in use.
    """

    notes: Mapping[str, object]
    place: Callable[[int], int]


class Pending(Protocol[T_co]):
    """A launched step's result."""

    def get(self) -> T_co:
        """Waits for the device and returns it."""
        ...


class Executor(Protocol):
    """One accelerator with its sessions. One thread calls it.

    Sessions are named by integers that the engine never reuses. `seen_cells` is how much of a
    session a row may look at; it may be less than the session holds (`readable_until` says for how
    long).
    """

    @property
    def limits(self) -> Limits:
        """What one step can take."""
        ...

    def readable_until(self, seen_cells: int) -> int:
        """The largest length of a session at which `seen_cells` of it can still be looked at."""
        ...

    def session_bytes(self) -> int:
        """Bytes of one session's cells."""
        ...

    def open(self, session: int) -> None:
        """Makes an empty session."""
        ...

    def close(self, session: int) -> None:
        """Forgets a session, also one that never came to be; steps under way finish."""
        ...

    def copy(self, session: int, into: int) -> None:
        """Makes a session that is equal to another, and from then on its own."""
        ...

    def extend(self, session: int, tokens: Tokens) -> Pending[None]:
        """Commits 1 to `limits.extend_tokens` tokens."""
        ...

    def start(self, session: int, seen_cells: int, rows: Sequence[RowTokens]) -> Pending[Choices]:
        """Begins rows: reads their first tokens and chooses the token after them."""
        ...

    def more(self, session: int, seen_cells: int, row: RowTokens) -> Pending[Choices]:
        """Goes on reading one row's question."""
        ...

    def decode(self, session: int, seen_cells: int, rows: Sequence[RowStep]) -> Pending[Choices]:
        """Reads back what each row chose last and chooses the next; done rows stay done."""
        ...

    def score(
        self, session: int, seen_cells: int, candidates: Sequence[Candidate]
    ) -> Pending[NDArray[np.float32]]:
        """Float32 [n]: each candidate's total log-probability after its question."""
        ...

    def logits(
        self, session: int, seen_cells: int, rows: Sequence[RowTokens]
    ) -> Pending[NDArray[np.float32]]:
        """Float32 [n, V]: log-probabilities of what would follow; rows need no blocks."""
        ...

    def capture(
        self, session: int, notes: dict[str, str | int]
    ) -> Callable[[str | os.PathLike[str]], None]:
        """Copies a session to the host; what it returns writes it to a directory, on any thread."""
        ...

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a saved session; the one method that may be called on any thread."""
        ...

    def recover(self) -> bool:
        """Makes sure, after a step failed, that rows can begin; whether those under way are lost.

        A step takes the pool of all rows over, so one that fails may take them with it.
        """
        ...

    def compilations(self) -> int:
        """Steps compiled so far in this process."""
        ...
