"""Text to tokens and back: tokenizers, growing answers, templates for sessions and questions."""

from jaxstate.text.chat import chat_template, find_template, template_from_gguf
from jaxstate.text.conversation import (
    Message,
    Messages,
    checked_messages,
    conversation_tokens,
    turn_tokens,
)
from jaxstate.text.gguf_vocab import tokenizer_from_gguf
from jaxstate.text.hf_json import HFTokenizer
from jaxstate.text.incremental import IncrementalDecoder, StopText
from jaxstate.text.pieces import Place
from jaxstate.text.sentencepiece_model import SentencePieceTokenizer
from jaxstate.text.template import Template, plain_template
from jaxstate.text.tokenizer import Tokenizer, find_tokenizer

__all__ = [
    "HFTokenizer",
    "IncrementalDecoder",
    "Message",
    "Messages",
    "Place",
    "SentencePieceTokenizer",
    "StopText",
    "Template",
    "Tokenizer",
    "chat_template",
    "checked_messages",
    "conversation_tokens",
    "find_template",
    "find_tokenizer",
    "plain_template",
    "template_from_gguf",
    "tokenizer_from_gguf",
    "turn_tokens",
]
