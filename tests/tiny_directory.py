"""A Hugging Face directory of a tiny Llama with a byte-level tokenizer, made without transformers.

The model has random weights; every byte is a token, so that what the command line does can be
counted.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from jaxstate.model.bundle import Model
from jaxstate.testing import tiny_config, tiny_model
from jaxstate.text.hf_decoder import byte_level_alphabet

VOCAB_SIZE = 258
BOS, EOS = "<bos>", "<eos>"
MAX_CONTEXT = 2048


def directory_model(seed: int = 0) -> Model:
    """The model that `write_directory` saves: all layers see everything, as in Llama."""
    whole = tiny_config().layers[1]
    config = tiny_config(layers=(whole, whole), tied_embeddings=False, max_context=MAX_CONTEXT)
    return tiny_model(config, seed=seed)


def write_directory(path: Path, *, seed: int = 0) -> Path:
    """Saves it as `save_pretrained` would, and returns the path."""
    path.mkdir(parents=True, exist_ok=True)
    model = directory_model(seed)
    _write_json(path / "config.json", _config(model))
    _write_json(path / "tokenizer.json", _tokenizer())
    opening = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True}
    _write_json(path / "tokenizer_config.json", opening)
    save_file(_tensors(model), path / "model.safetensors")
    return path


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _config(model: Model) -> dict[str, object]:
    config = model.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.layers[0].rope.base,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }


def _tokenizer() -> dict[str, object]:
    alphabet = byte_level_alphabet()
    vocab = {**alphabet, BOS: 256, EOS: 257}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[name], "content": name, "special": True, **special} for name in (BOS, EOS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }


def _tensors(model: Model) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(model.params, sep="/")
    ours = {path: np.asarray(leaf) for path, leaf in flat.items()}
    tensors = {
        "model.embed_tokens.weight": ours["embed/embedding"],
        "model.norm.weight": ours["final_norm/scale"],
        "lm_head.weight": ours["head/kernel"].T,
    }
    cuts = (model.config.query_dim, model.config.query_dim + model.config.kv_dim)
    for layer in range(model.config.num_layers):
        own, name = f"layers_{layer}", f"model.layers.{layer}"
        q, k, v = np.split(ours[f"{own}/attention/wqkv"], cuts, axis=1)
        gate, up = np.split(ours[f"{own}/mlp/w_gate_up"], 2, axis=1)
        tensors |= {
            f"{name}.self_attn.q_proj.weight": q.T,
            f"{name}.self_attn.k_proj.weight": k.T,
            f"{name}.self_attn.v_proj.weight": v.T,
            f"{name}.self_attn.o_proj.weight": ours[f"{own}/attention/wo"].T,
            f"{name}.mlp.gate_proj.weight": gate.T,
            f"{name}.mlp.up_proj.weight": up.T,
            f"{name}.mlp.down_proj.weight": ours[f"{own}/mlp/w_down"].T,
            f"{name}.input_layernorm.weight": ours[f"{own}/attention_norm/scale"],
            f"{name}.post_attention_layernorm.weight": ours[f"{own}/mlp_norm/scale"],
        }
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}
