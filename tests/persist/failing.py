"""A database whose disk fails when a test says so."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class FailingDisk:
    """Counts statements of one connection, and lets some of them fail.

    Attributes:
        count: statements so far that may write.
        fails: numbers of those that fail.
        full: whether all fail from now on, since there is no room.
        stuck: whether nothing can be rolled back.
        broken: whether commits fail from now on, and nobody knows what the disk has of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.fails: set[int] = set()
        self.full = self.stuck = self.broken = False

    def connect(self, path: Path) -> sqlite3.Connection:
        disk = self

        class Failing(sqlite3.Connection):
            def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
                disk.statement(sql)
                return super().execute(sql, *args)  # type: ignore[arg-type]

            def executemany(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
                disk.statement(sql)
                return super().executemany(sql, *args)  # type: ignore[arg-type]

        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Failing)

    def statement(self, sql: str) -> None:
        if self.stuck and sql == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        if sql.startswith(("PRAGMA sync", "ROLLBACK", "SELECT", "PRAGMA journal", "PRAGMA secure")):
            return
        self.count += 1
        if self.broken and sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        if self.full or self.count in self.fails:
            raise sqlite3.OperationalError("database or disk is full")
