"""The tiny models, one for each way in which a family's computation can differ.

Every case must be sensitive to what its name says: `unlike` are changes of the config, each of
which must change transformers' logits on the same weights by far more than the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxstate.config import StepConfig

# Small shapes, so that 90 tokens cross many blocks, chunks and windows.
STEPS = StepConfig(block_cells=4, extend_tokens=(4, 16), question_tokens=(4, 16), tail_cells=(32,))
# Fewer of them, for variants: each shape takes a second or two to compile.
FEW_STEPS = StepConfig(block_cells=4, extend_tokens=(16,), question_tokens=(16,), tail_cells=(32,))
VOCAB = 160

_COMMON: Mapping[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_DEFAULT_5E4 = {"rope_type": "default", "rope_theta": 5e4}
_LINEAR = {"rope_type": "linear", "rope_theta": 2e3, "factor": 4.0}
_DEFAULT_2E3 = {"rope_type": "default", "rope_theta": 2e3}
_SLIDING, _FULL = "sliding_attention", "full_attention"
# Another base of each kind, and scaling of the global one only.
_GEMMA_ROPES = {
    _FULL: {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    _SLIDING: {"rope_type": "default", "rope_theta": 3e3},
}
_GEMMA_ONE_BASE = {**_GEMMA_ROPES, _SLIDING: {"rope_type": "default", "rope_theta": 1e5}}
_GEMMA_UNSCALED = {**_GEMMA_ROPES, _FULL: {"rope_type": "default", "rope_theta": 1e5}}
_GEMMA_LOCAL_LINEAR = {
    _FULL: {"rope_type": "default", "rope_theta": 1e5},
    _SLIDING: {"rope_type": "linear", "rope_theta": 3e3, "factor": 4.0},
}
_GEMMA_SMALL = {
    "head_dim": 16,
    "layer_types": [_SLIDING, _FULL],
    "sliding_window": 7,
    "query_pre_attn_scalar": 40,
    "rope_parameters": _GEMMA_ROPES,
}
_QWEN_MIXED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to compare.

    Attributes:
        kind: a key of `reference.CLASSES`.
        fields: of its config, over the common ones.
        unlike: changes of fields that must show.
        steps: which shapes get compiled.
        shard_size: `max_shard_size` of `save_pretrained`, None for one file.
    """

    kind: str
    fields: Mapping[str, object] = field(default_factory=dict)
    unlike: tuple[Mapping[str, object], ...] = ()
    steps: StepConfig = STEPS
    shard_size: str | None = None

    def all_fields(self, change: Mapping[str, object] | None = None) -> dict[str, object]:
        """The config's arguments."""
        return {**_COMMON, **self.fields, **(change or {})}


CASES: Mapping[str, Case] = {
    "llama-gqa-untied": Case(
        kind="Llama",
        unlike=({"rope_parameters": _DEFAULT_2E3}, {"rms_norm_eps": 1e-2}),
    ),
    "llama-llama3_rope-mha-tied-sharded": Case(
        kind="Llama",
        fields={
            "rope_parameters": LLAMA3_ROPE,
            "head_dim": 16,
            "num_key_value_heads": None,
            "tie_word_embeddings": True,
        },
        unlike=({"rope_parameters": _DEFAULT_5E4},),
        shard_size="20KB",
    ),
    "llama-linear_rope-bias-mqa": Case(
        kind="Llama",
        steps=FEW_STEPS,
        fields={
            "rope_parameters": _LINEAR,
            "attention_bias": True,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-2,
        },
        unlike=(
            {"rope_parameters": _DEFAULT_2E3},
            {"attention_bias": False},
            {"rms_norm_eps": 1e-6},
        ),
    ),
    "mistral-window7-gqa": Case(
        kind="Mistral",
        fields={"sliding_window": 7, "head_dim": 12},
        unlike=({"sliding_window": 6}, {"sliding_window": 8}, {"sliding_window": None}),
    ),
    "mistral-no_window-mqa-tied": Case(
        kind="Mistral",
        steps=FEW_STEPS,
        fields={"sliding_window": None, "num_key_value_heads": 1, "tie_word_embeddings": True},
        unlike=({"sliding_window": 80},),
    ),
    "qwen2-gqa-tied": Case(
        kind="Qwen2",
        # Windows are named, and not in use.
        steps=FEW_STEPS,
        fields={"sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True},
        unlike=({"use_sliding_window": True},),
    ),
    "qwen2-windowed-mha-untied": Case(
        kind="Qwen2",
        fields={**_QWEN_MIXED, "num_key_value_heads": 4},
        unlike=(
            {"use_sliding_window": False},
            {"max_window_layers": 0},
            {"sliding_window": 7},
            {"sliding_window": 9},
        ),
    ),
    "qwen3-gqa-untied": Case(
        kind="Qwen3",
        steps=FEW_STEPS,
        fields={"head_dim": 24},
        unlike=({"rope_parameters": _DEFAULT_2E3},),
    ),
    "qwen3-windowed-bias-mqa-tied": Case(
        kind="Qwen3",
        fields={
            **_QWEN_MIXED,
            "head_dim": 16,
            "layer_types": [_SLIDING, _FULL],
            "attention_bias": True,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        unlike=(
            {"layer_types": [_FULL, _SLIDING]},
            {"attention_bias": False},
            {"sliding_window": 7},
        ),
    ),
    "gemma3-6_layers-gqa-tied": Case(
        kind="Gemma3Text",
        fields={
            "head_dim": 16,
            "num_hidden_layers": 6,  # five local ones and a global one, by default
            "sliding_window": 6,
            "query_pre_attn_scalar": 40,
            "rope_parameters": _GEMMA_ROPES,
            "final_logit_softcapping": 8.0,
        },
        unlike=(
            {"query_pre_attn_scalar": 16},
            {"final_logit_softcapping": None},
            {"rope_parameters": _GEMMA_ONE_BASE},
            {"rope_parameters": _GEMMA_UNSCALED},
            {"layer_types": [_SLIDING, _FULL] * 3},
            {"sliding_window": 5},
            {"sliding_window": 7},
        ),
    ),
    "gemma3-bias-mqa-untied": Case(
        kind="Gemma3Text",
        steps=FEW_STEPS,
        fields={
            **_GEMMA_SMALL,
            "rope_parameters": _GEMMA_LOCAL_LINEAR,
            "attention_bias": True,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
        },
        unlike=(
            {"attention_bias": False},
            {"layer_types": [_FULL, _SLIDING]},
            {"rope_parameters": _GEMMA_UNSCALED},
        ),
    ),
    "gemma3-mha-tied": Case(
        kind="Gemma3Text",
        steps=FEW_STEPS,
        fields={**_GEMMA_SMALL, "num_key_value_heads": 4},
        unlike=({"query_pre_attn_scalar": 16},),
    ),
}
# Config fields of a model for images whose text half is "gemma3-mha-tied".
MULTIMODAL: Mapping[str, object] = {
    "text_config": CASES["gemma3-mha-tied"].all_fields(),
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
