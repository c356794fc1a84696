"""config.json -> ModelConfig: both dialects, defaults, and every kind of refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxstate.config import LayerAttention, Rope, llama3_rope_factors
from jaxstate.errors import UnsupportedModel
from jaxstate.weights import config_from_hf

Json = dict[str, object]

LLAMA: Json = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "bos_token_id": 3,
    "eos_token_id": [4, 5, 4],
}
LLAMA3: Json = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
GEMMA: Json = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "hidden_size": 64,
    "sliding_window": 16,
}


def write(directory: Path, config: Json, generation: Json | None = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_llama_fields(tmp_path: Path) -> None:
    config = config_from_hf(write(tmp_path, LLAMA))
    assert config.family == "llama"
    assert (config.vocab_size, config.model_dim, config.mlp_dim) == (128, 64, 96)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 2, 8)
    assert config.layers == (LayerAttention(rope=Rope(base=500000.0)),) * 2
    assert (config.max_context, config.norm_eps) == (512, 1e-5)
    assert config.query_scale == 8**-0.5
    assert (config.bos_id, config.eos_ids, config.tied_embeddings) == (3, (4, 5), False)
    assert not (config.qkv_bias or config.out_bias or config.qk_norm or config.post_norms)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": LLAMA3},
        {"rope_scaling": {**LLAMA3, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "rope_theta": 500000.0},
    ],
)
def test_llama3_scaling_in_both_dialects(tmp_path: Path, fields: Json) -> None:
    rope = config_from_hf(write(tmp_path, LLAMA | fields)).layers[0].rope
    assert rope.base == 500000.0
    assert rope.factors == llama3_rope_factors(
        base=500000.0,
        head_dim=8,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context=128,
    )


def test_linear_scaling(tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"type": "linear", "factor": 2}}
    rope = config_from_hf(write(tmp_path, LLAMA | scaling)).layers[0].rope
    assert rope.factors == (2.0,) * 4


def test_generation_config_decides_where_answers_end(tmp_path: Path) -> None:
    assert config_from_hf(write(tmp_path, LLAMA, {"eos_token_id": 9})).eos_ids == (9,)
    assert config_from_hf(write(tmp_path, LLAMA, {"temperature": 1})).eos_ids == (4, 5)


@pytest.mark.parametrize(("given", "window"), [({}, 4096), ({"sliding_window": None}, None)])
def test_mistral_window(tmp_path: Path, given: Json, window: int | None) -> None:
    fields = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    config = config_from_hf(write(tmp_path, LLAMA | fields | given))
    assert config.windows == (window,)


def test_qwen2_window_needs_the_switch(tmp_path: Path) -> None:
    fields = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_window_layers": 1}
    off = config_from_hf(write(tmp_path, LLAMA | fields | {"sliding_window": 8}))
    assert off.windows == (None,) and off.qkv_bias and not off.out_bias and off.bos_id is None
    on = {"use_sliding_window": True, "sliding_window": 8}
    config = config_from_hf(write(tmp_path, LLAMA | fields | on))
    assert [layer.window for layer in config.layers] == [None, 8]


def test_gemma3_old_dialect(tmp_path: Path) -> None:
    fields: Json = {
        "rope_theta": 2e6,
        "rope_local_base_freq": 5e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 168,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
    }
    config = config_from_hf(write(tmp_path, GEMMA | fields))
    local = LayerAttention(rope=Rope(base=5e3), window=16)
    full = LayerAttention(rope=Rope(base=2e6, factors=(8.0,) * 128))
    assert config.layers == (local, local, full, local, local, full, local)
    assert config.query_scale == 168**-0.5 and config.embed_scale == 8.0
    assert config.final_softcap == 30.0 and config.attention_softcap is None
    assert config.activation == "gelu_tanh" and config.post_norms and config.qk_norm
    assert (config.bos_id, config.eos_ids, config.tied_embeddings) == (2, (1,), True)


def test_gemma3_multimodal_omits_defaults(tmp_path: Path) -> None:
    raw: Json = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    config = config_from_hf(write(tmp_path, raw))
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262208, 8, 4)
    assert config.head_dim == 256 and config.query_scale == 1 / 16
    assert config.eos_ids == (1, 106) and config.max_context == 131072
    assert [i for i, layer in enumerate(config.layers) if layer.window is None] == [
        *range(5, 34, 6)
    ]
    assert config.layers[5].rope == Rope(base=1e6, factors=(8.0,) * 128)
    assert config.layers[0] == LayerAttention(rope=Rope(base=1e4), window=1024)


def test_all_problems_come_together(tmp_path: Path) -> None:
    wrong: Json = {
        "hidden_act": "relu",
        "mlp_bias": True,
        "pretraining_tp": 2,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32},
        "num_hidden_layers": "two",
        "moe_router": {"experts": 4},
        "quantization_config": {"bits": 4},
        "layer_types": ["full_attention", "linear_attention"],
        "tie_word_embeddings": None,
        "eos_token_id": [-1],
        "bos_token_id": [1, 2],
    }
    with pytest.raises(UnsupportedModel) as caught:
        config_from_hf(write(tmp_path, LLAMA | wrong))
    message = str(caught.value)
    for expected in (
        "hidden_act = 'relu'",
        "mlp_bias = True",
        "pretraining_tp = 2",
        "'yarn'",
        "num_hidden_layers = 'two'",
        "unknown field moe_router = {'experts': 4}",
        "quantization_config",
        "layer_types",
        "tie_word_embeddings = null",
        "eos_token_id = [-1]",
        "bos_token_id must be one",
    ):
        assert expected in message
    assert "beta_fast" not in message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}}, "'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "x": 1}}, "rope_scaling.x = 1"),
        ({"rope_scaling": {"type": "linear", "rope_type": "default"}}, "by rope_type"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, "high_freq_factor"),
        ({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3}, "both rope_scaling"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "must be even"),
        ({"sliding_window": 16}, "sliding_window = 16"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["MistralForCausalLM"]}, "contradicts model_type"),
        ({"model_type": "gpt2"}, "'gpt2' is unknown"),
        ({"model_type": None}, "None is unknown"),
    ],
)
def test_refusals(tmp_path: Path, fields: Json, expected: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        config_from_hf(write(tmp_path, LLAMA | fields))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters.rope"),
        ({"_sliding_window_pattern": 5}, "_sliding_window_pattern"),
        ({"sliding_window": None}, "no sliding window"),
        ({"layer_types": ["full_attention"]}, "1 entries for 7 layers"),
        ({"hidden_activation": "gelu"}, "hidden_activation"),
    ],
)
def test_gemma3_refusals(tmp_path: Path, fields: Json, expected: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        config_from_hf(write(tmp_path, GEMMA | fields))
    assert expected in str(caught.value)


def test_contradicting_ties(tmp_path: Path) -> None:
    text: Json = {"tie_word_embeddings": False, "new_field": 1}
    with pytest.raises(UnsupportedModel) as caught:
        config_from_hf(write(tmp_path, {"model_type": "gemma3", "text_config": text, "odd": 2}))
    assert "tie_word_embeddings" in str(caught.value)
    assert "text_config.new_field = 1" in str(caught.value) and "field odd = 2" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_unreadable_files(tmp_path: Path, content: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        config_from_hf(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        config_from_hf(tmp_path)
