"""Attention on an NVIDIA GPU: two Pallas kernels a layer, lowered through Triton.

Comes in: what `attend` of `jaxstate.model.backends.reference` takes. Goes out: the same, within the
rounding of its dtype. `context_splits` looks at the committed cells, cut into pieces so that all of
the GPU is busy (flash decoding over a block table); `finish` merges the pieces and lets the tail
and the new tokens join the same softmax. In XLA the second is about ten small kernels a layer, each
of which costs more to start than to run. Runs in interpret mode on any device, for tests. Does not
know: whether it is worth it on this device (`choose_backend`).

All rows that look at one session (tokens, questions, the query heads of a KV head) are one matrix,
so each cell is read once for every `block_rows` of them. The online softmax is that of
FlashAttention (arXiv 2205.14135), in base 2; the split over the context that of Flash-Decoding.
Each program walks the tiles of its piece, whose bounds follow the session's length and the rows'
starts: a wide table costs nothing.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from jaxstate.model.attention import Partial
from jaxstate.model.context import LayerContext, LayerTail, by_session

# The log-sum-exp of nothing, and what a running maximum starts with: e^(NOTHING - FLOOR) is 0, so a
# masked score weighs nothing even where a row has seen nothing else.
NOTHING = -1e30
FLOOR = -1e29
LOG2_E = math.log2(math.e)
# Programs that keep an H100's 132 multiprocessors busy: two on each.
_PROGRAMS = 264
_MAX_SPLITS = 32
_TILE_CELLS = 64
# Rows of one program of `finish`, at most.
_FINISH_ROWS = 64


def attend(
    q: Float[Array, "B Q T N H"],
    k: Float[Array, "B Q T K H"],
    v: Float[Array, "B Q T K H"],
    positions: Int[Array, "B Q T"],
    context: LayerContext,
    tail: LayerTail | None,
    *,
    window: int | None,
    scale: float,
    cap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B Q T N H"]:
    """`jaxstate.model.backends.reference.attend`, in two kernels.

    Args:
        q, k, v, positions, context, tail, window, scale, cap: as there.
        interpret: run as plain JAX, on any device.
    """
    starts = jnp.zeros(positions.shape, jnp.int32)
    if window is not None:
        starts = jnp.maximum(positions - (window - 1), 0)
    rows, starts = by_session(q, starts, context)
    each = rows.shape[1]
    splits = context_splits(
        rows.reshape(rows.shape[0], -1, *rows.shape[3:]),
        context.keys,
        context.values,
        context.table,
        context.lengths,
        starts.reshape(starts.shape[0], -1),
        scale=scale,
        cap=cap,
        interpret=interpret,
    )
    questions = q.shape[0] * q.shape[1]
    place = context.place
    out = finish(
        q.reshape(questions, *q.shape[2:]),
        k.reshape(questions, *k.shape[2:]),
        v.reshape(questions, *v.shape[2:]),
        splits,
        jnp.arange(questions, dtype=jnp.int32) if place is None else place,
        tail,
        rows_each=each,
        window=window,
        scale=scale,
        cap=cap,
        interpret=interpret,
    )
    return out.reshape(q.shape)


def unsupported(head_dim: int, dtype: jnp.dtype, block_cells: tuple[int, ...]) -> str | None:
    """Why the kernels cannot run these shapes; None if they can.

    Args:
        head_dim: H.
        dtype: of queries and cells.
        block_cells: sizes of the blocks in which cells lie.
    """
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"the kernel takes bfloat16 and float16, this model is {dtype.name}"
    if head_dim not in (64, 128, 256):
        return f"the kernel takes heads of 64, 128 and 256, this model has {head_dim}"
    if min(map(tile_cells, block_cells)) < 16:
        return f"the kernel takes blocks of a multiple of 16 cells, these are {block_cells}"
    return None


@struct.dataclass
class Splits:
    """Attention over X disjoint pieces of the context, rows folded by KV head.

    Attributes:
        out: float32 [X, B, K, F, H], normalised over each piece; F rows, those past R * N / K are
            padding.
        lse: float32 [X, B, K, F], natural log-sum-exp; about -1e30 where a row sees nothing.
    """

    out: Float[Array, "X B K F H"]
    lse: Float[Array, "X B K F"]


class Plan(NamedTuple):
    """How a call is cut: rows of a program, cells of a tile, pieces of the context, resources."""

    block_rows: int
    tile_cells: int
    splits: int
    warps: int
    stages: int


def plan(batch: int, rows: int, kv_heads: int, head_dim: int, block_cells: int) -> Plan:
    """A cut for `rows` folded rows of each of `batch` sessions; measured on an H100."""
    block_rows = max(16, min(128 if head_dim <= 128 else 64, pl.next_power_of_2(rows)))
    programs = batch * kv_heads * pl.cdiv(rows, block_rows)
    wanted = min(_MAX_SPLITS, max(1, _PROGRAMS // programs))
    return Plan(
        block_rows=block_rows,
        tile_cells=tile_cells(block_cells),
        splits=1 << (wanted.bit_length() - 1),
        warps=8 if block_rows == 128 else 4,
        stages=3 if head_dim <= 128 else 2,
    )


def tile_cells(block_cells: int) -> int:
    """Cells of a tile: a tile never crosses a block."""
    return math.gcd(block_cells, _TILE_CELLS)


def context_splits(
    q: Float[Array, "B R N H"],
    keys: Float[Array, "P C K H"],
    values: Float[Array, "P C K H"],
    table: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    starts: Int[Array, "B R"],
    *,
    scale: float,
    cap: float | None = None,
    cut: Plan | None = None,
    interpret: bool = False,
) -> Splits:
    """`context_attention` before its pieces are merged; arguments as there.

    Args:
        q, keys, values, table, lengths, starts, scale, cap: as `context_attention` takes them.
        cut: how the work is cut; by default `plan`.
        interpret: run as plain JAX, on any device.
    """
    batch, rows, heads, head_dim = q.shape
    block_cells, kv_heads = keys.shape[1], keys.shape[2]
    folded = rows * heads // kv_heads
    cut = cut or plan(batch, folded, kv_heads, head_dim, block_cells)
    row_blocks = pl.cdiv(folded, cut.block_rows)
    padded = row_blocks * cut.block_rows
    kernel = functools.partial(
        _context_kernel, cut=cut, rows=rows, group=heads // kv_heads, scale=scale, cap=cap
    )
    out, lse = pl.pallas_call(
        kernel,
        grid=(row_blocks * kv_heads, cut.splits, batch),
        out_shape=[
            jax.ShapeDtypeStruct((cut.splits, batch, kv_heads, padded, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((cut.splits, batch, kv_heads, padded), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=cut.warps, num_stages=cut.stages),
        interpret=interpret,
        name="paged_context",
    )(q.reshape(-1, head_dim), keys, values, table, lengths, starts.reshape(-1))
    return Splits(out=out, lse=lse)


def _context_kernel(
    q_ref: jax.Ref,
    keys_ref: jax.Ref,
    values_ref: jax.Ref,
    table_ref: jax.Ref,
    lengths_ref: jax.Ref,
    starts_ref: jax.Ref,
    out_ref: jax.Ref,
    lse_ref: jax.Ref,
    *,
    cut: Plan,
    rows: int,
    group: int,
    scale: float,
    cap: float | None,
) -> None:
    """One row block of one KV head over one piece of one session's cells."""
    block_cells, kv_heads = keys_ref.shape[1], keys_ref.shape[2]
    width, tile = table_ref.shape[1], cut.tile_cells
    # Neighbouring programs read the same cells: row blocks first, then heads.
    row_blocks = pl.cdiv(rows * group, cut.block_rows)
    head, piece = pl.program_id(0) // row_blocks, pl.program_id(1)
    session, first_row = pl.program_id(2), pl.program_id(0) % row_blocks * cut.block_rows

    row = first_row + jnp.arange(cut.block_rows, dtype=jnp.int32)
    real = row < rows * group
    at = (session * rows + row // group) * (kv_heads * group) + head * group + row % group
    q = load_rows(q_ref, at, real)
    length = lengths_ref[session]
    start = plgpu.load(starts_ref.at[session * rows + row // group], mask=real, other=length)
    # A ring has overwritten what lies before.
    start = jnp.maximum(start, (pl.cdiv(length, block_cells) - width) * block_cells)
    first, last = jnp.min(start) // tile, pl.cdiv(length, tile)
    each = pl.cdiv(jnp.maximum(last - first, 0), cut.splits)
    lower = first + piece * each
    upper = jnp.minimum(lower + each, last)

    def absorb(number: Array, carry: Softmax) -> Softmax:
        cell = number * tile
        block = table_ref[session, cell // block_cells % width]
        place = (block, pl.ds(cell % block_cells, tile), head, slice(None))
        position = cell + jnp.arange(tile, dtype=jnp.int32)
        written = (position < length)[:, None]
        k = plgpu.load(keys_ref.at[place], mask=written, other=0.0)
        # Cells never written may hold anything, NaN included, and 0 * NaN is NaN.
        v = plgpu.load(values_ref.at[place], mask=written, other=0.0)
        visible = (position[None] >= start[:, None]) & (position[None] < length)
        return absorb_tile(carry, q, k, v, visible, scale, cap)

    carry = jax.lax.fori_loop(lower, upper, absorb, empty(cut.block_rows, q.shape[1]))
    out, lse = normalised(carry)
    rows_here = pl.ds(first_row, cut.block_rows)
    out_ref[piece, session, head, rows_here, :] = out
    lse_ref[piece, session, head, rows_here] = lse


def context_attention(
    q: Float[Array, "B R N H"],
    keys: Float[Array, "P C K H"],
    values: Float[Array, "P C K H"],
    table: Int[Array, "B W"],
    lengths: Int[Array, " B"],
    starts: Int[Array, "B R"],
    *,
    scale: float,
    cap: float | None = None,
    cut: Plan | None = None,
    interpret: bool = False,
) -> Partial:
    """The op itself: `context_splits` with its pieces merged, in float32."""
    splits = context_splits(
        q, keys, values, table, lengths, starts, scale=scale, cap=cap, cut=cut, interpret=interpret
    )
    top = jnp.max(splits.lse, axis=0)
    weights = jnp.exp(splits.lse - top[None])
    total = jnp.sum(weights, axis=0)
    out = jnp.sum(splits.out * (weights / total[None])[..., None], axis=0)
    lse = jnp.where(top > FLOOR, top + jnp.log(total), NOTHING)
    batch, rows, heads, _ = q.shape

    def unfold(x: Array) -> Array:
        """[B, K, F, …] as [B, R, N, …]."""
        kv_heads, folded = keys.shape[2], rows * heads // keys.shape[2]
        by_row = x[:, :, :folded].reshape(batch, kv_heads, rows, -1, *x.shape[3:])
        return by_row.swapaxes(1, 2).reshape(batch, rows, heads, *x.shape[3:])

    return Partial(out=unfold(out), lse=unfold(lse))


def finish(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    splits: Splits,
    slots: Int[Array, " R"],
    tail: LayerTail | None,
    *,
    rows_each: int,
    window: int | None,
    scale: float,
    cap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "R T N H"]:
    """Attention of each question's tokens over context, tail and themselves (causally).

    Args:
        q, k, v: of the new tokens, positions applied.
        splits: over the context, of sessions that `rows_each` questions look at each.
        slots: int32, session * rows_each + (which of its questions); past the end for none.
        tail: cells before the new tokens, or None.
        rows_each: E.
        window: a token sees itself and window - 1 cells before; None for all.
        scale, cap: of the scores.
        interpret: run as plain JAX, on any device.
    """
    questions, tokens, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    folded = tokens * heads // kv_heads
    block_rows = max(16, min(_FINISH_ROWS, pl.next_power_of_2(folded)))
    work = _Work(
        block_rows=block_rows,
        tokens=tokens,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        pieces=splits.out.shape[0],
        sessions=splits.out.shape[1],
        context_rows=splits.out.shape[3],
        rows_each=rows_each,
        window=window,
        scale=scale,
        cap=cap,
    )
    context = (splits.out.reshape(-1, head_dim), splits.lse.reshape(-1), slots)
    out = pl.pallas_call(
        functools.partial(_finish_kernel, work=work),
        grid=(pl.cdiv(folded, block_rows) * kv_heads, questions),
        out_shape=jax.ShapeDtypeStruct((questions * tokens * heads, head_dim), q.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="finish_attention",
    )(*(x.reshape(-1, head_dim) for x in (q, k, v)), *context, tail)
    return out.reshape(q.shape)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Static numbers of a call; X pieces, B sessions and F rows as in `Splits`."""

    block_rows: int
    tokens: int
    kv_heads: int
    group: int
    pieces: int
    sessions: int
    context_rows: int
    rows_each: int
    window: int | None
    scale: float
    cap: float | None


class _Rows(NamedTuple):
    """The rows of one program.

    Attributes:
        question, head: which.
        number: int32 [F], t * group + (which query head of the KV head).
        token: int32 [F], t.
        real: bool [F], false for padding.
    """

    question: Array
    head: Array
    number: Array
    token: Array
    real: Array


def _finish_kernel(
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    parts_ref: jax.Ref,
    lse_ref: jax.Ref,
    slots_ref: jax.Ref,
    tail: LayerTail | None,
    out_ref: jax.Ref,
    *,
    work: _Work,
) -> None:
    """One row block of one KV head of one question."""
    row_blocks = pl.cdiv(work.tokens * work.group, work.block_rows)
    first = pl.program_id(0) % row_blocks * work.block_rows
    number = first + jnp.arange(work.block_rows, dtype=jnp.int32)
    rows = _Rows(
        question=pl.program_id(1),
        head=pl.program_id(0) // row_blocks,
        number=number,
        token=number // work.group,
        real=number < work.tokens * work.group,
    )
    at = (rows.question * work.tokens + rows.token) * (work.kv_heads * work.group)
    at += rows.head * work.group + number % work.group
    q = load_rows(q_ref, at, rows.real)
    carry = _merge_pieces(parts_ref, lse_ref, slots_ref[rows.question], rows, work)
    if tail is not None:
        carry = _absorb_tail(carry, q, tail, rows, first // work.group, work)
    carry = _absorb_new(carry, q, k_ref, v_ref, rows, first, work)
    store_rows(out_ref, at, normalised(carry)[0].astype(q.dtype), rows.real)


def _merge_pieces(
    parts_ref: jax.Ref, lse_ref: jax.Ref, slot: Array, rows: _Rows, work: _Work
) -> Softmax:
    """The context's pieces as one running softmax; unrolled, so that no load waits for another."""
    sees = rows.real & (slot < work.sessions * work.rows_each)
    at = (slot // work.rows_each * work.kv_heads + rows.head) * work.context_rows
    at += slot % work.rows_each * (work.tokens * work.group) + rows.number
    stride = work.sessions * work.kv_heads * work.context_rows
    each = [
        plgpu.load(lse_ref.at[piece * stride + at], mask=sees, other=NOTHING) * LOG2_E
        for piece in range(work.pieces)
    ]
    top = functools.reduce(jnp.maximum, each, jnp.full_like(each[0], FLOOR))
    weighted, total = jnp.zeros((work.block_rows, parts_ref.shape[1]), jnp.float32), 0.0
    for piece, lse in enumerate(each):
        weight = jnp.exp2(lse - top)
        weighted += load_rows(parts_ref, piece * stride + at, sees) * weight[:, None]
        total += weight
    return Softmax(weighted=weighted, top=top, total=jnp.asarray(total))


def _absorb_tail(
    carry: Softmax, q: Array, tail: LayerTail, rows: _Rows, first_token: Array, work: _Work
) -> Softmax:
    """The question's earlier cells."""
    block_cells, width = tail.keys.shape[1], tail.tables.shape[1]
    size, used = tile_cells(block_cells), tail.used[rows.question]
    # Inside a kernel the arrays of a pytree are references to them.
    keys, values = cast("tuple[jax.Ref, jax.Ref]", (tail.keys, tail.values))
    first = jnp.int32(0)
    if work.window is not None:
        first = jnp.maximum(used + first_token - (work.window - 1), 0) // size

    def absorb(number: Array, carry: Softmax) -> Softmax:
        cell = number * size
        block = tail.tables[rows.question, jnp.minimum(cell // block_cells, width - 1)]
        place = (block, pl.ds(cell % block_cells, size), rows.head, slice(None))
        position = cell + jnp.arange(size, dtype=jnp.int32)
        written = position < used
        k = plgpu.load(keys.at[place], mask=written[:, None], other=0.0)
        # What an earlier question left behind may be NaN, and 0 * NaN is NaN.
        v = plgpu.load(values.at[place], mask=written[:, None], other=0.0)
        visible = written[None] & rows.real[:, None]
        if work.window is not None:
            visible &= position[None] > used + rows.token[:, None] - work.window
        return absorb_tile(carry, q, k, v, visible, work.scale, work.cap)

    return jax.lax.fori_loop(first, pl.cdiv(used, size), absorb, carry)


def _absorb_new(
    carry: Softmax, q: Array, k_ref: jax.Ref, v_ref: jax.Ref, rows: _Rows, first: Array, work: _Work
) -> Softmax:
    """The new tokens themselves, each up to itself."""
    size = max(16, min(64, pl.next_power_of_2(work.tokens)))
    newest = jnp.minimum((first + work.block_rows - 1) // work.group, work.tokens - 1)
    oldest = jnp.int32(0)
    if work.window is not None:
        oldest = jnp.maximum(first // work.group - (work.window - 1), 0) // size

    def absorb(number: Array, carry: Softmax) -> Softmax:
        other = number * size + jnp.arange(size, dtype=jnp.int32)
        there = other < work.tokens
        at = (rows.question * work.tokens + other) * work.kv_heads + rows.head
        k, v = load_rows(k_ref, at, there), load_rows(v_ref, at, there)
        visible = other[None] <= rows.token[:, None]
        if work.window is not None:
            visible &= other[None] > rows.token[:, None] - work.window
        return absorb_tile(carry, q, k, v, visible, work.scale, work.cap)

    return jax.lax.fori_loop(oldest, newest // size + 1, absorb, carry)


def load_rows(ref: jax.Ref, rows: Int[Array, " F"], real: Array) -> Float[Array, "F H"]:
    """Rows of a matrix by number; zeros where `real` is false."""
    return plgpu.load(ref.at[_whole(ref, rows)], mask=real[:, None], other=0.0)


def store_rows(
    ref: jax.Ref, rows: Int[Array, " F"], values: Float[Array, "F H"], real: Array
) -> None:
    """Writes rows of a matrix by number, where `real` is true."""
    plgpu.store(ref.at[_whole(ref, rows)], values, mask=real[:, None])


def _whole(ref: jax.Ref, rows: Int[Array, " F"]) -> tuple[Array, ...]:
    """Indices of all columns of those rows."""
    columns = jnp.arange(ref.shape[1], dtype=jnp.int32)
    return tuple(jnp.broadcast_arrays(rows[:, None], columns[None]))


class Softmax(NamedTuple):
    """Sums of an online softmax in base 2, float32: values [F, H], maximum and total [F]."""

    weighted: Array
    top: Array
    total: Array


def empty(rows: int, head_dim: int) -> Softmax:
    """Nothing seen yet."""
    return Softmax(
        weighted=jnp.zeros((rows, head_dim), jnp.float32),
        top=jnp.full((rows,), FLOOR, jnp.float32),
        total=jnp.zeros((rows,), jnp.float32),
    )


def absorb_tile(
    carry: Softmax,
    q: Float[Array, "F H"],
    k: Float[Array, "S H"],
    v: Float[Array, "S H"],
    visible: Array,
    scale: float,
    cap: float | None,
) -> Softmax:
    """One tile of cells taken in; `visible` is bool, [F, S]."""
    scores = plgpu.dot(q, k.T) * (scale * LOG2_E if cap is None else scale / cap)
    if cap is not None:
        scores = jnp.tanh(scores) * (cap * LOG2_E)
    scores = jnp.where(visible, scores, NOTHING)
    top = jnp.maximum(carry.top, jnp.max(scores, axis=1))
    shrink = jnp.exp2(carry.top - top)
    weights = jnp.exp2(scores - top[:, None])
    return Softmax(
        weighted=carry.weighted * shrink[:, None] + plgpu.dot(weights.astype(v.dtype), v),
        top=top,
        total=carry.total * shrink + jnp.sum(weights, axis=1),
    )


def normalised(carry: Softmax) -> tuple[Float[Array, "F H"], Float[Array, " F"]]:
    """The output and the natural log-sum-exp; of nothing 0 and about -1e30."""
    some = carry.total > 0
    total = jnp.where(some, carry.total, 1.0)
    lse = jnp.where(some, (carry.top + jnp.log2(total)) / LOG2_E, NOTHING)
    return carry.weighted / total[:, None], lse
