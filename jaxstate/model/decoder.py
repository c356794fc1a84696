"""The one decoder: Llama, Mistral, Qwen and Gemma 3 are configs of it.

Comes in: tokens, their positions, the committed cells they see (`Context`) and the question's own
cells so far (`Tail`). Goes out: hidden vectors and the tokens' new cells. The caller decides
whether to commit those cells (extend) or to keep them as a tail (query); this module writes
nothing. Does not know: sampling, buckets, sessions.

Layers are unrolled in Python with one array each: on an H100 a scan over stacked layers ran 2.9
times slower and copied the pool (docs/performance.md).
"""

from __future__ import annotations

import functools
from typing import cast

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxstate.cells.pool import Context, GroupCells, NewCells, write_group
from jaxstate.config import LayerAttention, ModelConfig
from jaxstate.model.backends import Backend, Heads, add_norm, attend, split_heads
from jaxstate.model.context import LayerContext, LayerTail, Packed, layer_context
from jaxstate.model.layers import INIT, GatedMLP, RMSNorm, project, rope_angles, rotate, softcap
from jaxstate.weights import Params


@struct.dataclass
class Tail:
    """The private cells of each question while it runs, in blocks that it alone has.

    Attributes:
        cells: [PT, L, 2, Ct, K, H], of all layers.
        tables: int32 [B, Q, W], blocks of each question; past the last block for padding.
        lengths: int32 [B, Q], cells in use.
    """

    cells: GroupCells
    tables: Int[Array, "B Q W"]
    lengths: Int[Array, "B Q"]


class Attention(nn.Module):
    """Grouped-query attention of new tokens over context, tail and themselves."""

    config: ModelConfig
    kind: LayerAttention
    dtype: jnp.dtype
    backend: Backend

    def setup(self) -> None:
        """Declares the fused projections."""
        config = self.config
        width = config.query_dim + 2 * config.kv_dim
        zeros = nn.initializers.zeros_init()
        self.wqkv = self.param("wqkv", INIT, (config.model_dim, width), self.dtype)
        self.wo = self.param("wo", INIT, (config.query_dim, config.model_dim), self.dtype)
        self.bqkv = self.param("bqkv", zeros, (width,), self.dtype) if config.qkv_bias else None
        self.bo = (
            self.param("bo", zeros, (config.model_dim,), self.dtype) if config.out_bias else None
        )
        if config.qk_norm:
            self.q_norm = RMSNorm(dim=config.head_dim, eps=config.norm_eps)
            self.k_norm = RMSNorm(dim=config.head_dim, eps=config.norm_eps)

    def __call__(
        self,
        x: Float[Array, "B Q T D"],
        positions: Int[Array, "B Q T"],
        context: LayerContext | Packed,
        tail: LayerTail | None,
    ) -> tuple[Float[Array, "B Q T D"], Float[Array, "B Q T 2 K H"]]:
        """The block's output (before the residual sum) and the tokens' cells."""
        config = self.config
        qkv = self._project(x, positions)
        out = attend(
            self.backend,
            qkv,
            positions,
            context,
            tail,
            heads=Heads(config.num_heads, config.num_kv_heads),
            window=self.kind.window,
            scale=config.query_scale,
            cap=config.attention_softcap,
        )
        out = out.reshape(*x.shape[:3], config.query_dim)
        cells = qkv[..., config.num_heads :, :]
        cells = cells.reshape(*x.shape[:3], 2, config.num_kv_heads, config.head_dim)
        return project(out, self.wo, self.bo), cells

    def _project(self, x: Array, positions: Array) -> Float[Array, "B Q T G H"]:
        """Queries, keys and values side by side, positions applied to the first two."""
        config = self.config
        mixed = project(x, self.wqkv, self.bqkv)
        qkv = mixed.reshape(*x.shape[:3], -1, config.head_dim)
        if config.qk_norm:
            q, k, v = split_heads(qkv, config.num_kv_heads)
            qkv = jnp.concatenate([self.q_norm(q), self.k_norm(k), v], axis=-2)
        angles = rope_angles(self.kind.rope, positions, config.head_dim)
        head = jnp.arange(qkv.shape[3], dtype=jnp.int32).reshape(1, 1, 1, -1, 1)
        return jnp.where(head < qkv.shape[3] - config.num_kv_heads, rotate(qkv, angles), qkv)


class Layer(nn.Module):
    """Attention and MLP with their norms and residual sums."""

    config: ModelConfig
    kind: LayerAttention
    dtype: jnp.dtype
    backend: Backend

    def setup(self) -> None:
        """Declares the parts that the config asks for."""
        config = self.config
        norm = functools.partial(RMSNorm, dim=config.model_dim, eps=config.norm_eps)
        self.attention_norm = norm()
        self.attention = Attention(
            config=config, kind=self.kind, dtype=self.dtype, backend=self.backend
        )
        self.mlp_norm = norm()
        self.mlp = GatedMLP(mlp_dim=config.mlp_dim, activation=config.activation, dtype=self.dtype)
        if config.post_norms:
            self.attention_post_norm = norm()
            self.mlp_post_norm = norm()

    def __call__(
        self,
        x: Float[Array, "B Q T D"],
        change: Float[Array, "B Q T D"] | None,
        positions: Int[Array, "B Q T"],
        context: LayerContext | Packed,
        tail: LayerTail | None,
    ) -> tuple[
        Float[Array, "B Q T D"],
        Float[Array, "B Q T D"],
        Float[Array, "B Q T 2 K H"],
    ]:
        """Takes the residual stream and what the layer before adds to it, and returns the same of
        this one, so that every sum is computed together with the norm after it; and the tokens'
        cells."""
        add = functools.partial(add_norm, self.backend, eps=self.config.norm_eps)
        x, normed = add(x, change, self.attention_norm.scale)
        change, cells = self.attention(normed, positions, context, tail)
        if self.config.post_norms:
            change = self.attention_post_norm(change)
        x, normed = add(x, change, self.mlp_norm.scale)
        change = self.mlp(normed)
        return x, self.mlp_post_norm(change) if self.config.post_norms else change, cells


# Layers of one kind are traced once and inlined by XLA: a third of the time to trace and lower an
# 18-layer step, the same executable.
_TracedOnce = nn.jit(Layer)


class Embedding(nn.Module):
    """Token vectors [V, D]; with tied embeddings they are the output projection as well."""

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        """Declares the table."""
        shape = (self.config.vocab_size, self.config.model_dim)
        self.embedding = self.param("embedding", INIT, shape, self.dtype)

    def __call__(self, tokens: Int[Array, "B Q T"]) -> Float[Array, "B Q T D"]:
        """Looks tokens up and scales them as the family does."""
        x = jnp.take(self.embedding, tokens, axis=0)
        if self.config.embed_scale is None:
            return x
        return x * jnp.asarray(self.config.embed_scale, x.dtype)

    def attend(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Dot products with every token vector, in float32."""
        return jnp.einsum(
            "...d,vd->...v", hidden, self.embedding, preferred_element_type=jnp.float32
        )


class Head(nn.Module):
    """An output projection [D, V] of its own."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits in float32."""
        shape = (self.config.model_dim, self.config.vocab_size)
        kernel = self.param("kernel", INIT, shape, self.dtype)
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)


class Decoder(nn.Module):
    """A decoder-only transformer over explicit context.

    Attributes:
        config: what it computes.
        dtype: of matrices and activations; norms, softmax and logits are float32.
        backend: which implementation of attention runs.
    """

    config: ModelConfig
    dtype: jnp.dtype
    backend: Backend = "reference"

    def setup(self) -> None:
        """Declares the layers, one by one."""
        config = self.config
        self.embed = Embedding(config=config, dtype=self.dtype)
        self.layers = [
            _TracedOnce(config=config, kind=kind, dtype=self.dtype, backend=self.backend)
            for kind in config.layers
        ]
        self.final_norm = RMSNorm(dim=config.model_dim, eps=config.norm_eps)
        if not config.tied_embeddings:
            self.head = Head(config=config, dtype=self.dtype)

    def __call__(
        self,
        tokens: Int[Array, "B Q T"],
        positions: Int[Array, "B Q T"],
        context: Context | Packed,
        tail: Tail | None = None,
    ) -> tuple[Float[Array, "B Q T D"], NewCells]:
        """Reads T new tokens of each of Q questions of B sessions, or of R mixed ones [1, R, T].

        Args:
            tokens: int32 ids; padding at the end of a row is harmless, since nothing looks ahead.
            positions: int32, consecutive along T.
            context: committed cells that all of them see; or where they are among the rows.
            tail: cells of earlier tokens of the same question, or None.

        Returns:
            The final hidden vectors, and every layer's new cells.
        """
        x, change = self.embed(tokens), None
        new = []
        for index, layer in enumerate(self.layers):
            x, change, cells = layer(
                x,
                change,
                positions,
                layer_context(self.config, context, index),
                _layer_tail(tail, index),
            )
            new.append(cells)
        _, hidden = add_norm(
            self.backend, x, change, self.final_norm.scale, eps=self.config.norm_eps
        )
        return hidden, tuple(new)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits, float32, from final hidden vectors."""
        raw = self.embed.attend(hidden) if self.config.tied_embeddings else self.head(hidden)
        return softcap(raw, self.config.final_softcap)

    def everything(self, tokens: Int[Array, "B Q T"], context: Context) -> Float[Array, "B Q T V"]:
        """Touches every parameter once; for initialisation and shapes."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[2], dtype=jnp.int32), tokens.shape)
        return self.logits(self(tokens, positions, context)[0])


def _layer_tail(tail: Tail | None, index: int) -> LayerTail | None:
    if tail is None:
        return None
    return LayerTail(
        cells=tail.cells,
        layer=jnp.int32(index),
        tables=tail.tables.reshape(-1, tail.tables.shape[2]),
        used=tail.lengths.reshape(-1),
    )


def forward(
    decoder: Decoder,
    params: Params,
    tokens: Int[Array, "B Q T"],
    positions: Int[Array, "B Q T"],
    context: Context | Packed,
    tail: Tail | None = None,
) -> tuple[Float[Array, "B Q T D"], NewCells]:
    """`Decoder.__call__` as a pure function of the parameters."""
    return cast(
        "tuple[Array, NewCells]",
        decoder.apply({"params": params}, tokens, positions, context, tail),
    )


def logits_of(
    decoder: Decoder, params: Params, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
    """`Decoder.logits` as a pure function of the parameters."""
    return cast(Array, decoder.apply({"params": params}, hidden, method="logits"))


def append_tail(tail: Tail, new: NewCells, counts: Int[Array, "B Q"]) -> Tail:
    """The tail with the first `counts` of T new cells of each question behind those in use.

    Cells that would lie past the tail's end are dropped; callers choose a tail that is large
    enough.
    """

    def by_question(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    by_row = [by_question(cells)[:, None] for cells in new]
    tables, starts = by_question(tail.tables), tail.lengths.reshape(-1)
    room = tables.shape[1] * tail.cells.shape[3] - starts
    kept = jnp.minimum(counts.reshape(-1), room)
    cells = write_group(tail.cells, tables, by_row, starts, kept)
    return Tail(cells=cells, tables=tail.tables, lengths=tail.lengths + counts)
