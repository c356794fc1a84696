"""What ends a wait gives back what it held; a fork has no engine; a program may just end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jaxstate
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import ClosedError
from jaxstate.testing import FakeClock, FakeExecutor, tiny_model
from tests.engine.rig import Rig


class TimeLimit(Exception):
    """As a signal's handler raises it, in the middle of whatever waits."""


@pytest.fixture
def engine() -> Iterator[jaxstate.Engine]:
    config = EngineConfig(waiting_asks=2, queue_entries=1)
    device = FakeExecutor(FakeClock())
    with jaxstate.Engine(
        tiny_model(), executor=device, clock=time.perf_counter, config=config
    ) as opened:
        yield opened


def interrupted(call: Callable[[], object]) -> None:
    """A call that waits, and is not let wait."""

    def interrupt(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeLimit):
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_question_that_nobody_waits_for_any_more_is_gone(engine: jaxstate.Engine) -> None:
    session = engine.open()
    for _ in range(3):  # more than may wait
        interrupted(lambda: session.ask("x", min_version=9))
    assert engine.metrics().counts.asks_cancelled == 3
    assert session.ask("xyz", timeout=20).finish_reason == "stop"


def test_what_else_waits_gives_back_what_it_held(
    engine: jaxstate.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.open()
    session.wait(timeout=20)
    interrupted(lambda: session.wait(9))
    assert not session.record.waiters or session.record.waiters[0][1].cancelled()
    # From here on the loop does no job: forks and saves wait for ever.
    loop = engine._loop
    monkeypatch.setattr(loop, "_do_job", lambda: False)
    interrupted(lambda: session.fork("twin"))
    interrupted(lambda: session.save("never"))
    monkeypatch.undo()
    session.wait(timeout=20)
    deadline = time.monotonic() + 20
    while engine._core.jobs and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine._core.jobs and session.record.tasks_waiting == 0
    assert [one.id for one in engine.sessions()] == [session.id]
    session.fork("twin")  # its name is free again


def test_a_push_that_waits_for_room_leaves_the_line() -> None:
    rig = Rig(config=EngineConfig(queue_entries=1))
    session = rig.open()
    session.push("a")
    interrupted(lambda: session.push("b"))
    assert not session.record.room_waiters
    rig.engine.run()
    assert session.push("c").last == 2


def test_who_waits_for_room_is_let_in_in_order() -> None:
    """A large push does not starve behind small ones."""
    rig = Rig(config=EngineConfig(queue_entries=2))
    session = rig.open()
    session.push(["a", "b"])
    line = [session.prepare(texts) for texts in (["c", "d"], "e", "f")]
    waiting = [session.push_prepared(one) for one in line]
    rig.engine.run()
    assert [future.done() for future in waiting] == [True, False, False]  # pyright: ignore
    late = session.prepare("late")
    assert not session.push_prepared(late).done()  # pyright: ignore
    got: list[int] = []
    for one in (*line, late):
        taken = session.push_prepared(one)
        got.append(taken.receipt.first)  # pyright: ignore
        rig.engine.run()
    assert got == [3, 5, 6, 7]


def in_child(call: Callable[[], object]) -> str:
    """What a forked process gets of a call, in 10 s at most."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(10)
        try:
            said = f"returned {call()!r}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 10_000).decode()
    os.waitpid(child, 0)
    return said or "hung"


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("journal", [False, True])
def test_a_forked_process_is_told_at_once(tmp_path: Path, journal: bool) -> None:
    device = FakeExecutor(FakeClock())
    engine = jaxstate.Engine(
        tiny_model(),
        executor=device,
        clock=time.perf_counter,
        journal=tmp_path / "j" if journal else None,
    )
    with engine:
        session = engine.open("a")
        session.push("one")
        session.wait(timeout=20)
        query = session.flash("q")
        session.wait_fresh(timeout=20)
        subscription = session.subscribe()
        calls: list[Callable[[], object]] = [
            lambda: session.push("two"),
            lambda: session.ask("q"),
            lambda: session.ask("new"),
            lambda: session.submit("new"),
            session.wait,
            session.wait_fresh,
            session.info,
            session.fork,
            session.suspend,
            session.resume,
            session.close,
            lambda: session.close(erase=True),
            lambda: session.save(tmp_path / "never"),
            lambda: session.flash("other"),
            session.flashes,
            lambda: session.unflash(query.id),
            lambda: next(iter(session.events())),
            lambda: subscription.next(None),
            engine.open,
            engine.sessions,
            engine.metrics,
            lambda: engine.ask_many("q"),
            lambda: engine.session("a"),
        ]
        for number, call in enumerate(calls):
            said = in_child(call)
            assert said.startswith("ClosedError: this engine belongs to process"), (number, said)
        assert in_child(engine.close) == "returned None"
        assert session.ask("still here", timeout=20).version == 1


PROGRAM = """
import sys, time, jaxstate
from jaxstate.testing import tiny_model
engine = jaxstate.Engine(tiny_model(), warm_up=False, cells=256, sessions=2, journal=sys.argv[1])
session = engine.open("a")
session.push("hello")
session.wait()
print("read")
"""


def test_a_program_that_just_ends_keeps_its_last_snapshot(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "j")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "read\n"), ended.stderr
    with jaxstate.Engine(
        tiny_model(), warm_up=False, cells=256, sessions=2, journal=tmp_path / "j"
    ) as engine:
        (found,) = engine.recovery.sessions
        assert (found.version, found.tokens_to_read) == (1, 0)


def test_closing_does_not_wait_for_a_device_that_does_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, began, hangs = FakeExecutor(FakeClock()), threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        began.set()
        hangs.wait()

    device.run = hang  # pyright: ignore
    engine = jaxstate.Engine(
        tiny_model(), executor=device, clock=time.perf_counter, config=EngineConfig(hang_s=0.2)
    )
    try:
        session = engine.open(prefix="abcd")
        asked = session.submit("xyz")
        assert began.wait(20)
        began_s = time.monotonic()
        engine.close()
        assert time.monotonic() - began_s < 10
        assert "does not end" in caplog.text
        with pytest.raises(ClosedError):
            session.push("late")
        with pytest.raises(ClosedError):
            asked.result(timeout=10)
    finally:
        hangs.set()
        engine._thread.join(10)
