"""Moves sessions between the device, the host's memory and the disk, on the loop's thread.

Comes in: a `Move` that the room decided. Goes out: cells copied, or given up to be computed again;
books, events and whoever waits for the move are told. Nothing is in flight while a move is made.
Does not know: why a session moves.

A session that leaves is copied to the host, or its cells are given up: coming back then means
reading its tokens again. Which of the two is cheaper follows from what copying and reading took so
far; until both were measured, and where the tokens are not known, cells are copied.
"""

from __future__ import annotations

import logging

from jaxstate.engine.core.desk import Desk
from jaxstate.engine.executor.protocol import Executor, HostCells
from jaxstate.engine.memory.swap_policy import Move
from jaxstate.engine.sessions.record import Book
from jaxstate.engine.types.values import Moved

_log = logging.getLogger("jaxstate")


class Mover:
    """Makes moves.

    Args:
        desk: the books.
        executor: the device.
    """

    def __init__(self, desk: Desk, executor: Executor) -> None:
        self._desk = desk
        self._executor = executor

    def make(self, move: Move) -> Exception | None:
        """Makes a move; what the device said if it failed.

        Cells that could not be placed are still on the host, and are tried once more; else the
        session is computed again.
        """
        try:
            if move.to == "host":
                self._from_disk(move.book)
            elif move.to == "device":
                self._to_device(move.book)
            else:
                self._away(move.book)
        except Exception as error:
            _log.exception("session %r could not be moved", move.book.id)
            self._failed(move.book, error)
            return error
        return None

    def _from_disk(self, book: Book) -> None:
        with self._desk.lock:
            if not self._desk.vault.want(book.key):
                self._desk.look_for(book)

    def _away(self, book: Book) -> None:
        desk, residence = self._desk, book.residence
        with desk.lock:
            if book.closed or not residence.on_device:
                return
            keeps = self._keeps(book)
            count = residence.table.cells
            # An entry may be half read: questions go on looking at the version before it.
            sees_back = desk.ledger.readable(book.seen_cells, count)
            readable_cells = book.seen_cells if sees_back else count
            seen, residence.there_cells = residence.seen(book.key, count), 0
            began_s = desk.clock()
        cells = self._executor.fetch(seen, readable_cells) if keeps else None
        with desk.lock:
            if book.closed:
                return
            took_s = desk.clock() - began_s
            desk.outcomes.send_away(book)
            if cells is not None:
                desk.vault.put(book.key, cells)
                residence.place, residence.failures = "host", 0
                residence.oldest_cells = desk.ledger.oldest_copied(readable_cells)
                desk.recorder.moved(cells.bytes, took_s)
            desk.outcomes.drop_unreadable(book)
            desk.recorder.count("sessions_suspended")
            self._tell(book, took_s)

    def _to_device(self, book: Book) -> None:
        desk, residence = self._desk, book.residence
        with desk.lock:
            if not (self._is_wanted(book) and desk.ledger.room.has_room_for(book)):
                return
            cells = self._kept(book)
            if book.closed or (cells is None and residence.place != "log"):
                return
            if cells is None:
                residence.oldest_cells = 0
            else:
                desk.ledger.tables.grow(residence.table, cells.cells)
            desk.ledger.room.arrive(book, desk.ledger.steps)
            seen, began_s = residence.seen(book.key, residence.table.cells), desk.clock()
        if cells is not None:
            self._executor.place(seen, cells)
        with desk.lock:
            if book.closed:
                return
            took_s = desk.clock() - began_s
            desk.vault.drop(book.key)
            residence.used_s = desk.clock()
            if cells is not None:
                residence.failures, residence.there_cells = 0, cells.cells
                desk.recorder.moved(cells.bytes, took_s)
            desk.recorder.count("sessions_resumed")
            self._tell(book, took_s)

    def _is_wanted(self, book: Book) -> bool:
        """Whether it is still to come: it may have been suspended, or closed, meanwhile."""
        wants = book.residence.coming or book.border_jobs > 0
        return not book.closed and (wants or book.has_work(self._desk.clock()))

    def _kept(self, book: Book) -> HostCells | None:
        """Its cells in memory; None if they went to disk meanwhile, or were lost."""
        cells = self._desk.vault.get(book.key)
        if cells is None:
            self._desk.look_for(book)
        return cells

    def _keeps(self, book: Book) -> bool:
        """Whether a session that leaves is copied; else it is computed again when it comes back."""
        residence, config = book.residence, self._desk.config
        if residence.table.cells == 0 or residence.missing:
            return False
        if not residence.log.complete or config.resume == "copy":
            return True
        if config.resume == "rebuild":
            return False
        limits, recorder = self._desk.limits, self._desk.recorder
        size_bytes = limits.layout.bytes_of(residence.cells, limits.itemsize)
        if config.disk_path is None and self._desk.vault.bytes + size_bytes > config.host_bytes:
            return False
        copy_s, rebuild_s = recorder.copy_s(size_bytes), recorder.read_s(residence.cells)
        return copy_s is None or rebuild_s is None or 2 * copy_s <= rebuild_s

    def _failed(self, book: Book, error: Exception) -> None:
        """The device failed: what it has of the session cannot be trusted. A copy on the host can,
        unless it was that which failed, twice in a row."""
        desk, residence = self._desk, book.residence
        with desk.lock:
            if book.closed:
                return
            residence.failures += 1
            if residence.failures > 1:
                desk.vault.drop(book.key)
            if desk.vault.where(book.key) == "log" and not residence.log.complete:
                if residence.failures > 1:
                    desk.outcomes.break_session(book, error)
                residence.there_cells = residence.table.cells
                return  # nothing else has them, so they stay
            if residence.on_device:
                desk.outcomes.send_away(book)
            desk.look_for(book)
            if residence.place == "log":
                residence.failures = 0  # reading it again is another thing
            desk.outcomes.moved(book)

    def _tell(self, book: Book, took_s: float) -> None:
        residence = book.residence
        event = Moved(to=residence.place, cells=residence.cells, took_s=took_s)
        self._desk.outcomes.tell(book, event)
        self._desk.outcomes.moved(book)
