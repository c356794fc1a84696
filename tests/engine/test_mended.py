"""What use and review found in 0.4.0 inside the engine, each as the promise that was broken."""

from __future__ import annotations

import dataclasses
import errno
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import jaxstate
from jaxstate.cells.tables import GroupBlock
from jaxstate.engine.durability.recovery import JournalRecovery
from jaxstate.engine.executor.protocol import (
    HostCells,
    Lost,
    Pending,
    RowSizes,
    StepKind,
    StepOutput,
)
from jaxstate.engine.memory.cell_store import CellStore
from jaxstate.engine.sessions.dedup import IdempotencyTable, Pushed
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import ClosedError, JournalDamaged, StepFailed
from jaxstate.persist.segments import SegmentStore
from jaxstate.steps.packing import Row
from jaxstate.testing import (
    FAKE_LIMITS,
    SHARED_LIMITS,
    FakeClock,
    FakeExecutor,
    SteppedEngine,
    fake_layout,
    tiny_model,
)
from tests.engine.rig import Rig

SOON_S = 20.0


@pytest.mark.parametrize("shared", [True, False])
def test_a_session_with_many_asks_does_not_stand_before_another(shared: bool) -> None:
    """Also where a step has more rows than a session may have of them."""
    limits = dataclasses.replace(
        SHARED_LIMITS,
        layout=fake_layout(512, 8192),
        sessions=16,
        tail_blocks=512,
        rows=32,
        session_rows=8,
        step_sessions=64 if shared else 1,
        row_sizes=RowSizes(sizes=(1, 8, 32), overhead_tokens=32),
        start_rows=((16, 32), (32, 32)),
        chunk_rows=((16, (1, 8, 64) if shared else (1,)),),
    )
    rig = Rig(limits=limits)
    many, one = rig.open("xx"), rig.open("xx")
    before = [many.submit(f"q{n:03}", max_tokens=2) for n in range(200)]
    rig.clock.pass_s(0.001)
    asked = one.submit("mine", max_tokens=2)
    while not asked.done():
        rig.turns(1)
    assert sum(future.done() for future in before) <= 2 * limits.rows


def test_forks_do_not_starve_asks() -> None:
    rig = Rig()
    session = rig.open("x")
    asked, turns = session.submit("q", max_tokens=2), 0
    while not asked.done():
        rig.manager.fork(session.record, None)
        rig.turns(1)
        turns += 1
        assert turns < 10


@pytest.mark.parametrize("level", ["memory", "os", "fsync"])
def test_what_was_erased_is_off_the_disk_at_return(tmp_path: Path, level: str) -> None:
    """However slow the disk is, and whatever the engine promises for the rest."""
    secret = b"SECRETSECRET"
    engine = jaxstate.Engine(
        tiny_model(),
        executor=FakeExecutor(FakeClock()),
        clock=time.perf_counter,
        journal=tmp_path / "j",
        durability=level,  # pyright: ignore[reportArgumentType]
    )
    with engine:
        session = engine.open("x")
        session.push(secret.decode() * 3)
        session.wait(timeout=SOON_S)
        journal = engine._core.journal_writer.journal
        assert journal is not None
        commit = journal._commit

        def slowly(batch: object) -> object:
            time.sleep(0.3)
            return commit(batch)  # pyright: ignore

        journal._commit = slowly  # pyright: ignore
        session.close(erase=True)
        files = [path for path in (tmp_path / "j").rglob("*") if path.is_file()]
        assert [path.name for path in files if secret in path.read_bytes()] == []


def test_a_flash_hit_needs_no_lock() -> None:
    engine = jaxstate.Engine(
        tiny_model(), executor=FakeExecutor(FakeClock()), clock=time.perf_counter
    )
    with engine:
        session = engine.open()
        session.flash("q")
        session.wait_fresh(timeout=SOON_S)
        found: list[jaxstate.Answer] = []
        with engine._core.lock:
            asking = threading.Thread(target=lambda: found.append(session.ask("q")))
            asking.start()
            asking.join(SOON_S)
            assert [one.source for one in found] == ["flash"]
        for _ in range(2000):  # more than are noted without being counted
            session.ask("q")
        counted = engine.metrics().ask_latency_s["flash"]
        assert counted.count == 2001


def test_nobody_waits_for_a_disk_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxstate.engine.core import journal_writer

    journal = tmp_path / "j"
    device = {"executor": FakeExecutor(FakeClock()), "clock": time.perf_counter}
    with jaxstate.Engine(tiny_model(), journal=journal, **device) as engine:  # pyright: ignore
        first = engine.open("a").push("one", client="c", client_seq=1)
    device["executor"] = FakeExecutor(FakeClock())
    with jaxstate.Engine(tiny_model(), journal=journal, **device) as engine:  # pyright: ignore
        looked: list[str] = []
        for name in ("last_seq", "push_of"):
            real = getattr(journal_writer, name)

            def look(*arguments: object, real: object = real, name: str = name) -> object:
                assert engine._core.lock.acquire(timeout=5), f"{name} is read under the lock"
                engine._core.lock.release()
                looked.append(name)
                return real(*arguments)  # pyright: ignore

            monkeypatch.setattr(journal_writer, name, look)
        session = engine.session("a")
        again = session.push("one", client="c", client_seq=1)
        assert (again.first, again.last) == (first.first, first.last)
        assert session.client_seq("c") == 1 and session.client_seq("new") is None
        assert looked == ["last_seq", "push_of", "last_seq"]


def test_clients_that_are_in_the_journal_are_forgotten_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jaxstate.engine.sessions.dedup.MOST_CLIENTS", 10)

    class Older:
        def last_seq(self, client: str) -> int:
            return int(client)

        def push_of(self, client: str, seq: int) -> None:
            return None

    receipts = IdempotencyTable(Older())
    for number in range(100):
        read = receipts.unread(str(number))
        assert read is not None
        read()()
        assert receipts.last_of(str(number)) == number
    assert len(receipts._last) <= 11


def test_an_error_that_passes_does_not_cost_the_only_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxstate.engine.memory.cell_store._PAUSE_S", 0.01)
    moved, left = threading.Event(), [errno.EMFILE, errno.ENOMEM, errno.EMFILE]
    cells = HostCells(cells=5, arrays={"cells": np.arange(5, dtype=np.int32)})

    def load() -> HostCells:
        if left:
            raise OSError(left.pop(), "not now")
        return cells

    cell_store = CellStore(0, lambda _: moved.set())
    cell_store.put_checkpoint(7, cells.bytes, load)
    assert cell_store.want(7) and moved.wait(SOON_S)
    assert cell_store.get(7) is cells
    cell_store.close()


def test_a_fault_of_our_own_is_not_called_a_damaged_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(journal=tmp_path / "j")
    rig.open("abcd", id="a")
    rig.engine.close()

    def broken(*_: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(JournalRecovery, "_state", broken)
    again = Rig(journal=tmp_path / "j")
    ((name, reason),) = again.engine.recovery.failed
    assert name == "a" and "fault of jaxstate's own" in reason
    assert JournalDamaged.__name__ not in reason
    again.engine.close()


def test_what_is_about_to_be_named_is_not_cleared_away(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    name = "a" * 64
    with store.claiming() as claim:
        claim(name)
        store.write(name, lambda cells: cells.mkdir())
        with store.lock:  # nobody holds it while a piece is made
            store.clear(set())
        assert store.has(name)
        store.write(name, lambda cells: cells.mkdir())
    with store.lock:
        store.clear(set())
    assert not store.has(name) and list(tmp_path.iterdir()) == []


def test_a_repeat_in_line_for_room_lets_the_others_in() -> None:
    """Who finds that it was taken already stands in nobody's way any more."""
    rig = Rig(config=EngineConfig(queue_entries=2))
    session = rig.open()
    session.push(["a", "b"])
    first, repeat = (session.prepare("c", "feed", 1) for _ in range(2))
    assert all(isinstance(session.push_prepared(one), Future) for one in (first, repeat))
    rig.engine.run()
    taken = session.push_prepared(first)
    assert isinstance(taken, Pushed) and session.push_prepared(repeat) == taken
    rig.engine.run()
    assert session.push("d").last == 4 and not session.record.room_waiters


@dataclasses.dataclass
class _Checked:
    """A step that fails if its device is lost before it is done."""

    executor: _Dead
    done: Pending[StepOutput]

    def get(self) -> StepOutput:
        self.executor.check()
        return self.done.get()


class _Dead(FakeExecutor):
    """A device that is lost for good once a test says so."""

    dead = False

    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        done = super().run(kind, rows)
        return _Checked(self, done)

    def wipe(self, blocks: Sequence[GroupBlock]) -> None:
        self.check()
        super().wipe(blocks)

    def recover(self) -> Lost:
        self.check()
        return super().recover()

    def check(self) -> None:
        if self.dead:
            raise RuntimeError("the device is lost")


@pytest.mark.parametrize("what", ["erase", "ask"])
def test_a_device_that_does_not_recover_leaves_nobody_waiting(what: str) -> None:
    executor = _Dead(FakeClock(), limits=dataclasses.replace(FAKE_LIMITS, steps_ahead=1))
    with jaxstate.Engine(tiny_model(), executor=executor, clock=time.perf_counter) as engine:
        session = engine.open(prefix="abc")
        session.push("x")
        session.wait(timeout=SOON_S)
        executor.dead = True
        calls = {
            "erase": lambda: session.close(erase=True),
            "ask": lambda: session.ask("q", timeout=SOON_S),
        }
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(calls[what])
            with pytest.raises((ClosedError, StepFailed)):
                asked.result(SOON_S)


def test_a_job_that_waits_for_a_step_in_flight_ends_with_the_device() -> None:
    clock = FakeClock()
    executor = _Dead(clock, limits=dataclasses.replace(FAKE_LIMITS, steps_ahead=1))
    engine = SteppedEngine(executor, clock)
    session = engine.open(prefix="abc")
    engine.run()
    session.push("x")
    assert engine.turn()  # its step is in flight
    _, forked = engine._manager.fork(session.record, None, 0)
    executor.dead = True
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.turn()
    engine.close()
    with pytest.raises(ClosedError):
        forked.result(0)


def test_what_was_read_of_receipts_is_kept_under_the_lock() -> None:
    class _Older:
        def push_of(self, client: str, seq: int) -> None:
            return None

        def last_seq(self, client: str) -> int:
            return 7

    table = IdempotencyTable(_Older())
    read = table.unread("feed")
    assert read is not None
    keep = read()  # without the lock: nothing has changed
    assert table.last_of("feed") is None and table.unread("feed") is not None
    keep()
    assert table.last_of("feed") == 7 and table.unread("feed") is None
