"""Questions about a version before the newest.

Comes in: a question and the version that it is about. Goes out: its future, or one clear refusal.
A version that the session still holds is looked at where it lies. Another is computed again, if the
caller allows that, by a session that *stands in* for it: it is made of the token log, asked, and
closed, whatever becomes of the question. It counts in the budget like any other, and nobody sees
it. Does not know: devices, how steps are planned.
"""

from __future__ import annotations

import functools

from jaxstate.engine.asking import Asker, Settings, Wanted
from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.endings import close_session
from jaxstate.engine.hits import given_or_asked
from jaxstate.engine.lifecycle import Lifecycle
from jaxstate.engine.runs import Asked
from jaxstate.engine.values import Answer
from jaxstate.engine.versions import border_of, check_rebuild
from jaxstate.engine.waiting import AskFuture


def given_or_submitted(
    desk: Desk,
    lives: Lifecycle,
    asker: Asker,
    book: Book,
    question: str,
    settings: Settings,
    wanted: Wanted,
) -> Answer | AskFuture:
    """The answer to a question if it is there already, or its future.

    Args:
        desk, lives, asker: of the engine.
        book: the session's.
        question, settings, wanted: what is asked, how, and at which version.

    Raises:
        InvalidInput, PromptTooLong: the question cannot be asked.
        JaxstateError: as `submit_one`.
    """
    started_s = desk.clock()
    make = functools.partial(asker.ask, question, settings)
    found = given_or_asked(desk, book, question, settings, wanted, make)
    if isinstance(found, Answer):
        return found
    return submit_one(desk, lives, book, found, wanted, started_s)


def submit_one(
    desk: Desk, lives: Lifecycle, book: Book, asked: Asked, wanted: Wanted, arrived_s: float
) -> AskFuture:
    """A question to one session, noted.

    Args:
        desk, lives: of the engine.
        book: the session's.
        asked: the question.
        wanted: which version it is about.
        arrived_s: when it was asked.

    Raises:
        InvalidInput: the session has no such version.
        VersionUnavailable: it does not hold that version, and may not compute it.
        BudgetExceeded: there are no cells to compute it.
        QueueFull: the session has as many asks as it may.
        ClosedError: the session or the engine is closed.
    """
    if wanted.as_of is None:
        return desk.ask([(book, asked, wanted.least)], arrived_s)[0]
    with desk.changing() as ledger:
        desk.check_asks([book])
        border = border_of(book, "as_of", wanted.as_of)
        if ledger.holds(book.residence, border.cells):
            key, future = desk.note(book, asked, arrived_s, as_of=border)
        else:
            check_rebuild(ledger, book, border, wanted.rebuild_tokens)
            book = lives.stand_in(book, border)
            key, future = desk.note(book, asked, arrived_s)
    desk.follow(book, key, future)
    if book.stands_for is not None:
        future.add_done_callback(lambda _: close_session(desk, book, "its question has ended"))
    return future
