"""GGUF metadata -> `ModelConfig`.

Comes in: the metadata of an opened GGUF file and its tensors (the vocabulary size, biases, tied
embeddings and Llama 3's RoPE factors are only there). Goes out: the config of our decoder, or one
`UnsupportedModel` with everything that is wrong. Every `<architecture>.*` key is handled or
checked; `general.*`, `tokenizer.*` and `quantize.*` keys describe other things. Key names and
defaults follow llama.cpp (`src/llama-model.cpp`, `load_hparams`, and `convert_hf_to_gguf.py`).
Does not know: how the file is laid out, tokenizers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from jaxstate.config import Family, LayerAttention, ModelConfig, Rope
from jaxstate.errors import InvalidInput
from jaxstate.weights.fields import Fields, check_ignored, raise_problems
from jaxstate.weights.source import TensorSource

_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3"}
)
_GEMMA3_27B_LAYERS = 62
_ROPE_FACTORS = "rope_freqs.weight"
# Vocabularies whose tokenizers put BOS in front unless the file says otherwise (llama.cpp,
# src/llama-vocab.cpp: `add_bos = true` for the SentencePiece kind, and for Llama 3's pre-tokenizer
# among the byte-pair kinds).
_BOS_MODELS = ("llama",)
_BOS_PRE_TOKENIZERS = ("llama3", "llama-v3", "llama-bpe")


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """The sizes of a model."""

    vocab_size: int
    model_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    max_context: int


def config_from_gguf(
    metadata: Mapping[str, object], tensors: TensorSource, ignore: Collection[str] = ()
) -> ModelConfig:
    """Reads the config of a GGUF file; `open_gguf` gives the first two arguments.

    `ignore` are unknown keys ("llama.new_key") that have no influence, as the caller knows.

    Mistral models say that they are `llama` here, and do not carry Mistral 7B v0.1's sliding
    window.

    Raises:
        UnsupportedModel: not a model that we run exactly; lists every reason.
    """
    problems: list[str] = []
    architecture = metadata.get("general.architecture")
    family = _FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        supported = ", ".join(_FAMILIES)
        problems.append(
            f"general.architecture {architecture!r} is unknown (supported: {supported})"
        )
    ignored = set(ignore)
    config = (
        None if family is None else _checked_config(family, metadata, tensors, problems, ignored)
    )
    check_ignored(ignored, problems)
    raise_problems("this GGUF file", problems)
    assert config is not None  # without a config there is a problem
    return config


def _checked_config(
    family: Family,
    metadata: Mapping[str, object],
    tensors: TensorSource,
    problems: list[str],
    ignored: set[str],
) -> ModelConfig | None:
    fields = _with_prefix(metadata, f"{family}.", problems, ignored)
    vocabulary = _with_prefix(metadata, "tokenizer.ggml.", problems, ignored)
    try:
        return _read_config(family, fields, vocabulary, tensors)
    except InvalidInput as error:  # sizes that fit no decoder
        problems.append(str(error))
        return None


def _with_prefix(
    metadata: Mapping[str, object], prefix: str, problems: list[str], ignored: set[str]
) -> Fields:
    values = {key.removeprefix(prefix): v for key, v in metadata.items() if key.startswith(prefix)}
    return Fields(values, problems, prefix, ignored)


def _read_config(
    family: Family, fields: Fields, vocabulary: Fields, tensors: TensorSource
) -> ModelConfig:
    gemma = family == "gemma3"
    names = frozenset(tensors.names())
    sizes = _read_sizes(fields, tensors)
    layers = _gemma3_layers(fields, sizes) if gemma else _full_layers(fields, sizes, tensors)
    norm_eps = fields.positive("attention.layer_norm_rms_epsilon", None)
    final_softcap = _softcap(fields) if gemma else None
    _check_rest(fields, sizes)
    return ModelConfig(
        family=family,
        vocab_size=sizes.vocab_size,
        model_dim=sizes.model_dim,
        mlp_dim=sizes.mlp_dim,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        layers=layers,
        max_context=sizes.max_context,
        activation="gelu_tanh" if gemma else "silu",
        norm_eps=norm_eps,
        query_scale=_query_scale(family, sizes),
        embed_scale=sizes.model_dim**0.5 if gemma else None,
        qkv_bias=family == "qwen2" or "blk.0.attn_q.bias" in names,
        out_bias="blk.0.attn_output.bias" in names,
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=gemma,
        final_softcap=final_softcap,
        tied_embeddings="output.weight" not in names,
        bos_id=_bos_id(vocabulary),
        eos_ids=_eos_ids(vocabulary),
    )


def _read_sizes(fields: Fields, tensors: TensorSource) -> _Sizes:
    model_dim = fields.integer("embedding_length", None)
    num_heads = _uniform(fields, "attention.head_count", None)
    head_dim = fields.integer("attention.key_length", max(1, model_dim // num_heads))
    fields.require("attention.value_length", (head_dim,), f"{head_dim}, as the keys have")
    fields.require("rope.dimension_count", (head_dim,), f"{head_dim} (all of a head is turned)")
    return _Sizes(
        vocab_size=_vocab_size(fields, tensors),
        model_dim=model_dim,
        mlp_dim=_uniform(fields, "feed_forward_length", None),
        num_heads=num_heads,
        num_kv_heads=_uniform(fields, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        num_layers=fields.integer("block_count", None),
        max_context=fields.integer("context_length", None),
    )


def _uniform(fields: Fields, name: str, default: int | None) -> int:
    """A number that some writers give as a list with one entry a layer; the entries must agree."""
    value = fields.take(name)
    if isinstance(value, list) and len(set(value)) == 1:
        return Fields({name: value[0]}, fields.problems, fields.where).integer(name, default)
    return fields.integer(name, default)


def _vocab_size(fields: Fields, tensors: TensorSource) -> int:
    if "token_embd.weight" not in tensors.names():
        fields.problem("there is no tensor token_embd.weight")
        return 1
    vocab_size = tensors.shape("token_embd.weight")[0]
    fields.require("vocab_size", (vocab_size,), f"{vocab_size}, the rows of token_embd.weight")
    return vocab_size


def _query_scale(family: Family, sizes: _Sizes) -> float:
    # llama.cpp, LLM_ARCH_GEMMA3: `f_attention_scale = type == LLM_TYPE_27B ? 1 / sqrt(n_embd /
    # n_head) : 1 / sqrt(n_embd_head_k)`, and 62 layers make a 27B; the files do not carry
    # query_pre_attn_scalar.
    if family == "gemma3" and sizes.num_layers == _GEMMA3_27B_LAYERS:
        return max(1, sizes.model_dim // sizes.num_heads) ** -0.5
    return sizes.head_dim**-0.5


def _full_layers(
    fields: Fields, sizes: _Sizes, tensors: TensorSource
) -> tuple[LayerAttention, ...]:
    """Llama and Qwen: every layer sees everything."""
    window = fields.integer("attention.sliding_window", 0, minimum=0)
    if 0 < window < sizes.max_context:
        # llama.cpp computes full attention for these architectures whatever this key says.
        fields.problem(f"sliding window {window} is not defined for this architecture in GGUF")
    base, linear = fields.positive("rope.freq_base", 10_000.0), _linear_factor(fields)
    factors = _rope_factors(fields, sizes, tensors)
    if factors is None and linear != 1.0:
        factors = (1.0,) * (sizes.head_dim // 2)
    scaled = None if factors is None else tuple(linear * factor for factor in factors)
    layer = LayerAttention(rope=Rope(base=base, factors=scaled))
    return (layer,) * sizes.num_layers


def _rope_factors(fields: Fields, sizes: _Sizes, tensors: TensorSource) -> tuple[float, ...] | None:
    """Llama 3's divisors, which its converter stores as a tensor."""
    if _ROPE_FACTORS not in tensors.names():
        return None
    shape = tensors.shape(_ROPE_FACTORS)
    if shape != (sizes.head_dim // 2,):
        fields.problem(f"{_ROPE_FACTORS} has shape {shape}, heads have {sizes.head_dim} elements")
        return None
    values = tensors.rows(_ROPE_FACTORS, 0, shape[0]).astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        fields.problem(f"{_ROPE_FACTORS} has values that are not positive numbers")
        return None
    return tuple(values.tolist())


def _gemma3_layers(fields: Fields, sizes: _Sizes) -> tuple[LayerAttention, ...]:
    """Every sixth layer is global; scaling applies to the global layers only.

    llama.cpp, LLM_ARCH_GEMMA3: without a window all layers are global; `swa_period = 6` and
    `rope_freq_base_train_swa = 10000`, unless the keys say otherwise; `rope_freq_scale_train_swa =
    1`. The window includes the token itself: `is_masked_swa` masks `p1 - p0 >= n_swa` for
    LLAMA_SWA_TYPE_STANDARD.
    """
    base, linear = fields.positive("rope.freq_base", 10_000.0), _linear_factor(fields)
    factors = None if linear == 1.0 else (linear,) * (sizes.head_dim // 2)
    window = fields.integer("attention.sliding_window", 0, minimum=0)
    local_base = fields.positive("rope.freq_base_swa", 10_000.0)
    full = LayerAttention(rope=Rope(base=base, factors=factors))
    local = LayerAttention(rope=Rope(base=local_base), window=window or None)
    is_local = _gemma3_pattern(fields, sizes.num_layers)
    return tuple(local if window and is_local[i] else full for i in range(sizes.num_layers))


def _gemma3_pattern(fields: Fields, num_layers: int) -> list[bool]:
    name = "attention.sliding_window_pattern"
    value = fields.take(name)
    if isinstance(value, list):
        flags = [bool(item) for item in value]
        if len(flags) == num_layers:
            return flags
        fields.problem(f"gemma3.{name} has {len(flags)} entries for {num_layers} layers")
    period = 6 if isinstance(value, list) else fields.integer(name, 6)
    return [(i + 1) % period != 0 for i in range(num_layers)]


def _linear_factor(fields: Fields) -> float:
    """What positions are divided by. llama.cpp takes a scaling without a type as linear."""
    kind = fields.text("rope.scaling.type") or "linear"
    legacy = fields.positive("rope.scale_linear", 1.0)
    factor = fields.positive("rope.scaling.factor", legacy)
    fields.require("rope.scaling.attn_factor", (1, 1.0), "1")
    # Read by llama.cpp for YaRN alone.
    fields.ignore(["rope.scaling.original_context_length", "rope.scaling.finetuned"])
    if kind not in ("none", "linear"):
        fields.problem(f"RoPE scaling {kind!r} is not supported (none and linear are)")
    return factor if kind == "linear" else 1.0


def _softcap(fields: Fields) -> float | None:
    cap = fields.take("final_logit_softcapping")
    return None if not cap else fields.positive("final_logit_softcapping", None)


def _check_rest(fields: Fields, sizes: _Sizes) -> None:
    fields.require("expert_count", (0,), "0: mixtures of experts are not supported")
    fields.require("expert_used_count", (0,), "0: mixtures of experts are not supported")
    fields.require("attention.causal", (True,), "true")
    fields.require("attn_logit_softcapping", (0, 0.0), "0")
    fields.require("rope.dimension_count_swa", (sizes.head_dim,), str(sizes.head_dim))
    fields.ignore(["tensor_data_layout"])  # a note of old converters about their source
    fields.finish()


def _bos_id(vocabulary: Fields) -> int | None:
    default = (
        vocabulary.text("model") in _BOS_MODELS or vocabulary.text("pre") in _BOS_PRE_TOKENIZERS
    )
    ids = vocabulary.token_ids("bos_token_id")
    return ids[0] if ids and vocabulary.boolean("add_bos_token", default) else None


def _eos_ids(vocabulary: Fields) -> tuple[int, ...]:
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [token for name in names for token in vocabulary.token_ids(name) or ()]
    return tuple(dict.fromkeys(found))
