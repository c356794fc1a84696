"""Gemma 3 270M in transformers, from the same GGUF file by another way.

The file is read and dequantised by the `gguf` package and put into a `Gemma3ForCausalLM` and a
`GemmaTokenizer`; nothing of `jaxstate.weights` or `jaxstate.text` takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from .reference import Reference, torch, transformers

_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gemma_reference(path: Path) -> tuple[Reference, Any]:
    """(model in float32, `tokenizers.Tokenizer`); reading takes about ten seconds."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:  # noqa: ANN401
        return reader.fields[key].contents()

    return _model(reader, value), _tokenizer(value)


def _model(reader: gguf.GGUFReader, value: Callable[[str], Any]) -> Reference:
    config = transformers.Gemma3TextConfig(
        vocab_size=len(value("tokenizer.ggml.tokens")),
        hidden_size=value("gemma3.embedding_length"),
        intermediate_size=value("gemma3.feed_forward_length"),
        num_hidden_layers=value("gemma3.block_count"),
        num_attention_heads=value("gemma3.attention.head_count"),
        num_key_value_heads=value("gemma3.attention.head_count_kv"),
        head_dim=value("gemma3.attention.key_length"),
        max_position_embeddings=value("gemma3.context_length"),
        rms_norm_eps=value("gemma3.attention.layer_norm_rms_epsilon"),
        rope_theta=value("gemma3.rope.freq_base"),
        sliding_window=value("gemma3.attention.sliding_window"),
        query_pre_attn_scalar=value("gemma3.attention.key_length"),
        eos_token_id=None,  # so that `generate` always gives as many tokens as were asked for
    )
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForCausalLM(config).float().eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in reader.tensors:
            name = _hf_name(tensor.name)
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            if "norm" in name:
                values = values - 1  # GGUF has the factor, transformers what is added to 1
            parameter = parameters.pop(name)
            assert parameter.shape == values.shape
            parameter.copy_(torch.from_numpy(values))
    assert not parameters, list(parameters)
    return model


def _hf_name(name: str) -> str:
    base, _, suffix = name.rpartition(".")
    if base.startswith("blk."):
        _, layer, inner = base.split(".")
        return f"model.layers.{layer}.{_NAMES[inner]}.{suffix}"
    return f"{_NAMES[base]}.{suffix}"


def _tokenizer(value: Callable[[str], Any]) -> Any:  # noqa: ANN401
    """As transformers builds it for Gemma: merges are the pairs that make a piece, by score."""
    pieces, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    scores = value("tokenizer.ggml.scores")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    other = {p for p, kind in zip(pieces, kinds, strict=True) if kind != TokenType.NORMAL}
    merges = transformers.tokenization_utils_base.generate_merges(
        vocab, dict(zip(pieces, scores, strict=True)), skip_tokens=other
    )
    tokenizer = transformers.GemmaTokenizer(vocab=vocab, merges=merges)._tokenizer
    whole = [p for p, kind in zip(pieces, kinds, strict=True) if kind == TokenType.USER_DEFINED]
    tokenizer.add_tokens([transformers.AddedToken(p, normalized=False) for p in whole])
    return tokenizer
