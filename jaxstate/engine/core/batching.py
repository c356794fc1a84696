"""Steps that are ready to be launched, built from what the scheduler chose.

Comes in: a plan, under the engine's lock. Goes out: a `Launch`: what is done on the device without
the lock, and what its result does under it. Does not know: threads, when a step is launched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.tables import BlockCopy
from jaxstate.engine.core.ledger import Ledger
from jaxstate.engine.core.results import Outcomes
from jaxstate.engine.executor.protocol import (
    Candidate,
    Choices,
    Chunk,
    Executor,
    Limits,
    Pending,
    RowTokens,
    Tokens,
)
from jaxstate.engine.flash.registry import Registered, Warm
from jaxstate.engine.requests.request import Asked, Run
from jaxstate.engine.scheduler.grouping import Want, go_together
from jaxstate.engine.scheduler.views import Begin, GoOn, Ingest, Plan, Step
from jaxstate.engine.sessions.record import Book, SavedCells
from jaxstate.engine.sessions.token_log import Border, split
from jaxstate.engine.types.values import Work
from jaxstate.errors import CapacityExceeded, NotFinite
from jaxstate.records import Sampling
from jaxstate.text import Tokenizer

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


_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(slots=True, eq=False)
class _Read:
    """What one session's chunk does to it.

    Attributes:
        book: the session.
        chunk: None if it has no tokens.
        start: cells that it goes on from.
        end: cells once it is there.
        attempt: of the session's residence; a later one reads the same again.
    """

    book: Book
    chunk: Chunk | None
    start: int
    end: int
    attempt: int


@dataclass(slots=True, eq=False)
class _Batch:
    """What goes into one step."""

    reads: list[_Read] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    runs: list[BookRun] = field(default_factory=list)
    rows: list[RowTokens] = field(default_factory=list)


class Reader:
    """Prepares steps that read.

    Args:
        ledger, executor, outcomes, tokenizer: of the launcher.
    """

    def __init__(
        self, ledger: Ledger, executor: Executor, outcomes: Outcomes, tokenizer: Tokenizer | None
    ) -> None:
        self._ledger = ledger
        self._limits = ledger.limits
        self._executor = executor
        self._outcomes = outcomes
        self._tokenizer = tokenizer

    def prepare(self, step: Step, joined: Sequence[Step], now_s: float) -> Launch | None:
        """Books that the step begins; None if it needs no device after all."""
        if isinstance(step, Begin) and step.evict:
            self._evict(step)
        asked: list[tuple[Book, Registered | Run | None]] = []
        planned = self._wants(step, asked, now_s)
        if not planned:
            return None
        if self._failed_before(step):
            joined = ()
        parts = [part for part in joined if not self._failed_before(part)]
        joining = [want for part in parts for want in self._wants(part, asked, now_s)]
        chosen = go_together(planned, joining, self._limits, len(self._ledger.blocks))
        batch, widest = _Batch(), _padded(chosen, self._limits)
        for want in chosen:
            book, one = asked[want.number]
            self._served(book, one)
            book.residence.used_s = now_s
            book.residence.served += one is not None or not book.residence.missing
            if one is None:
                self._read(batch, book, min(want.tokens, widest))
            else:
                self._begin(batch, book, one, now_s)
        return self._launch(batch, step.work)

    def _served(self, book: Book, one: Registered | Run | None) -> None:
        """A row of the step is the session's; those that only wanted one come first next time."""
        if one is None:
            book.ingest_served = self._ledger.steps
        elif isinstance(one, Run):
            book.asks_served = self._ledger.steps
        else:
            book.flash.served = self._ledger.steps

    def _failed_before(self, step: Step) -> bool:
        """Whether a step that reads for it would be the second in a row to fail: it is made alone,
        so that no other session fails with it."""
        book = self._ledger.books[step.session]
        return isinstance(step, Ingest) and book.residence.failures > 0

    def _evict(self, step: Begin) -> None:
        book = self._ledger.books[step.session]
        asks = (book.asks[key].run.asked for key in step.runs)
        self._outcomes.evict(sum(asked.blocks(self._limits) for asked in asks))

    def _wants(
        self, step: Step, asked: list[tuple[Book, Registered | Run | None]], now_s: float
    ) -> list[Want]:
        """The rows that one part would have, each noted in `asked`."""
        assert not isinstance(step, GoOn), "what goes on does not begin"
        book = self._ledger.books[step.session]
        if isinstance(step, Ingest):
            asked.append((book, None))
            return [Want("chunk", book.key, len(asked) - 1, step.tokens)]
        if step.runs:
            runs = [run for key in step.runs if (run := self._reaching(book, key)) is not None]
            return [self._want("ask", book, run, run.asked, asked) for run in runs]
        due = self._due(book, now_s)
        return [self._want("flash", book, one, one.asked, asked) for one in due]

    def _want(
        self,
        kind: Work,
        book: Book,
        one: Registered | Run,
        question: Asked,
        asked: list[tuple[Book, Registered | Run | None]],
    ) -> Want:
        assert kind != "ingest"
        asked.append((book, one))
        tokens = min(len(question.tokens), self._limits.question_tokens)
        return Want(kind, book.key, len(asked) - 1, tokens, question.blocks(self._limits))

    def _reaching(self, book: Book, key: int) -> Run | None:
        """An ask that may begin; it fails if it would go too far, or what it is about is gone."""
        if self._outcomes.fail_unheld(book, key):
            return None
        run, border = book.asks[key].run, book.asks[key].as_of or book.border
        try:
            run.asked.check_reach(border.cells, self._limits)
        except CapacityExceeded as error:
            self._outcomes.fail_ask(book, key, error)
            return None
        return run

    def _due(self, book: Book, now_s: float) -> list[Registered]:
        """Registered questions that are due, as far as rows and tail blocks go."""
        room = self._limits.rows - len(book.flash_runs)
        blocks_left = len(self._ledger.blocks)
        chosen: list[Registered] = []
        for one in book.flash.due(now_s):
            try:
                one.asked.check_reach(book.seen_cells, self._limits)
            except CapacityExceeded as error:
                book.flash.refused(one, book.version, str(error))
                self._outcomes.recorder.count("flash_refused")
                continue
            blocks_left -= one.asked.blocks(self._limits)
            if blocks_left < 0 or len(chosen) == room:
                break
            chosen.append(one)
        return chosen

    def _begin(self, batch: _Batch, book: Book, one: Registered | Run, now_s: float) -> None:
        run = one if isinstance(one, Run) else self._flash_run(book, one)
        blocks = self._ledger.blocks.take(run.asked.blocks(self._limits))
        border = self._border(book, one)
        seen = book.residence.seen(book.key, border.cells)
        run.begin(border.version, seen, blocks, self._tokenizer)
        run.served = self._ledger.steps
        if isinstance(one, Run):
            book.asks_begun[run.key] = book.asks[run.key]
        else:
            one.begin(now_s)
            book.flash_runs[run.key] = (run, one)
        row = run.read(self._limits)
        if row is not None:  # a question of one token is read with each of its choices
            batch.runs.append((book, run))
            batch.rows.append(row)
            self._ledger.charge(book, len(row.tokens), seen.cells)

    def _border(self, book: Book, one: Registered | Run) -> Border:
        """What a question looks at: the newest version, or the one that it is about."""
        as_of = book.asks[one.key].as_of if isinstance(one, Run) else None
        if as_of is not None and self._ledger.holds_up(book, as_of.cells):
            book.past_served = self._ledger.steps
        return as_of or book.border

    def _flash_run(self, book: Book, one: Registered) -> Run:
        since_s = max(book.committed_s, one.registered_s)
        holds = one.drops >= self._ledger.config.scheduling.flash_drops
        return Run(self._ledger.new_key(), "flash", one.asked, since_s, holds=holds)

    def _read(self, batch: _Batch, book: Book, tokens: int) -> None:
        """The next tokens of a session: again from its log, or from its queue."""
        residence, start = book.residence, book.residence.table.cells
        fresh = self._next(book, tokens)
        end, chunk = start + len(fresh), None
        if len(fresh):
            batch.copies += self._ledger.tables.grow(residence.table, end)
            self._ledger.keep_prefix(book, start, end)
            chunk = Chunk(start=residence.seen(book.key, start), tokens=fresh)
            self._ledger.charge(book, len(fresh), start)
        self._ledger.room.update(book)
        self._outcomes.drop_unreadable(book)
        batch.reads.append(_Read(book, chunk, start, end, residence.attempt))

    def _next(self, book: Book, tokens: int) -> Tokens:
        residence = book.residence
        again = min(tokens, residence.missing)
        if again and residence.careful:
            # To the end of an entry, so that one which cannot be read takes none before it along.
            ends = residence.log.ends(residence.table.cells, residence.cells)
            again = min(again, next((end for _, end in ends if end > 0), again))
        if again:
            # Equal but for float error: the next snapshot has all that is there now.
            book.saved = SavedCells(book.saved.version)
            return residence.log.tokens(residence.table.cells, again)
        if book.queue.empty:
            assert book.stranded, "the scheduler saw something to read"
            return _NO_TOKENS
        return self._taken(book, tokens)

    def _taken(self, book: Book, tokens: int) -> Tokens:
        """From the queue; what it completes lands when its cells are there."""
        rest_tokens = book.queue.rest_tokens if book.border_jobs else 0
        taken = book.queue.take(min(tokens, rest_tokens or tokens))
        assert taken is not None, "the scheduler saw something to read"
        book.residence.log.append(taken.tokens, taken.ends)
        if taken.completes is not None:
            border_cells = len(book.residence.log) - book.queue.partly_read_tokens
            book.landing.append((border_cells, taken))
        return taken.tokens

    def _launch(self, batch: _Batch, work: Work) -> Launch | None:
        if not batch.rows and not batch.reads:
            return None
        chunks = [read.chunk for read in batch.reads if read.chunk is not None]
        choose = chosen_by(self._outcomes, batch.runs)

        def commit(result: Choices | NDArray[np.bool_] | None, now_s: float) -> None:
            flags = result.chunks_finite if isinstance(result, Choices) else result
            finite = iter(() if flags is None else flags.tolist())
            for read in batch.reads:
                if read.chunk is not None and not next(finite):
                    self._failed(read, NotFinite(), copied=False)
                else:
                    self._land(read, now_s)
            if isinstance(result, Choices):
                choose(result, now_s)

        def fail(error: Exception) -> None:
            for book, run in batch.runs:
                self._outcomes.fail_runs(book, [run], error)
            for read in batch.reads:
                self._failed(read, error, copied=bool(batch.copies))

        runs = [run for _, run in batch.runs]
        # What is read for an ask counts as the ask's: ingest keeps the share of its own.
        reads: set[Work] = {"ingest"} if batch.reads and batch.rows else set()
        return Launch(
            work="ingest" if not batch.rows else work,
            read_tokens=0 if batch.rows else sum(len(chunk.tokens) for chunk in chunks),
            works=works_of(work, runs) | reads,
            call=joined_call(lambda: self._call(batch, chunks), commit),
            fail=fail,
        )

    def _call(
        self, batch: _Batch, chunks: list[Chunk]
    ) -> Pending[Choices] | Pending[NDArray[np.bool_]] | Pending[None]:
        if batch.copies:
            self._executor.copy(batch.copies)
        if batch.rows:
            return self._executor.start(batch.rows, chunks)
        # Without tokens there is nothing to launch, but steps before it are still under way.
        return self._executor.extend(chunks) if chunks else NOTHING

    def _failed(self, read: _Read, error: Exception, *, copied: bool) -> None:
        """Its tokens are read again; entries without tokens had nothing to do with the device."""
        if read.book.residence.has_gone_back(read.attempt, read.end):
            return  # it is being read again already
        read.book.stranded = bool(read.book.landing)
        if read.chunk is not None:
            # A copy that failed leaves a block that is nobody's; otherwise all before is there.
            start = None if copied else read.start
            self._outcomes.reading_failed(read.book, start, error)

    def _land(self, read: _Read, now_s: float) -> None:
        """Cells are there; entries that end within them are committed."""
        book, residence = read.book, read.book.residence
        if residence.has_gone_back(read.attempt, read.end):
            return  # a step before it failed: what it read comes once more
        self._ledger.prefix_ready(book, read.start, read.end)
        new = max(0, read.end - max(read.start, residence.landed_cells))
        residence.there_cells = read.end
        residence.landed_cells = max(residence.landed_cells, read.end)
        self._outcomes.recorder.count("tokens_ingested", new)
        self._outcomes.recorder.count("tokens_rebuilt", read.end - read.start - new)
        self._outcomes.room_made(book)
        residence.failures, residence.careful, book.stranded = 0, False, False
        while book.landing and book.landing[0][0] <= read.end:
            border_cells, taken = book.landing.popleft()
            self._outcomes.landed(book, taken, border_cells, now_s)
        self._land_part(book, read.end, now_s)
        self._outcomes.moved(book)

    def _land_part(self, book: Book, cells: int, now_s: float) -> None:
        """What was taken in one chunk may come in several, when it is read again."""
        if not book.landing or not book.landing[0][1].ends:
            return
        border_cells, taken = book.landing[0]
        first = border_cells - taken.ends[-1][1]
        if (parts := split(taken, cells - first)) is not None:
            done, rest = parts
            book.landing[0] = border_cells, rest
            self._outcomes.landed(book, done, first + done.ends[-1][1], now_s)


def _padded(chosen: Sequence[Want], limits: Limits) -> int:
    """Tokens of a row of the step: chunks that go with questions are cut to theirs, but not one
    that was planned, and with which they ride."""
    questions = [want.tokens for want in chosen if want.kind != "chunk"]
    if questions:
        planned = chosen[0].tokens if chosen[0].kind == "chunk" else 1
        longest = max(planned, *questions)
        return next(size for size, _ in limits.start_rows if longest <= size)
    return next(size for size, _ in limits.chunk_rows if chosen[0].tokens <= size)


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
