"""Attention of sessions and questions in one pass, with gradients: what training computes.

Comes in: the queries, keys and values of rows of tokens, the first of which are a session
(`Packed`). Goes out: what they attend to, as `reference.attend` would compute it had the session
been read and committed first. On a GPU in half precision cuDNN's kernels run, through JAX's public
function; elsewhere `tail_attention`. Does not know: losses, layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstate.model.attention import tail_attention
from jaxstate.model.context import Heads, Packed, split_heads
from jaxstate.model.devices import current_device


def attend(
    qkv: Float[Array, "B R T G H"],
    positions: Int[Array, "B R T"],
    packed: Packed,
    *,
    heads: Heads,
    window: int | None,
    scale: float,
    cap: float | None = None,
) -> Float[Array, "B R T N H"]:
    """Attention of every token over the session before its row, and over its row up to itself.

    Args:
        qkv: as in `reference.attend`.
        positions: int32; those of a session's rows count from 0 on, those of a question from where
            it is asked.
        packed: which rows are the session.
        heads, window, scale, cap: as in `reference.attend`.

    Returns:
        In the dtype of `qkv`.
    """
    batch, rows, tokens = positions.shape
    q, k, v = (x.reshape(batch, rows * tokens, *x.shape[3:]) for x in split_heads(qkv, heads.keys))
    fused = cap is None and qkv.dtype != jnp.float32 and current_device().platform == "gpu"
    run = _fused if fused else _plain

    def part(first: int, end: int, seen: int) -> Array:
        """Rows first .. end - 1 over rows 0 .. seen - 1 and themselves."""
        mine = slice(first * tokens, end * tokens)
        keys, values = (jnp.concatenate([x[:, : seen * tokens], x[:, mine]], 1) for x in (k, v))
        visible = _visible(positions, packed, first, end, seen, window)
        causal = first == 0 and window is None
        return run(q[:, mine], keys, values, visible, causal, scale, cap)

    parts = [part(0, packed.session_rows, 0)]
    each = (rows - packed.session_rows) // len(packed.seen_rows)
    for number, seen in enumerate(packed.seen_rows):
        first = packed.session_rows + number * each
        parts.append(part(first, first + each, seen))
    return jnp.concatenate(parts, axis=1).reshape(batch, rows, tokens, heads.queries, -1)


def _visible(
    positions: Int[Array, "B R T"],
    packed: Packed,
    first: int,
    end: int,
    seen: int,
    window: int | None,
) -> Bool[Array, "B rows keys"]:
    """What the tokens of rows first .. end - 1 see of rows 0 .. seen - 1 and of themselves."""
    batch, _, tokens = positions.shape
    mine = positions[:, first:end]
    at = jnp.concatenate([positions[:, :seen], mine], 1)[:, None, None]  # [B, 1, 1, rows, T]
    rows = jnp.arange(first, end, dtype=jnp.int32)
    of = jnp.concatenate([jnp.arange(seen, dtype=jnp.int32), rows])
    in_session = (of < packed.session_rows)[None, None, None, :, None]
    before = at < mine[:, :, :1, None, None]
    own = (rows[:, None] == of[None])[None, :, None, :, None]
    visible = (in_session & before) | (own & (at <= mine[..., None, None]))
    if window is not None:
        visible = visible & (at > mine[..., None, None] - window)
    return visible.reshape(batch, (end - first) * tokens, -1)


def _plain(
    q: Array, k: Array, v: Array, visible: Array, causal: bool, scale: float, cap: float | None
) -> Float[Array, "B L N H"]:
    del causal  # `visible` says it
    one = tail_attention(q[:, None], k[:, None], v[:, None], visible[:, None], scale=scale, cap=cap)
    return one.out.astype(q.dtype)


def _fused(
    q: Array, k: Array, v: Array, visible: Array, causal: bool, scale: float, cap: float | None
) -> Float[Array, "B L N H"]:
    del cap  # `attend` does not come here with one
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=None if causal else visible[:, None],
        scale=scale,
        is_causal=causal,
        implementation="cudnn",
    )
