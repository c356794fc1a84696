"""How sessions come to be, move and multiply: open, restore, fork, save, suspend, resume.

Comes in: what callers want, from any thread. Goes out: books that are admitted, or one clear
refusal and nothing changed; futures of what the loop's thread has to do. Does not know: text, how
steps are planned.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar, cast

import numpy as np

from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.executor import Executor, HostCells, Saved, Tokens
from jaxstate.engine.ingest import QueuePolicy
from jaxstate.engine.jobs import Job
from jaxstate.engine.residence import Residence, TokenLog
from jaxstate.errors import BudgetExceeded, CapacityExceeded, InvalidInput
from jaxstate.records import checked_int

T = TypeVar("T")
_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,128}")
# The array of a saved session, beside its cells, that holds the tokens they were made of.
TOKENS = "tokens"


class Lifecycle:
    """Brings sessions into the books, and moves them.

    Args:
        desk: the books and their lock.
        executor: reads and writes saved sessions, on the caller's thread.
    """

    def __init__(self, desk: Desk, executor: Executor) -> None:
        self._desk = desk
        self._executor = executor

    def open(
        self,
        session_id: str | None,
        opening: Tokens,
        policy: QueuePolicy,
        *,
        tenant: str,
        reserve: int | None,
        pinned: bool,
    ) -> Book:
        """A new session that will read its opening first.

        Args:
            session_id: not in use; None for one of our own.
            opening: int32 [n], n >= 0.
            policy: of its queue.
            tenant: whose it is.
            reserve: cells that are always there for it; None for none.
            pinned: whether it never leaves the device.

        Raises:
            InvalidInput: the id is in use, or an argument malformed.
            BudgetExceeded: the engine's cells, or the tenant's, are spoken for.
            CapacityExceeded: opening or reserve do not fit into a session.
        """
        limits, ledger = self._desk.limits, self._desk.ledger
        cells = _checked_cells(opening, reserve, limits.session_cells)
        with self._desk.changing():
            book = self._new_book(session_id, policy, tenant, pinned=pinned)
            book.residence.chain = ledger.prefixes.chain(opening, tenant)
            self._admit(book, ledger.room.blocks_of(cells), len(opening))
            book.queue.open_with(opening)
            book.opened = book.opens = True
            if not ledger.room.has_line and ledger.room.has_room_for(book):
                ledger.room.arrive(book, ledger.steps)
        return book

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
    ) -> Book:
        """A session from a saved one; its cells come to the device as soon as there is room."""
        with self._desk.changing():
            book = self._new_book(session_id, policy, tenant, pinned=False)
            residence = book.residence
            tokens = saved.cells.arrays.get(TOKENS)
            residence.log = TokenLog(saved.cells.cells if tokens is None else 0)
            if tokens is not None:
                residence.log.append(tokens.astype(np.int32), [(version, len(tokens))])
            self._admit(book, 0, saved.cells.cells)
            self._desk.vault.put(book.key, saved.cells)
            residence.landed_cells = saved.cells.cells
            residence.place, residence.coming = "host", True
            book.number_from(version)
            book.commit(version, saved.cells.cells, self._desk.clock())
            book.opened = True
        return book

    def fork(self, parent: Book, session_id: str | None) -> tuple[Book, Future[None]]:
        """A session that has read what another has at that moment, and goes its own way."""
        with self._desk.changing():
            parent.check_open()
            tenant = parent.residence.tenant
            book = self._new_book(session_id, parent.queue.policy, tenant, pinned=False)
            future: Future[None] = Future()
            self._at_border(
                Job(
                    act=lambda: self._fork_now(parent, book),
                    booked=lambda _: None,
                    future=future,
                    session=book,
                    border=parent,
                    creates=True,
                )
            )
            return book, future

    def _fork_now(self, parent: Book, book: Book) -> None:
        """On the loop's thread: a table that shares every block, nothing for the device to do."""
        ledger = self._desk.ledger
        with self._desk.lock:
            parent.check_open()
            book.check_open()
            residence, source = book.residence, parent.residence
            residence.log, residence.landed_cells = source.log.copy(), source.landed_cells
            ledger.room.admit(book, 0, len(residence.log))
            if ledger.room.has_room(ledger.tables.fork_blocks(source.table)):
                residence.table = ledger.tables.fork(source.table)
                ledger.room.arrive(book, ledger.steps)
                residence.there_cells = residence.table.cells
                ledger.room.update(parent)
            elif not residence.log.complete:
                raise BudgetExceeded(
                    f"session {parent.id!r} cannot be forked now: the pool is full, and its copy "
                    "could not be computed later, since it was saved without its tokens"
                )
            book.number_from(parent.version)
            book.commit(parent.version, len(residence.log), self._desk.clock())
            book.opened = True
            self._desk.outcomes.reached(book)

    def capture(
        self, book: Book, notes: dict[str, str | int]
    ) -> Future[Callable[[str | os.PathLike[str]], None]]:
        """Copies a session to the host at a version's border, which the notes get as "entries"; the
        future's result writes it, on whatever thread."""
        with self._desk.changing():
            book.check_open()
            future: Future[Callable[[str | os.PathLike[str]], None]] = Future()
            self._at_border(
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

    def suspend(self, book: Book) -> Future[None]:
        """Its cells leave the device, and it gives its reserve up."""
        with self._desk.changing() as ledger:
            book.check_open()
            if book.residence.pinned:
                raise InvalidInput(
                    f"session {book.id!r} is pinned, so it stays on the device; close it, or open "
                    'it with residency="evictable"'
                )
            book.residence.coming = False
            future: Future[None] = Future()
            if book.residence.on_device:
                book.residence.leaving = True
                book.leave_waiters = _wanted(book.leave_waiters, future)
            else:
                book.residence.reserve_blocks = 0
                future.set_result(None)
                self._desk.outcomes.moved(book)
            ledger.room.update(book)
            return future

    def resume(self, book: Book) -> Future[None]:
        """Its cells come to the device as soon as there is room, before anybody needs them."""
        with self._desk.changing() as ledger:
            book.check_open()
            residence, future = book.residence, Future[None]()
            residence.leaving, residence.used_s = False, self._desk.clock()
            if residence.whole:
                future.set_result(None)
            else:
                residence.coming = not residence.on_device
                book.come_waiters = _wanted(book.come_waiters, future)
            self._desk.outcomes.moved(book)
            ledger.room.update(book)
            return future

    def publish(self, opening: Tokens) -> None:
        """An opening that sessions of all tenants share from now on."""
        with self._desk.lock:
            self._desk.ledger.prefixes.publish(opening)

    def _admit(self, book: Book, reserve_blocks: int, cells: int) -> None:
        """Into the budget, or out of the books again."""
        ledger = self._desk.ledger
        try:
            ledger.room.admit(book, reserve_blocks, cells)
        except BudgetExceeded:
            del ledger.books[book.key], ledger.by_id[book.id]
            raise

    def _new_book(
        self, session_id: str | None, policy: QueuePolicy, tenant: str, *, pinned: bool
    ) -> Book:
        ledger = self._desk.ledger
        name = self._free_id() if session_id is None else session_id
        _check_name("id", name)
        if name in ledger.by_id:
            raise InvalidInput(f"session {name!r} is open already: engine.session({name!r})")
        _check_name("tenant", tenant)
        table, used_s = ledger.tables.new(), self._desk.clock()
        residence = Residence(table=table, tenant=tenant, pinned=pinned, used_s=used_s)
        book = Book(ledger.new_key(), name, policy, self._desk.config, residence)
        ledger.books[book.key] = ledger.by_id[name] = book
        return book

    def _free_id(self) -> str:
        by_id = self._desk.ledger.by_id
        return next(name for n in itertools.count(1) if (name := f"s{n}") not in by_id)

    def _at_border(self, job: Job[T]) -> None:
        """A job that needs a session on the device, at the end of an entry."""
        self._desk.jobs.append(cast("Job[object]", job))
        assert job.border is not None
        job.border.border_jobs += 1
        job.border.residence.used_s = self._desk.clock()
        job.border.residence.coming = not job.border.residence.on_device
        self._desk.ledger.room.update(job.border)


def _wanted(waiters: list[Future[None]], future: Future[None]) -> list[Future[None]]:
    """One more; those that were given up would otherwise stay until the next move."""
    return [*(one for one in waiters if not one.cancelled()), future]


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


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{what}={name!r} must be 1 to 128 of A-Z a-z 0-9 _ . - and not dots alone"
        )
