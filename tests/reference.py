"""An independent decoder in plain numpy float64, and small helpers of the core's tests.

Written from the definitions in `ModelConfig`'s docstring: dense causal attention over the whole
text, no cache, no merging, no jax. Nothing here calls the package's mathematics; only the names and
shapes of parameters are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from numpy.typing import DTypeLike, NDArray

from jaxstate.cells.layout import layers_by_group
from jaxstate.cells.pool import KVPool
from jaxstate.config import LayerAttention, ModelConfig, Rope, StepConfig
from jaxstate.model.bundle import Model
from jaxstate.model.params import abstract_params
from jaxstate.text import Tokenizer, plain_template

Array64 = NDArray[np.float64]
Pair = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Reference:
    """A forward pass without a cache: [T, V] logits; keys and values [T, K, H] of every layer."""

    logits: Array64
    keys: tuple[Array64, ...]
    values: tuple[Array64, ...]


def reference_forward(model: Model, tokens: Sequence[int] | NDArray[np.integer]) -> Reference:
    """A plain pass over the whole text."""
    config, params = model.config, _wide(model.params)
    x = params["embed/embedding"][np.asarray(tokens, np.int64)]
    if config.embed_scale is not None:
        x = x * float(np.asarray(config.embed_scale).astype(model.dtype))
    keys, values = [], []
    for index, layer in enumerate(config.layers):
        own = {
            path.removeprefix(f"layers_{index}/"): value
            for path, value in params.items()
            if path.startswith(f"layers_{index}/")
        }
        mixed, k, v = _attention(config, layer, own, _norm(x, own["attention_norm/scale"], config))
        if config.post_norms:
            mixed = _norm(mixed, own["attention_post_norm/scale"], config)
        x = x + mixed
        mixed = _mlp(config, own, _norm(x, own["mlp_norm/scale"], config))
        if config.post_norms:
            mixed = _norm(mixed, own["mlp_post_norm/scale"], config)
        x = x + mixed
        keys.append(k)
        values.append(v)
    x = _norm(x, params["final_norm/scale"], config)
    head = params["embed/embedding"].T if config.tied_embeddings else params["head/kernel"]
    return Reference(_cap(x @ head, config.final_softcap), tuple(keys), tuple(values))


def pool_of_layers(layer_groups: Sequence[int], layers: Sequence[Pair]) -> KVPool:
    """A pool in which each layer has these keys and values [P, C, K, H]."""
    groups = []
    for mine in layers_by_group(tuple(layer_groups)):
        cells = np.stack([np.stack(layers[layer], axis=1) for layer in mine], axis=1)
        groups.append(jnp.asarray(cells))
    return KVPool(groups=tuple(groups))


def layers_of_pool(layer_groups: Sequence[int], pool: KVPool) -> list[Pair]:
    """Each layer's keys and values [P, C, K, H]."""
    found: dict[int, Pair] = {}
    for layers, cells in zip(layers_by_group(tuple(layer_groups)), pool.groups, strict=True):
        for place, layer in enumerate(layers):
            keys, values = np.moveaxis(np.asarray(cells)[:, place], 1, 0)
            found[layer] = (keys, values)
    return [found[layer] for layer in sorted(found)]


def one_layer(keys: NDArray[Any], values: NDArray[Any]) -> tuple[jax.Array, jax.Array]:
    """A group [P, L, 2, C, K, H] with those keys and values [P, C, K, H] in its second layer, and
    NaN in the others; and that layer's number."""
    cells = np.full((len(keys), 3, 2, *keys.shape[1:]), np.nan, keys.dtype)
    cells[:, 1, 0], cells[:, 1, 1] = keys, values
    return jnp.asarray(cells), jnp.int32(1)


def log_softmax(logits: Array64) -> Array64:
    """Over the last axis, in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _wide(params: chex.ArrayTree) -> dict[str, Array64]:
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path: np.asarray(leaf).astype(np.float64) for path, leaf in flat.items()}


def _norm(x: Array64, scale: Array64, config: ModelConfig) -> Array64:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.norm_eps) * scale


def _cap(x: Array64, cap: float | None) -> Array64:
    return x if cap is None else cap * np.tanh(x / cap)


def _rotated(x: Array64, rope: Rope) -> Array64:
    """Half-split RoPE: (x_i, x_{i+H/2}) is a pair, turned by position * base^(-2i/H) / factor."""
    tokens, _, size = x.shape
    half = size // 2
    frequency = rope.base ** (-2.0 * np.arange(half) / size)
    if rope.factors is not None:
        frequency = frequency / np.asarray(rope.factors)
    angle = (np.arange(tokens)[:, None] * frequency)[:, None, :]
    pair = x[..., :half] + 1j * x[..., half:]
    turned = pair * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1)


def _attention(
    config: ModelConfig, layer: LayerAttention, own: dict[str, Array64], x: Array64
) -> tuple[Array64, Array64, Array64]:
    tokens, size = len(x), config.head_dim
    mixed = x @ own["attention/wqkv"]
    if config.qkv_bias:
        mixed = mixed + own["attention/bqkv"]
    q = mixed[:, : config.query_dim].reshape(tokens, config.num_heads, size)
    k = mixed[:, config.query_dim :][:, : config.kv_dim].reshape(tokens, config.num_kv_heads, size)
    v = mixed[:, config.query_dim + config.kv_dim :].reshape(tokens, config.num_kv_heads, size)
    if config.qk_norm:
        q = _norm(q, own["attention/q_norm/scale"], config)
        k = _norm(k, own["attention/k_norm/scale"], config)
    q, k = _rotated(q, layer.rope), _rotated(k, layer.rope)
    sees = np.tri(tokens, dtype=bool)
    if layer.window is not None:
        sees &= ~np.tri(tokens, k=-layer.window, dtype=bool)
    out = np.zeros((tokens, config.num_heads, size))
    for head in range(config.num_heads):
        of = head // (config.num_heads // config.num_kv_heads)
        scores = _cap(config.query_scale * q[:, head] @ k[:, of].T, config.attention_softcap)
        scores = np.where(sees, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e300))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, of]
    out = out.reshape(tokens, config.query_dim) @ own["attention/wo"]
    return out + own["attention/bo"] if config.out_bias else out, k, v


def _mlp(config: ModelConfig, own: dict[str, Array64], x: Array64) -> Array64:
    mixed = x @ own["mlp/w_gate_up"]
    gate, up = mixed[:, : config.mlp_dim], mixed[:, config.mlp_dim :]
    if config.activation == "silu":
        gate = gate / (1.0 + np.exp(-gate))
    else:
        inner = np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)
        gate = 0.5 * gate * (1.0 + np.tanh(inner))
    return (gate * up) @ own["mlp/w_down"]


def random_model(
    config: ModelConfig,
    steps: StepConfig,
    *,
    seed: int = 0,
    dtype: DTypeLike = np.float32,
    tokenizer: Tokenizer | None = None,
) -> Model:
    """A model whose every parameter matters: biases are not zero, and norm scales not one."""
    random = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...], kind: DTypeLike) -> jax.Array:
        if path.endswith("scale"):
            values = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = random.normal(0.0, 0.3, shape)
        else:
            values = random.normal(0.0, 1.0, shape) / np.sqrt(shape[0])
        if path == "embed/embedding":
            values = random.normal(0.0, 0.5, shape)
        return jnp.asarray(values.astype(kind))

    flat = {
        path: draw(path, leaf.shape, leaf.dtype)
        for path, leaf in abstract_params(config, jnp.dtype(dtype)).items()
    }
    return Model(
        config=config,
        params=traverse_util.unflatten_dict(flat, sep="/"),
        tokenizer=tokenizer,
        template=plain_template(None if tokenizer is None else tokenizer.bos),
        steps=steps,
        source=f"random model, seed {seed}",
    )


def bits(tree: chex.ArrayTree) -> list[bytes]:
    """The bytes of every array of a pytree: a copy that later writes cannot reach."""
    return [np.array(leaf, copy=True).tobytes() for leaf in jax.tree.leaves(tree)]
