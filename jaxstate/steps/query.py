"""The step that answers: tokens of Q questions of B sessions, read against cells that stay as they
are.

Pure: (parameters, context, tails, tokens) -> (tails, chosen tokens). The first calls bring the
question (T > 1), each later one the token that the step before chose (T = 1); the caller compiles
it with the tails donated and the context not.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.pool import Context
from jaxstate.model.decoder import Decoder, Tail, append_tail, forward, logits_of
from jaxstate.steps.sampling import SamplingRows, choose
from jaxstate.weights import Params


@struct.dataclass
class Chosen:
    """What a step chose for each question.

    Attributes:
        token: int32 [B, Q, 1], in the shape in which the next step takes it.
        logprob: float32 [B, Q].
        done: bool [B, Q], a stop token was chosen now or before.
        logits: float32 [B, Q, V] that the token was chosen from.
    """

    token: Int[Array, "B Q 1"]
    logprob: Float[Array, "B Q"]
    done: Bool[Array, "B Q"]
    logits: Float[Array, "B Q V"]


def query_step(
    decoder: Decoder,
    params: Params,
    context: Context,
    tail: Tail,
    tokens: Int[Array, "B Q T"],
    counts: Int[Array, "B Q"],
    done: Bool[Array, "B Q"],
    rows: SamplingRows,
    stop_ids: Int[Array, " n"],
) -> tuple[Tail, Chosen]:
    """Reads the first `counts` of T tokens of each question and chooses the token after them.

    Questions that are done read nothing; their tails stay as they are. `stop_ids` is padded with
    -1.
    """
    batch, questions, size = tokens.shape
    chex.assert_shape([counts, done, tail.lengths, rows.temperature], (batch, questions))
    counts = jnp.where(done, 0, counts)
    start = context.lengths[:, None] + tail.lengths
    positions = start[..., None] + jnp.arange(size, dtype=jnp.int32)[None, None]
    hidden, new = forward(decoder, params, tokens, positions, context, tail)
    tail = append_tail(tail, new, counts)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[..., None, None], axis=2)
    logits = logits_of(decoder, params, last[:, :, 0])
    chex.assert_shape(logits, (batch, questions, decoder.config.vocab_size))
    token, logprob = choose(logits, rows, tail.lengths)
    stopped = jnp.any(token[..., None] == stop_ids[None, None], axis=-1)
    return tail, Chosen(token=token[..., None], logprob=logprob, done=done | stopped, logits=logits)


def empty_tail(decoder: Decoder, batch: int, questions: int, cells: int) -> Tail:
    """Tails of M cells for each question, zero-filled."""
    config = decoder.config
    shape = (batch, questions, cells, config.num_kv_heads, config.head_dim)

    def zeros() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, decoder.dtype) for _ in config.layers)

    return Tail(keys=zeros(), values=zeros(), lengths=jnp.zeros((batch, questions), jnp.int32))
