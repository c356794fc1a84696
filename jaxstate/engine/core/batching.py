"""From a planned step to a call on the device, and from its result back into the records.

Comes in: a plan of the scheduler, and the engine's state. Goes out: a `Launch`: what is done on the
device without the lock, and what its result, or its failure, does under it. Entries whose last
token a step reads *land* when its cells are there; what a step that failed has taken is read again
from the session's log. Does not know: threads, when a step is launched, how it was chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.tables import BlockCopy
from jaxstate.engine.core.results import ResultProcessor
from jaxstate.engine.core.state import EngineState
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
from jaxstate.engine.flash.registry import Registered
from jaxstate.engine.requests.request import Question, Request
from jaxstate.engine.scheduler.grouping import BatchCandidate, go_together
from jaxstate.engine.scheduler.views import Begin, GoOn, Ingest, Plan, Step
from jaxstate.engine.sessions.record import SavedCells, SessionRecord
from jaxstate.engine.sessions.token_log import VersionEnd, split
from jaxstate.engine.types.values import Work
from jaxstate.errors import CapacityExceeded, NotFinite
from jaxstate.text import Tokenizer

T = TypeVar("T")


# Launch outside the lock; then fetch, still outside; then record, under the lock, at a time.
Call: TypeAlias = Callable[[], Callable[[], Callable[[float], None]]]


RecordRequest: TypeAlias = tuple[SessionRecord, Request]


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
            records the result (under the lock, at the time given).
        fail: records that it raised.
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
    results: ResultProcessor,
    requests: Sequence[RecordRequest],
    call: Callable[[], Pending[Choices]],
    work: Work,
) -> Launch:
    """A step that chooses a token for each request, and what that does to them."""
    return of_runs(results, requests, joined_call(call, chosen_by(results, requests)), work)


def chosen_by(
    results: ResultProcessor, requests: Sequence[RecordRequest]
) -> Callable[[Choices, float], None]:
    """Notes what a step chose for requests; of those that still read it does not count."""
    complete = [request.stage == "decoding" for _, request in requests]

    def commit(chosen: Choices, now_s: float) -> None:
        finite = np.isfinite(chosen.logprobs)
        for index, (record, request) in enumerate(requests):
            if complete[index] and finite[index]:
                record.residence.is_sound(request.version)
        for index, (record, request) in enumerate(requests):
            if request.finished:
                continue  # launched before its end was known
            if complete[index] and not finite[index]:
                results.not_finite(record, request)
            elif complete[index]:
                request.take_token(
                    int(chosen.tokens[index]),
                    float(chosen.logprobs[index]),
                    float(chosen.gaps[index]),
                    bool(chosen.done[index]),
                )
            results.finish(record, [request], now_s)

    return commit


def of_runs(
    results: ResultProcessor, requests: Sequence[RecordRequest], call: Call, work: Work
) -> Launch:
    """A step that serves these requests and nothing else."""

    def fail(error: Exception) -> None:
        for record, request in requests:
            results.fail_runs(record, [request], error)

    return Launch(
        work=work, works=works_of(work, [request for _, request in requests]), call=call, fail=fail
    )


def works_of(work: Work, requests: Sequence[Request]) -> frozenset[Work]:
    """The classes that a step serves. Questions past their deadline run as asks and count as asks;
    those that ride along count."""
    lent = bool(requests) and requests[0].work != work and requests[0].work == "flash"
    return frozenset[Work]({work} if lent else {work, *(request.work for request in requests)})


def joined_call(launch: Callable[[], Pending[T]], commit: Callable[[T, float], None]) -> Call:
    """Launch now, fetch later, record under the lock."""

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
        record: the session.
        chunk: None if it has no tokens.
        start: cells that it goes on from.
        end: cells once it is there.
        attempt: of the session's residence; a later one reads the same again.
    """

    record: SessionRecord
    chunk: Chunk | None
    start: int
    end: int
    attempt: int


@dataclass(slots=True, eq=False)
class _Batch:
    """What goes into one step."""

    reads: list[_Read] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    requests: list[RecordRequest] = field(default_factory=list)
    rows: list[RowTokens] = field(default_factory=list)


class Reader:
    """Prepares steps that read.

    Args:
        state, executor, results, tokenizer: of the launcher.
    """

    def __init__(
        self,
        state: EngineState,
        executor: Executor,
        results: ResultProcessor,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._state = state
        self._limits = state.limits
        self._executor = executor
        self._results = results
        self._tokenizer = tokenizer

    def prepare(self, step: Step, joined: Sequence[Step], now_s: float) -> Launch | None:
        """Notes that the step begins; None if it needs no device after all."""
        if isinstance(step, Begin) and step.evict:
            self._evict(step)
        asked: list[tuple[SessionRecord, Registered | Request | None]] = []
        planned = self._wants(step, asked, now_s)
        if not planned:
            return None
        if self._failed_before(step):
            joined = ()
        parts = [part for part in joined if not self._failed_before(part)]
        joining = [want for part in parts for want in self._wants(part, asked, now_s)]
        chosen = go_together(planned, joining, self._limits, len(self._state.blocks))
        batch, widest = _Batch(), _padded(chosen, self._limits)
        for want in chosen:
            record, one = asked[want.number]
            self._served(record, one)
            record.residence.used_s = now_s
            record.residence.served += one is not None or not record.residence.missing
            if one is None:
                self._read(batch, record, min(want.tokens, widest))
            else:
                self._begin(batch, record, one, now_s)
        return self._launch(batch, step.work)

    def _served(self, record: SessionRecord, one: Registered | Request | None) -> None:
        """A row of the step is the session's; those that only wanted one come first next time."""
        if one is None:
            record.ingest_served = self._state.steps
        elif isinstance(one, Request):
            record.asks_served = self._state.steps
        else:
            record.flash.served = self._state.steps

    def _failed_before(self, step: Step) -> bool:
        """Whether a step that reads for it would be the second in a row to fail: it is made alone,
        so that no other session fails with it."""
        record = self._state.records[step.session]
        return isinstance(step, Ingest) and record.residence.failures > 0

    def _evict(self, step: Begin) -> None:
        record = self._state.records[step.session]
        asks = (record.asks[key].request.asked for key in step.requests)
        self._results.evict(sum(asked.blocks(self._limits) for asked in asks))

    def _wants(
        self,
        step: Step,
        asked: list[tuple[SessionRecord, Registered | Request | None]],
        now_s: float,
    ) -> list[BatchCandidate]:
        """The rows that one part would have, each noted in `asked`."""
        assert not isinstance(step, GoOn), "what goes on does not begin"
        record = self._state.records[step.session]
        if isinstance(step, Ingest):
            asked.append((record, None))
            return [BatchCandidate("chunk", record.key, len(asked) - 1, step.tokens)]
        if step.requests:
            requests = [
                request
                for key in step.requests
                if (request := self._reaching(record, key)) is not None
            ]
            return [
                self._want("ask", record, request, request.asked, asked) for request in requests
            ]
        due = self._due(record, now_s)
        return [self._want("flash", record, one, one.asked, asked) for one in due]

    def _want(
        self,
        kind: Work,
        record: SessionRecord,
        one: Registered | Request,
        question: Question,
        asked: list[tuple[SessionRecord, Registered | Request | None]],
    ) -> BatchCandidate:
        assert kind != "ingest"
        asked.append((record, one))
        tokens = min(len(question.tokens), self._limits.question_tokens)
        return BatchCandidate(
            kind, record.key, len(asked) - 1, tokens, question.blocks(self._limits)
        )

    def _reaching(self, record: SessionRecord, key: int) -> Request | None:
        """An ask that may begin; it fails if it would go too far, or what it is about is gone."""
        if self._results.fail_unheld(record, key):
            return None
        request, version_end = (
            record.asks[key].request,
            record.asks[key].as_of or record.version_end,
        )
        try:
            request.asked.check_reach(version_end.cells, self._limits)
        except CapacityExceeded as error:
            self._results.fail_ask(record, key, error)
            return None
        return request

    def _due(self, record: SessionRecord, now_s: float) -> list[Registered]:
        """Registered questions that are due, as far as rows and tail blocks go."""
        room = self._limits.rows - len(record.flash_requests)
        blocks_left = len(self._state.blocks)
        chosen: list[Registered] = []
        for one in record.flash.due(now_s):
            try:
                one.asked.check_reach(record.seen_cells, self._limits)
            except CapacityExceeded as error:
                record.flash.refused(one, record.version, str(error))
                self._results.recorder.count("flash_refused")
                continue
            blocks_left -= one.asked.blocks(self._limits)
            if blocks_left < 0 or len(chosen) == room:
                break
            chosen.append(one)
        return chosen

    def _begin(
        self, batch: _Batch, record: SessionRecord, one: Registered | Request, now_s: float
    ) -> None:
        request = one if isinstance(one, Request) else self._flash_run(record, one)
        blocks = self._state.blocks.take(request.asked.blocks(self._limits))
        version_end = self._version_end(record, one)
        seen = record.residence.seen(record.key, version_end.cells)
        request.begin(version_end.version, seen, blocks, self._tokenizer)
        request.served = self._state.steps
        if isinstance(one, Request):
            record.asks_begun[request.key] = record.asks[request.key]
        else:
            one.begin(now_s)
            record.flash_requests[request.key] = (request, one)
        row = request.read(self._limits)
        if row is not None:  # a question of one token is read with each of its choices
            batch.requests.append((record, request))
            batch.rows.append(row)
            self._state.charge(record, len(row.tokens), seen.cells)

    def _version_end(self, record: SessionRecord, one: Registered | Request) -> VersionEnd:
        """What a question looks at: the newest version, or the one that it is about."""
        as_of = record.asks[one.key].as_of if isinstance(one, Request) else None
        if as_of is not None and self._state.holds_up(record, as_of.cells):
            record.past_served = self._state.steps
        return as_of or record.version_end

    def _flash_run(self, record: SessionRecord, one: Registered) -> Request:
        since_s = max(record.committed_s, one.registered_s)
        holds = one.drops >= self._state.config.scheduling.flash_drops
        return Request(self._state.new_key(), "flash", one.asked, since_s, holds=holds)

    def _read(self, batch: _Batch, record: SessionRecord, tokens: int) -> None:
        """The next tokens of a session: again from its log, or from its queue."""
        residence, start = record.residence, record.residence.table.cells
        fresh = self._next(record, tokens)
        end, chunk = start + len(fresh), None
        if len(fresh):
            batch.copies += self._state.tables.grow(residence.table, end)
            self._state.keep_prefix(record, start, end)
            chunk = Chunk(start=residence.seen(record.key, start), tokens=fresh)
            self._state.charge(record, len(fresh), start)
        self._state.budget.update(record)
        self._results.drop_unreadable(record)
        batch.reads.append(_Read(record, chunk, start, end, residence.attempt))

    def _next(self, record: SessionRecord, tokens: int) -> Tokens:
        residence = record.residence
        again = min(tokens, residence.missing)
        if again and residence.careful:
            # To the end of an entry, so that one which cannot be read takes none before it along.
            ends = residence.log.ends(residence.table.cells, residence.cells)
            again = min(again, next((end for _, end in ends if end > 0), again))
        if again:
            # Equal but for float error: the next snapshot has all that is there now.
            record.saved = SavedCells(record.saved.version)
            return residence.log.tokens(residence.table.cells, again)
        if record.queue.empty:
            assert record.stranded, "the scheduler saw something to read"
            return _NO_TOKENS
        return self._taken(record, tokens)

    def _taken(self, record: SessionRecord, tokens: int) -> Tokens:
        """From the queue; what it completes lands when its cells are there."""
        rest_tokens = record.queue.rest_tokens if record.tasks_waiting else 0
        taken = record.queue.take(min(tokens, rest_tokens or tokens))
        assert taken is not None, "the scheduler saw something to read"
        record.residence.log.append(taken.tokens, taken.ends)
        if taken.completes is not None:
            end_cells = len(record.residence.log) - record.queue.partly_read_tokens
            record.landing.append((end_cells, taken))
        return taken.tokens

    def _launch(self, batch: _Batch, work: Work) -> Launch | None:
        if not batch.rows and not batch.reads:
            return None
        chunks = [read.chunk for read in batch.reads if read.chunk is not None]
        choose = chosen_by(self._results, batch.requests)

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
            for record, request in batch.requests:
                self._results.fail_runs(record, [request], error)
            for read in batch.reads:
                self._failed(read, error, copied=bool(batch.copies))

        requests = [request for _, request in batch.requests]
        # What is read for an ask counts as the ask's: ingest keeps the share of its own.
        reads: set[Work] = {"ingest"} if batch.reads and batch.rows else set()
        return Launch(
            work="ingest" if not batch.rows else work,
            read_tokens=0 if batch.rows else sum(len(chunk.tokens) for chunk in chunks),
            works=works_of(work, requests) | reads,
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
        if read.record.residence.has_gone_back(read.attempt, read.end):
            return  # it is being read again already
        read.record.stranded = bool(read.record.landing)
        if read.chunk is not None:
            # A copy that failed leaves a block that is nobody's; otherwise all before is there.
            start = None if copied else read.start
            self._results.reading_failed(read.record, start, error)

    def _land(self, read: _Read, now_s: float) -> None:
        """Cells are there; entries that end within them are committed."""
        record, residence = read.record, read.record.residence
        if residence.has_gone_back(read.attempt, read.end):
            return  # a step before it failed: what it read comes once more
        self._state.prefix_ready(record, read.start, read.end)
        new = max(0, read.end - max(read.start, residence.landed_cells))
        residence.there_cells = read.end
        residence.landed_cells = max(residence.landed_cells, read.end)
        self._results.recorder.count("tokens_ingested", new)
        self._results.recorder.count("tokens_rebuilt", read.end - read.start - new)
        self._results.room_made(record)
        residence.failures, residence.careful, record.stranded = 0, False, False
        while record.landing and record.landing[0][0] <= read.end:
            end_cells, taken = record.landing.popleft()
            self._results.landed(record, taken, end_cells, now_s)
        self._land_part(record, read.end, now_s)
        self._results.moved(record)

    def _land_part(self, record: SessionRecord, cells: int, now_s: float) -> None:
        """What was taken in one chunk may come in several, when it is read again."""
        if not record.landing or not record.landing[0][1].ends:
            return
        end_cells, taken = record.landing[0]
        first = end_cells - taken.ends[-1][1]
        if (parts := split(taken, cells - first)) is not None:
            done, rest = parts
            record.landing[0] = end_cells, rest
            self._results.landed(record, done, first + done.ends[-1][1], now_s)


def _padded(chosen: Sequence[BatchCandidate], limits: Limits) -> int:
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
        state: the records.
        executor: the device.
        results: what ends a run, and who hears of it.
        tokenizer: for the text of answers.
    """

    def __init__(
        self,
        state: EngineState,
        executor: Executor,
        results: ResultProcessor,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._state = state
        self._executor = executor
        self._results = results
        self._reader = Reader(state, executor, results, tokenizer)

    def prepare(self, plan: Plan, now_s: float) -> Launch | None:
        """Notes that a planned step begins; None if it needs no device after all."""
        step = plan.step
        assert step is not None, "there is nothing to prepare"
        if step.work == "ask":
            self._state.asks_began = not isinstance(step, GoOn)
            self._state.flash_lent = self._is_flash(step)
        launch = self._prepared(step, plan.joined, now_s)
        lent = launch is not None and step.work == "ask" and self._state.flash_lent
        return dataclasses.replace(launch, lent=True) if launch is not None and lent else launch

    def _prepared(self, step: Step, joined: Sequence[Step], now_s: float) -> Launch | None:
        if isinstance(step, GoOn):
            return self._go_on([step, *joined], now_s)
        return self._reader.prepare(step, joined, now_s)

    def _is_flash(self, step: Step) -> bool:
        """Whether a step that is as urgent as an ask serves registered questions."""
        if isinstance(step, Ingest):
            return False
        return (
            not step.requests
            or step.requests[0] in self._state.records[step.session].flash_requests
        )

    def _go_on(self, steps: Sequence[Step], now_s: float) -> Launch | None:
        requests: list[RecordRequest] = []
        for step in steps:
            assert isinstance(step, GoOn), "only what goes on joins what goes on"
            record = self._state.records[step.session]
            requests += [
                (record, request) for request in self._results.runs_of(record, step.requests)
            ]
        first, work = requests[0][1], steps[0].work
        if first.stage == "scoring":
            return self._score(requests, work, now_s)
        if first.stage == "reading":
            self._serve(requests[:1], now_s)
            row = first.read(self._state.limits)
            assert row is not None, "a run that reads has something to read"
            return choosing(self._results, requests[:1], lambda: self._executor.more(row), work)
        self._serve(requests, now_s)
        rows = [request.decode() for _, request in requests]
        return choosing(self._results, requests, lambda: self._executor.decode(rows), work)

    def _serve(self, requests: Sequence[RecordRequest], now_s: float) -> None:
        """These have a row in the step."""
        for record, request in requests:
            request.served = self._state.steps
            record.residence.used_s = now_s
            record.residence.served += 1
            if request.work == "flash":
                record.flash.served = self._state.steps
            self._state.charge(record, 1, request.seen_cells)

    def _score(self, requests: Sequence[RecordRequest], work: Work, now_s: float) -> Launch:
        """Scores as many choices, of as many requests, as one step takes."""
        candidates: list[Candidate] = []
        owners: list[tuple[Request, int]] = []
        room = _scored_together([request for _, request in requests], self._state.limits)
        each = self._state.limits.session_rows if _several([b for b, _ in requests]) else room
        of_look: dict[tuple[int, int], int] = {}
        for _, request in requests:
            used = of_look.get(request.seen.together, 0)
            more = request.score(max(0, min(room - len(candidates), each - used)))
            of_look[request.seen.together] = used + len(more)
            candidates += more
            owners.append((request, len(more)))
        self._serve([one for one, (_, n) in zip(requests, owners, strict=True) if n], now_s)

        def commit(totals: NDArray[np.float32], now_s: float) -> None:
            start = 0
            for record, request in requests:
                if np.isfinite(totals).all():
                    record.residence.is_sound(request.version)
            for (request, count), (record, _) in zip(owners, requests, strict=True):
                mine = [float(total) for total in totals[start : start + count]]
                start += count
                if not np.isfinite(mine).all():
                    self._results.not_finite(record, request)
                elif not request.finished:
                    request.take_totals(mine)
            for record, request in requests:
                self._results.finish(record, [request], now_s)

        call = joined_call(lambda: self._executor.score(candidates), commit)
        return of_runs(self._results, requests, call, work)


def _scored_together(requests: Sequence[Request], limits: Limits) -> int:
    """How many of the choices that these requests have left one step should score."""
    left = [tokens for request in requests for tokens in request.choices_left]
    longest = max(map(len, left))
    idle = requests[0].work == "flash"
    most = min(limits.rows, limits.idle_rows(longest)) if idle else limits.rows
    return limits.row_sizes.take(len(left), longest, most)


def _several(records: Sequence[SessionRecord]) -> bool:
    return any(record is not records[0] for record in records)
