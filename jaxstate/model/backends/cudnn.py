"""Attention of long chunks on an NVIDIA GPU: cuDNN's kernels, behind an interface of JAX's own.

Comes in: what `attend` of `jaxstate.model.backends.reference` takes, where `takes` says so: many
tokens of one question a session, no window, no cap. Goes out: the same, within the rounding of its
dtype. Two calls, over the committed cells and over the new tokens, each with a float32 log-sum-exp,
which is why the public function does not do: it rounds that to bfloat16. Does not know: whether the
interface is there (`choose_backend` tries it out).

With as many rows as that the work is arithmetic, not reading: on an H100 these kernels reach 580
TFLOP/s where those of `triton` reach 350 (docs/performance.md).
"""

from __future__ import annotations

from typing import cast

import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jaxtyping import Array, Float

from jaxstate.cells.pool import layer_blocks
from jaxstate.model.attention import Partial, merge
from jaxstate.model.context import Heads, LayerContext, LayerTail, split_heads

# Fewer tokens than that are read faster by the other kernels, which need no copy of the cells.
_LEAST_TOKENS = 512
_NOTHING = -1e30


def takes(
    qkv: Float[Array, "B Q T G H"],
    context: LayerContext,
    tail: LayerTail | None,
    window: int | None,
    cap: float | None,
) -> bool:
    """Whether `attend` can compute that, and is worth it; known from shapes alone."""
    alone = qkv.shape[1] == 1 and context.place is None and tail is None
    return alone and window is None and cap is None and qkv.shape[2] >= _LEAST_TOKENS


def attend(
    qkv: Float[Array, "B 1 T G H"],
    context: LayerContext,
    *,
    heads: Heads,
    scale: float,
) -> Float[Array, "B 1 T N H"]:
    """`jaxstate.model.backends.reference.attend` of one question of each session.

    Args:
        qkv, context, heads, scale: as there.
    """
    q, k, v = split_heads(qkv[:, 0], heads.keys)
    over_new = _partial(q, k, v, None, scale)
    return merge(_over_cells(q, context, scale), over_new).out.astype(qkv.dtype)[:, None]


def _over_cells(q: Float[Array, "B T N H"], context: LayerContext, scale: float) -> Partial:
    """Over the committed cells, gathered; what was never written reads as zeros, since it may be
    NaN, and 0 * NaN is NaN."""
    batch, cells = q.shape[0], context.table.shape[1] * context.cells.shape[3]
    written = jnp.arange(cells, dtype=jnp.int32)[None] < context.lengths[:, None]

    def in_use(found: Float[Array, "B W C K H"]) -> Float[Array, "B S K H"]:
        return jnp.where(written[..., None, None], found.reshape(batch, cells, *found.shape[3:]), 0)

    keys, values = layer_blocks(context.cells, context.layer, context.table)
    # One cell at least is looked at; of an empty session what comes of it is left out.
    seen = jnp.maximum(context.lengths, 1)
    partial = _partial(q, in_use(keys), in_use(values), seen, scale)
    some = (context.lengths > 0)[:, None, None]
    return Partial(
        out=jnp.where(some[..., None], partial.out, 0.0),
        lse=jnp.where(some, partial.lse, _NOTHING),
    )


def _partial(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen: Array | None,
    scale: float,
) -> Partial:
    """Over the first `seen` keys of each session or, without that, over those up to itself."""
    found = fused.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=None if seen is None else jnp.full(seen.shape, q.shape[1], jnp.int32),
        kv_seqlen=seen,
        mask_type=fused.MaskType.CAUSAL if seen is None else fused.MaskType.PADDING,
        scale=scale,
        return_residual=True,
    )
    out, lse = cast("tuple[Array, Array]", found)
    return Partial(out=out.astype(jnp.float32), lse=lse.swapaxes(1, 2).astype(jnp.float32))
