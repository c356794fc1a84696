"""Steps that read: chunks that become cells, and questions that begin, of several sessions at once.

Comes in: the part that was planned, and parts of other sessions that may share the step. Goes out:
a `Launch`. Entries whose last token a step reads *land* when its cells are there; what a step that
failed has taken is read again from the session's log. Does not know: threads, how steps are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.tables import BlockCopy
from jaxstate.engine.books import Book, SavedCells
from jaxstate.engine.entries import split
from jaxstate.engine.executor import (
    Choices,
    Chunk,
    Executor,
    Limits,
    Pending,
    RowTokens,
    Tokens,
)
from jaxstate.engine.flash import Registered
from jaxstate.engine.launches import (
    NOTHING,
    BookRun,
    Launch,
    chosen_by,
    joined_call,
    works_of,
)
from jaxstate.engine.ledger import Ledger
from jaxstate.engine.outcomes import Outcomes
from jaxstate.engine.residence import Border
from jaxstate.engine.runs import Asked, Run
from jaxstate.engine.together import Want, go_together
from jaxstate.engine.views import Begin, GoOn, Ingest, Step, Work
from jaxstate.errors import CapacityExceeded, NotFinite
from jaxstate.text import Tokenizer

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
