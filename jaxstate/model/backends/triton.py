"""Attention on an NVIDIA GPU: two Pallas kernels a layer, lowered through Triton.

Comes in: what `attend` of `jaxstate.model.backends.reference` takes. Goes out: the same, within the
rounding of its dtype. `_pieces` computes attention over disjoint pieces: the committed cells, cut
so that all of the GPU is busy (flash decoding over a block table), and beside them each question's
own cells and new tokens. `_merged` puts the pieces together. In XLA the same is about thirty small
kernels a layer, each of which costs more to start than to run. Runs in interpret mode on any
device, for tests. Does not know: whether it is worth it on this device (`choose_backend`).

All rows that look at one session (tokens, questions, the query heads of a KV head) are one matrix,
so each cell is read once for every `block_rows` of them. The online softmax is that of
FlashAttention (arXiv 2205.14135), in base 2; the split over the context that of Flash-Decoding.
Each program walks the tiles of its piece, whose bounds follow the session's length and the rows'
starts: a wide table costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from jaxstate.cells.pool import GroupCells
from jaxstate.model.attention import Partial
from jaxstate.model.context import Heads, LayerContext, LayerTail, by_session

# The log-sum-exp of nothing, and what a running maximum starts with: e^(_NOTHING - _FLOOR) is 0,
# so a masked score weighs nothing even where a row has seen nothing else.
_NOTHING = -1e30
_FLOOR = -1e29
_LOG2_E = math.log2(math.e)
# Programs that keep an H100's 132 multiprocessors busy: two on each.
_PROGRAMS = 264
_MAX_SPLITS = 32
_TILE_CELLS = 64
# Numbers that one program of the merging kernel holds at most, and programs that fill the GPU.
_MERGE_TILE = 8192
_MERGE_PROGRAMS = 1056


def attend(
    qkv: Float[Array, "B Q T G H"],
    positions: Int[Array, "B Q T"],
    context: LayerContext,
    tail: LayerTail | None,
    *,
    heads: Heads,
    window: int | None,
    scale: float,
    cap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B Q T N H"]:
    """`jaxstate.model.backends.reference.attend`, in two kernels.

    Args:
        qkv, positions, context, tail, heads, window, scale, cap: as there.
        interpret: run as plain JAX, on any device.
    """
    starts = jnp.zeros(positions.shape, jnp.int32)
    if window is not None:
        starts = jnp.maximum(positions - (window - 1), 0)
    # Where the rows of a session are side by side already, queries are read where they lie.
    queries = qkv if context.place is None else qkv[..., : heads.queries, :]
    rows, starts = by_session(queries, starts, context)
    sessions, each = rows.shape[:2]
    tokens, head_dim = qkv.shape[2], qkv.shape[4]
    committed = _Committed(
        q=rows.reshape(sessions, each * tokens, *rows.shape[3:]),
        cells=context.cells,
        layer=context.layer,
        table=context.table,
        lengths=context.lengths,
        starts=starts.reshape(sessions, -1),
    )
    own = _Own(qkv=qkv.reshape(-1, tokens, *qkv.shape[3:]), tail=tail)
    block_cells, folded = context.cells.shape[3], tokens * heads.queries // heads.keys
    over_context, over_own = _pieces(
        committed,
        own,
        heads=heads,
        cut=plan(sessions, each * folded, heads.keys, head_dim, block_cells),
        scores=_Scores(window=window, scale=scale, cap=cap),
        interpret=interpret,
    )
    place, shape = context.place, (own.qkv.shape[0], tokens, heads.queries, head_dim)
    slots = jnp.arange(shape[0], dtype=jnp.int32) if place is None else place
    out = _merged(
        over_context,
        over_own,
        slots,
        shape=shape,
        dtype=qkv.dtype,
        rows_each=each,
        interpret=interpret,
    )
    return out.reshape(*qkv.shape[:3], heads.queries, head_dim)


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
class Pieces:
    """Attention over X disjoint pieces of what rows see, rows folded by KV head.

    Attributes:
        out: float32 [X, B, K, F, H], normalised over each piece.
        lse: float32 [X, B, K, F], natural log-sum-exp; about -1e30 where a row sees nothing.
    """

    out: Float[Array, "X B K F H"]
    lse: Float[Array, "X B K F"]


class _Committed(NamedTuple):
    """Rows and the committed cells that they see; as `context_attention` takes them, but that
    other heads may lie behind the N query heads of `q`."""

    q: Float[Array, "B R G H"]
    cells: GroupCells
    layer: Int[Array, ""]
    table: Int[Array, "B W"]
    lengths: Int[Array, " B"]
    starts: Int[Array, "B R"]


class _Own(NamedTuple):
    """New tokens of each question, and the question's earlier cells."""

    qkv: Float[Array, "R T G H"]
    tail: LayerTail | None


class _Scores(NamedTuple):
    """How scores are made: a token sees itself and window - 1 cells before; None for all."""

    window: int | None
    scale: float
    cap: float | None


class Plan(NamedTuple):
    """How a call is cut: rows of a program, cells of a tile, pieces of the context, resources."""

    block_rows: int
    tile_cells: int
    splits: int
    warps: int
    stages: int


def plan(batch: int, rows: int, kv_heads: int, head_dim: int, block_cells: int) -> Plan:
    """A cut for `rows` folded rows of each of `batch` sessions; measured on an H100."""
    block_rows = max(16, min(64, pl.next_power_of_2(rows)))
    programs = batch * kv_heads * pl.cdiv(rows, block_rows)
    wanted = min(_MAX_SPLITS, max(1, _PROGRAMS // programs))
    return Plan(
        block_rows=block_rows,
        tile_cells=tile_cells(block_cells),
        splits=1 << (wanted.bit_length() - 1),
        warps=4,
        stages=3 if head_dim <= 128 else 2,
    )


def tile_cells(block_cells: int) -> int:
    """Cells of a tile: a tile never crosses a block."""
    return math.gcd(block_cells, _TILE_CELLS)


def _pieces(
    committed: _Committed,
    own: _Own | None,
    *,
    heads: Heads,
    cut: Plan,
    scores: _Scores,
    interpret: bool,
) -> list[Pieces]:
    """Attention over the committed cells in `cut.splits` pieces, and over what questions brought.

    Both run in one kernel, side by side: the second takes as long as a few pieces of the first.
    """
    batch, rows, _, head_dim = committed.q.shape
    group = heads.queries // heads.keys
    padded = _padded(rows * group, cut.block_rows)
    shapes = [(cut.splits, batch, heads.keys, padded)]
    tokens = first_program = 0
    flat_own = None
    if own is not None:
        questions, tokens = own.qkv.shape[:2]
        block_rows = _own_block_rows(cut, tokens * group)
        own_padded = _padded(tokens * group, block_rows)
        shapes.append((1, questions, heads.keys, own_padded))
        first_program = questions * heads.keys * own_padded // block_rows
        flat_own = _flat_own(own)
    work = _Work(
        first_program=first_program,
        rows=rows,
        tokens=tokens,
        heads=heads,
        q_heads=committed.q.shape[2],
        cut=cut,
        scores=scores,
    )
    return pl.pallas_call(
        functools.partial(_pieces_kernel, work=work),
        grid=(first_program + batch * cut.splits * heads.keys * padded // cut.block_rows,),
        out_shape=[
            jax.eval_shape(
                lambda shape=shape: Pieces(out=jnp.zeros((*shape, head_dim)), lse=jnp.zeros(shape))
            )
            for shape in shapes
        ],
        compiler_params=plgpu.CompilerParams(num_warps=cut.warps, num_stages=cut.stages),
        interpret=interpret,
        name="attend_pieces",
    )(_flat(committed), flat_own)


def _flat(committed: _Committed) -> _Committed:
    """Queries as a matrix of rows of H, which a kernel addresses best; its numbers as arrays."""
    q = committed.q.reshape(-1, committed.q.shape[-1])
    return committed._replace(q=q, layer=committed.layer.reshape(1))


def _flat_own(own: _Own) -> _Own:
    """As `_flat`."""
    tail = (
        None if own.tail is None else dataclasses.replace(own.tail, layer=own.tail.layer.reshape(1))
    )
    return _Own(qkv=own.qkv.reshape(-1, own.qkv.shape[-1]), tail=tail)


class _Work(NamedTuple):
    """Static numbers of a call.

    Attributes:
        first_program: that looks at committed cells; those before take what questions brought.
        rows: R of a session.
        tokens: T of a question.
        heads: N and K.
        q_heads: heads that lie side by side in the rows' queries, N or more.
        cut, scores: as given.
    """

    first_program: int
    rows: int
    tokens: int
    heads: Heads
    q_heads: int
    cut: Plan
    scores: _Scores

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads.queries // self.heads.keys


def _padded(rows: int, block_rows: int) -> int:
    return pl.cdiv(rows, block_rows) * block_rows


def _own_block_rows(cut: Plan, rows: int) -> int:
    """Rows of a program over what questions brought."""
    return max(16, min(cut.block_rows, pl.next_power_of_2(rows)))


def _pieces_kernel(
    committed: _Committed,
    own: _Own | None,
    over_context: Pieces,
    over_own: Pieces | None = None,
    *,
    work: _Work,
) -> None:
    """The first programs take what questions brought, so that none of the others waits for them."""
    program = pl.program_id(0)
    if own is None or over_own is None:
        _context_piece(committed, over_context, program, work)
        return

    @pl.when(program < work.first_program)
    def _() -> None:
        _own_piece(own, over_own, program, work)

    @pl.when(program >= work.first_program)
    def _() -> None:
        _context_piece(committed, over_context, program - work.first_program, work)


def _context_piece(refs: _Committed, outs: Pieces, program: Array, work: _Work) -> None:
    """One row block of one KV head over one piece of one session's cells."""
    rows, group, cut = work.rows, work.group, work.cut
    q_ref, cells, table, lengths, starts, layers = _refs(
        refs.q, refs.cells, refs.table, refs.lengths, refs.starts, refs.layer
    )
    layer = layers[0]
    block_cells, kv_heads = cells.shape[3], cells.shape[4]
    width, tile = table.shape[1], cut.tile_cells
    row_blocks = pl.cdiv(rows * group, cut.block_rows)
    # Neighbouring programs read the same cells: row blocks first, then heads.
    first_row, rest = program % row_blocks * cut.block_rows, program // row_blocks
    head, rest = rest % kv_heads, rest // kv_heads
    piece, session = rest % cut.splits, rest // cut.splits

    row = first_row + jnp.arange(cut.block_rows, dtype=jnp.int32)
    real = row < rows * group
    at = (session * rows + row // group) * work.q_heads + head * group + row % group
    q = _load_rows(q_ref, at, real)
    length = lengths[session]
    start = plgpu.load(starts.at[session, row // group], mask=real, other=length)
    # A ring has overwritten what lies before.
    start = jnp.maximum(start, (pl.cdiv(length, block_cells) - width) * block_cells)
    first, last = jnp.min(start) // tile, pl.cdiv(length, tile)
    each = pl.cdiv(jnp.maximum(last - first, 0), cut.splits)
    lower = first + piece * each
    upper = jnp.minimum(lower + each, last)

    def absorb(number: Array, carry: _Softmax) -> _Softmax:
        cell = number * tile
        block = table[session, cell // block_cells % width]
        place = (pl.ds(cell % block_cells, tile), head, slice(None))
        position = cell + jnp.arange(tile, dtype=jnp.int32)
        written = (position < length)[:, None]
        k = plgpu.load(cells.at[block, layer, jnp.int32(0), *place], mask=written, other=0.0)
        # Cells never written may hold anything, NaN included, and 0 * NaN is NaN.
        v = plgpu.load(cells.at[block, layer, jnp.int32(1), *place], mask=written, other=0.0)
        visible = (position[None] >= start[:, None]) & (position[None] < length)
        return _absorb(carry, q, k, v, visible, work.scores)

    carry = jax.lax.fori_loop(lower, upper, absorb, _nothing_seen(cut.block_rows, q.shape[1]))
    _store(outs, (piece, session, head, pl.ds(first_row, cut.block_rows)), carry)


def _own_piece(refs: _Own, outs: Pieces, program: Array, work: _Work) -> None:
    """One row block of one KV head of one question, over the question's own cells and tokens."""
    (qkv,) = _refs(refs.qkv)
    tokens, group, kv_heads = work.tokens, work.group, work.heads.keys
    block_rows = _own_block_rows(work.cut, tokens * group)
    row_blocks = pl.cdiv(tokens * group, block_rows)
    first_row, rest = program % row_blocks * block_rows, program // row_blocks
    head, question = rest % kv_heads, rest // kv_heads
    number = first_row + jnp.arange(block_rows, dtype=jnp.int32)
    rows = _Rows(
        question=question,
        head=head,
        first_token=first_row // group,
        last_token=jnp.minimum((first_row + block_rows - 1) // group, tokens - 1),
        token=number // group,
        real=number < tokens * group,
    )
    at = (question * tokens + rows.token) * (work.heads.queries + 2 * kv_heads)
    q = _load_rows(qkv, at + head * group + number % group, rows.real)
    carry = _nothing_seen(block_rows, q.shape[1])
    if refs.tail is not None:
        carry = _absorb_tail(carry, q, refs.tail, rows, work.scores)
    carry = _absorb_new(carry, q, qkv, rows, work)
    _store(outs, (0, question, head, pl.ds(first_row, block_rows)), carry)


class _Rows(NamedTuple):
    """The rows of one program, F of them.

    Attributes:
        question, head: which.
        first_token, last_token: of those among them.
        token: int32 [F].
        real: bool [F], false for padding.
    """

    question: Array
    head: Array
    first_token: Array
    last_token: Array
    token: Array
    real: Array


def _absorb_tail(
    carry: _Softmax, q: Array, tail: LayerTail, rows: _Rows, scores: _Scores
) -> _Softmax:
    """The question's earlier cells."""
    cells, layers = _refs(tail.cells, tail.layer)
    layer = layers[0]
    block_cells, width = cells.shape[3], tail.tables.shape[1]
    size, used = tile_cells(block_cells), tail.used[rows.question]
    first = jnp.int32(0)
    if scores.window is not None:
        first = jnp.maximum(used + rows.first_token - (scores.window - 1), 0) // size

    def absorb(number: Array, carry: _Softmax) -> _Softmax:
        cell = number * size
        block = tail.tables[rows.question, jnp.minimum(cell // block_cells, width - 1)]
        place = (pl.ds(cell % block_cells, size), rows.head, slice(None))
        position = cell + jnp.arange(size, dtype=jnp.int32)
        written = position < used
        k = plgpu.load(
            cells.at[block, layer, jnp.int32(0), *place], mask=written[:, None], other=0.0
        )
        # What an earlier question left behind may be NaN, and 0 * NaN is NaN.
        v = plgpu.load(
            cells.at[block, layer, jnp.int32(1), *place], mask=written[:, None], other=0.0
        )
        visible = written[None] & rows.real[:, None]
        if scores.window is not None:
            visible &= position[None] > used + rows.token[:, None] - scores.window
        return _absorb(carry, q, k, v, visible, scores)

    return jax.lax.fori_loop(first, pl.cdiv(used, size), absorb, carry)


def _absorb_new(carry: _Softmax, q: Array, qkv: jax.Ref, rows: _Rows, work: _Work) -> _Softmax:
    """The new tokens themselves, each up to itself."""
    tokens, heads, window = work.tokens, work.heads, work.scores.window
    size = max(16, min(64, pl.next_power_of_2(tokens)))
    oldest = jnp.int32(0)
    if window is not None:
        oldest = jnp.maximum(rows.first_token - (window - 1), 0) // size

    def absorb(number: Array, carry: _Softmax) -> _Softmax:
        other = number * size + jnp.arange(size, dtype=jnp.int32)
        there = other < tokens
        at = (rows.question * tokens + other) * (heads.queries + 2 * heads.keys)
        at += heads.queries + rows.head
        k, v = _load_rows(qkv, at, there), _load_rows(qkv, at + heads.keys, there)
        visible = other[None] <= rows.token[:, None]
        if window is not None:
            visible &= other[None] > rows.token[:, None] - window
        return _absorb(carry, q, k, v, visible, work.scores)

    return jax.lax.fori_loop(oldest, rows.last_token // size + 1, absorb, carry)


def _merged(
    over_context: Pieces,
    over_own: Pieces,
    slots: Int[Array, " R"],
    *,
    shape: tuple[int, int, int, int],
    dtype: jnp.dtype,
    rows_each: int,
    interpret: bool,
) -> Float[Array, "R T N H"]:
    """All pieces that a row sees as one softmax.

    Args:
        over_context: of sessions that `rows_each` questions look at each.
        over_own: of questions.
        slots: int32, session * rows_each + (which of its questions); past the end for none.
        shape: R, T, N, H.
        dtype: of the result.
        rows_each: E.
        interpret: run as plain JAX, on any device.
    """
    rows, pieces, head_dim = math.prod(shape[:3]), over_context.lse.shape[0], shape[3]
    most = max(1, _MERGE_TILE // (pieces * head_dim))
    block_rows = max(1, min(most, 16, pl.next_power_of_2(pl.cdiv(rows, _MERGE_PROGRAMS))))
    kernel = functools.partial(
        _merge_kernel,
        block_rows=block_rows,
        rows=rows,
        tokens=shape[1],
        group=shape[2] // over_own.lse.shape[2],
        rows_each=rows_each,
        context=over_context.lse.shape,
        own=over_own.lse.shape,
    )
    flat = [
        Pieces(out=piece.out.reshape(-1, head_dim), lse=piece.lse.reshape(-1))
        for piece in (over_context, over_own)
    ]
    out = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, block_rows),),
        out_shape=jax.ShapeDtypeStruct((rows, head_dim), dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="merge_pieces",
    )(*flat, slots)
    return out.reshape(shape)


def _merge_kernel(
    over_context: Pieces,
    over_own: Pieces,
    slots_ref: jax.Ref,
    out_ref: jax.Ref,
    *,
    block_rows: int,
    rows: int,
    tokens: int,
    group: int,
    rows_each: int,
    context: tuple[int, ...],
    own: tuple[int, ...],
) -> None:
    """Some rows, in the order of the output; all pieces of a row are loaded at once."""
    pieces, sessions, kv_heads, context_rows = context
    row = pl.program_id(0) * block_rows + jnp.arange(block_rows, dtype=jnp.int32)
    real = row < rows
    head_of_all, place = row % (kv_heads * group), row // (kv_heads * group)
    token, question = place % tokens, place // tokens
    head, number = head_of_all // group, token * group + head_of_all % group

    slot = plgpu.load(slots_ref.at[question], mask=real, other=sessions * rows_each)
    looks = real & (slot < sessions * rows_each)
    at = (slot // rows_each * kv_heads + head) * context_rows
    at += slot % rows_each * (tokens * group) + number
    stride = sessions * kv_heads * context_rows
    at = at[:, None] + jnp.arange(pieces, dtype=jnp.int32)[None] * stride
    looks = jnp.broadcast_to(looks[:, None], at.shape)
    own_at = (question * kv_heads + head) * own[3] + number

    context_out, context_lse = _refs(over_context.out, over_context.lse)
    own_out, own_lse_ref = _refs(over_own.out, over_own.lse)
    lse = plgpu.load(context_lse.at[at], mask=looks, other=_NOTHING)
    own_lse = plgpu.load(own_lse_ref.at[own_at], mask=real, other=0.0)
    top = jnp.maximum(jnp.max(lse, axis=1), own_lse)
    weights, own_weight = jnp.exp(lse - top[:, None]), jnp.exp(own_lse - top)
    total = jnp.sum(weights, axis=1) + own_weight

    columns = jnp.arange(out_ref.shape[1], dtype=jnp.int32)
    index = jnp.broadcast_arrays(at[:, :, None], columns[None, None])
    seen = jnp.broadcast_to(looks[:, :, None], index[0].shape)
    parts = plgpu.load(context_out.at[tuple(index)], mask=seen, other=0.0)
    own_part = _load_rows(own_out, own_at, real)
    out = jnp.sum(parts * weights[:, :, None], axis=1) + own_part * own_weight[:, None]
    _store_rows(out_ref, row, (out / total[:, None]).astype(out_ref.dtype), real)


def context_attention(
    q: Float[Array, "B R N H"],
    cells: GroupCells,
    layer: Int[Array, ""],
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
    block_cells, kv_heads = cells.shape[3], cells.shape[4]
    folded = q.shape[1] * q.shape[2] // kv_heads
    cut = cut or plan(q.shape[0], folded, kv_heads, q.shape[3], block_cells)
    (splits,) = _pieces(
        _Committed(q, cells, layer, table, lengths, starts),
        None,
        heads=Heads(q.shape[2], kv_heads),
        cut=cut,
        scores=_Scores(window=None, scale=scale, cap=cap),
        interpret=interpret,
    )
    top = jnp.max(splits.lse, axis=0)
    weights = jnp.exp(splits.lse - top[None])
    total = jnp.sum(weights, axis=0)
    out = jnp.sum(splits.out * (weights / total[None])[..., None], axis=0)
    lse = jnp.where(top > _FLOOR, top + jnp.log(total), _NOTHING)
    batch, rows, heads, _ = q.shape

    def unfold(x: Array) -> Array:
        """[B, K, F, …] as [B, R, N, …]."""
        by_row = x[:, :, :folded].reshape(batch, kv_heads, rows, -1, *x.shape[3:])
        return by_row.swapaxes(1, 2).reshape(batch, rows, heads, *x.shape[3:])

    return Partial(out=unfold(out), lse=unfold(lse))


def add_norm(
    x: Float[Array, "*batch D"],
    change: Float[Array, "*batch D"],
    scale: Float[Array, " D"],
    *,
    eps: float,
    interpret: bool = False,
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """`jaxstate.model.backends.reference.add_norm` in one kernel, a program for each row.

    Args:
        x, change, scale, eps: as there.
        interpret: run as plain JAX, on any device.
    """
    dim = x.shape[-1]
    rows = x.size // dim
    shape = jax.ShapeDtypeStruct((rows, dim), x.dtype)
    total, normed = pl.pallas_call(
        functools.partial(_add_norm_kernel, eps=eps),
        grid=(rows,),
        out_shape=[shape, shape],
        compiler_params=plgpu.CompilerParams(num_warps=8 if dim > 2048 else 4, num_stages=1),
        interpret=interpret,
        name="add_norm",
    )(x.reshape(rows, dim), change.reshape(rows, dim), scale)
    return total.reshape(x.shape), normed.reshape(x.shape)


def _add_norm_kernel(
    x_ref: jax.Ref,
    change_ref: jax.Ref,
    scale_ref: jax.Ref,
    total_ref: jax.Ref,
    normed_ref: jax.Ref,
    *,
    eps: float,
) -> None:
    """One row."""
    row, dim = pl.program_id(0), x_ref.shape[1]
    column = jnp.arange(pl.next_power_of_2(dim), dtype=jnp.int32)
    real = column < dim
    x = plgpu.load(x_ref.at[row, column], mask=real, other=0.0)
    total = x + plgpu.load(change_ref.at[row, column], mask=real, other=0.0)
    wide = total.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.sum(wide * wide) / dim + eps)
    scale = plgpu.load(scale_ref.at[column], mask=real, other=0.0)
    plgpu.store(total_ref.at[row, column], total, mask=real)
    plgpu.store(normed_ref.at[row, column], (wide * inverse * scale).astype(x.dtype), mask=real)


def _refs(*arrays: Array) -> tuple[jax.Ref, ...]:
    """What the arrays of a pytree are inside a kernel."""
    return cast("tuple[jax.Ref, ...]", arrays)


def _load_rows(ref: jax.Ref, rows: Int[Array, " F"], real: Array) -> Float[Array, "F H"]:
    """Rows of a matrix by number; zeros where `real` is false."""
    return plgpu.load(ref.at[_whole(ref, rows)], mask=real[:, None], other=0.0)


def _store_rows(
    ref: jax.Ref, rows: Int[Array, " F"], values: Float[Array, "F H"], real: Array
) -> None:
    """Writes rows of a matrix by number, where `real` is true."""
    plgpu.store(ref.at[_whole(ref, rows)], values, mask=real[:, None])


def _whole(ref: jax.Ref, rows: Int[Array, " F"]) -> tuple[Array, ...]:
    """Indices of all columns of those rows."""
    columns = jnp.arange(ref.shape[1], dtype=jnp.int32)
    return tuple(jnp.broadcast_arrays(rows[:, None], columns[None]))


class _Softmax(NamedTuple):
    """Sums of an online softmax in base 2, float32: values [F, H], maximum and total [F]."""

    weighted: Array
    top: Array
    total: Array


def _nothing_seen(rows: int, head_dim: int) -> _Softmax:
    return _Softmax(
        weighted=jnp.zeros((rows, head_dim), jnp.float32),
        top=jnp.full((rows,), _FLOOR, jnp.float32),
        total=jnp.zeros((rows,), jnp.float32),
    )


def _absorb(
    carry: _Softmax,
    q: Float[Array, "F H"],
    k: Float[Array, "S H"],
    v: Float[Array, "S H"],
    visible: Array,
    scores: _Scores,
) -> _Softmax:
    """One tile of cells taken in; `visible` is bool, [F, S]."""
    scale, cap = scores.scale, scores.cap
    found = plgpu.dot(q, k.T) * (scale * _LOG2_E if cap is None else scale / cap)
    if cap is not None:
        found = jnp.tanh(found) * (cap * _LOG2_E)
    found = jnp.where(visible, found, _NOTHING)
    top = jnp.maximum(carry.top, jnp.max(found, axis=1))
    shrink = jnp.exp2(carry.top - top)
    weights = jnp.exp2(found - top[:, None])
    return _Softmax(
        weighted=carry.weighted * shrink[:, None] + plgpu.dot(weights.astype(v.dtype), v),
        top=top,
        total=carry.total * shrink + jnp.sum(weights, axis=1),
    )


def _store(
    outs: Pieces, place: tuple[Array | int | pl.Slice | slice, ...], carry: _Softmax
) -> None:
    """The output and the natural log-sum-exp; of nothing 0 and about -1e30."""
    out, lse = _refs(outs.out, outs.lse)
    some = carry.total > 0
    total = jnp.where(some, carry.total, 1.0)
    out[(*place, slice(None))] = carry.weighted / total[:, None]
    lse[place] = jnp.where(some, (carry.top + jnp.log2(total)) / _LOG2_E, _NOTHING)
