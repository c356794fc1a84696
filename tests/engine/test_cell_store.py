"""Cells that are away: what is in memory, what is in a checkpoint, and what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from jaxstate.engine.executor.protocol import HostCells
from jaxstate.engine.memory.cell_store import CellStore


def cells_of(session: int) -> HostCells:
    """Ten cells, 40 bytes."""
    return HostCells(cells=10, arrays={"cells": np.full(10, session, np.int32)})


class Stored:
    """A cell store with room for 100 bytes in memory, and everything that it told."""

    def __init__(self, host_bytes: int = 100) -> None:
        self.told: list[int] = []
        self.cell_store = CellStore(host_bytes, self.told.append)
        self.may_read = threading.Event()
        self.may_read.set()
        self.lost = False

    def put(self, session: int, **wanted: bool) -> list[int]:
        return self.cell_store.put(session, cells_of(session), **wanted)

    def checkpoint(self, session: int) -> None:
        def load() -> HostCells | None:
            assert self.may_read.wait(30)
            return None if self.lost else cells_of(session)

        self.cell_store.put_checkpoint(session, 40, load)

    def places(self, *sessions: int) -> list[str]:
        return [self.cell_store.where(session) for session in sessions]


@pytest.fixture
def stored() -> Iterator[Stored]:
    made = Stored()
    yield made
    made.may_read.set()
    made.cell_store.close()
    assert made.cell_store.bytes == 0


def test_the_longest_unused_is_given_up(stored: Stored) -> None:
    assert stored.put(1) == stored.put(2) == []
    assert stored.cell_store.get(1) is not None  # used, where looking does not count
    assert stored.cell_store.peek(2) is not None
    assert stored.put(3) == [2]
    assert stored.places(1, 2, 3, 4) == ["host", "log", "host", "log"]
    assert stored.cell_store.bytes == 80 and stored.told == []


def test_one_larger_than_all_memory_is_given_up_unless_it_is_wanted() -> None:
    small = Stored(host_bytes=39)
    assert small.put(1) == [1]
    assert small.put(1, wanted=True) == []
    assert small.put(2) == [2] and small.places(1, 2) == ["host", "log"]
    small.cell_store.drop(1)
    assert small.put(1) == [1]
    small.cell_store.close()


def test_what_is_given_up_comes_back_from_its_checkpoint(stored: Stored) -> None:
    stored.checkpoint(1)
    assert stored.places(1) == ["disk"] and stored.cell_store.get(1) is None
    for session in (1, 2, 3):
        stored.put(session)
    assert stored.places(1, 2, 3) == ["disk", "host", "host"]
    assert stored.cell_store.read_s(40) is None
    stored.may_read.clear()
    assert stored.cell_store.want(1) and stored.cell_store.want(1), "it is on its way"
    stored.may_read.set()
    stored.cell_store.rest()
    back = stored.cell_store.get(1)
    assert back is not None
    np.testing.assert_array_equal(back.arrays["cells"], np.full(10, 1, np.int32))
    assert stored.places(1, 2, 3) == ["host", "log", "host"], "another went for it"
    assert stored.told == [1, 2] and (stored.cell_store.read_s(40) or 0) > 0
    assert not stored.cell_store.want(1) and not stored.cell_store.want(4)
    stored.cell_store.drop(1)
    assert stored.places(1) == ["disk"], "it is still there"


def test_one_that_comes_from_a_checkpoint_stays_until_it_is_taken() -> None:
    """Otherwise it would be given up as often as it came."""
    small = Stored(host_bytes=0)
    small.checkpoint(1)
    small.cell_store.want(1)
    small.cell_store.rest()
    assert small.places(1) == ["host"]
    small.cell_store.close()


def test_what_the_disk_lost_is_nowhere(stored: Stored) -> None:
    stored.checkpoint(1)
    stored.lost = True
    stored.cell_store.want(1)
    stored.cell_store.rest()
    assert stored.places(1) == ["log"] and stored.told == [1]


def test_what_is_forgotten_on_its_way_does_not_come(stored: Stored) -> None:
    stored.checkpoint(1)
    stored.may_read.clear()
    stored.cell_store.want(1)
    stored.cell_store.forget(1)
    stored.may_read.set()
    stored.cell_store.rest()
    assert stored.places(1) == ["log"] and stored.told == []


def test_a_newer_checkpoint_is_read_where_the_older_one_was_on_its_way(stored: Stored) -> None:
    stored.checkpoint(1)
    stored.may_read.clear()
    stored.cell_store.want(1)
    stored.checkpoint(1)
    assert stored.cell_store.want(1)
    stored.may_read.set()
    stored.cell_store.rest()
    assert stored.places(1) == ["host"] and stored.told == [1]
