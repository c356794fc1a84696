"""A push on its way into a session: once, whole, and journaled before it is read.

Comes in: entries as texts and tokens, who pushes, what it is to outlive. Goes out: a receipt, and
what to wait for until it is true. Does not know: devices, how entries are read.

What is pushed has its numbers and its place in the queue at once, so that pushes stay in order; but
nothing of it is read before the journal has it, so no answer ever saw what a crash could undo.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from jaxstate.engine.asking import Asker
from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.entries import Offer
from jaxstate.engine.executor import Tokens
from jaxstate.engine.policies import key_of
from jaxstate.engine.receipts import Origin, Pushed, origin_of, receipt_json
from jaxstate.engine.values import Receipt
from jaxstate.errors import CapacityExceeded, InvalidInput
from jaxstate.persist.changes import Push, pushed
from jaxstate.records import LEVELS, Durability


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewEntries:
    """What is pushed.

    Attributes:
        texts: as they were given.
        tokens: of each, and its key, if the session's policy wants one.
        first_tokens: of the first text, if it becomes the session's first entry and is encoded in
            another way then; else None.
        origin: who pushes, if that counts.
        level: what it is to outlive.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[Tokens, Hashable | None], ...]
    first_tokens: Tokens | None = None
    origin: Origin | None
    level: Durability


def new_entries(
    asker: Asker,
    book: Book,
    entries: str | Sequence[str],
    level: Durability,
    client: str | None,
    client_seq: int | None,
    strict: bool,
) -> NewEntries:
    """What is pushed to a session, in tokens, with keys where its policy wants them.

    Raises:
        InvalidInput: something is no text, or who pushes is not said whole.
        CapacityExceeded: there is far more of it than the session has cells.
    """
    texts = _texts(asker, entries)
    policy, place = book.queue.policy, book.first_place
    tokens = tuple((asker.entry(text), key_of(policy, text)) for text in texts)
    first = None
    if place != "text" and texts and book.queue.last == 0:
        first = asker.entry(texts[0], place)
    return NewEntries(
        texts=tuple(texts),
        tokens=tokens,
        first_tokens=first,
        origin=origin_of(client, client_seq, strict, texts),
        level=level,
    )


def _texts(asker: Asker, entries: str | Sequence[str]) -> Sequence[str]:
    """Entries as given, one or several; nothing was made of them yet."""
    if isinstance(entries, Sequence) and not isinstance(entries, str | bytes | bytearray):
        for place, text in enumerate(entries):
            asker.check_text(f"entries[{place}]", text)
        asker.check_characters("the push", sum(map(len, entries)))
        return entries
    if isinstance(entries, Iterable) and not isinstance(entries, str | bytes | bytearray):
        raise InvalidInput(
            f"entries is {type(entries).__name__}, and must be a str or a list of them: "
            "list(entries) makes one"
        )
    asker.check_text("entry", entries)
    return (entries,)


def push(desk: Desk, book: Book, new: NewEntries) -> Pushed | Future[None]:
    """Entries into the queue; a future to wait for if there is no room now.

    Raises:
        ClosedError, NotFinite, InvalidInput, CapacityExceeded, BudgetExceeded, QueueFull,
        SequenceGap, JournalError: as `Session.push`.
    """
    while True:
        with desk.noting():
            book.check_open()
            book.check_reads(book.version + 1)
            origin = new.origin
            read = None if origin is None else book.receipts.unread(origin.client, origin.seq)
            if read is None:
                return _pushed(desk, book, new)
        read()


def _pushed(desk: Desk, book: Book, new: NewEntries) -> Pushed | Future[None]:
    if new.origin is not None and (before := book.receipts.find(new.origin)) is not None:
        return _repeated(desk, before, new.level)
    # What follows something that is not written yet is not read before it either.
    hold = book.queue.holds or book.is_new or not desk.keeper.counts_at_once(new.level)
    if next(iter(book.room_waiters), new) is not new:
        return _place_in_line(book, new)
    offer = _offer(desk, book, new, hold=hold)
    if offer is None:
        return _place_in_line(book, new)
    _left_line(desk, book, new)
    return _taken(desk, book, new, offer, hold=hold)


def leave_line(desk: Desk, book: Book, new: NewEntries) -> None:
    """Who pushes does not wait for room any more."""
    with desk.lock:
        _left_line(desk, book, new)


def _left_line(desk: Desk, book: Book, new: NewEntries) -> None:
    """The next in line may try."""
    if book.room_waiters.pop(new, None) is not None and not book.closed:
        desk.outcomes.room_made(book)
        desk.tell_loop()


def _repeated(desk: Desk, before: Pushed, level: Durability) -> Pushed:
    """The first receipt; it waits if more is promised now than then."""
    if LEVELS.index(level) <= LEVELS.index(before.receipt.durable):
        return before
    # The journal is written in order: once this nothing is synced, all before it is.
    ticket = desk.keeper.note(lambda _: None, level)
    return Pushed(receipt=dataclasses.replace(before.receipt, durable=level), ticket=ticket)


def _place_in_line(book: Book, new: NewEntries) -> Future[None]:
    """What who pushes waits for, until there may be room; a push keeps its place."""
    future = book.room_waiters[new] = Future[None]()
    return future


def _taken(desk: Desk, book: Book, new: NewEntries, offer: Offer, *, hold: bool) -> Pushed:
    receipt = Receipt(
        first=offer.first,
        last=offer.last,
        pending=book.pending,
        durable=new.level,
        dropped=offer.dropped,
    )
    ticket = desk.keeper.note(
        pushed(
            book.log_key,
            offer.first,
            new.texts,
            [(span.first, span.last) for span in offer.dropped],
            _push_of(new.origin, receipt),
        ),
        new.level,
        undo=functools.partial(_take_back, desk, book, offer, new.origin),
        apply=functools.partial(_count, desk, book, offer),
        at_once=not hold,
    )
    done = Pushed(receipt=receipt, ticket=ticket)
    if new.origin is not None:
        book.receipts.note(new.origin, done)
    return done


def _push_of(origin: Origin | None, receipt: Receipt) -> Push | None:
    if origin is None:
        return None
    return Push(
        client=origin.client,
        client_seq=origin.seq,
        receipt=receipt_json(receipt),
        digest=origin.digest,
    )


def _count(desk: Desk, book: Book, offer: Offer) -> None:
    """The push counts from now on."""
    book.queue.release(offer.last)
    desk.tell_loop()
    desk.recorder.count("entries_pushed", offer.last - offer.first + 1)
    desk.recorder.count("entries_dropped", len(offer.displaced))


def _take_back(desk: Desk, book: Book, offer: Offer, origin: Origin | None) -> None:
    """The journal could not be written: it is as if nobody had pushed."""
    if origin is not None:
        book.receipts.take_back(origin)
    book.queue.retract(offer)
    if not book.closed:
        desk.ledger.room.order(book, book.residence.cells + book.queue.unread_tokens)
        desk.outcomes.room_made(book)
        desk.tell_loop()


def _offer(desk: Desk, book: Book, new: NewEntries, *, hold: bool) -> Offer | None:
    """To the queue, as far as the session's capacity and the engine's budget go."""
    room, read = desk.ledger.room, book.residence.cells
    most = min(desk.limits.session_cells, room.most_cells(book))
    tokens = new.tokens
    if new.first_tokens is not None and book.queue.last == 0:
        tokens = ((new.first_tokens, tokens[0][1]), *tokens[1:])
    try:
        offer = book.queue.offer(tokens, desk.clock(), most - read, hold=hold)
    except CapacityExceeded:
        if most == desk.limits.session_cells:
            raise
        added = sum(len(tokens) for tokens, _ in new.tokens)
        raise room.refusal(book, read + book.queue.unread_tokens + added) from None
    room.order(book, read + book.queue.unread_tokens)
    book.residence.used_s = desk.clock()
    return offer
