"""The steps that answer many questions of many sessions at once, each in tail blocks of its own.

Pure: (parameters, context, row pool, tokens) -> (row pool, what each row chose). The context is the
cells that the rows see, of sessions as some version of them was. A *row* is one question under way:
a table of tail blocks, whose first one is also its slot in the per-row arrays. Padding rows have
tables full of PT, one past the last block: what they write is dropped, and what they read is
harmless. Every step chooses greedily; where a row samples, `draw_rows_step` follows it. Does not
know: who hands out blocks, when a row ends.

How R rows look at S sessions follows from the context: all at one (S = 1), each at its own (S = R),
or mixed (`Context.place`).

Letters besides those of `config`: PT tail blocks, Ct cells of each, W blocks of one row's table.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.pool import (
    Context,
    GroupCells,
    KVPool,
    NewCells,
    after_reading,
    write_cells,
    write_group,
)
from jaxstate.config import ModelConfig
from jaxstate.model.decoder import Decoder, Tail, forward, logits_of
from jaxstate.steps.sampling import SamplingRows, choose, ends, greedy
from jaxstate.weights import Params

# Rows of logits that exist at once while answers are scored: 64 MB for a vocabulary of 128k.
_LOGITS_ROWS = 128


@struct.dataclass
class RowPool:
    """The private cells of all questions under way, and what each chose last.

    Attributes:
        cells: [PT, L, 2, Ct, K, H], of all layers.
        lengths: int32 [PT], cells in use of the row whose first block it is.
        last: int32 [PT], the token that it chose last and has not read back.
        done: bool [PT], it chose a stop token.
    """

    cells: GroupCells
    lengths: Int[Array, " PT"]
    last: Int[Array, " PT"]
    done: Bool[Array, " PT"]


@struct.dataclass
class RowChoice:
    """What a step chose for each row.

    Attributes:
        token: int32 [R].
        logprob: float32 [R], of the token under the plain softmax.
        gap: float32 [R], the largest logit minus the second largest.
        done: bool [R], a stop token was chosen now or before.
        was_done: bool [R], it was chosen before.
        logits: float32 [R, V] that the token was chosen from.
    """

    token: Int[Array, " R"]
    logprob: Float[Array, " R"]
    gap: Float[Array, " R"]
    done: Bool[Array, " R"]
    was_done: Bool[Array, " R"]
    logits: Float[Array, "R V"]


def empty_rows(config: ModelConfig, dtype: jnp.dtype, blocks: int, block_cells: int) -> RowPool:
    """A pool of PT = `blocks` blocks of Ct = `block_cells` cells, zero-filled."""
    block = (config.num_layers, 2, block_cells, config.num_kv_heads, config.head_dim)
    return RowPool(
        cells=jnp.zeros((blocks, *block), dtype),
        lengths=jnp.zeros((blocks,), jnp.int32),
        last=jnp.zeros((blocks,), jnp.int32),
        done=jnp.zeros((blocks,), jnp.bool_),
    )


class ReadRows(NamedTuple):
    """What the forward pass made of rows of T tokens.

    Attributes:
        hidden: [R, T, D], final.
        new: cells, per layer [R, 1, T, 2, K, H].
    """

    hidden: Float[Array, "R T D"]
    new: NewCells


def start_step(
    decoder: Decoder,
    params: Params,
    read: ReadRows,
    rows: RowPool,
    tables: Int[Array, "R W"],
    counts: Int[Array, " R"],
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Begins rows of which the first `counts` of T tokens were read (`read_first`), and chooses the
    token after them.

    `stop_ids` is padded with -1.
    """
    lengths = jnp.zeros_like(counts)
    running = jnp.zeros(counts.shape, jnp.bool_)
    rows = _write(rows, tables, read, lengths, counts)
    return _choose(decoder, params, rows, tables, read.hidden, lengths, counts, running, stop_ids)


def read_first(
    decoder: Decoder, params: Params, context: Context, tokens: Int[Array, "R T"]
) -> ReadRows:
    """Reads tokens right after what their session has, whatever becomes of them."""
    nothing = jnp.zeros(tokens.shape[:1], jnp.int32)
    return _read(decoder, params, context, tokens, nothing, None)


def commit_rows(
    context: Context,
    layer_groups: tuple[int, ...],
    read: ReadRows,
    counts: Int[Array, " R"],
) -> KVPool:
    """Commits the first `counts` of the tokens that a row read to the session that it looked at;
    0 for a row that is a question."""
    known = after_reading(counts, read.hidden.shape[1], read.hidden)
    tables, start = tables_of_rows(context, len(counts)), seen_by_rows(context, len(counts))
    return write_cells(context.pool, tables, layer_groups, read.new, start, known)


def seen_by_rows(context: Context, rows: int) -> Int[Array, " R"]:
    """How many cells each row sees."""
    return jnp.broadcast_to(_flat(context.seen()), (rows,))


def tables_of_rows(context: Context, rows: int) -> tuple[Int[Array, "R W"], ...]:
    """For each group, the table of the session that each row looks at."""
    if context.place is not None:
        sessions = context.place // context.rows_each
        return tuple(table.at[sessions].get(mode="clip") for table in context.tables)
    return tuple(jnp.broadcast_to(table, (rows, table.shape[1])) for table in context.tables)


def more_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    rows: RowPool,
    tables: Int[Array, "R W"],
    tokens: Int[Array, "R T"],
    counts: Int[Array, " R"],
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Goes on reading questions that `start_step` began; what they chose meanwhile is forgotten."""
    lengths = _of_rows(rows.lengths, tables, 0)
    read = _read(decoder, params, context, tokens, lengths, rows, tables)
    running = jnp.zeros(counts.shape, jnp.bool_)
    rows = _write(rows, tables, read, lengths, counts)
    return _choose(decoder, params, rows, tables, read.hidden, lengths, counts, running, stop_ids)


def decode_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    rows: RowPool,
    tables: Int[Array, "R W"],
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Reads back the token that each row chose last and chooses the next; done rows stay."""
    lengths, done = _of_rows(rows.lengths, tables, 0), _of_rows(rows.done, tables, True)
    tokens, counts = _of_rows(rows.last, tables, 0)[:, None], 1 - done.astype(jnp.int32)
    read = _read(decoder, params, context, tokens, lengths, rows, tables)
    rows = _write(rows, tables, read, lengths, counts)
    return _choose(decoder, params, rows, tables, read.hidden, lengths, counts, done, stop_ids)


def draw_rows_step(
    lengths: Int[Array, " PT"],
    last: Int[Array, " PT"],
    done: Bool[Array, " PT"],
    slots: Int[Array, " R"],
    chosen: RowChoice,
    sampling: SamplingRows,
    stop_ids: Int[Array, " n"],
) -> tuple[Int[Array, " PT"], Bool[Array, " PT"], RowChoice]:
    """Chooses again, each row by its own rule, where a step chose greedily.

    Args:
        lengths, last, done: of the pool after that step.
        slots: int32, each row's first block; PT for padding.
        chosen: what that step chose.
        sampling: [1, R].
        stop_ids: padded with -1.

    Returns:
        `last` and `done` with what was chosen now, and that.
    """
    # The draw is numbered by the cells read, as in `query`: the answer is the same there.
    number = lengths.at[slots].get(mode="fill", fill_value=0)
    token, logprob = choose(chosen.logits[None], sampling, number[None])
    ended = chosen.was_done | ends(token[0], stop_ids)
    # A row whose numbers were not finite stays known by it.
    kept = jnp.where(jnp.isfinite(chosen.logprob), logprob[0], chosen.logprob)
    chosen = dataclasses.replace(chosen, token=token[0], logprob=kept, done=ended)
    last = last.at[slots].set(chosen.token, mode="drop")
    return last, done.at[slots].set(ended, mode="drop"), chosen


def score_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    rows: RowPool,
    tables: Int[Array, "R W"],
    lengths: Int[Array, " R"],
    tokens: Int[Array, "R T"],
    targets: Int[Array, "R T"],
    counts: Int[Array, " R"],
) -> Float[Array, " R"]:
    """Total log-probability of each row's first `counts` targets, each after its token.

    Args:
        decoder, params, context, rows: nothing of them is written.
        tables: blocks of the tail before; several rows may name the same.
        lengths: int32, cells in use of that tail.
        tokens: int32, what is read: the question's last token, then the given answer.
        targets: int32, the given answer.
        counts: int32, its tokens.
    """
    hidden = _read(decoder, params, context, tokens, lengths, rows, tables).hidden
    size = tokens.shape[1]
    at_once = max(1, _LOGITS_ROWS // tokens.shape[0])
    logprobs = [
        _logprobs(decoder, params, hidden[:, first : first + at_once], targets, first)
        for first in range(0, size, at_once)
    ]
    counted = jnp.arange(size, dtype=jnp.int32)[None] < counts[:, None]
    return jnp.sum(jnp.where(counted, jnp.concatenate(logprobs, axis=1), 0.0), axis=1)


def _logprobs(
    decoder: Decoder,
    params: Params,
    hidden: Float[Array, "R t D"],
    targets: Int[Array, "R T"],
    first: int,
) -> Float[Array, "R t"]:
    """Log-probabilities of the targets from position `first` on."""
    logits = logits_of(decoder, params, hidden)
    target = targets[:, first : first + hidden.shape[1], None]
    picked = jnp.take_along_axis(logits, target, axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def _of_rows(values: Array, tables: Int[Array, "R W"], padding: int | bool) -> Array:
    """Each row's own entry of a per-row array [PT]."""
    return values.at[tables[:, 0]].get(mode="fill", fill_value=padding)


def _spread(context: Context, x: Array) -> Array:
    """Rows as the forward pass takes them: of one session, or mixed, side by side; or one of each
    session."""
    return x[None] if context.place is not None or len(context.lengths) == 1 else x[:, None]


def _flat(x: Array) -> Array:
    """And back."""
    return x.reshape(-1, *x.shape[2:])


def _read(
    decoder: Decoder,
    params: Params,
    context: Context,
    tokens: Int[Array, "R T"],
    lengths: Int[Array, " R"],
    rows: RowPool | None,
    tables: Int[Array, "R W"] | None = None,
) -> ReadRows:
    """Reads tokens behind the context and, where `rows` are given, behind the tails in `tables`."""
    chex.assert_shape(lengths, tokens.shape[:1])
    tail = None
    if rows is not None and tables is not None:
        spread = (_spread(context, x) for x in (tables, lengths))
        tail = Tail(rows.cells, *spread)
    offsets = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    first = context.next_positions() + _spread(context, lengths)
    positions = first[..., None] + offsets[None, None]
    hidden, new = forward(decoder, params, _spread(context, tokens), positions, context, tail)
    by_row = tuple(_flat(cells)[:, None] for cells in new)
    return ReadRows(hidden=_flat(hidden), new=by_row)


def _write(
    rows: RowPool,
    tables: Int[Array, "R W"],
    read: ReadRows,
    lengths: Int[Array, " R"],
    counts: Int[Array, " R"],
) -> RowPool:
    """Commits the first `counts` new cells of each row behind its `lengths`."""
    known = after_reading(counts, read.hidden.shape[1], read.hidden)
    cells = write_group(rows.cells, tables, read.new, lengths, known)
    return dataclasses.replace(rows, cells=cells)


def _choose(
    decoder: Decoder,
    params: Params,
    rows: RowPool,
    tables: Int[Array, "R W"],
    hidden: Float[Array, "R T D"],
    lengths: Int[Array, " R"],
    counts: Int[Array, " R"],
    done: Bool[Array, " R"],
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Chooses after each row's last token and notes it in the rows' slots."""
    last = last_hidden(hidden, counts)
    logits = logits_of(decoder, params, last)
    token, logprob = greedy(logits)
    chosen = RowChoice(
        token=token,
        logprob=logprob,
        gap=_gap(logits),
        done=done | ends(token, stop_ids),
        was_done=done,
        logits=logits,
    )
    return _noted(rows, tables[:, 0], lengths + counts, chosen), chosen


def last_hidden(hidden: Float[Array, "R T D"], counts: Int[Array, " R"]) -> Float[Array, "R D"]:
    """The vector after each row's last token."""
    at = jnp.maximum(counts - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, at, axis=1)[:, 0]


def _noted(
    rows: RowPool, slots: Int[Array, " R"], lengths: Int[Array, " R"], chosen: RowChoice
) -> RowPool:
    def put(values: Array, new: Array) -> Array:
        return values.at[slots].set(new, mode="drop")

    return dataclasses.replace(
        rows,
        lengths=put(rows.lengths, lengths),
        last=put(rows.last, chosen.token),
        done=put(rows.done, chosen.done),
    )


def _gap(logits: Float[Array, "R V"]) -> Float[Array, " R"]:
    """The largest minus the second largest; a sort of the vocabulary would cost far more."""
    best = jnp.argmax(logits, axis=-1)[:, None]
    others = jnp.where(jnp.arange(logits.shape[1])[None] == best, -jnp.inf, logits)
    return jnp.max(logits, axis=-1) - jnp.max(others, axis=-1)
