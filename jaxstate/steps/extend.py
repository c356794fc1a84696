"""The step that reads data: new tokens of B sessions become committed cells.

Pure: (parameters, context, tokens) -> (pool with the new cells, new lengths, ready vectors). The
caller compiles it with the pool donated, so the write happens in place.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstate.cells.pool import Context, KVPool, after_reading, write_cells
from jaxstate.model.decoder import Decoder, forward
from jaxstate.weights import Params


class Extended(NamedTuple):
    """What an extend step returns.

    Attributes:
        pool: with the new cells.
        lengths: int32 [B].
        ready: [B, D], the final hidden vector after each session's last token.
    """

    pool: KVPool
    lengths: Int[Array, " B"]
    ready: Float[Array, "B D"]


def extend_step(
    decoder: Decoder,
    layer_groups: tuple[int, ...],
    params: Params,
    context: Context,
    tokens: Int[Array, "B T"],
    counts: Int[Array, " B"],
) -> Extended:
    """Reads the first `counts` of T tokens of each session and commits their cells.

    A session with count 0 is padding: nothing of it is written, its ready vector means nothing.
    """
    batch, size = tokens.shape
    chex.assert_shape([counts, context.lengths], (batch,))
    positions = context.lengths[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    hidden, new = forward(decoder, params, tokens[:, None], positions[:, None], context)
    chex.assert_shape(hidden, (batch, 1, size, decoder.config.model_dim))
    known = after_reading(counts, size, hidden)
    pool = write_cells(context.pool, context.tables, layer_groups, new, context.lengths, known)
    last = jnp.take_along_axis(hidden[:, 0], jnp.maximum(counts - 1, 0)[:, None, None], axis=1)
    return Extended(pool=pool, lengths=context.lengths + counts, ready=last[:, 0])
