"""Llama and Qwen models as GGUF files, the way llama.cpp's converter writes them.

Made with the `gguf` package alone: names, keys and the reordering of query and key rows are those
of `convert_hf_to_gguf.py` (`LlamaModel.permute`), written down here a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType
from numpy.typing import NDArray

from .reference import Reference, torch

_NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, reference: Reference, kind: GGMLQuantizationType) -> None:
    """Writes the model, matrices as `kind`; `reference` then has the values that were stored."""
    config = reference.config
    head_dim = reference.model.layers[0].self_attn.head_dim
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_vocabulary(writer, config.vocab_size)
    _add_rope_factors(writer, reference)
    for name, parameter in reference.named_parameters():  # a tied head is not among them
        values = parameter.detach().numpy()
        if values.ndim == 1:
            writer.add_tensor(_gguf_name(name), _permuted(name, values, config))
            continue
        stored = gguf.quantize(_permuted(name, values, config), kind)
        writer.add_tensor(_gguf_name(name), stored, raw_dtype=kind)
        rounded = gguf.dequantize(gguf.quantize(values, kind), kind)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(rounded))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    base, _, suffix = name.rpartition(".")
    if base.startswith("model.layers."):
        layer, _, inner = base.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{_NAMES[inner]}.{suffix}"
    return f"{_NAMES[base]}.{suffix}"


def _permuted(name: str, values: NDArray[np.float32], config: Reference) -> NDArray[np.float32]:
    """A Llama's rows of each query and key head: from halves to the pairs that llama.cpp turns."""
    fields = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    field = fields.get(name.split(".")[-2])
    if field is None or config.model_type != "llama":
        return values
    heads = getattr(config, field)
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A SentencePiece vocabulary without merges, and without tokens that end a text."""
    pieces = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
    pieces += [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
    pieces += [(f"piece{i}", TokenType.NORMAL) for i in range(len(pieces), size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_scores([-float(rank) for rank in range(size)])
    writer.add_token_types([kind for _, kind in pieces])


def _add_rope_factors(writer: gguf.GGUFWriter, reference: Reference) -> None:
    """Llama 3's divisors, from the frequencies that transformers computes."""
    config = reference.config
    if config.rope_parameters["rope_type"] == "default":
        return
    assert config.rope_parameters["rope_type"] == "llama3"
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    plain = config.rope_parameters["rope_theta"] ** -exponents
    divisors = plain / reference.model.rotary_emb.inv_freq.numpy()
    writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
