"""The step that reads data: new tokens of B sessions become committed cells.

Pure: (parameters, context, tokens) -> (pool with the new cells, new lengths, ready vectors,
whether all is finite). The
caller compiles it with the pool donated, so the write happens in place.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.pool import Context, KVPool, after_reading, write_cells
from jaxstate.model.decoder import Decoder, forward
from jaxstate.weights import Params


class Extended(NamedTuple):
    """What an extend step returns.

    Attributes:
        pool: with the new cells.
        lengths: int32 [B].
        ready: [B, D], the final hidden vector after each session's last token.
        finite: bool [B], whether every number that the chunk's tokens led to is finite.
    """

    pool: KVPool
    lengths: Int[Array, " B"]
    ready: Float[Array, "B D"]
    finite: Bool[Array, " B"]


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
    positions = context.ends[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    hidden, new = forward(decoder, params, tokens[:, None], positions[:, None], context)
    chex.assert_shape(hidden, (batch, 1, size, decoder.config.model_dim))
    known = after_reading(counts, size, hidden)
    pool = write_cells(context.pool, context.tables, layer_groups, new, context.lengths, known)
    last = jnp.take_along_axis(hidden[:, 0], jnp.maximum(counts - 1, 0)[:, None, None], axis=1)
    finite = all_finite(hidden[:, 0], counts)
    return Extended(pool=pool, lengths=context.lengths + counts, ready=last[:, 0], finite=finite)


def all_finite(hidden: Float[Array, "B T D"], counts: Int[Array, " B"]) -> Bool[Array, " B"]:
    """Whether the vectors of each row's first `counts` tokens hold no NaN and no infinity. What a
    token's cells hold goes into its own vector, so this speaks for its cells too."""
    used = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None] < counts[:, None]
    return jnp.all(jnp.isfinite(hidden) | ~used[..., None], axis=(1, 2))
