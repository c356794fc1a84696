"""Fakes and tiny models for tests of jaxstate and of programs that use it."""

from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.testing.tiny import TINY_CONFIG, TINY_STEPS, tiny_config, tiny_model

__all__ = ["TINY_CONFIG", "TINY_STEPS", "ByteTokenizer", "tiny_config", "tiny_model"]
