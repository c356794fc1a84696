"""Models of known shapes with random weights, made on the device: for benchmarks without files.

Comes in: a shape's name and a dtype. Goes out: a `Model` that reads bytes as tokens. What such a
model says means nothing; how long it takes to say it does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import traverse_util

import jaxstate
from jaxstate.model.params import abstract_params
from jaxstate.testing import ByteTokenizer


def random_model(
    shape: str, dtype: str, steps: jaxstate.StepConfig | None = None
) -> jaxstate.Model:
    """One of `SHAPES`, with rotary scaling (which costs nothing) left out."""
    config = _CONFIGS[shape]()
    flat: dict[str, jax.Array] = {}
    for number, (path, leaf) in enumerate(abstract_params(config, jnp.dtype(dtype)).items()):
        noise = jax.random.normal(jax.random.key(number), leaf.shape, leaf.dtype)
        flat[path] = noise * jnp.asarray(0.02, leaf.dtype) + path.endswith("scale")
    tokenizer = ByteTokenizer()
    return jaxstate.Model(
        config=config,
        params=traverse_util.unflatten_dict(flat, sep="/"),
        tokenizer=tokenizer,
        template=jaxstate.plain_template(tokenizer.bos),
        steps=steps or jaxstate.StepConfig(),
        source=f"random weights, {shape}",
    )


def _llama(
    layers: int, width: int, mlp: int, heads: int, kv_heads: int, *, tied: bool
) -> jaxstate.ModelConfig:
    head_dim = width // heads
    attention = jaxstate.LayerAttention(rope=jaxstate.Rope(base=500_000.0))
    return jaxstate.ModelConfig(
        family="llama",
        vocab_size=128_256,
        model_dim=width,
        mlp_dim=mlp,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        layers=(attention,) * layers,
        max_context=131_072,
        query_scale=head_dim**-0.5,
        tied_embeddings=tied,
        bos_id=256,
        eos_ids=(257,),
    )


def _gemma_270m() -> jaxstate.ModelConfig:
    near = jaxstate.LayerAttention(rope=jaxstate.Rope(base=10_000.0), window=512)
    far = jaxstate.LayerAttention(rope=jaxstate.Rope(base=1_000_000.0))
    return jaxstate.ModelConfig(
        family="gemma3",
        vocab_size=262_144,
        model_dim=640,
        mlp_dim=2048,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        layers=(*(near,) * 5, far) * 3,
        max_context=131_072,
        activation="gelu_tanh",
        query_scale=256**-0.5,
        embed_scale=640**0.5,
        qk_norm=True,
        post_norms=True,
        bos_id=256,
        eos_ids=(257,),
    )


# Llama 3.2 1B, Llama 3.1 8B, Gemma 3 270M.
_CONFIGS = {
    "1b": lambda: _llama(16, 2048, 8192, 32, 8, tied=True),
    "8b": lambda: _llama(32, 4096, 14336, 32, 8, tied=False),
    "270m": _gemma_270m,
}
SHAPES = tuple(_CONFIGS)
