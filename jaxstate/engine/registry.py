"""Questions that a session is to keep answered: noted in its books, and in the journal.

Comes in: checked questions. Goes out: what is registered, and what to wait for until it counts.
Does not know: how questions are checked (`registering`), when they are answered.
"""

from __future__ import annotations

from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.flash import Registered
from jaxstate.engine.registering import flash_json
from jaxstate.engine.runs import Asked
from jaxstate.persist.changes import asked_from_now_on, no_longer_asked
from jaxstate.persist.journal import Ticket


def register(desk: Desk, book: Book, one: Registered) -> tuple[Registered, Ticket | None]:
    """A flash query; one that a journal brought back is the same if all is equal.

    Raises:
        FlashLimit, InvalidInput: as `FlashBook.add`.
    """
    with desk.changing():
        book.check_open()
        if (same := book.flash.taken_up(one)) is not None:
            return same, None
        book.flash.add(one, desk.clock())
        return one, desk.keeper.note(
            asked_from_now_on(book.log_key, "flash", one.id, flash_json(one)),
            undo=lambda: book.flash.discard(one.id),
        )


def unregister(desk: Desk, book: Book, flash_id: str) -> Ticket | None:
    """No longer a flash query; its answer under way is forgotten.

    Raises:
        InvalidInput: there is none of that name.
    """
    with desk.changing():
        book.check_open()
        book.flash.check_there(flash_id)
        return desk.keeper.note(
            no_longer_asked(book.log_key, "flash", flash_id),
            apply=lambda: book.flash.discard(flash_id),
        )


def warm(desk: Desk, book: Book, asked: Asked) -> Ticket | None:
    """A warm question.

    Raises:
        FlashLimit: there are as many as there may be.
    """
    with desk.changing():
        book.check_open()
        if not book.warm.add(asked):
            return None
        return desk.keeper.note(
            asked_from_now_on(book.log_key, "warm", asked.question, "{}"),
            undo=lambda: book.warm.discard(asked.question),
        )


def unwarm(desk: Desk, book: Book, question: str) -> Ticket | None:
    """No longer a warm question.

    Raises:
        InvalidInput: it is not one.
    """
    with desk.changing():
        book.check_open()
        book.warm.check_there(question)
        return desk.keeper.note(
            no_longer_asked(book.log_key, "warm", question),
            apply=lambda: book.warm.discard(question),
        )
