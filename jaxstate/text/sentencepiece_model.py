"""SentencePiece models, from a `.model` file, its bytes, or a proto that was built in memory.

Comes in: the model. Goes out: an object that satisfies `Tokenizer`. Does not know: where the model
came from.

SentencePiece never makes CONTROL pieces out of text, but it does match USER_DEFINED pieces in any
text, and some models declare their turn markers so. Therefore the user-defined pieces that
`is_marker` recognises are turned into CONTROL pieces before the model is loaded. In Gemma these are
`[multimodal]`, `<start_of_image>` and the like; its runs of newlines, tabs and spaces and its HTML
tags stay what they were, and plain text becomes them.

U+2581, with which SentencePiece writes spaces, cannot be told from a space and comes back as one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from jaxstate.errors import UnsupportedModel
from jaxstate.text.pieces import (
    Place,
    checked_ids,
    checked_text,
    is_marker,
    join_bytes,
    refuse_protected,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"


class Piece(Protocol):
    """One entry of a model's vocabulary, in the generated class that has no types of its own."""

    piece: str
    score: float
    type: int


class Pieces(Protocol):
    """The vocabulary, in id order."""

    def add(self, *, piece: str, score: float, type: int) -> Piece:
        """Appends one piece."""
        ...

    def __iter__(self) -> Iterator[Piece]: ...
    def __len__(self) -> int: ...


class NormalizerSpec(Protocol):
    """How text is prepared before it is cut."""

    name: str
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


class TrainerSpec(Protocol):
    """The part of the training settings that encoding looks at."""

    model_type: int
    vocab_size: int
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    unk_piece: str
    bos_piece: str
    eos_piece: str
    pad_piece: str


class ModelProto(Protocol):
    """The fields of SentencePiece's `ModelProto` that are used here."""

    pieces: Pieces
    trainer_spec: TrainerSpec
    normalizer_spec: NormalizerSpec
    denormalizer_spec: NormalizerSpec

    def ParseFromString(self, data: bytes) -> int:
        """Replaces the contents by those in `data`."""
        ...

    def SerializeToString(self) -> bytes:
        """The `.model` file."""
        ...


def new_proto() -> ModelProto:
    """An empty model; the generated class is made at run time, so its shape is stated here."""
    return cast(ModelProto, vars(sentencepiece_model_pb2)["ModelProto"]())


class SentencePieceTokenizer:
    """A SentencePiece model, with plain and template text kept apart.

    Args:
        model: a `.model` file, its bytes, or a proto (which this object takes over and changes).
        bos: how the token that opens a text is written; None for the model's own.
        add_bos: whether texts of this model open with BOS at all.

    Raises:
        UnsupportedModel: the model is damaged, has no such BOS, or needs what is not supported.
    """

    def __init__(
        self, model: Path | bytes | ModelProto, *, bos: str | None = None, add_bos: bool = True
    ) -> None:
        proto = _parsed(model)
        _refuse_unsupported(proto)
        self._types = bytes(piece.type for piece in proto.pieces)
        # Of tokens that were asked for: it is once a row of every step.
        self._bytes: dict[int, bytes] = {}
        self._protected = _protect(proto)
        self._protected_ids = frozenset(self._protected.values())
        self._drops_first_space = (
            proto.normalizer_spec.add_dummy_prefix or proto.normalizer_spec.remove_extra_whitespaces
        )
        self._escapes = proto.normalizer_spec.escape_whitespaces
        self._data = data = proto.SerializeToString()
        self._processor = _processor(data)
        self._unforgeable = self._protected_ids - {self._processor.unk_id()}
        self._bos_id = self._find_bos(bos) if add_bos else None
        self._digest = hashlib.sha256(
            f"sentencepiece\n{self._bos_id}\n".encode() + data
        ).hexdigest()

    def _find_bos(self, written: str | None) -> int | None:
        if written is None:
            own = self._processor.bos_id()
            return own if own >= 0 else None
        if written not in self._protected:
            raise UnsupportedModel(f"the BOS token {written!r} is not a control piece of the model")
        return self._protected[written]

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self._types)

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text, or None."""
        return self._bos_id

    @property
    def bos(self) -> str | None:
        """How `bos_id` is written."""
        return None if self._bos_id is None else self._written(self._bos_id)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the model in use and of BOS."""
        return self._digest

    @property
    def drops_first_space(self) -> bool:
        """Whether `decode` drops one space at the very start."""
        return self._drops_first_space

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Any protected piece as it is written, longest first; matches nothing if there is none."""
        written = sorted(self._protected, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, written)) or r"(?!)")

    @cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        """Writes no space in front of a text."""
        proto = _parsed(self._data)
        proto.normalizer_spec.add_dummy_prefix = False
        return _processor(proto.SerializeToString())

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """Plain text to ids, never a protected piece.

        Args:
            text: what is encoded.
            place: what it follows.

        Raises:
            InvalidInput: `text` is not a str, has lone surrogates, or would become a protected
            piece all the same
                (possible only in a model with a control piece of a single character).
        """
        processor = self._continuing if place == "text" else self._processor
        ids = processor.encode(checked_text(text))
        refuse_protected(ids, self._unforgeable)
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Trusted text to ids: protected pieces are recognised, and each stretch between is a text.

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        ids: list[int] = []
        at = 0
        for start, end, token in self.special_spans(text):
            ids += self._processor.encode(text[at:start])
            ids.append(token)
            at = end
        return ids + self._processor.encode(text[at:])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; the model's control pieces are skipped, its unknown piece is U+FFFD.

        Raises:
            InvalidInput: an id is outside the vocabulary.
        """
        pieces = map(self.token_bytes, ids)
        return join_bytes(pieces, drops_first_space=self._drops_first_space)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text.

        Raises:
            InvalidInput: the id is outside the vocabulary.
        """
        known = self._bytes.get(token)
        if known is None:
            (token,) = checked_ids([token], len(self._types))
            known = self._bytes[token] = self._own_bytes(token)
        return known

    def _own_bytes(self, token: int) -> bytes:
        kind = self._types[token]
        if kind == CONTROL:
            return b""
        if kind == UNKNOWN:
            return "\ufffd".encode()
        if kind == BYTE:
            return bytes([int(self._processor.id_to_piece(token)[3:5], 16)])
        return self._written(token).encode("utf-8")

    def _written(self, token: int) -> str:
        piece = self._processor.id_to_piece(token)
        return piece.replace(SPACE, " ") if self._escapes else piece

    def special_id(self, text: str) -> int | None:
        """The id of the protected piece that is written `text`, or None."""
        return self._protected.get(text)

    def special_spans(self, text: str) -> list[tuple[int, int, int]]:
        """The protected pieces that are written in `text`: (start, end, id).

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        return [
            (found.start(), found.end(), self._protected[found.group()])
            for found in self._special.finditer(checked_text(text))
        ]


def _parsed(model: Path | bytes | ModelProto) -> ModelProto:
    if not isinstance(model, Path | bytes):
        return model
    proto = new_proto()
    try:
        proto.ParseFromString(model.read_bytes() if isinstance(model, Path) else model)
    except DecodeError as error:
        raise UnsupportedModel(f"this is not a SentencePiece model: {error}") from None
    return proto


def _refuse_unsupported(proto: ModelProto) -> None:
    wrong: list[str] = []
    if not len(proto.pieces):
        wrong.append("it has no pieces")
    if proto.trainer_spec.treat_whitespace_as_suffix:
        wrong.append("treat_whitespace_as_suffix is set")
    if proto.denormalizer_spec.precompiled_charsmap:
        wrong.append("it rewrites decoded text (denormalizer_spec)")
    if wrong:
        raise UnsupportedModel("this SentencePiece model is not supported: " + "; ".join(wrong))


def _protect(proto: ModelProto) -> dict[str, int]:
    """Turns markers into control pieces; returns written form and id of all that are protected."""
    protected: dict[str, int] = {}
    for token, piece in enumerate(proto.pieces):
        kind = piece.type
        if kind in (NORMAL, UNUSED, BYTE):
            continue
        if kind == USER_DEFINED:
            if not is_marker(piece.piece):
                continue
            piece.type = CONTROL
        protected[piece.piece.replace(SPACE, " ")] = token
    return protected


def _processor(data: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError, OSError) as error:
        raise UnsupportedModel(f"SentencePiece refuses this model: {error}") from error
