"""Cells that are away: what is in memory, what is on disk, and what is told when that changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from jaxstate.engine.executor.protocol import HostCells, Saved
from jaxstate.engine.memory.cell_store import Vault
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
    """A vault with room for 100 bytes in memory, and everything that it told."""

    def __init__(self, folder: Path) -> None:
        self.disk = SlowDisk()
        self.told: list[int] = []
        self.vault = Vault(self.disk, 100, str(folder), self.told.append)
        self.folder = folder

    def put(self, session: int) -> HostCells:
        """Ten cells, 40 bytes."""
        array = np.full(10, session, np.int32)
        cells = HostCells(cells=10, arrays={"cells": array})
        self.vault.put(session, cells)
        return cells

    def places(self, *sessions: int) -> list[str]:
        return [self.vault.where(session) for session in sessions]

    def files(self) -> int:
        return len(list(self.folder.glob("suspended-*/*")))


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    made = Stored(tmp_path)
    yield made
    made.disk.may_write.set()
    made.disk.may_read.set()
    made.vault.close()
    assert not list(tmp_path.iterdir()), "files stay behind"


def test_the_longest_unused_goes_to_disk_and_comes_back_the_same(stored: Stored) -> None:
    first = stored.put(1)
    stored.put(2)
    assert stored.vault.get(1) is first
    stored.put(3)
    stored.vault.rest()
    assert stored.places(1, 2, 3, 4) == ["host", "disk", "host", "log"]
    assert stored.told == [2] and stored.files() == 1 and stored.vault.bytes == 80
    assert stored.vault.get(2) is None and stored.vault.read_s(40) is None
    assert stored.vault.want(2) and stored.vault.want(2)
    stored.vault.rest()
    back = stored.vault.get(2)
    assert back is not None
    np.testing.assert_array_equal(back.arrays["cells"], np.full(10, 2, np.int32))
    assert stored.places(1, 2, 3) == ["disk", "host", "host"], "another went for it"
    assert stored.vault.bytes == 80 and (stored.vault.read_s(40) or 0) > 0
    assert not stored.vault.want(2) and not stored.vault.want(4)


def test_what_is_being_written_is_still_there_and_makes_room_for_no_other(stored: Stored) -> None:
    stored.disk.may_write.clear()
    cells = [stored.put(session) for session in (1, 2, 3)]
    assert stored.places(1, 2, 3) == ["host"] * 3 and stored.vault.get(1) is cells[0]
    stored.put(4)
    stored.disk.may_write.set()
    stored.vault.rest()
    assert stored.places(1, 2, 3, 4) == ["disk", "disk", "host", "host"], "no more than needed"


def test_reading_does_not_wait_for_writing(stored: Stored) -> None:
    for session in (1, 2, 3):
        stored.put(session)
    stored.vault.rest()
    assert stored.places(1) == ["disk"]
    stored.disk.may_write.clear()
    stored.put(4)
    stored.vault.want(1)
    stored.vault._reader.submit(lambda: None).result(30)
    assert stored.places(1) == ["host"]


@pytest.mark.parametrize("when", ["written", "read"])
def test_cells_that_are_dropped_on_their_way_leave_no_file(stored: Stored, when: str) -> None:
    event = stored.disk.may_write if when == "written" else stored.disk.may_read
    if when == "written":
        event.clear()
    for session in (1, 2, 3):
        stored.put(session)
    if when == "read":
        stored.vault.rest()
        event.clear()
        stored.vault.want(1)
    told = list(stored.told)
    stored.vault.drop(1)
    again = stored.put(1)
    event.set()
    stored.vault.rest()
    assert stored.vault.get(1) is again, "what came later is not touched"
    assert 1 not in stored.told[len(told) :]
    stored.vault.drop(1)
    stored.vault.drop(2)
    stored.vault.drop(3)
    stored.vault.rest()
    assert stored.files() == 0


def test_a_full_disk_leaves_them_in_memory(stored: Stored) -> None:
    stored.disk.broken = True
    for session in (1, 2, 3):
        stored.put(session)
    stored.vault.rest()
    assert stored.places(1, 2, 3) == ["host"] * 3 and stored.told == [] and stored.files() == 0
    stored.disk.broken = False
    stored.put(4)
    stored.vault.rest()
    assert stored.places(1, 2, 3, 4) == ["disk", "disk", "host", "host"]


def test_what_the_disk_lost_is_nowhere(stored: Stored) -> None:
    for session in (1, 2, 3):
        stored.put(session)
    stored.vault.rest()
    stored.disk.broken = True
    stored.vault.want(1)
    stored.vault.rest()
    assert stored.places(1) == ["log"] and stored.told == [1, 1]


def test_one_larger_than_all_memory_stays_until_it_is_taken(tmp_path: Path) -> None:
    """Otherwise it would go back to disk as often as it came."""
    disk = SlowDisk()
    vault = Vault(disk, 1, str(tmp_path), lambda _: None)
    vault.put(1, HostCells(cells=1, arrays={"cells": np.zeros(1, np.int32)}))
    vault.rest()
    assert vault.where(1) == "disk"
    vault.want(1)
    vault.rest()
    assert vault.where(1) == "host"
    vault.close()


def test_what_came_from_disk_goes_back_once_it_was_used(stored: Stored) -> None:
    for session in (1, 2, 3):
        stored.put(session)
    stored.vault.rest()
    stored.vault.want(1)
    stored.vault.rest()
    for session in (1, 2, 3):
        stored.vault.drop(session)
    for session in (1, 2, 3):
        stored.put(session)
    stored.vault.rest()
    assert stored.places(1, 2, 3) == ["disk", "host", "host"]


def test_what_is_dropped_before_it_is_written_leaves_memory(stored: Stored) -> None:
    stored.disk.may_write.clear()
    for session in range(1, 6):
        stored.put(session)
    waits = stored.vault._stored[2]
    stored.vault.drop(2)
    assert waits.cells is None
    stored.disk.may_write.set()
    stored.vault.rest()
    assert 2 not in stored.told and stored.files() == 2


def race(rig: Rig, change: Callable[[], None]) -> None:
    """Lets something happen between the room's decision and the move."""
    make = rig.engine._loop._mover._to_device

    def later(book: object) -> None:
        rig.engine._loop._mover._to_device = make
        change()
        make(book)  # pyright: ignore[reportArgumentType]

    rig.engine._loop._mover._to_device = later


def test_cells_that_go_to_disk_while_they_are_wanted_are_not_taken_for_lost(tmp_path: Path) -> None:
    """The move to the device was decided when they were in memory; the vault has not told yet."""
    config = EngineConfig(resume="copy", host_bytes=64, disk_path=str(tmp_path))
    rig = small_rig(config)
    first, second = filled(rig, 16), filled(rig, 16)
    first.suspending()
    rig.engine.run()
    vault = rig.desk.vault
    vault._moved = lambda _: None  # what it tells comes late

    def leave() -> None:
        vault._host_bytes = 1
        with vault._lock:
            vault._spill()
        vault.rest()

    race(rig, leave)
    future = first.submit("abc", max_tokens=1)
    rig.engine.turn()
    assert first.book.residence.place == "disk"
    vault._moved = rig.desk._moved
    for _ in range(3):
        rig.engine.run()
        vault.rest()
    assert said(future) == "1 v1" and rig.engine.metrics().counts.tokens_rebuilt == 0
    second.close()
    rig.engine.close()
    vault.close()
