"""Answers that are there before the question: fresh flash answers, and warm questions.

Comes in: a question with its settings. Goes out: an answer, or None: then it must be computed.
Exact or not used: an answer counts only if computing it now would give the same. No device, and no
tokens for a flash hit. Does not know: how those answers were made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from jaxstate.engine.asking import ANY, Asker, Settings, Wanted
from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.flash import Registered
from jaxstate.engine.runs import Asked
from jaxstate.engine.values import Answer
from jaxstate.engine.waiting import AskFuture


class FlashQuery:
    """A registered question: a handle that shows where it stands when it is looked at.

    Attributes:
        id: its name within the session.
        question: its text.
    """

    def __init__(self, desk: Desk, book: Book, registered: Registered) -> None:
        self.id = registered.id
        self.question = registered.asked.question
        self._desk = desk
        self._book = book
        self._registered = registered

    @property
    def answer(self) -> Answer | None:
        """The newest answer, with the version that it saw; None before the first."""
        return self._registered.answer

    @property
    def fresh(self) -> bool:
        """Whether the answer is that of the session's version."""
        with self._desk.lock:
            return self._book.flash.is_fresh(self._registered)

    @property
    def error(self) -> str | None:
        """Why it could not be answered at the newest version; None if it could."""
        return self._registered.error

    def __repr__(self) -> str:
        return f"FlashQuery({self.id!r}, {self.question!r}, fresh={self.fresh})"


def flash_hit(
    desk: Desk, book: Book, question: str, settings: Settings, wanted: Wanted, started_s: float
) -> tuple[Answer | None, Asked | None]:
    """The answer of the flash query of that text, if it is fresh and just what is asked for.

    Args:
        desk: of the engine.
        book: the session's.
        question: as it was asked.
        settings: likewise.
        wanted: the version that the answer must have seen.
        started_s: when it was asked.

    Returns:
        The answer, or None; and the registered question, if its settings are what is asked for, so
        that it need not be made anew.
    """
    # Without the lock, which the loop holds for most of a busy turn: every reference that is read
    # here is replaced as a whole, and none is changed.
    desk.owner.check()
    registered = book.flash.of_text(question) if isinstance(question, str) else None
    if registered is None or book.closed:
        return None, None
    if (given := registered.given) is not None:
        answer, steps = given
        fresh = book.flash.is_current(answer) and wanted.suits(answer.version)
        if fresh and settings.would_give(registered.asked, answer, steps):
            return _given(desk, answer, started_s), None
    same = settings.fit(registered.asked) and settings.same_length(registered.asked)
    return None, registered.asked if same else None


def ready_hit(
    desk: Desk, book: Book, asked: Asked, wanted: Wanted, started_s: float
) -> Answer | None:
    """The best of the choices, if it is kept for the warm question of that text, or follows from
    what is."""
    if asked.choices is None or len(book.warm) == 0:
        return None
    with desk.lock:
        answer = None if book.closed else book.warm.fresh(asked)
    if answer is None or not wanted.suits(answer.version):
        return None
    return _given(desk, answer, started_s)


def given_or_asked(
    desk: Desk,
    book: Book,
    question: str,
    settings: Settings,
    wanted: Wanted,
    make: Callable[[], Asked],
) -> Answer | Asked:
    """The answer if it is there already, or the question as it is to be computed.

    Args:
        desk, book, question, settings, wanted: as for `flash_hit`.
        make: tokenises the question, if that is needed.
    """
    started_s = desk.clock()
    given, registered = flash_hit(desk, book, question, settings, wanted, started_s)
    if given is not None:
        return given
    asked = registered or make()
    return ready_hit(desk, book, asked, wanted, started_s) or asked


def submit(
    desk: Desk, asker: Asker, books: Sequence[Book], question: str, settings: Settings
) -> list[AskFuture]:
    """One question to many sessions, tokenised once and noted at once."""
    started_s = desk.clock()
    make = functools.cache(lambda: asker.ask(question, settings))
    found = [given_or_asked(desk, book, question, settings, ANY, make) for book in books]
    pairs = zip(books, found, strict=True)
    asks = [(book, one, 0) for book, one in pairs if isinstance(one, Asked)]
    computed = iter(desk.ask(asks, started_s))
    return [AskFuture.of(one) if isinstance(one, Answer) else next(computed) for one in found]


def _given(desk: Desk, answer: Answer, started_s: float) -> Answer:
    """An answer that was there already."""
    latency_s = desk.clock() - started_s
    if desk.recorder.given(answer.source, latency_s):
        with desk.lock:
            desk.recorder.count_given()
    return answer.given(latency_s)
