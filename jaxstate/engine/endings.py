"""How a session ends because its user says so: in the journal first, then everywhere else.

Comes in: a session. Goes out: what to wait for until it has ended. While its end is on the way to
the journal nothing can be added to it; if it does not get there, the session goes on. Does not
know: how what is left of it is overwritten (`Loop`).
"""

from __future__ import annotations

import functools
from concurrent.futures import Future

from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk, refusal
from jaxstate.persist.changes import ended, erased
from jaxstate.persist.journal import Ticket


def close_session(desk: Desk, book: Book, reason: str) -> Ticket | None:
    """Ends a session; its asks, waiters and subscribers hear of it.

    Returns:
        What to wait for until it has ended; None if it has.

    Raises:
        ClosedError: the engine is closed, and the session is in its journal: it comes back.
    """
    with desk.lock:
        if not book.log_key:  # no journal knows it
            desk.outcomes.close(book, reason)
            desk.tell_loop()
            return None
        if book.has_ended:
            return None
        if desk.ended is not None:
            raise refusal(desk.ended)
        book.ending = True
        end = functools.partial(_end, desk, book, reason)
        return desk.keeper.note(ended(book.log_key), undo=book.stays, apply=end)


def _end(desk: Desk, book: Book, reason: str) -> None:
    book.has_ended = True
    desk.outcomes.close(book, reason)


def erase_session(desk: Desk, book: Book) -> tuple[Ticket | None, Future[None]]:
    """Ends a session of which nothing may stay.

    Returns:
        What to wait for until the journal has forgotten it, and until the device has.
    """
    wiped: Future[None] = Future()
    with desk.changing():
        book.ending = True
        erase = functools.partial(_erase, desk, book, wiped)
        # Always synced before it is said to be done, whatever the engine promises for the rest.
        level = "fsync" if book.log_key else None
        return desk.keeper.note(erased(book.log_key), level, undo=book.stays, apply=erase), wiped


def _erase(desk: Desk, book: Book, wiped: Future[None]) -> None:
    _end(desk, book, "it was erased by its user")
    desk.ledger.prefixes.forget(book.residence.chain)
    if desk.ended is None:
        desk.wipes.append(wiped)
    else:  # no loop is there to do it, and no pool that would stay
        wiped.set_result(None)
