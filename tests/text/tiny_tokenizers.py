"""Makers of tiny tokenizers, quick enough to run in every session."""

from __future__ import annotations

import io
import json

import sentencepiece
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The price of copper rose to 9,412 dollars a ton on Monday.",
    "the sensor reads 21.5 degrees; the valve is open, the pump is off",
    "Question: what is the last price?\nAnswer: yes",
    "naïve café, größer, 価格は上がった, цена выросла",
    "user system assistant model im_start eot_id",
] * 4


def train_sentencepiece(*, dummy_prefix: bool, byte_fallback: bool = True) -> bytes:
    """A BPE model with control, marker-like and harmless user-defined pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=420 if byte_fallback else 164,
        byte_fallback=byte_fallback,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        control_symbols=["<|eot|>"],
        user_defined_symbols=["<start_of_turn>", "[INST]", "\n\n", "▁▁", "<table>"],
        hard_vocab_limit=False,
        minloglevel=3,
    )
    return model.getvalue()


def train_byte_level() -> str:
    """A tokenizer.json with all kinds of added tokens, with padding and truncation switched on."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|bos|>", "<|eot_id|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    library.add_tokens(["<think>", "    "])
    library.enable_padding(length=64)
    library.enable_truncation(4)
    return library.to_str()


def llama_style_json() -> str:
    """A SentencePiece-like tokenizer.json, small enough to check by hand."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", "ab", "▁ab"]
    spec = json.loads(
        Library(
            models.BPE(
                vocab={piece: token for token, piece in enumerate(pieces)},
                merges=[("▁", "a"), ("a", "b"), ("▁a", "b")],
                byte_fallback=True,
                unk_token="<unk>",
                fuse_unk=True,
            )
        ).to_str()
    )
    spec["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    spec["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [
        {"id": token, "content": pieces[token], "special": True} | flags for token in range(3)
    ]
    return json.dumps(spec)
