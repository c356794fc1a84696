"""What all tokenizers share: which tokens plain text may never become, and how bytes become text.

Comes in: written forms of tokens, texts, ids, the bytes that single tokens stand for.
Goes out: verdicts, checked values, text.
Does not know: any tokenizer library or file format.

Two properties of a token are kept apart:
    protected   plain text never becomes it, only trusted template text does
    hidden      `decode` does not show it
Every control token is both. A token that a file declares as merely "added" or "user defined" is
shown, and it is protected if it looks like markup that steers a model (`is_marker`): models differ
in how they declare their turn markers, and a turn must not be forged because a converter chose the
weaker kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, TypeAlias

from jaxstate.errors import InvalidInput

# What a text stands behind: nothing (or a BOS that the tokenizer puts in front of every text), a
# special token that somebody wrote, or text that it goes on with.
Place: TypeAlias = Literal["start", "special", "text"]

_BRACKETED = re.compile(r"<.*\w.*>|\[.*\w.*\]", re.DOTALL)
_HTML_TAG = re.compile(r"</?([a-z][a-z0-9]*)>")
# Gemma has HTML tags as pieces of their own; documents are full of them, and they open no turn.
# `<s>` is not in this list although it is HTML: it is also how many models write their BOS.
# fmt: off
_HTML_NAMES = frozenset(
    {
        "a", "abbr", "article", "aside", "b", "blockquote", "body", "br", "button", "caption",
        "center", "cite", "code", "col", "colgroup", "dd", "del", "div", "dl", "dt", "em",
        "figcaption", "figure", "font", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6",
        "head", "header", "hr", "html", "i", "iframe", "img", "input", "ins", "label", "li",
        "link", "main", "mark", "meta", "nav", "ol", "option", "p", "pre", "q", "section",
        "select", "small", "span", "strike", "strong", "style", "sub", "sup", "table", "tbody",
        "td", "textarea", "tfoot", "th", "thead", "title", "tr", "tt", "u", "ul", "var",
        "video",
    }
)
# fmt: on


def is_marker(written: str) -> bool:
    """Whether a token of this written form steers a model when it appears.

    True for `<...>` and `[...]` with a letter or digit inside, spaces around them ignored; false
    for HTML tags, whitespace, and everything else.
    """
    core = written.replace("\u2581", " ").strip()
    tag = _HTML_TAG.fullmatch(core)
    if tag is not None and tag.group(1) in _HTML_NAMES:
        return False
    return _BRACKETED.fullmatch(core) is not None


def checked_text(text: str) -> str:
    """Returns `text`.

    Raises:
        InvalidInput: it is not a `str`, or has lone surrogates, which are no text and have no UTF-8
        form.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"text must be a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text has a lone surrogate at character {error.start}") from None
    return text


def checked_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Returns `ids` as a list of Python ints (numpy integers are welcome).

    Raises:
        InvalidInput: an id is negative, or not below `vocab_size`.
    """
    found = [int(token) for token in ids]
    for token in found:
        if not 0 <= token < vocab_size:
            raise InvalidInput(f"token id {token} is outside the vocabulary, 0..{vocab_size - 1}")
    return found


def refuse_protected(ids: Sequence[int], protected: Collection[int]) -> None:
    """The last line of defence behind the settings of a tokenizer library.

    Raises:
        InvalidInput: plain text became a protected token.
    """
    forged = sorted(set(ids).intersection(protected))
    if forged:
        raise InvalidInput(
            f"this text would be read as the special tokens {forged}; "
            "plain text may not contain them"
        )


def join_bytes(pieces: Iterable[bytes], *, drops_first_space: bool) -> str:
    """The text of tokens' bytes; each maximal run that is no UTF-8 becomes U+FFFD."""
    data = b"".join(pieces)
    if drops_first_space:
        data = data.removeprefix(b" ")
    return data.decode("utf-8", errors="replace")
