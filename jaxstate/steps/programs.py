"""The functions behind the steps of one session and one question, with the shapes they take.

Comes in: a `StepSpec`. Goes out: a `Program` that `compiled` can lower. Does not know: values, when
anything is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from jaxstate.cells.pool import read_blocks, write_blocks
from jaxstate.cells.session import SessionState, as_context, new_session
from jaxstate.config import MAX_STOP_IDS
from jaxstate.model.decoder import Tail, logits_of
from jaxstate.model.params import abstract_params
from jaxstate.records import Sampling
from jaxstate.steps.extend import extend_step
from jaxstate.steps.query import Chosen, ask_step, draw_step, empty_tail, query_step
from jaxstate.steps.sampling import sampling_rows
from jaxstate.steps.spec import MOVED_BLOCKS, Program, StepKind, StepSpec
from jaxstate.weights import Params


def int32(*shape: int) -> jax.ShapeDtypeStruct:
    """The shape of an int32 argument."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def abstract_tree(spec: StepSpec) -> object:
    """The shapes of the parameters, as the nested dict that steps take."""
    flat = abstract_params(spec.config, spec.dtype)
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def new_state(spec: StepSpec) -> SessionState:
    """An empty session of the spec's layout."""
    return new_session(spec.layout, model_dim=spec.config.model_dim, dtype=spec.dtype)


def _build_open(spec: StepSpec) -> Program:
    return Program(lambda: new_state(spec), ())


def _build_extend(spec: StepSpec) -> Program:
    decoder = spec.decoder

    def extend(params: Params, state: SessionState, tokens: Array, count: Array) -> SessionState:
        groups = spec.layout.layer_groups
        new = extend_step(decoder, groups, params, as_context(state), tokens[None], count[None])
        return dataclasses.replace(state, pool=new.pool, length=new.lengths[0], ready=new.ready[0])

    state = jax.eval_shape(lambda: new_state(spec))
    arguments = (abstract_tree(spec), state, int32(spec.tokens), int32())
    return Program(extend, arguments, donated=(1,))


def _build_ask(spec: StepSpec) -> Program:
    decoder = spec.decoder

    def ask(
        params: Params,
        state: SessionState,
        tokens: Array,
        count: Array,
        stop_ids: Array,
    ) -> tuple[Tail, Chosen]:
        context = as_context(state)
        return ask_step(decoder, params, context, spec.tail_cells, tokens, count, stop_ids)

    arguments = (
        abstract_tree(spec),
        jax.eval_shape(lambda: new_state(spec)),
        int32(1, 1, spec.tokens),
        int32(1, 1),
        int32(MAX_STOP_IDS),
    )
    return Program(ask, arguments)


def _build_draw(spec: StepSpec) -> Program:
    rows = jax.eval_shape(lambda: sampling_rows([[Sampling()]]))
    logits = jax.ShapeDtypeStruct((1, 1, spec.config.vocab_size), jnp.float32)
    done = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    return Program(draw_step, (logits, int32(1, 1), done, rows, int32(MAX_STOP_IDS)))


def _build_query(spec: StepSpec) -> Program:
    decoder = spec.decoder

    def query(
        params: Params,
        state: SessionState,
        tail: Tail,
        tokens: Array,
        count: Array,
        done: Array,
        stop_ids: Array,
    ) -> tuple[Tail, Chosen]:
        context = as_context(state)
        return query_step(decoder, params, context, tail, tokens, count, done, stop_ids)

    arguments = (
        abstract_tree(spec),
        jax.eval_shape(lambda: new_state(spec)),
        jax.eval_shape(lambda: empty_tail(decoder, 1, 1, spec.tail_cells)),
        int32(1, 1, spec.tokens),
        int32(1, 1),
        jax.ShapeDtypeStruct((1, 1), jnp.bool_),
        int32(MAX_STOP_IDS),
    )
    return Program(query, arguments, donated=(2,))


def _build_ready(spec: StepSpec) -> Program:
    decoder = spec.decoder

    def ready(params: Params, hidden: Array) -> Array:
        return logits_of(decoder, params, hidden)

    vector = jax.ShapeDtypeStruct((spec.config.model_dim,), spec.dtype)
    return Program(ready, (abstract_tree(spec), vector))


def _moved_shapes(spec: StepSpec) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Of a group's cells, and of what is moved of them."""
    blocks, block = spec.layout.group_blocks[spec.group], spec.layout.block_shape(spec.group)
    return (
        jax.ShapeDtypeStruct((blocks, *block), spec.dtype),
        jax.ShapeDtypeStruct((*block[:2], MOVED_BLOCKS, *block[2:]), spec.dtype),
    )


def _build_read(spec: StepSpec) -> Program:
    return Program(read_blocks, (_moved_shapes(spec)[0], int32(MOVED_BLOCKS)))


def _build_write(spec: StepSpec) -> Program:
    cells, content = _moved_shapes(spec)
    return Program(write_blocks, (cells, int32(MOVED_BLOCKS), content), donated=(0,))


SESSION_PROGRAMS: Mapping[StepKind, Callable[[StepSpec], Program]] = MappingProxyType(
    {
        "open": _build_open,
        "extend": _build_extend,
        "ask": _build_ask,
        "query": _build_query,
        "draw": _build_draw,
        "ready": _build_ready,
        "read": _build_read,
        "write": _build_write,
    }
)
