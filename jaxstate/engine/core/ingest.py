"""What a session is pushed: from texts to entries in its queue, counted once they are kept.

Comes in: texts of a client, who it is. Goes out: a receipt, or a future of who waits in line for
room. Does not know: how it is read, when.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.executor.protocol import Tokens
from jaxstate.engine.requests.encoding import PromptEncoder
from jaxstate.engine.sessions.context_window import ContextWindow
from jaxstate.engine.sessions.dedup import Origin, Pushed, origin_of, receipt_json
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.sessions.token_log import Offer
from jaxstate.engine.types.options import key_of
from jaxstate.engine.types.values import Receipt
from jaxstate.engine.types.window import Window
from jaxstate.errors import CapacityExceeded, InvalidInput
from jaxstate.persist.changes import Push, pushed

# A session with a window has room for any number of them, if only one after the other.
_ANY_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewEntries:
    """What is pushed.

    Attributes:
        texts: as they were given.
        tokens: of each, and its key, if the session's policy wants one.
        first_tokens: of the first text, if it becomes the session's first entry and is encoded in
            another way then; else None.
        origin: who pushes, if that counts.
        window: that the session had, if it has keys, and `window_keys`, of each text in it.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[Tokens, Hashable | None], ...]
    first_tokens: Tokens | None = None
    origin: Origin | None
    window: Window | None = None
    window_keys: tuple[str | None, ...] = ()

    def keys_in(self, window: Window) -> Sequence[str | None]:
        """The keys of its texts in the window that the session has now."""
        if window is self.window:
            return self.window_keys
        return [window.key_of(text) for text in self.texts]


def new_entries(
    encoder: PromptEncoder,
    record: SessionRecord,
    entries: str | Sequence[str],
    client: str | None,
    client_seq: int | None,
    strict: bool,
) -> NewEntries:
    """What is pushed to a session, in tokens, with keys where its policy wants them.

    Raises:
        InvalidInput: something is no text, or who pushes is not said whole.
        CapacityExceeded: there is far more of it than the session has cells.
    """
    texts = _texts(encoder, entries)
    policy, place = record.queue.policy, record.first_place
    tokens = tuple((encoder.entry(text), key_of(policy, text)) for text in texts)
    context_window = record.window
    window = None if context_window is None else context_window.window
    first = None
    if place != "text" and texts and record.queue.last == 0:
        first = encoder.entry(texts[0], place)
    return NewEntries(
        texts=tuple(texts),
        tokens=tokens,
        first_tokens=first,
        origin=origin_of(client, client_seq, strict, texts),
        window=window,
        window_keys=() if window is None else tuple(map(window.key_of, texts)),
    )


def _texts(encoder: PromptEncoder, entries: str | Sequence[str]) -> Sequence[str]:
    """Entries as given, one or several; nothing was made of them yet."""
    if isinstance(entries, Sequence) and not isinstance(entries, str | bytes | bytearray):
        for place, text in enumerate(entries):
            encoder.check_text(f"entries[{place}]", text)
        encoder.check_characters("the push", sum(map(len, entries)))
        return entries
    if isinstance(entries, Iterable) and not isinstance(entries, str | bytes | bytearray):
        raise InvalidInput(
            f"entries is {type(entries).__name__}, and must be a str or a list of them: "
            "list(entries) makes one"
        )
    encoder.check_text("entry", entries)
    return (entries,)


def push(core: EngineCore, record: SessionRecord, new: NewEntries) -> Pushed | Future[None]:
    """Entries into the queue; a future to wait for if there is no room now.

    Raises:
        ClosedError, NotFinite, InvalidInput, CapacityExceeded, BudgetExceeded, QueueFull,
        SequenceGap, JournalError: as `Session.push`.
    """
    while True:
        with core.noting():
            core.journal_writer.check()
            record.check_open()
            record.check_reads(record.version + 1)
            # Under one lock with what it decides: what was read may have been forgotten meanwhile.
            read = _unread(record, new)
            if read is None:
                return _pushed(core, record, new)
        read_receipts(core, read)


def reads_first(
    core: EngineCore, record: SessionRecord, new: NewEntries
) -> Callable[[], None] | None:
    """What has to be read of the journal before it is known whether a push is a repeat; None if
    nothing has. It waits for a disk, and is called without the lock."""
    with core.noting():
        read = _unread(record, new)
    return None if read is None else functools.partial(read_receipts, core, read)


def _unread(record: SessionRecord, new: NewEntries) -> Callable[[], Callable[[], None]] | None:
    origin = new.origin
    return None if origin is None else record.receipts.unread(origin.client, origin.seq)


def read_receipts(core: EngineCore, read: Callable[[], Callable[[], None]]) -> None:
    """Reads without the lock, and keeps with it."""
    keep = read()
    with core.lock:
        keep()


def _pushed(core: EngineCore, record: SessionRecord, new: NewEntries) -> Pushed | Future[None]:
    if new.origin is not None and (before := record.receipts.find(new.origin)) is not None:
        _left_line(core, record, new)
        return before
    if next(iter(record.room_waiters), new) is not new:
        return _place_in_line(record, new)
    offer = _offer(core, record, new)
    if offer is None:
        return _place_in_line(record, new)
    _left_line(core, record, new)
    return _taken(core, record, new, offer)


def leave_line(core: EngineCore, record: SessionRecord, new: NewEntries) -> None:
    """Who pushes does not wait for room any more."""
    with core.lock:
        _left_line(core, record, new)


def _left_line(core: EngineCore, record: SessionRecord, new: NewEntries) -> None:
    """The next in line may try."""
    if record.room_waiters.pop(new, None) is not None and not record.closed:
        core.results.room_made(record)
        core.tell_loop()


def _place_in_line(record: SessionRecord, new: NewEntries) -> Future[None]:
    """What who pushes waits for, until there may be room; a push keeps its place."""
    future = record.room_waiters[new] = Future[None]()
    return future


def _taken(core: EngineCore, record: SessionRecord, new: NewEntries, offer: Offer) -> Pushed:
    receipt = Receipt(
        first=offer.first,
        last=offer.last,
        pending=record.pending,
        durable=core.journal_writer.level,
        dropped=offer.dropped,
    )
    written = core.journal_writer.append(
        pushed(
            record.log_key,
            offer.first,
            new.texts,
            [(span.first, span.last) for span in offer.dropped],
            _push_of(new.origin, receipt),
        ),
        functools.partial(_accept, core, record, new, offer),
    )
    done = Pushed(receipt=receipt, written=written)
    if new.origin is not None:
        record.receipts.note(new.origin, done)
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


def _accept(core: EngineCore, record: SessionRecord, new: NewEntries, offer: Offer) -> None:
    """The push counts from now on."""
    if (window := record.window) is not None:
        window.note(offer.first, new.keys_in(window.window), core.clock())
    dropped = record.queue.accept(offer)
    core.state.touch(record)
    core.tell_loop()
    core.recorder.count("entries_pushed", offer.last - offer.first + 1)
    core.recorder.count("entries_dropped", dropped)


def _offer(core: EngineCore, record: SessionRecord, new: NewEntries) -> Offer | None:
    """All of it to the queue, if the session's capacity and the engine's budget let it; None if the
    queue has no room now."""
    budget, read_cells = core.state.budget, record.residence.cells
    most = min(core.limits.session_cells, budget.most_cells(record))
    tokens = new.tokens
    if new.first_tokens is not None and record.queue.last == 0:
        tokens = ((new.first_tokens, tokens[0][1]), *tokens[1:])
    windows = (record.window, *record.windows_to_come)
    for window in filter(None, windows):
        window.check_entries(len(one) for one, _ in tokens)
    if record.window is not None and None not in windows:
        return _offer_behind(core, record, record.window, tokens, most)
    try:
        offer = record.queue.offer(tokens, core.clock(), most - read_cells)
    except CapacityExceeded:
        if most == core.limits.session_cells:
            raise
        added = sum(len(one) for one, _ in tokens)
        wanted = read_cells + record.queue.unread_tokens + added
        raise budget.refusal(record, wanted) from None
    budget.order(record, read_cells + record.queue.unread_tokens)
    record.residence.used_s = core.clock()
    return offer


def _offer_behind(
    core: EngineCore,
    record: SessionRecord,
    window: ContextWindow,
    tokens: Sequence[tuple[Tokens, Hashable | None]],
    most_cells: int,
) -> Offer | None:
    """The same of a session whose window makes room for what comes."""
    budget, residence = core.state.budget, record.residence
    held_cells = residence.cells + record.queue.unread_tokens + sum(len(one) for one, _ in tokens)
    # Under a window that it was given late it may have more.
    begun_cells = residence.cells + record.queue.rest_tokens
    wanted_cells = min(held_cells, max(begun_cells, window.most_cells))
    if wanted_cells > most_cells:
        raise budget.refusal(record, wanted_cells)
    offer = record.queue.offer(tokens, core.clock(), _ANY_TOKENS)
    budget.order(record, min(residence.cells + record.queue.unread_tokens, wanted_cells))
    residence.used_s = core.clock()
    return offer
