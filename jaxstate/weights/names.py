"""Which tensor of a file becomes which part of which parameter: one table per family and format.

Comes in: a `ModelConfig` and the file format. Goes out: a `NameTable` of rules from names to
parameter paths, with the columns that a tensor takes in a fused parameter and how its values change
on the way.
Does not know: files, arrays. Checking a table against real files is `plan.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jaxstate.config import ModelConfig

Format = Literal["hf", "gguf"]
Part = Literal["whole", "q", "k", "v", "gate", "up"]
Transform = Literal["copy", "transpose", "add_one", "unpermute", "transpose_unpermute"]


@dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Attributes:
        path: the parameter, with `{i}` for the layer.
        names: the tensor names that it may have (exactly one of them must be there), with `{i}`
            likewise.
        part: the columns of the parameter that it fills.
        transform: "transpose" turns [out, in] into [in, out]; "add_one" is for norms that are
            stored as w - 1; "unpermute" restores the half-split RoPE order of the rows of each
            head.
    """

    path: str
    names: tuple[str, ...]
    part: Part = "whole"
    transform: Transform = "copy"

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """The names as expressions whose group, if any, is the layer."""
        return tuple(name_pattern(name) for name in self.names)


@dataclass(frozen=True)
class NameTable:
    """How the files of one family in one format map to parameters.

    Attributes:
        rules: one a kind of tensor.
        ignored: patterns of tensors that text inference does not need.
        copies: pattern of a redundant tensor -> the parameter that it must equal, value by value.
        columns: first and last + 1 column of each part.
        head_dim: H, for "unpermute".
    """

    rules: tuple[Rule, ...]
    columns: Mapping[Part, tuple[int, int]]
    head_dim: int
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)


def name_table(config: ModelConfig, file_format: Format) -> NameTable:
    """The table for a model's files, bound to its sizes."""
    if file_format == "gguf":
        return _gguf_table(config)
    return _hf_table(config)


def name_pattern(name: str) -> re.Pattern[str]:
    """A name with `{i}` as an expression; layers are written without leading zeros."""
    return re.compile(re.escape(name).replace(r"\{i\}", r"(0|[1-9][0-9]*)"))


def _columns(config: ModelConfig) -> Mapping[Part, tuple[int, int]]:
    q, kv, f = config.query_dim, config.kv_dim, config.mlp_dim
    return {
        "q": (0, q),
        "k": (q, q + kv),
        "v": (q + kv, q + 2 * kv),
        "gate": (0, f),
        "up": (f, 2 * f),
    }


def _hf_table(config: ModelConfig) -> NameTable:
    gemma = config.family == "gemma3"
    # Gemma3ForCausalLM; Gemma3ForConditionalGeneration as transformers >= 4.52 saves it; and as it
    # was released.
    prefixes = (
        ("model.", "model.language_model.", "language_model.model.") if gemma else ("model.",)
    )
    heads = ("lm_head.weight", "language_model.lm_head.weight") if gemma else ("lm_head.weight",)
    norm: Transform = "add_one" if gemma else "copy"
    norms = {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
    if not config.post_norms:
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    q, o = "layers.{i}.self_attn.q_proj", "layers.{i}.self_attn.o_proj"
    rules = [
        Rule("embed/embedding", _all(prefixes, "embed_tokens.weight")),
        Rule("final_norm/scale", _all(prefixes, "norm.weight"), "whole", norm),
        *_layer_norms(prefixes, {k: f"layers.{{i}}.{v}" for k, v in norms.items()}, norm),
        *_projections(prefixes, {p: q.replace("q_", f"{p}_") for p in ("q", "k", "v")}, (), o),
        *_mlp(prefixes, "layers.{i}.mlp.{part}_proj.weight"),
        *_head_norms(prefixes, "layers.{i}.self_attn.{part}_norm.weight", norm),
    ]
    ignored = [re.escape(p) + r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq" for p in prefixes]
    if gemma:  # images
        ignored += [r"(model\.)?vision_tower\..+", r"(model\.)?multi_modal_projector\..+"]
    return _with_head(config, rules, heads, tuple(ignored))


def _gguf_table(config: ModelConfig) -> NameTable:
    # llama.cpp's LlamaModel converter (also used for Mistral) reorders the rows of each query and
    # key head for its interleaved RoPE: `permute`: reshape(heads, 2, H / 2, ...).swapaxes(1, 2).
    # Others keep the half-split order.
    permuted: Sequence[Part] = ("q", "k") if config.family in ("llama", "mistral") else ()
    blk = "blk.{i}."
    norms = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    if config.post_norms:
        norms |= {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
    projections: dict[Part, str] = {p: f"attn_{p}" for p in ("q", "k", "v")}
    rules = [
        Rule("embed/embedding", ("token_embd.weight",)),
        Rule("final_norm/scale", ("output_norm.weight",)),
        *_layer_norms((blk,), norms, "copy"),
        *_projections((blk,), projections, permuted, "attn_output"),
        *_mlp((blk,), "ffn_{part}.weight"),
        *_head_norms((blk,), "attn_{part}_norm.weight", "copy"),
    ]
    # The config reader has read the RoPE factors.
    ignored = (r"rope_freqs\.weight",) if config.family in ("llama", "mistral") else ()
    return _with_head(config, rules, ("output.weight",), ignored)


def _with_head(
    config: ModelConfig, rules: list[Rule], heads: tuple[str, ...], ignored: tuple[str, ...]
) -> NameTable:
    copies: dict[str, str] = {}
    if config.tied_embeddings:
        copies = {re.escape(name): "embed/embedding" for name in heads}
    else:
        rules = [*rules, Rule("head/kernel", heads, "whole", "transpose")]
    return NameTable(tuple(rules), _columns(config), config.head_dim, ignored, copies)


def _all(prefixes: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(prefix + name for prefix in prefixes)


def _layer_norms(
    prefixes: Sequence[str], norms: Mapping[str, str], transform: Transform
) -> list[Rule]:
    return [
        Rule(f"layers_{{i}}/{ours}/scale", _all(prefixes, f"{theirs}.weight"), "whole", transform)
        for ours, theirs in norms.items()
    ]


def _projections(
    prefixes: Sequence[str], inputs: Mapping[Part, str], permuted: Sequence[Part], output: str
) -> list[Rule]:
    attention = "layers_{i}/attention/"
    rules = [
        Rule(attention + "wo", _all(prefixes, f"{output}.weight"), "whole", "transpose"),
        Rule(attention + "bo", _all(prefixes, f"{output}.bias")),
    ]
    for part, name in inputs.items():
        weight: Transform = "transpose_unpermute" if part in permuted else "transpose"
        bias: Transform = "unpermute" if part in permuted else "copy"
        rules += [
            Rule(attention + "wqkv", _all(prefixes, f"{name}.weight"), part, weight),
            Rule(attention + "bqkv", _all(prefixes, f"{name}.bias"), part, bias),
        ]
    return rules


def _mlp(prefixes: Sequence[str], name: str) -> list[Rule]:
    parts: tuple[Part, ...] = ("gate", "up")
    fused = [
        Rule(
            "layers_{i}/mlp/w_gate_up",
            _all(prefixes, name.replace("{part}", part)),
            part,
            "transpose",
        )
        for part in parts
    ]
    down = _all(prefixes, name.replace("{part}", "down"))
    return [*fused, Rule("layers_{i}/mlp/w_down", down, "whole", "transpose")]


def _head_norms(prefixes: Sequence[str], name: str, transform: Transform) -> list[Rule]:
    return [
        Rule(
            f"layers_{{i}}/attention/{part}_norm/scale",
            _all(prefixes, name.replace("{part}", part)),
            "whole",
            transform,
        )
        for part in ("q", "k")
    ]
