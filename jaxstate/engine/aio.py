"""The engine for asyncio: the same calls, awaited where they wait.

Comes in: coroutines of one event loop. Goes out: what the engine gives them; what is awaited does
not block that loop, and a cancelled task takes its question off the device. Does not know: how the
engine works.

`open` is not awaited and does not wait for a journal: what is pushed is written behind it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION
from types import TracebackType

from jaxstate.engine.aio_session import AsyncSession
from jaxstate.engine.aio_waiting import made_of, on_a_thread
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.engine import Engine
from jaxstate.engine.host import checked_questions
from jaxstate.engine.metrics import EngineMetrics
from jaxstate.engine.policies import QueuePolicy
from jaxstate.engine.recovery import Recovery
from jaxstate.engine.residence import Residency
from jaxstate.engine.session import Session
from jaxstate.engine.subscription import checked_timeout
from jaxstate.engine.values import Answer
from jaxstate.engine.waiting import results_of
from jaxstate.errors import ClosedError
from jaxstate.model.bundle import Model
from jaxstate.records import Durability, checked_path


class AsyncEngine:
    """An `Engine` in asyncio form; see there for arguments and errors.

        async with jaxstate.AsyncEngine(model) as engine:
            session = engine.open()
            await session.push("09:30 101.20")
            print(await session.ask("What was the last price?"))

    The engine is made on entering, in a thread.
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
        journal: str | os.PathLike[str] | None = None,
        durability: Durability = "os",
    ) -> None:
        place = None if journal is None else checked_path("journal", journal)
        self._make = lambda: Engine(
            model,
            cells=cells,
            memory=memory,
            session_cells=session_cells,
            sessions=sessions,
            config=config,
            warm_up=warm_up,
            progress=progress,
            journal=place,
            durability=durability,
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
        flash: Sequence[str] = (),
    ) -> AsyncSession:
        """As `Engine.open`, without waiting for the journal."""
        questions = checked_questions(flash)
        session, _ = self.engine.noting_open(
            id,
            prefix=prefix,
            tenant=tenant,
            reserve=reserve,
            residency=residency,
            policy=policy,
        )
        opened = AsyncSession(session)
        with session.or_closed(session.book):
            for question in questions:
                opened.flash(question)
        return opened

    async def wait_warm_up(self, timeout: float | None = None) -> None:
        """As `Engine.wait_warm_up`."""
        await on_a_thread(lambda: self.engine.wait_warm_up(timeout))

    async def restore(
        self,
        path: str | os.PathLike[str],
        id: str | None = None,
        *,
        tenant: str = "default",
        policy: QueuePolicy | None = None,
    ) -> AsyncSession:
        """As `Engine.restore`; if the task is cancelled, what comes of it is closed."""
        engine, place = self.engine, checked_path("path", path)
        make = lambda: engine.restore(place, id, tenant=tenant, policy=policy)  # noqa: E731
        return AsyncSession(await made_of(make, Session.close))

    @property
    def recovery(self) -> Recovery:
        """As `Engine.recovery`."""
        return self.engine.recovery

    async def import_session(
        self, path: str | os.PathLike[str], id: str | None = None
    ) -> AsyncSession:
        """As `Engine.import_session`."""
        place = checked_path("path", path)
        return AsyncSession(await on_a_thread(lambda: self.engine.import_session(place, id)))

    async def erase(self, id: str) -> int:
        """As `Engine.erase`."""
        return await on_a_thread(lambda: self.engine.erase(id))

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
        seed: int | None = None,
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

    def __repr__(self) -> str:
        return f"Async{self._engine!r}" if self._engine else "AsyncEngine(not entered)"

    async def close(self) -> None:
        """As `Engine.close`."""
        await on_a_thread(self.engine.close)

    async def __aenter__(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = await made_of(self._make, Engine.close)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
