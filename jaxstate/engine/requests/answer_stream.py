"""An answer while it is being chosen: pieces of text that are final, and in the end the `Answer`.

Comes in: on the engine's thread, what the text begins with, each time it has grown, and at last the
future's result. Goes out: the pieces, to a thread that waits or to an event loop; put together they
are `Answer.text`, and no piece ends within a character. Does not know: sessions, how an answer is
computed.

The engine holds a stream weakly: a question whose stream nobody has any more leaves the device with
its next token.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable

from jaxstate.engine.requests.futures import AskFuture, countdown, mark_timed_out
from jaxstate.engine.types.values import Answer
from jaxstate.errors import TimedOut

Submit = Callable[[Callable[[str], None]], Answer | AskFuture]


class _Feed:
    """Between the engine's thread and a reader.

    Args:
        reader: what reads; while it is there the question is wanted.
        wake: called whenever there is news, on the engine's thread; it must not wait.

    Attributes:
        text: what the answer certainly begins with.
        future: its end.
    """

    def __init__(self, reader: object, wake: Callable[[], object]) -> None:
        self.text = ""
        self.future = AskFuture()
        self._reader = weakref.ref(reader)
        self._wake = wake

    def follow(self, submit: Submit) -> None:
        """Asks the question."""
        outcome = submit(self._grow)
        self.future = AskFuture.of(outcome) if isinstance(outcome, Answer) else outcome
        self.future.add_done_callback(lambda _: self._wake())

    def _grow(self, text: str) -> None:
        if self._reader() is None:
            self.future.cancel()
            return
        self.text = text
        self._wake()


class _Pieces:
    """What reading an answer along has in common, for threads and for event loops."""

    def __init__(self, submit: Submit, wake: Callable[[], object], timeout: float | None) -> None:
        self._timeout = timeout
        self._left_s = countdown(timeout)
        self._given = 0
        self._feed = _Feed(self, wake)
        self._feed.follow(submit)

    @property
    def answer(self) -> Answer | None:
        """The whole answer, once it is there."""
        future = self._feed.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result()

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to come, whatever was taken of it."""
        return self._feed.future.done()

    def close(self) -> None:
        """Ends it: a question that is not answered leaves the device."""
        self._feed.future.cancel()

    def _take(self) -> str | None:
        """What can be given now, and was not before; None at the end, and once it was closed.

        Raises:
            JaxstateError: what became of the question, once all that was said of it was given.
        """
        future = self._feed.future
        if future.cancelled():
            return None
        ended, text = future.done(), self._feed.text
        if ended and self._given >= len(text):
            text = future.result().text
        piece, self._given = text[self._given :], max(self._given, len(text))
        return None if ended and not piece else piece

    def _time_out(self) -> None:
        """It took too long; does nothing if it has just ended.

        Raises:
            TimedOut: it was cancelled.
        """
        mark_timed_out(self._feed.future)
        if self._feed.future.cancel():
            raise TimedOut(
                f"the question was not answered within {self._timeout} s; it was cancelled"
            )


class AnswerStream(_Pieces):
    """An iterator over an answer's text while it grows; `Session.stream` makes it.

    The pieces, put together, are the answer's `text`. Where it was there already (a flash answer),
    and with choices, it comes in one piece. Leaving a `with` block, `close`, and letting go of it
    take an unfinished question off the device.

    Raises, from `next`:
        TimedOut, StepFailed, ClosedError: as `Session.ask`; what came before stays valid.
    """

    def __init__(self, submit: Submit, timeout: float | None) -> None:
        self._news = threading.Event()
        super().__init__(submit, self._news.set, timeout)

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        while True:
            self._news.clear()
            piece = self._take()
            if piece is None:
                raise StopIteration
            if piece:
                return piece
            if not self._news.wait(self._left_s()):
                self._time_out()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncAnswerStream(_Pieces):
    """The same for `async for`; made within the event loop that reads it."""

    def __init__(self, submit: Submit, timeout: float | None) -> None:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        self._news = news
        super().__init__(submit, lambda: loop.call_soon_threadsafe(news.set), timeout)

    def __aiter__(self) -> AsyncAnswerStream:
        return self

    async def __anext__(self) -> str:
        while True:
            self._news.clear()
            piece = self._take()
            if piece is None:
                raise StopAsyncIteration
            if piece:
                return piece
            try:
                await asyncio.wait_for(self._news.wait(), self._left_s())
            except TimeoutError:
                self._time_out()

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
