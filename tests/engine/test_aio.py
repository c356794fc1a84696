"""The asyncio form: the same calls, and tasks that are cancelled anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

import jaxstate
from jaxstate.config import StepConfig
from jaxstate.engine.executor.protocol import StepOutput
from jaxstate.engine.types.options import EngineConfig, Tenant
from jaxstate.errors import BudgetExceeded, ClosedError, SequenceGap, TimedOut
from jaxstate.model.bundle import Model
from jaxstate.persist.journal import Journal, PendingWrite
from jaxstate.steps.packing import Row
from jaxstate.testing import FakeClock, FakeExecutor, tiny_model
from jaxstate.testing.simulation import TEMPLATE

T = TypeVar("T")
# As few shapes as there can be: they are compiled here.
FEW = StepConfig(
    block_cells=8,
    extend_tokens=(16,),
    question_tokens=(16,),
    tail_cells=(32,),
    question_rows=(1, 4),
    step_tokens=64,
    choice_tokens=(4,),
    tail_block_cells=8,
    tail_blocks=16,
)


@functools.cache
def model() -> Model:
    return dataclasses.replace(tiny_model(steps=FEW), template=TEMPLATE)


def run(work: Coroutine[object, object, T]) -> T:
    async def within() -> T:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(within())


def faked(executor: FakeExecutor | None = None, **settings: object) -> jaxstate.Engine:
    device = executor or FakeExecutor(FakeClock())
    return jaxstate.Engine(model(), executor=device, clock=time.perf_counter, **settings)  # pyright: ignore


def test_the_whole_life_of_an_engine(tmp_path: Path) -> None:
    """On the tiny model, with real steps."""

    async def life() -> None:
        async with jaxstate.AsyncEngine(
            model(), cells=512, session_cells=128, warm_up=False
        ) as engine:
            session = engine.open("one", prefix="p", flash=["q"])
            receipt = await session.push(["ab", "cd"])
            assert await session.wait(receipt.last) == 2
            assert await session.wait_fresh() == 2
            (query,) = session.flashes()
            assert query.fresh and (await session.ask("q")).source == "flash"
            session.unflash(query.id)
            computed = await session.ask("q", max_tokens=16, min_version=2)
            assert query.answer is not None and computed.token_ids == query.answer.token_ids
            session.flash("w", choices=["y", "n"])
            await session.wait_fresh()
            ready = await session.ask("w", choices=["n", "y"])
            assert (ready.source, ready.version) == ("ready", 2)
            copy = await session.fork("two")
            await session.save(tmp_path / "s", {"feed": "prices"})
            back = await engine.restore(tmp_path / "s", "three")
            for one in (copy, back):
                assert (await one.ask("q", max_tokens=16)).token_ids == computed.token_ids
                assert one.info().version == one.version == 2
            assert [one.id for one in engine.sessions()] == ["one", "two", "three"]
            assert engine.session("two").id == "two"
            assert engine.metrics().gauges.sessions == 3
            async with copy:
                pass
            with pytest.raises(ClosedError):
                await copy.push("late")
        with pytest.raises(ClosedError):
            engine.open()

    run(life())


def test_an_engine_that_was_not_entered() -> None:
    engine = jaxstate.AsyncEngine(model())
    with pytest.raises(ClosedError, match="async with"):
        engine.open()


def test_events_by_async_for() -> None:
    async def listen() -> list[jaxstate.Event]:
        with faked() as engine:
            session = jaxstate.AsyncSession(engine.open())
            await session.wait(0)
            heard: list[jaxstate.Event] = []

            async def follow() -> None:
                async for event in session.events(flash="always"):
                    heard.append(event)

            following = asyncio.create_task(follow())
            while not heard:
                await asyncio.sleep(0)
            session.flash("fl", max_tokens=2)
            await session.push("abcd")
            await session.wait_fresh()
            session.close()
            await following
            return heard

    names = [type(event).__name__ for event in run(listen())]
    assert (names[0], names[-1]) == ("Connected", "Closed")
    assert "DataUpdated" in names and "FlashReady" in names


def test_events_end_when_nothing_happens() -> None:
    async def listen() -> list[jaxstate.Event]:
        with faked() as engine:
            session = jaxstate.AsyncSession(engine.open())
            await session.wait(0)
            return [event async for event in session.events(timeout=0.01)]

    assert [type(event) for event in run(listen())] == [jaxstate.Connected]


def test_timeouts_and_cancelled_tasks_leave_nothing() -> None:
    async def give_up() -> jaxstate.EngineMetrics:
        with faked() as engine:
            session = jaxstate.AsyncSession(engine.open())
            with pytest.raises(TimedOut, match=r"not answered within 0\.01 s"):
                await session.ask("xyz", min_version=9, timeout=0.01)
            with pytest.raises(TimedOut, match=r"not read within 0\.01 s"):
                await session.wait(9, timeout=0.01)
            task = asyncio.create_task(session.ask("xyz", min_version=9))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.push("abcd")
            await session.ask("xyz", min_version=1)
            return engine.metrics()

    metrics = run(give_up())
    assert (metrics.counts.asks_cancelled, metrics.counts.asks_timed_out) == (1, 1)
    assert (metrics.gauges.asks_waiting, metrics.gauges.asks_running) == (0, 0)


@contextlib.contextmanager
def slow(engine: jaxstate.Engine) -> Iterator[None]:
    """A device that takes its time, so that nobody is answered at once."""
    executor = engine._loop._executor
    launch = executor.run
    executor.run = lambda *args: time.sleep(0.3) or launch(*args)  # pyright: ignore
    yield
    executor.run = launch  # pyright: ignore


def test_one_question_to_many_and_whatever_ends_it() -> None:
    async def ask() -> jaxstate.EngineMetrics:
        with faked() as made:
            engine = jaxstate.AsyncEngine(model())
            engine._engine = made
            assert await engine.ask_many("xyz") == []
            sessions = [engine.open() for _ in range(3)]
            answers = await engine.ask_many("xyz", sessions, max_tokens=1, timeout=30)
            assert [one.version for one in answers] == [0, 0, 0]
            with (
                slow(made),
                pytest.raises(TimedOut, match=r"not every session answered within 0 s"),
            ):
                await engine.ask_many("xyz", timeout=0)
            waiting = asyncio.create_task(engine.ask_many("xyz", max_tokens=40))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            sessions[0].close()
            with pytest.raises(ClosedError):
                await engine.ask_many("xyz", sessions)
            return made.metrics()

    metrics = run(ask())
    assert (metrics.gauges.asks_waiting, metrics.gauges.asks_running) == (0, 0)
    assert metrics.counts.asks_timed_out == 3


class Held(FakeExecutor):
    """A device that reads only while it may go on."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.go_on, self.is_held = threading.Event(), threading.Event()
        self.go_on.set()

    def _extend(self, chunks: Sequence[Row]) -> StepOutput:
        if not self.go_on.is_set():
            self.is_held.set()
            self.go_on.wait(10)
        return super()._extend(chunks)

    async def hold(self, session: jaxstate.AsyncSession) -> None:
        """Lets it begin to read something, and no more."""
        self.go_on.clear()
        await session.push("x")
        assert await asyncio.to_thread(self.is_held.wait, 10)


def test_a_fork_that_nobody_waits_for_any_more_is_closed() -> None:
    async def give_up() -> list[str]:
        device = Held()
        with faked(device) as engine:
            session = jaxstate.AsyncSession(engine.open("one"))
            await session.wait(0)
            await device.hold(session)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.fork("two"), 0.05)
            device.go_on.set()
            await session.fork("three")
            while [one.id for one in engine.sessions()] != ["one", "three"]:
                await asyncio.sleep(0.001)
            return [one.id for one in engine.sessions()]

    assert run(give_up()) == ["one", "three"]


def test_a_fork_that_fails() -> None:
    """One of a tenant that has all the cells that it may have."""

    async def fail() -> None:
        config = EngineConfig(tenants={"small": Tenant(quota_cells=16)})
        with faked(config=config) as engine:
            session = jaxstate.AsyncSession(engine.open("one", tenant="small"))
            await session.push("abcdefgh")  # 9 tokens behind <bos>: two blocks of 8
            await session.wait(1)
            with pytest.raises(BudgetExceeded, match="tenant 'small' may have 16"):
                await session.fork("two")
            assert [one.id for one in engine.sessions()] == ["one"]
            assert await session.ask("xyz", max_tokens=1)
            other = engine.open("two")  # the name is free again
            other.close()

    run(fail())


def test_a_push_waits_for_room_without_blocking_the_event_loop() -> None:
    async def push() -> None:
        device = Held()
        with faked(device, config=EngineConfig(queue_entries=2)) as engine:
            session = jaxstate.AsyncSession(engine.open("one"))
            await session.wait(0)
            await device.hold(session)  # entry 1
            await session.push(["a", "b"])
            with pytest.raises(TimedOut, match="the queue was full"):
                await session.push("c", timeout=0.01)
            waiting = asyncio.create_task(session.push("d"))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            device.go_on.set()
            assert (await waiting).first == 4
            assert await session.wait(4) == 4

    run(push())


def test_tokens_of_long_entries_are_made_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_in: list[bool] = []
    prepare = jaxstate.Session.prepare

    def noting(*args: object, **options: object) -> object:
        made_in.append(threading.current_thread() is threading.main_thread())
        return prepare(*args, **options)  # pyright: ignore

    monkeypatch.setattr(jaxstate.Session, "prepare", noting)

    async def work(engine: jaxstate.Engine) -> None:
        session = jaxstate.AsyncSession(engine.open())
        await session.push("short")
        with pytest.raises(jaxstate.CapacityExceeded):
            await session.push("x" * 20_000)
        with pytest.raises(jaxstate.CapacityExceeded):
            await session.push(["x" * 9_000, "y" * 9_000])
        for wrong in (None, 3, [None]):
            with pytest.raises(jaxstate.InvalidInput):
                await session.push(wrong)  # pyright: ignore

    with faked() as engine:
        run(work(engine))
    assert made_in == [True, False, False, True, True, True]


def test_a_journal_in_asyncio(tmp_path: Path) -> None:
    """What was pushed is there again; a session goes through a file, and is erased."""

    async def first() -> None:
        async with journaled(tmp_path) as engine:
            session = engine.open("feed")
            receipt = await session.push(["a", "b"], client="c", client_seq=1)
            assert await session.push(["a", "b"], client="c", client_seq=1) == receipt
            assert receipt.durable == "os" and await session.client_seq("c") == 1
            await session.wait()
            await session.export(tmp_path / "file")
            with pytest.raises(SequenceGap):
                await session.push("d", client="c", client_seq=3, strict=True)

    async def second() -> None:
        async with journaled(tmp_path) as engine:
            assert [one.id for one in engine.recovery.sessions] == ["feed"]
            assert await engine.session("feed").client_seq("c") == 1
            copy = await engine.import_session(tmp_path / "file", "copy")
            assert await copy.wait() == 2
            await copy.erase()
            engine.session("feed").close()
            assert await engine.erase("feed") == 1
            assert engine.sessions() == []

    run(first())
    run(second())


def test_what_is_not_awaited_does_not_wait_for_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk hangs, all of it comes straight back; what is awaited waits for the disk."""
    released, commit = threading.Event(), Journal._commit

    def hanging(journal: Journal, batch: Sequence[PendingWrite]) -> None:
        assert released.wait(60)
        commit(journal, batch)

    async def life() -> None:
        async with journaled(tmp_path) as engine:
            monkeypatch.setattr(Journal, "_commit", hanging)
            session, other = engine.open("feed", flash=["a?"]), engine.open("other")
            query = session.flash("b?")
            session.unflash(query.id)
            other.close()
            waiting = [
                asyncio.create_task(one)
                for one in (session.journaled(), session.push("x"), engine.erase("other"))
            ]
            await asyncio.wait(waiting, timeout=0.3)
            assert not any(one.done() for one in waiting)
            released.set()
            assert (await asyncio.gather(*waiting))[2] == 1
            assert [one.question for one in session.flashes()] == ["a?"]
        monkeypatch.setattr(Journal, "_commit", commit)
        async with journaled(tmp_path) as engine:
            assert [one.id for one in engine.sessions()] == ["feed"]
            assert await engine.session("feed").wait() == 1
            assert [one.question for one in engine.session("feed").flashes()] == ["a?"]

    run(life())


def test_what_waits_does_not_need_the_pool_of_the_application(tmp_path: Path) -> None:
    """asyncio's pool has a handful of threads, here one, and that is busy."""

    async def life() -> None:
        freed, pool = threading.Event(), ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(pool)
        busy = asyncio.get_running_loop().run_in_executor(None, freed.wait)
        try:
            async with journaled(tmp_path / "j") as engine:
                session = engine.open("feed")
                await session.push(["a", "b"], client="c", client_seq=1)
                assert await session.client_seq("c") == 1
                await session.wait(2)
                await session.save(tmp_path / "s")
                await session.export(tmp_path / "e")
                assert (await engine.restore(tmp_path / "s", "back")).version == 2
                await session.erase()
        finally:
            freed.set()
            await busy

    run(life())


def journaled(path: Path) -> jaxstate.AsyncEngine:
    made = jaxstate.AsyncEngine(model())
    made._make = lambda: faked(journal=path / "j")
    return made
