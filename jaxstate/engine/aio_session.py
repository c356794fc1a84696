"""Sessions for asyncio: the same calls, awaited where they wait.

Comes in: coroutines of one event loop. Goes out: what the session gives them. Does not know: how
the engine works.

No call blocks the event loop. Those that are not awaited (`flash`, `unflash`, `warm`, `unwarm`,
`close`) are noted, and do not wait for a journal: it is written in order, so what is awaited after
them (`push`, `journaled`) is written behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from types import TracebackType

from jaxstate.engine.aio_waiting import events_of, on_a_thread, result_of
from jaxstate.engine.asking import settings_of
from jaxstate.engine.conditions import Condition
from jaxstate.engine.hits import FlashQuery
from jaxstate.engine.registering import OnFire
from jaxstate.engine.session import Session
from jaxstate.engine.subscription import FlashMode, checked_timeout
from jaxstate.engine.values import Answer, Event, Receipt, SessionInfo
from jaxstate.engine.waiting import countdown
from jaxstate.errors import ClosedError
from jaxstate.records import Durability, checked_path


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
        seed: int | None = None,
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

    def check(
        self,
        question: str,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
    ) -> int:
        """As `Session.check`."""
        return self.session.check(question, max_tokens=max_tokens, choices=choices, stop=stop)

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
        """As `Session.flash`, without waiting for the journal; `on_fire` is called on the engine's
        thread for callbacks."""
        query, _ = self.session.noting_flash(
            question,
            settings_of(max_tokens, choices, stop),
            when=when,
            on_fire=on_fire,
            min_interval_s=min_interval_s,
            deadline_s=deadline_s,
            staleness_s=staleness_s,
        )
        return query

    def flashes(self) -> list[FlashQuery]:
        """As `Session.flashes`."""
        return self.session.flashes()

    def unflash(self, flash_id: str) -> None:
        """As `Session.unflash`, without waiting for the journal."""
        self.session.noting_unflash(flash_id)

    def warm(self, question: str) -> None:
        """As `Session.warm`, without waiting for the journal."""
        self.session.noting_warm(question)

    def unwarm(self, question: str) -> None:
        """As `Session.unwarm`, without waiting for the journal."""
        self.session.noting_unwarm(question)

    async def journaled(self) -> None:
        """Waits until the journal has all that this session's calls have noted so far; at once
        without one.

        Raises:
            JournalError: it could not be written; what was noted is taken back.
        """
        noted = self.session.noting_all()
        if noted is not None:
            await asyncio.wrap_future(noted.settled)

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
        place = checked_path("path", path)
        captured = self.session.capturing(notes)
        write = await result_of(captured, None, "the session was not captured")
        await on_a_thread(lambda: write(place))

    async def suspend(self, timeout: float | None = None) -> None:
        """As `Session.suspend`."""
        await result_of(self.session.suspending(), timeout, "the session did not leave")

    async def resume(self, timeout: float | None = None) -> None:
        """As `Session.resume`."""
        await result_of(self.session.resuming(), timeout, "the session did not come back")

    async def export(self, path: str | os.PathLike[str]) -> None:
        """As `Session.export`."""
        place = checked_path("path", path)
        await on_a_thread(lambda: self.session.export(place))

    async def erase(self) -> None:
        """As `Session.close(erase=True)`."""
        await on_a_thread(lambda: self.session.close(erase=True))

    def close(self) -> None:
        """As `Session.close`, without waiting for the journal: until it is written (`journaled`,
        the end of an `async with`) its name is in use."""
        if not self.session.book.has_ended:
            self.session.noting_close()

    def __repr__(self) -> str:
        return f"AsyncSession({self.id!r}, version={self.version})"

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
            await self.journaled()
