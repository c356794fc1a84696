"""When the windows of sessions move.

Comes in: the state, sessions that were touched, the time. Goes out: rebuilds that are begun, that
go on, take their sessions' places, or are given up. A session without a window costs nothing here,
and one that did not change is not looked at, but for the moment at which its entries become too
old.

A rebuild begins once the context exceeds the window by most of a hop, by half of it on a busy
device, and is read when there is nothing else to do. From the moment at which all but a chunk of it
is there, or the session's context takes nothing more, its reading is the session's own, and as
urgent; nothing else of the session waits for it but new entries. Where there is no room for it, the
session's cells are computed again in place, which its questions have to wait for.
"""

from __future__ import annotations

import heapq

from jaxstate.engine.core.results import ResultProcessor
from jaxstate.engine.core.state import EngineState
from jaxstate.engine.core.window_moves import (
    begin_rebuild,
    begin_slide,
    copy_committed,
    drop_rebuild,
    is_looked_at,
)
from jaxstate.engine.sessions.record import Rebuild, SessionRecord
from jaxstate.engine.sessions.residence import ResidencyState


class WindowKeeper:
    """Moves windows; the caller holds the engine's lock.

    Args:
        state: the records.
        results: what becomes of questions under way.
    """

    def __init__(self, state: EngineState, results: ResultProcessor) -> None:
        self._state = state
        self._results = results
        # (when, session): entries become too old then. Of each session the first that there is.
        self._timers: list[tuple[float, int]] = []
        self._timed_s: dict[int, float] = {}

    @property
    def until_s(self) -> float | None:
        """When to look again without news; None if never."""
        return self._timers[0][0] if self._timers else None

    def look(self, now_s: float) -> None:
        """Looks at sessions with windows that changed, or whose entries became too old."""
        due: set[int] = set()
        while self._timers and self._timers[0][0] <= now_s:
            key = heapq.heappop(self._timers)[1]
            self._timed_s.pop(key, None)
            due.add(key)
        for key in sorted(self._state.touched | due):
            record = self._state.records.get(key)
            record = record and (record.rebuilds or record)
            if record is not None and record.window is not None and record.version >= 0:
                self._look(record, now_s)

    def _look(self, record: SessionRecord, now_s: float) -> None:
        rebuild, window = record.rebuild, record.window
        assert window is not None
        if rebuild is not None and not rebuild.moved:
            self._go_on(record, rebuild, now_s)
            return
        if rebuild is not None:
            if is_looked_at(record):
                return
            drop_rebuild(self._state, record)
        if window.in_place:
            self._move_in_place(record, now_s)
        elif self._is_due(record, now_s):
            self._begin(record, now_s)

    # --- one that is to begin ---

    def _is_due(self, record: SessionRecord, now_s: float) -> bool:
        residence, window = record.residence, record.window
        assert window is not None
        at_hand = residence.whole and not (residence.leaves or residence.missing)
        if not at_hand or record.stopped is not None or record.ending:
            return False
        if record.full:
            return True
        self._look_at(record, window.old_s(residence.log), now_s)
        due = window.excess(residence.log, now_s) >= window.begins_at
        return due and window.failed_version < record.version

    def _look_at(self, record: SessionRecord, time_s: float | None, now_s: float) -> None:
        """Looks at a session again then, unless it does so before."""
        if time_s is not None and now_s < time_s < self._timed_s.get(record.key, float("inf")):
            self._timed_s[record.key] = time_s
            heapq.heappush(self._timers, (time_s, record.key))

    def _begin(self, record: SessionRecord, now_s: float) -> None:
        window, log, full = record.window, record.residence.log, record.full
        assert window is not None
        next_tokens = record.queue.next_tokens if full else None
        stays = window.stays(log, record.seen_cells, now_s, next_tokens)
        if len(stays) == log.count and not full:
            return
        slides = window.window.mode == "slide"
        if slides and not _rests(record):
            return
        # One that could not be read twice is the session's own trouble, which ends or stops it.
        failed = full and window.failed_version >= record.version
        begun = not failed and slides and begin_slide(self._state, record, stays)
        if begun or (not failed and begin_rebuild(self._state, record, stays, waits=not full)):
            assert record.rebuild is not None
            self._go_on(record, record.rebuild, now_s)
        elif full:
            window.in_place = True
            self._state.touch(record)
            self._move_in_place(record, now_s)

    def _move_in_place(self, record: SessionRecord, now_s: float) -> None:
        """As soon as nothing looks at its cells; no question begins until then."""
        assert record.window is not None
        if not record.full:  # what came next was displaced
            record.window.in_place = False
            self._state.touch(record)
        elif _rests(record) and not (record.asks_begun or record.tasks_waiting):
            self._results.move_in_place(record, now_s)

    # --- one that is under way ---

    def _go_on(self, record: SessionRecord, rebuild: Rebuild, now_s: float) -> None:
        shadow, full = rebuild.record, record.full
        residence = shadow.residence
        given_up = residence.state is ResidencyState.LOG and not residence.coming
        begun = shadow.landing or record.queue.partly_read
        # What comes next may be longer than was known when it was begun.
        too_long = rebuild.takes and full and not begun
        if given_up or too_long or (full and not residence.on_device):
            drop_rebuild(self._state, record)
            if record.full:
                self._begin(record, now_s)
            return
        if rebuild.takes:
            if not begun:
                self._look_again(record, shadow, now_s)
            return
        copy_committed(self._state, record)
        nearly = residence.missing <= self._state.limits.extend_tokens
        if residence.on_device and _rests(record) and (nearly or full):
            rebuild.takes = True
            self._state.touch(record)
            self._state.touch(shadow)

    def _look_again(self, record: SessionRecord, shadow: SessionRecord, now_s: float) -> None:
        """In silence more becomes too old, of the context that is ready for the next entry, too."""
        assert record.window is not None
        old_s = record.window.old_s(shadow.residence.log)
        if old_s is not None and old_s <= now_s:
            drop_rebuild(self._state, record)
            self._begin(record, now_s)
        else:
            self._look_at(record, old_s, now_s)


def _rests(record: SessionRecord) -> bool:
    """Whether a session is on the device at a version's end, and nothing reads for it."""
    residence = record.residence
    reads = residence.missing or record.landing or record.queue.partly_read or record.stranded
    return residence.on_device and residence.whole and not reads
