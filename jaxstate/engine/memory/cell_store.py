"""Cells of sessions that are not on the device: in the host's memory, and past a bound on disk.

Comes in: cells by their session's number, from the loop's thread. Goes out: the same, bit for bit,
or word that they are lost (a disk failed, a file was damaged): then they are computed again. Files
are written on one thread and read on another, so that nobody waits for a disk, and who comes back
does not wait for those that leave. A session's number is the only name that cells have here: nobody
can find another's. Does not know: devices, tables.

A process that is killed leaves its directory `suspended-…` behind: nothing reads it again.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxstate.engine.executor.protocol import Executor, HostCells
from jaxstate.engine.types.values import Place
from jaxstate.persist.files import is_passing

_log = logging.getLogger("jaxstate")


# How often, and how far apart, cells are read again when reading them fails for another reason than
# that they are damaged.
_TRIES, _PAUSE_S = 20, 0.5


@dataclass(slots=True, eq=False)
class _Stored:
    """One session's cells, in memory or on disk.

    Attributes:
        bytes: of them.
        cells: themselves, while they are in memory.
        path: where they are on disk, once they are all there.
        load: reads them from where somebody else keeps them on disk.
        moving: whether they are being written, or read.
    """

    bytes: int
    cells: HostCells | None = None
    path: Path | None = None
    load: Callable[[], HostCells | None] | None = None
    moving: bool = False


class CellStore:
    """Host memory first, then disk.

    Args:
        executor: writes and reads files.
        host_bytes: of cells in memory, beyond which the longest unused go to disk. Those that came
            from disk last are not sent back there, however many they are.
        folder: where files go, in a directory of their own that `close` removes; None for no disk.
        moved: called, on another thread, when cells have come from the disk, went there, or were
            found to be lost: `where` says which.
    """

    def __init__(
        self,
        executor: Executor,
        host_bytes: int,
        folder: str | None,
        moved: Callable[[int], None],
    ) -> None:
        self._executor = executor
        self._host_bytes = host_bytes
        self._folder = folder
        self._own: Path | None = None
        self._moved = moved
        self._stored: OrderedDict[int, _Stored] = OrderedDict()
        self._fetched: int | None = None
        self._files = itertools.count()
        self._read_bytes, self._read_s = 0, 0.0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="jaxstate-vault-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="jaxstate-vault-reader")

    @property
    def bytes(self) -> int:
        """Of cells in memory."""
        with self._lock:
            return sum(one.bytes for one in self._stored.values() if one.cells is not None)

    def where(self, session: int) -> Place:
        """Where a session's cells are: "host", "disk", or nowhere ("log")."""
        with self._lock:
            stored = self._stored.get(session)
            if stored is None:
                return "log"
            return "disk" if stored.cells is None else "host"

    def read_s(self, size_bytes: int) -> float | None:
        """How long reading so much from disk would take, by what was measured; None if nothing."""
        with self._lock:
            return self._read_s / self._read_bytes * size_bytes if self._read_bytes else None

    def put(self, session: int, cells: HostCells) -> None:
        """Keeps cells; others may go to disk for it."""
        with self._lock:
            self._stored[session] = _Stored(cells.bytes, cells)
            self._spill()

    def put_saved(
        self, session: int, size_bytes: int, load: Callable[[], HostCells | None]
    ) -> None:
        """Cells that lie on disk already, in somebody else's files.

        Args:
            session: whose.
            size_bytes: of them.
            load: reads them; None if they are lost. Called once, on the reader's thread.
        """
        with self._lock:
            self._stored[session] = _Stored(size_bytes, load=load)

    def peek(self, session: int) -> HostCells | None:
        """Cells that are in memory, without using them."""
        with self._lock:
            stored = self._stored.get(session)
            return None if stored is None else stored.cells

    def get(self, session: int) -> HostCells | None:
        """Cells that are in memory; None if they are elsewhere."""
        with self._lock:
            stored = self._stored.get(session)
            if stored is None or stored.cells is None:
                return None
            self._stored.move_to_end(session)
            return stored.cells

    def want(self, session: int) -> bool:
        """Begins to bring cells from disk; `moved` tells when they are there, or lost. False if
        they are not there."""
        with self._lock:
            stored = self._stored.get(session)
            if stored is None or stored.cells is not None:
                return False
            if not stored.moving:
                stored.moving = True
                self._reader.submit(self._load, session, stored)
            return True

    def drop(self, session: int) -> None:
        """Forgets cells, their files too."""
        with self._lock:
            stored = self._stored.pop(session, None)
            if self._fetched == session:
                self._fetched = None
            if stored is not None:
                stored.cells = None  # it may stand in line to be written
            # Files that are being written or read go when that is done.
            if stored is not None and stored.path is not None and not stored.moving:
                self._writer.submit(_remove, stored.path)

    def rest(self) -> None:
        """Waits until nothing that was begun is on its way to the disk or from there."""
        for thread in (self._writer, self._reader, self._writer):
            thread.submit(lambda: None).result()

    def close(self) -> None:
        """Forgets everything; waits for the disk."""
        self._closing.set()
        with self._lock:
            self._stored.clear()
        self._writer.shutdown(cancel_futures=True)
        self._reader.shutdown(cancel_futures=True)
        if self._own is not None:
            _remove(self._own)

    def _spill(self) -> None:
        """Sends the longest unused to disk until the rest is within the bound."""
        if self._folder is None:
            return
        there = [one for one in self._stored.items() if one[1].cells is not None]
        staying = [one for one in there if not one[1].moving]
        excess = sum(stored.bytes for _, stored in staying) - self._host_bytes
        for session, stored in staying:
            if excess <= 0:
                return
            # What was wanted back last would otherwise come and go for ever.
            if session != self._fetched:
                excess -= stored.bytes
                stored.moving = True
                self._writer.submit(self._write, session, stored)

    def _write(self, session: int, stored: _Stored) -> None:
        with self._lock:
            if self._stored.get(session) is not stored:
                return  # it was dropped while others were written
            cells, place = stored.cells, None
        assert cells is not None, "what is written is in memory until it is"
        try:
            place = self._folder_of(session)
            self._executor.save(place / "cells", cells, {})
        except Exception:  # a full disk: they stay where they are
            _log.exception("suspended cells could not be written to disk")
            if place is not None:
                _remove(place)
            with self._lock:
                stored.moving = False
            return
        with self._lock:
            stored.moving, stored.cells, stored.path = False, None, place
            gone = self._stored.get(session) is not stored
        if gone:
            _remove(place)
        else:
            self._moved(session)

    def _load(self, session: int, stored: _Stored) -> None:
        began_s, cells = time.monotonic(), self._read_patiently(stored)
        if stored.path is not None:
            _remove(stored.path)
        with self._lock:
            stored.moving, stored.cells, stored.path, stored.load = False, cells, None, None
            there = self._stored.get(session) is stored
            if there and cells is None:
                del self._stored[session]
            elif there and cells is not None:
                self._stored.move_to_end(session)
                self._fetched = session
                self._read_bytes += stored.bytes
                self._read_s += time.monotonic() - began_s
                self._spill()
        if there:
            self._moved(session)

    def _read_patiently(self, stored: _Stored) -> HostCells | None:
        """Cells from disk; None if they are lost. Too many open files, or too little memory, say
        nothing of the only copy that there is: it is tried again for a while."""
        for last in (*[False] * _TRIES, True):
            try:
                return self._read(stored)
            except Exception as error:
                if last or not is_passing(error):
                    _log.exception("suspended cells could not be read; they are computed again")
                    return None
                _log.warning("suspended cells could not be read yet: %s", error)
            if self._closing.wait(_PAUSE_S):
                return None
        return None

    def _read(self, stored: _Stored) -> HostCells | None:
        if stored.load is not None:
            return stored.load()
        assert stored.path is not None, "what is read was written"
        return self._executor.load(stored.path / "cells").cells

    def _folder_of(self, session: int) -> Path:
        """A new one."""
        if self._own is None:
            assert self._folder is not None
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            self._own = Path(tempfile.mkdtemp(prefix="suspended-", dir=self._folder))
        place = self._own / f"{session}-{next(self._files)}"
        place.mkdir()
        return place


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
