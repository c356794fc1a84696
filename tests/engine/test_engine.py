"""The engine on its thread: waits and wake-ups, callbacks, its end; with the fake device."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

import jaxstate
from jaxstate.engine.core.session_manager import close_session
from jaxstate.engine.executor.protocol import Executor
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import (
    BudgetExceeded,
    ClosedError,
    EngineFailed,
    InvalidInput,
    TextUnavailable,
    TimedOut,
    UnknownSession,
)
from jaxstate.testing import FAKE_LIMITS, FakeClock, FakeExecutor, tiny_model
from tests.engine.rig import Rig

SOON_S = 10.0
"""What never comes in a broken engine; no test waits for it in a sound one."""


def engine_of(executor: Executor | None = None, **settings: object) -> jaxstate.Engine:
    device = executor or FakeExecutor(FakeClock())
    return jaxstate.Engine(tiny_model(), executor=device, clock=time.perf_counter, **settings)  # pyright: ignore


@pytest.fixture
def engine() -> Iterator[jaxstate.Engine]:
    with engine_of() as opened:
        yield opened


def test_a_stream_and_its_questions(engine: jaxstate.Engine) -> None:
    with engine.open("prices", prefix="abcd") as session:
        receipt = session.push(["e", "f"])
        assert (receipt.first, receipt.last, receipt.durable) == (1, 2, "memory")
        assert session.wait(receipt.last, timeout=SOON_S) == 2
        answer = session.ask("xyz", timeout=SOON_S)
        assert answer.source == "computed" and answer.version == 2
        query = session.flash("xyz")
        assert session.wait_fresh(timeout=SOON_S) == 2
        assert query.fresh and session.ask("xyz").source == "flash"
        assert [one.id for one in session.flashes()] == [query.id]
        assert engine.session("prices").version == 2
        assert [one.id for one in engine.sessions()] == ["prices"]
        copy = session.fork("copy")
        assert (copy.id, copy.version) == ("copy", 2)
        copy.push("g")
        assert (copy.wait(timeout=SOON_S), session.version) == (3, 2)
        copy.close()
    with pytest.raises(UnknownSession, match="prices"):
        engine.session("prices")


def test_events_are_iterated_to_the_end(engine: jaxstate.Engine) -> None:
    session = engine.open()
    session.wait(0, timeout=SOON_S)
    heard: list[jaxstate.Event] = []
    events = session.events()
    assert isinstance(next(events), jaxstate.Connected)
    listener = threading.Thread(target=lambda: heard.extend(events))
    listener.start()
    session.push("abcd")
    session.wait(timeout=SOON_S)
    session.close()
    listener.join(SOON_S)
    assert [type(event).__name__ for event in heard] == ["DataUpdated", "Closed"]
    with pytest.raises(ClosedError):
        session.events()


def test_events_end_when_nothing_happens(engine: jaxstate.Engine) -> None:
    session = engine.open()
    session.wait(0, timeout=SOON_S)
    assert [type(event) for event in session.events(timeout=0.01)] == [jaxstate.Connected]


def test_waits_that_time_out(engine: jaxstate.Engine) -> None:
    session = engine.open()
    with pytest.raises(TimedOut, match=r"not read within 0\.01 s"):
        session.wait(99, timeout=0.01)
    with pytest.raises(TimedOut, match=r"not answered within 0\.01 s"):
        session.ask("xyz", min_version=99, timeout=0.01)
    for timeout in (-1, "1", True, float("nan")):
        with pytest.raises(InvalidInput, match="timeout="):
            session.wait(timeout=timeout)  # pyright: ignore


def test_news_that_comes_while_the_loop_looks_elsewhere_is_not_lost() -> None:
    """A fork that comes between the moment at which the loop looks for forks and the one at which
    it looks for steps: the loop must not go to sleep over it."""
    rig = Rig()
    session = rig.open("abcd")
    loop, came = rig.engine._loop, list[Future[None]]()
    look = loop._do_job

    def look_and_miss() -> bool:
        did = look()
        if not came:
            came.append(rig.manager.fork(session.record, None)[1])
        return did

    loop._do_job = look_and_miss
    assert not rig.engine.turn()
    assert rig.core.news, "the loop would sleep now, with a fork to be made"
    rig.engine.turn()
    assert came[0].done()


def test_forks_beside_calls_that_wake_the_loop(engine: jaxstate.Engine) -> None:
    session = engine.open()
    session.wait(0, timeout=SOON_S)
    going = threading.Event()

    def disturb() -> None:
        while not going.is_set():
            session.subscribe().cancel()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(300):
            record, future = engine._manager.fork(session.record, None)
            future.result(timeout=SOON_S)
            close_session(engine._core, record, "enough")
    finally:
        going.set()
        disturber.join()


def test_a_call_that_would_wait_on_the_engines_own_thread_is_refused(
    engine: jaxstate.Engine,
) -> None:
    """Callbacks of futures run there: the loop would wait for itself for ever."""
    session = engine.open()
    session.push("abcd")
    refused: list[BaseException] = []

    def calls(_: object) -> None:
        for call in (
            lambda: session.ask("another"),
            lambda: session.wait(99),
            session.fork,
            lambda: session.save("nowhere"),
        ):
            try:
                call()
            except InvalidInput as error:
                refused.append(error)

    done = threading.Event()
    first = session.submit("xyz")
    first.add_done_callback(calls)
    first.add_done_callback(lambda _: done.set())
    assert done.wait(SOON_S)
    assert len(refused) == 4
    assert all("on the engine's own thread" in str(error) for error in refused)
    assert session.ask("xyz", timeout=SOON_S).version == 1
    gauges = engine.metrics().gauges
    assert (gauges.asks_waiting, gauges.asks_running) == (0, 0)
    assert [one.id for one in engine.sessions()] == [session.id]


def test_an_interval_that_passes_while_the_loop_rests(engine: jaxstate.Engine) -> None:
    """Nothing else wakes the loop: it has set itself a time."""
    session = engine.open()
    query = session.flash("fl", min_interval_s=0.2)
    session.wait_fresh(timeout=SOON_S)
    session.push("abcd")
    session.wait(1, timeout=SOON_S)
    assert not query.fresh
    deadline_s = time.monotonic() + SOON_S
    while not query.fresh and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert query.fresh and query.answer is not None and query.answer.version == 1


# --- callbacks ----------------------------------------------------------------------------------


def test_a_callback_may_call_the_engine_and_fail(
    engine: jaxstate.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    session = engine.open()
    called = threading.Event()

    def on_fire(answer: jaxstate.Answer) -> None:
        session.push("from the callback")
        called.set()
        raise RuntimeError("a user's mistake")

    session.push("abcd")
    session.wait(timeout=SOON_S)
    with caplog.at_level(logging.ERROR, "jaxstate"):
        session.flash("fl", max_tokens=1, on_fire=on_fire)
        assert called.wait(SOON_S)
        assert session.wait(2, timeout=SOON_S) >= 2
        engine.close()
    assert "a callback of a flash query failed" in caplog.text


def test_callbacks_that_are_too_slow(caplog: pytest.LogCaptureFixture) -> None:
    """One runs, one waits, the third is left out and counted; closing waits for the first only."""
    requests, go_on = list[int](), threading.Event()

    def on_fire(answer: jaxstate.Answer) -> None:
        requests.append(answer.version)
        go_on.wait(SOON_S)

    with caplog.at_level(logging.ERROR, "jaxstate"):
        engine = engine_of(config=EngineConfig(events_limit=2))
        session = engine.open()
        session.flash("fl", on_fire=on_fire)
        for _ in range(3):
            session.push("a")
            session.wait_fresh(timeout=SOON_S)
            deadline_s = time.monotonic() + SOON_S
            while not requests and time.monotonic() < deadline_s:
                time.sleep(0.001)
        counts = engine.metrics().counts
        closing = threading.Thread(target=engine.close)
        closing.start()
        go_on.set()
        closing.join(SOON_S)
    assert not closing.is_alive()
    assert counts.flash_answers >= 3 and counts.callbacks_dropped == counts.flash_answers - 2
    assert len(requests) <= 2
    assert "one was dropped" in caplog.text


# --- the end ------------------------------------------------------------------------------------


def test_a_loop_that_dies_ends_everything_and_says_why() -> None:
    class Broken(FakeExecutor):
        def readable_until(self, seen_cells: int) -> int:
            raise RuntimeError("the books are broken")

    with engine_of(Broken(FakeClock())) as engine:
        with pytest.raises(EngineFailed, match="the books are broken") as caught:
            engine.open().wait(0, timeout=SOON_S)
        assert isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(EngineFailed, match="the books are broken") as caught:
            engine.open()
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_refusals_of_a_closed_engine_do_not_grow() -> None:
    engine = engine_of()
    engine.close()
    engine.close()
    depths: list[int] = []
    for _ in range(3):
        with pytest.raises(ClosedError, match="the engine was closed") as caught:
            engine.open()
        depths.append(len(caught.traceback))
    assert depths[0] == depths[-1]


def test_closing_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    engine = engine_of()
    session = engine.open()
    waiting = session.submit("xyz", min_version=9)
    engine.close()
    with pytest.raises(ClosedError):
        waiting.result(timeout=SOON_S)
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not [name for name in left if name.startswith("jaxstate")]


# --- what is refused ----------------------------------------------------------------------------


def test_an_engine_needs_text_and_room() -> None:
    import dataclasses

    with pytest.raises(TextUnavailable):
        jaxstate.Engine(dataclasses.replace(tiny_model(), tokenizer=None))
    for settings, said in (
        ({"cells": 64, "session_cells": 100}, "one session of 100 cells takes"),
        ({"cells": "many"}, "cells="),
        ({"cells": 0}, "cells=0"),
        ({"session_cells": 0}, "cells=0"),
        ({"sessions": 0}, "sessions=0"),
        ({"cells": 64, "memory": 0.5}, "say one of the two"),
        ({"memory": 1.5}, "memory=1.5"),
    ):
        with pytest.raises(InvalidInput, match=said):
            jaxstate.Engine(tiny_model(), warm_up=False, **settings)  # pyright: ignore


def test_sessions_that_do_not_fit(engine: jaxstate.Engine) -> None:
    """64 of them have all cells reserved, so there is none for the opening of another."""
    each = FAKE_LIMITS.session_cells
    for _ in range(65_536 // each):
        engine.open(reserve=each)
    with pytest.raises(BudgetExceeded, match="of 65536 cells 65536 are reserved or pinned"):
        engine.open(reserve=1)
    with pytest.raises(BudgetExceeded, match="'again' needs 8 cells and could have 0"):
        engine.open("again")
    assert len(engine.sessions()) == 64
    for name in ("", "a b", "x" * 129, 3, ".", ".."):
        with pytest.raises(InvalidInput, match="id="):
            engine.open(name)  # pyright: ignore
    engine.sessions()[0].close()
    again = engine.open("again")
    receipt = again.push("abcd")
    assert (again.id, again.wait(receipt.last, timeout=SOON_S)) == ("again", 1)
    with pytest.raises(InvalidInput, match="open already"):
        engine.open("again")


def test_a_session_whose_flash_query_is_refused_is_not_opened(engine: jaxstate.Engine) -> None:
    with pytest.raises(InvalidInput):
        engine.open("one", flash=["fine", ""])
    assert engine.sessions() == []
    with pytest.raises(InvalidInput, match="registered already"):
        engine.open("one", flash=["twice", "twice"])
    assert engine.sessions() == []
