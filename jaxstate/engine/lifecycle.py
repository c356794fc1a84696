"""How sessions come to be, move and multiply: open, restore, fork, save, suspend, resume.

Comes in: what callers want, from any thread. Goes out: books that are admitted, or one clear
refusal and nothing changed; futures of what the loop's thread has to do. Does not know: text, how
steps are planned.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from jaxstate.engine.asking import checked_rebuild
from jaxstate.engine.books import Book, SavedCells
from jaxstate.engine.desk import Desk
from jaxstate.engine.executor import Executor, HostCells, Saved, Tokens
from jaxstate.engine.jobs import Job
from jaxstate.engine.openings import Origins, opening_of
from jaxstate.engine.policies import QueuePolicy, kept_name
from jaxstate.engine.residence import Border, Residence, TokenLog
from jaxstate.engine.versions import border_of, check_rebuild, may_be_shared, shared_cells
from jaxstate.errors import BudgetExceeded, CapacityExceeded, InvalidInput, JournalError
from jaxstate.persist.changes import Opening, opened
from jaxstate.persist.journal import Ticket
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
        prefix: str,
        opening: Tokens,
        policy: QueuePolicy,
        *,
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
        with self._desk.changing():
            book = self._new_book(session_id, policy, tenant, pinned=pinned)
            book.residence.chain = ledger.prefixes.chain(opening, tenant)
            self._admit(book, ledger.room.blocks_of(cells), len(opening))
            book.queue.open_with(opening)
            book.opened = book.opens = True
            if not ledger.room.has_line and ledger.room.has_room_for(book):
                ledger.room.arrive(book, ledger.steps)
            return book, self._note(book, Origins(prefix=prefix))

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
        cells = len(log) + len(state.opening) + sum(len(tokens) for _, tokens, _ in state.entries)
        _check_holds(opening.id, cells, desk.limits.session_cells)
        with desk.changing():
            book = self._new_book(opening.id, state.policy, opening.tenant, pinned=opening.pinned)
            book.log_key = opening.key
            self._admit(book, ledger.room.blocks_of(opening.reserve), cells)
            residence, now_s = book.residence, desk.clock()
            residence.log, residence.landed_cells = log, len(log)
            residence.chain = ledger.prefixes.chain(state.prefix, opening.tenant)
            if state.version >= 0:
                book.commit(state.version, len(log), now_s)
            else:
                book.queue.open_with(state.opening)
            book.queue.bring_back(state.entries, state.last, now_s)
            for name in ("entries_pushed", "entries_recovered"):
                desk.recorder.count(name, len(state.entries))
            book.opened = book.opens = True
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
        if TOKENS not in saved.cells.arrays and self._desk.keeper.journal is not None:
            raise InvalidInput(
                "this session was saved without its tokens, so a journal could not bring it back; "
                "restore it in an engine without a journal, or read its text again"
            )

    def _note(self, book: Book, origins: Origins) -> Ticket | None:
        """Tells the journal of a new session, which is closed if it cannot be kept."""
        desk = self._desk
        if desk.keeper.journal is None:
            return None
        book.log_key, error = desk.keeper.new_key(), JournalError("it could not be journaled")
        book.receipts = desk.keeper.receipts(book.log_key)
        return desk.keeper.note(
            opened(opening_of(book, origins, desk)),
            undo=lambda: desk.outcomes.close(book, str(error), error),
        )

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
        residence.landed_cells = border.cells
        self._desk.ledger.room.admit(book, 0, border.cells)
        book.number_from(border.version)
        book.commit(border.version, border.cells, self._desk.clock())
        book.opened = True

    def _note_fork(self, book: Book, parent: Book) -> None:
        """The pieces of its parent's snapshot are its own; the journal hears of it."""
        book.saved = SavedCells(segments=parent.saved.until(book.seen_cells))
        book.noted = self._note(book, Origins(version=book.version, parent=parent.log_key))

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
            JournalError: the journal could not be written; nothing was erased.
            ClosedError: the engine is closed.
        """
        self._desk.check_may_wait()
        noted, wiped = self._desk.erase_session(book)
        self._desk.settled(noted)
        wiped.result()
        self._desk.keeper.purge()

    def publish(self, opening: Tokens) -> None:
        """An opening that sessions of all tenants share from now on."""
        with self._desk.lock:
            self._desk.ledger.prefixes.publish(opening)

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CameBack:
    """What a journal knows of a session.

    Attributes:
        log: what its cells are made of; empty if it is to be read from its opening on.
        version: that the log ends at; -1 for none.
        prefix: what it starts with, in tokens, int32 [n], as far as others may share it.
        opening: the same, if it is still to be read.
        entries: number, tokens and key of those that are still to be read.
        last: number of the last entry.
        policy: of its queue.
    """

    log: TokenLog
    version: int
    prefix: Tokens
    opening: Tokens
    entries: Sequence[tuple[int, Tokens, Hashable | None]]
    last: int
    policy: QueuePolicy


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


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{what}={name!r} must be 1 to 128 of A-Z a-z 0-9 _ . - and not dots alone"
        )
