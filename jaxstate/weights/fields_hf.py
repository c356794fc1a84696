"""Tables about the fields of Hugging Face configs; `config_hf.py` and `rope_hf.py` read the rest.

What transformers 5.23 fills in for absent fields, which fields have no influence on text inference,
and which may only be off. A field that is in no table and that no reader asks for is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxstate.config import Family


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What transformers fills in for absent fields."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None  # None: as many as query heads
    head_dim: int | None  # None: hidden_size // num_attention_heads
    max_position_embeddings: int
    tied: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()


DEFAULTS: Mapping[Family, Defaults] = MappingProxyType(
    {
        "llama": Defaults(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=None,
            head_dim=None,
            max_position_embeddings=2048,
            bos_id=1,
            eos_ids=(2,),
        ),
        "mistral": Defaults(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=None,
            max_position_embeddings=4096 * 32,
            bos_id=1,
            eos_ids=(2,),
        ),
        "qwen2": Defaults(
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=22016,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=None,
            max_position_embeddings=32768,
        ),
        "qwen3": Defaults(
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=22016,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=32768,
        ),
        "gemma3": Defaults(
            vocab_size=262_208,
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            max_position_embeddings=131_072,
            tied=True,
            bos_id=2,
            eos_ids=(1,),
        ),
    }
)

# No influence on the logits of text: bookkeeping, training, classification heads, defaults of
# `generate`.
IGNORED = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "architectures",
        "model_type",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "transformers.js_config",
        "is_llama_config",
        "unsloth_fixed",
        "unsloth_version",
        "tokenizer_class",
        "prefix",
        "task_specific_params",
        "finetuning_task",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "is_decoder",
        "initializer_range",
        "attention_dropout",
        "hidden_dropout",
        "use_cache",
        "cache_implementation",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "use_return_dict",
        "tie_last_hidden_states",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "pad_token_id",
        "unk_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
    }
)
# The image half of Gemma3ForConditionalGeneration.
IGNORED_MULTIMODAL = frozenset(
    {
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "boi_token_id",
        "eoi_token_id",
        "image_token_id",
    }
)
# Fields that may only be off.
OFF: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "mlp_bias": (False,),
        "pretraining_tp": (1,),
        "use_bidirectional_attention": (False, None),
        # transformers' Gemma 3 reads this one and does not apply it, so a value would mean two
        # different things.
        "attn_logit_softcapping": (None,),
        "sliding_window": (None,),
        "use_sliding_window": (False,),
        "partial_rotary_factor": (1, 1.0, None),
        "rope_interleaved": (False,),
        "use_mrope": (False,),
        "quantization_config": (None,),
        "per_layer_config": (None, {}),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "cross_attention_hidden_size": (None,),
        "tie_encoder_decoder": (False,),
        "pruned_heads": (None, {}),
        "chunk_size_feed_forward": (0,),
    }
)
