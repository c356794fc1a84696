"""The functions behind the steps of an engine, with the shapes they take.

Comes in: a `StepSpec`. Goes out: a `Program` that `compiled` can lower. Each takes its rows as one
packed array and returns what they chose as another. Does not know: values, when anything is
compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstate.cells.session import SessionState
from jaxstate.model.decoder import Decoder
from jaxstate.steps.packing import RowShape, pack_choice, unpack_rows
from jaxstate.steps.programs import SESSION_PROGRAMS, abstract_tree, int32, new_state
from jaxstate.steps.rows import (
    RowPool,
    decode_step,
    empty_rows,
    more_step,
    score_step,
    seen_context,
    start_step,
)
from jaxstate.steps.spec import MAX_STOP_IDS, EngineKind, Program, StepSpec
from jaxstate.weights import Params


def row_shape(spec: StepSpec) -> RowShape:
    """The shape of the rows that a step takes."""
    blocks, cells = spec.row_pool
    tail = spec.tokens if spec.kind == "start" else spec.tail_cells
    # A given answer is read from the token before it on.
    tokens = {"decode": 0, "score": spec.tokens + 1}.get(spec.kind, spec.tokens)
    return RowShape(rows=spec.rows, width=-(-tail // cells), tokens=tokens, no_block=blocks)


def _build_rows(spec: StepSpec) -> Program:
    return Program(lambda: empty_rows(spec.config, spec.dtype, *spec.row_pool), ())


def _build_copy(spec: StepSpec) -> Program:
    def copy(state: SessionState) -> SessionState:
        return jax.tree.map(jnp.copy, state)

    return Program(copy, (jax.eval_shape(lambda: new_state(spec)),))


def _build_commit(spec: StepSpec) -> Program:
    extend = SESSION_PROGRAMS["extend"](spec)

    def commit(
        params: Params, state: SessionState, tokens: Array, count: Array
    ) -> tuple[SessionState, Array]:
        longer = extend.function(params, state, tokens, count)
        # Whoever waits for the cells needs something that the next step does not take over.
        return longer, state.length + count

    return Program(commit, extend.arguments, donated=extend.donated)


def _build_start(spec: StepSpec) -> Program:
    decoder, width = Decoder(config=spec.config, dtype=spec.dtype), row_shape(spec).width

    def start(
        params: Params, state: SessionState, rows: RowPool, packed: Array, stop_ids: Array
    ) -> tuple[RowPool, Array, Array]:
        new = unpack_rows(packed, width)
        context, read = seen_context(state, new.seen), (new.tables, new.tokens, new.counts)
        rows, chosen = start_step(decoder, params, context, rows, *read, new.sampling, stop_ids)
        return rows, pack_choice(chosen), chosen.logits

    return Program(start, _choosing_arguments(spec), donated=(2,))


def _build_more(spec: StepSpec) -> Program:
    decoder, width = Decoder(config=spec.config, dtype=spec.dtype), row_shape(spec).width

    def more(
        params: Params, state: SessionState, rows: RowPool, packed: Array, stop_ids: Array
    ) -> tuple[RowPool, Array]:
        new = unpack_rows(packed, width)
        context, read = seen_context(state, new.seen), (new.tables, new.tokens, new.counts)
        rows, chosen = more_step(decoder, params, context, rows, *read, new.sampling, stop_ids)
        return rows, pack_choice(chosen)

    return Program(more, _choosing_arguments(spec), donated=(2,))


def _build_decode(spec: StepSpec) -> Program:
    decoder, width = Decoder(config=spec.config, dtype=spec.dtype), row_shape(spec).width

    def decode(
        params: Params, state: SessionState, rows: RowPool, packed: Array, stop_ids: Array
    ) -> tuple[RowPool, Array]:
        new = unpack_rows(packed, width)
        context = seen_context(state, new.seen)
        rows, chosen = decode_step(
            decoder, params, context, rows, new.tables, new.sampling, stop_ids
        )
        return rows, pack_choice(chosen)

    return Program(decode, _choosing_arguments(spec), donated=(2,))


def _build_score(spec: StepSpec) -> Program:
    decoder, width = Decoder(config=spec.config, dtype=spec.dtype), row_shape(spec).width

    def score(params: Params, state: SessionState, rows: RowPool, packed: Array) -> Array:
        new = unpack_rows(packed, width)
        return score_step(
            decoder,
            params,
            seen_context(state, new.seen),
            rows,
            new.tables,
            new.used,
            new.tokens[:, :-1],
            new.tokens[:, 1:],
            jnp.maximum(new.counts - 1, 0),
        )

    return Program(score, _row_arguments(spec))


def _row_arguments(spec: StepSpec) -> tuple[object, ...]:
    return (
        abstract_tree(spec),
        jax.eval_shape(lambda: new_state(spec)),
        jax.eval_shape(lambda: empty_rows(spec.config, spec.dtype, *spec.row_pool)),
        int32(*row_shape(spec).packed),
    )


def _choosing_arguments(spec: StepSpec) -> tuple[object, ...]:
    return (*_row_arguments(spec), int32(MAX_STOP_IDS))


ROW_PROGRAMS: Mapping[EngineKind, Callable[[StepSpec], Program]] = MappingProxyType(
    {
        "rows": _build_rows,
        "copy": _build_copy,
        "commit": _build_commit,
        "start": _build_start,
        "more": _build_more,
        "decode": _build_decode,
        "score": _build_score,
    }
)
