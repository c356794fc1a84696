"""A journal's directory: who has it, and how its database is opened.

Comes in: a path. Goes out: the lock, and connections; or an error that says what to do. Does not
know: what is in the database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock, Timeout

from jaxstate.errors import JournalDamaged, JournalError, JournalInUse
from jaxstate.persist.schema import JOURNAL, check_kind, create, is_empty

DATABASE, LOCK, SEGMENTS = "journal.db", "lock", "segments"

Connect: TypeAlias = Callable[[Path], sqlite3.Connection]


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any one thread may use; transactions are begun explicitly."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def read_only(path: Path) -> sqlite3.Connection:
    """A connection to the journal at `path` that cannot change it; works beside its engine.

    Raises:
        JournalDamaged: there is none, or it cannot be read.
    """
    database = Path(path) / DATABASE
    if not database.exists():
        raise JournalDamaged(f"{path} holds no journal: there is no {DATABASE}")
    found = connect(database)
    try:
        found.execute("PRAGMA query_only=ON")
        check_kind(found, JOURNAL, str(database))
    except BaseException:
        found.close()
        raise
    return found


def locked(path: Path) -> FileLock:
    """The directory, taken by this process for as long as it lives."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / SEGMENTS).mkdir(exist_ok=True)
        # One object for each engine: two in one process must not share it.
        lock = FileLock(path / LOCK, is_singleton=False, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise JournalInUse(
            f"the journal {path} is in use by another engine; close that one, or use another path"
        ) from error
    except OSError as error:
        raise JournalError(
            f"the journal {path} cannot be opened for writing: {error}; make the directory "
            "writable, or use another path"
        ) from error
    return lock


def opened(database: Path, connect: Connect) -> sqlite3.Connection:
    """The database, made if it is not there."""
    connection = None
    try:
        connection = connect(database)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA secure_delete=ON")
        if is_empty(connection):
            create(connection, JOURNAL)
        check_kind(connection, JOURNAL, str(database))
    except sqlite3.DatabaseError as error:
        _close(connection)
        raise _refusal(database, error) from error
    except BaseException:
        _close(connection)
        raise
    return connection


def _refusal(database: Path, error: sqlite3.DatabaseError) -> JournalError:
    if isinstance(error, sqlite3.OperationalError):  # the disk, not what is on it
        return JournalError(
            f"the journal {database} cannot be opened: {error}; check that the directory is "
            "writable and that the disk has room"
        )
    return JournalDamaged(_damage(database, str(error)))


def _damage(database: Path, what: str) -> str:
    return (
        f"the journal {database} is damaged: {what}. Nothing was changed. Keep a copy of the "
        f"directory; `sqlite3 {database} .recover` saves what can be read"
    )


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
