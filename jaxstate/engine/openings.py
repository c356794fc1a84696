"""How a session came to be, as the journal keeps it.

Comes in: a session's books, and what it was made of. Goes out: an `Opening`. Does not know: files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxstate.engine.asking import Asker
from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.executor import Tokens
from jaxstate.engine.policies import kept_name
from jaxstate.engine.residence import TokenLog
from jaxstate.persist.changes import Opening


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origins:
    """What a session is made of: a text, or a saved session, or another session.

    Attributes:
        prefix: the text.
        opening: the same in tokens, int32 [n], with what the template wrote that day.
        version: that it starts at.
        log: what the saved session had read.
        parent: the key of the session that it was forked from.
    """

    prefix: str | None = None
    opening: Tokens | None = None
    version: int = 0
    log: TokenLog | None = None
    parent: int | None = None


def opening_of(book: Book, origins: Origins, desk: Desk) -> Opening:
    """A new session as the journal keeps it.

    Raises:
        InvalidInput: its policy cannot be kept.
    """
    residence, log, read = book.residence, origins.log, origins.opening
    if log is not None:
        read = log.tokens(0, len(log))
    return Opening(
        key=book.log_key,
        id=book.id,
        tenant=residence.tenant,
        reserve=residence.reserve_blocks * desk.limits.layout.block_cells,
        pinned=residence.pinned,
        policy=kept_name(book.queue.policy, desk.config.queue_policy),
        prefix=origins.prefix,
        base_version=origins.version,
        base_tokens=None if read is None else token_bytes(read),
        base_ends=None if log is None else ends_bytes(log.ends(0, len(log))),
        text_fingerprint=desk.keeper.text_fingerprint,
        parent=origins.parent,
    )


def opening_tokens(root: Opening, asker: Asker, text_fingerprint: str) -> Tokens:
    """What a session with a prefix starts with: as it was opened, if these tokenizer and template
    did it. (A template may write the date.)"""
    if root.base_tokens is not None and root.text_fingerprint == text_fingerprint:
        return tokens_of(root.base_tokens)
    return asker.opening(root.prefix or "")


def token_bytes(tokens: Tokens) -> bytes:
    """Int32 tokens as they are kept."""
    return tokens.astype("<i4").tobytes()


def tokens_of(kept: bytes) -> Tokens:
    """The tokens again."""
    return np.frombuffer(kept, "<i4").astype(np.int32)


def ends_bytes(ends: list[tuple[int, int]]) -> bytes:
    """Pairs (entry, tokens up to its end) as they are kept."""
    return np.array(ends, "<i8").tobytes()


def ends_of(kept: bytes) -> list[tuple[int, int]]:
    """The pairs again."""
    pairs = np.frombuffer(kept, "<i8").reshape(-1, 2).tolist()
    return [(entry, count) for entry, count in pairs]
