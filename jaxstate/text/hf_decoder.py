"""From the `decoder` of a tokenizer.json to the bytes of a single piece.

Comes in: the decoder's JSON. Goes out: `PieceDecoder`, which turns a piece as the vocabulary writes
it into the bytes that it adds to a text. Does not know: ids, vocabularies, the `tokenizers`
library.

The library decodes whole lists only; a stream needs one token's bytes at a time. So the decoders of
the families we run are read here, and any other is refused instead of approximated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxstate.errors import UnsupportedModel

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level_alphabet() -> dict[str, int]:
    """The 256 characters with which byte-level BPE writes bytes, as GPT-2 defined them.

    Printable Latin-1 stands for itself; the other bytes, in ascending order, are U+0100, U+0101 ...
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


@dataclass(frozen=True)
class PieceDecoder:
    """What a decoder does to one piece.

    Attributes:
        alphabet: character to byte, for byte-level pieces; empty for others.
        replacements: strings that are written for others, in order.
        byte_fallback: whether `<0x41>` stands for the byte 0x41.
        drops_first_space: whether one space at the start of a text goes.
    """

    alphabet: Mapping[str, int] = field(default_factory=dict)
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    drops_first_space: bool = False

    def piece_bytes(self, piece: str) -> bytes:
        """The bytes that `piece` adds to a text."""
        byte = _BYTE_PIECE.fullmatch(piece) if self.byte_fallback else None
        if byte is not None:
            return bytes([int(byte.group(1), 16)])
        if self.alphabet:
            # Added tokens are raw text; the library, too, takes a piece that is not all alphabet as
            # it stands.
            codes = [self.alphabet.get(char) for char in piece]
            known = [code for code in codes if code is not None]
            return bytes(known) if len(known) == len(codes) else piece.encode("utf-8")
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8")


def read_decoder(spec: object) -> PieceDecoder:
    """Reads the `decoder` value of a tokenizer.json.

    Raises:
        UnsupportedModel: it has a stage, or a combination of stages, whose effect on one piece is
        not known here.
    """
    match spec:
        case {"type": "Sequence", "decoders": [_, *_] as stages}:
            pass
        case _:
            stages = [spec]
    decoder = PieceDecoder()
    for stage in stages:
        decoder = _with_stage(decoder, stage)
    if decoder.alphabet and len(stages) > 1:
        raise _unsupported(spec)
    return decoder


def _with_stage(decoder: PieceDecoder, stage: object) -> PieceDecoder:
    match stage:
        case {"type": "ByteLevel"}:
            return replace(decoder, alphabet=byte_level_alphabet())
        case {"type": "ByteFallback"}:
            return replace(decoder, byte_fallback=True)
        case {"type": "Fuse"}:
            return decoder
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return replace(decoder, replacements=(*decoder.replacements, (old, new)))
        case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
            return replace(decoder, drops_first_space=start == 1)
        case {"type": "Metaspace", "replacement": str(mark), **rest}:
            old_style = "always" if rest.get("add_prefix_space", True) else "never"
            return replace(
                decoder,
                replacements=(*decoder.replacements, (mark, " ")),
                drops_first_space=rest.get("prepend_scheme", old_style) != "never",
            )
    raise _unsupported(stage)


def _unsupported(spec: object) -> UnsupportedModel:
    return UnsupportedModel(
        f"tokenizer.json has the decoder {spec!r}; known are ByteLevel, and sequences of "
        "Replace (of a string), ByteFallback, Fuse, Strip (of one leading space) and Metaspace"
    )
