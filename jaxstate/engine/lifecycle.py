"""How sessions come to be and end: open, restore, come back from a journal, save, erase.

Comes in: what callers want, from any thread. Goes out: books that are admitted, or one clear
refusal and nothing changed; futures of what the loop's thread has to do. Does not know: text, how
steps are planned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.endings import erase_session
from jaxstate.engine.executor import Executor, HostCells, Saved, Tokens
from jaxstate.engine.forking import Forks
from jaxstate.engine.jobs import Job
from jaxstate.engine.openings import Origins
from jaxstate.engine.policies import QueuePolicy, kept_name
from jaxstate.engine.residence import TokenLog
from jaxstate.errors import CapacityExceeded, InvalidInput
from jaxstate.persist.changes import Opening
from jaxstate.persist.journal import Ticket
from jaxstate.records import checked_int
from jaxstate.text import Place

# The array of a saved session, beside its cells, that holds the tokens they were made of.
TOKENS = "tokens"


class Lifecycle(Forks):
    """Brings sessions into the books, and moves them.

    Args:
        desk: the books and their lock.
        executor: reads and writes saved sessions, on the caller's thread.
    """

    def __init__(self, desk: Desk, executor: Executor) -> None:
        super().__init__(desk)
        self._executor = executor

    def open(
        self,
        session_id: str | None,
        prefix: str,
        opening: Tokens,
        policy: QueuePolicy,
        *,
        first_place: Place,
        tenant: str,
        reserve: int | None,
        pinned: bool,
    ) -> tuple[Book, Ticket | None]:
        """A new session that will read its opening first.

        Args:
            session_id: not in use; None for one of our own.
            prefix: what it starts with.
            opening: the same in tokens, int32 [n], n >= 0.
            policy: of its queue.
            first_place: what its first entry follows.
            tenant: whose it is.
            reserve: cells that are always there for it; None for none.
            pinned: whether it never leaves the device.

        Returns:
            Its books, and what to wait for until it counts.

        Raises:
            InvalidInput: the id is in use, or an argument malformed.
            BudgetExceeded: the engine's cells, or the tenant's, are spoken for.
            CapacityExceeded: opening or reserve do not fit into a session.
        """
        limits, ledger = self._desk.limits, self._desk.ledger
        cells = _checked_cells(opening, reserve, limits.session_cells)
        self._check_policy(policy)
        chain = ledger.prefixes.chain(opening, tenant)  # hashes all of it, so without the lock
        with self._desk.changing():
            book = self._new_book(session_id, policy, tenant, pinned=pinned)
            book.residence.chain = chain
            self._admit(book, ledger.room.blocks_of(cells), len(opening))
            book.queue.open_with(opening)
            book.opened = book.opens = True
            book.first_place = first_place
            if not ledger.room.has_line and ledger.room.has_room_for(book):
                ledger.room.arrive(book, ledger.steps)
            return book, self._note(book, Origins(prefix=prefix, opening=opening))

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a saved session, on the caller's thread."""
        return self._executor.load(path)

    def restore(
        self,
        session_id: str | None,
        saved: Saved,
        version: int,
        policy: QueuePolicy,
        *,
        tenant: str,
    ) -> tuple[Book, Ticket | None]:
        """A session from a saved one; its cells come to the device as soon as there is room.

        Returns:
            Its books, and what to wait for until it counts.
        """
        self._check_policy(policy)
        self._check_known(saved)
        with self._desk.changing():
            book = self._new_book(session_id, policy, tenant, pinned=False)
            residence = book.residence
            tokens = _tokens_of(saved)
            residence.log = TokenLog(saved.cells.cells if tokens is None else 0)
            if tokens is not None:
                residence.log.append(tokens, [(version, len(tokens))])
            self._admit(book, 0, saved.cells.cells)
            self._desk.vault.put(book.key, saved.cells)
            residence.landed_cells = saved.cells.cells
            residence.place, residence.coming = "host", True
            book.number_from(version)
            book.commit(version, saved.cells.cells, self._desk.clock())
            book.opened = True
            return book, self._note(book, Origins(version=version, log=residence.log))

    def come_back(self, opening: Opening, state: CameBack) -> Book:
        """A session that a journal has; its cells come to the device as soon as there is room.

        Args:
            opening: how it came to be.
            state: what is known of it.

        Raises:
            BudgetExceeded, CapacityExceeded: this engine has no cells for all that it holds.
        """
        desk, ledger, log = self._desk, self._desk.ledger, state.log
        cells = len(log) + len(state.opening) + sum(len(tokens) for _, tokens in state.entries)
        _check_holds(opening.id, cells, desk.limits.session_cells)
        chain = ledger.prefixes.chain(state.prefix, opening.tenant)
        with desk.changing():
            book = self._new_book(opening.id, state.policy, opening.tenant, pinned=opening.pinned)
            book.log_key = opening.key
            self._admit(book, ledger.room.blocks_of(opening.reserve), cells)
            residence, now_s = book.residence, desk.clock()
            residence.log, residence.landed_cells = log, len(log)
            residence.chain = chain
            if state.version >= 0:
                book.commit(state.version, len(log), now_s)
            else:
                book.queue.open_with(state.opening)
            book.queue.bring_back(state.entries, state.last, now_s)
            for name in ("entries_pushed", "entries_recovered"):
                desk.recorder.count(name, len(state.entries))
            book.receipts = desk.keeper.receipts(opening.key)
            try:
                state.prepare(book)
            except BaseException:
                desk.outcomes.close(book, "it could not be brought back")
                raise
            book.opened = book.opens = True
            book.first_place = state.first_place
            return book

    def come_in(self) -> None:
        """Sessions that came back are brought to the device, before anybody needs them, as far as
        there is room for all of them: in the order of the books."""
        with self._desk.lock:
            room, blocks = self._desk.ledger.room, 0
            for book in tuple(self._desk.ledger.books.values())[: self._desk.limits.sessions]:
                blocks += max(book.residence.reserve_blocks, book.residence.ordered_blocks)
                if blocks > room.blocks:
                    return
                book.residence.coming = True
                room.update(book)

    def _check_policy(self, policy: QueuePolicy) -> None:
        if self._desk.keeper.journal is not None:
            kept_name(policy, self._desk.config.queue_policy)

    def _check_known(self, saved: Saved) -> None:
        """Refuses what a journal could not bring back.

        Raises:
            InvalidInput: it was saved without its tokens, and there is a journal.
        """
        if _tokens_of(saved) is None and self._desk.keeper.journal is not None:
            raise InvalidInput(
                "this session was saved without its tokens, so a journal could not bring it back; "
                "restore it in an engine without a journal, or read its text again"
            )

    def capture(
        self, book: Book, notes: dict[str, str | int]
    ) -> Future[Callable[[str | os.PathLike[str]], None]]:
        """Copies a session to the host at a version's border, which the notes get as "entries"; the
        future's result writes it, on whatever thread."""
        with self._desk.changing():
            book.check_open()
            future: Future[Callable[[str | os.PathLike[str]], None]] = Future()
            self.at_border(
                Job(
                    act=lambda: self._captured(book, {**notes, "entries": book.version}),
                    booked=lambda _: None,
                    future=future,
                    session=book,
                    border=book,
                )
            )
            return future

    def _captured(
        self, book: Book, notes: dict[str, str | int]
    ) -> Callable[[str | os.PathLike[str]], None]:
        residence = book.residence
        with self._desk.lock:
            book.check_open()
            count = residence.table.cells
            seen = residence.seen(book.key, count)
        cells = self._executor.fetch(seen, count)
        if residence.log.complete and cells.cells:
            tokens = residence.log.tokens(0, cells.cells)
            cells = HostCells(cells=cells.cells, arrays={**cells.arrays, TOKENS: tokens})
        return lambda path: self._executor.save(path, cells, notes)

    def erase(self, book: Book) -> None:
        """Ends a session of which nothing stays; waits for the journal, the device and the disk.

        Raises:
            JournalError: the journal could not be written, and the session is still open; or what
                was erased could not be removed from the journal's log.
            ClosedError: the engine is closed.
        """
        self._desk.check_may_wait()
        noted, wiped = erase_session(self._desk, book)
        self._desk.settled(noted)
        wiped.result()
        self._desk.vault.rest()
        self._desk.keeper.purge()

    def publish(self, opening: Tokens) -> None:
        """An opening that sessions of all tenants share from now on."""
        with self._desk.lock:
            self._desk.ledger.prefixes.publish(opening)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CameBack:
    """What a journal knows of a session.

    Attributes:
        log: what its cells are made of; empty if it is to be read from its opening on.
        version: that the log ends at; -1 for none.
        prefix: what it starts with, in tokens, int32 [n], as far as others may share it.
        opening: the same, if it is still to be read.
        entries: number and tokens of those that are still to be read.
        last: number of the last entry.
        policy: of its queue.
        first_place: what its first entry follows.
        prepare: leaves in the books, under the lock, what else is known.
    """

    log: TokenLog
    version: int
    prefix: Tokens
    opening: Tokens
    entries: Sequence[tuple[int, Tokens]]
    last: int
    policy: QueuePolicy
    first_place: Place
    prepare: Callable[[Book], None]


def _tokens_of(saved: Saved) -> Tokens | None:
    """What a saved session had read; None if it was saved without it. Nothing is not missing:
    arrays without elements are not kept."""
    tokens = saved.cells.arrays.get(TOKENS)
    if tokens is None:
        return np.zeros(0, np.int32) if saved.cells.cells == 0 else None
    return tokens.astype(np.int32)


def _check_holds(session_id: str, cells: int, most: int) -> None:
    if cells > most:
        raise CapacityExceeded(
            f"session {session_id!r} holds {cells} cells; a session of this engine holds {most}: "
            "start it with more session_cells="
        )


def _checked_cells(opening: Tokens, reserve: int | None, session_cells: int) -> int:
    """The reserve, which is within what a session holds, as the opening is."""
    if len(opening) > session_cells:
        raise CapacityExceeded(
            f"the opening has {len(opening)} tokens; a session of this engine holds "
            f"{session_cells} (session_cells=)"
        )
    if reserve is None:
        return 0
    cells = checked_int("reserve", reserve)
    if cells < 0:
        raise InvalidInput(f"reserve={reserve} must not be negative")
    if cells > session_cells:
        raise CapacityExceeded(
            f"reserve={reserve}: a session of this engine holds {session_cells} cells at most "
            "(session_cells=)"
        )
    return cells
