"""One executable for each step and shape, compiled ahead of time.

Comes in: a `StepSpec`, which names a step and fixes every shape. Goes out: its executable, which
refuses any other shape and never compiles again. Compiling is a pure function of the spec, so the
table is one for the process, shared by all models of one config, as jit's own cache would be.
`SessionSteps` is the typed face of that table for sessions that own their pool. Does not know:
values, files, text.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.layout import PoolLayout, plan_layout
from jaxstate.cells.pool import GroupCells
from jaxstate.cells.session import SessionState
from jaxstate.config import ModelConfig, StepConfig
from jaxstate.model.backends import Backend, choose_backend
from jaxstate.model.decoder import Tail
from jaxstate.model.devices import Device, current_device
from jaxstate.steps.buckets import question_sizes
from jaxstate.steps.programs import SESSION_PROGRAMS
from jaxstate.steps.query import Chosen
from jaxstate.steps.row_programs import ROW_PROGRAMS
from jaxstate.steps.sampling import SamplingRows
from jaxstate.steps.spec import Program, StepKind, StepSpec
from jaxstate.weights import Params

_PROGRAMS: Mapping[StepKind, Callable[[StepSpec], Program]] = MappingProxyType(
    {**SESSION_PROGRAMS, **ROW_PROGRAMS}
)


class _Step:
    """An executable that is compiled once, by whoever needs it first; others wait for it."""

    def __init__(self, spec: StepSpec) -> None:
        self._spec, self._lock = spec, threading.Lock()
        self._executable: Callable[..., Any] | None = None

    def executable(self) -> Callable[..., Any]:
        if self._executable is None:
            with self._lock:
                if self._executable is None:
                    self._executable = _compile(self._spec)
        return self._executable


@functools.cache
def _step(spec: StepSpec, device: Device) -> _Step:
    """Of one device: an executable runs where it was compiled for."""
    del device
    return _Step(spec)


def _compile(spec: StepSpec) -> Callable[..., Any]:
    program = _PROGRAMS[spec.kind](spec)
    jitted = jax.jit(program.function, donate_argnums=program.donated)
    return jitted.lower(*program.arguments).compile()


def compiled(spec: StepSpec) -> Callable[..., Any]:
    """The executable of that step and shape on this thread's device; compiles it on the first
    call."""
    return _step(spec, current_device()).executable()


def forget_compiled() -> None:
    """Lets go of all executables; those that are used again are compiled again."""
    _step.cache_clear()


def compile_all(
    specs: Sequence[StepSpec],
    *,
    progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    workers: int = 2,
) -> None:
    """Compiles those that are not compiled yet, in that order.

    Args:
        specs: which executables.
        progress: called with (done, all) after each.
        stopped: nothing more is begun once it returns True.
        workers: how many are compiled at once. XLA compiles outside the interpreter lock: two
            overlap one's tracing with the other.
    """

    device = current_device()

    def one(spec: StepSpec) -> None:
        if not stopped():
            with jax.default_device(device):
                compiled(spec)

    with ThreadPoolExecutor(workers, thread_name_prefix="jaxstate-compile") as pool:
        for done, _ in enumerate(pool.map(one, specs), start=1):
            if progress is not None and not stopped():
                progress(done, len(specs))


def compilations() -> int:
    """Executables compiled so far in this process."""
    return _step.cache_info().misses


def plan_steps(
    config: ModelConfig, dtype: jnp.dtype, steps: StepConfig, cells: int, slack_cells: int = 0
) -> SessionSteps:
    """The steps of sessions of that capacity and slack, on this thread's device; compiles nothing.

    Raises:
        InvalidInput: `cells` is not within 1 .. `config.max_context`, or `steps` asks for a backend
            that does not work here.
    """
    return _planned(config, dtype, steps, cells, slack_cells, current_device())


@functools.lru_cache(maxsize=None, typed=True)
def _planned(
    config: ModelConfig,
    dtype: jnp.dtype,
    steps: StepConfig,
    cells: int,
    slack_cells: int,
    device: Device,
) -> SessionSteps:
    del device  # it decides about the backend
    layout = plan_layout(
        config, cells=cells, block_cells=steps.block_cells, slack_cells=slack_cells
    )
    # What no step depends on would only keep models from sharing executables.
    config = dataclasses.replace(config, max_context=1, bos_id=None, eos_ids=())
    return SessionSteps(
        config=config,
        dtype=jnp.dtype(dtype),
        layout=layout,
        steps=steps,
        backend=choose_backend(config, dtype, steps),
    )


@dataclass(frozen=True, kw_only=True)
class SessionSteps:
    """Every step of sessions with one layout, each call through its compiled executable.

    Attributes:
        config: the model's.
        dtype: of parameters and cells.
        layout: the sessions' shapes.
        steps: the declared sizes.
        backend: what computes their attention.
    """

    config: ModelConfig
    dtype: jnp.dtype
    layout: PoolLayout
    steps: StepConfig
    backend: Backend = "reference"

    def specs(self) -> Iterator[StepSpec]:
        """All that can occur; compiling these is a complete warm-up."""
        yield from self.reading_specs()
        for cells in self.steps.tail_cells:
            yield from self.asking_specs(cells)
        yield self._spec("draw")
        yield self._spec("ready")
        yield from self.copying_specs()

    def open_spec(self) -> StepSpec:
        """What opening a session needs."""
        return self._spec("open")

    def reading_specs(self) -> Iterator[StepSpec]:
        """What opening a session and reading into it needs."""
        yield self.open_spec()
        for tokens in self.steps.extend_tokens:
            yield self._spec("extend", tokens=tokens)

    def copying_specs(self) -> Iterator[StepSpec]:
        """What saving and restoring a session needs."""
        for group in range(len(self.layout.groups)):
            yield from (self._spec("read", group=group), self._spec("write", group=group))

    def asking_specs(self, tail_cells: int) -> Iterator[StepSpec]:
        """What questions with a tail of that size need."""
        sizes = question_sizes(tail_cells, self.steps)
        for tokens in sizes:
            yield self._spec("ask", tokens=tokens, tail_cells=tail_cells)
        # A second chunk of a question occurs only where the first cannot fill the tail.
        more = sizes if sizes[-1] < tail_cells else ()
        for tokens in sorted({1, *more}):
            yield self._spec("query", tokens=tokens, tail_cells=tail_cells)

    def open(self) -> SessionState:
        """An empty session."""
        return compiled(self.open_spec())()

    def extend(
        self, params: Params, state: SessionState, tokens: Int[Array, " T"], count: Int[Array, ""]
    ) -> SessionState:
        """Commits the first `count` of T tokens; takes `state` over."""
        return compiled(self._spec("extend", tokens=tokens.shape[0]))(params, state, tokens, count)

    def ask(
        self,
        params: Params,
        state: SessionState,
        tail_cells: int,
        tokens: Int[Array, "1 1 T"],
        count: Int[Array, "1 1"],
        stop_ids: Int[Array, " n"],
    ) -> tuple[Tail, Chosen]:
        """Reads the first T tokens of a question into a tail of M cells and chooses the next."""
        spec = self._spec("ask", tokens=tokens.shape[2], tail_cells=tail_cells)
        return compiled(spec)(params, state, tokens, count, stop_ids)

    def query(
        self,
        params: Params,
        state: SessionState,
        tail: Tail,
        tokens: Int[Array, "1 1 T"],
        count: Int[Array, "1 1"],
        done: Bool[Array, "1 1"],
        stop_ids: Int[Array, " n"],
    ) -> tuple[Tail, Chosen]:
        """Reads T tokens of a question and chooses the next; takes `tail` over, not `state`."""
        spec = self._spec("query", tokens=tokens.shape[2], tail_cells=tail.cells.shape[3])
        return compiled(spec)(params, state, tail, tokens, count, done, stop_ids)

    def draw(
        self,
        chosen: Chosen,
        draw: Int[Array, "1 1"],
        done: Bool[Array, "1 1"],
        rows: SamplingRows,
        stop_ids: Int[Array, " n"],
    ) -> Chosen:
        """Chooses again, by `rows`, from what a step chose from; `done` is from before it."""
        return compiled(self._spec("draw"))(chosen.logits, draw, done, rows, stop_ids)

    def ready(self, params: Params, state: SessionState) -> Float[Array, " V"]:
        """Logits after the last committed token."""
        return compiled(self._spec("ready"))(params, state.ready)

    def read(
        self, group: int, cells: GroupCells, blocks: Int[Array, " n"]
    ) -> Float[Array, "L 2 n C K H"]:
        """Copies of `MOVED_BLOCKS` blocks of a group, layer by layer."""
        return compiled(self._spec("read", group=group))(cells, blocks)

    def write(
        self,
        group: int,
        cells: GroupCells,
        blocks: Int[Array, " n"],
        content: Float[Array, "L 2 n C K H"],
    ) -> GroupCells:
        """A group with `MOVED_BLOCKS` blocks replaced; takes `cells` over."""
        return compiled(self._spec("write", group=group))(cells, blocks, content)

    def _spec(
        self, kind: StepKind, *, tokens: int = 0, tail_cells: int = 0, group: int = 0
    ) -> StepSpec:
        return StepSpec(
            kind=kind,
            config=self.config,
            dtype=self.dtype,
            backend=self.backend,
            layout=self.layout,
            tokens=tokens,
            tail_cells=tail_cells,
            group=group,
        )
