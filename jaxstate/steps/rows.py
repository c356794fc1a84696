"""The steps that answer many questions of one session at once, each in tail blocks of its own.

Pure: (parameters, context, row pool, tokens) -> (row pool, what each row chose). The context is one
session as some version of it was: `seen` cells, which no step here writes. A *row* is one question
under way: a table of tail blocks, whose first one is also its slot in the per-row arrays. Padding
rows have tables full of PT, one past the last block: what they write is dropped, and what they read
is harmless. Does not know: who hands out blocks, when a row ends.

Letters besides those of `config`: PT tail blocks, Ct cells of each, W blocks of one row's table.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.pool import (
    Context,
    KVPool,
    NewCells,
    after_reading,
    read_blocks,
    write_cells,
)
from jaxstate.cells.session import SessionState, as_context
from jaxstate.config import ModelConfig
from jaxstate.model.decoder import Decoder, Tail, forward, logits_of
from jaxstate.steps.sampling import SamplingRows, choose
from jaxstate.weights import Params


@struct.dataclass
class RowPool:
    """The private cells of all questions under way, and what each chose last.

    Attributes:
        cells: per layer [PT, Ct, K, H].
        lengths: int32 [PT], cells in use of the row whose first block it is.
        last: int32 [PT], the token that it chose last and has not read back.
        done: bool [PT], it chose a stop token.
    """

    cells: KVPool
    lengths: Int[Array, " PT"]
    last: Int[Array, " PT"]
    done: Bool[Array, " PT"]


@struct.dataclass
class RowChoice:
    """What a step chose for each row.

    Attributes:
        token: int32 [Q].
        logprob: float32 [Q], of the token under the plain softmax.
        gap: float32 [Q], the largest logit minus the second largest.
        done: bool [Q], a stop token was chosen now or before.
        logits: float32 [Q, V] that the token was chosen from.
    """

    token: Int[Array, " Q"]
    logprob: Float[Array, " Q"]
    gap: Float[Array, " Q"]
    done: Bool[Array, " Q"]
    logits: Float[Array, "Q V"]


def empty_rows(config: ModelConfig, dtype: jnp.dtype, blocks: int, block_cells: int) -> RowPool:
    """A pool of PT = `blocks` blocks of Ct = `block_cells` cells, zero-filled."""
    shape = (blocks, block_cells, config.num_kv_heads, config.head_dim)

    def zeros() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for _ in config.layers)

    return RowPool(
        cells=KVPool(keys=zeros(), values=zeros()),
        lengths=jnp.zeros((blocks,), jnp.int32),
        last=jnp.zeros((blocks,), jnp.int32),
        done=jnp.zeros((blocks,), jnp.bool_),
    )


def seen_context(state: SessionState, seen: Int[Array, ""]) -> Context:
    """The first `seen` cells of a session, which may have grown since (`readable_until`)."""
    return dataclasses.replace(as_context(state), lengths=seen[None])


def start_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    rows: RowPool,
    tables: Int[Array, "Q W"],
    tokens: Int[Array, "Q T"],
    counts: Int[Array, " Q"],
    sampling: SamplingRows,
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Begins rows: reads the first `counts` of T tokens of each, chooses the token after them.

    Nothing that the blocks held before is looked at. `sampling` is [1, Q], `stop_ids` padded with
    -1.
    """
    lengths = jnp.zeros_like(counts)
    read = _read(decoder, params, context, tokens, lengths, None)
    running = jnp.zeros(counts.shape, jnp.bool_)
    rows = _write(rows, tables, read, lengths, counts)
    return _choose(
        decoder, params, rows, tables, read[0], lengths, counts, running, sampling, stop_ids
    )


def more_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    rows: RowPool,
    tables: Int[Array, "Q W"],
    tokens: Int[Array, "Q T"],
    counts: Int[Array, " Q"],
    sampling: SamplingRows,
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Goes on reading questions that `start_step` began; what they chose meanwhile is forgotten."""
    lengths = _of_rows(rows.lengths, tables, 0)
    read = _read(decoder, params, context, tokens, lengths, _tail(rows, tables, lengths))
    running = jnp.zeros(counts.shape, jnp.bool_)
    rows = _write(rows, tables, read, lengths, counts)
    return _choose(
        decoder, params, rows, tables, read[0], lengths, counts, running, sampling, stop_ids
    )


def decode_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    rows: RowPool,
    tables: Int[Array, "Q W"],
    sampling: SamplingRows,
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Reads back the token that each row chose last and chooses the next; done rows stay."""
    lengths, done = _of_rows(rows.lengths, tables, 0), _of_rows(rows.done, tables, True)
    tokens, counts = _of_rows(rows.last, tables, 0)[:, None], 1 - done.astype(jnp.int32)
    read = _read(decoder, params, context, tokens, lengths, _tail(rows, tables, lengths))
    rows = _write(rows, tables, read, lengths, counts)
    return _choose(
        decoder, params, rows, tables, read[0], lengths, counts, done, sampling, stop_ids
    )


def score_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    rows: RowPool,
    tables: Int[Array, "Q W"],
    lengths: Int[Array, " Q"],
    tokens: Int[Array, "Q T"],
    targets: Int[Array, "Q T"],
    counts: Int[Array, " Q"],
) -> Float[Array, " Q"]:
    """Total log-probability of each row's first `counts` targets, each after its token.

    Args:
        decoder, params, context, rows: nothing of them is written.
        tables: blocks of the tail before; several rows may name the same.
        lengths: int32, cells in use of that tail.
        tokens: int32, what is read: the question's last token, then the given answer.
        targets: int32, the given answer.
        counts: int32, its tokens.
    """
    read = _read(decoder, params, context, tokens, lengths, _tail(rows, tables, lengths))
    hidden = read[0][0]

    def add(position: Int[Array, ""], total: Float[Array, " Q"]) -> Float[Array, " Q"]:
        """One position of every row: the logits of all of them never exist at once."""
        logits = logits_of(decoder, params, jnp.take(hidden, position, axis=1))
        target = jnp.take(targets, position, axis=1)
        picked = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        logprob = picked - jax.nn.logsumexp(logits, axis=-1)
        return total + jnp.where(position < counts, logprob, 0.0)

    return jax.lax.fori_loop(0, jnp.max(counts), add, jnp.zeros(counts.shape, jnp.float32))


def _of_rows(values: Array, tables: Int[Array, "Q W"], padding: int | bool) -> Array:
    """Each row's own entry of a per-row array [PT]."""
    return values.at[tables[:, 0]].get(mode="fill", fill_value=padding)


def _tail(rows: RowPool, tables: Int[Array, "Q W"], lengths: Int[Array, " Q"]) -> Tail:
    """The rows' cells side by side, M = W * Ct."""
    questions, cells = tables.shape[0], tables.shape[1] * rows.cells.keys[0].shape[1]
    used = jnp.arange(cells, dtype=jnp.int32)[None] < lengths[:, None]

    def gather(pool: Float[Array, "PT Ct K H"]) -> Float[Array, "1 Q M K H"]:
        found = read_blocks(pool, tables.reshape(-1)).reshape(questions, cells, *pool.shape[2:])
        # What an earlier row left behind may be NaN, and 0 * NaN is NaN.
        return jnp.where(used[..., None, None], found, 0)[None]

    return Tail(
        keys=tuple(map(gather, rows.cells.keys)),
        values=tuple(map(gather, rows.cells.values)),
        lengths=lengths[None],
    )


def _read(
    decoder: Decoder,
    params: Params,
    context: Context,
    tokens: Int[Array, "Q T"],
    lengths: Int[Array, " Q"],
    tail: Tail | None,
) -> tuple[Float[Array, "1 Q T D"], NewCells]:
    chex.assert_shape(context.lengths, (1,))
    chex.assert_shape(lengths, tokens.shape[:1])
    offsets = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    positions = (context.lengths + lengths)[:, None] + offsets[None]
    return forward(decoder, params, tokens[None], positions[None], context, tail)


def _write(
    rows: RowPool,
    tables: Int[Array, "Q W"],
    read: tuple[Float[Array, "1 Q T D"], NewCells],
    lengths: Int[Array, " Q"],
    counts: Int[Array, " Q"],
) -> RowPool:
    """Commits the first `counts` new cells of each row behind its `lengths`."""
    hidden, new = read
    by_row = jax.tree.map(lambda cells: cells.swapaxes(0, 1), new)
    groups = (0,) * len(new.keys)
    known = after_reading(counts, hidden.shape[2], hidden)
    cells = write_cells(rows.cells, (tables,), groups, by_row, lengths, known)
    return dataclasses.replace(rows, cells=cells)


def _choose(
    decoder: Decoder,
    params: Params,
    rows: RowPool,
    tables: Int[Array, "Q W"],
    hidden: Float[Array, "1 Q T D"],
    lengths: Int[Array, " Q"],
    counts: Int[Array, " Q"],
    done: Bool[Array, " Q"],
    sampling: SamplingRows,
    stop_ids: Int[Array, " n"],
) -> tuple[RowPool, RowChoice]:
    """Chooses after each row's last token and notes it in the rows' slots."""
    at = jnp.maximum(counts - 1, 0)[None, :, None, None]
    logits = logits_of(decoder, params, jnp.take_along_axis(hidden, at, axis=2)[:, :, 0])
    # The draw is numbered by the cells read, as in `query_step`: the answer is the same there.
    token, logprob = choose(logits, sampling, (lengths + counts)[None])
    stopped = jnp.any(token[0][:, None] == stop_ids[None], axis=-1)
    chosen = RowChoice(
        token=token[0],
        logprob=logprob[0],
        gap=_gap(logits[0]),
        done=done | stopped,
        logits=logits[0],
    )
    return _noted(rows, tables[:, 0], lengths + counts, chosen), chosen


def _noted(
    rows: RowPool, slots: Int[Array, " Q"], lengths: Int[Array, " Q"], chosen: RowChoice
) -> RowPool:
    def put(values: Array, new: Array) -> Array:
        return values.at[slots].set(new, mode="drop")

    return dataclasses.replace(
        rows,
        lengths=put(rows.lengths, lengths),
        last=put(rows.last, chosen.token),
        done=put(rows.done, chosen.done),
    )


def _gap(logits: Float[Array, "Q V"]) -> Float[Array, " Q"]:
    """The largest minus the second largest; a sort of the vocabulary would cost far more."""
    best = jnp.argmax(logits, axis=-1)[:, None]
    others = jnp.where(jnp.arange(logits.shape[1])[None] == best, -jnp.inf, logits)
    return jnp.max(logits, axis=-1) - jnp.max(others, axis=-1)
