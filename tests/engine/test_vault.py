"""Cells that are away: what is in memory, what is on disk, and what is told when that changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from jaxstate.engine.executor.protocol import HostCells, Saved
from jaxstate.engine.memory.cell_store import CellStore
from jaxstate.engine.types.options import EngineConfig
from jaxstate.persist.files import Note
from jaxstate.testing import FakeClock, FakeExecutor
from tests.engine.rig import Rig, said
from tests.engine.test_residency import filled, small_rig


class SlowDisk(FakeExecutor):
    """Writes and reads wait until they may go on; either may fail."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.may_write, self.may_read = threading.Event(), threading.Event()
        self.may_write.set()
        self.may_read.set()
        self.broken = False

    def save(
        self, path: str | os.PathLike[str], cells: HostCells, notes: Mapping[str, Note]
    ) -> None:
        assert self.may_write.wait(30)
        if self.broken:
            raise OSError("no space left on device")
        super().save(path, cells, notes)

    def load(self, path: str | os.PathLike[str]) -> Saved:
        assert self.may_read.wait(30)
        if self.broken:
            raise OSError("input/output error")
        return super().load(path)


class Stored:
    """A cell store with room for 100 bytes in memory, and everything that it told."""

    def __init__(self, folder: Path) -> None:
        self.disk = SlowDisk()
        self.told: list[int] = []
        self.cell_store = CellStore(self.disk, 100, str(folder), self.told.append)
        self.folder = folder

    def put(self, session: int) -> HostCells:
        """Ten cells, 40 bytes."""
        array = np.full(10, session, np.int32)
        cells = HostCells(cells=10, arrays={"cells": array})
        self.cell_store.put(session, cells)
        return cells

    def places(self, *sessions: int) -> list[str]:
        return [self.cell_store.where(session) for session in sessions]

    def files(self) -> int:
        return len(list(self.folder.glob("suspended-*/*")))


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    made = Stored(tmp_path)
    yield made
    made.disk.may_write.set()
    made.disk.may_read.set()
    made.cell_store.close()
    assert not list(tmp_path.iterdir()), "files stay behind"


def test_the_longest_unused_goes_to_disk_and_comes_back_the_same(stored: Stored) -> None:
    first = stored.put(1)
    stored.put(2)
    assert stored.cell_store.get(1) is first
    stored.put(3)
    stored.cell_store.rest()
    assert stored.places(1, 2, 3, 4) == ["host", "disk", "host", "log"]
    assert stored.told == [2] and stored.files() == 1 and stored.cell_store.bytes == 80
    assert stored.cell_store.get(2) is None and stored.cell_store.read_s(40) is None
    assert stored.cell_store.want(2) and stored.cell_store.want(2)
    stored.cell_store.rest()
    back = stored.cell_store.get(2)
    assert back is not None
    np.testing.assert_array_equal(back.arrays["cells"], np.full(10, 2, np.int32))
    assert stored.places(1, 2, 3) == ["disk", "host", "host"], "another went for it"
    assert stored.cell_store.bytes == 80 and (stored.cell_store.read_s(40) or 0) > 0
    assert not stored.cell_store.want(2) and not stored.cell_store.want(4)


def test_what_is_being_written_is_still_there_and_makes_room_for_no_other(stored: Stored) -> None:
    stored.disk.may_write.clear()
    cells = [stored.put(session) for session in (1, 2, 3)]
    assert stored.places(1, 2, 3) == ["host"] * 3 and stored.cell_store.get(1) is cells[0]
    stored.put(4)
    stored.disk.may_write.set()
    stored.cell_store.rest()
    assert stored.places(1, 2, 3, 4) == ["disk", "disk", "host", "host"], "no more than needed"


def test_reading_does_not_wait_for_writing(stored: Stored) -> None:
    for session in (1, 2, 3):
        stored.put(session)
    stored.cell_store.rest()
    assert stored.places(1) == ["disk"]
    stored.disk.may_write.clear()
    stored.put(4)
    stored.cell_store.want(1)
    stored.cell_store._reader.submit(lambda: None).result(30)
    assert stored.places(1) == ["host"]


@pytest.mark.parametrize("when", ["written", "read"])
def test_cells_that_are_dropped_on_their_way_leave_no_file(stored: Stored, when: str) -> None:
    event = stored.disk.may_write if when == "written" else stored.disk.may_read
    if when == "written":
        event.clear()
    for session in (1, 2, 3):
        stored.put(session)
    if when == "read":
        stored.cell_store.rest()
        event.clear()
        stored.cell_store.want(1)
    told = list(stored.told)
    stored.cell_store.drop(1)
    again = stored.put(1)
    event.set()
    stored.cell_store.rest()
    assert stored.cell_store.get(1) is again, "what came later is not touched"
    assert 1 not in stored.told[len(told) :]
    stored.cell_store.drop(1)
    stored.cell_store.drop(2)
    stored.cell_store.drop(3)
    stored.cell_store.rest()
    assert stored.files() == 0


def test_a_full_disk_leaves_them_in_memory(stored: Stored) -> None:
    stored.disk.broken = True
    for session in (1, 2, 3):
        stored.put(session)
    stored.cell_store.rest()
    assert stored.places(1, 2, 3) == ["host"] * 3 and stored.told == [] and stored.files() == 0
    stored.disk.broken = False
    stored.put(4)
    stored.cell_store.rest()
    assert stored.places(1, 2, 3, 4) == ["disk", "disk", "host", "host"]


def test_what_the_disk_lost_is_nowhere(stored: Stored) -> None:
    for session in (1, 2, 3):
        stored.put(session)
    stored.cell_store.rest()
    stored.disk.broken = True
    stored.cell_store.want(1)
    stored.cell_store.rest()
    assert stored.places(1) == ["log"] and stored.told == [1, 1]


def test_one_larger_than_all_memory_stays_until_it_is_taken(tmp_path: Path) -> None:
    """Otherwise it would go back to disk as often as it came."""
    disk = SlowDisk()
    cell_store = CellStore(disk, 1, str(tmp_path), lambda _: None)
    cell_store.put(1, HostCells(cells=1, arrays={"cells": np.zeros(1, np.int32)}))
    cell_store.rest()
    assert cell_store.where(1) == "disk"
    cell_store.want(1)
    cell_store.rest()
    assert cell_store.where(1) == "host"
    cell_store.close()


def test_what_came_from_disk_goes_back_once_it_was_used(stored: Stored) -> None:
    for session in (1, 2, 3):
        stored.put(session)
    stored.cell_store.rest()
    stored.cell_store.want(1)
    stored.cell_store.rest()
    for session in (1, 2, 3):
        stored.cell_store.drop(session)
    for session in (1, 2, 3):
        stored.put(session)
    stored.cell_store.rest()
    assert stored.places(1, 2, 3) == ["disk", "host", "host"]


def test_what_is_dropped_before_it_is_written_leaves_memory(stored: Stored) -> None:
    stored.disk.may_write.clear()
    for session in range(1, 6):
        stored.put(session)
    waits = stored.cell_store._stored[2]
    stored.cell_store.drop(2)
    assert waits.cells is None
    stored.disk.may_write.set()
    stored.cell_store.rest()
    assert 2 not in stored.told and stored.files() == 2


def race(rig: Rig, change: Callable[[], None]) -> None:
    """Lets something happen between the room's decision and the move."""
    make = rig.engine._loop._mover._to_device

    def later(record: object) -> None:
        rig.engine._loop._mover._to_device = make
        change()
        make(record)  # pyright: ignore[reportArgumentType]

    rig.engine._loop._mover._to_device = later


def test_cells_that_go_to_disk_while_they_are_wanted_are_not_taken_for_lost(tmp_path: Path) -> None:
    """The move to the device was decided when they were in memory; the store has not told yet."""
    config = EngineConfig(resume="copy", host_bytes=64, disk_path=str(tmp_path))
    rig = small_rig(config)
    first, second = filled(rig, 16), filled(rig, 16)
    first.suspending()
    rig.engine.run()
    cell_store = rig.core.cell_store
    cell_store._moved = lambda _: None  # what it tells comes late

    def leave() -> None:
        cell_store._host_bytes = 1
        with cell_store._lock:
            cell_store._spill()
        cell_store.rest()

    race(rig, leave)
    future = first.submit("abc", max_tokens=1)
    rig.engine.turn()
    assert first.record.residence.place == "disk"
    cell_store._moved = rig.core._moved
    for _ in range(3):
        rig.engine.run()
        cell_store.rest()
    assert said(future) == "1 v1" and rig.engine.metrics().counts.tokens_rebuilt == 0
    second.close()
    rig.engine.close()
    cell_store.close()
