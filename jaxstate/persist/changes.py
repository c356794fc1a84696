"""What the journal can be told, each as one change: what it does to the tables.

Comes in: plain values. Goes out: a `Change`, a function that the journal's thread calls within a
transaction. Does not know: engines, threads, when it is written.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jaxstate.persist.journal import Change
from jaxstate.persist.schema import WINDOWS, checksum_of, entry_checksum, text_bytes

QuestionKind: TypeAlias = Literal["flash", "warm"]


@dataclass(frozen=True, kw_only=True)
class SessionOpened:
    """How a session came to be.

    Attributes:
        key: its number in the journal, never used before.
        id: its name.
        tenant: whose it is.
        reserve: cells that are always there for it.
        pinned: whether its cells never leave the device.
        policy: the name of what a full queue does.
        prefix: what it starts with; None for a session made from tokens whose text is not known.
        base_version: the version that it starts at.
        base_tokens: int32 bytes, what it had read then: `prefix` as the template wrote it, or what
            a saved session had read; None for what its parent had.
        base_ends: int64 bytes, pairs (entry, cells at its end) within `base_tokens`.
        text_fingerprint: of the tokenizer and template that `base_tokens` were made with.
        parent: the session that it was forked from, at `base_version`; None for others.
    """

    key: int
    id: str
    tenant: str
    reserve: int
    pinned: bool
    policy: str
    prefix: str | None
    base_version: int = 0
    base_tokens: bytes | None = None
    base_ends: bytes | None = None
    text_fingerprint: str
    parent: int | None = None

    @property
    def checksum(self) -> int:
        """Of all that decides what the session is."""
        return checksum_of(
            self.key,
            self.id,
            self.tenant,
            self.prefix,
            self.base_version,
            self.base_tokens,
            self.base_ends,
            self.parent,
        )


@dataclass(frozen=True, kw_only=True)
class Push:
    """A push of a client that numbers its pushes.

    Attributes:
        client: its name.
        client_seq: the number.
        receipt: as it was given, as JSON.
        digest: of the texts.
    """

    client: str
    client_seq: int
    receipt: str
    digest: bytes


@dataclass(frozen=True, kw_only=True)
class SegmentRow:
    """A piece of a snapshot's cells: positions first .. last - 1.

    Attributes:
        name: SHA-256 over its content.
        first, last: positions.
        tokens: int32 bytes, of these positions.
        ends: int64 bytes, pairs (entry, cells at its end from `first` on) of entries that end here.
    """

    name: str
    first: int
    last: int
    tokens: bytes
    ends: bytes

    @property
    def checksum(self) -> int:
        """Of all of it."""
        return checksum_of(self.name, self.first, self.last, self.tokens, self.ends)


@dataclass(frozen=True, kw_only=True)
class SnapshotRow:
    """A session's cells at one version.

    Attributes:
        session: its key.
        version: that they are of.
        cells: how many.
        bytes: of them.
        fingerprint: of the model, its tokenizer and the layout.
        segments: names, in order.
        answers: of flash queries, as JSON.
    """

    session: int
    version: int
    cells: int
    bytes: int
    fingerprint: str
    segments: tuple[str, ...]
    answers: str

    @property
    def checksum(self) -> int:
        """Of what a fork's is copied from as well: without the session and its answers."""
        return checksum_of(self.version, self.cells, self.fingerprint, list(self.segments))


def both(first: Change, second: Change) -> Change:
    """Two changes, made together or not at all."""

    def change(to: sqlite3.Connection) -> None:
        first(to)
        second(to)

    return change


def opened(opening: SessionOpened) -> Change:
    """A session begins."""
    values = (
        opening.key,
        opening.id,
        opening.tenant,
        opening.reserve,
        opening.pinned,
        opening.policy,
        None if opening.prefix is None else text_bytes(opening.prefix),
        opening.base_version,
        opening.base_tokens,
        opening.base_ends,
        opening.text_fingerprint,
        opening.parent,
        None if opening.parent is None else opening.base_version,
        time.time(),
        opening.checksum,
    )

    def change(to: sqlite3.Connection) -> None:
        to.execute("INSERT OR REPLACE INTO meta VALUES ('last_key', ?)", (opening.key,))
        to.execute(
            "INSERT INTO sessions (key, id, tenant, reserve, pinned, policy, prefix, base_version,"
            " base_tokens, base_ends, text_fingerprint, parent, parent_version, opened_s, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        if opening.parent is not None:
            # The pieces of its parent's newest snapshot are its own as well.
            to.execute(
                "INSERT INTO snapshots (session, version, cells, bytes, fingerprint, segments, "
                "answers, checksum, saved_s) SELECT ?, version, cells, bytes, fingerprint, "
                "segments, '[]', checksum, saved_s FROM snapshots WHERE session = ? AND "
                "version <= ? AND set_aside IS NULL ORDER BY number DESC LIMIT 1",
                (opening.key, opening.parent, opening.base_version),
            )

    return change


def pushed(
    session: int,
    first: int,
    texts: Sequence[str],
    dropped: Iterable[tuple[int, int]] = (),
    push: Push | None = None,
) -> Change:
    """Entries first, first + 1, … of a session, which displace others (first, last)."""
    now_s = time.time()
    gone = [(session, span_first, span_last) for span_first, span_last in dropped]

    def change(to: sqlite3.Connection) -> None:
        # Here, on the journal's thread, nobody waits for the checksums but the push itself.
        rows = [
            (session, number, content, now_s, entry_checksum(session, number, content))
            for number, content in enumerate(map(text_bytes, texts), first)
        ]
        to.executemany(
            "INSERT INTO entries (log, sequence, text, pushed_s, checksum) VALUES (?, ?, ?, ?, ?)",
            rows,
        )
        to.executemany(
            "UPDATE entries SET dropped = 1 WHERE log = ? AND sequence BETWEEN ? AND ?", gone
        )
        if push is not None:
            to.execute(
                "INSERT INTO pushes VALUES (?, ?, ?, ?, ?)",
                (session, push.client, push.client_seq, push.receipt, push.digest),
            )

    return change


def asked_from_now_on(session: int, kind: QuestionKind, name: str, settings: str) -> Change:
    """A flash query, or a warm question."""

    def change(to: sqlite3.Connection) -> None:
        to.execute("INSERT INTO questions VALUES (?, ?, ?, ?)", (session, kind, name, settings))

    return change


def no_longer_asked(session: int, kind: QuestionKind, name: str) -> Change:
    """It is removed; the name of a flash query stays, so that no other gets it."""

    def change(to: sqlite3.Connection) -> None:
        where = "WHERE session = ? AND kind = ? AND name = ?"
        change = (
            "UPDATE questions SET settings = ''" if kind == "flash" else "DELETE FROM questions"
        )
        to.execute(f"{change} {where}", (session, kind, name))

    return change


def reserve_given_up(session: int) -> Change:
    """A session that was suspended has no reserve any more."""

    def change(to: sqlite3.Connection) -> None:
        to.execute("UPDATE sessions SET reserve = 0 WHERE key = ?", (session,))

    return change


def window_kept(
    session: int, settings: str | None, version: int, kept: Sequence[tuple[int, int]]
) -> Change:
    """What a session's window is, and what is in its context.

    Args:
        session: its key.
        settings: the window as JSON; None if it has none any more.
        version: behind which its window last moved; -1 if it never did.
        kept: ranges (first, last) of entries up to that version which are in its context.
    """
    ranges = json.dumps(kept)
    row = (session, settings, version, ranges, checksum_of(session, settings, version, ranges))

    def change(to: sqlite3.Connection) -> None:
        to.execute(WINDOWS)
        to.execute(  # of one that was closed meanwhile nothing is kept
            "INSERT OR REPLACE INTO windows SELECT ?, ?, ?, ?, ? WHERE EXISTS "
            "(SELECT 1 FROM sessions WHERE key = ? AND ended_s IS NULL)",
            (*row, session),
        )

    return change


def snapshot_taken(
    snapshot: SnapshotRow, new: Sequence[SegmentRow], kept: Sequence[SegmentRow], keep: int
) -> Change:
    """A snapshot becomes the newest of its session; of one that was closed meanwhile nothing
    becomes.

    Args:
        snapshot: it.
        new: pieces that were written for it; what the journal says of them is written too.
        kept: pieces that were there; that is written only if it is missing.
        keep: how many snapshots of the session stay.
    """

    def change(to: sqlite3.Connection) -> None:
        for action, rows in (("REPLACE", new), ("IGNORE", kept)):
            to.executemany(
                f"INSERT OR {action} INTO segments VALUES (?, ?, ?, ?, ?, ?)",
                [(*dataclasses.astuple(row), row.checksum) for row in rows],
            )
        to.execute(
            "INSERT INTO snapshots (session, version, cells, bytes, fingerprint, segments, answers,"
            " checksum, saved_s) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE EXISTS "
            "(SELECT 1 FROM sessions WHERE key = ? AND ended_s IS NULL)",
            (
                snapshot.session,
                snapshot.version,
                snapshot.cells,
                snapshot.bytes,
                snapshot.fingerprint,
                json.dumps(snapshot.segments),
                snapshot.answers,
                snapshot.checksum,
                time.time(),
                snapshot.session,
            ),
        )
        to.execute(
            "DELETE FROM snapshots WHERE session = ? AND number NOT IN (SELECT number FROM "
            "snapshots WHERE session = ? AND set_aside IS NULL ORDER BY number DESC LIMIT ?)",
            (snapshot.session, snapshot.session, keep),
        )

    return change


def segments_forgotten() -> Change:
    """Rows of segments that no snapshot has go; looked for once for many snapshots."""
    return _forget_segments


def model_noted(source: str) -> Change:
    """Which model the engine has, so that others can find it."""

    def change(to: sqlite3.Connection) -> None:
        to.execute("INSERT OR REPLACE INTO meta VALUES ('model', ?)", (source,))

    return change


def set_aside(numbers: Sequence[int], reason: str) -> Change:
    """Snapshots that cannot be used, and why."""

    def change(to: sqlite3.Connection) -> None:
        to.executemany(
            "UPDATE snapshots SET set_aside = ? WHERE number = ?",
            [(reason, number) for number in numbers],
        )

    return change


def ended(session: int) -> Change:
    """A session was closed: it does not come back. Its entries stay, its cells do not."""

    def change(to: sqlite3.Connection) -> None:
        to.execute("UPDATE sessions SET ended_s = ? WHERE key = ?", (time.time(), session))
        to.execute("DELETE FROM snapshots WHERE session = ?", (session,))
        to.execute("DELETE FROM questions WHERE session = ?", (session,))
        _forget_segments(to)

    return change


def erased(session: int) -> Change:
    """Nothing of a session stays, but what its forks have read of it, which is theirs."""

    def change(to: sqlite3.Connection) -> None:
        ended(session)(to)
        to.execute("UPDATE sessions SET erased = 1, id = '' WHERE key = ?", (session,))
        to.execute("DELETE FROM pushes WHERE session = ?", (session,))
        to.execute(WINDOWS)
        to.execute("DELETE FROM windows WHERE session = ?", (session,))
        _forget_unread(to, session)

    return change


def _forget_unread(to: sqlite3.Connection, session: int) -> None:
    """Of an erased session, what no fork has read, nor a fork's fork; and so on upwards."""
    needed = _needed(to, session)
    to.execute("DELETE FROM entries WHERE log = ? AND sequence > ?", (session, needed or 0))
    parent = to.execute("SELECT parent FROM sessions WHERE key = ?", (session,)).fetchone()
    if needed is None:
        to.execute("DELETE FROM sessions WHERE key = ?", (session,))
    above = None if parent is None else parent[0]
    if above is not None and _is_erased(to, above):
        _forget_unread(to, above)


def _needed(to: sqlite3.Connection, session: int) -> int | None:
    """Up to which version others have read a session; None if nobody has."""
    needed: int | None = None
    children = to.execute(
        "SELECT key, parent_version, erased FROM sessions WHERE parent = ?", (session,)
    ).fetchall()
    for child, version, is_erased in children:
        below = _needed(to, child) if is_erased else version
        if below is not None:
            needed = max(needed or 0, min(version, below))
    return needed


def _is_erased(to: sqlite3.Connection, session: int) -> bool:
    row = to.execute("SELECT erased FROM sessions WHERE key = ?", (session,)).fetchone()
    return row is not None and bool(row[0])


def _forget_segments(to: sqlite3.Connection) -> None:
    """Segments that no snapshot has; their files go later."""
    to.execute(
        "DELETE FROM segments WHERE name NOT IN "
        # A row that was damaged names none that could be used.
        "(SELECT value FROM snapshots, json_each("
        "CASE WHEN json_valid(snapshots.segments) THEN snapshots.segments ELSE '[]' END))"
    )
