"""The engine for asyncio: the same calls, awaited where they wait.

Comes in: coroutines of one event loop. Goes out: what the engine gives them; what is awaited does
not block that loop, and a cancelled task takes its question off the device. Does not know: how the
engine works.

`open` is not awaited and does not wait for a journal: what is pushed is written behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future
from types import TracebackType
from typing import TypeVar, Unpack

from jaxstate.engine.api.engine import Engine, EngineOptions, OpenOptions, checked_questions
from jaxstate.engine.api.session import FlashQuery, Session
from jaxstate.engine.core.metrics import EngineMetrics
from jaxstate.engine.durability.recovery import Recovery
from jaxstate.engine.flash.registry import FlashOptions
from jaxstate.engine.requests.answer_stream import AsyncAnswerStream
from jaxstate.engine.requests.encoding import AskOptions, SettingsOptions
from jaxstate.engine.requests.futures import countdown, mark_timed_out, results_of
from jaxstate.engine.types.events import FlashMode, Subscription, checked_timeout
from jaxstate.engine.types.options import QueuePolicy, check_known
from jaxstate.engine.types.values import Answer, Event, Receipt, SessionInfo
from jaxstate.engine.types.window import Window
from jaxstate.errors import ClosedError, TimedOut
from jaxstate.model.bundle import Model
from jaxstate.persist.journal import PendingWrite
from jaxstate.records import checked_path
from jaxstate.text import Messages

T = TypeVar("T")

# Tokens of so many characters take milliseconds.
_LONG_CHARACTERS = 16_384


async def result_of(future: Future[T], timeout: float | None, what: str) -> T:
    """A future's result; a timeout, or the task's end, cancels it.

    Raises:
        TimedOut: `what`, within the timeout.
    """
    seconds = checked_timeout(timeout)
    if future.done():
        return future.result()
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


async def made_of(make: Callable[[], T], discard: Callable[[T], None]) -> T:
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

    # asyncio's own pool has a handful of threads, which the application's calls need as well.
    threading.Thread(target=run, name="jaxstate-aio").start()
    return await asyncio.wrap_future(future)


async def on_a_thread(work: Callable[[], T]) -> T:
    """What comes of something that waits; it goes on if nobody waits for it any more."""
    return await made_of(work, lambda _: None)


def _is_long(entries: str | Sequence[str]) -> bool:
    """Whether making tokens of them would hold up an event loop for more than a moment."""
    if isinstance(entries, str):
        return len(entries) > _LONG_CHARACTERS
    if not isinstance(entries, list | tuple):
        return False  # if it is no sequence at all, that is found elsewhere
    return sum(len(one) for one in entries if isinstance(one, str)) > _LONG_CHARACTERS


async def written_to_journal(written: PendingWrite | None, timeout: float | None) -> None:
    """As `EngineCore.settled`, awaited."""
    if written is None or not written.awaited:
        return
    settled = asyncio.wrap_future(written.settled)
    if written.stays:
        await asyncio.wait([settled], timeout=timeout)
    else:
        await settled


async def events_of(subscription: Subscription, timeout: float | None) -> AsyncIterator[Event]:
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
        timeout: float | None = None,
    ) -> Receipt:
        """As `Session.push`; what a cancelled task has pushed may be there all the same."""
        left_s = countdown(timeout)
        prepare = lambda: self.session.prepare(entries, client, client_seq, strict)  # noqa: E731
        new = await on_a_thread(prepare) if _is_long(entries) else prepare()
        while (read := self.session.reads_first(new)) is not None:
            await on_a_thread(read)
        try:
            while isinstance(outcome := self.session.push_prepared(new), Future):
                await result_of(outcome, left_s(), "the queue was full")
        except BaseException:
            self.session.give_up(new)
            raise
        await written_to_journal(outcome.written, left_s())
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
        question: str | Messages,
        *,
        timeout: float | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """As `Session.ask`; cancelling the task ends the question."""
        check_known("AsyncSession.ask", options, AskOptions)
        future = self.session.submit(question, **options)
        return await result_of(future, timeout, "the question was not answered")

    def stream(
        self,
        question: str | Messages,
        *,
        timeout: float | None = None,
        **options: Unpack[AskOptions],
    ) -> AsyncAnswerStream:
        """As `Session.stream`, for `async for`; to be called within the event loop."""
        checked_timeout(timeout)
        submit = self.session.streaming("AsyncSession.stream", question, options)
        return AsyncAnswerStream(submit, timeout)

    def check(self, question: str | Messages, **options: Unpack[SettingsOptions]) -> int:
        """As `Session.check`."""
        return self.session.check(question, **options)

    def flash(self, question: str, **options: Unpack[FlashOptions]) -> FlashQuery:
        """As `Session.flash`, without waiting for the journal; `on_fire` is called on the engine's
        thread for callbacks."""
        query, _ = self.session.noting_flash(question, **options)
        return query

    def flashes(self) -> list[FlashQuery]:
        """As `Session.flashes`."""
        return self.session.flashes()

    def flash_of(self, question: str) -> FlashQuery | None:
        """As `Session.flash_of`."""
        return self.session.flash_of(question)

    def unflash(self, flash_id: str) -> None:
        """As `Session.unflash`, without waiting for the journal."""
        self.session.noting_unflash(flash_id)

    def set_window(self, window: Window | None) -> None:
        """As `Session.set_window`, without waiting for the journal."""
        self.session.noting_window(window)

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

    def newest_entries(self, count: int = 20) -> list[tuple[int, str]]:
        """As `Session.newest_entries`."""
        return self.session.newest_entries(count)

    async def fork(self, id: str | None = None, *, version: int | None = None) -> AsyncSession:
        """As `Session.fork`; if the task is cancelled, what comes of it is closed."""
        record, future = self.session.forking(id, version)
        with self.session.or_closed(record):
            await result_of(future, None, "the session was not forked")
            await written_to_journal(record.written, None)
        return AsyncSession(self.session.of(record))

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
        if not self.session.record.has_ended:
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


class AsyncEngine:
    """An `Engine` in asyncio form; see there for arguments and errors.

        async with jaxstate.AsyncEngine(model) as engine:
            session = engine.open()
            await session.push("09:30 101.20")
            print(await session.ask("What was the last price?"))

    The engine is made on entering, in a thread.
    """

    def __init__(self, model: Model, **options: Unpack[EngineOptions]) -> None:
        check_known("AsyncEngine", options, EngineOptions)
        journal = options.get("journal")
        options["journal"] = None if journal is None else checked_path("journal", journal)
        self._make = lambda: Engine(model, **options)
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
        flash: Sequence[str] = (),
        **options: Unpack[OpenOptions],
    ) -> AsyncSession:
        """As `Engine.open`, without waiting for the journal."""
        check_known("AsyncEngine.open", options, OpenOptions)
        questions = checked_questions(flash)
        session, _ = self.engine.noting_open(id, **options)
        opened = AsyncSession(session)
        with session.or_closed(session.record):
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
        timeout: float | None = None,
        **options: Unpack[SettingsOptions],
    ) -> list[Answer]:
        """As `Engine.ask_many`; cancelling the task ends all the questions."""
        checked_timeout(timeout)
        check_known("AsyncEngine.ask_many", options, SettingsOptions)
        asked_of = None if sessions is None else [one.session for one in sessions]
        asked = self.engine.submit_many(question, asked_of, **options)
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

    async def chat(
        self,
        messages: Messages,
        *,
        tenant: str = "default",
        timeout: float | None = None,
        **options: Unpack[SettingsOptions],
    ) -> Answer:
        """As `Engine.chat`; cancelling the task ends it."""
        check_known("AsyncEngine.chat", options, SettingsOptions)
        future = self.engine.submit_chat(messages, tenant=tenant, **options)
        return await result_of(future, timeout, "the conversation was not answered")

    def stream_chat(
        self,
        messages: Messages,
        *,
        tenant: str = "default",
        timeout: float | None = None,
        **options: Unpack[SettingsOptions],
    ) -> AsyncAnswerStream:
        """As `Engine.stream_chat`, for `async for`; to be called within the event loop."""
        checked_timeout(timeout)
        check_known("AsyncEngine.stream_chat", options, SettingsOptions)
        submit = self.engine.streaming_chat(messages, tenant, options)
        return AsyncAnswerStream(submit, timeout)

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
