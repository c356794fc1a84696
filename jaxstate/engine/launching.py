"""From a planned step to a call on the device, and from its result back into the books.

Comes in: a `Plan` of the scheduler and the `Ledger`. Goes out: a `Launch`: what to call, and what
to do with what it returns or raises. `prepare` and the two continuations run under the engine's
lock, the call itself outside it. Does not know: threads, when anything is called; how questions
begin and chunks are read (`reading`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxstate.engine.books import Book
from jaxstate.engine.executor import Candidate, Executor, Limits, RowTokens
from jaxstate.engine.flash import Warm
from jaxstate.engine.launches import BookRun, Launch, choosing, joined_call, of_runs
from jaxstate.engine.ledger import Ledger
from jaxstate.engine.outcomes import Outcomes
from jaxstate.engine.reading import Reader
from jaxstate.engine.runs import Run
from jaxstate.engine.together import Want, go_together
from jaxstate.engine.views import GoOn, Ingest, Plan, Step, Work
from jaxstate.errors import CapacityExceeded
from jaxstate.records import Sampling
from jaxstate.text import Tokenizer


class Launcher:
    """Turns plans into launches.

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
        self._reader = Reader(ledger, executor, outcomes, tokenizer)

    def prepare(self, plan: Plan, now_s: float) -> Launch | None:
        """Books that a planned step begins; None if it needs no device after all."""
        step = plan.step
        assert step is not None, "there is nothing to prepare"
        if step.work == "ask":
            self._ledger.asks_began = not isinstance(step, GoOn)
            self._ledger.flash_lent = self._is_flash(step)
        launch = self._prepared(step, plan.joined, now_s)
        lent = launch is not None and step.work == "ask" and self._ledger.flash_lent
        return dataclasses.replace(launch, lent=True) if launch is not None and lent else launch

    def _prepared(self, step: Step, joined: Sequence[Step], now_s: float) -> Launch | None:
        if isinstance(step, GoOn):
            return self._go_on([step, *joined], now_s)
        if step.work == "warm":
            return self._begin_warm([step, *joined], now_s)
        return self._reader.prepare(step, joined, now_s)

    def _is_flash(self, step: Step) -> bool:
        """Whether a step that is as urgent as an ask serves registered questions."""
        if isinstance(step, Ingest):
            return False
        return not step.runs or step.runs[0] in self._ledger.books[step.session].flash_runs

    def _begin_warm(self, steps: Sequence[Step], now_s: float) -> Launch | None:
        due: list[tuple[Book, Warm]] = []
        wants: list[list[Want]] = []
        for step in steps:
            book = self._ledger.books[step.session]
            ready = [(book, one) for one in book.warm.due() if self._reaches(book, one)]
            wants.append(
                [
                    Want("warm", book.key, len(due) + n, len(one.asked.tokens))
                    for n, (_, one) in enumerate(ready)
                ]
            )
            due += ready
        planned = next((one for one in wants if one), None)
        if planned is None:
            return None
        joining = [want for one in wants for want in one if want.session != planned[0].session]
        chosen = go_together(planned, joining, self._ledger.limits, free_blocks=0)
        return self._warm([due[want.number] for want in chosen], now_s)

    def _reaches(self, book: Book, warm: Warm) -> bool:
        try:
            warm.asked.check_reach(book.seen_cells, self._ledger.limits)
        except CapacityExceeded:
            warm.tried_version = book.version
            return False
        return True

    def _warm(self, due: Sequence[tuple[Book, Warm]], now_s: float) -> Launch:
        rows = [_warm_row(book, one) for book, one in due]
        versions = [(book.version, book.seen_cells) for book, _ in due]
        for book, one in due:
            book.warm.running = True
            book.warm.served = self._ledger.steps
            book.residence.used_s = now_s
            self._ledger.charge(book, len(one.asked.tokens), book.seen_cells)

        def commit(logprobs: NDArray[np.float32], _: float) -> None:
            for n, (book, one) in enumerate(due):
                book.warm.running = False
                if np.isfinite(logprobs[n]).all():
                    book.warm.keep([one], logprobs[n : n + 1], *versions[n])
                else:
                    one.tried_version = versions[n][0]

        def fail(error: Exception) -> None:
            for n, (book, one) in enumerate(due):
                book.warm.running = False
                one.tried_version = versions[n][0]  # not again before the next commit

        call = joined_call(lambda: self._executor.logits(rows), commit)
        return Launch(work="warm", works=frozenset({"warm"}), call=call, fail=fail)

    def _go_on(self, steps: Sequence[Step], now_s: float) -> Launch | None:
        runs: list[BookRun] = []
        for step in steps:
            assert isinstance(step, GoOn), "only what goes on joins what goes on"
            book = self._ledger.books[step.session]
            runs += [(book, run) for run in self._outcomes.runs_of(book, step.runs)]
        first, work = runs[0][1], steps[0].work
        if first.stage == "scoring":
            return self._score(runs, work, now_s)
        if first.stage == "reading":
            self._serve(runs[:1], now_s)
            row = first.read(self._ledger.limits)
            assert row is not None, "a run that reads has something to read"
            return choosing(self._outcomes, runs[:1], lambda: self._executor.more(row), work)
        self._serve(runs, now_s)
        rows = [run.decode() for _, run in runs]
        return choosing(self._outcomes, runs, lambda: self._executor.decode(rows), work)

    def _serve(self, runs: Sequence[BookRun], now_s: float) -> None:
        """These have a row in the step."""
        for book, run in runs:
            run.served = self._ledger.steps
            book.residence.used_s = now_s
            book.residence.served += 1
            if run.work == "flash":
                book.flash.served = self._ledger.steps
            self._ledger.charge(book, 1, run.seen_cells)

    def _score(self, runs: Sequence[BookRun], work: Work, now_s: float) -> Launch:
        """Scores as many choices, of as many runs, as one step takes."""
        candidates: list[Candidate] = []
        owners: list[tuple[Run, int]] = []
        room = _scored_together([run for _, run in runs], self._ledger.limits)
        each = self._ledger.limits.session_rows if _several([b for b, _ in runs]) else room
        of_look: dict[tuple[int, int], int] = {}
        for _, run in runs:
            used = of_look.get(run.seen.together, 0)
            more = run.score(max(0, min(room - len(candidates), each - used)))
            of_look[run.seen.together] = used + len(more)
            candidates += more
            owners.append((run, len(more)))
        self._serve([one for one, (_, n) in zip(runs, owners, strict=True) if n], now_s)

        def commit(totals: NDArray[np.float32], now_s: float) -> None:
            start = 0
            for book, run in runs:
                if np.isfinite(totals).all():
                    book.residence.is_sound(run.version)
            for (run, count), (book, _) in zip(owners, runs, strict=True):
                mine = [float(total) for total in totals[start : start + count]]
                start += count
                if not np.isfinite(mine).all():
                    self._outcomes.not_finite(book, run)
                elif not run.finished:
                    run.take_totals(mine)
            for book, run in runs:
                self._outcomes.finish(book, [run], now_s)

        call = joined_call(lambda: self._executor.score(candidates), commit)
        return of_runs(self._outcomes, runs, call, work)


def _scored_together(runs: Sequence[Run], limits: Limits) -> int:
    """How many of the choices that these runs have left one step should score."""
    left = [tokens for run in runs for tokens in run.choices_left]
    longest = max(map(len, left))
    idle = runs[0].work == "flash"
    most = min(limits.rows, limits.idle_rows(longest)) if idle else limits.rows
    return limits.row_sizes.take(len(left), longest, most)


def _several(books: Sequence[Book]) -> bool:
    return any(book is not books[0] for book in books)


def _warm_row(book: Book, warm: Warm) -> RowTokens:
    return RowTokens(
        seen=book.residence.seen(book.key, book.seen_cells),
        blocks=(),
        used_cells=0,
        tokens=warm.asked.tokens,
        sampling=Sampling(),
    )
