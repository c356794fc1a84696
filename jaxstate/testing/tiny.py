"""Tiny models for tests: small enough to compile in seconds, shaped like the real ones.

Comes in: what should differ from the default. Goes out: a config, or a `Model` with random weights
and the byte tokenizer. Does not know: files.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxstate.config import LayerAttention, ModelConfig, Rope, StepConfig
from jaxstate.errors import InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.model.params import abstract_params
from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.text import plain_template

TINY_STEPS = StepConfig(
    block_cells=4,
    extend_tokens=(4, 16),
    question_tokens=(4, 16),
    tail_cells=(8, 32),
    question_rows=(1, 4),
    step_sessions=(1, 4),
    session_rows=2,
    step_tokens=64,
    choice_tokens=(2, 8),
    tail_block_cells=4,
    tail_blocks=32,
)
_GLOBAL = LayerAttention(rope=Rope(base=10_000.0))
_LOCAL = LayerAttention(rope=Rope(base=1_000.0), window=7)

# Two layers, grouped queries, one sliding window that block borders do not divide.
TINY_CONFIG = ModelConfig(
    family="llama",
    vocab_size=258,
    model_dim=32,
    mlp_dim=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    layers=(_LOCAL, _GLOBAL),
    max_context=512,
    query_scale=8**-0.5,
    bos_id=256,
    eos_ids=(257,),
)


def tiny_config(**changes: object) -> ModelConfig:
    """`TINY_CONFIG` with some fields changed.

    Raises:
        InvalidInput: no such field, or sizes that fit no decoder.
    """
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(set(changes) - known):
        raise InvalidInput(f"{unknown} are not fields of ModelConfig: {sorted(known)}")
    return dataclasses.replace(TINY_CONFIG, **changes)  # pyright: ignore[reportArgumentType]


def tiny_model(
    config: ModelConfig = TINY_CONFIG,
    *,
    steps: StepConfig = TINY_STEPS,
    seed: int = 0,
    dtype: str = "float32",
) -> Model:
    """A model with random weights, wide enough that logits differ clearly, and byte tokens."""
    rng, flat = np.random.default_rng(seed), {}
    for path, leaf in abstract_params(config, jnp.dtype(dtype)).items():
        # By numpy: to compile an initialiser for every shape takes longer than most tests.
        noise = rng.normal(scale=0.16 if len(leaf.shape) > 1 else 0.05, size=leaf.shape)
        flat[path] = jax.device_put((noise + path.endswith("scale")).astype(leaf.dtype))
    tokenizer = ByteTokenizer()
    return Model(
        config=config,
        params=traverse_util.unflatten_dict(flat, sep="/"),
        tokenizer=tokenizer,
        template=plain_template(tokenizer.bos),
        steps=steps,
        source=f"tiny model, seed {seed}",
    )
