"""The decoder's parameters as a pytree: their shapes, and random ones.

Comes in: a config. Goes out: nested dicts of arrays or of their shapes. Does not know: files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxstate.cells.layout import plan_layout
from jaxstate.cells.session import as_context, new_session
from jaxstate.config import ModelConfig
from jaxstate.model.decoder import Decoder
from jaxstate.weights import Params


def init_params(config: ModelConfig, *, seed: int, dtype: jnp.dtype) -> Params:
    """Random parameters: normal with deviation 0.02, norm scales 1, biases 0."""
    decoder = Decoder(config=config, dtype=dtype)

    def make(key: jax.Array) -> Params:
        layout = plan_layout(config, cells=1, block_cells=1)
        state = new_session(layout, model_dim=config.model_dim, dtype=dtype)
        tokens = jnp.zeros((1, 1, 1), jnp.int32)
        variables = decoder.init(key, tokens, as_context(state), method="everything")
        return cast(Params, variables["params"])

    return make(jax.random.key(seed))


@functools.cache
def abstract_params(config: ModelConfig, dtype: jnp.dtype) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Flat path ("layers_0/attention/wqkv") -> shape and dtype, without memory; read only."""
    shapes = jax.eval_shape(lambda: init_params(config, seed=0, dtype=dtype))
    flat = traverse_util.flatten_dict(shapes, sep="/")
    return MappingProxyType(cast(dict[str, jax.ShapeDtypeStruct], flat))
