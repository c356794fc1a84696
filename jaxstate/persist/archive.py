"""One session as a single file: an SQLite database with its rows of the journal, and its cells.

Comes in: a journal and a session's key; or such a file. Goes out: the file; or rows and pieces in
another journal, under another key. Entries of the session's forebears are in it as its own. Does
not know: engines, what pieces hold.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from jaxstate.errors import InvalidInput, JournalDamaged, JournalError
from jaxstate.persist.changes import SessionOpened, opened, window_kept
from jaxstate.persist.files import sync_tree
from jaxstate.persist.journal import Change
from jaxstate.persist.logged import (
    NO_WINDOW,
    LoggedEntry,
    LoggedSession,
    entries_of,
    keys_of,
    readable,
    root_of,
    segment_of,
    session_of,
    snapshots_of,
    window_of,
)
from jaxstate.persist.places import connect
from jaxstate.persist.schema import (
    EXPORT,
    check_kind,
    create,
    entry_checksum,
    text_bytes,
)
from jaxstate.persist.segments import SegmentStore

# Of the only session in a file.
KEY = 1


def write(
    source: sqlite3.Connection,
    segments: SegmentStore,
    key: int,
    path: str | os.PathLike[str],
) -> None:
    """Writes a session to a new file, whole or not at all.

    Args:
        source: a journal.
        segments: its pieces.
        key: of the session.
        path: where nothing is yet.

    Raises:
        InvalidInput: something is at `path`.
        JournalError: it could not be written, or the journal is damaged.
    """
    target = Path(path).absolute()
    if target.exists():
        raise InvalidInput(f"{target} exists; choose another path (nothing was written)")
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with contextlib.closing(connect(new)) as to:
            create(to, EXPORT)
            to.execute("BEGIN IMMEDIATE")
            source.execute("BEGIN")  # all of it as of one moment
            _copy(source, segments, session_of(source, key), to)
            to.execute("COMMIT")
        sync_tree(new)
        new.rename(target)
        sync_tree(target.parent, deep=False)
    except (sqlite3.Error, OSError) as error:
        raise JournalError(f"the session could not be exported to {target}: {error}") from error
    finally:
        new.unlink(missing_ok=True)


def _copy(
    source: sqlite3.Connection,
    segments: SegmentStore,
    session: LoggedSession,
    to: sqlite3.Connection,
) -> None:
    root = root_of(source, session)
    opened(flat_opening(session.opening, root, KEY, session.opening.id))(to)
    there = {one.sequence: one for one in entries_of(source, session, root.base_version)}
    for number in range(root.base_version + 1, session.last + 1):
        _copy_entry(to, number, there.get(number))
    _copy_rows(source, to, "questions", "session", session.opening.key)
    _copy_rows(source, to, "pushes", "session", session.opening.key)
    _copy_window(source, session.opening.key, to, KEY)
    _copy_snapshot(source, segments, session.opening.key, to)


def _copy_window(source: sqlite3.Connection, key: int, to: sqlite3.Connection, new: int) -> None:
    """What the session has of its entries, if not all."""
    window = window_of(source, key)
    if window != NO_WINDOW:
        window_kept(new, window.settings, window.version, window.kept)(to)


def flat_opening(opening: SessionOpened, root: SessionOpened, key: int, name: str) -> SessionOpened:
    """A session's opening as if it had read its forebears' entries itself."""
    return SessionOpened(
        key=key,
        id=name,
        tenant=opening.tenant,
        reserve=opening.reserve,
        pinned=opening.pinned,
        policy=opening.policy,
        prefix=root.prefix,
        base_version=root.base_version,
        base_tokens=root.base_tokens,
        base_ends=root.base_ends,
        text_fingerprint=root.text_fingerprint,
    )


def _copy_entry(to: sqlite3.Connection, number: int, entry: LoggedEntry | None) -> None:
    """An entry; of one that was displaced its place alone, since a journal has no gaps."""
    text, pushed_s = (b"", 0.0) if entry is None else (text_bytes(entry.text), entry.pushed_s)
    to.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
        (KEY, number, text, pushed_s, entry is None, entry_checksum(KEY, number, text)),
    )


def _copy_rows(
    source: sqlite3.Connection, to: sqlite3.Connection, table: str, column: str, key: int
) -> None:
    """Rows of a session, under the key that it has in the file."""
    for row in source.execute(f"SELECT * FROM {table} WHERE {column} = ?", (key,)):
        marks = ", ".join("?" * len(row))
        to.execute(f"INSERT INTO {table} VALUES ({marks})", (KEY, *row[1:]))


def _copy_snapshot(
    source: sqlite3.Connection, segments: SegmentStore, key: int, to: sqlite3.Connection
) -> None:
    """The newest snapshot, with its pieces, if there is one."""
    usable = [
        one
        for one in snapshots_of(source, key)
        if one.set_aside is None and all(map(segments.has, one.row.segments))
    ]
    pieces = [] if not usable else [segment_of(source, name) for name in usable[0].row.segments]
    if not pieces or None in pieces:
        return  # the entries are enough
    number = usable[0].number
    row = source.execute("SELECT * FROM snapshots WHERE number = ?", (number,)).fetchone()
    marks = ", ".join("?" * len(row))
    to.execute(f"INSERT INTO snapshots VALUES ({marks})", (1, KEY, *row[2:]))
    for piece in filter(None, pieces):
        to.execute(
            "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)",
            (piece.name, piece.first, piece.last, piece.tokens, piece.ends, piece.checksum),
        )
        for file, content in _files(segments.path(piece.name)):
            to.execute("INSERT INTO files VALUES (?, ?, ?)", (piece.name, file, content))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def read(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """An exported session, checked as far as that is possible without a model; the caller closes
    it.

    Raises:
        JournalDamaged: it is no such file, or damaged.
    """
    file = Path(path).absolute()
    if not file.is_file():
        raise JournalDamaged(f"{file} is not there")
    source = connect(file)
    try:
        source.execute("PRAGMA query_only=ON")
        check_kind(source, EXPORT, str(file))
        found = [row[0] for row in source.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise JournalDamaged(f"{file} is damaged: {found[0]}")
    except sqlite3.DatabaseError as error:
        source.close()
        raise JournalDamaged(f"{file} is damaged: {error}") from error
    except BaseException:
        source.close()
        raise
    return source


def name_of(source: sqlite3.Connection) -> str:
    """The name that the session had."""
    return session_of(source, KEY).opening.id


def take_segments(source: sqlite3.Connection, segments: SegmentStore) -> None:
    """Its pieces, into a journal's.

    Raises:
        JournalDamaged: a file of them would lie elsewhere.
        JournalError: they could not be written.
    """
    try:
        for (name,) in source.execute("SELECT name FROM segments").fetchall():
            files = source.execute("SELECT name, content FROM files WHERE segment = ?", (name,))
            segments.write_files(name, [(str(file), bytes(content)) for file, content in files])
    except (OSError, TypeError, ValueError) as error:
        raise JournalError(f"the cells could not be taken over: {error}") from error
    except sqlite3.DatabaseError as error:
        raise JournalDamaged(f"the cells cannot be read: {error}") from error


def taken(source: sqlite3.Connection, key: int, name: str) -> Change:
    """Its rows, into a journal, under that key and name.

    Raises:
        JournalDamaged: an entry is missing, or not as it was written.
    """
    session = session_of(source, KEY)
    opening = flat_opening(session.opening, session.opening, key, name)
    window = window_of(source, KEY)
    list(entries_of(source, session, session.opening.base_version))  # all of it, or nothing
    with readable("the session"):
        entries = source.execute("SELECT * FROM entries WHERE log = ?", (KEY,)).fetchall()
        rows = {
            table: source.execute(f"SELECT * FROM {table}").fetchall()
            for table in ("questions", "pushes", "snapshots", "segments")
        }

    def change(to: sqlite3.Connection) -> None:
        opened(opening)(to)
        if window != NO_WINDOW:
            window_kept(key, window.settings, window.version, window.kept)(to)
        for _, number, text, pushed_s, dropped, _ in entries:
            mark = entry_checksum(key, number, text)
            values = (key, number, text, pushed_s, dropped, mark)
            to.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", values)
        for table in ("questions", "pushes"):
            for row in rows[table]:
                marks = ", ".join("?" * len(row))
                to.execute(f"INSERT INTO {table} VALUES ({marks})", (key, *row[1:]))
        for row in rows["segments"]:
            to.execute("INSERT OR IGNORE INTO segments VALUES (?, ?, ?, ?, ?, ?)", row)
        for row in rows["snapshots"]:
            marks = ", ".join("?" * (len(row) - 1))
            to.execute(f"INSERT INTO snapshots VALUES (NULL, {marks})", (key, *row[2:]))

    return change


def closed_keys(source: sqlite3.Connection, name: str) -> list[int]:
    """Keys of all sessions of that name that were closed."""
    is_open = {key for key, _ in keys_of(source)}
    named = [key for key, found in keys_of(source, ended=True) if found == name]
    return [key for key in named if key not in is_open]
