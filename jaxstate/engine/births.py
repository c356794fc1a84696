"""How a new session comes into the books: its name, its place in the budget, its journal.

Comes in: what a session is made of; the caller holds the lock. Goes out: books that are admitted,
or one clear refusal and nothing changed. Does not know: cells, the loop, where sessions come from.
"""

from __future__ import annotations

import itertools
import re
from typing import TypeVar, cast

from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.jobs import Job
from jaxstate.engine.openings import Origins, opening_of
from jaxstate.engine.policies import QueuePolicy
from jaxstate.engine.residence import Residence
from jaxstate.errors import BudgetExceeded, InvalidInput, JournalError
from jaxstate.persist.changes import opened
from jaxstate.persist.journal import Ticket

T = TypeVar("T")
_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,128}")


class Births:
    """What all ways to a new session have in common.

    Args:
        desk: the books and their lock.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def _admit(self, book: Book, reserve_blocks: int, cells: int) -> None:
        """Into the budget, or out of the books again."""
        try:
            self._desk.ledger.room.admit(book, reserve_blocks, cells)
        except BudgetExceeded:
            self._forget(book)
            raise

    def free_name(self, name: str) -> str:
        """A name that a session may have.

        Raises:
            InvalidInput: it is malformed, or in use.
        """
        _check_name("id", name)
        with self._desk.lock:
            self._check_free(name)
        return name

    def _check_free(self, name: str) -> None:
        ledger = self._desk.ledger
        if name in ledger.by_id:
            raise InvalidInput(
                f"session {name!r} is open already: engine.session({name!r}), or choose another id"
            )
        if name in ledger.lost:
            raise InvalidInput(
                f"session {name!r} is in the journal, but could not be brought back: "
                f"{ledger.lost[name]}. Choose another id, or remove it with engine.erase({name!r})"
            )

    def _forget(self, book: Book) -> None:
        """It never was."""
        self._desk.ledger.books.pop(book.key)
        self._desk.ledger.by_id.pop(book.id, None)

    def _new_book(
        self, session_id: str | None, policy: QueuePolicy, tenant: str, *, pinned: bool
    ) -> Book:
        ledger = self._desk.ledger
        name = self._free_id() if session_id is None else session_id
        _check_name("id", name)
        self._check_free(name)
        _check_name("tenant", tenant)
        book = ledger.by_id[name] = self._add_book(name, policy, tenant, pinned=pinned)
        return book

    def _add_book(
        self, name: str, policy: QueuePolicy, tenant: str, *, pinned: bool = False
    ) -> Book:
        """Books of a session that has read nothing."""
        ledger = self._desk.ledger
        table, used_s = ledger.tables.new(), self._desk.clock()
        residence = Residence(table=table, tenant=tenant, pinned=pinned, used_s=used_s)
        book = Book(ledger.new_key(), name, policy, self._desk.config, residence)
        ledger.books[book.key] = book
        return book

    def _free_id(self) -> str:
        taken = {*self._desk.ledger.by_id, *self._desk.ledger.lost}
        return next(name for n in itertools.count(1) if (name := f"s{n}") not in taken)

    def at_border(self, job: Job[T]) -> None:
        """A job that needs a session on the device, at the end of an entry; the caller holds the
        lock."""
        self._desk.jobs.append(cast("Job[object]", job))
        assert job.border is not None
        job.border.border_jobs += 1
        job.border.residence.used_s = self._desk.clock()
        job.border.residence.coming = not job.border.residence.on_device
        self._desk.ledger.room.update(job.border)

    def _note(self, book: Book, origins: Origins) -> Ticket | None:
        """Tells the journal of a new session, which is closed if it cannot be kept."""
        desk = self._desk
        if desk.keeper.journal is None:
            return None
        book.log_key, error = desk.keeper.new_key(), JournalError("it could not be journaled")
        book.receipts = desk.keeper.receipts(book.log_key)
        book.noted = desk.keeper.note(
            opened(opening_of(book, origins, desk)),
            undo=lambda: desk.outcomes.close(book, str(error), error),
        )
        return book.noted


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{what}={name!r} must be 1 to 128 of A-Z a-z 0-9 _ . - and not dots alone"
        )
