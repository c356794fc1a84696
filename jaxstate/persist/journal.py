"""The journal: what was acknowledged, in one SQLite database, written by one thread.

    PATH/journal.db          sessions, entries, receipts, questions, and which snapshots there are
    PATH/segments/NAME/      cells of snapshots (`segments`)
    PATH/lock                held by the engine that has it

Comes in: changes, from any thread, in an order that the caller's lock decides. Goes out: word that
they are kept, or that they could not be. Changes that wait are written together (group commit), so
many pushes share one sync. Does not know: what the changes mean (`changes`), sessions, tokens.

Levels: "os" means written to the operating system (a killed process loses nothing), "fsync" synced
to the disk (a machine that stops loses nothing). The database is in WAL mode: a torn last page is a
change that was never acknowledged, and is passed over.

A disk that is full refuses changes until there is room. Where the disk itself fails nobody knows
what of a change it has, and a kernel may call clean what was never written: then the journal takes
no more changes until it is opened anew, and finds out what is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from jaxstate.errors import JournalError
from jaxstate.persist.places import (
    DATABASE,
    SEGMENTS,
    Connect,
    connect,
    locked,
    opened,
    read_only,
)
from jaxstate.persist.segments import SegmentStore
from jaxstate.records import LEVELS, Durability

_log = logging.getLogger("jaxstate")

# After a failure, what must still be written is tried again so often.
RETRY_S = 1.0
# Whoever erased something waits so long for the log to be emptied.
COMPACT_S = 30.0

Change: TypeAlias = Callable[[sqlite3.Connection], None]


@dataclass(slots=True, eq=False)
class PendingWrite:
    """A change that is to be written.

    Attributes:
        change: makes it, within a transaction.
        level: what it is to outlive. "memory": it has taken effect already, and if it cannot be
            written it stays in line.
        apply: what takes effect once it is written.
        awaited: whether whoever makes it waits until it is written.
        settled: ends once it is written, or could not be. It cannot be cancelled: others may wait
            for it too.
        hopeless: it never can be written, since it contradicts what is there, or has values that no
            database takes.
    """

    change: Change
    level: Durability
    apply: Callable[[], None] = lambda: None
    awaited: bool = True
    settled: Future[None] = field(default_factory=Future)
    hopeless: bool = False

    def __post_init__(self) -> None:
        """Nobody cancels it."""
        self.settled.set_running_or_notify_cancel()

    @property
    def stays(self) -> bool:
        """Whether it has taken effect already, so that it must be written in the end."""
        return self.level == "memory" and not self.hopeless


Settle: TypeAlias = Callable[[Sequence[PendingWrite], JournalError | None], None]


class Journal:
    """The journal of one engine.

    Args:
        path: a directory; made if it is not there.
        connect: opens the database (tests let it fail).

    Attributes:
        path: absolute.
        segments: pieces of the snapshots that it names.
        settle: called on the writer's thread with tickets that are written, or could not be; set
            before the first ticket. What stays in line is given back with `put_back`.

    Raises:
        JournalInUse: another engine has it.
        JournalDamaged: the database cannot be read, or is something else.
        JournalError: the directory cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str], *, connect: Connect = connect) -> None:
        self.path = Path(path).absolute()
        self.settle: Settle = _no_settle
        self._waiting: deque[PendingWrite] = deque()
        self._vacuums: list[Future[None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._failed: JournalError | None = None
        self._lock = locked(self.path)
        self.segments = SegmentStore(self.path / SEGMENTS)
        try:
            self._connection = opened(self.path / DATABASE, connect)
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(target=self._run, name="jaxstate-journal", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Changes in line."""
        return len(self._waiting)

    def check(self) -> None:
        """Refuses changes that could never be written.

        Raises:
            JournalError: the journal is closed, or its disk has failed.
        """
        if self._closing:
            raise JournalError("the journal is closed; nothing was added")
        if self._failed is not None:
            raise JournalError(f"{self._failed}; nothing was added") from self._failed.__cause__

    def submit(self, ticket: PendingWrite) -> None:
        """Puts a change in line, behind all before it.

        Raises:
            JournalError: as `check`.
        """
        with self._wake:
            self.check()
            self._waiting.append(ticket)
            self._wake.notify()

    def drain(self) -> list[PendingWrite]:
        """Takes everything out of line; the caller holds the lock under which changes come."""
        with self._wake:
            tickets = list(self._waiting)
            self._waiting.clear()
            return tickets

    def put_back(self, tickets: Sequence[PendingWrite]) -> None:
        """Puts changes in front of all others."""
        with self._wake:
            self._waiting.extendleft(reversed(tickets))

    def write(self, change: Change, level: Durability = "fsync") -> None:
        """Makes a change behind all before it, and waits for it.

        Raises:
            JournalError: it could not be written.
        """
        ticket = PendingWrite(change, level)
        self.submit(ticket)
        ticket.settled.result()

    def read(self) -> sqlite3.Connection:
        """A connection that reads what is committed; the caller closes it."""
        return read_only(self.path)

    def compact(self) -> None:
        """Writes the database anew and empties its log, so that nothing erased is left in either.

        SQLite overwrites what is deleted, but not the copies that rows leave behind when pages are
        balanced; only VACUUM does.

        Raises:
            JournalError: it could not be written anew, or somebody else read the log, or did the
                same, for too long.
        """
        self._vacuum()
        ends_s = time.monotonic() + COMPACT_S
        with contextlib.closing(connect(self.path / DATABASE)) as own:
            # Were SQLite to wait for those who read, it would keep the writer waiting as well.
            own.execute("PRAGMA busy_timeout=0")
            while own.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > ends_s:
                    raise JournalError(
                        f"the log of {self.path} could not be emptied, since somebody reads it: "
                        "what was erased may be in it until the engine is closed"
                    )
                time.sleep(0.005)

    def _vacuum(self) -> None:
        """Has the writer's thread do it, between two batches; changes in line wait meanwhile."""
        done: Future[None] = Future()
        with self._wake:
            alone = self._closing or self._thread.ident is None
            if not alone:
                self._vacuums.append(done)
                self._wake.notify()
        if alone:
            if self._thread.ident is not None:
                self._thread.join()
            with contextlib.closing(connect(self.path / DATABASE)) as own:
                _vacuumed(own, [done])
        done.result()

    def close(self) -> None:
        """Writes what is in line, and lets the journal go. What cannot be written is lost, and
        logged."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(sqlite3.Error):  # the log is as good as the database
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()
        self._lock.release()

    def _run(self) -> None:
        failed = closing = False
        while not closing:
            with self._wake:
                if failed and not self._closing:
                    self._wake.wait(RETRY_S)
                while not (self._waiting or self._vacuums or self._closing):
                    self._wake.wait()
                closing, batch = self._closing, list(self._waiting)
                vacuums, self._vacuums = self._vacuums, []
                self._waiting.clear()
            failed = bool(batch) and not self._settled(batch)
            if vacuums:
                _vacuumed(self._connection, vacuums)
        self._give_up()

    def _give_up(self) -> None:
        """What is still in line will never be written."""
        left = self.drain()
        if left:
            _log.error("%d changes were never written to %s", len(left), self.path)
        for ticket in left:
            ticket.settled.set_exception(JournalError(f"it was never written to {self.path}"))

    def _settled(self, batch: list[PendingWrite]) -> bool:
        """Writes a batch, and tells; whether it is written."""
        try:
            self._commit(batch)
        except Exception as error:
            if _is_hopeless(error):
                return self._settled_alone(batch)
            _log.exception("the journal %s could not be written", self.path)
            if _is_unknown(error):
                self._failed = _disk_failed(self.path, error)
            self._tell(batch, self._failed or could_not_write(error))
            if self._failed is not None:
                self._give_up()
            return False
        self._tell(batch, None)
        return True

    def _settled_alone(self, batch: list[PendingWrite]) -> bool:
        """Each change by itself, up to the one that contradicts what is there: whatever came after
        it may build on it."""
        for number, ticket in enumerate(batch):
            try:
                self._commit([ticket])
            except Exception as error:
                _log.exception("a change could not be written to the journal %s", self.path)
                ticket.hopeless = _is_hopeless(error)
                self._tell(batch[number:], could_not_write(error))
                return False
            self._tell([ticket], None)
        return True

    def _tell(self, batch: Sequence[PendingWrite], error: JournalError | None) -> None:
        """Whoever is told may fail; this thread must not end, or all would wait for ever."""
        try:
            self.settle(batch, error)
        except Exception as trouble:
            _log.exception("what was written to the journal could not be booked")
            for ticket in batch:
                if not ticket.settled.done():
                    ticket.settled.set_exception(could_not_write(trouble))

    def _commit(self, batch: Sequence[PendingWrite]) -> None:
        """All of it in one transaction, or none."""
        connection = self._connection
        if connection.in_transaction:  # the last one failed, and could not even be rolled back
            connection.execute("ROLLBACK")
        synced = any(ticket.level == LEVELS[-1] for ticket in batch)
        connection.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
        try:
            connection.execute("BEGIN IMMEDIATE")
            for ticket in batch:
                ticket.change(connection)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise


def _vacuumed(connection: sqlite3.Connection, waiting: Sequence[Future[None]]) -> None:
    """Writes the database anew, without what was once in it, and tells."""
    try:
        connection.execute("VACUUM")
    except sqlite3.Error as error:
        refusal = JournalError(
            f"the journal could not be written anew: {error}; what was erased can no longer be "
            "read through it, but may be in its file until the next erase succeeds"
        )
        refusal.__cause__ = error
        for one in waiting:
            one.set_exception(refusal)
        return
    for one in waiting:
        one.set_result(None)


def _is_unknown(error: Exception) -> bool:
    """Whether the disk itself failed, so that nobody knows what it has of the change; not if it was
    full, or nothing was written."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_IOERR


def _is_hopeless(error: BaseException) -> bool:
    """Whether the change itself is at fault, and not the disk, nor what is on it."""
    disk = (sqlite3.OperationalError, JournalError)
    return not isinstance(error, disk) and type(error) is not sqlite3.DatabaseError


def _no_settle(tickets: Sequence[PendingWrite], error: JournalError | None) -> None:
    """For those who only call `write`."""
    for ticket in tickets:
        if error is None:
            ticket.settled.set_result(None)
        else:
            ticket.settled.set_exception(error)


def could_not_write(error: Exception) -> JournalError:
    """The error for a change that was not written."""
    what = (
        "it contradicts what is there, or is no value for a database"
        if _is_hopeless(error)
        else "it is tried again with the next change: make room on the disk, then repeat what you "
        "did"
    )
    refusal = JournalError(f"the journal could not be written: {error}; nothing was added; {what}")
    refusal.__cause__ = error
    return refusal


def _disk_failed(path: Path, error: Exception) -> JournalError:
    """The error for a change of which nobody knows whether it was written, and for all after it."""
    refusal = JournalError(
        f"the disk of the journal {path} failed: {error}. Whether the changes under way were "
        "written shows when it is opened anew: close the engine and start it again, then repeat "
        "what was refused (numbered pushes are never added twice)"
    )
    refusal.__cause__ = error
    return refusal
