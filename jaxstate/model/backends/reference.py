"""What kernels stand in for, as plain JAX: the definition, and what runs where no kernel does.

Comes in: the queries, keys and values of new tokens, their session's cells in one layer and their
question's own. Goes out: what they attend to. Does not know: projections, who owns the cells.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.pool import layer_blocks
from jaxstate.model.attention import Partial, context_attention, merge, tail_attention
from jaxstate.model.context import Heads, LayerContext, LayerTail, by_row, by_session, split_heads
from jaxstate.model.layers import rms_norm


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
) -> Float[Array, "B Q T N H"]:
    """Attention of each question's new tokens over context, tail and themselves (causally).

    Args:
        qkv: queries, keys and values of the new tokens side by side, G = N + 2 K, positions
            applied.
        positions: int32, consecutive along T, those of a question right after its tail.
        context: committed cells of the sessions that the questions look at.
        tail: each question's cells before the new tokens, or None.
        heads: N and K.
        window: a token sees itself and window - 1 cells before; None for all.
        scale, cap: of the scores.

    Returns:
        In the dtype of `qkv`; merged in float32 before it is rounded.
    """
    q, k, v = split_heads(qkv, heads.keys)
    over_tail = _tail_part(q, k, v, positions, tail, window, scale, cap)
    over_context = _context_part(q, positions, context, window, scale, cap)
    return merge(over_context, over_tail).out.reshape(q.shape).astype(q.dtype)


def add_norm(
    x: Float[Array, "*batch D"],
    change: Float[Array, "*batch D"] | None,
    scale: Float[Array, " D"],
    *,
    eps: float,
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """x + change (x itself where there is none), and its `rms_norm`; both in x's dtype."""
    x = x if change is None else x + change
    return x, rms_norm(x, scale, eps)


def _context_part(
    q: Array,
    positions: Array,
    context: LayerContext,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Partial:
    starts = jnp.zeros(positions.shape, jnp.int32)
    if window is not None:
        starts = jnp.maximum(positions - (window - 1), 0)
    rows, starts = by_session(q, starts, context)
    partial = context_attention(
        rows.reshape(rows.shape[0], -1, *rows.shape[3:]),
        context.cells,
        context.layer,
        context.table,
        context.lengths,
        starts.reshape(starts.shape[0], -1),
        scale=scale,
        cap=cap,
    )
    return by_row(partial, context, q.shape[2])


def _tail_part(
    q: Array,
    k: Array,
    v: Array,
    positions: Array,
    tail: LayerTail | None,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Partial:
    tokens = q.shape[2]
    offsets = jnp.arange(tokens, dtype=jnp.int32)
    causal = offsets[:, None] >= offsets[None, :]
    visible = jnp.broadcast_to(causal[None, None], (*q.shape[:3], tokens))
    key_positions = positions
    if tail is not None:
        old_k, old_v, used = _gathered(tail, q.shape[:2])
        k, v = jnp.concatenate([old_k, k], axis=2), jnp.concatenate([old_v, v], axis=2)
        cells = jnp.arange(used.shape[2], dtype=jnp.int32)
        first = positions[..., :1] - tail.used.reshape(*q.shape[:2], 1)
        key_positions = jnp.concatenate([first + cells[None, None], positions], axis=2)
        used = jnp.broadcast_to(used[:, :, None], (*q.shape[:3], used.shape[2]))
        visible = jnp.concatenate([used, visible], axis=3)
    if window is not None:
        near = key_positions[:, :, None] > positions[..., None] - window
        visible = visible & near
    return tail_attention(q, k, v, visible, scale=scale, cap=cap)


def _gathered(
    tail: LayerTail, questions: tuple[int, ...]
) -> tuple[Float[Array, "B Q M K H"], Float[Array, "B Q M K H"], Bool[Array, "B Q M"]]:
    """Each question's keys, values and which of them are in use, side by side."""
    rows, cells = tail.tables.shape[0], tail.tables.shape[1] * tail.cells.shape[3]
    used = jnp.arange(cells, dtype=jnp.int32)[None] < tail.used[:, None]

    def in_use(found: Float[Array, "R W Ct K H"]) -> Float[Array, "B Q M K H"]:
        found = found.reshape(rows, cells, *found.shape[3:])
        # What an earlier question left behind may be NaN, and 0 * NaN is NaN.
        found = jnp.where(used[..., None, None], found, 0)
        return found.reshape(*questions, cells, *found.shape[2:])

    keys, values = layer_blocks(tail.cells, tail.layer, tail.tables)
    return in_use(keys), in_use(values), used.reshape(*questions, cells)
