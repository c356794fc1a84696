"""Waiting for the engine within an event loop, which nothing here blocks.

Comes in: futures, events and work of the engine. Goes out: awaitables; a task that is cancelled
takes what it waits for off the device. Does not know: sessions.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TypeVar

from jaxstate.engine.subscription import Subscription, checked_timeout
from jaxstate.engine.values import Event
from jaxstate.engine.waiting import mark_timed_out
from jaxstate.errors import TimedOut

T = TypeVar("T")


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
