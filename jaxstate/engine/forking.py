"""Sessions made from another, at its newest version or an earlier one.

Comes in: a session, and the version to start from. Goes out: a session that has read the same, and
shares its cells as far as they are there. Does not know: text, how steps are planned.
"""

from __future__ import annotations

from concurrent.futures import Future

from jaxstate.engine.asking import checked_rebuild
from jaxstate.engine.births import Births
from jaxstate.engine.books import Book, SavedCells
from jaxstate.engine.jobs import Job
from jaxstate.engine.openings import Origins
from jaxstate.engine.residence import Border
from jaxstate.engine.versions import border_of, check_rebuild, may_be_shared, shared_cells
from jaxstate.errors import BudgetExceeded


class Forks(Births):
    """Makes them."""

    def fork(
        self,
        parent: Book,
        session_id: str | None,
        version: int | None = None,
        rebuild_tokens: int = 0,
    ) -> tuple[Book, Future[None]]:
        """A session that has read what another has, and goes its own way.

        Args:
            parent: the other one's.
            session_id: not in use; None for one of our own.
            version: what it has read; None for all that the other has at that moment.
            rebuild_tokens: that may be computed again, if the other does not hold that version.

        Returns:
            It, and when it can be used.

        Raises:
            InvalidInput: the other has no such version, or the id is in use or malformed.
            VersionUnavailable: it does not hold that version, which takes more to compute.
            BudgetExceeded: there are no cells to compute it.
        """
        may_compute = checked_rebuild(rebuild_tokens)
        with self._desk.changing() as ledger:
            parent.check_open()
            border = None if version is None else border_of(parent, "version", version)
            future: Future[None] = Future()
            if border is not None and not may_be_shared(ledger, parent, border):
                check_rebuild(ledger, parent, border, may_compute, forks=True)
                book = self._computed(parent, border, session_id)
                future.set_result(None)
                return book, future
            tenant = parent.residence.tenant
            book = self._new_book(session_id, parent.queue.policy, tenant, pinned=False)
            self.at_border(
                Job(
                    act=lambda: self._fork_now(parent, book, border, may_compute),
                    booked=lambda _: None,
                    future=future,
                    session=book,
                    border=parent,
                    creates=True,
                    midway=border is not None,
                )
            )
            return book, future

    def _fork_now(
        self, parent: Book, book: Book, border: Border | None, rebuild_tokens: int
    ) -> None:
        """On the loop's thread: a table that shares its blocks, nothing for the device to do."""
        ledger = self._desk.ledger
        with self._desk.lock:
            parent.check_open()
            book.check_open()
            border = border or parent.border
            shares = may_be_shared(ledger, parent, border)
            if not shares:  # more was read since it was asked for
                check_rebuild(ledger, parent, border, rebuild_tokens, forks=True)
                book.residence.coming = True
            self._has_read(book, parent, border)
            if shares and self._share(book, parent):
                ledger.room.update(parent)
            elif not book.residence.log.complete:
                raise BudgetExceeded(
                    f"session {parent.id!r} cannot be forked now: the pool is full, and its copy "
                    "could not be computed later, since it was saved without its tokens"
                )
            self._note_fork(book, parent)
            self._desk.outcomes.reached(book)

    def _has_read(self, book: Book, parent: Book, border: Border) -> None:
        """A new session is at a version of another's; its cells are to be computed yet."""
        residence = book.residence
        residence.log = parent.residence.log.copy(border.cells)
        book.first_place = parent.first_place
        residence.landed_cells = border.cells
        self._desk.ledger.room.admit(book, 0, border.cells)
        book.number_from(border.version)
        book.commit(border.version, border.cells, self._desk.clock())
        book.opened = True

    def _note_fork(self, book: Book, parent: Book) -> None:
        """The pieces of its parent's snapshot are its own; the journal hears of it."""
        book.saved = SavedCells(segments=parent.saved.until(book.seen_cells))
        self._note(book, Origins(version=book.version, parent=parent.log_key))

    def _share(self, book: Book, parent: Book) -> bool:
        """Lets it have the cells of the other's table, if there is room for one session more."""
        ledger, residence, source = self._desk.ledger, book.residence, parent.residence
        cells = shared_cells(parent, book.border)
        blocks = ledger.room.blocks_of(book.seen_cells) - ledger.room.blocks_of(cells)
        if not ledger.room.has_room(ledger.tables.fork_blocks(cells) + blocks):
            return False
        residence.table = ledger.tables.fork(source.table, cells)
        ledger.room.arrive(book, ledger.steps)
        residence.there_cells = cells
        residence.oldest_cells = min(ledger.oldest_held(source), cells)
        return True

    def stand_in(self, parent: Book, border: Border) -> Book:
        """A session that nobody sees, to be computed at a version of another; the caller holds the
        lock, and closes it.

        Raises:
            BudgetExceeded: there are no cells for it.
        """
        book = self._add_book(
            f"{parent.id}@{border.version}", parent.queue.policy, parent.residence.tenant
        )
        book.stands_for = parent
        self._read_again(book, parent, border)
        parent.stand_ins.append(book)
        return book

    def _computed(self, parent: Book, border: Border, session_id: str | None) -> Book:
        """A fork that is computed from the other's token log, as soon as there is room."""
        tenant = parent.residence.tenant
        book = self._new_book(session_id, parent.queue.policy, tenant, pinned=False)
        book.residence.coming = True
        self._read_again(book, parent, border)
        self._note_fork(book, parent)
        return book

    def _read_again(self, book: Book, parent: Book, border: Border) -> None:
        """Into the budget, or out of the books again; what is kept of its opening it need not
        read."""
        book.residence.chain = parent.residence.chain
        try:
            self._has_read(book, parent, border)
        except BudgetExceeded:
            self._forget(book)
            raise
