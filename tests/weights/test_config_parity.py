"""Configs saved by transformers -> ours, field by field against transformers' own reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from jaxstate.config import LayerAttention, ModelConfig
from jaxstate.weights import config_from_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

Theirs: TypeAlias = Any  # configs and models of transformers, which are not typed

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 2e4, "factor": 4.0}
NESTED = {
    "full_attention": {"rope_type": "linear", "rope_theta": 3e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
TYPES = ["sliding_attention", "full_attention"] * 2
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    ("Llama", {"rope_parameters": LINEAR, "attention_bias": True}),
    ("Llama", {"num_key_value_heads": None, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    ("Llama", {"bos_token_id": None, "eos_token_id": [1, 2]}),
    ("Llama", {"eos_token_id": None}),
    ("Mistral", {}),
    ("Mistral", {"sliding_window": None, "head_dim": 12}),
    ("Mistral", {"sliding_window": 16, "rope_parameters": LINEAR}),
    ("Qwen2", {}),
    ("Qwen2", {**SLIDING, "tie_word_embeddings": True}),
    ("Qwen2", {**SLIDING, "layer_types": TYPES}),
    ("Qwen3", {}),
    ("Qwen3", {**SLIDING, "head_dim": 16, "attention_bias": True}),
    ("Gemma3Text", {}),
    ("Gemma3Text", {"num_hidden_layers": 13, "sliding_window": 8, "query_pre_attn_scalar": 100}),
    ("Gemma3Text", {"rope_parameters": NESTED, "layer_types": TYPES, "attention_bias": True}),
    ("Gemma3Text", {"final_logit_softcapping": 20.0, "tie_word_embeddings": False}),
]
ARCHITECTURES = {"Gemma3Text": "Gemma3"}


def save(directory: Path, kind: str, fields: dict[str, Any]) -> Theirs:
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **fields})
    config.architectures = [f"{ARCHITECTURES.get(kind, kind)}ForCausalLM"]
    config.save_pretrained(directory)
    return config


def rope_inverse(config: ModelConfig, layer: LayerAttention) -> np.ndarray:
    half = config.head_dim // 2
    base = layer.rope.base ** (-np.arange(half) / half)
    return base / np.asarray(layer.rope.factors or (1.0,) * half)


def check_attention(ours: ModelConfig, text: Theirs, model: Theirs) -> None:
    """Windows and frequencies against the built decoder's."""
    decoder = model.get_decoder()
    for i, layer in enumerate(ours.layers):
        attention = decoder.layers[i].self_attn
        assert attention.scaling == pytest.approx(ours.query_scale)
        window = getattr(attention, "sliding_window", getattr(text, "sliding_window", None))
        if text.model_type == "llama":
            window = None
        assert layer.window == window
        names = (
            ("inv_freq", f"{attention.layer_type}_inv_freq")
            if hasattr(attention, "layer_type")
            else ("inv_freq",)
        )
        inverse = next(
            getattr(decoder.rotary_emb, n) for n in names if hasattr(decoder.rotary_emb, n)
        )
        np.testing.assert_allclose(rope_inverse(ours, layer), inverse.numpy(), rtol=2e-6)


def check_fields(ours: ModelConfig, text: Theirs, top: Theirs) -> None:
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert ours.vocab_size == text.vocab_size
    assert ours.model_dim == text.hidden_size
    assert ours.mlp_dim == text.intermediate_size
    assert ours.num_heads == text.num_attention_heads
    assert ours.num_kv_heads == text.num_key_value_heads
    assert ours.head_dim == head_dim
    assert ours.num_layers == text.num_hidden_layers
    assert ours.max_context == text.max_position_embeddings
    assert ours.norm_eps == text.rms_norm_eps
    assert ours.tied_embeddings == top.tie_word_embeddings
    assert ours.final_softcap == getattr(text, "final_logit_softcapping", None)
    eos = top.eos_token_id if hasattr(top, "eos_token_id") else text.eos_token_id
    bos = top.bos_token_id if hasattr(top, "bos_token_id") else text.bos_token_id
    assert ours.bos_id == (None if ours.family in ("qwen2", "qwen3") else bos)
    wanted = [] if eos is None else eos if isinstance(eos, list) else [eos]
    assert list(ours.eos_ids) == wanted


def check_modules(ours: ModelConfig, model: Theirs) -> None:
    decoder = model.get_decoder()
    names = {name for name, _ in decoder.layers[0].named_parameters()}
    assert ours.qkv_bias == ("self_attn.k_proj.bias" in names)
    assert ours.out_bias == ("self_attn.o_proj.bias" in names)
    assert ours.qk_norm == ("self_attn.q_norm.weight" in names)
    assert ours.post_norms == ("post_feedforward_layernorm.weight" in names)
    scale = getattr(decoder.embed_tokens, "scalar_embed_scale", None)
    assert ours.embed_scale == scale


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_text_models(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    save(tmp_path, kind, fields)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    ours = config_from_hf(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(theirs)
    check_fields(ours, theirs, theirs)
    check_modules(ours, model)
    check_attention(ours, theirs, model)


OLD: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"rope_theta": 3e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    (
        "Llama",
        {"rope_theta": 3e5, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    ),
    ("Qwen2", {"rope_theta": 1e6, "rope_scaling": None, "use_sliding_window": False}),
    ("Mistral", {"rope_theta": 1e6}),
    ("Gemma3Text", {"rope_theta": 2e6, "rope_local_base_freq": 9e3, "sliding_window_pattern": 3}),
    ("Gemma3Text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 8}),
    ("Gemma3Text", {}),
]


@pytest.mark.parametrize(("kind", "fields"), OLD)
def test_old_dialect(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    """The hub form: no `rope_parameters`, no `layer_types`, `torch_dtype`."""
    model_type = {"Gemma3Text": "gemma3_text"}.get(kind, kind.lower())
    raw = {**TINY, **fields, "model_type": model_type, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.dtype = torch.float32
    ours = config_from_hf(tmp_path)
    check_fields(ours, theirs, theirs)
    check_attention(ours, theirs, transformers.AutoModelForCausalLM.from_config(theirs))


@pytest.mark.parametrize("tied", [True, False])
def test_multimodal_gemma3(tmp_path: Path, tied: bool) -> None:
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
    text = {**TINY, "num_hidden_layers": 7, "vocab_size": 262208, "tie_word_embeddings": tied}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, tie_word_embeddings=tied
    )
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    ours = config_from_hf(tmp_path)
    check_fields(ours, theirs.text_config, theirs)
    with torch.device("meta"):
        model = transformers.Gemma3ForCausalLM(theirs.text_config)
    assert [layer.window for layer in ours.layers] == [
        layer.self_attn.sliding_window for layer in model.model.layers
    ]


def test_a_model_with_its_weights(tmp_path: Path) -> None:
    """save_pretrained's tensors and generation_config.json too."""
    from jaxstate.weights import load_params, name_table, open_safetensors

    from . import synthetic as syn

    for kind in ("Llama", "Qwen3", "Gemma3Text"):
        directory = tmp_path / kind
        config = getattr(transformers, f"{kind}Config")(**TINY, head_dim=8)
        name = f"{ARCHITECTURES.get(kind, kind)}ForCausalLM"
        model = getattr(transformers, name)(config)
        model.save_pretrained(directory, max_shard_size="20KB")
        ours = config_from_hf(directory)
        loaded = load_params(
            open_safetensors(directory), name_table(ours, "hf"), syn.abstract_params(ours)
        )
        flat = syn.flatten(loaded)
        state = model.get_decoder().state_dict()
        np.testing.assert_array_equal(
            flat["layers_3/mlp/w_down"], state["layers.3.mlp.down_proj.weight"].numpy().T
        )
        assert ours.tied_embeddings == ("head/kernel" not in flat)
