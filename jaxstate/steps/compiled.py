"""One executable for each step and shape, compiled ahead of time.

Comes in: a `StepSpec`, which names a step and fixes every shape. Goes out: its executable, which
refuses any other shape and never compiles again. Compiling is a pure function of the spec, so the
table is `functools.cache`, shared by all models of one config, as jit's own cache would be.
`SessionSteps` is the typed face of that table for sessions that own their pool. Does not know:
values, files, text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.layout import PoolLayout, plan_layout
from jaxstate.cells.pool import read_blocks, write_blocks
from jaxstate.cells.session import SessionState, as_context, new_session
from jaxstate.config import ModelConfig, StepConfig
from jaxstate.model.decoder import Decoder, Tail, logits_of
from jaxstate.model.params import abstract_params
from jaxstate.records import Sampling
from jaxstate.steps.buckets import question_sizes
from jaxstate.steps.extend import extend_step
from jaxstate.steps.query import Chosen, ask_step, empty_tail, query_step
from jaxstate.steps.sampling import SamplingRows, sampling_rows
from jaxstate.weights import Params

StepKind = Literal["open", "extend", "ask", "query", "ready", "read", "write"]

# Stop tokens of one question, padded with -1; families have one to three.
MAX_STOP_IDS = 8
# Blocks that one call moves between the pool and the host.
COPY_BLOCKS = 16


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """Names one executable.

    Attributes:
        kind: which step.
        config: the model's.
        dtype: of parameters and cells.
        layout: the session's shapes.
        tokens: T, where the step takes tokens.
        tail_cells: M, where it takes a tail.
        blocks: P of the pool, where it copies blocks.
    """

    kind: StepKind
    config: ModelConfig
    dtype: jnp.dtype
    layout: PoolLayout
    tokens: int = 0
    tail_cells: int = 0
    blocks: int = 0


@dataclass(frozen=True)
class _Program:
    """A function to compile: its argument shapes and which of them it takes over."""

    function: Callable[..., Any]
    arguments: tuple[object, ...]
    donated: tuple[int, ...] = ()


@functools.cache
def compiled(spec: StepSpec) -> Callable[..., Any]:
    """The executable of that step and shape; compiles it on the first call."""
    program = _BUILDERS[spec.kind](spec)
    return (
        jax.jit(program.function, donate_argnums=program.donated)
        .lower(*program.arguments)
        .compile()
    )


def compile_all(
    specs: Sequence[StepSpec], *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Compiles those that are not compiled yet.

    Args:
        specs: which executables.
        progress: called with (done, all) after each.
    """
    # XLA compiles outside the interpreter lock: two at a time overlap one's tracing with the other.
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done, _ in enumerate(pool.map(compiled, specs), start=1):
            if progress is not None:
                progress(done, len(specs))


def plan_steps(
    config: ModelConfig, dtype: jnp.dtype, steps: StepConfig, cells: int
) -> SessionSteps:
    """The steps of sessions of that capacity; compiles nothing.

    Raises:
        InvalidInput: `cells` is not within 1 .. `config.max_context`.
    """
    layout = plan_layout(config, cells=cells, block_cells=steps.block_cells)
    # What no step depends on would only keep models from sharing executables.
    config = dataclasses.replace(config, max_context=1, bos_id=None, eos_ids=())
    return SessionSteps(config=config, dtype=jnp.dtype(dtype), layout=layout, steps=steps)


@dataclass(frozen=True, kw_only=True)
class SessionSteps:
    """Every step of sessions with one layout, each call through its compiled executable.

    Attributes:
        config: the model's.
        dtype: of parameters and cells.
        layout: the sessions' shapes.
        steps: the declared sizes.
    """

    config: ModelConfig
    dtype: jnp.dtype
    layout: PoolLayout
    steps: StepConfig

    def specs(self) -> Iterator[StepSpec]:
        """All that can occur; compiling these is a complete warm-up."""
        yield from self.reading_specs()
        for cells in self.steps.tail_cells:
            yield from self.asking_specs(cells)
        yield self._spec("ready")
        for blocks in sorted({group.table_width for group in self.layout.groups}):
            yield from (self._spec("read", blocks=blocks), self._spec("write", blocks=blocks))

    def reading_specs(self) -> Iterator[StepSpec]:
        """What opening a session and reading into it needs."""
        yield self._spec("open")
        for tokens in self.steps.extend_tokens:
            yield self._spec("extend", tokens=tokens)

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
        return compiled(self._spec("open"))()

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
        rows: SamplingRows,
        stop_ids: Int[Array, " n"],
    ) -> tuple[Tail, Chosen]:
        """Reads the first T tokens of a question into a tail of M cells and chooses the next."""
        spec = self._spec("ask", tokens=tokens.shape[2], tail_cells=tail_cells)
        return compiled(spec)(params, state, tokens, count, rows, stop_ids)

    def query(
        self,
        params: Params,
        state: SessionState,
        tail: Tail,
        tokens: Int[Array, "1 1 T"],
        count: Int[Array, "1 1"],
        done: Bool[Array, "1 1"],
        rows: SamplingRows,
        stop_ids: Int[Array, " n"],
    ) -> tuple[Tail, Chosen]:
        """Reads T tokens of a question and chooses the next; takes `tail` over, not `state`."""
        spec = self._spec("query", tokens=tokens.shape[2], tail_cells=tail.keys[0].shape[2])
        return compiled(spec)(params, state, tail, tokens, count, done, rows, stop_ids)

    def ready(self, params: Params, state: SessionState) -> Float[Array, " V"]:
        """Logits after the last committed token."""
        return compiled(self._spec("ready"))(params, state.ready)

    def read(
        self, cells: Float[Array, "P C K H"], blocks: Int[Array, " n"]
    ) -> Float[Array, "n C K H"]:
        """Copies of `COPY_BLOCKS` blocks of a layer."""
        return compiled(self._spec("read", blocks=cells.shape[0]))(cells, blocks)

    def write(
        self,
        cells: Float[Array, "P C K H"],
        blocks: Int[Array, " n"],
        content: Float[Array, "n C K H"],
    ) -> Float[Array, "P C K H"]:
        """A layer with `COPY_BLOCKS` blocks replaced; takes `cells` over."""
        return compiled(self._spec("write", blocks=cells.shape[0]))(cells, blocks, content)

    def _spec(
        self, kind: StepKind, *, tokens: int = 0, tail_cells: int = 0, blocks: int = 0
    ) -> StepSpec:
        return StepSpec(
            kind=kind,
            config=self.config,
            dtype=self.dtype,
            layout=self.layout,
            tokens=tokens,
            tail_cells=tail_cells,
            blocks=blocks,
        )


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _abstract_tree(spec: StepSpec) -> object:
    flat = abstract_params(spec.config, spec.dtype)
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _new_session(spec: StepSpec) -> SessionState:
    return new_session(spec.layout, model_dim=spec.config.model_dim, dtype=spec.dtype)


def _build_open(spec: StepSpec) -> _Program:
    return _Program(lambda: _new_session(spec), ())


def _build_extend(spec: StepSpec) -> _Program:
    decoder = Decoder(config=spec.config, dtype=spec.dtype)

    def extend(params: Params, state: SessionState, tokens: Array, count: Array) -> SessionState:
        groups = spec.layout.layer_groups
        new = extend_step(decoder, groups, params, as_context(state), tokens[None], count[None])
        return dataclasses.replace(state, pool=new.pool, length=new.lengths[0], ready=new.ready[0])

    state = jax.eval_shape(lambda: _new_session(spec))
    arguments = (_abstract_tree(spec), state, _int32(spec.tokens), _int32())
    return _Program(extend, arguments, donated=(1,))


def _build_ask(spec: StepSpec) -> _Program:
    decoder = Decoder(config=spec.config, dtype=spec.dtype)

    def ask(
        params: Params,
        state: SessionState,
        tokens: Array,
        count: Array,
        rows: SamplingRows,
        stop_ids: Array,
    ) -> tuple[Tail, Chosen]:
        context = as_context(state)
        return ask_step(decoder, params, context, spec.tail_cells, tokens, count, rows, stop_ids)

    arguments = (
        _abstract_tree(spec),
        jax.eval_shape(lambda: _new_session(spec)),
        _int32(1, 1, spec.tokens),
        _int32(1, 1),
        *_choosing_shapes(),
    )
    return _Program(ask, arguments)


def _choosing_shapes() -> tuple[object, object]:
    """Sampling settings of one question, and its stop tokens."""
    return jax.eval_shape(lambda: sampling_rows([[Sampling()]])), _int32(MAX_STOP_IDS)


def _build_query(spec: StepSpec) -> _Program:
    decoder = Decoder(config=spec.config, dtype=spec.dtype)

    def query(
        params: Params,
        state: SessionState,
        tail: Tail,
        tokens: Array,
        count: Array,
        done: Array,
        rows: SamplingRows,
        stop_ids: Array,
    ) -> tuple[Tail, Chosen]:
        context = as_context(state)
        return query_step(decoder, params, context, tail, tokens, count, done, rows, stop_ids)

    arguments = (
        _abstract_tree(spec),
        jax.eval_shape(lambda: _new_session(spec)),
        jax.eval_shape(lambda: empty_tail(decoder, 1, 1, spec.tail_cells)),
        _int32(1, 1, spec.tokens),
        _int32(1, 1),
        jax.ShapeDtypeStruct((1, 1), jnp.bool_),
        *_choosing_shapes(),
    )
    return _Program(query, arguments, donated=(2,))


def _build_ready(spec: StepSpec) -> _Program:
    decoder = Decoder(config=spec.config, dtype=spec.dtype)

    def ready(params: Params, hidden: Array) -> Array:
        return logits_of(decoder, params, hidden)

    vector = jax.ShapeDtypeStruct((spec.config.model_dim,), spec.dtype)
    return _Program(ready, (_abstract_tree(spec), vector))


def _layer_shapes(spec: StepSpec) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    block = spec.layout.block_shape()
    return (
        jax.ShapeDtypeStruct((spec.blocks, *block), spec.dtype),
        jax.ShapeDtypeStruct((COPY_BLOCKS, *block), spec.dtype),
    )


def _build_read(spec: StepSpec) -> _Program:
    return _Program(read_blocks, (_layer_shapes(spec)[0], _int32(COPY_BLOCKS)))


def _build_write(spec: StepSpec) -> _Program:
    layer, content = _layer_shapes(spec)
    return _Program(write_blocks, (layer, _int32(COPY_BLOCKS), content), donated=(0,))


_BUILDERS: dict[StepKind, Callable[[StepSpec], _Program]] = {
    "open": _build_open,
    "extend": _build_extend,
    "ask": _build_ask,
    "query": _build_query,
    "ready": _build_ready,
    "read": _build_read,
    "write": _build_write,
}
