"""From a planned step to a call on the device, and from its result back into the books.

Comes in: a `Step` of the scheduler and the `Ledger`. Goes out: a `Launch`: what to call, and what
to do with what it returns or raises. `prepare` and the two continuations run under the engine's
lock, the call itself outside it. Does not know: threads, when anything is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxstate.engine.executor import Candidate, Choices, Executor, Limits, Pending, RowTokens
from jaxstate.engine.flash import Registered, Warm
from jaxstate.engine.ingest import Taken
from jaxstate.engine.ledger import Book, Ledger
from jaxstate.engine.outcomes import Outcomes
from jaxstate.engine.runs import Asked, Run
from jaxstate.engine.values import DataUpdated
from jaxstate.engine.views import Begin, GoOn, Ingest, Step, Work
from jaxstate.errors import CapacityExceeded
from jaxstate.records import Sampling
from jaxstate.text import Tokenizer

T = TypeVar("T")
# Launch outside the lock; then fetch, still outside; then book, under the lock, at a time.
Call: TypeAlias = Callable[[], Callable[[], Callable[[float], None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One step on its way.

    Attributes:
        work: the class that it is counted under.
        works: all classes that it serves.
        call: launches it (outside the lock) and returns how to wait for it; what that returns
            books the result (under the lock, at the time given).
        fail: books that it raised.
    """

    work: Work
    works: frozenset[Work]
    call: Call
    fail: Callable[[Exception], None]


class _Nothing:
    """The result of a step that needs no device."""

    def get(self) -> None:
        """It is there."""


_NOTHING = _Nothing()


class Launcher:
    """Turns steps into launches.

    Args:
        ledger: the books.
        executor: the device.
        outcomes: what ends a run, and who hears of it.
        tokenizer: for the text of answers.
    """

    def __init__(
        self, ledger: Ledger, executor: Executor, outcomes: Outcomes, tokenizer: Tokenizer | None
    ) -> None:
        self._ledger = ledger
        self._executor = executor
        self._outcomes = outcomes
        self._tokenizer = tokenizer

    def prepare(self, step: Step, now_s: float) -> Launch | None:
        """Books that the step begins; None if it needs no device after all."""
        book = self._ledger.books[step.session]
        if step.work == "ask":
            self._ledger.asks_began = not isinstance(step, GoOn)
            self._ledger.flash_lent = _is_flash(book, step)
        if isinstance(step, Ingest):
            return self._ingest(book, step, now_s)
        if isinstance(step, GoOn):
            return self._go_on(book, step)
        if step.work == "ask" and step.runs:
            return self._begin_asks(book, step, now_s)
        if step.work == "warm":
            return self._begin_warm(book)
        return self._begin_flash(book, step, now_s)

    def _ingest(self, book: Book, step: Ingest, now_s: float) -> Launch | None:
        book.ingest_served = self._ledger.steps
        rest_tokens = book.queue.rest_tokens if book.border_jobs else 0
        taken = book.queue.take(min(step.tokens, rest_tokens or step.tokens))
        assert taken is not None, "the scheduler saw something to read"
        book.launched_cells += len(taken.tokens)
        self._outcomes.drop_unreadable(book)
        border_cells = book.launched_cells - book.queue.partly_read_tokens

        def commit(_: None, now_s: float) -> None:
            self._commit_entries(book, taken, border_cells, now_s)

        def fail(error: Exception) -> None:
            self._outcomes.break_session(book, error)

        def extend() -> Pending[None]:
            # Without tokens there is nothing to launch, but steps before it are still under way.
            return self._executor.extend(book.key, taken.tokens) if len(taken.tokens) else _NOTHING

        # What is read for an ask counts as the ask's: ingest keeps the share of its own.
        works = frozenset[Work]({step.work})
        return Launch(work="ingest", works=works, call=_joined(extend, commit), fail=fail)

    def _commit_entries(self, book: Book, taken: Taken, border_cells: int, now_s: float) -> None:
        recorder = self._outcomes.recorder
        recorder.count("tokens_ingested", len(taken.tokens))
        self._outcomes.room_made(book)
        if taken.completes is None or book.closed_because is not None:
            return
        recorder.entries_committed(taken.pushed_s, now_s)
        book.commit(taken.completes, border_cells, now_s)
        self._outcomes.reached(book)
        self._outcomes.tell(book, DataUpdated(version=book.version, pending=book.queue.pending))

    def _begin_asks(self, book: Book, step: Begin, now_s: float) -> Launch | None:
        if step.evict:
            limits = self._ledger.limits
            self._outcomes.evict(sum(book.asks[key].run.asked.blocks(limits) for key in step.runs))
        book.asks_served = self._ledger.steps
        runs: list[Run] = []
        for key in step.runs:
            run = book.asks[key].run
            try:
                run.asked.check_reach(book.seen_cells, self._ledger.limits)
            except CapacityExceeded as error:
                self._outcomes.fail_ask(book, key, error)
                continue
            self._pin(book, run)
            book.asks_begun[key] = book.asks[key]
            runs.append(run)
        return self._start(book, runs, "ask")

    def _pin(self, book: Book, run: Run) -> None:
        blocks = self._ledger.blocks.take(run.asked.blocks(self._ledger.limits))
        run.begin(book.version, book.seen_cells, blocks, self._tokenizer)

    def _begin_flash(self, book: Book, step: Begin, now_s: float) -> Launch | None:
        book.flash.served = self._ledger.steps
        runs: list[Run] = []
        for one in self._fitting(book, now_s):
            one.begin(now_s)
            run = self._flash_run(book, one)
            self._pin(book, run)
            book.flash_runs[run.key] = (run, one)
            runs.append(run)
        return self._start(book, runs, step.work)

    def _flash_run(self, book: Book, one: Registered) -> Run:
        since_s = max(book.committed_s, one.registered_s)
        holds = one.drops >= self._ledger.config.scheduling.flash_drops
        return Run(self._ledger.new_key(), "flash", one.asked, since_s, holds=holds)

    def _fitting(self, book: Book, now_s: float) -> list[Registered]:
        """What is due, as far as rows and tail blocks go."""
        limits = self._ledger.limits
        blocks_left = len(self._ledger.blocks)
        room = limits.rows - len(book.flash_runs)
        chosen: list[Registered] = []
        for one in book.flash.due(now_s):
            try:
                one.asked.check_reach(book.seen_cells, limits)
            except CapacityExceeded as error:
                book.flash.refused(one, book.version, str(error))
                self._outcomes.recorder.count("flash_refused")
                continue
            blocks_left -= one.asked.blocks(limits)
            if blocks_left < 0 or len(chosen) == room:
                break
            chosen.append(one)
        return chosen[: _idle_starts([one.asked for one in chosen], limits)]

    def _begin_warm(self, book: Book) -> Launch | None:
        limits = self._ledger.limits
        book.warm.served = self._ledger.steps
        due: list[Warm] = []
        for one in book.warm.due():
            try:
                one.asked.check_reach(book.seen_cells, limits)
            except CapacityExceeded:
                one.tried_version = book.version
                continue
            due.append(one)
        if not due:
            return None
        due = due[: _idle_starts([one.asked for one in due], limits)]
        version, seen_cells = book.version, book.seen_cells
        book.warm.running = True
        rows = [_row(one) for one in due]

        def commit(logprobs: NDArray[np.float32], now_s: float) -> None:
            book.warm.running = False
            book.warm.keep(due, logprobs, version, seen_cells)

        def fail(error: Exception) -> None:
            book.warm.running = False
            for one in due:
                one.tried_version = version  # not again before the next commit

        call = _joined(lambda: self._executor.logits(book.key, seen_cells, rows), commit)
        return Launch(work="warm", works=frozenset({"warm"}), call=call, fail=fail)

    def _start(self, book: Book, runs: Sequence[Run], work: Work) -> Launch | None:
        limits = self._ledger.limits
        reading = [(run, row) for run in runs if (row := run.read(limits)) is not None]
        for run in runs:
            run.served = self._ledger.steps
        if not reading:
            return None
        rows = [row for _, row in reading]
        started = [run for run, _ in reading]
        seen_cells = book.seen_cells
        call = lambda: self._executor.start(book.key, seen_cells, rows)  # noqa: E731
        return self._choosing(book, started, call, work)

    def _go_on(self, book: Book, step: GoOn) -> Launch | None:
        runs = self._outcomes.runs_of(book, step.runs)
        for run in runs:
            run.served = self._ledger.steps
        if runs[0].work == "flash":
            book.flash.served = self._ledger.steps
        seen_cells = runs[0].seen_cells
        if step.stage == "scoring":
            return self._score(book, runs, step.work)
        if step.stage == "reading":
            row = runs[0].read(self._ledger.limits)
            assert row is not None, "a run that reads has something to read"
            more = lambda: self._executor.more(book.key, seen_cells, row)  # noqa: E731
            return self._choosing(book, runs, more, step.work)
        rows = [run.decode() for run in runs]
        decode = lambda: self._executor.decode(book.key, seen_cells, rows)  # noqa: E731
        return self._choosing(book, runs, decode, step.work)

    def _choosing(
        self,
        book: Book,
        runs: Sequence[Run],
        call: Callable[[], Pending[Choices]],
        work: Work,
    ) -> Launch:
        """A step that chooses a token for each run, and what that does to the runs."""
        complete = [run.stage == "decoding" for run in runs]

        def commit(chosen: Choices, now_s: float) -> None:
            for index, run in enumerate(runs):
                if complete[index]:
                    run.take_token(
                        int(chosen.tokens[index]),
                        float(chosen.logprobs[index]),
                        float(chosen.gaps[index]),
                        bool(chosen.done[index]),
                    )
            self._outcomes.finish(book, runs, now_s)

        return self._of_runs(book, runs, _joined(call, commit), work)

    def _score(self, book: Book, runs: Sequence[Run], work: Work) -> Launch:
        """Scores as many choices, of as many runs, as one step takes."""
        candidates: list[Candidate] = []
        owners: list[tuple[Run, int]] = []
        room = _scored_together(runs, self._ledger.limits)
        for run in runs:
            more = run.score(room - len(candidates))
            candidates += more
            owners.append((run, len(more)))
        seen_cells = runs[0].seen_cells

        def commit(totals: NDArray[np.float32], now_s: float) -> None:
            start = 0
            for run, count in owners:
                run.take_totals([float(total) for total in totals[start : start + count]])
                start += count
            self._outcomes.finish(book, runs, now_s)

        call = _joined(lambda: self._executor.score(book.key, seen_cells, candidates), commit)
        return self._of_runs(book, runs, call, work)

    def _of_runs(
        self,
        book: Book,
        runs: Sequence[Run],
        call: Call,
        work: Work,
    ) -> Launch:
        def fail(error: Exception) -> None:
            self._outcomes.fail_runs(book, runs, error)

        # Questions past their deadline run as asks and count as asks; those that ride along count.
        lent = runs[0].work != work
        works = frozenset[Work]({work} if lent else {work, *(run.work for run in runs)})
        return Launch(work=work, works=works, call=call, fail=fail)


def _is_flash(book: Book, step: Step) -> bool:
    """Whether a step that is as urgent as an ask serves registered questions."""
    if isinstance(step, Ingest):
        return False
    return not step.runs or step.runs[0] in book.flash_runs


def _idle_starts(asked: Sequence[Asked], limits: Limits) -> int:
    """How many of these, from the first, should begin in one idle step."""
    fitting, padded = 0, (1, 1)
    for one in asked:
        longest = max(padded[0], min(len(one.tokens), limits.question_tokens))
        if fitting >= limits.idle_start(longest)[1]:
            break
        fitting, padded = fitting + 1, limits.idle_start(longest)
    return limits.row_sizes.take(fitting, *padded) if fitting else 0


def _scored_together(runs: Sequence[Run], limits: Limits) -> int:
    """How many of the choices that these runs have left one step should score."""
    left = [tokens for run in runs for tokens in run.choices_left]
    longest = max(map(len, left))
    idle = runs[0].work == "flash"
    most = min(limits.rows, limits.idle_rows(longest)) if idle else limits.rows
    return limits.row_sizes.take(len(left), longest, most)


def _row(warm: Warm) -> RowTokens:
    return RowTokens(blocks=(), used_cells=0, tokens=warm.asked.tokens, sampling=Sampling())


def _joined(launch: Callable[[], Pending[T]], commit: Callable[[T, float], None]) -> Call:
    """Launch now, fetch later, book under the lock."""

    def call() -> Callable[[], Callable[[float], None]]:
        pending = launch()

        def fetch() -> Callable[[float], None]:
            result = pending.get()
            return lambda now_s: commit(result, now_s)

        return fetch

    return call
