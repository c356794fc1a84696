"""The functions behind the steps of an engine, with the shapes they take.

Comes in: a `StepSpec`. Goes out: a `Program` that `compiled` can lower. Each takes its rows as one
packed array, the sessions that they look at as another, and returns what they chose as a third.
Does not know: values, when anything is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxstate.cells.layout import PoolLayout
from jaxstate.cells.pool import Context, KVPool
from jaxstate.cells.session import SharedPool, new_shared_pool
from jaxstate.config import MAX_STOP_IDS
from jaxstate.steps.extend import all_finite, extend_step
from jaxstate.steps.packing import (
    RowArguments,
    RowShape,
    chosen_of,
    pack_choice,
    unpack_contexts,
    unpack_rows,
)
from jaxstate.steps.programs import abstract_tree, int32
from jaxstate.steps.rows import (
    RowPool,
    commit_rows,
    decode_step,
    draw_rows_step,
    empty_rows,
    last_hidden,
    more_step,
    read_first,
    score_step,
    seen_by_rows,
    start_step,
    tables_of_rows,
)
from jaxstate.steps.spec import COPY_BLOCKS, EngineKind, Program, StepSpec
from jaxstate.weights import Params


def row_shape(spec: StepSpec) -> RowShape:
    """The shape of the rows that a step takes."""
    blocks, cells = spec.row_pool
    tail = spec.tokens if spec.kind == "start" else spec.tail_cells
    # A given answer is read from the token before it on.
    tokens = {"decode": 0, "score": spec.tokens + 1}.get(spec.kind, spec.tokens)
    return RowShape(
        rows=spec.rows,
        width={"commit": 0, "draw_rows": 1}.get(spec.kind, -(-tail // cells)),
        tokens=tokens,
        no_block=blocks,
        sessions=spec.sessions,
        rows_each=spec.rows_each,
        widths=tuple(group.table_width for group in spec.layout.groups),
    )


def _new_pool(spec: StepSpec) -> SharedPool:
    return new_shared_pool(spec.layout, model_dim=spec.config.model_dim, dtype=spec.dtype)


def _build_pool(spec: StepSpec) -> Program:
    return Program(lambda: _new_pool(spec), ())


def _build_rows(spec: StepSpec) -> Program:
    return Program(lambda: empty_rows(spec.config, spec.dtype, *spec.row_pool), ())


def _build_copy(spec: StepSpec) -> Program:
    """Copies of blocks, of all groups; numbers past the end do nothing."""
    layout = spec.layout

    def copy(pool: SharedPool, pairs: Int[Array, "G 2 N"]) -> SharedPool:
        def of_group(group: int, cells: Array) -> Array:
            source, target = pairs[group]
            return cells.at[target].set(cells.at[source].get(mode="clip"), mode="drop")

        source, target = pairs[layout.primary]
        ready = pool.ready.at[target].set(pool.ready.at[source].get(mode="clip"), mode="drop")
        return SharedPool(cells=_by_group(of_group, pool.cells), ready=ready)

    groups = len(layout.groups)
    return Program(copy, (_pool_shapes(spec), int32(groups, 2, COPY_BLOCKS)), donated=(0,))


def _build_fill(spec: StepSpec) -> Program:
    """Blocks of zeros, so that nothing is left in them; or, to show whoever reads them, of NaN."""
    layout, value = spec.layout, jnp.nan if spec.kind == "poison" else 0.0

    def fill(pool: SharedPool, blocks: Int[Array, "G N"]) -> SharedPool:
        def of_group(group: int, cells: Array) -> Array:
            return cells.at[blocks[group]].set(value, mode="drop")

        ready = pool.ready.at[blocks[layout.primary]].set(value, mode="drop")
        return SharedPool(cells=_by_group(of_group, pool.cells), ready=ready)

    groups = len(layout.groups)
    return Program(fill, (_pool_shapes(spec), int32(groups, COPY_BLOCKS)), donated=(0,))


def _by_group(change: Callable[[int, Array], Array], cells: KVPool) -> KVPool:
    return KVPool(groups=tuple(change(group, its) for group, its in enumerate(cells.groups)))


def _build_take_ready(spec: StepSpec) -> Program:
    def take(ready: Array, block: Array) -> Array:
        return ready.at[block].get(mode="fill", fill_value=0)

    return Program(take, (_pool_shapes(spec).ready, int32()))


def _build_put_ready(spec: StepSpec) -> Program:
    ready = _pool_shapes(spec).ready
    vector = jax.ShapeDtypeStruct(ready.shape[1:], ready.dtype)

    def put(ready: Array, block: Array, vector: Array) -> Array:
        return ready.at[block].set(vector, mode="drop")

    return Program(put, (ready, int32(), vector), donated=(0,))


def _build_commit(spec: StepSpec) -> Program:
    decoder, shape = spec.decoder, row_shape(spec)

    def commit(
        params: Params, pool: SharedPool, contexts: Array, packed: Array
    ) -> tuple[SharedPool, Array]:
        rows = unpack_rows(packed, 0)
        context = unpack_contexts(contexts, pool.cells, rows, shape)
        groups = spec.layout.layer_groups
        new = extend_step(decoder, groups, params, context, rows.tokens, rows.counts)
        tables = context.tables[spec.layout.primary]
        ready = _put_ready(pool.ready, spec.layout, tables, context.lengths, rows.counts, new.ready)
        # Whoever waits for the cells needs something that the next step does not take over.
        return SharedPool(cells=new.pool, ready=ready), new.finite

    return Program(commit, _session_arguments(spec), donated=(1,))


def _put_ready(
    ready: Array, layout: PoolLayout, table: Array, start: Array, counts: Array, hidden: Array
) -> Array:
    """Notes the vector after each chunk's last token at the block that holds it."""
    logical = (start + counts - 1) // layout.block_cells
    physical = jnp.take_along_axis(table, (logical % table.shape[1])[:, None], axis=1)[:, 0]
    return ready.at[jnp.where(counts > 0, physical, ready.shape[0])].set(hidden, mode="drop")


def _build_start(spec: StepSpec) -> Program:
    decoder, shape = spec.decoder, row_shape(spec)

    def start(
        params: Params,
        pool: SharedPool,
        contexts: Array,
        rows: RowPool,
        packed: Array,
        stop_ids: Array,
    ) -> tuple[SharedPool, RowPool, Array, Array]:
        new = unpack_rows(packed, shape.width)
        context = unpack_contexts(contexts, pool.cells, new, shape)
        read = read_first(decoder, params, context, new.tokens)
        cells = commit_rows(context, spec.layout.layer_groups, read, new.commits)
        tables = tables_of_rows(context, spec.rows)[spec.layout.primary]
        start, last = seen_by_rows(context, spec.rows), last_hidden(read.hidden, new.counts)
        ready = _put_ready(pool.ready, spec.layout, tables, start, new.commits, last)
        rows, chosen = start_step(decoder, params, read, rows, new.tables, new.counts, stop_ids)
        finite = all_finite(read.hidden, new.counts)
        chosen = dataclasses.replace(chosen, logprob=jnp.where(finite, chosen.logprob, jnp.nan))
        return SharedPool(cells=cells, ready=ready), rows, pack_choice(chosen), chosen.logits

    return Program(start, _choosing_arguments(spec), donated=(1, 3))


def _build_more(spec: StepSpec) -> Program:
    decoder = spec.decoder

    def more(
        params: Params,
        pool: SharedPool,
        contexts: Array,
        rows: RowPool,
        packed: Array,
        stop_ids: Array,
    ) -> tuple[RowPool, Array, Array]:
        new, context = _unpacked(spec, pool, contexts, packed)
        read = (new.tables, new.tokens, new.counts)
        rows, chosen = more_step(decoder, params, context, rows, *read, stop_ids)
        return rows, pack_choice(chosen), chosen.logits

    return Program(more, _choosing_arguments(spec), donated=(3,))


def _build_decode(spec: StepSpec) -> Program:
    decoder = spec.decoder

    def decode(
        params: Params,
        pool: SharedPool,
        contexts: Array,
        rows: RowPool,
        packed: Array,
        stop_ids: Array,
    ) -> tuple[RowPool, Array, Array]:
        new, context = _unpacked(spec, pool, contexts, packed)
        rows, chosen = decode_step(decoder, params, context, rows, new.tables, stop_ids)
        return rows, pack_choice(chosen), chosen.logits

    return Program(decode, _choosing_arguments(spec), donated=(3,))


def _build_draw_rows(spec: StepSpec) -> Program:
    def draw(
        lengths: Array,
        last: Array,
        done: Array,
        packed: Array,
        choice: Array,
        logits: Array,
        stop_ids: Array,
    ) -> tuple[Array, Array, Array]:
        new, chosen = unpack_rows(packed, 1), chosen_of(choice, logits)
        last, done, chosen = draw_rows_step(
            lengths, last, done, new.tables[:, 0], chosen, new.sampling, stop_ids
        )
        return last, done, pack_choice(chosen)

    rows = jax.eval_shape(lambda: empty_rows(spec.config, spec.dtype, *spec.row_pool))
    logits = jax.ShapeDtypeStruct((spec.rows, spec.config.vocab_size), jnp.float32)
    arguments = (
        rows.lengths,
        rows.last,
        rows.done,
        int32(*row_shape(spec).packed),
        int32(5, spec.rows),
        logits,
        int32(MAX_STOP_IDS),
    )
    return Program(draw, arguments, donated=(1, 2))


def _build_score(spec: StepSpec) -> Program:
    decoder = spec.decoder

    def score(
        params: Params, pool: SharedPool, contexts: Array, rows: RowPool, packed: Array
    ) -> Array:
        new, context = _unpacked(spec, pool, contexts, packed)
        return score_step(
            decoder,
            params,
            context,
            rows,
            new.tables,
            new.used,
            new.tokens[:, :-1],
            new.tokens[:, 1:],
            jnp.maximum(new.counts - 1, 0),
        )

    return Program(score, _row_arguments(spec))


def _unpacked(
    spec: StepSpec, pool: SharedPool, contexts: Array, packed: Array
) -> tuple[RowArguments, Context]:
    shape = row_shape(spec)
    rows = unpack_rows(packed, shape.width)
    return rows, unpack_contexts(contexts, pool.cells, rows, shape)


def _pool_shapes(spec: StepSpec) -> SharedPool:
    return jax.eval_shape(lambda: _new_pool(spec))


def _session_arguments(spec: StepSpec) -> tuple[object, ...]:
    shape = row_shape(spec)
    return (
        abstract_tree(spec),
        _pool_shapes(spec),
        int32(*shape.contexts),
        int32(*shape.packed),
    )


def _row_arguments(spec: StepSpec) -> tuple[object, ...]:
    *sessions, packed = _session_arguments(spec)
    rows = jax.eval_shape(lambda: empty_rows(spec.config, spec.dtype, *spec.row_pool))
    return (*sessions, rows, packed)


def _choosing_arguments(spec: StepSpec) -> tuple[object, ...]:
    return (*_row_arguments(spec), int32(MAX_STOP_IDS))


ROW_PROGRAMS: Mapping[EngineKind, Callable[[StepSpec], Program]] = MappingProxyType(
    {
        "pool": _build_pool,
        "rows": _build_rows,
        "copy": _build_copy,
        "poison": _build_fill,
        "wipe": _build_fill,
        "take_ready": _build_take_ready,
        "put_ready": _build_put_ready,
        "commit": _build_commit,
        "start": _build_start,
        "more": _build_more,
        "decode": _build_decode,
        "draw_rows": _build_draw_rows,
        "score": _build_score,
    }
)
