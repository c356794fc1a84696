"""Sessions that leave the device and come back, worked out on the fake device.

Blocks have 8 cells. A session opens with nothing, so it has as many cells as its entries have
bytes, line breaks included. A fetch takes 2 s, a place 1.5 s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.protocol import HostCells, Lost
from jaxstate.engine.memory.swap_policy import Move, Now
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.types.options import EngineConfig, Policy
from jaxstate.engine.types.values import Moved
from jaxstate.errors import BudgetExceeded, InvalidInput
from jaxstate.testing import SHARED_LIMITS, fake_layout
from tests.engine.journals import read_all
from tests.engine.rig import Rig, read, said

COPY = EngineConfig(scheduling=Policy(room_patience=4))
REBUILD = EngineConfig(host_bytes=0)
SMALL = dataclasses.replace(SHARED_LIMITS, layout=fake_layout(64, 64))


def small_rig(config: EngineConfig = COPY, *, cells: int = 64, session_cells: int = 64) -> Rig:
    """A pool of 8 blocks."""
    limits = dataclasses.replace(SHARED_LIMITS, layout=fake_layout(session_cells, cells))
    return Rig(limits=limits, config=config)


def filled(rig: Rig, cells: int, **settings: object) -> Session:
    """A session with so many cells."""
    return rig.open("x" * (cells - 1), **settings)


def residencies(*sessions: Session) -> list[str]:
    return [session.info().residency for session in sessions]


def test_an_idle_session_leaves_for_one_that_needs_its_room() -> None:
    """Two of 40 cells (5 blocks) do not fit into 8 blocks; each comes back when it is asked."""
    rig = small_rig()
    first = filled(rig, 40)
    second = rig.open()
    events = first.subscribe()
    read(events)
    second.push("y" * 39)
    rig.engine.run()
    assert rig.news() == ["fetch s1", "extend s2 16", "extend s2 16", "extend s2 8"]
    assert residencies(first, second) == ["host", "device"]
    assert [(e.to, e.cells) for e in read(events) if isinstance(e, Moved)] == [("host", 40)]
    rig.news()
    future = first.submit("abc", max_tokens=1)
    rig.engine.run()
    assert said(future) == "4 v1"  # 40 cells
    assert rig.news() == ["fetch s2", "place s1", "start s1 x1"]
    assert residencies(first, second) == ["device", "host"]
    assert rig.cells(first) == list(b"x" * 39 + b"\n")
    rig.at_rest()


def test_the_longest_unused_leaves_first() -> None:
    rig = small_rig()
    one, two = filled(rig, 24), filled(rig, 24)
    rig.clock.pass_s(10)
    one.submit("q", max_tokens=1)
    rig.engine.run()
    three = filled(rig, 24)
    assert residencies(one, two, three) == ["device", "host", "device"]


def test_reserved_cells_are_there_and_a_reserve_that_does_not_fit_is_refused() -> None:
    rig = small_rig()
    kept = filled(rig, 8, reserve=40)
    with pytest.raises(BudgetExceeded) as refused:
        rig.engine.open(reserve=32)
    assert "needs 32 cells and could have 24" in str(refused.value)
    assert "of 64 cells 40 are reserved or pinned" in str(refused.value)
    assert len(rig.engine.sessions()) == 1, "nothing was opened"
    beside = rig.open(reserve=24)
    with pytest.raises(BudgetExceeded):
        beside.push("z" * 32)  # 33 cells: it could never have them
    kept.push("y" * 31)
    beside.push("z" * 23)
    rig.engine.run()
    assert (kept.info().tokens, beside.info().tokens) == (40, 24)
    assert residencies(kept, beside) == ["device", "device"]
    rig.check_blocks()


def test_a_reserve_of_nothing_is_fine_and_wrong_ones_are_refused() -> None:
    rig = small_rig()
    rig.engine.open(reserve=0)
    for wrong in (-1, 2.5, "many", True):
        with pytest.raises(InvalidInput):
            rig.engine.open(reserve=wrong)  # pyright: ignore
    with pytest.raises(InvalidInput, match="pinned"):
        rig.engine.open(residency="always")  # pyright: ignore


def test_a_pinned_session_never_leaves() -> None:
    rig = small_rig()
    pinned = filled(rig, 32, residency="pinned")
    other = filled(rig, 32)
    assert residencies(pinned, other) == ["device", "device"]
    third = filled(rig, 16)
    assert residencies(pinned, other, third) == ["device", "host", "device"]
    with pytest.raises(InvalidInput, match="pinned"):
        pinned.suspending()
    with pytest.raises(BudgetExceeded):
        other.push("z" * 16)  # 49 cells, and 32 can never be its
    with pytest.raises(BudgetExceeded):
        pinned.push("z" * 8)  # 41: the 32 of the second could never come back
    rig.engine.run()
    assert pinned.info().pending == other.info().pending == 0


def test_growth_past_the_pool_alternates_and_ends(many: int = 4) -> None:
    """Four sessions of 40 cells each in 64: everything that was accepted is read."""
    rig = small_rig()
    sessions = [rig.open() for _ in range(many)]
    for turn in range(5):
        for number, session in enumerate(sessions):
            session.push(f"{number}{turn}" + "x" * 5)
    rig.engine.run()
    for session in sessions:
        assert (session.version, session.info().tokens) == (5, 40)
    futures = [session.submit("q", max_tokens=2) for session in sessions]
    rig.engine.run()
    assert [said(future) for future in futures] == ["40 v5"] * many
    rig.at_rest()


def test_a_session_at_work_leaves_after_its_patience() -> None:
    """A session that is pushed to without end does not keep the other out."""
    rig = small_rig(cells=32, session_cells=32)
    busy, other = rig.open(), rig.open()
    for _ in range(3):
        busy.push("x" * 7)
    rig.engine.run()
    flash = busy.flash("f" * 8, max_tokens=9)
    other.push("y" * 15)
    for _ in range(200):
        if flash.fresh and not busy.record.asks:
            busy.submit("q" * 8, max_tokens=9)
        if not rig.engine.turn():
            break
        if other.version == 1:
            return
    raise AssertionError("the other session never had its turn")


def test_suspending_gives_a_reserve_up() -> None:
    rig = small_rig()
    session = filled(rig, 32, reserve=64)
    rig.news()
    with pytest.raises(BudgetExceeded):
        rig.engine.open(reserve=8)
    left = session.suspending()
    rig.engine.run()
    assert left.done() and rig.news() == ["fetch s1"]
    assert session.info().residency == "host"
    other = rig.open(reserve=8)
    session.push("y" * 7)
    rig.engine.run()
    assert rig.news() == ["place s1", "extend s1 8"]
    assert session.version == 2
    with pytest.raises(BudgetExceeded):
        session.push("y" * 17)  # 58 cells, and 8 of 64 are reserved
    other.close()


def test_a_suspended_session_finishes_what_is_under_way_first() -> None:
    rig = small_rig()
    session = filled(rig, 16)
    future = session.submit("abc")
    rig.turns(1)
    later = session.submit("de", max_tokens=1)
    left = session.suspending()
    rig.engine.run()
    assert said(future) == "16:3 v1" and said(later) == "1 v1" and left.done()
    news = rig.news()
    assert news[:6] == ["start s1 x1", *["decode s1 x1"] * 4, "fetch s1"]
    assert news[6:] == ["place s1", "start s1 x1"], "it is used, so it comes back"


def test_flash_queries_under_way_begin_again_after_a_move() -> None:
    rig = small_rig()
    session = filled(rig, 16)
    query = session.flash("fl")
    rig.turns(2)
    session.suspending()
    rig.engine.run()
    assert query.fresh and query.answer is not None and query.answer.text == "16:2"
    assert rig.engine.metrics().counts.flash_rows_dropped == 1
    rig.at_rest()


def test_resuming_brings_the_cells_ahead_of_their_use() -> None:
    rig = small_rig()
    session = filled(rig, 16)
    session.suspending()
    rig.engine.run()
    back = session.resuming()
    assert not back.done()
    rig.engine.run()
    assert back.done() and rig.news() == ["fetch s1", "place s1"]
    again = session.resuming()
    assert again.done()


def test_suspending_a_session_that_is_away_gives_its_reserve_up_and_stops_its_return() -> None:
    rig = small_rig(EngineConfig(idle_s=1.0))
    session = filled(rig, 16, reserve=64)
    rig.clock.pass_s(5.0)
    rig.engine.run()
    assert session.info().residency == "host"
    session.resuming()
    assert session.suspending().done()
    rig.engine.run()
    assert session.info().residency == "host"
    rig.engine.open(reserve=64 - 16)


def test_a_session_that_is_to_come_back_does_not_leave() -> None:
    rig = small_rig()
    session = filled(rig, 16)
    left, back = session.suspending(), session.resuming()
    rig.engine.run()
    assert left.done() and back.done() and session.info().residency == "device"


@pytest.mark.parametrize("call", ["fetch", "place"])
def test_a_move_that_fails_keeps_nobody_waiting(call: str) -> None:
    rig = small_rig()
    session = filled(rig, 16)
    if call == "place":
        session.suspending()
        rig.engine.run()
    assert call in ("fetch", "place")
    rig.executor.fail_next(call)  # pyright: ignore[reportArgumentType]
    waiting = session.suspending() if call == "fetch" else session.resuming()
    rig.engine.run()
    assert waiting.done()
    future = session.submit("abc", max_tokens=1)
    rig.engine.run()
    assert said(future) == "1 v1" and rig.cells(session) == list(b"x" * 15 + b"\n")


def test_rebuilding_reads_the_log_again() -> None:
    rig = small_rig(EngineConfig(host_bytes=0))
    session = rig.open("x" * 9)
    session.push("y" * 9)
    rig.engine.run()
    rig.news()
    left = session.suspending()
    rig.engine.run()
    assert left.done() and session.info().residency == "log" and session.info().bytes == 0
    future = session.submit("abc", max_tokens=1)
    rig.engine.run()
    assert said(future) == "2 v2"
    assert rig.news() == ["extend s1 16", "extend s1 4", "start s1 x1"]
    assert rig.cells(session) == list(b"x" * 9 + b"\n" + b"y" * 9 + b"\n")
    assert rig.engine.metrics().counts.tokens_rebuilt == 20


def is_back(session: Session) -> bool:
    """On the device, and all of its cells with it."""
    return session.info().residency == "device" and not session.record.residence.missing


@pytest.mark.parametrize("called", ["away", "half there"])
def test_resuming_a_session_that_is_rebuilt_ends_when_its_cells_are_there(called: str) -> None:
    """16, 16 and 8 are read after it has arrived."""
    rig = small_rig(REBUILD)
    session = filled(rig, 40)
    session.suspending()
    rig.engine.run()
    assert residencies(session) == ["log"]
    if called == "half there":
        session.submit("abc")
        rig.turns(2)
        assert session.record.residence.missing == 24
    back, steps = session.resuming(), 0
    while not is_back(session):
        assert not back.done()
        rig.turns(1)
        steps += 1
    assert back.done() and steps == (4 if called == "away" else 2)
    assert rig.cells(session) == list(b"x" * 39 + b"\n")
    assert session.resuming().done()


def test_a_session_that_is_sent_away_on_its_way_back_still_comes() -> None:
    """The device loses all cells after 16 of 40: it arrives twice, and is waited for once."""
    rig = small_rig(REBUILD)
    session = filled(rig, 40)
    session.suspending()
    rig.engine.run()
    rig.news()
    back = session.resuming()
    rig.turns(2)
    rig.executor.loses = Lost(rows=True, cells=True)
    rig.executor.fail_next("extend")
    rig.turns(1)
    assert residencies(session) == ["log"] and not back.done()
    while not is_back(session):
        assert not back.done()
        assert rig.engine.turn()
    assert back.done()
    assert rig.news() == ["extend s1 16", "extend s1 16", "extend s1 16", "extend s1 8"]
    assert rig.engine.metrics().counts.sessions_resumed == 2
    rig.at_rest()


@pytest.mark.parametrize(("lost", "read_before"), [(False, 0), (True, 16)])
def test_what_is_read_again_after_a_failure_is_counted_once(lost: bool, read_before: int) -> None:
    """The second of three chunks fails, when they are read and when they are rebuilt; what was
    there before it is rebuilt if it was lost."""
    rig = small_rig(REBUILD)
    rig.executor.loses = Lost(rows=lost, cells=lost)
    session = rig.open()
    session.push("x" * 39)
    rig.turns(1)
    rig.executor.fail_next("extend")
    rig.engine.run()
    counts = rig.engine.metrics().counts
    assert (counts.tokens_ingested, counts.tokens_rebuilt) == (40, read_before)
    session.suspending()
    rig.engine.run()
    session.resuming()
    rig.turns(2)
    rig.executor.fail_next("extend")
    rig.engine.run()
    assert is_back(session)
    counts = rig.engine.metrics().counts
    assert (counts.tokens_ingested, counts.tokens_rebuilt) == (40, 2 * read_before + 40)


def test_what_was_half_read_is_read_on_after_a_move() -> None:
    """16 of 33 tokens are read when the session is sent away."""
    for host_bytes in (1 << 30, 0):
        rig = small_rig(EngineConfig(host_bytes=host_bytes))
        session = rig.open("ab")
        session.push("y" * 32)
        rig.turns(1)
        session.suspending()
        rig.engine.run()
        assert session.version == 2
        assert rig.cells(session) == list(b"ab\n" + b"y" * 32 + b"\n")


def test_an_idle_session_leaves_after_its_time() -> None:
    rig = small_rig(EngineConfig(idle_s=60.0))
    session, pinned = filled(rig, 16), filled(rig, 16, residency="pinned")
    assert rig.engine.until_s == pytest.approx(session.record.residence.used_s + 60.0)
    rig.clock.pass_s(57.0)
    rig.engine.run()
    assert residencies(session, pinned) == ["device", "device"]
    rig.clock.pass_s(5.0)
    rig.engine.run()
    assert residencies(session, pinned) == ["host", "device"]
    assert rig.engine.until_s is None


def test_an_idle_session_leaves_on_time_though_others_work() -> None:
    """The fake device takes 1 s for each of the other's entries."""
    rig = small_rig(EngineConfig(idle_s=5.0))
    idle, busy = filled(rig, 16), rig.open("x")
    used_s = idle.record.residence.used_s
    for _ in range(20):
        busy.push("x")
        while busy.info().pending:
            rig.engine.turn()
        if rig.clock() < used_s + 5.0:
            assert idle.info().residency == "device"
        if rig.clock() > used_s + 6.1:
            break
    assert idle.info().residency == "host" and busy.info().residency == "device"


def test_no_more_sessions_are_on_the_device_than_may_be() -> None:
    limits = dataclasses.replace(SHARED_LIMITS, sessions=2)
    rig = Rig(limits=limits, config=COPY)
    sessions = [filled(rig, 8) for _ in range(3)]
    assert residencies(*sessions) == ["host", "device", "device"]


def test_memory_past_its_bound_is_given_up() -> None:
    """Each session's arrays have 4 bytes a cell: one of 16 cells fits into 64 bytes, and the one
    that left last has it."""
    rig = small_rig(EngineConfig(host_bytes=64))
    first, second, large = filled(rig, 16), filled(rig, 16), filled(rig, 17)
    for session in (first, second, large):
        session.suspending()
        rig.engine.run()
    assert residencies(first, second, large) == ["log", "host", "log"]
    future = first.submit("abc", max_tokens=1)
    rig.engine.run()
    assert said(future) == "1 v1" and rig.cells(first) == list(b"x" * 15 + b"\n")
    assert rig.engine.metrics().counts.tokens_rebuilt == 16
    rig.at_rest()


def test_a_restored_session_stays_in_memory_until_it_is_placed(tmp_path: Path) -> None:
    """However large it is; what was given up for it says so."""
    rig = small_rig(EngineConfig(host_bytes=64))
    first = filled(rig, 16)
    first.suspending()
    rig.engine.run()
    tokens = np.arange(17, dtype=np.int32)
    cells = HostCells(cells=17, arrays={"cells": tokens, "tokens": tokens})
    rig.executor.save(tmp_path / "saved", cells, {"entries": 3})
    back = rig.engine.restore(tmp_path / "saved")
    assert residencies(first, back) == ["log", "host"]
    rig.engine.run()
    assert rig.cells(back) == list(range(17))
    assert rig.engine.metrics().counts.tokens_rebuilt == 0
    rig.at_rest()


def test_what_memory_had_no_room_for_comes_back_from_the_snapshot(tmp_path: Path) -> None:
    """What was read after it is computed again."""
    config = EngineConfig(host_bytes=0)
    rig = Rig(limits=SMALL, config=config, journal=tmp_path / "j")
    session = filled(rig, 16)
    assert rig.engine.snapshot() == 1
    session.push("y" * 7)
    rig.engine.run()
    session.suspending()
    rig.engine.run()
    assert session.info().residency == "disk" and session.info().resume_s is None
    future = session.submit("abc", max_tokens=1)
    read_all(rig)
    assert said(future) == "2 v2"
    assert rig.cells(session) == list(b"x" * 15 + b"\n" + b"y" * 7 + b"\n")
    assert rig.engine.metrics().counts.tokens_rebuilt == 8
    session.suspending()
    rig.engine.run()
    assert session.info().residency == "disk" and (session.info().resume_s or 0) > 0
    rig.engine.close()


@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_a_snapshot_that_the_disk_lost_is_computed_again(tmp_path: Path, damage: str) -> None:
    rig = Rig(limits=SMALL, config=EngineConfig(host_bytes=0), journal=tmp_path / "j")
    session = filled(rig, 16)
    rig.engine.snapshot()
    session.suspending()
    rig.engine.run()
    for file in (tmp_path / "j" / "segments").rglob("*"):
        if file.is_file():
            file.unlink() if damage == "gone" else file.write_bytes(b"nonsense")
    future = session.submit("abc", max_tokens=1)
    read_all(rig)
    assert said(future) == "1 v1"
    assert rig.engine.metrics().counts.tokens_rebuilt == 16
    rig.engine.close()


def test_a_closed_session_leaves_nothing_in_memory() -> None:
    rig = small_rig(EngineConfig(host_bytes=64))
    sessions = [filled(rig, 16) for _ in range(3)]
    for session in sessions[:2]:
        session.suspending()
        rig.engine.run()
    for session in sessions:
        session.close()
    rig.engine.run()
    gauges = rig.engine.metrics().gauges
    assert (gauges.cells_held, gauges.host_bytes, gauges.cells_free) == (0, 0, 64)


# --- what happens in the midst of a move --------------------------------------------------------


def meanwhile(rig: Rig, call: str, act: Callable[[], object]) -> None:
    """Lets something happen while the device is in that call, without the lock, once."""
    real = getattr(rig.executor, call)

    def then(*args: object) -> object:
        setattr(rig.executor, call, real)
        act()
        return real(*args)

    setattr(rig.executor, call, then)


def test_a_resume_in_the_midst_of_coming_ends_when_the_cells_are_there() -> None:
    """The first placing fails, so both wait for the second."""
    rig = small_rig()
    session = filled(rig, 16)
    session.suspending()
    rig.engine.run()
    waiting = [session.resuming()]
    done: list[bool] = []

    def resume() -> None:
        waiting.append(session.resuming())
        done.extend(one.done() for one in waiting)

    rig.executor.fail_next("place")
    meanwhile(rig, "place", resume)
    rig.engine.turn()
    assert done == [False, False] and session.info().residency == "host"
    assert not any(one.done() for one in waiting)
    rig.engine.run()
    assert all(one.done() for one in waiting) and session.info().residency == "device"


def test_a_resume_in_the_midst_of_leaving_brings_it_back() -> None:
    rig = small_rig()
    session = filled(rig, 16)
    left = session.suspending()
    waiting: list[Future[None]] = []
    meanwhile(rig, "fetch", lambda: waiting.append(session.resuming()))
    rig.engine.turn()
    assert not waiting[0].done()
    rig.engine.run()
    assert left.done() and waiting[0].done() and session.info().residency == "device"


def test_a_suspend_while_its_coming_was_decided_holds() -> None:
    rig = small_rig()
    session = filled(rig, 16)
    session.suspending()
    rig.engine.run()
    session.resuming()
    swapper = rig.core.state.swapper
    settle = swapper.settle

    def settle_then(records: Iterable[SessionRecord], now: Now, *, idle: bool) -> Move | None:
        move = settle(records, now, idle=idle)
        setattr(swapper, "settle", settle)  # noqa: B010
        session.record.residence.coming = False  # what `suspend` does, under the lock
        return move

    setattr(swapper, "settle", settle_then)  # noqa: B010
    rig.engine.run()
    assert session.info().residency == "host"
    assert session.suspending().done()


def test_a_session_that_comes_back_for_a_save_does_not_leave_at_once() -> None:
    rig = small_rig(EngineConfig(idle_s=60.0))
    session = filled(rig, 16)
    rig.clock.pass_s(100.0)
    rig.engine.run()
    assert session.info().residency == "host"
    rig.clock.pass_s(100.0)
    rig.manager.capture(session.record, {})
    rig.engine.run()
    assert session.info().residency == "device"
    assert rig.engine.until_s is not None and rig.engine.until_s > rig.clock()


@pytest.mark.parametrize("wrong", [-1, "60", True, float("inf"), float("nan")])
def test_times_that_are_none_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidInput, match="idle_s"):
        EngineConfig(idle_s=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="snapshot_s"):
        EngineConfig(snapshot_s=wrong)  # pyright: ignore[reportArgumentType]


def test_snapshots_all_the_time_are_refused() -> None:
    with pytest.raises(InvalidInput, match="snapshot_s=0"):
        EngineConfig(snapshot_s=0)
    assert EngineConfig(snapshot_s=None).snapshot_s is None
