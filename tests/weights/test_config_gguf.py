"""GGUF metadata -> ModelConfig."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jaxstate.config import Family, LayerAttention, Rope
from jaxstate.errors import UnsupportedModel
from jaxstate.weights import config_from_gguf

from . import synthetic as syn
from .test_load import ArraySource

Metadata = dict[str, object]


def described(family: Family, **changes: object) -> tuple[Metadata, ArraySource]:
    config = syn.tiny_config(family, **changes)
    arch = "llama" if family == "mistral" else family
    metadata: Metadata = {"general.architecture": arch, **syn.gguf_metadata(config)}
    return metadata, ArraySource(syn.gguf_tensors(config, syn.random_params(config)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fields(family: Family) -> None:
    metadata, tensors = described(family)
    expected = replace(syn.tiny_config(family), eos_ids=(7, 8), bos_id=None)
    metadata |= {"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": 8}
    metadata |= {"tokenizer.ggml.eom_token_id": 7, "general.name": "x", "quantize.imatrix.file": ""}
    config = config_from_gguf(metadata, tensors)
    assert replace(config, norm_eps=1e-6) == expected
    assert config.norm_eps == pytest.approx(1e-6)


def test_gemma3_pattern_scaling_and_scale() -> None:
    config = syn.tiny_config("gemma3")
    metadata, tensors = described("gemma3", layers=config.layers[:1] * 13)
    metadata |= {
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
        "gemma3.final_logit_softcapping": 30.0,
    }
    read = config_from_gguf(metadata, tensors)
    local = LayerAttention(rope=Rope(base=1e4), window=16)
    full = LayerAttention(rope=Rope(base=1e6, factors=(8.0,) * 4))
    assert read.layers == ((local,) * 5 + (full,)) * 2 + (local,)
    assert read.embed_scale == 32**0.5 and read.activation == "gelu_tanh"
    assert read.final_softcap == 30.0 and read.tied_embeddings
    assert read.query_scale == 8**-0.5


def test_gemma3_27b_has_its_own_scale() -> None:
    config = syn.tiny_config("gemma3")
    metadata, tensors = described(
        "gemma3", layers=config.layers[:1] * 62, num_heads=2, num_kv_heads=1
    )
    assert config_from_gguf(metadata, tensors).query_scale == (32 / 2) ** -0.5


def test_gemma3_windows_by_newer_keys() -> None:
    metadata, tensors = described("gemma3")
    metadata |= {
        "gemma3.attention.sliding_window_pattern": 2,
        "gemma3.rope.freq_base_swa": 5e3,
    }
    layers = config_from_gguf(metadata, tensors).layers
    assert layers[0] == LayerAttention(rope=Rope(base=5e3), window=16)
    assert layers[1].window is None
    metadata["gemma3.attention.sliding_window_pattern"] = [False, True]
    assert [x.window for x in config_from_gguf(metadata, tensors).layers] == [None, 16]
    del metadata["gemma3.attention.sliding_window"]
    assert config_from_gguf(metadata, tensors).windows == (None,)


def test_llama3_factors_are_a_tensor() -> None:
    metadata, tensors = described("llama")
    tensors.tensors["rope_freqs.weight"] = np.array([1, 1.5, 8, 8], np.float32)
    config = config_from_gguf(metadata, tensors)
    assert config.layers[0].rope.factors == (1.0, 1.5, 8.0, 8.0)
    tensors.tensors["rope_freqs.weight"] = np.ones(3, np.float32)
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight has shape"):
        config_from_gguf(metadata, tensors)


@pytest.mark.parametrize(
    ("extra", "bos"),
    [
        ({"model": "llama"}, 1),
        ({"model": "llama", "add_bos_token": False}, None),
        ({"model": "gpt2", "pre": "qwen2"}, None),
        ({"model": "gpt2", "pre": "llama-bpe"}, 1),
        ({"model": "gpt2", "add_bos_token": True}, 1),
    ],
)
def test_bos(extra: Metadata, bos: int | None) -> None:
    metadata, tensors = described("llama")
    vocabulary: Metadata = {"bos_token_id": 1, **extra}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    assert config_from_gguf(metadata, tensors).bos_id == bos


def test_per_layer_lists_must_agree() -> None:
    metadata, tensors = described("llama")
    metadata["llama.attention.head_count_kv"] = [2, 2]
    assert config_from_gguf(metadata, tensors).num_kv_heads == 2
    metadata["llama.attention.head_count_kv"] = [2, 4]
    with pytest.raises(UnsupportedModel, match="head_count_kv"):
        config_from_gguf(metadata, tensors)


def test_tied_without_output() -> None:
    metadata, tensors = described("qwen3", tied_embeddings=True)
    assert config_from_gguf(metadata, tensors).tied_embeddings


def test_all_problems_come_together() -> None:
    metadata, tensors = described("llama")
    del metadata["llama.feed_forward_length"]
    metadata |= {
        "llama.rope.scaling.type": "yarn",
        "llama.expert_count": 8,
        "llama.rope.dimension_count": 4,
        "llama.vocab_size": 47,
        "llama.attention.sliding_window": 16,
        "llama.strange": 1,
        "llama.attention.value_length": 16,
    }
    with pytest.raises(UnsupportedModel) as caught:
        config_from_gguf(metadata, tensors)
    for expected in (
        "llama.feed_forward_length is missing",
        "'yarn'",
        "expert_count = 8",
        "rope.dimension_count = 4",
        "vocab_size = 47",
        "sliding window",
        "llama.strange = 1",
        "value_length = 16",
    ):
        assert expected in str(caught.value)


def test_impossible_and_unknown_models() -> None:
    metadata, tensors = described("llama")
    with pytest.raises(UnsupportedModel, match="'mamba'"):
        config_from_gguf(metadata | {"general.architecture": "mamba"}, tensors)
    with pytest.raises(UnsupportedModel, match="not a multiple"):
        config_from_gguf(metadata | {"llama.attention.head_count_kv": 3}, tensors)
    del tensors.tensors["token_embd.weight"]
    with pytest.raises(UnsupportedModel, match="token_embd"):
        config_from_gguf(metadata, tensors)
