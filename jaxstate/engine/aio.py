"""Engine and sessions for asyncio: the same calls, awaited where they wait.

Comes in: coroutines of one event loop. Goes out: what the engine gives them; nothing here blocks
that loop, and a cancelled task takes its question off the device. Does not know: how the engine
works.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future
from types import TracebackType
from typing import TypeVar

from jaxstate.engine.conditions import Condition
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.engine import Engine
from jaxstate.engine.hits import FlashQuery
from jaxstate.engine.metrics import EngineMetrics
from jaxstate.engine.policies import QueuePolicy
from jaxstate.engine.registering import OnFire
from jaxstate.engine.residence import Residency
from jaxstate.engine.session import Session
from jaxstate.engine.subscription import FlashMode, Subscription, checked_timeout
from jaxstate.engine.values import Answer, Event, Receipt, SessionInfo
from jaxstate.engine.waiting import countdown, mark_timed_out, results_of
from jaxstate.errors import ClosedError, TimedOut
from jaxstate.model.bundle import Model
from jaxstate.records import Durability

T = TypeVar("T")


class AsyncSession:
    """A `Session` in asyncio form; see there for arguments and errors.

    Args:
        session: what it wraps (`.session`).
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def id(self) -> str:
        """Its name."""
        return self.session.id

    @property
    def version(self) -> int:
        """As `Session.version`."""
        return self.session.version

    async def push(
        self,
        entries: str | Sequence[str],
        *,
        client: str | None = None,
        client_seq: int | None = None,
        strict: bool = False,
        durability: Durability | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `Session.push`; what a cancelled task has pushed may be there all the same."""
        new = self.session.prepare(entries, client, client_seq, strict, durability)
        left_s = countdown(timeout)
        while isinstance(outcome := self.session.push_prepared(new), Future):
            await _result(outcome, left_s(), "the queue was full")
        if outcome.ticket is not None and not outcome.ticket.stays:
            await asyncio.wrap_future(outcome.ticket.settled)
        return outcome.receipt

    async def wait(self, version: int | None = None, timeout: float | None = None) -> int:
        """As `Session.wait`."""
        await _result(self.session.waiting(version), timeout, "the entries were not read")
        return self.session.version

    async def wait_fresh(self, timeout: float | None = None) -> int:
        """As `Session.wait_fresh`."""
        future = self.session.waiting_fresh()
        await _result(future, timeout, "the flash queries were not answered")
        return self.session.version

    async def ask(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        min_version: int | None = None,
        as_of: int | None = None,
        rebuild_tokens: int = 0,
        stop: Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        timeout: float | None = None,
    ) -> Answer:
        """As `Session.ask`; cancelling the task ends the question."""
        future = self.session.submit(
            question,
            max_tokens=max_tokens,
            choices=choices,
            min_version=min_version,
            as_of=as_of,
            rebuild_tokens=rebuild_tokens,
            stop=stop,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return await _result(future, timeout, "the question was not answered")

    def flash(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
        when: Condition | None = None,
        on_fire: OnFire | None = None,
        min_interval_s: float = 0.0,
        deadline_s: float | None = None,
    ) -> FlashQuery:
        """As `Session.flash`; `on_fire` is called on the engine's thread for callbacks."""
        return self.session.flash(
            question,
            max_tokens=max_tokens,
            choices=choices,
            stop=stop,
            when=when,
            on_fire=on_fire,
            min_interval_s=min_interval_s,
            deadline_s=deadline_s,
        )

    def flashes(self) -> list[FlashQuery]:
        """As `Session.flashes`."""
        return self.session.flashes()

    def unflash(self, flash_id: str) -> None:
        """As `Session.unflash`."""
        self.session.unflash(flash_id)

    def warm(self, question: str) -> None:
        """As `Session.warm`."""
        self.session.warm(question)

    def unwarm(self, question: str) -> None:
        """As `Session.unwarm`."""
        self.session.unwarm(question)

    def events(
        self, timeout: float | None = None, *, flash: FlashMode = "changed"
    ) -> AsyncIterator[Event]:
        """As `Session.events`, for `async for`."""
        seconds = checked_timeout(timeout)
        return _iterate(self.session.subscribe(flash=flash), seconds)

    def info(self) -> SessionInfo:
        """As `Session.info`."""
        return self.session.info()

    async def fork(
        self, id: str | None = None, *, version: int | None = None, rebuild_tokens: int = 0
    ) -> AsyncSession:
        """As `Session.fork`; if the task is cancelled, what comes of it is closed."""
        fork = self.session.fork
        make = lambda: fork(id, version=version, rebuild_tokens=rebuild_tokens)  # noqa: E731
        return AsyncSession(await _made(make, Session.close))

    async def save(
        self, path: str | os.PathLike[str], notes: dict[str, str | int] | None = None
    ) -> None:
        """As `Session.save`."""
        await asyncio.to_thread(self.session.save, path, notes)

    async def suspend(self, timeout: float | None = None) -> None:
        """As `Session.suspend`."""
        await _result(self.session.suspending(), timeout, "the session did not leave")

    async def resume(self, timeout: float | None = None) -> None:
        """As `Session.resume`."""
        await _result(self.session.resuming(), timeout, "the session did not come back")

    def close(self, *, erase: bool = False) -> None:
        """As `Session.close`."""
        self.session.close(erase=erase)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncEngine:
    """An `Engine` in asyncio form; see there for arguments and errors.

        async with jaxstate.AsyncEngine(model) as engine:
            session = engine.open()
            await session.push("09:30 101.20")
            print(await session.ask("What was the last price?"))

    The engine is made (and its steps compiled) on entering, in a thread.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int | None = None,
        memory: float | None = None,
        session_cells: int | None = None,
        sessions: int = 64,
        config: EngineConfig | None = None,
        warm_up: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._make = lambda: Engine(
            model,
            cells=cells,
            memory=memory,
            session_cells=session_cells,
            sessions=sessions,
            config=config,
            warm_up=warm_up,
            progress=progress,
        )
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What it wraps.

        Raises:
            ClosedError: it was not entered yet.
        """
        if self._engine is None:
            raise ClosedError("the engine is made by `async with AsyncEngine(...) as engine`")
        return self._engine

    def open(
        self,
        id: str | None = None,
        *,
        prefix: str = "",
        tenant: str = "default",
        reserve: int | None = None,
        residency: Residency = "evictable",
        policy: QueuePolicy | None = None,
        flash: tuple[str, ...] | list[str] = (),
    ) -> AsyncSession:
        """As `Engine.open`."""
        session = self.engine.open(
            id,
            prefix=prefix,
            tenant=tenant,
            reserve=reserve,
            residency=residency,
            policy=policy,
            flash=flash,
        )
        return AsyncSession(session)

    async def restore(
        self,
        path: str | os.PathLike[str],
        id: str | None = None,
        *,
        tenant: str = "default",
        policy: QueuePolicy | None = None,
    ) -> AsyncSession:
        """As `Engine.restore`; if the task is cancelled, what comes of it is closed."""
        engine = self.engine
        make = lambda: engine.restore(path, id, tenant=tenant, policy=policy)  # noqa: E731
        return AsyncSession(await _made(make, Session.close))

    def publish_prefix(self, prefix: str) -> None:
        """As `Engine.publish_prefix`."""
        self.engine.publish_prefix(prefix)

    async def ask_many(
        self,
        question: str,
        sessions: Sequence[AsyncSession] | None = None,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        timeout: float | None = None,
    ) -> list[Answer]:
        """As `Engine.ask_many`; cancelling the task ends all the questions."""
        checked_timeout(timeout)
        asked = self.engine.submit_many(
            question,
            None if sessions is None else [one.session for one in sessions],
            max_tokens=max_tokens,
            choices=choices,
            stop=stop,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        wrapped = [asyncio.wrap_future(one) for one in asked]
        try:
            if wrapped:
                await asyncio.wait(wrapped, timeout=timeout, return_when=FIRST_EXCEPTION)
            return results_of(asked, f"not every session answered within {timeout} s")
        finally:
            for one, seen in zip(asked, wrapped, strict=True):
                one.cancel()
                if seen.done() and not seen.cancelled():
                    seen.exception()  # else asyncio tells of it as never retrieved

    def session(self, id: str) -> AsyncSession:
        """As `Engine.session`."""
        return AsyncSession(self.engine.session(id))

    def sessions(self) -> list[AsyncSession]:
        """As `Engine.sessions`."""
        return [AsyncSession(one) for one in self.engine.sessions()]

    def metrics(self) -> EngineMetrics:
        """As `Engine.metrics`."""
        return self.engine.metrics()

    async def close(self) -> None:
        """As `Engine.close`."""
        await asyncio.to_thread(self.engine.close)

    async def __aenter__(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = await _made(self._make, Engine.close)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


async def _result(future: Future[T], timeout: float | None, what: str) -> T:
    """A future's result; a timeout, or the task's end, cancels it.

    Raises:
        TimedOut: `what`, within the timeout.
    """
    seconds = checked_timeout(timeout)
    wrapped = asyncio.wrap_future(future)
    try:
        done, _ = await asyncio.wait([wrapped], timeout=seconds)
    except asyncio.CancelledError:
        future.cancel()
        raise
    if not done:
        mark_timed_out(future)
        if future.cancel():
            wrapped.cancel()
            raise TimedOut(f"{what} within {timeout} s; it was cancelled")
    return await wrapped


async def _made(make: Callable[[], T], discard: Callable[[T], None]) -> T:
    """Makes something in a thread; if nobody waits for it any more, it is thrown away there."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            made = make()
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        if future.set_running_or_notify_cancel():
            future.set_result(made)
        else:
            discard(made)

    asyncio.get_running_loop().run_in_executor(None, run)
    return await asyncio.wrap_future(future)


async def _iterate(subscription: Subscription, timeout: float | None) -> AsyncIterator[Event]:
    """Events up to and including `Closed`, or until none came within `timeout` seconds."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    subscription.on_event(lambda: loop.call_soon_threadsafe(news.set))
    try:
        while not subscription.ended:
            news.clear()
            if (event := subscription.poll()) is not None:
                yield event
                continue
            try:
                await asyncio.wait_for(news.wait(), timeout)
            except TimeoutError:
                return
    finally:
        subscription.cancel()
