"""Tokenizers in Hugging Face's tokenizer.json, run by the `tokenizers` library.

Comes in: the text of a tokenizer.json, and how BOS is written. Goes out: an object that satisfies
`Tokenizer`.
Does not know: directories, templates, transformers.

Template text is encoded exactly as transformers' fast tokenizers do with
`add_special_tokens=False`. Plain text differs in one thing: protected tokens (`text.pieces`) are
read as ordinary characters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import tokenizers

from jaxstate.errors import UnsupportedModel
from jaxstate.text.hf_decoder import read_decoder
from jaxstate.text.hf_files import parse_object
from jaxstate.text.pieces import (
    Place,
    checked_ids,
    checked_text,
    is_marker,
    join_bytes,
    refuse_protected,
)
from jaxstate.text.space_prefix import space_prefixes, without_space_prefix


class HFTokenizer:
    """A tokenizer.json, with plain and template text kept apart.

    Args:
        source: the text of a tokenizer.json.
        bos: how the token that may open a text is written, or None.
        add_bos: whether it does; None for what the file's own post-processor does.

    Raises:
        UnsupportedModel: the file is damaged, its decoder is not known, or `bos` is not one of its
        special tokens.
    """

    def __init__(self, source: str, *, bos: str | None = None, add_bos: bool | None = True) -> None:
        spec = parse_object(source, "tokenizer.json")
        added = _added_tokens(spec)
        self._hidden = frozenset(token for _, token, special in added if special)
        self._protected = {
            written: token for written, token, special in added if special or is_marker(written)
        }
        self._protected_ids = frozenset(self._protected.values())
        self._decoder = read_decoder(spec.get("decoder"))
        self._source = _effective(spec)
        self._plain = _handle(self._source)
        self._plain.encode_special_tokens = True
        self._vocab_size = max(self._plain.get_vocab().values(), default=-1) + 1
        # Unknown characters are no forgery, though files declare <unk> as a special token.
        self._unforgeable = self._protected_ids - {_unknown_id(spec, self._plain)}
        # Of tokens that were asked for: it is once a row of every step.
        self._bytes: dict[int, bytes] = {}
        self._bos_id = self._opening(bos, add_bos)
        self._bos = None if self._bos_id is None else bos
        self._prefixes = space_prefixes(spec)
        self._digest = hashlib.sha256(
            f"hf-json\n{self._bos!r}\n{self._source}".encode()
        ).hexdigest()

    def _opening(self, bos: str | None, add_bos: bool | None) -> int | None:
        """BOS, if texts open with it."""
        if bos is None or add_bos is False:
            return None
        if add_bos:
            return self._required(bos)
        written = self._plain.encode("", add_special_tokens=True).ids
        token = self._plain.token_to_id(bos)
        return self._required(bos) if token is not None and token in written[:1] else None

    def _required(self, written: str) -> int:
        if written not in self._protected:
            raise UnsupportedModel(
                f"the BOS token {written!r} is no special token in tokenizer.json"
            )
        return self._protected[written]

    @property
    def vocab_size(self) -> int:
        """The largest id of the file, plus one."""
        return self._vocab_size

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text, or None."""
        return self._bos_id

    @property
    def bos(self) -> str | None:
        """How `bos_id` is written."""
        return self._bos

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the settings in use (keys sorted) and of BOS."""
        return self._digest

    @property
    def drops_first_space(self) -> bool:
        """Whether `decode` drops one space at the very start."""
        return self._decoder.drops_first_space

    @cached_property
    def _template(self) -> tokenizers.Tokenizer:
        """A handle of its own: `encode_special_tokens` is set on a handle, not on a call."""
        return _handle(self._source)

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        """Writes no space in front of a text."""
        handle = _handle(without_space_prefix(self._source))
        handle.encode_special_tokens = True
        return handle

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """Plain text to ids, never a protected token.

        Args:
            text: what is encoded.
            place: what it follows.

        Raises:
            InvalidInput: `text` is not a str, has lone surrogates, or would become a protected
            token all the same
                (possible only in a vocabulary whose own merges spell a special token).
        """
        handle = self._plain if place in self._prefixes else self._continuing
        ids = handle.encode(checked_text(text), add_special_tokens=False).ids
        refuse_protected(ids, self._unforgeable)
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Trusted text to ids; special tokens in it are recognised.

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        return self._template.encode(checked_text(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; tokens that the file calls special are skipped.

        Raises:
            InvalidInput: an id is outside the vocabulary.
        """
        pieces = map(self.token_bytes, ids)
        return join_bytes(pieces, drops_first_space=self.drops_first_space)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text.

        Raises:
            InvalidInput: the id is outside the vocabulary.
        """
        known = self._bytes.get(token)
        if known is None:
            (token,) = checked_ids([token], self._vocab_size)
            # An id in a hole of the vocabulary has no piece, and adds nothing.
            piece = "" if token in self._hidden else self._plain.id_to_token(token) or ""
            known = self._bytes[token] = self._decoder.piece_bytes(piece)
        return known

    def special_id(self, text: str) -> int | None:
        """The id of the protected token that is written `text`, or None."""
        return self._protected.get(text)

    def special_spans(self, text: str) -> list[tuple[int, int, int]]:
        """The protected tokens that `encode_template` sees in `text`: (start, end, id).

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        found = self._template.encode(checked_text(text), add_special_tokens=False)
        return [
            (start, end, token)
            for token, (start, end) in zip(found.ids, found.offsets, strict=True)
            if token in self._protected_ids
        ]


def _handle(source: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # the library raises nothing narrower
        raise UnsupportedModel(f"tokenizer.json cannot be used: {error}") from error


def _added_tokens(spec: dict[str, object]) -> list[tuple[str, int, bool]]:
    """(written form, id, special) of each added token."""
    entries = spec.get("added_tokens") or []
    if not isinstance(entries, list):
        raise UnsupportedModel("tokenizer.json: `added_tokens` is not a list")
    found: list[tuple[str, int, bool]] = []
    for entry in entries:
        match entry:
            case {"content": str(written), "id": int(token), **rest}:
                found.append((written, token, rest.get("special") is True))
            case _:
                raise UnsupportedModel(f"tokenizer.json: {entry!r} is not an added token")
    return found


def _effective(spec: dict[str, object]) -> str:
    """The settings in use: no truncation, no padding, and every marker special.

    `encode_special_tokens` passes over special tokens only, hence the last; it changes nothing for
    template text.
    """
    entries = spec.get("added_tokens")
    added = [
        entry | {"special": entry.get("special") is True or is_marker(entry["content"])}
        for entry in (entries if isinstance(entries, list) else [])
    ]
    effective = spec | {"truncation": None, "padding": None, "added_tokens": added}
    return json.dumps(effective, sort_keys=True)


def _unknown_id(spec: dict[str, object], handle: tokenizers.Tokenizer) -> int | None:
    model = spec.get("model")
    written = model.get("unk_token") if isinstance(model, dict) else None
    return handle.token_to_id(written) if isinstance(written, str) else None
