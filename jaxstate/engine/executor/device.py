"""One accelerator, as the engine uses it: one pool of cells, real steps.

Comes in: what `Executor` says, in Python numbers and numpy arrays. Goes out: `Pending` results
whose copies to the host are under way. Every upload is explicit, and after `warm_up` nothing
compiles. What the engine should have refused (rows that no declared shape holds, cells to be
fetched that are overwritten) fails an assertion. Does not know: queues, versions, which sessions
there are; so a row that looks at overwritten cells is not noticed here (the fake device notices).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array

from jaxstate.cells.session import SessionState
from jaxstate.cells.tables import BlockCopy, GroupBlock, Seen
from jaxstate.engine.executor.protocol import (
    HostCells,
    Limits,
    Lost,
    Pending,
    RowSizes,
    Saved,
    StepKind,
    StepOutput,
)
from jaxstate.model.bundle import Model
from jaxstate.model.devices import Device, on_its_device, room_on_device
from jaxstate.persist.files import Note, write_snapshot
from jaxstate.persist.snapshot import (
    capture_arrays,
    capture_part,
    cells_fingerprint,
    make_snapshot,
    put_arrays,
    read_snapshot,
)
from jaxstate.steps.checks import padded_stop_ids
from jaxstate.steps.compiled import compilations, compile_all
from jaxstate.steps.engine_steps import EngineSteps, plan_engine
from jaxstate.steps.packing import Row, unpack_choice
from jaxstate.steps.spec import StepSpec

# Steps that are compiled at once, at most: each takes memory, and on a GPU tries kernels out.
_COMPILERS = 4


# What a step costs beside its tokens. Gemma-3-270M on two cores: 55 ms for one token, 1.5 ms for
# each more; Llama-3.1-8B on an H100: 7.7 ms for 16 tokens, 9.0 ms for 128.
_OVERHEAD_TOKENS = {"cpu": 32, "accelerator": 512}


@dataclass(frozen=True, slots=True)
class _Fetch:
    """What a step says of its rows, the last axis of an array on its way to the host."""

    array: Array
    rows: int
    convert: Callable[[np.ndarray], StepOutput]

    def get(self) -> StepOutput:
        """Waits for the device and returns it."""
        return self.convert(jax.device_get(self.array)[..., : self.rows])


class DeviceExecutor:
    """Runs an engine's steps on the device of the parameters; implements `Executor`.

    Args:
        model: whose steps.
        session_cells: capacity of every session.
        cells: of the pool.
        sessions: how many may lie in it at once.
        poison: fills freed blocks with NaN, so that whoever reads them shows it (for tests).

    Raises:
        InvalidInput: `session_cells` is not within 1 .. `model.config.max_context`, does not fit
            into `cells`, or the model has too many end tokens.
        DeviceError: the device has no memory for the pool.
    """

    def __init__(
        self,
        model: Model,
        *,
        session_cells: int,
        cells: int,
        sessions: int = 64,
        poison: bool = False,
    ) -> None:
        self._model = model
        with jax.default_device(model.device):
            self._steps = plan_engine(
                model.config,
                model.dtype,
                model.steps,
                session_cells=session_cells,
                cells=cells,
                sessions=sessions,
            )
            self._stop_ids = jax.device_put(padded_stop_ids(model.stop_ids))
            way_out = "give the engine fewer cells, or a smaller share of the memory"
            with room_on_device(f"a pool of {cells:,} cells", way_out):
                self._pool = self._steps.pool()
                self._rows = self._steps.rows()
        self._poison = poison
        self._limits = _limits(model, self._steps, sessions)
        self.fingerprint = cells_fingerprint(model)

    @property
    def device(self) -> Device:
        """Where everything lies."""
        return self._model.device

    @property
    def limits(self) -> Limits:
        """What one step can take."""
        return self._limits

    def specs(self) -> list[StepSpec]:
        """Every step that can occur."""
        return list(self._steps.specs())

    @on_its_device
    def warm_up(
        self,
        progress: Callable[[int, int], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compiles every step, those that one session and one question need first.

        Args:
            progress: called with (compiled, all) after each.
            stopped: no further step is begun once it returns True.
        """
        # One core is left to whoever uses a step before its turn.
        workers = max(1, min(_COMPILERS, (os.cpu_count() or 1) - 1))
        specs = sorted(self.specs(), key=_need)
        compile_all(specs, progress=progress, stopped=stopped, workers=workers)

    def compilations(self) -> int:
        """Steps compiled so far in this process."""
        return compilations()

    def readable_until(self, seen_cells: int) -> int:
        """The largest length of a session at which `seen_cells` of it can still be looked at."""
        return self._steps.layout.readable_until(seen_cells)

    @on_its_device
    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        """Launches a step."""
        steps, params, stop_ids = self._steps, self._model.params, self._stop_ids
        if kind == "extend":
            self._pool, finite = steps.commit(params, self._pool, rows)
            return _fetch(finite, len(rows), _committed)
        if kind == "score":
            totals = steps.score(params, self._pool, self._rows, rows)
            return _fetch(totals, len(rows), _scored)
        if kind == "start":
            self._pool, self._rows, chosen = steps.start(
                params, self._pool, self._rows, rows, stop_ids
            )
        elif kind == "more":
            (row,) = rows
            self._rows, chosen = steps.more(params, self._pool, self._rows, row, stop_ids)
        else:
            self._rows, chosen = steps.decode(params, self._pool, self._rows, rows, stop_ids)
        return _fetch(chosen, len(rows), _chosen)

    @on_its_device
    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copies blocks, before whatever is launched next."""
        self._pool = self._steps.copy(self._pool, copies)

    @on_its_device
    def freed(self, blocks: Sequence[GroupBlock]) -> None:
        """Nobody has these blocks; whoever reads them from now on is wrong."""
        if self._poison:
            self._pool = self._steps.poison(self._pool, blocks)

    @on_its_device
    def wipe(self, blocks: Sequence[GroupBlock]) -> None:
        """Overwrites blocks that nobody has, so that nothing is left in them."""
        self._pool = self._steps.wipe(self._pool, blocks)

    @on_its_device
    def view(self, seen: Seen) -> SessionState:
        """One session as the functional core knows it; only until the next step that writes."""
        return self._steps.view(self._pool, seen)

    @on_its_device
    def fetch(self, seen: Seen, readable_cells: int) -> HostCells:
        """A session's cells, copied to the host; who sees only `readable_cells` of them finds all
        that it needs there."""
        assert seen.cells <= self.readable_until(readable_cells), "those are overwritten"
        state = self.view(seen)
        arrays = capture_arrays(self._steps.session, state, seen.cells, readable_cells)
        return HostCells(cells=seen.cells, arrays=arrays)

    @on_its_device
    def fetch_part(self, seen: Seen, first: int, last: int) -> HostCells:
        """Cells first .. last - 1 of a session, copied to the host. Layers with a sliding window
        have all that they still need in the last part, and nothing in others."""
        arrays = capture_part(self._steps.session, self.view(seen), first, last)
        return HostCells(cells=last, arrays=arrays)

    @on_its_device
    def place(self, seen: Seen, cells: HostCells) -> None:
        """Writes cells to where a session's table says; as many as it sees."""
        state = put_arrays(self._steps.session, self.view(seen), cells.cells, cells.arrays)
        self._pool = self._steps.put(self._pool, seen, state)

    def save(
        self, path: str | os.PathLike[str], cells: HostCells, notes: Mapping[str, Note]
    ) -> None:
        """Writes cells to a directory; may be called on any thread."""
        capacity = self._limits.session_cells
        snapshot = make_snapshot(
            self._model, cells.arrays, length=cells.cells, cells=capacity, notes=notes
        )
        write_snapshot(path, snapshot)

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a saved session; may be called on any thread."""
        snapshot = read_snapshot(path, self._model, self._limits.session_cells)
        cells = HostCells(cells=snapshot.info.length, arrays=snapshot.arrays)
        return Saved(notes=snapshot.info.notes, cells=cells)

    @on_its_device
    def recover(self) -> Lost:
        """Makes sure, after a step failed, that steps can go on; says what is lost.

        Raises:
            RuntimeError: not even empty pools can be made.
        """
        lost = Lost(rows=_is_lost(self._rows), cells=_is_lost(self._pool))
        if lost.rows:
            self._rows = jax.block_until_ready(self._steps.rows())
        if lost.cells:
            self._pool = jax.block_until_ready(self._steps.pool())
        return lost

    def release(self) -> None:
        """Gives the device's memory back, whoever still holds the engine; nothing is launched after
        it."""
        for leaf in jax.tree.leaves((self._pool, self._rows)):
            leaf.delete()


def _need(spec: StepSpec) -> tuple[int, ...]:
    """What sorts steps by how soon they are needed: those of one row and session, short ones."""
    early = ("pool", "rows", "commit", "start", "decode")
    kind = early.index(spec.kind) if spec.kind in early else len(early)
    return (spec.rows > 1 or kind == len(early), spec.tokens, spec.tail_cells, kind, spec.rows)


def _is_lost(pool: object) -> bool:
    """Whether a step that failed took it over, or its result is an error."""
    try:
        jax.block_until_ready(pool)
    except Exception:
        return True
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(pool))


def _limits(model: Model, steps: EngineSteps, sessions: int) -> Limits:
    sizes, kind = model.steps, "cpu" if model.device.platform == "cpu" else "accelerator"
    return Limits(
        layout=steps.layout,
        sessions=sessions,
        itemsize=model.dtype.itemsize,
        max_context=model.config.max_context,
        extend_tokens=sizes.extend_tokens[-1],
        chunk_rows=steps.chunk_rows,
        step_sessions=sizes.question_rows[-1] if steps.shares_steps else 1,
        session_rows=sizes.session_rows,
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


def _fetch(array: Array, rows: int, convert: Callable[[np.ndarray], StepOutput]) -> _Fetch:
    """Starts the copy to the host, so that `get` finds it there."""
    array.copy_to_host_async()
    return _Fetch(array, rows, convert)


def _chosen(packed: np.ndarray) -> StepOutput:
    chosen = unpack_choice(packed)
    return StepOutput(
        tokens=chosen.tokens,
        logprobs=chosen.logprobs,
        gaps=chosen.gaps,
        done=chosen.done,
        finite=np.isfinite(chosen.logprobs),
    )


def _committed(finite: np.ndarray) -> StepOutput:
    return _without_tokens(np.zeros(len(finite), np.float32), finite)


def _scored(totals: np.ndarray) -> StepOutput:
    return _without_tokens(totals, np.isfinite(totals))


def _without_tokens(logprobs: np.ndarray, finite: np.ndarray) -> StepOutput:
    count = len(finite)
    return StepOutput(
        tokens=np.zeros(count, np.int32),
        logprobs=logprobs,
        gaps=np.zeros(count, np.float32),
        done=np.zeros(count, np.bool_),
        finite=finite,
    )
