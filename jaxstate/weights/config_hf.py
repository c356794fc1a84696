"""A Hugging Face model directory's config -> `ModelConfig`.

Comes in: a directory with config.json and, usually, generation_config.json. Goes out: the config of
our decoder, or one `UnsupportedModel` with everything that is wrong: every field is handled, or
known to have no influence on text inference, or checked to have the one value that we compute.
Defaults are those of transformers 5.23 (`models/*/configuration_*.py`).
Does not know: tensors, tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jaxstate.config import Activation, Family, ModelConfig
from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.textfiles import read_text_file
from jaxstate.weights.fields import Fields, check_ignored, raise_problems
from jaxstate.weights.fields_hf import DEFAULTS, IGNORED, IGNORED_MULTIMODAL, OFF, Defaults
from jaxstate.weights.rope_hf import read_layers

# Architecture -> model_type; AutoModelForCausalLM goes by the latter, so they must agree.
_MODEL_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "mistral",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
        "Gemma3ForCausalLM": "gemma3_text",
        "Gemma3ForConditionalGeneration": "gemma3",
    }
)
_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": "llama",
        "mistral": "mistral",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "gemma3_text": "gemma3",
        "gemma3": "gemma3",
    }
)
_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
)


def config_from_hf(directory: Path, ignore: Collection[str] = ()) -> ModelConfig:
    """Reads config.json and generation_config.json.

    Args:
        directory: of the model.
        ignore: unknown fields that have no influence, as the caller knows; nested ones with their
            path ("rope_parameters.new_field").

    `eos_ids` are generation_config.json's when it names any, as in `generate`, otherwise
    config.json's. `bos_id` is None for Qwen, whose configs name a token that their tokenizers never
    put in front.

    Raises:
        UnsupportedModel: a file is unreadable, or the model is not one that we run exactly; lists
            every reason.
    """
    path = directory / "config.json"
    problems: list[str] = []
    raw = _read_json(path)
    family = _family(raw, problems)
    ignored = set(ignore)
    config = None if family is None else _checked_config(directory, raw, family, problems, ignored)
    check_ignored(ignored, problems)
    raise_problems(str(path), problems)
    assert config is not None  # without a config there is a problem
    return config


def _checked_config(
    directory: Path,
    raw: Mapping[str, object],
    family: Family,
    problems: list[str],
    ignored: set[str],
) -> ModelConfig | None:
    top = Fields(raw, problems, ignored=ignored)
    text = top if raw.get("model_type") != "gemma3" else _text_fields(top, problems)
    eos_ids = _eos_ids(directory, top, text, DEFAULTS[family].eos_ids, problems)
    try:
        return _read_config(family, top, text, eos_ids)
    except InvalidInput as error:  # sizes that fit no decoder
        problems.append(str(error))
        return None


def _read_json(path: Path) -> dict[str, object]:
    try:
        content: object = json.loads(read_text_file(path, "the config"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} is not a JSON object")
    return content


def _family(raw: Mapping[str, object], problems: list[str]) -> Family | None:
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    supported = ", ".join(_MODEL_TYPES)
    known = isinstance(model_type, str) and model_type in _FAMILIES
    if not known:
        problems.append(f"model_type {model_type!r} is unknown (supported: {supported})")
    if architectures is not None:
        names = architectures if isinstance(architectures, list) else [architectures]
        expected = [name for name, one in _MODEL_TYPES.items() if one == model_type]
        if len(names) != 1 or names[0] not in list(_MODEL_TYPES):
            problems.append(f"architectures {names} is not one of {supported}")
        elif known and names != expected:
            problems.append(f"architectures {names} contradicts model_type {model_type!r}")
    return _FAMILIES[str(model_type)] if known else None


def _text_fields(top: Fields, problems: list[str]) -> Fields:
    """The text half of a multimodal config, which omits what equals transformers' defaults."""
    text = top.group("text_config") or Fields({}, problems, "text_config.")
    text.require("model_type", ("gemma3_text",), "'gemma3_text'")
    top.ignore(IGNORED_MULTIMODAL | IGNORED)
    return text


def _eos_ids(
    directory: Path, top: Fields, text: Fields, default: tuple[int, ...], problems: list[str]
) -> tuple[int, ...]:
    path = directory / "generation_config.json"
    generation = Fields(_read_json(path) if path.is_file() else {}, problems, f"{path.name}: ")
    candidates = [fields.token_ids("eos_token_id") for fields in (generation, top, text)]
    if not any(fields.given("eos_token_id") for fields in (top, text)):
        candidates.append(default)  # absent; null means that there is none
    return next((ids for ids in candidates if ids is not None), ())


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """The sizes of a text config, with transformers' defaults filled in."""

    vocab_size: int
    model_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    max_context: int


def _read_sizes(text: Fields, defaults: Defaults) -> _Sizes:
    model_dim = text.integer("hidden_size", defaults.hidden_size)
    num_heads = text.integer("num_attention_heads", defaults.num_attention_heads)
    head_dim = text.optional_integer("head_dim", defaults.head_dim)
    num_kv_heads = text.optional_integer("num_key_value_heads", defaults.num_key_value_heads)
    return _Sizes(
        vocab_size=text.integer("vocab_size", defaults.vocab_size),
        model_dim=model_dim,
        mlp_dim=text.integer("intermediate_size", defaults.intermediate_size),
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        head_dim=model_dim // num_heads if head_dim is None else head_dim,
        num_layers=text.integer("num_hidden_layers", defaults.num_hidden_layers),
        max_context=text.integer("max_position_embeddings", defaults.max_position_embeddings),
    )


def _read_config(
    family: Family, top: Fields, text: Fields, eos_ids: tuple[int, ...]
) -> ModelConfig:
    """Reads every field of `text`, and what is left of `top` when that is another mapping."""
    defaults, gemma = DEFAULTS[family], family == "gemma3"
    sizes = _read_sizes(text, defaults)
    has_bias = family in ("llama", "qwen3", "gemma3") and text.boolean("attention_bias", False)
    layers = read_layers(
        text,
        family,
        num_layers=sizes.num_layers,
        head_dim=sizes.head_dim,
        max_context=sizes.max_context,
    )
    scale_dim = text.positive("query_pre_attn_scalar", 256) if gemma else sizes.head_dim
    final_softcap = text.optional_positive("final_logit_softcapping") if gemma else None
    activation, norm_eps = _activation(text, gemma), text.positive("rms_norm_eps", 1e-6)
    tied, bos_id = _tied(top, text, defaults.tied), _bos_id(family, top, text, defaults.bos_id)
    _finish(top, text)
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
        activation=activation,
        norm_eps=norm_eps,
        query_scale=scale_dim**-0.5 if scale_dim > 0 else 1.0,
        embed_scale=sizes.model_dim**0.5 if gemma else None,
        qkv_bias=has_bias or family == "qwen2",
        out_bias=has_bias,
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=gemma,
        final_softcap=final_softcap,
        tied_embeddings=tied,
        bos_id=bos_id,
        eos_ids=eos_ids,
    )


def _activation(text: Fields, gemma: bool) -> Activation:
    name, default = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    text.require(name, (default,), repr(default))
    return _ACTIVATIONS[default]


def _tied(top: Fields, text: Fields, default: bool) -> bool:
    """A multimodal model ties by its top-level field; its text half must not contradict it."""
    tied = top.boolean("tie_word_embeddings", default)
    if text is not top and text.boolean("tie_word_embeddings", tied) != tied:
        top.problem(f"tie_word_embeddings is {tied}, and not so in text_config")
    return tied


def _bos_id(family: Family, top: Fields, text: Fields, default: int | None) -> int | None:
    found = [fields.token_ids("bos_token_id") for fields in (top, text)]
    if family in ("qwen2", "qwen3"):
        return None
    given = next((ids for ids in found if ids is not None), None)
    if given is None:  # absent, or null, which means that there is none
        return None if top.given("bos_token_id") or text.given("bos_token_id") else default
    if len(given) != 1:
        top.problem(f"bos_token_id must be one token id, not {list(given)}")
        return None
    return given[0]


def _finish(top: Fields, text: Fields) -> None:
    for fields in (top, text) if text is not top else (text,):
        fields.ignore(IGNORED)
        unread = set(fields.unread())
        for name, allowed in OFF.items():
            if name in unread:
                fields.require(name, allowed, " or ".join(map(repr, allowed)))
        fields.finish()
