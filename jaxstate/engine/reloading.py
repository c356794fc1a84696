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

from jaxstate.engine.books import Book, SavedCells
from jaxstate.engine.desk import Desk
from jaxstate.engine.executor import Executor, HostCells
from jaxstate.errors import JournalError
from jaxstate.persist.changes import set_aside
from jaxstate.persist.files import Arrays
from jaxstate.persist.journal import Journal, Ticket
from jaxstate.persist.logged import LoggedSnapshot
from jaxstate.persist.segments import Segment, SegmentStore, has_windows, joined

_log = logging.getLogger("jaxstate")

Candidate: TypeAlias = tuple[LoggedSnapshot, tuple[Segment, ...]]


class Reloader:
    """Reads snapshots.

    Args:
        desk: of the engine.
        executor: reads pieces.
        journal: is told which snapshots are damaged.
        segments: where pieces lie.
    """

    def __init__(
        self, desk: Desk, executor: Executor, journal: Journal, segments: SegmentStore
    ) -> None:
        self._desk = desk
        self._executor = executor
        self._journal = journal
        self._segments = segments

    def leave(self, book: Book, candidates: Sequence[Candidate]) -> None:
        """A session's cells are on disk, until they are wanted; the caller holds the lock."""
        newest, segments = candidates[0]
        load = functools.partial(self._load, book, tuple(candidates))
        self._desk.vault.put_saved(book.key, newest.row.bytes, load)
        book.saved = SavedCells(newest.row.version, segments)
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
        good: tuple[Segment, ...] = ()
        for snapshot, segments in candidates:
            parts = self._parts(snapshot, segments)
            whole = len(parts) == len(segments)
            # Windows lie in the last piece alone.
            usable = parts if whole or not has_windows(layout) else []
            if usable and (not good or segments[len(usable) - 1].last > good[-1].last):
                best, good = usable, segments[: len(usable)]
            if whole:
                break
        if good != candidates[0][1]:
            with self._desk.lock:
                book.saved = SavedCells(segments=good)  # so that a new one is taken
        return HostCells(cells=good[-1].last, arrays=joined(layout, best)) if good else None

    def _parts(self, snapshot: LoggedSnapshot, segments: Sequence[Segment]) -> list[Arrays]:
        """Those from the first on that can be read."""
        parts: list[Arrays] = []
        for segment in segments:
            try:
                saved = self._executor.load(self._segments.path(segment.name) / "cells")
                parts.append(saved.cells.arrays)
            except Exception as error:
                self._segments.set_aside(segment.name)
                self.set_aside([snapshot.number], f"cells {segment.first} on: {error}")
                break
        return parts
