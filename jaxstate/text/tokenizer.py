"""The one interface between text and token ids, and how a directory's tokenizer is found.

Comes in: text that people wrote (`encode`), text that we wrote (`encode_template`), ids (`decode`).
Goes out: ids, text. What is in the files of a Hugging Face directory decides; nothing is guessed.
Does not know: models, templates, sessions.

The rule that everything else rests on: **pushed text can never become a special token.** `encode`
reads "<|eot_id|>" as seven characters of text like any others. Only `encode_template` sees special
tokens in its text, and it must never be given text that a user can influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jaxstate.errors import UnsupportedModel
from jaxstate.text.hf_files import (
    added_in_files,
    bos_setting,
    read_utf8,
    special_text,
    with_added_tokens,
)
from jaxstate.text.hf_json import HFTokenizer
from jaxstate.text.pieces import Place
from jaxstate.text.sentencepiece_model import SentencePieceTokenizer


class Tokenizer(Protocol):
    """Text to ids and back; immutable, and safe to share between threads.

    `decode` is by definition the UTF-8 text of the concatenated `token_bytes`, less one leading
    space if `drops_first_space`; that is what lets `IncrementalDecoder` work at constant cost.
    """

    @property
    def vocab_size(self) -> int:
        """The number of ids: every id is in 0 .. vocab_size - 1 (a model's logits may be wider)."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text of this model, or None if nothing does."""
        ...

    @property
    def bos(self) -> str | None:
        """How `bos_id` is written for `encode_template`; None exactly if `bos_id` is."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that decides the encoding; the same in every process."""
        ...

    @property
    def drops_first_space(self) -> bool:
        """Whether `decode` drops one space at the very start, which `encode` had put there."""
        ...

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """Plain text to ids, without BOS or EOS, and never a special token, whatever the text says.

        Args:
            text: what is encoded.
            place: what it follows. Many tokenizers put a space in front of a text, which nothing
                that goes on with other text may have.

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        ...

    def encode_template(self, text: str) -> list[int]:
        """Like `encode`, but special tokens in the text are recognised. For trusted text only.

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; control tokens are skipped, invalid UTF-8 becomes U+FFFD.

        Raises:
            InvalidInput: an id is outside the vocabulary.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text: UTF-8, perhaps part of a character; empty for control.

        Raises:
            InvalidInput: the id is outside the vocabulary.
        """
        ...

    def special_id(self, text: str) -> int | None:
        """The id of the special token that is written `text`, or None."""
        ...

    def special_spans(self, text: str) -> list[tuple[int, int, int]]:
        """The special tokens that `encode_template` sees in `text`: (start, end, id), in order.

        Raises:
            InvalidInput: `text` is not a str or has lone surrogates.
        """
        ...


def find_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory: tokenizer.json, else tokenizer.model, else None.

    A text opens with BOS if `add_bos_token` says so, or where it says nothing, if the tokenizer
    itself puts it there. Tokens that only the files beside name are added as transformers does.

    Raises:
        UnsupportedModel: the files are damaged, contradict each other, or need something that we
            cannot do exactly.
    """
    bos, adds = special_text(directory, "bos_token"), bos_setting(directory)
    if (directory / "tokenizer.json").is_file():
        source = read_utf8(directory / "tokenizer.json")
        return HFTokenizer(with_added_tokens(source, directory), bos=bos, add_bos=adds)
    if not (directory / "tokenizer.model").is_file():
        return None
    found = SentencePieceTokenizer(
        directory / "tokenizer.model", bos=bos, add_bos=adds is not False
    )
    _refuse_added_tokens(directory, found)
    return found


def _refuse_added_tokens(directory: Path, found: SentencePieceTokenizer) -> None:
    """A tokenizer.model knows no tokens that were added later: their ids would not decode."""
    added = {token: one.content for token, one in added_in_files(directory).items()}
    beyond = sorted(token for token in added if token >= found.vocab_size)
    if beyond:
        raise UnsupportedModel(
            f"{directory} has tokenizer.model with {found.vocab_size} pieces and the added tokens "
            f"{beyond[:8]}; save it with a tokenizer.json, which has them all"
        )
