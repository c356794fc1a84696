"""Sessions for asyncio: the same calls, awaited where they wait.

Comes in: coroutines of one event loop. Goes out: what the session gives them. Does not know: how
the engine works.

Calls that are not awaited may still wait for a journal at "os" or "fsync" (`flash`, `close`): a
matter of microseconds to a few milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from types import TracebackType

from jaxstate.engine.aio_waiting import events_of, on_a_thread, result_of
from jaxstate.engine.conditions import Condition
from jaxstate.engine.hits import FlashQuery
from jaxstate.engine.registering import OnFire
from jaxstate.engine.session import Session
from jaxstate.engine.subscription import FlashMode, checked_timeout
from jaxstate.engine.values import Answer, Event, Receipt, SessionInfo
from jaxstate.engine.waiting import countdown
from jaxstate.errors import ClosedError
from jaxstate.records import Durability


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
        try:
            while isinstance(outcome := self.session.push_prepared(new), Future):
                await result_of(outcome, left_s(), "the queue was full")
        except BaseException:
            self.session.give_up(new)
            raise
        if outcome.ticket is not None and not outcome.ticket.stays:
            await asyncio.wrap_future(outcome.ticket.settled)
        return outcome.receipt

    async def client_seq(self, client: str) -> int | None:
        """As `Session.client_seq`."""
        return await on_a_thread(lambda: self.session.client_seq(client))

    async def wait(self, version: int | None = None, timeout: float | None = None) -> int:
        """As `Session.wait`."""
        await result_of(self.session.waiting(version), timeout, "the entries were not read")
        return self.session.version

    async def wait_fresh(self, timeout: float | None = None) -> int:
        """As `Session.wait_fresh`."""
        future = self.session.waiting_fresh()
        await result_of(future, timeout, "the flash queries were not answered")
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
        return await result_of(future, timeout, "the question was not answered")

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
        staleness_s: float | None = None,
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
            staleness_s=staleness_s,
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
        return events_of(self.session.subscribe(flash=flash), seconds)

    def info(self) -> SessionInfo:
        """As `Session.info`."""
        return self.session.info()

    async def fork(
        self, id: str | None = None, *, version: int | None = None, rebuild_tokens: int = 0
    ) -> AsyncSession:
        """As `Session.fork`; if the task is cancelled, what comes of it is closed."""
        book, future = self.session.forking(id, version, rebuild_tokens)
        with self.session.or_closed(book):
            await result_of(future, None, "the session was not forked")
            if book.noted is not None and not book.noted.stays:
                await asyncio.wrap_future(book.noted.settled)
        return AsyncSession(self.session.of(book))

    async def save(
        self, path: str | os.PathLike[str], notes: dict[str, str | int] | None = None
    ) -> None:
        """As `Session.save`."""
        captured = self.session.capturing(notes)
        write = await result_of(captured, None, "the session was not captured")
        await on_a_thread(lambda: write(path))

    async def suspend(self, timeout: float | None = None) -> None:
        """As `Session.suspend`."""
        await result_of(self.session.suspending(), timeout, "the session did not leave")

    async def resume(self, timeout: float | None = None) -> None:
        """As `Session.resume`."""
        await result_of(self.session.resuming(), timeout, "the session did not come back")

    async def export(self, path: str | os.PathLike[str]) -> None:
        """As `Session.export`."""
        await on_a_thread(lambda: self.session.export(path))

    async def erase(self) -> None:
        """As `Session.close(erase=True)`."""
        await on_a_thread(lambda: self.session.close(erase=True))

    def close(self) -> None:
        """As `Session.close`."""
        self.session.close()

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ClosedError):  # the engine was closed first
            self.close()
