"""The tokenizer inside a GGUF file.

Comes in: the file's key/values as plain Python (`str`, `int`, `float`, `bool`, lists of them, or
numpy arrays).
Goes out: an object that satisfies `Tokenizer`. Does not know: files, tensors.

A GGUF names the way its text is cut (`tokenizer.ggml.model`, and `tokenizer.ggml.pre` for
byte-level BPE) and leaves the rest to the reader. What is not known here exactly is refused: a
wrong cut gives tokens that the model never saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxstate.errors import UnsupportedModel
from jaxstate.text.hf_json import HFTokenizer
from jaxstate.text.sentencepiece_model import (
    CONTROL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    ModelProto,
    SentencePieceTokenizer,
    new_proto,
)
from jaxstate.text.tokenizer import Tokenizer

_KEY = "tokenizer.ggml."
_BPE_MODEL_TYPE = 2


@dataclass(frozen=True)
class _Cut:
    """How byte-level BPE text is cut before merging.

    Attributes:
        patterns: regular expressions, each applied to what the one before left.
        whole_words: a piece that is in the vocabulary is taken as it is, without merging.
        nfc: text is brought to Unicode form C first.
        adds_bos: whether texts open with BOS when the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    nfc: bool = False
    adds_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Letters with case as DeepSeek's first tokenizers list them (Unicode code points).
_DEEPSEEK_LETTERS = (
    r"A-Za-z\x{00B5}\x{00C0}-\x{00D6}\x{00D8}-\x{00F6}\x{00F8}-\x{01BA}\x{01BC}-\x{01BF}"
    r"\x{01C4}-\x{0293}\x{0295}-\x{02AF}\x{0370}-\x{0373}\x{0376}\x{0377}\x{037B}-\x{037D}"
    r"\x{037F}\x{0386}\x{0388}-\x{038A}\x{038C}\x{038E}-\x{03A1}\x{03A3}-\x{03F5}\x{03F7}-"
    r"\x{0481}\x{048A}-\x{052F}\x{0531}-\x{0556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}"
    r"-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-"
    r"\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}"
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}"
    r"-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}"
    r"-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-"
    r"\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-"
    r"\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-"
    r"\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}"
    r"-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}"
    r"\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
_DEEPSEEK_EAST_ASIAN = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_DEEPSEEK_MARKS = (
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+"
)
_LLAMA3_CUT = _Cut((_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),), whole_words=True, adds_bos=True)
_QWEN2_CUT = _Cut((_QWEN2,), nfc=True)
# Digits stand alone, then as GPT-2.
_DIGITS_CUT = _Cut((r"\p{N}", _GPT2))
# What llama.cpp does with files whose converter did not know the vocabulary: the best there is for
# them.
_DEFAULT_CUT = _Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_CUTS: Mapping[str, _Cut] = {
    "gpt-2": _Cut((_GPT2,)),
    "default": _DEFAULT_CUT,
    "smollm": _DIGITS_CUT,
    "starcoder": _DIGITS_CUT,
    "refact": _DIGITS_CUT,  # StarCoder's vocabulary with other markers; Granite Code has it
    "minerva-7b": _DIGITS_CUT,
    "llama-bpe": _LLAMA3_CUT,
    "llama3": _LLAMA3_CUT,
    "llama-v3": _LLAMA3_CUT,
    "falcon3": _LLAMA3_CUT,
    "qwen2": _QWEN2_CUT,
    "deepseek-r1-qwen": _QWEN2_CUT,
    "deepseek-llm": _Cut(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            _DEEPSEEK_MARKS,
            r"\s+$",
            _DEEPSEEK_EAST_ASIAN,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": _Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_EAST_ASIAN, r"\p{N}")),
    "seed-coder": _Cut((_QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+"),)),
    "tekken": _Cut((_TEKKEN,), whole_words=True, adds_bos=True),
}


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Raises:
        UnsupportedModel: keys are missing or inconsistent, or the kind of vocabulary is not known.
    """
    kind = metadata.get(_KEY + "model")
    if kind == "llama":
        return _sentencepiece(metadata)
    if kind == "gpt2":
        return _byte_level(metadata)
    raise UnsupportedModel(
        f"tokenizer.ggml.model is {kind!r}; known are 'llama' (SentencePiece) "
        "and 'gpt2' (byte-level BPE)"
    )


def special_text_from_gguf(metadata: Mapping[str, object], name: str) -> str | None:
    """How a special token ("bos", "eos", "unknown", "padding") is written, or None without one.

    Raises:
        UnsupportedModel: its id is no id of the vocabulary.
    """
    token = metadata.get(f"{_KEY}{name}_token_id")
    if token is None:
        return None
    tokens = metadata.get(_KEY + "tokens")
    known = tokens if isinstance(tokens, list | tuple | np.ndarray) else ()
    if isinstance(token, int) and 0 <= token < len(known):
        return str(known[token])
    raise UnsupportedModel(f"{_KEY}{name}_token_id is {token!r}, which is no id of the vocabulary")


def adds_bos_in_gguf(metadata: Mapping[str, object]) -> bool:
    """Whether texts open with BOS: what the file says, else what its kind of vocabulary does.

    Raises:
        UnsupportedModel: the kind of vocabulary is not known, or the file's answer is no bool.
    """
    kind_does = metadata.get(_KEY + "model") == "llama" or _cut(metadata).adds_bos
    return _flag(metadata, "add_bos_token", default=kind_does)


def _sentencepiece(metadata: Mapping[str, object]) -> Tokenizer:
    proto = new_proto()
    _add_pieces(proto, metadata)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = _BPE_MODEL_TYPE
    trainer.vocab_size = len(proto.pieces)
    trainer.byte_fallback = True
    trainer.unk_piece = special_text_from_gguf(metadata, "unknown") or "<unk>"
    trainer.bos_piece = special_text_from_gguf(metadata, "bos") or "<s>"
    trainer.eos_piece = special_text_from_gguf(metadata, "eos") or "</s>"
    trainer.pad_piece = special_text_from_gguf(metadata, "padding") or "<pad>"
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = _flag(metadata, "add_space_prefix", default=True)
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    bos = special_text_from_gguf(metadata, "bos")
    return SentencePieceTokenizer(
        proto, bos=bos, add_bos=bos is not None and adds_bos_in_gguf(metadata)
    )


def _add_pieces(proto: ModelProto, metadata: Mapping[str, object]) -> None:
    tokens, kinds = _strings(metadata, "tokens"), _numbers(metadata, "token_type")
    scores = _numbers(metadata, "scores")
    if not len(tokens) == len(kinds) == len(scores):
        raise UnsupportedModel(
            f"{_KEY}tokens, scores and token_type have "
            f"{len(tokens)}, {len(scores)} and {len(kinds)} entries"
        )
    unknown = metadata.get(_KEY + "unknown_token_id", 0)
    add = proto.pieces.add
    for token, (written, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
        if kind == USER_DEFINED:
            # Converters write these with plain spaces; SentencePiece looks for them after it has
            # escaped the text.
            written = written.replace(" ", SPACE)
        # SentencePiece must have one unknown piece; some converters (Gemma's) declare it as
        # control.
        add(piece=written, score=score, type=UNKNOWN if token == unknown else int(kind))


def _byte_level(metadata: Mapping[str, object]) -> Tokenizer:
    cut = _cut(metadata)
    tokens, kinds = _strings(metadata, "tokens"), _numbers(metadata, "token_type")
    if len(tokens) != len(kinds):
        raise UnsupportedModel(f"{len(tokens)} tokens, but {len(kinds)} token types")
    vocab = {written: token for token, written in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise UnsupportedModel(f"{len(tokens) - len(vocab)} tokens of the vocabulary are repeated")
    spec: dict[str, object] = {
        "version": "1.0",
        "added_tokens": _added(tokens, kinds),
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": _pre_tokenizer(cut),
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [_pair(merge) for merge in _strings(metadata, "merges")],
            "ignore_merges": cut.whole_words,
        },
    }
    bos = special_text_from_gguf(metadata, "bos") if adds_bos_in_gguf(metadata) else None
    return HFTokenizer(json.dumps(spec), bos=bos)


_BYTE_LEVEL: Mapping[str, object] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def _cut(metadata: Mapping[str, object]) -> _Cut:
    pre = metadata.get(_KEY + "pre")
    cut = _CUTS.get(pre) if isinstance(pre, str) else None
    if cut is None:
        raise UnsupportedModel(
            f"tokenizer.ggml.pre is {pre!r}; known are {', '.join(sorted(_CUTS))}. "
            "Load the model from its Hugging Face directory instead, or convert it again"
        )
    return cut


def _pre_tokenizer(cut: _Cut) -> dict[str, object]:
    splits: list[Mapping[str, object]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _BYTE_LEVEL]}


def _added(tokens: list[str], kinds: list[float]) -> list[dict[str, object]]:
    plain: dict[str, object] = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    return [
        {"id": token, "content": written, "special": kind == CONTROL} | plain
        for token, (written, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def _pair(merge: str) -> list[str]:
    pair = merge.split(" ")
    if len(pair) != 2:
        raise UnsupportedModel(f"{_KEY}merges: {merge!r} is not two pieces with a space between")
    return pair


def _strings(metadata: Mapping[str, object], name: str) -> list[str]:
    values = _items(metadata, name)
    if not all(type(value) is str for value in values):
        raise UnsupportedModel(f"{_KEY}{name} is not a list of strings")
    return values  # pyright: ignore[reportReturnType]


def _numbers(metadata: Mapping[str, object], name: str) -> list[float]:
    values = _items(metadata, name)
    if not all(type(value) in (int, float) for value in values):
        raise UnsupportedModel(f"{_KEY}{name} is not a list of numbers")
    return values  # pyright: ignore[reportReturnType]


def _items(metadata: Mapping[str, object], name: str) -> list[object]:
    values = metadata.get(_KEY + name)
    if isinstance(values, np.ndarray):
        return values.tolist()
    if isinstance(values, list | tuple):
        return list(values)
    raise UnsupportedModel(f"the file has no list {_KEY}{name}")


def _flag(metadata: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = metadata.get(_KEY + name, default)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise UnsupportedModel(f"{_KEY}{name} is {value!r}, not a bool")
