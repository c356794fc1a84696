"""Moves sessions between the device and the host's memory, on the loop's thread.

Comes in: a `Move` that the policy decided. Goes out: cells copied, or given up to be computed
again; records, events and whoever waits for the move are told. Nothing is in flight while a move is
made. Does not know: why a session moves, how a checkpoint is read.
"""

from __future__ import annotations

import logging

from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.executor.protocol import Executor, HostCells
from jaxstate.engine.memory.swap_policy import Move
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.types.values import Moved

_log = logging.getLogger("jaxstate")


class Swapper:
    """Makes moves.

    Args:
        core: the records.
        executor: the device.
    """

    def __init__(self, core: EngineCore, executor: Executor) -> None:
        self._core = core
        self._executor = executor

    def make(self, move: Move) -> Exception | None:
        """Makes a move; what the device said if it failed.

        Cells that could not be placed are still on the host, and are tried once more; else the
        session is computed again.
        """
        try:
            if move.to == "host":
                self._from_disk(move.record)
            elif move.to == "device":
                self._to_device(move.record)
            else:
                self._away(move.record)
        except Exception as error:
            _log.exception("session %r could not be moved", move.record.id)
            self._failed(move.record)
            return error
        return None

    def _from_disk(self, record: SessionRecord) -> None:
        with self._core.lock:
            if not self._core.cell_store.want(record.key):
                self._core.look_for(record)

    def _away(self, record: SessionRecord) -> None:
        core = self._core
        with core.lock:
            if record.closed or not record.residence.on_device:
                return
            core.results.settle_rebuild(record)  # what that has taken is in other cells
            residence = record.residence
            keeps = self._keeps(record)
            count = residence.table.cells
            # An entry may be half read: questions go on looking at the version before it.
            sees_back = core.state.readable(record.seen_cells, count)
            readable_cells = record.seen_cells if sees_back else count
            seen, residence.there_cells = residence.seen(count), 0
            began_s = core.clock()
        cells = self._executor.fetch(seen, readable_cells) if keeps else None
        with core.lock:
            if record.closed:
                return
            took_s = core.clock() - began_s
            core.results.send_away(record)
            if cells is None:
                core.look_for(record)
            else:
                core.keep_cells(record, cells)
                residence.failures = 0
                residence.oldest_cells = core.state.oldest_copied(readable_cells)
                core.recorder.moved(cells.bytes, took_s)
            core.results.drop_unreadable(record)
            core.recorder.count("sessions_suspended")
            self._tell(record, took_s)

    def _to_device(self, record: SessionRecord) -> None:
        core, residence = self._core, record.residence
        with core.lock:
            if not (self._is_wanted(record) and core.state.budget.has_room_for(record)):
                return
            cells = self._kept(record)
            if record.closed or (cells is None and residence.place != "log"):
                return
            if cells is None:
                residence.oldest_cells = residence.slid_cells = 0
            else:
                if residence.oldest_cells == 0:  # of a snapshot: what its own version sees
                    residence.oldest_cells = core.state.oldest_copied(cells.cells)
                core.state.tables.grow(residence.table, cells.cells)
            core.state.budget.arrive(record, core.state.steps)
            seen, began_s = residence.seen(residence.table.cells), core.clock()
        if cells is not None:
            self._executor.place(seen, cells)
        with core.lock:
            if record.closed:
                return
            took_s = core.clock() - began_s
            core.cell_store.drop(record.key)
            residence.used_s = core.clock()
            if cells is not None:
                residence.failures, residence.there_cells = 0, cells.cells
                core.recorder.moved(cells.bytes, took_s)
            core.recorder.count("sessions_resumed")
            self._tell(record, took_s)

    def _is_wanted(self, record: SessionRecord) -> bool:
        """Whether it is still to come: it may have been suspended, or closed, meanwhile."""
        wants = record.residence.coming or record.tasks_waiting > 0
        return not record.closed and (wants or record.has_work(self._core.clock()))

    def _kept(self, record: SessionRecord) -> HostCells | None:
        """Its cells in memory; None if they went to disk meanwhile, or were lost."""
        cells = self._core.cell_store.get(record.key)
        if cells is None:
            self._core.look_for(record)
        return cells

    def _keeps(self, record: SessionRecord) -> bool:
        """Whether a session that leaves is copied."""
        residence, limits = record.residence, self._core.limits
        if residence.table.cells == 0 or residence.missing or record.rebuilds is not None:
            return False
        size_bytes = limits.layout.bytes_of(residence.cells, limits.itemsize)
        return size_bytes <= self._core.config.host_bytes

    def _failed(self, record: SessionRecord) -> None:
        """The device failed: what it has of the session cannot be trusted. A copy on the host can,
        unless it was that which failed, twice in a row."""
        core, residence = self._core, record.residence
        with core.lock:
            if record.closed:
                return
            residence.failures += 1
            if residence.failures > 1:
                core.cell_store.forget(record.key)
            if residence.on_device:
                core.results.send_away(record)
            core.look_for(record)
            if residence.place == "log":
                residence.failures = 0  # reading it again is another thing
            core.results.moved(record)

    def _tell(self, record: SessionRecord, took_s: float) -> None:
        residence = record.residence
        event = Moved(to=residence.place, cells=residence.cells, took_s=took_s)
        self._core.results.tell(record, event)
        self._core.results.moved(record)
