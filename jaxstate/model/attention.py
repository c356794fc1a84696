"""Exact attention in two parts: over committed cells, and over the few tokens of a question or
chunk.

Comes in: queries, a layer's pool with block tables and lengths, and the tail's cells. Goes out:
float32 outputs with their float32 log-sum-exp, so that disjoint parts merge exactly:

    softmax over A and B together = (e^la * a + e^lb * b) / (e^la + e^lb)

where a, b are the outputs over each part alone and la, lb their log-sum-exps (the identity that
flash attention and split-KV decoding rest on). Does not know: layers, projections, who owns the
cells.

`context_attention` has no causal mask, so all rows that look at the same cells (tokens, questions,
the query heads of a KV head) are folded into one matrix and the cells are read once for all of
them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.pool import GroupCells, layer_blocks
from jaxstate.model.layers import softcap

# Finite, so that a row which sees nothing gives zeros and not NaN.
_NOTHING = -1e30
# Cells that one turn of the loop reads at most: enough to keep the matrix products busy.
_CHUNK_CELLS = 1024


@struct.dataclass
class Partial:
    """Attention over some of the keys.

    Attributes:
        out: float32 [B, R, N, H], normalised over those keys.
        lse: float32 [B, R, N], the log of the sum of their exponentials.
    """

    out: Float[Array, "B R N H"]
    lse: Float[Array, "B R N"]


@struct.dataclass
class _Softmax:
    """Sums of an online softmax, float32: [B, K, R, H] values and [B, K, R] maximum and total."""

    weighted: Float[Array, "B K R H"]
    top: Float[Array, "B K R"]
    total: Float[Array, "B K R"]


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint sets of keys, exactly."""
    top = jnp.maximum(a.lse, b.lse)
    weight_a, weight_b = jnp.exp(a.lse - top), jnp.exp(b.lse - top)
    total = weight_a + weight_b
    out = a.out * (weight_a / total)[..., None] + b.out * (weight_b / total)[..., None]
    return Partial(out=out, lse=top + jnp.log(total))


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
) -> Partial:
    """Attention of R rows of each session over that session's committed cells.

    Row r of session b sees the cells at positions starts[b, r] <= p < lengths[b]; the cell at
    position p is `table[b, (p // C) % W], p % C`. The loop's length follows the longest session,
    not the table's width, so one compiled step serves every length at a cost that follows the cells
    in use.

    Args:
        q: queries with positions applied.
        cells: of a group of layers.
        layer: int32, which of them.
        table: int32 physical blocks.
        lengths: int32.
        starts: int32, zeros for a layer that sees everything.
        scale: multiplies the scores, in float32.
        cap: soft cap of the scores.

    Returns:
        Partial over those cells; out is 0 and lse about -1e30 for rows that see none.
    """
    batch, rows, heads, head_dim = q.shape
    block_cells, kv_heads = cells.shape[3], cells.shape[4]
    group = heads // kv_heads
    folded = _fold(q, kv_heads)
    row_starts = jnp.repeat(starts, group, axis=1)
    chunk_blocks = _chunk_blocks(table.shape[1], block_cells)
    first = jnp.min(starts, axis=1) // block_cells
    last = -(-lengths // block_cells)
    turns = -(-jnp.max(last - first) // chunk_blocks)
    # A ring has overwritten what lies before.
    oldest = (last - table.shape[1]) * block_cells

    def absorb_chunk(turn: Int[Array, ""], carry: _Softmax) -> _Softmax:
        """Gathers the next chunk of every session's cells and takes it in."""
        ahead = turn * chunk_blocks + jnp.arange(chunk_blocks, dtype=jnp.int32)
        blocks = first[:, None] + ahead[None]
        physical = jnp.take_along_axis(table, blocks % table.shape[1], axis=1)
        offsets = jnp.arange(block_cells, dtype=jnp.int32)
        positions = (blocks[..., None] * block_cells + offsets[None, None]).reshape(batch, -1)
        chunk = (batch, -1, kv_heads, head_dim)
        written = (positions < lengths[:, None]) & (positions >= oldest[:, None])
        visible = written[..., None] & (positions[..., None] >= row_starts[:, None])
        keys, values = (x.reshape(chunk) for x in layer_blocks(cells, layer, physical))
        scores = _scores("bskh,bkrh->bksr", keys, folded, scale, cap)
        # Cells never written may hold anything, NaN included, and 0 * NaN is NaN.
        seen = jnp.where(written[..., None, None], values, 0)
        return _absorb(carry, scores, visible[:, None], seen.swapaxes(1, 2))

    shape = (batch, kv_heads, rows * group)
    start = _Softmax(
        weighted=jnp.zeros((*shape, head_dim), jnp.float32),
        top=jnp.full(shape, _NOTHING, jnp.float32),
        total=jnp.zeros(shape, jnp.float32),
    )
    return _unfold(jax.lax.fori_loop(0, turns, absorb_chunk, start), rows, heads)


def tail_attention(
    q: Float[Array, "B Q T N H"],
    keys: Float[Array, "B Q S K H"],
    values: Float[Array, "B Q S K H"],
    visible: Bool[Array, "B Q T S"],
    *,
    scale: float,
    cap: float | None = None,
) -> Partial:
    """Attention of each question's tokens over the question's own cells (rows R = Q * T).

    Every row must see at least one key (a token sees itself). Keys that no row sees may hold
    anything finite.
    """
    batch, questions, tokens, heads, head_dim = q.shape
    kv_heads = keys.shape[3]
    folded = q.reshape(batch, questions, tokens, kv_heads, heads // kv_heads, head_dim)
    scores = _scores("bqtkgh,bqskh->bqkgts", folded, keys, scale, cap)
    scores = jnp.where(visible[:, :, None, None], scores, _NOTHING)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(values.dtype)
    out = jnp.einsum("bqkgts,bqskh->bqtkgh", weights, values, preferred_element_type=jnp.float32)
    rows = questions * tokens
    return Partial(
        out=out.reshape(batch, rows, heads, head_dim),
        lse=lse.transpose(0, 1, 4, 2, 3).reshape(batch, rows, heads),
    )


def _scores(
    equation: str, left: Array, right: Array, scale: float, cap: float | None
) -> Float[Array, "*shape"]:
    """Scaled, capped dot products in float32."""
    products = jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
    return softcap(products * scale, cap)


def _chunk_blocks(width: int, block_cells: int) -> int:
    """Blocks of one turn: a table of that width in equal turns, so a ring reads little more."""
    at_most = max(1, _CHUNK_CELLS // block_cells)
    turns = -(-width // at_most)
    return -(-width // turns)


def _fold(q: Float[Array, "B R N H"], kv_heads: int) -> Float[Array, "B K RG H"]:
    """All rows that read the same KV head, side by side: [B, K, R * N / K, H]."""
    batch, rows, heads, head_dim = q.shape
    grouped = q.reshape(batch, rows, kv_heads, heads // kv_heads, head_dim)
    return grouped.transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, -1, head_dim)


def _unfold(sums: _Softmax, rows: int, heads: int) -> Partial:
    """Back to one vector for each row and query head, normalised."""
    batch, kv_heads, _, head_dim = sums.weighted.shape
    some = sums.total > 0
    total = jnp.where(some, sums.total, 1.0)
    lse = jnp.where(some, sums.top + jnp.log(total), _NOTHING)
    out = (sums.weighted / total[..., None]).reshape(batch, kv_heads, rows, -1, head_dim)
    return Partial(
        out=out.transpose(0, 2, 1, 3, 4).reshape(batch, rows, heads, head_dim),
        lse=lse.reshape(batch, kv_heads, rows, -1).swapaxes(1, 2).reshape(batch, rows, heads),
    )


def _absorb(
    carry: _Softmax,
    scores: Float[Array, "B K S R"],
    visible: Bool[Array, "B 1 S R"],
    values: Float[Array, "B K S H"],
) -> _Softmax:
    """One turn of the online softmax: more keys taken in."""
    scores = jnp.where(visible, scores, _NOTHING)
    top = jnp.maximum(carry.top, jnp.max(scores, axis=-2))
    shrink = jnp.exp(carry.top - top)
    weights = jnp.where(visible, jnp.exp(scores - top[:, :, None]), 0.0)
    fresh = jnp.einsum(
        "bksr,bksh->bkrh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return _Softmax(
        weighted=carry.weighted * shrink[..., None] + fresh,
        top=top,
        total=carry.total * shrink + jnp.sum(weights, axis=-2),
    )
