"""Cells of a snapshot, from disk into the vault, when they are wanted.

Comes in: which snapshots a session has, the newest first. Goes out: all of its cells; or as many as
the best of them still holds; or none. What turned out to be damaged is set aside, with the reason.
Runs on the vault's reader thread. Does not know: how a session uses its cells.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from jaxstate.engine.books import Book, SavedCells
from jaxstate.engine.desk import Desk
from jaxstate.engine.executor import Executor, HostCells
from jaxstate.engine.openings import ends_of, tokens_of
from jaxstate.errors import JournalError, SnapshotDamaged
from jaxstate.persist.changes import SegmentRow, set_aside
from jaxstate.persist.files import Arrays, is_passing
from jaxstate.persist.journal import Journal, Ticket
from jaxstate.persist.logged import LoggedSnapshot
from jaxstate.persist.segments import Segment, has_windows, joined, segment_name

_log = logging.getLogger("jaxstate")

Candidate: TypeAlias = tuple[LoggedSnapshot, tuple[SegmentRow, ...]]


class Reloader:
    """Reads snapshots.

    Args:
        desk: of the engine.
        executor: reads pieces.
        journal: has the pieces, and is told which snapshots are damaged.
    """

    def __init__(self, desk: Desk, executor: Executor, journal: Journal) -> None:
        self._desk = desk
        self._executor = executor
        self._journal = journal
        self._segments = journal.segments

    def leave(self, book: Book, candidates: Sequence[Candidate]) -> None:
        """A session's cells are on disk, until they are wanted; the caller holds the lock."""
        newest, rows = candidates[0]
        load = functools.partial(self._load, book, tuple(candidates))
        self._desk.vault.put_saved(book.key, newest.row.bytes, load)
        book.saved = SavedCells(newest.row.version, _segments(rows))
        self._desk.look_for(book)

    def set_aside(self, numbers: Sequence[int], reason: str) -> None:
        """Snapshots that cannot be used."""
        _log.warning("%d snapshots are set aside: %s", len(numbers), reason)
        try:
            self._journal.submit(Ticket(set_aside(numbers, reason), "memory"))
        except JournalError:  # the engine is being closed: the next one finds it out again
            _log.warning("which could not be noted, since the journal is closed")

    def _load(self, book: Book, candidates: Sequence[Candidate]) -> HostCells | None:
        """The first that is whole; or what there is of the one of which most is good."""
        layout, best = self._desk.limits.layout, list[Arrays]()
        good: tuple[SegmentRow, ...] = ()
        for snapshot, rows in candidates:
            parts = self._parts(book, snapshot, rows)
            whole = len(parts) == len(rows)
            # Windows lie in the last piece alone.
            usable = parts if whole or not has_windows(layout) else []
            if usable and (not good or rows[len(usable) - 1].last > good[-1].last):
                best, good = usable, rows[: len(usable)]
            if whole:
                break
        if good != candidates[0][1]:
            with self._desk.lock:
                book.saved = SavedCells(segments=_segments(good))  # so that a new one is taken
        return HostCells(cells=good[-1].last, arrays=joined(layout, best)) if good else None

    def _parts(
        self, book: Book, snapshot: LoggedSnapshot, rows: Sequence[SegmentRow]
    ) -> list[Arrays]:
        """Those from the first on that can be read, and are what their names say."""
        parts: list[Arrays] = []
        for row in rows:
            try:
                parts.append(self._part(row))
            except Exception as error:
                # Of a session that was closed, pieces may be on their way out.
                if not (book.closed or is_passing(error)):
                    self._segments.set_aside(row.name)
                    self.set_aside([snapshot.number], f"cells {row.first} on: {error}")
                break
        return parts

    def _part(self, row: SegmentRow) -> Arrays:
        arrays = self._executor.load(self._segments.path(row.name) / "cells").cells.arrays
        ends = np.array(ends_of(row.ends), np.int64).reshape(-1, 2)
        if segment_name(arrays, row.first, tokens_of(row.tokens), ends) != row.name:
            raise SnapshotDamaged("they are not those that the journal names")
        return arrays


def _segments(rows: Sequence[SegmentRow]) -> tuple[Segment, ...]:
    return tuple(Segment(row.name, row.first, row.last) for row in rows)
