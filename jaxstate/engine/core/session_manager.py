"""The lives of sessions: opened, forked, restored, brought back, captured, closed, erased.

Comes in: calls of clients, what a journal or a file has of a session. Goes out: books in the
ledger, and futures of what only the loop can do. Does not know: how anything is computed.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from jaxstate.engine.core.desk import Desk, Job, refusal
from jaxstate.engine.core.ledger import border_of, check_rebuild, may_be_shared, shared_cells
from jaxstate.engine.executor.protocol import Executor, HostCells, Saved, Tokens
from jaxstate.engine.requests.encoding import Asker, checked_rebuild
from jaxstate.engine.sessions.record import Book, SavedCells
from jaxstate.engine.sessions.residence import Residence
from jaxstate.engine.sessions.token_log import Border, TokenLog
from jaxstate.engine.types.options import QueuePolicy, kept_name
from jaxstate.errors import BudgetExceeded, CapacityExceeded, InvalidInput, JournalError
from jaxstate.persist.changes import Opening, ended, erased, opened
from jaxstate.persist.journal import Ticket
from jaxstate.records import checked_int
from jaxstate.text import Place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origins:
    """What a session is made of: a text, or a saved session, or another session.

    Attributes:
        prefix: the text.
        opening: the same in tokens, int32 [n], with what the template wrote that day.
        version: that it starts at.
        log: what the saved session had read.
        parent: the key of the session that it was forked from.
    """

    prefix: str | None = None
    opening: Tokens | None = None
    version: int = 0
    log: TokenLog | None = None
    parent: int | None = None


def opening_of(book: Book, origins: Origins, desk: Desk) -> Opening:
    """A new session as the journal keeps it.

    Raises:
        InvalidInput: its policy cannot be kept.
    """
    residence, log, read = book.residence, origins.log, origins.opening
    if log is not None:
        read = log.tokens(0, len(log))
    return Opening(
        key=book.log_key,
        id=book.id,
        tenant=residence.tenant,
        reserve=residence.reserve_blocks * desk.limits.layout.block_cells,
        pinned=residence.pinned,
        policy=kept_name(book.queue.policy, desk.config.queue_policy),
        prefix=origins.prefix,
        base_version=origins.version,
        base_tokens=None if read is None else token_bytes(read),
        base_ends=None if log is None else ends_bytes(log.ends(0, len(log))),
        text_fingerprint=desk.keeper.text_fingerprint,
        parent=origins.parent,
    )


def opening_tokens(root: Opening, asker: Asker, text_fingerprint: str) -> Tokens:
    """What a session with a prefix starts with: as it was opened, if these tokenizer and template
    did it. (A template may write the date.)"""
    if root.base_tokens is not None and root.text_fingerprint == text_fingerprint:
        return tokens_of(root.base_tokens)
    return asker.opening(root.prefix or "")


def token_bytes(tokens: Tokens) -> bytes:
    """Int32 tokens as they are kept."""
    return tokens.astype("<i4").tobytes()


def tokens_of(kept: bytes) -> Tokens:
    """The tokens again."""
    return np.frombuffer(kept, "<i4").astype(np.int32)


def ends_bytes(ends: list[tuple[int, int]]) -> bytes:
    """Pairs (entry, tokens up to its end) as they are kept."""
    return np.array(ends, "<i8").tobytes()


def ends_of(kept: bytes) -> list[tuple[int, int]]:
    """The pairs again."""
    pairs = np.frombuffer(kept, "<i8").reshape(-1, 2).tolist()
    return [(entry, count) for entry, count in pairs]


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


def close_session(desk: Desk, book: Book, reason: str) -> Ticket | None:
    """Ends a session; its asks, waiters and subscribers hear of it.

    Returns:
        What to wait for until it has ended; None if it has.

    Raises:
        ClosedError: the engine is closed, and the session is in its journal: it comes back.
    """
    with desk.lock:
        if not book.log_key:  # no journal knows it
            desk.outcomes.close(book, reason)
            desk.tell_loop()
            return None
        if book.has_ended:
            return None
        if desk.ended is not None:
            raise refusal(desk.ended)
        book.ending = True
        end = functools.partial(_end, desk, book, reason)
        return desk.keeper.note(ended(book.log_key), undo=book.stays, apply=end)


def _end(desk: Desk, book: Book, reason: str) -> None:
    book.has_ended = True
    desk.outcomes.close(book, reason)


def erase_session(desk: Desk, book: Book) -> tuple[Ticket | None, Future[None]]:
    """Ends a session of which nothing may stay.

    Returns:
        What to wait for until the journal has forgotten it, and until the device has.
    """
    wiped: Future[None] = Future()
    with desk.changing():
        book.ending = True
        erase = functools.partial(_erase, desk, book, wiped)
        # Always synced before it is said to be done, whatever the engine promises for the rest.
        level = "fsync" if book.log_key else None
        return desk.keeper.note(erased(book.log_key), level, undo=book.stays, apply=erase), wiped


def _erase(desk: Desk, book: Book, wiped: Future[None]) -> None:
    _end(desk, book, "it was erased by its user")
    desk.ledger.prefixes.forget(book.residence.chain)
    if desk.ended is None:
        desk.wipes.append(wiped)
    else:  # no loop is there to do it, and no pool that would stay
        wiped.set_result(None)


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
