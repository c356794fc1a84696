"""A step on its way: what to call, and what its result or its failure does to the books.

Comes in: runs, and how their step is called. Goes out: a `Launch`. Does not know: what is planned,
when anything is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from jaxstate.engine.books import Book
from jaxstate.engine.executor import Choices, Pending
from jaxstate.engine.outcomes import Outcomes
from jaxstate.engine.runs import Run
from jaxstate.engine.views import Work

T = TypeVar("T")
# Launch outside the lock; then fetch, still outside; then book, under the lock, at a time.
Call: TypeAlias = Callable[[], Callable[[], Callable[[float], None]]]
BookRun: TypeAlias = tuple[Book, Run]


class _Nothing:
    """The result of a step that needs no device."""

    def get(self) -> None:
        """It is there."""


NOTHING = _Nothing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One step on its way.

    Attributes:
        work: the class that it is counted under.
        works: all classes that it serves.
        call: launches it (outside the lock) and returns how to wait for it; what that returns
            books the result (under the lock, at the time given).
        fail: books that it raised.
        read_tokens: that it reads for sessions, if it does nothing else.
        lent: whether it serves registered questions that are as urgent as asks.
    """

    work: Work
    works: frozenset[Work]
    call: Call
    fail: Callable[[Exception], None]
    read_tokens: int = 0
    lent: bool = False


def choosing(
    outcomes: Outcomes, runs: Sequence[BookRun], call: Callable[[], Pending[Choices]], work: Work
) -> Launch:
    """A step that chooses a token for each run, and what that does to the runs."""
    return of_runs(outcomes, runs, joined_call(call, chosen_by(outcomes, runs)), work)


def chosen_by(outcomes: Outcomes, runs: Sequence[BookRun]) -> Callable[[Choices, float], None]:
    """Books what a step chose for runs; of those that still read it does not count."""
    complete = [run.stage == "decoding" for _, run in runs]

    def commit(chosen: Choices, now_s: float) -> None:
        finite = np.isfinite(chosen.logprobs)
        for index, (book, run) in enumerate(runs):
            if complete[index] and finite[index]:
                book.residence.is_sound(run.version)
        for index, (book, run) in enumerate(runs):
            if run.finished:
                continue  # launched before its end was known
            if complete[index] and not finite[index]:
                outcomes.not_finite(book, run)
            elif complete[index]:
                run.take_token(
                    int(chosen.tokens[index]),
                    float(chosen.logprobs[index]),
                    float(chosen.gaps[index]),
                    bool(chosen.done[index]),
                )
            outcomes.finish(book, [run], now_s)

    return commit


def of_runs(outcomes: Outcomes, runs: Sequence[BookRun], call: Call, work: Work) -> Launch:
    """A step that serves these runs and nothing else."""

    def fail(error: Exception) -> None:
        for book, run in runs:
            outcomes.fail_runs(book, [run], error)

    return Launch(work=work, works=works_of(work, [run for _, run in runs]), call=call, fail=fail)


def works_of(work: Work, runs: Sequence[Run]) -> frozenset[Work]:
    """The classes that a step serves. Questions past their deadline run as asks and count as asks;
    those that ride along count."""
    lent = bool(runs) and runs[0].work != work and runs[0].work == "flash"
    return frozenset[Work]({work} if lent else {work, *(run.work for run in runs)})


def joined_call(launch: Callable[[], Pending[T]], commit: Callable[[T, float], None]) -> Call:
    """Launch now, fetch later, book under the lock."""

    def call() -> Callable[[], Callable[[float], None]]:
        pending = launch()

        def fetch() -> Callable[[float], None]:
            result = pending.get()
            return lambda now_s: commit(result, now_s)

        return fetch

    return call
