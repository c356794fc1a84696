"""Sessions that go from the device and come back to it because their user says so.

Comes in: a session. Goes out: futures that end when it is where it is to be. Does not know: how it
gets there (`moving`), who else must go (`swapping`).
"""

from __future__ import annotations

from concurrent.futures import Future

from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.errors import InvalidInput
from jaxstate.persist.changes import reserve_given_up


def suspend(desk: Desk, book: Book) -> Future[None]:
    """Its cells leave the device, and it gives its reserve up."""
    with desk.changing() as ledger:
        book.check_open()
        if book.residence.pinned:
            raise InvalidInput(
                f"session {book.id!r} is pinned, so it stays on the device; close it, or open "
                'it with residency="evictable"'
            )
        book.residence.coming = False
        if book.residence.reserve_blocks:
            desk.keeper.note(reserve_given_up(book.log_key), "memory")
        future: Future[None] = Future()
        if book.residence.on_device:
            book.residence.leaving = True
            book.leave_waiters = _wanted(book.leave_waiters, future)
        else:
            book.residence.reserve_blocks = 0
            future.set_result(None)
            desk.outcomes.moved(book)
        ledger.room.update(book)
        return future


def resume(desk: Desk, book: Book) -> Future[None]:
    """Its cells come to the device as soon as there is room, before anybody needs them."""
    with desk.changing() as ledger:
        book.check_open()
        residence, future = book.residence, Future[None]()
        residence.leaving, residence.used_s = False, desk.clock()
        if residence.whole:
            future.set_result(None)
        else:
            residence.coming = not residence.on_device
            book.come_waiters = _wanted(book.come_waiters, future)
        desk.outcomes.moved(book)
        ledger.room.update(book)
        return future


def _wanted(waiters: list[Future[None]], future: Future[None]) -> list[Future[None]]:
    """One more; those that were given up would otherwise stay until the next move."""
    return [*(one for one in waiters if not one.cancelled()), future]
