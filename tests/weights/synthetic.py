"""Tiny models in every family, with random parameters, written the way foreign tools write them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import jax
import numpy as np
from gguf import GGMLQuantizationType
from safetensors.numpy import save_file

from jaxstate.config import Family, LayerAttention, ModelConfig, Rope

Arrays = dict[str, np.ndarray]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma3")


def tiny_config(family: Family, **changes: object) -> ModelConfig:
    gemma = family == "gemma3"
    layer = LayerAttention(rope=Rope(base=10_000.0))
    config = ModelConfig(
        family=family,
        vocab_size=48,
        model_dim=32,
        mlp_dim=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        layers=(layer, layer),
        max_context=64,
        query_scale=8**-0.5,
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=gemma,
        tied_embeddings=gemma,
    )
    return replace(config, **changes)


def abstract_params(
    config: ModelConfig, dtype: np.typing.DTypeLike = np.float32
) -> dict[str, jax.ShapeDtypeStruct]:
    d, f, width = config.model_dim, config.mlp_dim, config.query_dim + 2 * config.kv_dim
    shapes: dict[str, tuple[int, ...]] = {"embed/embedding": (config.vocab_size, d)}
    for i in range(config.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "attention_norm/scale": (d,),
            "attention/wqkv": (d, width),
            "attention/wo": (config.query_dim, d),
            "mlp_norm/scale": (d,),
            "mlp/w_gate_up": (d, 2 * f),
            "mlp/w_down": (f, d),
        }
        if config.qkv_bias:
            layer["attention/bqkv"] = (width,)
        if config.out_bias:
            layer["attention/bo"] = (d,)
        if config.qk_norm:
            layer |= {f"attention/{x}_norm/scale": (config.head_dim,) for x in "qk"}
        if config.post_norms:
            layer |= {"attention_post_norm/scale": (d,), "mlp_post_norm/scale": (d,)}
        shapes |= {f"layers_{i}/{path}": shape for path, shape in layer.items()}
    shapes["final_norm/scale"] = (d,)
    if not config.tied_embeddings:
        shapes["head/kernel"] = (d, config.vocab_size)
    return {
        path: jax.ShapeDtypeStruct(shape, np.float32 if path.endswith("scale") else dtype)
        for path, shape in shapes.items()
    }


def random_params(config: ModelConfig, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        path: rng.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in abstract_params(config).items()
    }


def hf_tensors(config: ModelConfig, params: Arrays, prefix: str = "model.") -> Arrays:
    """What transformers would save for these parameters."""
    shift = np.float32(1.0 if config.family == "gemma3" else 0.0)
    tensors = {
        f"{prefix}embed_tokens.weight": params["embed/embedding"],
        f"{prefix}norm.weight": params["final_norm/scale"] - shift,
    }
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.post_norms:
        norms |= {
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
    for i in range(config.num_layers):
        ours, theirs = f"layers_{i}/", f"{prefix}layers.{i}."
        for a, b in norms.items():
            tensors[f"{theirs}{b}.weight"] = params[f"{ours}{a}/scale"] - shift
        for key, name in (("q", "q_norm"), ("k", "k_norm")):
            if config.qk_norm:
                scale = params[f"{ours}attention/{key}_norm/scale"]
                tensors[f"{theirs}self_attn.{name}.weight"] = scale - shift
        for part, piece in split_matrices(config, params, ours).items():
            tensors[f"{theirs}{part}"] = piece
    if not config.tied_embeddings:
        tensors["lm_head.weight"] = params["head/kernel"].T
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def split_matrices(config: ModelConfig, params: Arrays, layer: str) -> Arrays:
    n, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    wqkv = params[f"{layer}attention/wqkv"]
    gate_up = params[f"{layer}mlp/w_gate_up"]
    tensors = {
        "self_attn.q_proj.weight": wqkv[:, :n].T,
        "self_attn.k_proj.weight": wqkv[:, n : n + kv].T,
        "self_attn.v_proj.weight": wqkv[:, n + kv :].T,
        "self_attn.o_proj.weight": params[f"{layer}attention/wo"].T,
        "mlp.gate_proj.weight": gate_up[:, : config.mlp_dim].T,
        "mlp.up_proj.weight": gate_up[:, config.mlp_dim :].T,
        "mlp.down_proj.weight": params[f"{layer}mlp/w_down"].T,
    }
    if config.qkv_bias:
        bias = params[f"{layer}attention/bqkv"]
        tensors["self_attn.q_proj.bias"] = bias[:n]
        tensors["self_attn.k_proj.bias"] = bias[n : n + kv]
        tensors["self_attn.v_proj.bias"] = bias[n + kv :]
    if config.out_bias:
        tensors["self_attn.o_proj.bias"] = params[f"{layer}attention/bo"]
    return tensors


_GGUF_NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """llama.cpp's order, element by element: pair j of a head, halves side by side."""
    out = np.empty_like(rows)
    half = head_dim // 2
    for head in range(rows.shape[0] // head_dim):
        for j in range(half):
            for side in range(2):
                out[head * head_dim + 2 * j + side] = rows[head * head_dim + side * half + j]
    return out


def gguf_tensors(config: ModelConfig, params: Arrays) -> Arrays:
    """What convert_hf_to_gguf.py would write: other names, whole norms, llama's row order."""
    tensors: Arrays = {}
    after = "post_attention_norm" if config.post_norms else "ffn_norm"
    for name, tensor in hf_tensors(config, params).items():
        ours = name.replace("post_attention_layernorm", after)
        for old, new in _GGUF_NAMES.items():
            ours = ours.replace(old, new)
        if config.family == "gemma3" and "norm" in ours:
            tensor = tensor + np.float32(1)
        permuted = ".attn_q." in ours or ".attn_k." in ours
        if config.family in ("llama", "mistral") and permuted:
            tensor = interleaved(tensor, config.head_dim)
        tensors[ours] = tensor
    return tensors


def gguf_metadata(config: ModelConfig) -> dict[str, int | float | str | bool]:
    arch = "llama" if config.family == "mistral" else config.family
    values: dict[str, int | float | str | bool] = {
        "context_length": config.max_context,
        "embedding_length": config.model_dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.freq_base": 10_000.0,
    }
    if arch == "gemma3":
        values["attention.sliding_window"] = 16
    return {f"{arch}.{key}": value for key, value in values.items()}


def write_gguf(
    path: Path,
    arch: str,
    metadata: dict[str, int | float | str | bool],
    tensors: Arrays,
    kinds: dict[str, GGMLQuantizationType] | None = None,
) -> Path:
    """Writes with the gguf package; a tensor in `kinds` holds raw bytes of that type."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_model(path: Path, tensors: Arrays) -> Path:
    save_file(tensors, path)
    return path


def flatten(params: object, prefix: str = "") -> dict[str, jax.Array]:
    """Nested dict -> flat path -> array."""
    if isinstance(params, jax.Array):
        return {prefix: params}
    assert isinstance(params, dict)
    flat: dict[str, jax.Array] = {}
    for key, value in params.items():
        flat |= flatten(value, f"{prefix}/{key}" if prefix else key)
    return flat
