"""The parts of a decoder layer that know nothing of sessions: RMSNorm, rotary positions, the gated
MLP, projections.

Comes in: activations [..., D]. Goes out: activations of the same leading shape. Pure Flax modules.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstate.config import Activation, Rope

INIT = nn.initializers.normal(0.02)


def rms_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*batch D"]:
    """Vectors of unit mean square, computed in float32, times a learnt factor; in x's dtype."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + eps)
    return (normed * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


class RMSNorm(nn.Module):
    """The learnt factor of a `rms_norm`, float32 [D]; and the norm itself."""

    dim: int
    eps: float

    def setup(self) -> None:
        """Declares the factor."""
        self.scale = self.param("scale", nn.initializers.ones_init(), (self.dim,), jnp.float32)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """The normalised input, in the input's dtype."""
        return rms_norm(x, self.scale, self.eps)


def rope_angles(
    rope: Rope, positions: Int[Array, "*batch"], head_dim: int
) -> Float[Array, "*batch F"]:
    """Angles position * frequency in float32; bfloat16 confuses neighbours past 256."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / (jnp.float32(rope.base) ** exponents)
    if rope.factors is not None:
        frequencies = frequencies / jnp.asarray(rope.factors, jnp.float32)
    frequencies = frequencies.reshape((1,) * positions.ndim + frequencies.shape)
    return positions.astype(jnp.float32)[..., None] * frequencies


def rotate(
    x: Float[Array, "*batch heads H"], angles: Float[Array, "*batch F"]
) -> Float[Array, "*batch heads H"]:
    """Rotates the pairs (i, i + H/2) of every head by its angle (the half-split convention)."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    cos, sin = jnp.cos(angles)[..., None, None, :], jnp.sin(angles)[..., None, None, :]
    # (first, second) * cos + (-second, first) * sin: without slices, so that it is one kernel.
    signed = jnp.concatenate([-sin, sin], axis=-2)
    turned = pairs * cos + jnp.flip(pairs, axis=-2) * signed
    return turned.reshape(x.shape).astype(x.dtype)


def softcap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap * tanh(x / cap)`, or x itself where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def project(
    x: Float[Array, "*batch D"], kernel: Float[Array, "D E"], bias: Float[Array, " E"] | None = None
) -> Float[Array, "*batch E"]:
    """x @ kernel (+ bias) in the input's dtype."""
    y = jnp.matmul(x, kernel)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


class GatedMLP(nn.Module):
    """activation(gate) * up, projected back; gate and up are one matrix, so x is read once."""

    mlp_dim: int
    activation: Activation
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """The block's output, before the residual sum."""
        model_dim = x.shape[-1]
        gate_up = self.param("w_gate_up", INIT, (model_dim, 2 * self.mlp_dim), self.dtype)
        down = self.param("w_down", INIT, (self.mlp_dim, model_dim), self.dtype)
        gate, up = jnp.split(project(x, gate_up), 2, axis=-1)
        activate = nn.silu if self.activation == "silu" else _gelu_tanh
        return project(activate(gate) * up, down)


def _gelu_tanh(x: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
    return nn.gelu(x, approximate=True)
