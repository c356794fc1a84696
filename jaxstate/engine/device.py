"""One accelerator, as the engine uses it: real sessions, real steps.

Comes in: what `Executor` says, in Python numbers and numpy arrays. Goes out: `Pending` results
whose copies to the host are under way. Every upload is explicit, and after `warm_up` nothing
compiles. What the engine should have refused (too many rows, cells that are no longer there) fails
an assertion. Does not know: queues, versions, whose session it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from jaxstate.cells.session import SessionState
from jaxstate.engine.executor import (
    Candidate,
    Choices,
    Limits,
    Pending,
    RowStep,
    RowTokens,
    Saved,
    Tokens,
)
from jaxstate.engine.sizes import RowSizes
from jaxstate.model.bundle import Model
from jaxstate.persist.files import write_snapshot
from jaxstate.persist.snapshot import capture_state, put_snapshot, read_snapshot
from jaxstate.steps.checks import padded_stop_ids
from jaxstate.steps.compiled import compilations, compile_all
from jaxstate.steps.engine_steps import EngineSteps, plan_engine
from jaxstate.steps.packing import RowInput, unpack_choice
from jaxstate.steps.spec import StepSpec

T = TypeVar("T")
_NO_TOKENS = np.zeros(0, np.int32)
# What a step costs beside its tokens. Gemma-3-270M on two cores: 55 ms for one token, 1.5 ms for
# each more; Llama-3.1-8B on an H100: 7.7 ms for 16 tokens, 9.0 ms for 128.
_OVERHEAD_TOKENS = {"cpu": 32, "accelerator": 512}


@dataclass(frozen=True, slots=True)
class _Session:
    """A session, and its length once every launched step is done."""

    state: SessionState
    cells: int


@dataclass(frozen=True, slots=True)
class _Fetch(Generic[T]):
    """A device array on its way to the host, and what it becomes there."""

    array: Array
    convert: Callable[[np.ndarray], T]

    def get(self) -> T:
        """Waits for the device and returns it."""
        return self.convert(jax.device_get(self.array))


class DeviceExecutor:
    """Runs an engine's steps on the default device; implements `Executor`.

    Args:
        model: whose steps.
        session_cells: capacity of every session.

    Raises:
        InvalidInput: `session_cells` is not within 1 .. `model.config.max_context`, or the model
            has too many end tokens.
    """

    def __init__(self, model: Model, *, session_cells: int) -> None:
        self._model = model
        self._steps = plan_engine(model.config, model.dtype, model.steps, session_cells)
        self._stop_ids = jax.device_put(padded_stop_ids(model.stop_ids))
        self._pool = self._steps.rows()
        self._sessions: dict[int, _Session] = {}
        self._limits = _limits(model, self._steps)

    @property
    def limits(self) -> Limits:
        """What one step can take."""
        return self._limits

    def specs(self) -> list[StepSpec]:
        """Every step that can occur."""
        return list(self._steps.specs())

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compiles every step; `progress` is called with (compiled, all) after each."""
        compile_all(self.specs(), progress=progress)

    def compilations(self) -> int:
        """Steps compiled so far in this process."""
        return compilations()

    def readable_until(self, seen_cells: int) -> int:
        """The largest length of a session at which `seen_cells` of it can still be looked at."""
        return self._steps.layout.readable_until(seen_cells)

    def session_bytes(self) -> int:
        """Bytes of one session's cells."""
        return self._steps.layout.bytes_per_session(self._model.dtype.itemsize)

    def open(self, session: int) -> None:
        """Makes an empty session."""
        self._put_new(session, _Session(self._steps.open(), 0))

    def close(self, session: int) -> None:
        """Forgets a session, also one that never came to be; steps under way finish."""
        self._sessions.pop(session, None)

    def states(self) -> dict[int, SessionState]:
        """Every session's state; only to be looked at (a later `extend` takes it over)."""
        return {name: session.state for name, session in self._sessions.items()}

    def copy(self, session: int, into: int) -> None:
        """Makes a session that is equal to another, and from then on its own."""
        old = self._sessions[session]
        self._put_new(into, _Session(self._steps.copy(old.state), old.cells))

    def extend(self, session: int, tokens: Tokens) -> Pending[None]:
        """Commits 1 to `limits.extend_tokens` tokens."""
        old = self._sessions[session]
        cells = old.cells + len(tokens)
        assert cells <= self._limits.session_cells, f"{cells} of {self._limits.session_cells} cells"
        state, length = self._steps.extend(self._model.params, old.state, tokens)
        self._sessions[session] = _Session(state, cells)
        return _fetch(length, _nothing)

    def start(self, session: int, seen_cells: int, rows: Sequence[RowTokens]) -> Pending[Choices]:
        """Begins rows: reads their first tokens and chooses the token after them."""
        state = self._seen(session, seen_cells)
        inputs = [_input(row) for row in rows]
        self._pool, chosen, _ = self._steps.start(
            self._model.params, state, self._pool, inputs, seen_cells, self._stop_ids
        )
        return _choices(chosen, len(rows))

    def more(self, session: int, seen_cells: int, row: RowTokens) -> Pending[Choices]:
        """Goes on reading one row's question."""
        state = self._seen(session, seen_cells)
        self._pool, chosen = self._steps.more(
            self._model.params, state, self._pool, _input(row), seen_cells, self._stop_ids
        )
        return _choices(chosen, 1)

    def decode(self, session: int, seen_cells: int, rows: Sequence[RowStep]) -> Pending[Choices]:
        """Reads back what each row chose last and chooses the next; done rows stay done."""
        state = self._seen(session, seen_cells)
        inputs = [_input(row) for row in rows]
        self._pool, chosen = self._steps.decode(
            self._model.params, state, self._pool, inputs, seen_cells, self._stop_ids
        )
        return _choices(chosen, len(rows))

    def score(
        self, session: int, seen_cells: int, candidates: Sequence[Candidate]
    ) -> Pending[NDArray[np.float32]]:
        """Float32 [n]: each candidate's total log-probability after its question."""
        state = self._seen(session, seen_cells)
        inputs = [_scored(candidate) for candidate in candidates]
        totals = self._steps.score(self._model.params, state, self._pool, inputs, seen_cells)
        return _fetch(totals, lambda array: array[: len(inputs)])

    def logits(
        self, session: int, seen_cells: int, rows: Sequence[RowTokens]
    ) -> Pending[NDArray[np.float32]]:
        """Float32 [n, V]: log-probabilities of what would follow; rows need no blocks."""
        state = self._seen(session, seen_cells)
        inputs = [RowInput(blocks=(), tokens=row.tokens) for row in rows]
        self._pool, _, logits = self._steps.start(
            self._model.params, state, self._pool, inputs, seen_cells, self._stop_ids
        )
        return _fetch(logits, lambda array: _log_softmax(array[: len(inputs)]))

    def capture(
        self, session: int, notes: dict[str, str | int]
    ) -> Callable[[str | os.PathLike[str]], None]:
        """Copies a session to the host; what it returns writes it to a directory, on any thread."""
        snapshot = capture_state(self._model, self._sessions[session].state, notes=notes)
        return lambda path: write_snapshot(path, snapshot)

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a saved session; the one method that may be called on any thread."""
        snapshot = read_snapshot(path, self._model, self._limits.session_cells)

        def place(session: int) -> int:
            state = put_snapshot(snapshot, self._model, self._steps.open())
            self._put_new(session, _Session(state, snapshot.info.length))
            return snapshot.info.length

        return Saved(notes=snapshot.info.notes, place=place)

    def recover(self) -> bool:
        """Makes sure, after a step failed, that rows can begin; whether those under way are lost.

        Raises:
            RuntimeError: not even an empty pool can be made.
        """
        try:
            jax.block_until_ready(self._pool)
        except Exception:  # taken over by the step that failed, or its result is an error
            self._pool = jax.block_until_ready(self._steps.rows())
            return True
        return False

    def _put_new(self, name: int, session: _Session) -> None:
        assert name not in self._sessions, f"there is a session {name}"
        self._sessions[name] = session

    def _seen(self, session: int, seen_cells: int) -> SessionState:
        """A session whose first `seen_cells` can still be looked at."""
        found = self._sessions[session]
        until = self.readable_until(seen_cells)
        assert seen_cells <= found.cells <= until, (
            f"{seen_cells} cells are to be seen; the session has {found.cells}, and {until} at most"
        )
        return found.state


def _limits(model: Model, steps: EngineSteps) -> Limits:
    sizes, kind = model.steps, "cpu" if jax.default_backend() == "cpu" else "accelerator"
    return Limits(
        session_cells=steps.layout.cells,
        max_context=model.config.max_context,
        extend_tokens=sizes.extend_tokens[-1],
        question_tokens=steps.question_tokens[-1],
        choice_tokens=sizes.choice_tokens[-1],
        rows=sizes.question_rows[-1],
        row_sizes=RowSizes(sizes=sizes.question_rows, overhead_tokens=_OVERHEAD_TOKENS[kind]),
        start_rows=steps.start_rows,
        tail_cells=sizes.tail_cells[-1],
        tail_blocks=sizes.tail_blocks,
        tail_block_cells=sizes.tail_block_cells,
        idle_tokens=2 * sizes.extend_tokens[-1],
        # A CPU computes on the threads that would wait for it.
        steps_ahead=0 if kind == "cpu" else 1,
    )


def _input(row: RowTokens | RowStep) -> RowInput:
    return RowInput(
        blocks=row.blocks,
        tokens=row.tokens if isinstance(row, RowTokens) else _NO_TOKENS,
        used_cells=row.used_cells,
        sampling=row.sampling,
    )


def _scored(candidate: Candidate) -> RowInput:
    """What is read of a choice: the question's last token, and its own."""
    tokens = np.concatenate([np.array([candidate.last_token], np.int32), candidate.tokens])
    return RowInput(blocks=candidate.blocks, tokens=tokens, used_cells=candidate.used_cells)


def _fetch(array: Array, convert: Callable[[np.ndarray], T]) -> _Fetch[T]:
    """Starts the copy to the host, so that `get` finds it there."""
    array.copy_to_host_async()
    return _Fetch(array, convert)


def _nothing(_: np.ndarray) -> None:
    """The result of waiting."""


def _choices(packed: Array, count: int) -> _Fetch[Choices]:
    def convert(array: np.ndarray) -> Choices:
        chosen = unpack_choice(array[:, :count])
        return Choices(
            tokens=chosen.tokens, logprobs=chosen.logprobs, gaps=chosen.gaps, done=chosen.done
        )

    return _fetch(packed, convert)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(np.float32)
