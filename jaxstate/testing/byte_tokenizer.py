"""A tokenizer that can be checked by hand: a token is a byte.

Comes in: text. Goes out: its UTF-8 bytes as ids 0 .. 255, and two special tokens, 256 `<bos>` and
257 `<eos>`.
Does not know: files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxstate.text.pieces import Place, checked_ids, checked_text, join_bytes

_SPECIAL = {"<bos>": 256, "<eos>": 257}


class ByteTokenizer:
    """Satisfies `jaxstate.text.tokenizer.Tokenizer`; all instances are alike."""

    vocab_size: int = 258
    bos_id: int | None = 256
    bos: str | None = "<bos>"
    fingerprint: str = "b7" * 32
    drops_first_space: bool = False

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """The UTF-8 bytes of `text`, whatever it follows.

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        return list(checked_text(text).encode("utf-8"))

    def encode_template(self, text: str) -> list[int]:
        """The same, with `<bos>` and `<eos>` recognised.

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        ids: list[int] = []
        at = 0
        for start, end, token in self.special_spans(text):
            ids += [*self.encode(text[at:start]), token]
            at = end
        return ids + self.encode(text[at:])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes, without the special tokens.

        Raises:
            InvalidInput: an id is not in 0 .. 257.
        """
        return join_bytes(map(self.token_bytes, ids), drops_first_space=False)

    def token_bytes(self, token: int) -> bytes:
        """The byte itself; nothing for a special token.

        Raises:
            InvalidInput: the id is not in 0 .. 257.
        """
        (token,) = checked_ids([token], self.vocab_size)
        return bytes([token]) if token < 256 else b""

    def special_id(self, text: str) -> int | None:
        """256 for `<bos>`, 257 for `<eos>`, else None."""
        return _SPECIAL.get(text)

    def special_spans(self, text: str) -> list[tuple[int, int, int]]:
        """Where `<bos>` and `<eos>` are written in `text`: (start, end, id).

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        return [
            (found.start(), found.end(), _SPECIAL[found.group()])
            for found in re.finditer("<bos>|<eos>", checked_text(text))
        ]
