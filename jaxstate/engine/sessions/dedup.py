"""Exactly once: what each client of a session has pushed, by its own numbers.

Comes in: a client's name and number with each push, and the receipt that it was given. Goes out:
that receipt again, if the push is repeated. The newest are kept here, all of them in the journal;
without a journal all are kept here. Does not know: entries, queues.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxstate.engine.types.values import Receipt, Span
from jaxstate.errors import InvalidInput, SequenceGap
from jaxstate.persist.changes import Push
from jaxstate.persist.journal import PendingWrite
from jaxstate.persist.schema import text_bytes
from jaxstate.records import checked_durability, checked_int

# Receipts of a session that are kept here, if they are in a journal as well.
RECENT = 1024


# Clients of a session whose last number is kept here, likewise, beside those with such receipts.
MOST_CLIENTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who pushes, and for the how manieth time.

    Attributes:
        client: a name.
        seq: the client's own number of this push, ascending.
        strict: whether it must be the next after the client's last.
        digest: of the texts, so that a number that is used for other texts is found.
    """

    client: str
    seq: int
    strict: bool
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A push that was taken.

    Attributes:
        receipt: for the caller.
        written: tells when the journal has it; None without a journal, or if it was read there.
    """

    receipt: Receipt
    written: PendingWrite | None = None

    @property
    def kept(self) -> bool:
        """Whether nothing is on its way to the journal any more."""
        return self.written is None or self.written.settled.done()


class Older(Protocol):
    """Receipts in the journal."""

    def push_of(self, client: str, seq: int) -> Push | None:
        """A push, if there was one of that number."""
        ...

    def last_seq(self, client: str) -> int | None:
        """The largest number of a client; None if it gave none."""
        ...


def origin_of(
    client: str | None, client_seq: int | None, strict: bool, texts: Sequence[str]
) -> Origin | None:
    """As a caller gave it; None if it does not number its pushes.

    Raises:
        InvalidInput: one of the two is missing, or not what it should be.
    """
    if client is None and client_seq is None and not strict:
        return None
    if client is None or client_seq is None:
        raise InvalidInput(
            f"client={client!r} and client_seq={client_seq!r} belong together (strict=True needs "
            "both): name the client, and number its pushes 1, 2, 3 …"
        )
    if not isinstance(client, str) or not 1 <= len(client) <= 128 or not _is_utf8(client):
        raise InvalidInput(f"client={client!r} must be a name of 1 to 128 characters")
    seq = checked_int("client_seq", client_seq)
    if not 0 <= seq < 1 << 63:
        raise InvalidInput(f"client_seq={seq} must lie in 0 .. 2**63 - 1")
    digest = hashlib.sha256()
    for text in texts:
        content = text_bytes(text)
        digest.update(b"%d:" % len(content) + content)
    return Origin(client=client, seq=seq, strict=strict, digest=digest.digest()[:16])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    digest: bytes
    pushed: Pushed


class IdempotencyTable:
    """Of one session; the engine's lock guards it.

    Args:
        older: those that are not kept here; None if all are.
    """

    def __init__(self, older: Older | None = None) -> None:
        self._older = older
        self._given: OrderedDict[tuple[str, int], _Given] = OrderedDict()
        self._last: OrderedDict[str, int | None] = OrderedDict()
        # What was just read of the journal, for who asked for it.
        self._read: dict[tuple[str, int], Push | None] = {}

    def unread(
        self, client: str, seq: int | None = None
    ) -> Callable[[], Callable[[], None]] | None:
        """What has to be read of the journal before a client's last number, or one of its pushes,
        is known; None if nothing has. It is called without the lock, since it waits for a disk;
        what it gives is called with the lock, and keeps what was read."""
        older = self._older
        if older is None:
            return None
        if client not in self._last:
            return lambda: functools.partial(self._keep_last, client, older.last_seq(client))
        last = self._last[client]
        if seq is None or last is None or seq > last:
            return None
        if (client, seq) in self._given or (client, seq) in self._read:
            return None
        return lambda: functools.partial(self._keep_read, client, seq, older.push_of(client, seq))

    def _keep_last(self, client: str, last: int | None) -> None:
        self._last.setdefault(client, last)
        excess = len(self._last) - MOST_CLIENTS
        if excess > 0:
            busy = {name for name, _ in self._given} | {client}
            for name in [one for one in self._last if one not in busy][:excess]:
                self._last.pop(name, None)

    def _keep_read(self, client: str, seq: int, found: Push | None) -> None:
        self._read[client, seq] = found

    def find(self, origin: Origin) -> Pushed | None:
        """What that push was given before; None if it is new.

        Raises:
            InvalidInput: the number was used for other texts.
            SequenceGap: under strict order, numbers before it are missing.
        """
        last = self.last_of(origin.client)
        found = None if last is None or origin.seq > last else self._found(origin)
        if found is None and origin.strict and last is not None and origin.seq != last + 1:
            raise SequenceGap(
                f"client {origin.client!r} pushes number {origin.seq}, and its last was {last}; "
                f"nothing was added. Push {last + 1} next, or push without strict=True"
            )
        return found

    def _found(self, origin: Origin) -> Pushed | None:
        given = self._given.get((origin.client, origin.seq))
        if given is None:
            return self._find_older(origin)
        _check_same(origin, given.digest)
        return given.pushed

    def on_its_way(self, client: str) -> PendingWrite | None:
        """The last push of a client that is not in the journal yet; None if all are."""
        for (name, _), given in reversed(self._given.items()):
            if name == client and not given.pushed.kept:
                return given.pushed.written
        return None

    def note(self, origin: Origin, pushed: Pushed) -> None:
        """A push was taken; a repeat waits with it until it is kept."""
        last = self._last.get(origin.client)
        self._given[origin.client, origin.seq] = _Given(digest=origin.digest, pushed=pushed)
        self._last[origin.client] = origin.seq if last is None else max(last, origin.seq)
        while self._older is not None and len(self._given) > RECENT:
            if not next(iter(self._given.values())).pushed.kept:
                return
            self._given.popitem(last=False)

    def abandon(self) -> None:
        """What is on its way to the journal never came; it is asked what the last numbers are."""
        for name, given in tuple(self._given.items()):
            written = given.pushed.written
            if written is not None and not (written.stays or written.settled.done()):
                del self._given[name]
                self._last.pop(name[0], None)

    def last_of(self, client: str) -> int | None:
        """The largest number that a client has given; None if it gave none. What `unread` says was
        read before."""
        return self._last.get(client)

    def _find_older(self, origin: Origin) -> Pushed | None:
        found = self._read.pop((origin.client, origin.seq), None)
        if found is None:
            return None
        _check_same(origin, found.digest)
        return Pushed(receipt=receipt_of(found.receipt))


def _check_same(origin: Origin, digest: bytes) -> None:
    if origin.digest != digest:
        raise InvalidInput(
            f"client {origin.client!r} pushed other entries under number {origin.seq} before; "
            "nothing was added. Number each push once, also after a restart of the client"
        )


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= one <= "\udfff" for one in name)


def receipt_json(receipt: Receipt) -> str:
    """A receipt as the journal keeps it."""
    dropped = [[span.first, span.last] for span in receipt.dropped]
    return json.dumps(
        [receipt.first, receipt.last, receipt.pending, receipt.durable, dropped],
        separators=(",", ":"),
    )


def receipt_of(kept: str) -> Receipt:
    """The receipt again."""
    first, last, pending, durable, dropped = json.loads(kept)
    return Receipt(
        first=first,
        last=last,
        pending=pending,
        durable=checked_durability(durable),
        dropped=tuple(Span(first=one[0], last=one[1]) for one in dropped),
    )
