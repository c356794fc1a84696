"""Whether a journal has what a crash test knows was acknowledged, once and in order, and no more.

Comes in: a journal that nobody has open, what is known. Goes out: what is broken, in words; and
what became of the calls whose fate was not known is known from then on. Reads a copy, so that the
next engine finds the files as the killed one left them. Does not know: engines, processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxstate.engine.sessions.dedup import receipt_of
from jaxstate.errors import JournalDamaged
from jaxstate.persist.logged import (
    LoggedSession,
    entries_of,
    push_of,
    questions_of,
    segment_names,
    session_of,
)
from jaxstate.persist.places import DATABASE, SEGMENTS, read_only
from jaxstate.persist.schema import bytes_text
from jaxstate.persist.segments import SegmentStore
from jaxstate.records import Durability
from tests.harness.crash_known import ClientSeq, Known, SentPush, Stream


@dataclass(frozen=True)
class _Row:
    key: int
    ended: bool


@dataclass(frozen=True)
class _Entry:
    """An entry that the journal has, and the push that it is of."""

    sequence: int
    push: ClientSeq
    index: int
    dropped: bool


class JournalCheck:
    """One look at a journal.

    Args:
        path: of the journal.
        known: what was sent and acknowledged; is told what became of the rest.
        level: at "memory" a killed process may lose what it acknowledged last.
        broke: is told what must not be.
    """

    def __init__(
        self, path: Path, known: Known, level: Durability, broke: Callable[[str], None]
    ) -> None:
        self._path = path
        self._known = known
        self._may_lose = level == "memory"
        self._broke = broke

    def run(self, *, everything: bool = False) -> None:
        """Looks at sessions that may have changed since the last look, or at all of them."""
        if not (self._path / DATABASE).exists():
            self._no_journal()
            return
        with tempfile.TemporaryDirectory() as folder:
            for file in self._path.glob(f"{DATABASE}*"):
                if not file.name.endswith("-shm"):  # made anew of the others
                    shutil.copy(file, folder)
            try:
                self._look(Path(folder), everything=everything)
            except JournalDamaged as error:
                self._broke(f"the journal cannot be read: {error}")

    def _no_journal(self) -> None:
        """Killed before it was made."""
        if any(stream.there for stream in self._known.streams.values()):
            self._broke("the journal is gone")
        self._known.streams.clear()

    def _look(self, copy: Path, *, everything: bool) -> None:
        if _is_empty(copy / DATABASE):
            self._no_journal()
            return
        with contextlib.closing(read_only(copy)) as source:
            (sound,) = source.execute("PRAGMA integrity_check").fetchone()
            if sound != "ok":
                self._broke(f"the database is damaged: {sound}")
            rows = self._sessions(source)
            self._erased(source, copy)
            for name, row in rows.items():
                stream = self._known.streams[name]
                if everything or not stream.settled:
                    self._session(source, stream, row)
                    stream.settled = stream.ended is True
            self._snapshots(source)

    def _sessions(self, source: sqlite3.Connection) -> dict[str, _Row]:
        """All that are known to be there; what was not known about them is, from now on."""
        found = {
            name: _Row(key, ended_s is not None)
            for key, name, ended_s in source.execute(
                "SELECT key, id, ended_s FROM sessions WHERE erased = 0"
            )
        }
        for name in found.keys() - self._known.streams.keys():
            self._broke(f"session {name} was never opened, or was refused")
        for name, stream in list(self._known.streams.items()):
            if name in found:
                stream.there = True
                self._lost(f"session {name} was erased", stream.erased)
                stream.erased = False
            elif stream.erased is False:
                self._lost(f"session {name} was opened", stream.there)
                del self._known.streams[name]
        return {name: row for name, row in found.items() if name in self._known.streams}

    def _erased(self, source: sqlite3.Connection, copy: Path) -> None:
        """Nothing is left of sessions that were erased, but what their forks have read."""
        streams, files = self._known.streams, [file.read_bytes() for file in copy.iterdir()]
        gone = [one for one in streams.values() if one.erased is not False]
        for stream in gone:
            del streams[stream.name]
        wanted = {one for stream in streams.values() for one in stream.forebears}
        kept = {bytes_text(text) for (text,) in source.execute("SELECT text FROM entries")}
        for stream in gone:
            if stream in wanted:
                continue
            texts = {text for push in stream.pushes.values() for text in push.texts}
            if left := texts & kept:
                self._broke(f"session {stream.name} was erased, and {sorted(left)} are there")
            # Whoever was told that it was erased finds nothing in any file.
            words = [text.partition(" ")[0].encode() + b" " for text in texts if stream.erased]
            if found := [word for word in words if any(word in file for file in files)]:
                self._broke(f"session {stream.name} was erased, and files hold {found}")

    def _lost(self, what: str, acknowledged: bool | None) -> None:
        """Something that was sent is not there."""
        if not acknowledged:
            return
        self._known.counts["acknowledged, and lost"] += 1
        if not self._may_lose:
            self._broke(f"{what}, as was acknowledged, and the journal does not know it")

    def _session(self, source: sqlite3.Connection, stream: Stream, row: _Row) -> None:
        if row.ended != stream.ended:
            if stream.ended is False:
                self._broke(f"session {stream.name} has ended, and nobody closed it")
            self._lost(f"session {stream.name} was closed", stream.ended)
        stream.ended = row.ended
        logged = session_of(source, row.key)
        self._forks(source, stream, logged)
        entries = self._entries(source, stream, row.key)
        self._order(stream, entries, logged)
        self._pushes(source, stream, row.key, entries)
        self._dropped(stream, entries)
        there = [one.text for one in entries_of(source, logged, 0)]
        if there != stream.read():
            self._broke(f"session {stream.name} reads {there} instead of {stream.read()}")
        if not row.ended:
            self._flashes(source, stream, row.key)

    def _forks(self, source: sqlite3.Connection, stream: Stream, logged: LoggedSession) -> None:
        """Where it begins, if it is a fork, and where its forebears do."""
        while stream.parent is not None and logged.opening.parent is not None:
            self._fork(stream, logged.opening.base_version)
            stream, logged = stream.parent, session_of(source, logged.opening.parent)
            if stream.erased is not False:
                self._erased_receipts(source, stream, logged.opening.key)

    def _fork(self, stream: Stream, version: int) -> None:
        least, most = stream.between or (version, version)
        if stream.version not in (None, version) or not least <= version <= most:
            self._broke(
                f"fork {stream.name} is of version {version}, and was of {stream.version}, "
                f"between {least} and {most}"
            )
        stream.version = version

    def _erased_receipts(self, source: sqlite3.Connection, stream: Stream, key: int) -> None:
        """What nobody was told before a session was erased is not to be found out, but for what it
        did to the entries that forks have read."""
        if all(one.receipt for one in stream.pushes.values()):
            return
        rows = source.execute("SELECT sequence FROM entries WHERE log = ? AND dropped = 1", (key,))
        stream.also_dropped.update(itertools.chain.from_iterable(rows))

    def _entries(self, source: sqlite3.Connection, stream: Stream, key: int) -> list[_Entry]:
        """Those of its own."""
        whose = {
            text: (push, index)
            for push, sent in stream.pushes.items()
            for index, text in enumerate(sent.texts)
        }
        found: list[_Entry] = []
        rows = source.execute(
            "SELECT sequence, text, dropped FROM entries WHERE log = ? ORDER BY sequence", (key,)
        )
        for sequence, kept, dropped in rows:
            text = bytes_text(kept)
            if text not in whose:
                self._broke(f"session {stream.name}: entry {sequence} {text!r} was never sent")
                continue
            push, index = whose[text]
            found.append(_Entry(sequence, push, index, bool(dropped)))
        return found

    def _order(self, stream: Stream, entries: list[_Entry], logged: LoggedSession) -> None:
        """Numbers without a gap, nothing twice, each client's pushes in the order of its own."""
        first = logged.opening.base_version + 1
        if [one.sequence for one in entries] != list(range(first, logged.last + 1)):
            self._broke(f"session {stream.name}: numbers of entries have gaps")
        if logged.last < stream.seen:
            self._lost(f"session {stream.name}: version {stream.seen} was seen", True)
            stream.seen = logged.last
        seen = [(one.push, one.index) for one in entries]
        if len(set(seen)) < len(seen):
            self._broke(f"session {stream.name}: an entry is there twice")
        for client in {one.push[0] for one in entries}:
            own = [(one.push, one.index) for one in entries if one.push[0] == client]
            if own != sorted(own):
                self._broke(f"session {stream.name}: entries of {client} are out of order")

    def _pushes(
        self, source: sqlite3.Connection, stream: Stream, key: int, entries: list[_Entry]
    ) -> None:
        """Each is there as a whole with its receipt, or not at all."""
        numbers: dict[ClientSeq, list[int]] = {}
        for one in entries:
            numbers.setdefault(one.push, []).append(one.sequence)
        for (client, seq), sent in list(stream.pushes.items()):
            what = f"session {stream.name}: push {seq} of {client}"
            kept = push_of(source, key, client, seq)
            if kept is None:
                if (client, seq) in numbers:
                    self._broke(f"{what} is there without its receipt")
                self._not_there(stream, (client, seq), sent, what)
                continue
            receipt = receipt_of(kept.receipt)
            if numbers.get((client, seq)) != list(range(receipt.first, receipt.last + 1)):
                self._broke(f"{what} is not where its receipt says: {receipt}")
            if sent.receipt is None:
                self._known.counts["entries of unknown fate, found"] += len(sent.texts)
                sent.receipt = kept.receipt
            elif sent.receipt != kept.receipt:
                self._broke(f"{what} has the receipt {receipt}, and was told {sent.receipt}")

    def _not_there(self, stream: Stream, push: ClientSeq, sent: SentPush, what: str) -> None:
        if sent.receipt is None and not sent.missed:
            sent.missed = True
            self._known.counts["entries of unknown fate, not found"] += len(sent.texts)
        self._lost(what, sent.receipt is not None)
        if sent.receipt is not None or stream.ended:
            del stream.pushes[push]  # nobody will send it again

    def _dropped(self, stream: Stream, entries: list[_Entry]) -> None:
        found = {one.sequence for one in entries if one.dropped}
        if found != stream.dropped:
            self._broke(
                f"session {stream.name}: {sorted(found)} are displaced, and receipts name "
                f"{sorted(stream.dropped)}"
            )

    def _flashes(self, source: sqlite3.Connection, stream: Stream, key: int) -> None:
        registered = {
            str(json.loads(settings)["question"])
            for _, settings in questions_of(source, key, "flash")
        }
        if extra := registered - stream.flashes.keys():
            self._broke(f"session {stream.name}: nobody registered {sorted(extra)}")
        for question, told in stream.flashes.items():
            there = question in registered
            if told is not None and told != there:
                self._lost(f"session {stream.name}: {question!r} was (un)registered", True)
            stream.flashes[question] = there

    def _snapshots(self, source: sqlite3.Connection) -> None:
        """Every piece that one has is on disk, none is damaged, and closed sessions have none."""
        store = SegmentStore(self._path / SEGMENTS)
        if missing := [name for name in segment_names(source) if not store.has(name)]:
            self._broke(f"pieces of snapshots are missing: {missing}")
        bad = source.execute("SELECT session, set_aside FROM snapshots WHERE set_aside IS NOT NULL")
        for session, reason in bad:
            self._broke(f"a snapshot of session {session} was set aside: {reason}")
        left = source.execute(
            "SELECT s.id FROM sessions s JOIN snapshots n ON n.session = s.key "
            "WHERE s.ended_s IS NOT NULL"
        )
        for name in set(itertools.chain.from_iterable(left)):
            self._broke(f"session {name} was closed, and has a snapshot")


def _is_empty(database: Path) -> bool:
    """Whether it was killed before its tables were made."""
    with contextlib.closing(sqlite3.connect(database)) as found:
        return found.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
