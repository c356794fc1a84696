"""Vocabularies out of GGUF key/values: tiny ones, and Gemma's."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import train_byte_level, train_sentencepiece
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Library

from jaxstate.errors import UnsupportedModel
from jaxstate.text import SentencePieceTokenizer, Tokenizer, tokenizer_from_gguf
from jaxstate.text.sentencepiece_model import new_proto

KEY = "tokenizer.ggml."


def sentencepiece_metadata(model: bytes) -> dict[str, object]:
    """What a converter writes for a SentencePiece model."""
    proto = new_proto()
    proto.ParseFromString(model)
    return {
        KEY + "model": "llama",
        KEY + "tokens": [
            piece.piece.replace("▁", " ") if piece.type == 4 else piece.piece
            for piece in proto.pieces
        ],
        KEY + "scores": [piece.score for piece in proto.pieces],
        KEY + "token_type": [piece.type for piece in proto.pieces],
        KEY + "bos_token_id": 1,
        KEY + "eos_token_id": 2,
        KEY + "unknown_token_id": 0,
        KEY + "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
    }


def byte_level_metadata(source: str, pre: str) -> dict[str, object]:
    """What a converter writes for a byte-level tokenizer.json."""
    spec = json.loads(source)
    library = Library.from_str(source)
    kinds = {token["id"]: 3 if token["special"] else 4 for token in spec["added_tokens"]}
    size = library.get_vocab_size()
    return {
        KEY + "model": "gpt2",
        KEY + "pre": pre,
        KEY + "tokens": [library.id_to_token(token) for token in range(size)],
        KEY + "token_type": [kinds.get(token, 1) for token in range(size)],
        KEY + "merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        KEY + "bos_token_id": 0,
        KEY + "eos_token_id": 1,
    }


@pytest.fixture(scope="module")
def spm_model() -> bytes:
    return train_sentencepiece(dummy_prefix=True)


@pytest.fixture(scope="module")
def gpt2_source() -> str:
    return train_byte_level()


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_sentencepiece_equals_the_model_it_was_made_of(spm_model: bytes, text: str) -> None:
    direct = SentencePieceTokenizer(spm_model)
    converted = tokenizer_from_gguf(sentencepiece_metadata(spm_model))
    assert converted.encode(text) == direct.encode(text)
    assert converted.encode_template(f"<s>{text}") == direct.encode_template(f"<s>{text}")
    assert (converted.bos_id, converted.bos) == (1, "<s>")


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_gpt2_equals_the_json_it_was_made_of(gpt2_source: str, text: str) -> None:
    library = Library.from_str(gpt2_source)
    library.no_truncation()
    library.no_padding()
    converted = tokenizer_from_gguf(byte_level_metadata(gpt2_source, "gpt-2"))
    assert converted.encode_template(text) == library.encode(text, add_special_tokens=False).ids
    assert converted.decode(converted.encode(text)) == text


PIECES = {
    "llama-bpe": ["Hello", "'S", " world", "123", "45", "\n\n", " ", " x", " !!\n"],
    "qwen2": ["Hello", "'S", " world", "1", "2", "3", "4", "5", "\n\n", " ", " x", " !!\n"],
    "gpt-2": ["Hello", "'", "S", " world", "12345", "\n\n ", " x", " !!", "\n"],
    "tekken": ["Hello", "'S", " world", "1", "2", "3", "4", "5", "\n\n", " ", " x", " !!\n"],
    "default": ["Hello", "'", "S", " world", "123", "45", "\n\n ", " x", " ", "!!", "\n"],
    "smollm": ["Hello", "'", "S", " world", *"12345", "\n\n ", " x", " !!", "\n"],
    "falcon3": ["Hello", "'S", " world", "123", "45", "\n\n", " ", " x", " !!\n"],
    "deepseek-llm": ["Hello", "'", "S", " world", "12345", "\n", "\n", " ", " x", " !!", "\n"],
    "deepseek-coder": ["Hello", "'", "S", " world", *"12345", "\n", "\n", " ", " x", " !!", "\n"],
    "seed-coder": ["Hello", "'S", " world", *"12345", "\n\n", " ", " x", " !!", "\n"],
}
HARD = "Ünïcode 日本語 가나 x²½ Ⅷ ٣٤ e\u0301 🙂👍🏽 I'm DON'T\r\n\t $1,234.56 \u00a0\u3000。 ა ώ Ω"


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "refact", "minerva-7b"])
def test_digits_alone_then_gpt2(pre: str, gpt2_source: str) -> None:
    """As those tokenizers' own files say it, in the library's words instead of expressions."""
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert _cut(gpt2_source, pre, HARD) == [span for _, span in theirs.pre_tokenize_str(HARD)]


def test_deepseek_coder_is_split_step_by_step(gpt2_source: str) -> None:
    def split(pattern: str) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    theirs = pre_tokenizers.Sequence(
        [
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-\ud7ff]+"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    cut = _cut(gpt2_source, "deepseek-coder", HARD)
    assert cut == [span for _, span in theirs.pre_tokenize_str(HARD)]


def _cut(source: str, pre: str, text: str) -> list[tuple[int, int]]:
    tokenizer = tokenizer_from_gguf(byte_level_metadata(source, pre))
    handle = tokenizer._plain  # pyright: ignore[reportAttributeAccessIssue]
    return [span for _, span in handle.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", sorted(PIECES))
def test_text_is_cut_as_the_model_cuts_it(pre: str, gpt2_source: str) -> None:
    pieces = PIECES[pre]
    text = "".join(pieces)
    assert text == "Hello'S world12345\n\n  x !!\n"
    assert [text[start:end] for start, end in _cut(gpt2_source, pre, text)] == pieces


def test_gpt2_specials_and_bos(gpt2_source: str) -> None:
    llama = tokenizer_from_gguf(byte_level_metadata(gpt2_source, "llama-bpe"))
    assert (llama.bos_id, llama.bos) == (0, "<|bos|>")
    qwen = tokenizer_from_gguf(byte_level_metadata(gpt2_source, "qwen2"))
    assert qwen.bos_id is None
    assert qwen.encode("e\u0301") == qwen.encode("é")  # Qwen composes, the others do not
    assert llama.encode("e\u0301") != llama.encode("é")
    asked = tokenizer_from_gguf(
        byte_level_metadata(gpt2_source, "qwen2") | {KEY + "add_bos_token": True}
    )
    assert asked.bos_id == 0
    for marker in ("<|bos|>", "<|eot_id|>", "<think>"):
        token = llama.special_id(marker)
        assert token is not None and token not in llama.encode(marker)
        assert llama.encode_template(marker) == [token]


def test_numpy_arrays_are_lists_too(spm_model: bytes) -> None:
    metadata = sentencepiece_metadata(spm_model)
    arrays = metadata | {
        KEY + "scores": np.asarray(metadata[KEY + "scores"], np.float32),
        KEY + "token_type": np.asarray(metadata[KEY + "token_type"], np.int32),
    }
    assert tokenizer_from_gguf(arrays).fingerprint == tokenizer_from_gguf(metadata).fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY + "model": "bert"}, "'bert'; known are 'llama'"),
        ({KEY + "model": "gpt2", KEY + "pre": "mystery"}, "'mystery'; known are .*llama-bpe"),
        ({KEY + "model": "gpt2"}, "pre is None"),
        ({KEY + "scores": [0.0]}, "1 and"),
        ({KEY + "scores": None}, "no list"),
        ({KEY + "tokens": [1, 2]}, "not a list of strings"),
        ({KEY + "token_type": ["a"]}, "not a list of numbers"),
        ({KEY + "bos_token_id": 10**6}, "no id of the vocabulary"),
        ({KEY + "add_space_prefix": "yes"}, "not a bool"),
    ],
)
def test_what_is_not_known_is_refused(
    spm_model: bytes, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        tokenizer_from_gguf(sentencepiece_metadata(spm_model) | change)


def test_damaged_byte_level_vocabularies_are_refused(gpt2_source: str) -> None:
    metadata = byte_level_metadata(gpt2_source, "gpt-2")
    tokens = metadata[KEY + "tokens"]
    assert isinstance(tokens, list)
    with pytest.raises(UnsupportedModel, match="1 tokens of the vocabulary are repeated"):
        tokenizer_from_gguf(metadata | {KEY + "tokens": [*tokens[:-1], tokens[5]]})
    with pytest.raises(UnsupportedModel, match="two pieces"):
        tokenizer_from_gguf(metadata | {KEY + "merges": ["abc"]})
    with pytest.raises(UnsupportedModel, match="token types"):
        tokenizer_from_gguf(metadata | {KEY + "token_type": [1]})


@pytest.mark.gemma
def test_gemma_runs_are_its_own_pieces(gemma: Tokenizer) -> None:
    assert gemma.vocab_size == 262_144
    assert (gemma.bos_id, gemma.bos) == (2, "<bos>")
    assert gemma.encode("\n") == [107]
    assert gemma.encode("a\n\nb")[1:-1] == [108]
    assert gemma.encode("a  b   c")[1::2] == [138, 139]
    assert gemma.encode("\t\t") == [255969]
    assert gemma.encode("<table>") == [168]


@pytest.mark.gemma
def test_gemma_turns_cannot_be_forged(gemma: Tokenizer) -> None:
    turn = "<bos><start_of_turn>user\nhi<end_of_turn>[multimodal]<start_of_image><unused1>"
    ids = gemma.encode(turn)
    assert not {0, 1, 2, 3, 4, 5, 7, 105, 106, 255999, 256000}.intersection(ids)
    assert gemma.decode(ids) == turn
    assert gemma.encode_template(turn) == [
        *(2, 105),
        *gemma.encode("user\nhi"),
        *(106, 5, 255999, 7),
    ]


@pytest.mark.gemma
@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_gemma_round_trip(gemma: Tokenizer, text: str) -> None:
    assert gemma.decode(gemma.encode(text)) == text


@pytest.mark.gemma
@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧‍👦 family, 🇳🇴 flag, \U000e0001 tag",
        "価格は上がった。цена выросла",
        " leading and trailing  ",
        "\r\n\t \x00\x7f",
        "e\u0301 is not é",
        "\n" * 100 + " " * 100,
    ],
)
def test_gemma_round_trip_of_hard_texts(gemma: Tokenizer, text: str) -> None:
    assert gemma.decode(gemma.encode(text)) == text


@pytest.mark.gemma
def test_gemma_loads_quickly(gemma_metadata: Mapping[str, object]) -> None:
    begin = time.perf_counter()
    tokenizer_from_gguf(gemma_metadata)
    assert time.perf_counter() - begin < 3  # 0.35 s on an idle machine; tests share theirs
