"""The tables of a journal, and of an exported session: names, columns, checksums.

Comes in: values. Goes out: SQL, and the checksums that say whether a row is as it was written.
Texts are kept as UTF-8 bytes, so that whatever a user pushed comes back as it was. Does not know:
files, threads, engines.
"""

from __future__ import annotations

import sqlite3
import zlib

from jaxstate.errors import JournalDamaged

FORMAT = 1
JOURNAL, EXPORT = "journal", "session"

# Keys are never used twice: `meta` has the last one ("last_key"). A flash query that is removed
# leaves its name, without settings, so that no other gets it. `entries.log` is the key of the
# session that took the entry: a fork reads its parent's entries up to `parent_version`, and then
# its own.
TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    reserve INTEGER NOT NULL,
    pinned INTEGER NOT NULL,
    policy TEXT NOT NULL,
    prefix BLOB,
    base_version INTEGER NOT NULL,
    base_tokens BLOB,
    base_ends BLOB,
    text_fingerprint TEXT NOT NULL,
    parent INTEGER,
    parent_version INTEGER,
    opened_s REAL NOT NULL,
    ended_s REAL,
    erased INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL
);
CREATE UNIQUE INDEX open_ids ON sessions (id) WHERE ended_s IS NULL;
CREATE INDEX children ON sessions (parent) WHERE parent IS NOT NULL;
CREATE TABLE entries (
    log INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    text BLOB NOT NULL,
    pushed_s REAL NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (log, sequence)
) WITHOUT ROWID;
CREATE TABLE pushes (
    session INTEGER NOT NULL,
    client TEXT NOT NULL,
    client_seq INTEGER NOT NULL,
    receipt TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (session, client, client_seq)
) WITHOUT ROWID;
CREATE TABLE questions (
    session INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    settings TEXT NOT NULL,
    PRIMARY KEY (session, kind, name)
) WITHOUT ROWID;
CREATE TABLE snapshots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL,
    version INTEGER NOT NULL,
    cells INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    segments TEXT NOT NULL,
    answers TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    saved_s REAL NOT NULL,
    set_aside TEXT
);
CREATE INDEX of_session ON snapshots (session);
CREATE TABLE segments (
    name TEXT PRIMARY KEY,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    ends BLOB NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
"""
# Made with the first window: journals of versions before 0.5 have no such table. `kept` are the
# entries up to `version` that are in the context, as JSON.
WINDOWS = """
CREATE TABLE IF NOT EXISTS windows (
    session INTEGER PRIMARY KEY,
    settings TEXT,
    version INTEGER NOT NULL,
    kept TEXT NOT NULL,
    checksum INTEGER NOT NULL
)
"""
# Only in an exported session: the files of its segments.
FILES = """
CREATE TABLE files (
    segment TEXT NOT NULL,
    name TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (segment, name)
) WITHOUT ROWID;
"""


def create(connection: sqlite3.Connection, kind: str) -> None:
    """Makes the tables of a new file, in one transaction."""
    extra = FILES if kind == EXPORT else ""
    connection.executescript(
        f"BEGIN IMMEDIATE; {TABLES}{extra}"
        f"INSERT INTO meta VALUES ('kind', '{kind}'), ('format', {FORMAT}); COMMIT;"
    )


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether nothing was made in it yet."""
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def check_kind(connection: sqlite3.Connection, kind: str, what: str) -> None:
    """Refuses a file that is something else, or of another format.

    Raises:
        JournalDamaged: it is.
    """
    try:
        found = dict(connection.execute("SELECT name, value FROM meta"))
    except sqlite3.DatabaseError as error:
        raise JournalDamaged(f"{what} is not a {kind} of jaxstate: {error}") from error
    if found.get("kind") != kind:
        raise JournalDamaged(f"{what} is a {found.get('kind')!r}, not a {kind} of jaxstate")
    if found.get("format") != FORMAT:
        raise JournalDamaged(
            f"{what} has format {found.get('format')!r}; this version reads format {FORMAT}"
        )


def entry_checksum(log: int, sequence: int, text: bytes) -> int:
    """Of an entry: its place as well as its text."""
    return zlib.crc32(text, zlib.crc32(b"%d:%d" % (log, sequence)))


def checksum_of(*parts: object) -> int:
    """Of the values of a row."""
    return zlib.crc32(repr(parts).encode())


def text_bytes(text: str) -> bytes:
    """A text as it is kept; halves of surrogate pairs, which are no UTF-8, come back too."""
    return text.encode("utf-8", "surrogatepass")


def bytes_text(kept: bytes) -> str:
    """The text again."""
    return kept.decode("utf-8", "surrogatepass")
