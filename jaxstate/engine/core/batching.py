"""From a planned step to the rows of one: what is read, which questions begin, which go on.

Comes in: a plan of the scheduler, and the engine's state. Goes out: a `ScheduledStep`, noted in the
records as begun. Entries whose last token a step reads *land* when its cells are there; what a step
that failed has taken is read again from the session's log. Does not know: threads, when a step is
launched, how it was chosen, what its result does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from jaxstate.engine.core.ready_sessions import ReadySessions
from jaxstate.engine.core.results import ResultProcessor
from jaxstate.engine.core.scheduled_step import ScheduledRead, ScheduledRequest, ScheduledStep
from jaxstate.engine.core.state import EngineState
from jaxstate.engine.executor.protocol import Limits, Tokens, size_for
from jaxstate.engine.flash.registry import Registered
from jaxstate.engine.requests.request import Question, Request
from jaxstate.engine.scheduler.grouping import BatchCandidate, go_together
from jaxstate.engine.scheduler.views import Begin, GoOn, Ingest, Plan, Step
from jaxstate.engine.sessions.record import SavedCells, SessionRecord
from jaxstate.engine.sessions.token_log import VersionEnd
from jaxstate.errors import CapacityExceeded
from jaxstate.steps.packing import Row
from jaxstate.text import Tokenizer

_NO_TOKENS = np.zeros(0, np.int32)

# A session, and what it would have in a step: a question that is to begin, or None for a chunk.
_Part: TypeAlias = tuple[SessionRecord, Registered | Request | None]


class BatchBuilder:
    """Turns plans into steps.

    Args:
        state: the records.
        ready: what was seen of them.
        results: what becomes of questions that cannot begin.
        tokenizer: for the text of answers.
    """

    def __init__(
        self,
        state: EngineState,
        ready: ReadySessions,
        results: ResultProcessor,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._state = state
        self._ready = ready
        self._limits = state.limits
        self._results = results
        self._tokenizer = tokenizer

    def build(self, plan: Plan, now_s: float) -> ScheduledStep | None:
        """Notes that a planned step begins; None if it needs no device after all."""
        step = plan.step
        assert step is not None, "there is nothing to build"
        lent = step.work == "ask" and self._is_flash(step)
        if step.work == "ask":
            self._state.asks_began, self._state.flash_lent = not isinstance(step, GoOn), lent
        scheduled = ScheduledStep(kind="start", planned_work=step.work, lent=lent)
        if isinstance(step, GoOn):
            self._go_on(scheduled, [step, *plan.joined], now_s)
        else:
            self._begin_all(scheduled, step, plan.joined, now_s)
        return scheduled if scheduled.requests or scheduled.reads else None

    def _is_flash(self, step: Step) -> bool:
        """Whether a step that is as urgent as an ask serves registered questions."""
        if isinstance(step, Ingest):
            return False
        flash_requests = self._state.records[step.session].flash_requests
        return not step.requests or step.requests[0] in flash_requests

    # --- what begins, and what is read ---

    def _begin_all(
        self, scheduled: ScheduledStep, step: Step, joined: Sequence[Step], now_s: float
    ) -> None:
        if isinstance(step, Begin) and step.evict:
            self._evict(step)
        parts: list[_Part] = []
        planned = self._candidates(step, parts)
        if not planned:
            return
        alone = self._failed_before(step)
        joining = [
            candidate
            for other in (() if alone else joined)
            if not self._failed_before(other)
            for candidate in self._candidates(other, parts)
        ]
        chosen = go_together(planned, joining, self._limits, len(self._state.blocks))
        widest = _padded(chosen, self._limits)
        for candidate in chosen:
            self._take(scheduled, parts[candidate.number], min(candidate.tokens, widest), now_s)
        if not scheduled.requests:
            scheduled.kind = "extend"

    def _take(self, scheduled: ScheduledStep, part: _Part, tokens: int, now_s: float) -> None:
        """A row of the step is the session's; those that only wanted one come first next time."""
        record, one = part
        self._state.touch(record)
        record.residence.used_s = now_s
        record.residence.served += one is not None or not record.residence.missing
        if one is None:
            record.ingest_served = self._state.steps
            self._read(scheduled, record, tokens)
        elif isinstance(one, Request):
            record.asks_served = self._state.steps
            self._begin_ask(scheduled, record, one)
        else:
            record.flash.served = self._state.steps
            self._begin_flash(scheduled, record, one, now_s)

    def _failed_before(self, step: Step) -> bool:
        """Whether a step that reads for it would be the second in a row to fail: it is made alone,
        so that no other session fails with it."""
        record = self._state.records[step.session]
        return isinstance(step, Ingest) and record.residence.failures > 0

    def _evict(self, step: Begin) -> None:
        record = self._state.records[step.session]
        asks = (record.asks[key].request.asked for key in step.requests)
        self._results.evict(sum(asked.blocks(self._limits) for asked in asks))

    def _candidates(self, step: Step, parts: list[_Part]) -> list[BatchCandidate]:
        """The rows that one part would have, each noted in `parts`."""
        assert not isinstance(step, GoOn), "what goes on does not begin"
        record = self._state.records[step.session]
        if isinstance(step, Ingest):
            parts.append((record, None))
            return [BatchCandidate("chunk", record.key, len(parts) - 1, step.tokens)]
        if not step.requests:
            due = self._due(record)
            return [self._candidate("flash", record, one, one.asked, parts) for one in due]
        reaching = (self._reaching(record, key) for key in step.requests)
        return [
            self._candidate("ask", record, request, request.asked, parts)
            for request in reaching
            if request is not None
        ]

    def _candidate(
        self,
        kind: Literal["ask", "flash"],
        record: SessionRecord,
        one: Registered | Request,
        question: Question,
        parts: list[_Part],
    ) -> BatchCandidate:
        parts.append((record, one))
        tokens = min(len(question.tokens), self._limits.question_tokens)
        return BatchCandidate(
            kind, record.key, len(parts) - 1, tokens, question.blocks(self._limits)
        )

    def _reaching(self, record: SessionRecord, key: int) -> Request | None:
        """An ask that may begin; it fails if it would go too far, or what it is about is gone."""
        if self._results.fail_unheld(record, key):
            return None
        ask = record.asks[key]
        version_end = ask.as_of or record.version_end
        try:
            slid_cells = record.residence.slid_cells
            ask.request.asked.check_reach(version_end.cells + slid_cells, self._limits)
        except CapacityExceeded as error:
            self._results.fail_ask(record, key, error)
            return None
        return ask.request

    def _due(self, record: SessionRecord) -> list[Registered]:
        """Registered questions that are due, as far as rows and tail blocks go."""
        room = self._limits.rows - len(record.flash_requests)
        blocks_left = len(self._state.blocks)
        chosen: list[Registered] = []
        for one in self._ready.due(record.key):
            try:
                reached = record.seen_cells + record.residence.slid_cells
                one.asked.check_reach(reached, self._limits)
            except CapacityExceeded as error:
                record.flash.refused(one, record.version, str(error))
                self._state.touch(record)
                self._results.recorder.count("flash_refused")
                continue
            blocks_left -= one.asked.blocks(self._limits)
            if blocks_left < 0 or len(chosen) == room:
                break
            chosen.append(one)
        return chosen

    def _begin_ask(self, scheduled: ScheduledStep, record: SessionRecord, request: Request) -> None:
        ask = record.asks[request.key]
        if ask.as_of is not None and self._state.holds_up(record, ask.as_of.cells):
            record.past_served = self._state.steps
        record.asks_begun[request.key] = ask
        self._begin(scheduled, record, request, ask.as_of or record.version_end)

    def _begin_flash(
        self, scheduled: ScheduledStep, record: SessionRecord, one: Registered, now_s: float
    ) -> None:
        since_s = max(record.committed_s, one.registered_s)
        holds = one.drops >= self._state.config.scheduling.flash_drops
        request = Request(self._state.new_key(), "flash", one.asked, since_s, holds=holds)
        one.begin(now_s)
        record.flash_requests[request.key] = (request, one)
        self._begin(scheduled, record, request, record.version_end)

    def _begin(
        self,
        scheduled: ScheduledStep,
        record: SessionRecord,
        request: Request,
        version_end: VersionEnd,
    ) -> None:
        blocks = self._state.blocks.take(request.asked.blocks(self._limits))
        seen = record.residence.seen(version_end.cells)
        request.begin(
            version_end.version,
            seen,
            blocks,
            self._tokenizer,
            cached_tokens=record.shared_cells if record.passing else version_end.cells,
            visible=record.visible(version_end.version),
            window=None if record.window is None else record.window.window.mode,
        )
        request.served = self._state.steps
        row = request.read(self._limits)
        if row is not None:  # a question of one token is read with each of its choices
            scheduled.requests.append(_reading(record, request, row))
            self._state.charge(record, len(row.tokens), seen.cells)

    def _read(self, scheduled: ScheduledStep, record: SessionRecord, tokens: int) -> None:
        """The next tokens of a session: again from its log, or from its queue."""
        reader = record.reader
        residence, start = reader.residence, reader.residence.table.cells
        fresh = self._next(record, reader, tokens)
        end, row = start + len(fresh), None
        if len(fresh):
            scheduled.copies += self._state.tables.grow(residence.table, end)
            self._state.keep_prefix(reader, start, end)
            row = Row(seen=residence.seen(start), tokens=fresh, commits=True)
            self._state.charge(record, len(fresh), start)
        self._state.touch(reader)
        self._state.budget.update(reader)
        self._results.drop_unreadable(record)
        scheduled.reads.append(
            ScheduledRead(
                record=reader,
                residence=residence,
                row=row,
                start=start,
                end=end,
                attempt=residence.attempt,
            )
        )

    def _next(self, record: SessionRecord, reader: SessionRecord, tokens: int) -> Tokens:
        residence = reader.residence
        again = min(tokens, residence.missing)
        if again and residence.careful:
            # To the end of an entry, so that one which cannot be read takes none before it along.
            ends = residence.log.ends(residence.table.cells, residence.cells)
            again = min(again, next((end for _, end in ends if end > 0), again))
        if again:
            # Equal but for float error: the next snapshot has all that is there now.
            reader.saved = SavedCells(reader.saved.version)
            return residence.log.tokens(residence.table.cells, again)
        if not record.takes_next:
            assert reader.stranded, "the scheduler saw something to read"
            return _NO_TOKENS
        return self._taken(record, reader, tokens)

    def _taken(self, record: SessionRecord, reader: SessionRecord, tokens: int) -> Tokens:
        """From the queue; what it completes lands when its cells are there."""
        queue, log = record.queue, reader.residence.log
        rest_tokens = queue.rest_tokens if record.tasks_waiting else 0
        most = min(tokens, rest_tokens or tokens)
        taken = queue.take(most, room=record.room_tokens, entries=record.room_entries)
        assert taken is not None, "the scheduler saw something to read"
        log.append(taken.tokens, taken.ends)
        if taken.completes is not None:
            end_cells = len(log) - queue.partly_read_tokens
            reader.landing.append((end_cells, taken))
        return taken.tokens

    # --- what goes on ---

    def _go_on(self, scheduled: ScheduledStep, steps: Sequence[Step], now_s: float) -> None:
        going: list[tuple[SessionRecord, Request]] = []
        for step in steps:
            assert isinstance(step, GoOn), "only what goes on joins what goes on"
            record = self._state.records[step.session]
            going += [(record, request) for request in record.requests_of(step.requests)]
        stage = going[0][1].stage
        if stage == "scoring":
            scheduled.kind = "score"
            scheduled.requests = self._scored(going)
        elif stage == "reading":
            record, request = going[0]
            row = request.read(self._limits)
            assert row is not None, "a request that reads has something to read"
            scheduled.kind = "more"
            scheduled.requests = [_reading(record, request, row)]
        else:
            scheduled.kind = "decode"
            scheduled.requests = [
                ScheduledRequest(
                    record=record, request=request, rows=(request.decode(),), counts=True
                )
                for record, request in going
            ]
        self._serve(scheduled.requests, now_s)

    def _serve(self, requests: Sequence[ScheduledRequest], now_s: float) -> None:
        """These have a row in the step."""
        for one in requests:
            record, request = one.record, one.request
            self._state.touch(record)
            request.served = self._state.steps
            record.residence.used_s = now_s
            record.residence.served += 1
            if request.work == "flash":
                record.flash.served = self._state.steps
            self._state.charge(record, 1, request.seen_cells)

    def _scored(self, going: Sequence[tuple[SessionRecord, Request]]) -> list[ScheduledRequest]:
        """As many choices, of as many requests, as one step takes."""
        room = _scored_together([request for _, request in going], self._limits)
        several = len({record.key for record, _ in going}) > 1
        each = self._limits.session_rows if several else room
        of_look: dict[tuple[int, int], int] = {}
        found: list[ScheduledRequest] = []
        for record, request in going:
            used = of_look.get(request.seen.together, 0)
            rows = tuple(request.score(max(0, min(room, each - used))))
            if rows:
                of_look[request.seen.together] = used + len(rows)
                room -= len(rows)
                found.append(
                    ScheduledRequest(record=record, request=request, rows=rows, counts=True)
                )
        return found


def _reading(record: SessionRecord, request: Request, row: Row) -> ScheduledRequest:
    counts = request.stage == "decoding"
    return ScheduledRequest(record=record, request=request, rows=(row,), counts=counts)


def _padded(chosen: Sequence[BatchCandidate], limits: Limits) -> int:
    """Tokens of a row of the step: chunks that go with questions are cut to theirs, but not one
    that was planned, and with which they ride."""
    questions = [one.tokens for one in chosen if one.kind != "chunk"]
    if questions:
        planned = chosen[0].tokens if chosen[0].kind == "chunk" else 1
        longest = max(planned, *questions)
        return size_for(longest, limits.start_rows)[0]
    return size_for(chosen[0].tokens, limits.chunk_rows)[0]


def _scored_together(requests: Sequence[Request], limits: Limits) -> int:
    """How many of the choices that these requests have left one step should score."""
    left = [tokens for request in requests for tokens in request.choices_left]
    longest = max(map(len, left))
    idle = requests[0].work == "flash"
    most = min(limits.rows, limits.idle_rows(longest)) if idle else limits.rows
    return limits.row_sizes.take(len(left), longest, most)
