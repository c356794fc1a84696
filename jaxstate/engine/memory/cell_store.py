"""Cells of sessions that are not on the device: on the host, or in a checkpoint on disk.

Comes in: cells that left the device; how to read a checkpoint. Goes out: cells when they are
wanted, or word that they are lost (they did not fit any more, a file was damaged): then they are
computed again. Checkpoints are read on a thread of the store's own, so that nobody waits for a
disk. Does not know: what makes a checkpoint, how a session uses its cells.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jaxstate.engine.executor.protocol import HostCells
from jaxstate.engine.types.values import Place
from jaxstate.persist.files import is_passing

_log = logging.getLogger("jaxstate")

# How often, and how far apart, a checkpoint is read again when reading it fails for another reason
# than that it is damaged.
_TRIES, _PAUSE_S = 20, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Checkpoint:
    """Where a session's cells are on disk.

    Attributes:
        bytes: of them.
        load: reads them; None if they are lost.
    """

    bytes: int
    load: Callable[[], HostCells | None]


class CellStore:
    """The host's memory first, then checkpoints.

    Args:
        host_bytes: of cells in memory; beyond it the longest unused are given up, but for those
            that were wanted last.
        moved: called, on another thread, when cells have come from a checkpoint, or were found to
            be lost: `where` says which.
    """

    def __init__(self, host_bytes: int, moved: Callable[[int], None]) -> None:
        self._host_bytes = host_bytes
        self._moved = moved
        self._cells: OrderedDict[int, HostCells] = OrderedDict()
        self._checkpoints: dict[int, _Checkpoint] = {}
        self._reading: set[int] = set()
        self._wanted: int | None = None
        self._read_bytes, self._read_s = 0, 0.0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="jaxstate-cell-store")

    @property
    def bytes(self) -> int:
        """Of cells in memory."""
        with self._lock:
            return sum(cells.bytes for cells in self._cells.values())

    def where(self, session: int) -> Place:
        """Where a session's cells are: "host", "disk", or nowhere ("log")."""
        with self._lock:
            if session in self._cells:
                return "host"
            return "disk" if session in self._checkpoints else "log"

    def read_s(self, size_bytes: int) -> float | None:
        """How long reading so much from disk would take, by what was measured; None if nothing."""
        with self._lock:
            return self._read_s / self._read_bytes * size_bytes if self._read_bytes else None

    def put(self, session: int, cells: HostCells, *, wanted: bool = False) -> list[int]:
        """Keeps cells in memory.

        Args:
            session: whose.
            cells: all of them.
            wanted: they are to come to the device, and stay however many they are.

        Returns:
            Sessions whose cells were given up for it.
        """
        with self._lock:
            self._cells[session] = cells
            self._cells.move_to_end(session)
            if wanted:
                self._wanted = session
            return self._give_up()

    def put_checkpoint(
        self, session: int, size_bytes: int, load: Callable[[], HostCells | None]
    ) -> None:
        """A session's cells, or the first of them, are on disk in somebody else's files.

        Args:
            session: whose.
            size_bytes: of them.
            load: reads them; None if they are lost. Called on the reader's thread.
        """
        with self._lock:
            self._checkpoints[session] = _Checkpoint(size_bytes, load)

    def peek(self, session: int) -> HostCells | None:
        """Cells that are in memory, without using them."""
        with self._lock:
            return self._cells.get(session)

    def get(self, session: int) -> HostCells | None:
        """Cells that are in memory; None if they are elsewhere."""
        with self._lock:
            if session in self._cells:
                self._cells.move_to_end(session)
            return self._cells.get(session)

    def want(self, session: int) -> bool:
        """Begins to read a checkpoint; `moved` tells when its cells are there, or lost. False if
        there is none, or the cells are in memory."""
        with self._lock:
            checkpoint = self._checkpoints.get(session)
            if checkpoint is None or session in self._cells:
                return False
            if session not in self._reading:
                self._reading.add(session)
                self._reader.submit(self._load, session, checkpoint)
            return True

    def drop(self, session: int) -> None:
        """Forgets cells in memory."""
        with self._lock:
            self._cells.pop(session, None)
            if self._wanted == session:
                self._wanted = None

    def forget(self, session: int) -> None:
        """Forgets everything of a session."""
        self.drop(session)
        with self._lock:
            self._checkpoints.pop(session, None)

    def rest(self) -> None:
        """Waits until nothing that was begun is on its way from the disk."""
        self._reader.submit(lambda: None).result()

    def close(self) -> None:
        """Forgets everything; waits for the disk."""
        self._closing.set()
        with self._lock:
            self._cells.clear()
            self._checkpoints.clear()
        self._reader.shutdown(cancel_futures=True)

    def _give_up(self) -> list[int]:
        """Lets the longest unused go until the rest is within the bound."""
        excess = sum(cells.bytes for cells in self._cells.values()) - self._host_bytes
        gone: list[int] = []
        for session, cells in self._cells.items():
            # What was wanted last would otherwise come and go for ever.
            if excess > 0 and session != self._wanted:
                excess -= cells.bytes
                gone.append(session)
        for session in gone:
            del self._cells[session]
        return gone

    def _load(self, session: int, checkpoint: _Checkpoint) -> None:
        began_s, cells = time.monotonic(), self._read_patiently(checkpoint)
        with self._lock:
            self._reading.discard(session)
            newest = self._checkpoints.get(session)
            if newest is None:
                return  # it was closed meanwhile
            gone = [session]
            if cells is None and newest is checkpoint:
                del self._checkpoints[session]
            elif cells is not None:
                self._read_bytes += checkpoint.bytes
                self._read_s += time.monotonic() - began_s
                self._cells[session], self._wanted = cells, session
                gone += self._give_up()
        for one in gone:
            self._moved(one)

    def _read_patiently(self, checkpoint: _Checkpoint) -> HostCells | None:
        """Cells from disk; None if they are lost. Too many open files, or too little memory, say
        nothing of the only copy that there is: it is tried again for a while."""
        for last in (*[False] * _TRIES, True):
            try:
                return checkpoint.load()
            except Exception as error:
                if last or not is_passing(error):
                    _log.exception("a checkpoint could not be read; its cells are computed again")
                    return None
                _log.warning("a checkpoint could not be read yet: %s", error)
            if self._closing.wait(_PAUSE_S):
                return None
        return None
