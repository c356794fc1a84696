"""How a session ends because its user says so: in the journal first, then everywhere else.

Comes in: a session. Goes out: what to wait for until it has ended. While its end is on the way to
the journal nothing can be added to it; if it does not get there, the session goes on. Does not
know: how what is left of it is overwritten (`Loop`).
"""

from __future__ import annotations

import functools
from concurrent.futures import Future

from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.persist.changes import ended, erased
from jaxstate.persist.journal import Ticket


def close_session(desk: Desk, book: Book, reason: str) -> Ticket | None:
    """Ends a session; its asks, waiters and subscribers hear of it.

    Returns:
        What to wait for until it has ended; None if it has.
    """
    with desk.lock:
        if book.closed or desk.ended is not None:
            return None
        noted, close = None, functools.partial(desk.outcomes.close, book, reason)
        if book.log_key:
            book.ending = True
            noted = desk.keeper.note(ended(book.log_key), undo=book.stays, apply=close)
        else:  # no journal knows it
            close()
        desk.tell_loop()
        return noted


def erase_session(desk: Desk, book: Book) -> tuple[Ticket | None, Future[None]]:
    """Ends a session of which nothing may stay.

    Returns:
        What to wait for until the journal has forgotten it, and until the device has.
    """
    wiped: Future[None] = Future()
    with desk.changing():
        book.ending = True
        erase = functools.partial(_erase, desk, book, wiped)
        return desk.keeper.note(erased(book.log_key), undo=book.stays, apply=erase), wiped


def _erase(desk: Desk, book: Book, wiped: Future[None]) -> None:
    desk.outcomes.close(book, "it was erased by its user")
    desk.ledger.prefixes.forget(book.residence.chain)
    if desk.ended is None:
        desk.wipes.append(wiped)
    else:  # no loop is there to do it, and no pool that would stay
        wiped.set_result(None)
