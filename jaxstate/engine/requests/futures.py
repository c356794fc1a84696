"""Waits of clients that end: with what they wait for, or with a timeout.

Comes in: futures that the loop resolves, and seconds. Goes out: results, or `TimedOut`. Does not
know: what the futures are for, but that a question which timed out is counted as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

from jaxstate.engine.types.events import checked_timeout
from jaxstate.engine.types.values import Answer
from jaxstate.errors import TimedOut

T = TypeVar("T")


class AskFuture(Future[Answer]):
    """An answer to come; cancelling it takes the question off the device at the next step.

    Its callbacks (`add_done_callback`) run on the engine's thread: they must be short, and a call
    in them that would wait for the engine is refused.

    Attributes:
        timed_out: it was cancelled because a timeout passed.
    """

    timed_out: bool = False

    @classmethod
    def of(cls, answer: Answer) -> AskFuture:
        """The future of an answer that is there."""
        future = cls()
        future.set_result(answer)
        return future


def wait_for(future: Future[T], timeout: float | None, what: str) -> T:
    """A future's result; on a timeout it is cancelled.

    Raises:
        TimedOut: `what`, within the timeout.
    """
    seconds = checked_timeout(timeout)
    if not future.done():
        wait([future], seconds)
    if not future.done():
        mark_timed_out(future)
        if future.cancel():
            raise TimedOut(f"{what} within {timeout} s; it was cancelled")
    return future.result()


def wait_for_all(futures: Sequence[Future[T]], timeout: float | None, what: str) -> list[T]:
    """The results of all; the first error of any, as soon as it is there.

    Raises:
        TimedOut: `what`, within the timeout; those that are not there are cancelled.
    """
    wait(futures, checked_timeout(timeout), FIRST_EXCEPTION)
    return results_of(futures, f"{what} within {timeout} s")


def results_of(futures: Sequence[Future[T]], late: str) -> list[T]:
    """The results of all, or the first error; those that are not there are cancelled.

    Raises:
        TimedOut: `late`, if some were not there and none had failed.
    """
    missing = [future for future in futures if not future.done()]
    for future in futures:
        if future not in missing:
            future.result()  # raises its error
    for future in missing:
        mark_timed_out(future)
    # One that has come in this moment cannot be cancelled, and is a result like the others.
    if any([future.cancel() for future in missing]):
        raise TimedOut(f"{late}; what was not answered was cancelled")
    return [future.result() for future in futures]


def countdown(timeout: float | None) -> Callable[[], float | None]:
    """Tells, whenever it is called, how many of `timeout` seconds are left."""
    seconds = checked_timeout(timeout)
    if seconds is None:
        return lambda: None
    ends_s = time.monotonic() + seconds
    return lambda: max(0.0, ends_s - time.monotonic())


def mark_timed_out(future: Future[T]) -> None:
    """Lets an ask that is cancelled now be counted as one that timed out."""
    if isinstance(future, AskFuture):
        future.timed_out = True
