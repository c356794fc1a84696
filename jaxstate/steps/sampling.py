"""Choosing the next token on the device: greedy, temperature, top-p, for every row by its own rule.

Comes in: logits and per-row settings as arrays (nothing that varies from call to call is static).
Goes out: the token and its log-probability. Does not know: text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxstate.records import Sampling


@struct.dataclass
class SamplingRows:
    """Settings of each question, [B, Q].

    Attributes:
        temperature: float32, 0 for greedy.
        top_p: float32.
        seed: uint32.
    """

    temperature: Float[Array, "B Q"]
    top_p: Float[Array, "B Q"]
    seed: UInt32[Array, "B Q"]


def sampling_rows(settings: list[list[Sampling]]) -> SamplingRows:
    """Settings of Q questions for each of B sessions, on the device."""

    def column(name: str, dtype: type) -> Array:
        values = np.array([[getattr(one, name) for one in row] for row in settings])
        if dtype is np.float32:
            values = np.minimum(values, np.finfo(np.float32).max)
        return jax.device_put(values.astype(dtype))

    return SamplingRows(
        temperature=column("temperature", np.float32),
        top_p=column("top_p", np.float32),
        seed=column("seed", np.uint32),
    )


def greedy(logits: Float[Array, "*batch V"]) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """The likeliest token of each row (of equal ones the first) and its log-probability.

    Args:
        logits: float32.

    Returns:
        int32 tokens, and float32 log-probabilities under the softmax of `logits`.
    """
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def choose(
    logits: Float[Array, "B Q V"], rows: SamplingRows, draw: Int[Array, "B Q"]
) -> tuple[Int[Array, "B Q"], Float[Array, "B Q"]]:
    """The next token of each row by its own rule, and its log-probability.

    Sorts the vocabulary, which costs more than a small model's layers: a step of its own, for when
    any row samples.

    Args:
        logits: float32.
        rows: how each row samples.
        draw: number of the draw within a row's question; with the seed it fixes the randomness, so
            that a row's answer does not depend on its neighbours.

    Returns:
        int32 tokens, and float32 log-probabilities under the plain softmax of `logits`.
    """
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    token = jnp.where(rows.temperature > 0, _draw(logits, rows, draw), likeliest)
    picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return token, picked - jax.nn.logsumexp(logits, axis=-1)


def ends(token: Int[Array, "*batch"], stop_ids: Int[Array, " n"]) -> Bool[Array, "*batch"]:
    """Whether each token is one of those that end an answer."""
    return jnp.any(token[..., None] == stop_ids.reshape((1,) * token.ndim + (-1,)), axis=-1)


def _draw(
    logits: Float[Array, "B Q V"], rows: SamplingRows, draw: Int[Array, "B Q"]
) -> Int[Array, "B Q"]:
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    # The largest is 0 whatever the temperature, so that a tiny one cannot overflow.
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature[..., None]
    order = jnp.argsort(-scaled, axis=-1)
    ranked = jnp.take_along_axis(scaled, order, axis=-1)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # A token stays while the more likely ones sum to less than top_p; the first one therefore
    # always stays.
    kept = jnp.where(before < rows.top_p[..., None], ranked, -jnp.inf)

    def one(seed: Array, count: Array, row: Array) -> Array:
        # Named, so that a seed means the same in every process and in every batch: with the
        # hardware generators that a process may have as its default it does not.
        key = jax.random.key(seed, impl="threefry2x32")
        return jax.random.categorical(jax.random.fold_in(key, count), row)

    with jax.threefry_partitionable(True):
        rank = jax.vmap(jax.vmap(one))(rows.seed, draw, kept)
    return jnp.take_along_axis(order, rank[..., None], axis=-1)[..., 0].astype(jnp.int32)
