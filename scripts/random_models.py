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

# layers, model width, MLP width, query heads, KV heads: Llama 3.2 1B and Llama 3.1 8B.
SHAPES = {"1b": (16, 2048, 8192, 32, 8), "8b": (32, 4096, 14336, 32, 8)}


def random_model(shape: str, dtype: str) -> jaxstate.Model:
    """One of `SHAPES`, with rotary scaling (which costs nothing) left out."""
    config = _llama(*SHAPES[shape])
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
        source=f"random weights, {shape}",
    )


def _llama(layers: int, width: int, mlp: int, heads: int, kv_heads: int) -> jaxstate.ModelConfig:
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
        bos_id=256,
        eos_ids=(257,),
    )
