"""Cells of a snapshot, from disk into the cell store, when they are wanted.

Comes in: which snapshots a session has, the newest first. Goes out: all of its cells; or as many as
the best of them still holds; or none. What turned out to be damaged is set aside, with the reason.
Runs on the cell store's reader thread. Does not know: how a session uses its cells.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.session_manager import ends_of, tokens_of
from jaxstate.engine.executor.protocol import Executor, HostCells
from jaxstate.engine.sessions.record import SavedCells, SessionRecord
from jaxstate.errors import JournalError, SnapshotDamaged
from jaxstate.persist.changes import SegmentRow, set_aside
from jaxstate.persist.files import Arrays, is_passing
from jaxstate.persist.journal import Journal, PendingWrite
from jaxstate.persist.logged import LoggedSnapshot, segment_of, snapshots_of
from jaxstate.persist.segments import Segment, has_windows, joined, segment_name

_log = logging.getLogger("jaxstate")

Candidate: TypeAlias = tuple[LoggedSnapshot, tuple[SegmentRow, ...]]


class CheckpointLoader:
    """Reads snapshots.

    Args:
        core: of the engine.
        executor: reads pieces.
        journal: has the pieces, and is told which snapshots are damaged.
    """

    def __init__(self, core: EngineCore, executor: Executor, journal: Journal) -> None:
        self._core = core
        self._executor = executor
        self._journal = journal
        self._segments = journal.segments

    def leave(self, record: SessionRecord, candidates: Sequence[Candidate]) -> None:
        """A session's cells are on disk, until they are wanted; the caller holds the lock."""
        newest, rows = candidates[0]
        load = functools.partial(self._load, record, tuple(candidates))
        self._core.cell_store.put_checkpoint(record.key, newest.row.bytes, load)
        record.saved = SavedCells(newest.row.version, _segments(rows))
        self._core.look_for(record)
        # Of a layer with a window it has what its own version sees, and nothing before that.
        record.residence.oldest_cells = self._core.state.oldest_copied(newest.row.cells)

    def keep(self, record: SessionRecord, size_bytes: int) -> None:
        """A session has a new snapshot, from which its cells can come back; the caller holds the
        lock."""
        load = functools.partial(self._load_newest, record)
        self._core.cell_store.put_checkpoint(record.key, size_bytes, load)

    def set_aside(self, numbers: Sequence[int], reason: str) -> None:
        """Snapshots that cannot be used."""
        _log.warning("%d snapshots are set aside: %s", len(numbers), reason)
        try:
            self._journal.submit(PendingWrite(set_aside(numbers, reason), "memory"))
        except JournalError:  # the engine is being closed: the next one finds it out again
            _log.warning("which could not be noted, since the journal is closed")

    def _load_newest(self, record: SessionRecord) -> HostCells | None:
        """From the snapshots that the journal has by then."""
        with contextlib.closing(self._journal.read()) as source:
            found = [
                (snapshot, [segment_of(source, name) for name in snapshot.row.segments])
                for snapshot in snapshots_of(source, record.log_key)
                if snapshot.set_aside is None and snapshot.sound
            ]
        whole = [
            (snapshot, tuple(row for row in rows if row is not None))
            for snapshot, rows in found
            if None not in rows
        ]
        return self._load(record, whole) if whole else None

    def _load(self, record: SessionRecord, candidates: Sequence[Candidate]) -> HostCells | None:
        """The first that is whole; or what there is of the one of which most is good."""
        layout, best = self._core.limits.layout, list[Arrays]()
        good: tuple[SegmentRow, ...] = ()
        candidates = [one for one in candidates if self._is_of(record, one[1])]
        if not candidates:
            return None
        for snapshot, rows in candidates:
            parts = self._parts(record, snapshot, rows)
            whole = len(parts) == len(rows)
            # Windows lie in the last piece alone.
            usable = parts if whole or not has_windows(layout) else []
            if usable and (not good or rows[len(usable) - 1].last > good[-1].last):
                best, good = usable, rows[: len(usable)]
            if whole:
                break
        if good != candidates[0][1]:
            with self._core.lock:
                record.saved = SavedCells(segments=_segments(good))  # so that a new one is taken
        return HostCells(cells=good[-1].last, arrays=joined(layout, best)) if good else None

    def _is_of(self, record: SessionRecord, rows: Sequence[SegmentRow]) -> bool:
        """Whether pieces are of the session's context: its window may have moved since."""
        with self._core.lock:
            log = record.residence.log
            there = [(log.tokens(row.first, row.last - row.first), row) for row in rows]
        return all(np.array_equal(tokens, tokens_of(row.tokens)) for tokens, row in there)

    def _parts(
        self, record: SessionRecord, snapshot: LoggedSnapshot, rows: Sequence[SegmentRow]
    ) -> list[Arrays]:
        """Those from the first on that can be read, and are what their names say."""
        parts: list[Arrays] = []
        for row in rows:
            try:
                parts.append(self._part(row))
            except Exception as error:
                # Of a session that was closed, pieces may be on their way out.
                if not (record.closed or is_passing(error)):
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
