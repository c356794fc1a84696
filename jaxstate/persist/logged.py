"""What a journal holds, read back and checked.

Comes in: a connection that reads. Goes out: sessions, their entries in order, receipts, questions,
snapshots; or `JournalDamaged`, about the one session that it concerns. Does not know: who writes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxstate.errors import JournalDamaged
from jaxstate.persist.changes import Push, QuestionKind, SegmentRow, SessionOpened, SnapshotRow
from jaxstate.persist.schema import bytes_text, checksum_of, entry_checksum

# Entries that are read in one go.
_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class LoggedSession:
    """A session as the journal knows it.

    Attributes:
        opening: how it came to be.
        last: number of its last entry.
        opened_s, used_s: when it was opened, and when it was last pushed to, in seconds since 1970.
        ended_s: when it was closed; None if it was not.
    """

    opening: SessionOpened
    last: int
    opened_s: float
    used_s: float
    ended_s: float | None


@dataclass(frozen=True, kw_only=True)
class LoggedEntry:
    """One entry.

    Attributes:
        sequence: its number.
        text: what was pushed.
        pushed_s: when, in seconds since 1970.
    """

    sequence: int
    text: str
    pushed_s: float


@dataclass(frozen=True, kw_only=True)
class LoggedSnapshot:
    """A snapshot that the journal has.

    Attributes:
        number: its own, ascending.
        row: what it says.
        sound: whether it is as it was written.
        saved_s: when it was made, in seconds since 1970.
        set_aside: why it cannot be used; None if that is not known.
    """

    number: int
    row: SnapshotRow
    sound: bool
    saved_s: float
    set_aside: str | None


@dataclass(frozen=True, kw_only=True)
class LoggedWindow:
    """What a session's window is, and what is in its context.

    Attributes:
        settings: the window as JSON; None if it has none any more.
        version: behind which it last moved; -1 if it never did.
        kept: ranges (first, last) of the entries up to that version which are in the context.
    """

    settings: str | None
    version: int
    kept: tuple[tuple[int, int], ...]


NO_WINDOW = LoggedWindow(settings=None, version=-1, kept=())


def window_of(source: sqlite3.Connection, session: int) -> LoggedWindow:
    """The window of a session of that key; `NO_WINDOW` if it never had one.

    Raises:
        JournalDamaged: it is not as it was written.
    """
    with readable(f"the window of session {session}"):
        if not _has_window_table(source):
            return NO_WINDOW
        row = source.execute(
            "SELECT settings, version, kept, checksum FROM windows WHERE session = ?", (session,)
        ).fetchone()
    if row is None:
        return NO_WINDOW
    settings, version, kept, checksum = row
    if checksum != checksum_of(session, settings, version, kept):
        raise JournalDamaged(f"the window of session {session} is not as it was written")
    ranges = tuple((int(first), int(last)) for first, last in json.loads(kept))
    return LoggedWindow(settings=settings, version=version, kept=ranges)


def has_windows(source: sqlite3.Connection) -> bool:
    """Whether some session has a window."""
    with readable("the list of windows"):
        wanted = "SELECT 1 FROM windows WHERE settings IS NOT NULL LIMIT 1"
        return _has_window_table(source) and source.execute(wanted).fetchone() is not None


def _has_window_table(source: sqlite3.Connection) -> bool:
    """Whether any session ever had one."""
    wanted = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'windows'"
    return source.execute(wanted).fetchone() is not None


def keys_of(source: sqlite3.Connection, *, ended: bool = False) -> list[tuple[int, str]]:
    """Keys and names of sessions, the one that was used last first.

    Args:
        source: the journal.
        ended: whether those that were closed are wanted too.
    """
    wanted = "erased = 0" if ended else "ended_s IS NULL"
    with readable("the list of sessions"):
        rows = source.execute(f"SELECT key, id, opened_s FROM sessions WHERE {wanted}").fetchall()
        used = {key: max(opened_s, _last(source, key)[1]) for key, _, opened_s in rows}
    return sorted(((key, id) for key, id, _ in rows), key=lambda one: -used[one[0]])


def model_of(source: sqlite3.Connection) -> str | None:
    """The model of the engine that had the journal last; None if that is not known."""
    with readable("the name of the model"):
        row = source.execute("SELECT value FROM meta WHERE name = 'model'").fetchone()
    return None if row is None or not row[0] else str(row[0])


def largest_key(source: sqlite3.Connection) -> int:
    """The largest key that a session, or an entry of one, has or had; 0 if there is none."""
    with readable("the list of sessions"):
        given = source.execute("SELECT value FROM meta WHERE name = 'last_key'").fetchone()
        sessions = source.execute("SELECT max(key) FROM sessions").fetchone()[0]
        entries = source.execute("SELECT max(log) FROM entries").fetchone()[0]
    return max(0 if given is None else given[0], sessions or 0, entries or 0)


def session_of(source: sqlite3.Connection, key: int) -> LoggedSession:
    """One session.

    Raises:
        JournalDamaged: it is not there, or not as it was written.
    """
    with readable(f"session {key}"):
        named = source.cursor()
        named.row_factory = sqlite3.Row
        row = named.execute("SELECT * FROM sessions WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise JournalDamaged(f"the journal has no session of key {key}")
        last, pushed_s = _last(source, key)
    opening = _opening(row)
    return LoggedSession(
        opening=opening,
        last=max(last, opening.base_version),
        opened_s=row["opened_s"],
        used_s=max(row["opened_s"], pushed_s),
        ended_s=row["ended_s"],
    )


def _opening(row: sqlite3.Row) -> SessionOpened:
    try:
        prefix = row["prefix"]
        opening = SessionOpened(
            key=row["key"],
            id=row["id"],
            tenant=row["tenant"],
            reserve=row["reserve"],
            pinned=bool(row["pinned"]),
            policy=row["policy"],
            prefix=None if prefix is None else bytes_text(prefix),
            base_version=row["base_version"],
            base_tokens=row["base_tokens"],
            base_ends=row["base_ends"],
            text_fingerprint=row["text_fingerprint"],
            parent=row["parent"],
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise JournalDamaged(f"session {row['id']!r} cannot be read: {error}") from error
    if row["erased"] == 0 and opening.checksum != row["checksum"]:
        raise JournalDamaged(f"what session {row['id']!r} began with is not as it was written")
    return opening


def entries_of(
    source: sqlite3.Connection, session: LoggedSession, after: int, until: int | None = None
) -> Iterator[LoggedEntry]:
    """Entries after + 1 .. `until` of a session (None: its last), those of its forebears included,
    in order; those that were displaced are left out.

    Raises:
        JournalDamaged: one is missing, or not as it was written.
    """
    next_number = after + 1
    for log, first, its_last in _logs(source, session):
        last = its_last if until is None else min(its_last, until)
        while max(first, next_number) <= last:
            rows = _some_entries(source, session, log, max(first, next_number), last)
            if not rows:
                raise _not_sound(session, next_number)
            for sequence, text, pushed_s, dropped, checksum in rows:
                sound = isinstance(text, bytes) and checksum == entry_checksum(log, sequence, text)
                if sequence != next_number or not sound:
                    raise _not_sound(session, next_number)
                next_number += 1
                if not dropped:
                    yield LoggedEntry(sequence=sequence, text=bytes_text(text), pushed_s=pushed_s)


def _some_entries(
    source: sqlite3.Connection, session: LoggedSession, log: int, first: int, last: int
) -> list[tuple[int, bytes, float, int, int]]:
    """The next rows, all at once: while one is read, the log of the database cannot be emptied."""
    with readable(f"session {session.opening.id!r}"):
        return source.execute(
            "SELECT sequence, text, pushed_s, dropped, checksum FROM entries "
            "WHERE log = ? AND sequence BETWEEN ? AND ? ORDER BY sequence LIMIT ?",
            (log, first, last, _AT_ONCE),
        ).fetchall()


def _not_sound(session: LoggedSession, sequence: int) -> JournalDamaged:
    return JournalDamaged(
        f"entry {sequence} of session {session.opening.id!r} is missing from the journal, or is "
        "not as it was written"
    )


def root_of(source: sqlite3.Connection, session: LoggedSession) -> SessionOpened:
    """What a session, or the one that its forebears were forked from, began with.

    Raises:
        JournalDamaged: it is not there, or not as it was written.
    """
    opening = session.opening
    while opening.parent is not None:
        opening = session_of(source, opening.parent).opening
    return opening


def _logs(source: sqlite3.Connection, session: LoggedSession) -> list[tuple[int, int, int]]:
    """Whose entries a session has read, and which: (key, first, last), in order."""
    found = []
    opening, last = session.opening, session.last
    while True:
        if last > opening.base_version:
            found.append((opening.key, opening.base_version + 1, last))
        if opening.parent is None:
            return found[::-1]
        last = min(last, opening.base_version)
        opening = session_of(source, opening.parent).opening


def push_of(source: sqlite3.Connection, session: int, client: str, client_seq: int) -> Push | None:
    """A push of that client and number, if there was one."""
    with readable("the receipts"):
        row = source.execute(
            "SELECT receipt, digest FROM pushes WHERE session = ? AND client = ? AND "
            "client_seq = ?",
            (session, client, client_seq),
        ).fetchone()
    if row is None:
        return None
    return Push(client=client, client_seq=client_seq, receipt=row[0], digest=row[1])


def last_seq(source: sqlite3.Connection, session: int, client: str) -> int | None:
    """The largest number that a client has given a push; None if it gave none."""
    with readable("the receipts"):
        return source.execute(
            "SELECT max(client_seq) FROM pushes WHERE session = ? AND client = ?",
            (session, client),
        ).fetchone()[0]


def questions_of(
    source: sqlite3.Connection, session: int, kind: QuestionKind
) -> list[tuple[str, str]]:
    """Names and settings of registered questions, in the order of their names."""
    with readable("the registered questions"):
        rows = source.execute(
            "SELECT name, settings FROM questions WHERE session = ? AND kind = ? "
            "AND settings <> ''",
            (session, kind),
        ).fetchall()
    return sorted(rows, key=lambda row: (len(row[0]), row[0]))


def flash_names_of(source: sqlite3.Connection, session: int) -> list[str]:
    """All names that flash queries of a session have, or had."""
    with readable("the registered questions"):
        return [
            row[0]
            for row in source.execute(
                "SELECT name FROM questions WHERE session = ? AND kind = 'flash'", (session,)
            )
        ]


def snapshots_of(source: sqlite3.Connection, session: int) -> list[LoggedSnapshot]:
    """Of a session, the newest first."""
    with readable("the list of snapshots"):
        rows = source.execute(
            "SELECT number, checksum, saved_s, set_aside, version, cells, bytes, fingerprint, "
            "segments, answers FROM snapshots WHERE session = ? ORDER BY number DESC",
            (session,),
        ).fetchall()
        return [_snapshot(session, *row) for row in rows]


def _snapshot(
    session: int,
    number: int,
    checksum: int,
    saved_s: float,
    set_aside: str | None,
    version: int,
    cells: int,
    size_bytes: int,
    fingerprint: str,
    segments: str,
    answers: str,
) -> LoggedSnapshot:
    try:
        names = tuple(json.loads(segments))
    except (ValueError, TypeError):
        names = ()  # which no checksum fits
    row = SnapshotRow(
        session=session,
        version=version,
        cells=cells,
        bytes=size_bytes,
        fingerprint=fingerprint,
        segments=names,
        answers=answers,
    )
    return LoggedSnapshot(
        number=number,
        row=row,
        sound=row.checksum == checksum,
        saved_s=saved_s,
        set_aside=set_aside,
    )


def segment_of(source: sqlite3.Connection, name: str) -> SegmentRow | None:
    """A segment's positions and tokens; None if it is not there, or not as it was written."""
    with readable("the list of segments"):
        row = source.execute(
            "SELECT first, last, tokens, ends, checksum FROM segments WHERE name = ?", (name,)
        ).fetchone()
    if row is None:
        return None
    found = SegmentRow(name=name, first=row[0], last=row[1], tokens=row[2], ends=row[3])
    return found if found.checksum == row[4] else None


def segment_names(source: sqlite3.Connection) -> set[str]:
    """All that there are."""
    with readable("the list of segments"):
        return {row[0] for row in source.execute("SELECT name FROM segments")}


def _last(source: sqlite3.Connection, log: int) -> tuple[int, float]:
    """The last entry of a log, and when it was pushed; zeros if it has none."""
    row = source.execute(
        "SELECT sequence, pushed_s FROM entries WHERE log = ? ORDER BY sequence DESC LIMIT 1",
        (log,),
    ).fetchone()
    return (0, 0.0) if row is None else row


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Tells of pages that cannot be read."""
    try:
        yield
    except (sqlite3.DatabaseError, ValueError) as error:
        raise JournalDamaged(f"{what} cannot be read from the journal: {error}") from error
