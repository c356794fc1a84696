"""Cells of sessions that are not on the device: in the host's memory, and past a bound on disk.

Comes in: cells by their session's number, from the loop's thread. Goes out: the same, bit for bit,
or word that they are lost (a disk failed, a file was damaged): then they are computed again. Files
are written and read on a thread of its own, so that nobody waits for a disk. A session's number is
the only name that cells have here: nobody can find another's. Does not know: devices, tables.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxstate.engine.executor import Executor, HostCells
from jaxstate.engine.values import Place

_log = logging.getLogger("jaxstate")


@dataclass(slots=True, eq=False)
class _Stored:
    """One session's cells: in memory, on disk, or on their way from one to the other."""

    cells: HostCells | None
    bytes: int
    moving: Future[None] | None = None


class Vault:
    """Host memory first, then disk.

    Args:
        executor: writes and reads files.
        host_bytes: of cells in memory, beyond which the longest unused go to disk.
        folder: where files go, in a directory of their own that `close` removes; None for no disk.
        moved: called, on another thread, when cells have come from the disk, went there, or were
            found to be lost.
    """

    def __init__(
        self,
        executor: Executor,
        host_bytes: int,
        folder: str | None,
        moved: Callable[[int, Place], None],
    ) -> None:
        self._executor = executor
        self._host_bytes = host_bytes
        self._folder = folder
        self._own: Path | None = None
        self._moved = moved
        self._stored: OrderedDict[int, _Stored] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jaxstate-vault")

    @property
    def bytes(self) -> int:
        """Of cells in memory."""
        with self._lock:
            return sum(one.bytes for one in self._stored.values() if one.cells is not None)

    def put(self, session: int, cells: HostCells) -> None:
        """Keeps cells; others may go to disk for it."""
        with self._lock:
            self._stored[session] = _Stored(cells, cells.bytes)
            self._spill()

    def get(self, session: int) -> HostCells | None:
        """Cells that are in memory; None if they are on disk, or lost."""
        with self._lock:
            stored = self._stored.get(session)
            if stored is None:
                return None
            self._stored.move_to_end(session)
            return stored.cells

    def want(self, session: int) -> None:
        """Begins to bring cells from disk; `moved` tells when they are there, or lost."""
        with self._lock:
            stored = self._stored.get(session)
            if stored is not None and stored.cells is None and stored.moving is None:
                stored.moving = self._thread.submit(self._load, session, stored)

    def drop(self, session: int) -> None:
        """Forgets cells, their files too."""
        with self._lock:
            stored = self._stored.pop(session, None)
            if stored is not None and self._own is not None:
                self._thread.submit(self._remove, self._place(session))

    def close(self) -> None:
        """Forgets everything; waits for the disk."""
        with self._lock:
            self._stored.clear()
        self._thread.shutdown(cancel_futures=True)
        if self._own is not None:
            self._remove(self._own)

    def _spill(self) -> None:
        """Sends the longest unused to disk until the rest is within the bound."""
        if self._folder is None:
            return
        excess = -self._host_bytes
        excess += sum(one.bytes for one in self._stored.values() if one.cells is not None)
        for session, stored in self._stored.items():
            if excess <= 0:
                return
            if stored.cells is not None and stored.moving is None:
                excess -= stored.bytes
                stored.moving = self._thread.submit(self._write, session, stored, stored.cells)

    def _write(self, session: int, stored: _Stored, cells: HostCells) -> None:
        try:
            place = self._place(session)
            place.parent.mkdir(parents=True, exist_ok=True)
            self._remove(place)
            place.mkdir()
            self._executor.save(place / "cells", cells, {})
        except Exception:  # a full disk: they stay where they are
            _log.exception("suspended cells could not be written to disk")
            with self._lock:
                stored.moving = None
            return
        with self._lock:
            stored.moving, stored.cells = None, None
            gone = self._stored.get(session) is not stored
        if gone:
            self._remove(place)
        else:
            self._moved(session, "disk")

    def _load(self, session: int, stored: _Stored) -> None:
        try:
            cells = self._executor.load(self._place(session) / "cells").cells
        except Exception:
            _log.exception("suspended cells could not be read from disk; they are computed again")
            with self._lock:
                if self._stored.get(session) is stored:
                    del self._stored[session]
            self._moved(session, "log")
            return
        with self._lock:
            stored.moving, stored.cells = None, cells
            if self._stored.get(session) is stored:
                self._stored.move_to_end(session)
        self._moved(session, "host")

    def _place(self, session: int) -> Path:
        if self._own is None:
            assert self._folder is not None
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            self._own = Path(tempfile.mkdtemp(prefix="suspended-", dir=self._folder))
        return self._own / str(session)

    def _remove(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
