"""What becomes of questions and sessions, and who hears of it.

Comes in: what a step put out, or that it failed; questions that are cancelled, sessions that close.
Goes out: records in order, and an outbox of deliveries (futures, events, callbacks) that the loop
makes once it has let go of the lock, so that no subscriber's code runs inside it. Does not know:
devices, threads, what is planned.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TypeVar

from jaxstate.engine.core.metrics import MetricsRecorder
from jaxstate.engine.core.scheduled_step import ScheduledRead, ScheduledRequest, ScheduledStep
from jaxstate.engine.core.state import EngineState, holds_version, unavailable
from jaxstate.engine.core.window_moves import (
    drop_rebuild,
    is_looked_at,
    move_in_place,
    move_window,
)
from jaxstate.engine.executor.protocol import StepOutput
from jaxstate.engine.flash.registry import Registered
from jaxstate.engine.requests.request import Request
from jaxstate.engine.sessions.record import PendingAsk, SessionRecord
from jaxstate.engine.sessions.residence import ResidencyState
from jaxstate.engine.sessions.token_log import Taken, TokenLog, spans_of, split
from jaxstate.engine.types.events import Subscription
from jaxstate.engine.types.values import Answer, DataUpdated, Event, FlashReady, WindowMoved
from jaxstate.errors import ClosedError, JaxstateError, NotFinite, StepFailed

_log = logging.getLogger("jaxstate")


T = TypeVar("T")


Delivery = Callable[[], None]


class ResultProcessor:
    """Ends what has ended.

    Args:
        state: the records.
        recorder: counts it.
        on_thread: runs a user's callback somewhere else than in the loop.
        forget: cells of a session are worth nothing any more, wherever they are kept.
        note_move: the journal is to know that a session's window has moved.
    """

    def __init__(
        self,
        state: EngineState,
        recorder: MetricsRecorder,
        on_thread: Callable[[Delivery], None],
        forget: Callable[[SessionRecord], None],
        note_move: Callable[[SessionRecord], None],
    ) -> None:
        self.recorder = recorder
        self._note_move = note_move
        self._state = state
        self._on_thread = on_thread
        self._forget = forget
        self._outbox: list[Delivery] = []
        self._gone: list[tuple[SessionRecord, Subscription]] = []

    def take_outbox(self) -> list[Delivery]:
        """Deliveries to make, in order, without the lock."""
        self._forget_subscribers()
        outbox, self._outbox = self._outbox, []
        return outbox

    def apply(self, step: ScheduledStep, output: StepOutput | None, now_s: float) -> None:
        """A step is done.

        Args:
            step: it.
            output: of its rows; None if it had none.
            now_s: the time.
        """
        self._touch(step)
        finite = [] if output is None else output.finite.tolist()
        chunks = iter(finite[sum(len(one.rows) for one in step.requests) :])
        for read in step.reads:
            if read.row is not None and not next(chunks):
                self._read_failed(read, NotFinite(), copied=False)
            else:
                self._land(read, now_s)
        if output is not None:
            self._apply_requests(step, output, now_s)

    def _apply_requests(self, step: ScheduledStep, output: StepOutput, now_s: float) -> None:
        first, sound = 0, list[tuple[ScheduledRequest, int, bool]]()
        for one in step.requests:
            finite = bool(output.finite[first : first + len(one.rows)].all())
            sound.append((one, first, finite))
            first += len(one.rows)
            if one.counts and finite:
                one.record.residence.is_sound(one.request.version)
        for one, first, finite in sound:
            record, request = one.record, one.request
            if request.finished or not one.counts:
                continue  # launched before its end was known, or still reading
            if not finite:
                self._not_finite(record, request)
                continue
            request.take(output, first, len(one.rows))
            if request.finished:
                self._finish(record, request, now_s)
            else:
                self._tell_text(record, request)

    def _tell_text(self, record: SessionRecord, request: Request) -> None:
        """Lets whoever reads an answer along hear what it begins with."""
        ask = record.asks.get(request.key)
        if ask is not None and ask.on_text is not None and (text := request.text):
            self._outbox.append(functools.partial(ask.on_text, text))

    def fail(self, step: ScheduledStep, error: Exception) -> None:
        """The device failed in a step."""
        self._touch(step)
        for one in step.requests:
            self._fail_request(one.record, one.request, error)
        for read in step.reads:
            self._read_failed(read, error, copied=bool(step.copies))

    def _touch(self, step: ScheduledStep) -> None:
        for one in step.requests:
            self._state.touch(one.record)
        for read in step.reads:
            self._state.touch(read.owner or read.record)

    def _read_failed(self, read: ScheduledRead, error: Exception, *, copied: bool) -> None:
        """Its tokens are read again; entries without tokens had nothing to do with the device."""
        record = read.owner
        if record is None or read.residence.has_gone_back(read.attempt, read.end):
            return  # it is being read again already
        record.stranded = bool(record.landing)
        if read.row is not None:
            # A copy that failed leaves a block that is nobody's; otherwise all before is there.
            self.reading_failed(record, None if copied else read.start, error)

    def _land(self, read: ScheduledRead, now_s: float) -> None:
        """Cells are there; entries that end within them are committed."""
        record, residence = read.owner, read.residence
        if record is None or residence.has_gone_back(read.attempt, read.end):
            return  # a step before it failed: what it read comes once more
        self._state.prefix_ready(record, read.start, read.end)
        new = max(0, read.end - max(read.start, residence.landed_cells))
        residence.there_cells = read.end
        residence.landed_cells = max(residence.landed_cells, read.end)
        self.recorder.count("tokens_ingested", new)
        again = "tokens_rebuilt" if record.rebuilds is None else "window_tokens_read"
        self.recorder.count(again, read.end - read.start - new)
        residence.failures, residence.careful, record.stranded = 0, False, False
        if record.rebuilds is not None and _ends_entry(record, read.end):
            record = self._move_window(record, now_s)
        self.room_made(record)
        while record.landing and record.landing[0][0] <= read.end:
            end_cells, taken = record.landing.popleft()
            self._commit(record, taken, end_cells, now_s)
        self._land_part(record, read.end, now_s)
        self.moved(record)

    def _land_part(self, record: SessionRecord, cells: int, now_s: float) -> None:
        """What was taken in one chunk may come in several, when it is read again."""
        if not record.landing or not record.landing[0][1].ends:
            return
        end_cells, taken = record.landing[0]
        first = end_cells - taken.ends[-1][1]
        if (parts := split(taken, cells - first)) is not None:
            done, rest = parts
            record.landing[0] = end_cells, rest
            self._commit(record, done, first + done.ends[-1][1], now_s)

    # --- windows that move ---

    def _move_window(self, shadow: SessionRecord, now_s: float) -> SessionRecord:
        """A rebuild has read on in its session's place, and takes it."""
        record = shadow.rebuilds
        assert record is not None and record.window is not None
        before, replaced = record.residence.log, record.window.replaced
        move_window(self._state, shadow, now_s, self.recorder.read_s(1))
        self.recorder.count("windows_moved")
        self._has_moved(record, before, replaced)
        return record

    def move_in_place(self, record: SessionRecord, now_s: float) -> None:
        """A session is computed again without what has left its window; nothing looks at it."""
        assert record.window is not None
        self._drop_all_flash(record)
        before, replaced = record.residence.log, record.window.replaced
        move_in_place(self._state, record, now_s, self.recorder.read_s(1))
        self.recorder.count("windows_moved_in_place")
        self._has_moved(record, before, replaced)

    def _has_moved(
        self, record: SessionRecord, before: TokenLog, replaced: Collection[int]
    ) -> None:
        """What was known of its cells is of others; whoever listens hears what has left."""
        self._forget(record)
        self._note_move(record)
        self.drop_unreadable(record)
        log = record.residence.log
        there = set(log.numbers)
        left = [number for number in before.numbers if number not in there]
        moved = WindowMoved(
            version=log.base_version,
            visible=log.visible(log.base_version),
            left=spans_of([number for number in left if number not in replaced]),
            replaced=spans_of([number for number in left if number in replaced]),
        )
        self.tell(record, moved)

    def settle_rebuild(self, record: SessionRecord) -> None:
        """A session's cells go, or its window does: so does what is read beside them. What that has
        taken in its place is the session's."""
        rebuild = record.rebuild
        if rebuild is None:
            return
        if rebuild.takes and len(rebuild.record.residence.log) > rebuild.record.seen_cells:
            self._move_window(rebuild.record, record.committed_s)
        if not (rebuild.moved and is_looked_at(record)):
            drop_rebuild(self._state, record)

    def _rebuild_failed(self, shadow: SessionRecord) -> SessionRecord | None:
        """The device failed while it read a session's context anew: if it had taken entries in the
        session's place, they are read once more as the session's own; else it begins again."""
        record = shadow.rebuilds
        assert record is not None and record.rebuild is not None
        if len(shadow.residence.log) > shadow.seen_cells:
            return self._move_window(shadow, record.committed_s)
        if shadow.residence.failures > 0 and record.window is not None:
            record.window.failed_version = record.version
            drop_rebuild(self._state, record)
            return None
        return shadow

    def _finish(self, record: SessionRecord, request: Request, now_s: float) -> None:
        """Delivers a complete answer, if it is still wanted."""
        if request.key in record.asks:
            self._answer(record.asks[request.key], record, now_s)
        elif request.key in record.flash_requests:
            self._answer_flash(record, request, now_s)

    def _answer(self, ask: PendingAsk, record: SessionRecord, now_s: float) -> None:
        self._let_go(record, ask.request)
        answer = ask.request.answer(now_s - ask.request.arrived_s)
        self.recorder.ask_answered("computed", answer.latency_s)
        self.resolve(ask.future, answer)

    def _answer_flash(self, record: SessionRecord, request: Request, now_s: float) -> None:
        registered = record.flash_requests[request.key][1]
        self._let_go(record, request)
        if record.flash.get(registered.id) is not registered:
            return  # removed meanwhile
        answer = request.answer(now_s - request.arrived_s)
        missed_s = record.flash.missed_s(registered, now_s)
        fired = record.flash.answered(registered, answer, request.taken_tokens)
        registered.answered_s = now_s
        behind = record.version - answer.version
        self.recorder.flash_answered(
            behind_entries=behind,
            behind_s=now_s - registered.stale_since_s if behind else 0.0,
            refresh_s=answer.latency_s,
            missed_s=missed_s,
        )
        event = FlashReady(
            id=registered.id, question=registered.asked.question, answer=answer, fired=fired
        )
        self.tell(record, event)
        if fired and registered.on_fire is not None:
            self._call_back(registered, answer)

    def _call_back(self, registered: Registered, answer: Answer) -> None:
        on_fire = registered.on_fire
        if on_fire is not None:
            self._outbox.append(lambda: self._on_thread(lambda: on_fire(answer)))

    def fail_ask(self, record: SessionRecord, key: int, error: JaxstateError) -> None:
        """An ask cannot be answered."""
        ask = record.asks[key]
        self._let_go(record, ask.request)
        self.recorder.count("asks_failed")
        self.reject(ask.future, error)

    def cancelled(self, record: SessionRecord, key: int, *, timed_out: bool) -> None:
        """Nobody waits for that ask any more; its step under way, if any, ends unheard."""
        if key in record.asks:
            self._let_go(record, record.asks[key].request)
            self.recorder.count("asks_timed_out" if timed_out else "asks_cancelled")

    def _fail_request(self, record: SessionRecord, request: Request, cause: Exception) -> None:
        """The device failed in a step that served it; its session's cells are untouched."""
        if request.key in record.asks:
            self.fail_ask(record, request.key, _step_failed(cause))
        elif request.key in record.flash_requests:
            registered = record.flash_requests[request.key][1]
            self._let_go(record, request)
            record.flash.refused(registered, request.version, str(_step_failed(cause)))
            self.recorder.count("flash_refused")

    def _fail_asks_begun(self, record: SessionRecord, cause: Exception) -> None:
        for ask in tuple(record.asks_begun.values()):
            self._fail_request(record, ask.request, cause)

    def _not_finite(self, record: SessionRecord, request: Request) -> None:
        """The numbers of a question's step are NaN or infinite: it has no answer. Unless another
        question had one at the same version, the session's cells may be why; then they are computed
        again, once for each version."""
        self._fail_request(record, request, NotFinite())
        residence = record.residence
        sound = max(residence.sound_version, residence.doubted_version)
        if request.version == record.version > sound and residence.on_device:
            residence.doubted_version = record.version
            self._state.prefixes.clear()
            self._compute_again(record, NotFinite())

    def rows_lost(self, cause: Exception) -> None:
        """The device lost all questions under way: asks fail, registered questions begin again."""
        for record in tuple(self._state.records.values()):
            self._fail_asks_begun(record, cause)
            self._drop_all_flash(record)

    def _commit(self, record: SessionRecord, taken: Taken, end_cells: int, now_s: float) -> None:
        """Entries are in a session's cells, which end there with the last of them."""
        if taken.completes is None or record.closed:
            return
        self.recorder.entries_committed(taken.pushed_s, now_s)
        record.commit(taken.completes, end_cells, now_s)
        self.reached(record)
        self.tell(record, DataUpdated(version=record.version, pending=record.pending))

    def reading_failed(
        self, record: SessionRecord, start_cells: int | None, cause: Exception
    ) -> None:
        """The device failed while it read for a session: it reads that again, once.

        Args:
            record: the session.
            start_cells: that are still there; None if even they may not be.
            cause: what the device said.
        """
        self._state.prefixes.clear()  # what was to be kept of it is not there
        if record.rebuilds is not None:
            owner = self._rebuild_failed(record)
            if owner is None:
                return
            record = owner
        residence = record.residence
        if record.closed or not residence.on_device:
            return
        residence.failures += 1
        residence.careful = isinstance(cause, NotFinite)
        residence.attempt += 1
        residence.attempt_cells = start_cells or 0
        last_try = residence.failures > 1
        if last_try and isinstance(cause, NotFinite) and record.version >= 0:
            self._stop_reading(record, cause)
        elif last_try:
            self.break_session(record, cause)
        elif start_cells is None:
            self._compute_again(record, cause)
        else:
            residence.table.cells = min(residence.table.cells, start_cells)
            self._state.budget.update(record)

    def _stop_reading(self, record: SessionRecord, cause: NotFinite) -> None:
        """What comes next cannot be read, tried twice: the session stays at its version."""
        residence = record.residence
        taken = len(residence.log.ends(record.seen_cells, residence.cells))
        waiting = record.queue.pending + taken
        error = record.stopped = NotFinite(
            f"session {record.id!r} stays at version {record.version}: entry "
            f"{record.version + 1} cannot be read ({waiting} entries wait). {cause}"
        )
        _log.error("%s", error)
        self.settle_rebuild(record)
        whole = self._state.readable(record.seen_cells, residence.table.cells)
        residence.log.cut(record.seen_cells)
        residence.table.cells = min(residence.table.cells, record.seen_cells)
        residence.landed_cells = residence.there_cells = residence.table.cells
        residence.failures, record.stranded, record.ahead = 0, False, False
        record.landing.clear()
        record.queue.refuse(taken)
        if not whole:
            self._compute_again(record, cause)
        self._state.budget.order(record, residence.cells)
        self._state.budget.update(record)
        for key, ask in tuple(record.asks.items()):
            if ask.min_version > record.version:
                self.fail_ask(record, key, error)
        for future in (
            *(future for _, future in record.waiters),
            *self._waiting_for_room(record),
            *self._leave_fresh_waiters(record),
        ):
            self.reject(future, error)
        record.waiters, record.room_waiters = [], {}
        self.moved(record)

    def _leave_fresh_waiters(self, record: SessionRecord) -> list[Future[None]]:
        """Those who wait until everything of a session is read and answered, to be told."""
        waiting = self._state.fresh_waiters
        self._state.fresh_waiters = [one for one in waiting if one[0] is not record]
        return [future for one, future in waiting if one is record]

    def cells_lost(self, cause: Exception) -> None:
        """The device lost all cells: sessions are computed again from what they have read."""
        self._state.prefixes.clear()
        for record in tuple(self._state.records.values()):
            if record.residence.on_device:
                self._compute_again(record, cause)

    def _compute_again(self, record: SessionRecord, cause: Exception) -> None:
        self._fail_asks_begun(record, cause)
        self.send_away(record)
        self.moved(record)

    def send_away(self, record: SessionRecord) -> None:
        """A session gives its room up; nothing holds it any more."""
        self._drop_all_flash(record)
        self.settle_rebuild(record)
        self._state.stop_computing(record)
        self._state.budget.leave(record)

    def break_session(self, record: SessionRecord, cause: Exception) -> None:
        """The device failed while it wrote a session's cells: they cannot be trusted."""
        self.close(record, f"the device failed while reading: {cause}", _step_failed(cause))

    def close(self, record: SessionRecord, reason: str, error: JaxstateError | None = None) -> None:
        """Ends a session: nothing that was asked of it stays unanswered."""
        if record.closed_because is not None:
            return
        record.closed_because = reason
        error = error or ClosedError(f"session {record.id!r} is closed: {reason}")
        for key in tuple(record.asks):
            self.fail_ask(record, key, error)
        self._drop_all_flash(record)
        drop_rebuild(self._state, record)
        for_fresh = self._leave_fresh_waiters(record)
        for_version = [future for _, future in record.waiters]
        for_move = [*record.leave_waiters, *record.come_waiters]
        for future in (*for_version, *self._waiting_for_room(record), *for_move, *for_fresh):
            self.reject(future, error)
        for subscription in record.subscriptions:
            self._outbox.append(functools.partial(subscription.close, reason))
        record.waiters, record.room_waiters = [], {}
        record.leave_waiters, record.come_waiters = [], []
        record.subscriptions = []
        self._state.by_id.pop(record.id, None)
        self._state.records.pop(record.key, None)
        self._state.touch(record)
        self._state.stop_computing(record)
        self._state.budget.forget(record)
        self._forget(record)

    def evict(self, blocks: int) -> None:
        """Registered questions under way give so many tail blocks to asks; they begin again."""
        needed = blocks - len(self._state.blocks)
        for record, request in self._state.evictable():
            if needed <= 0:
                return
            needed -= len(request.blocks)
            self._drop_flash(record, request)

    def moved(self, record: SessionRecord) -> None:
        """A session has moved, or is not to move any more: tells those that wait for that."""
        residence = record.residence
        if residence.state is not ResidencyState.LEAVING:
            self._resolve_all(record.leave_waiters)
        if residence.whole or not (residence.on_device or residence.coming):
            self._resolve_all(record.come_waiters)

    def _resolve_all(self, waiters: list[Future[None]]) -> None:
        for future in waiters:
            self.resolve(future, None)
        waiters.clear()

    def drop_unreadable(self, record: SessionRecord) -> None:
        """Registered questions under way that would lose cells to what is read now begin again;
        asks about a version that has lost some, and that wait, fail."""
        for request, _ in tuple(record.flash_requests.values()):
            if not self._state.readable(request.seen_cells, record.residence.table.cells):
                self._drop_flash(record, request)
        for key, ask in tuple(record.asks.items()):
            if not ask.request.begun:
                self.fail_unheld(record, key)

    def fail_unheld(self, record: SessionRecord, key: int) -> bool:
        """Whether an ask is about a version that its session does not hold any more; it fails."""
        version_end = record.asks[key].as_of
        if version_end is None or holds_version(self._state, record, version_end):
            return False
        self.fail_ask(record, key, unavailable(self._state, record, version_end))
        return True

    def _drop_all_flash(self, record: SessionRecord) -> None:
        for request, _ in tuple(record.flash_requests.values()):
            self._drop_flash(record, request)

    def _drop_flash(self, record: SessionRecord, request: Request) -> None:
        record.flash_requests[request.key][1].give_up()
        self._let_go(record, request)
        self.recorder.count("flash_rows_dropped")

    def room_made(self, record: SessionRecord) -> None:
        """Some entries left the queue: the first push that waits for room may try again."""
        first = next(iter(record.room_waiters.values()), None)
        if first is not None and first is not record.room_told:
            record.room_told = first
            self.resolve(first, None)

    def _waiting_for_room(self, record: SessionRecord) -> list[Future[None]]:
        """Those that are still to hear of it."""
        return [one for one in record.room_waiters.values() if one is not record.room_told]

    def reached(self, record: SessionRecord) -> None:
        """A new version: tells those that wait for it."""
        for version, future in record.waiters:
            if version <= record.version:
                self.resolve(future, None)
        record.waiters = [
            (version, future)
            for version, future in record.waiters
            if version > record.version and not future.cancelled()
        ]

    def freshened(self) -> None:
        """Tells those that wait for a session's flash queries to be up to date."""
        waiting, self._state.fresh_waiters = self._state.fresh_waiters, []
        for record, future in waiting:
            if record.up_to_date:
                self.resolve(future, None)
            elif not future.cancelled():
                self._state.fresh_waiters.append((record, future))

    def tell(self, record: SessionRecord, event: Event) -> None:
        """Sends an event to everyone who listens; who has gone, or is too slow, is forgotten."""
        if listening := tuple(record.subscriptions):
            self._outbox.append(lambda: self._offer(record, listening, event))

    def _offer(
        self, record: SessionRecord, listening: Sequence[Subscription], event: Event
    ) -> None:
        self._gone += [(record, one) for one in listening if not one.offer(event)]

    def _forget_subscribers(self) -> None:
        """Those that were found gone, or too slow, while the lock was not held."""
        gone, self._gone = self._gone, []
        for record, subscription in gone:
            if subscription in record.subscriptions:
                record.subscriptions.remove(subscription)
                if not subscription.ended:
                    self.recorder.count("subscribers_dropped")

    def resolve(self, future: Future[T], value: T) -> None:
        """Delivers a result, unless the future was cancelled."""

        def deliver() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(value)

        self._outbox.append(deliver)

    def reject(self, future: Future[T], error: JaxstateError) -> None:
        """Delivers an error, unless the future was cancelled."""

        def deliver() -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

        self._outbox.append(deliver)

    def _let_go(self, record: SessionRecord, request: Request) -> None:
        """Takes a run off the records; a step under way no longer reaches anyone."""
        self._state.touch(record)
        record.asks.pop(request.key, None)
        record.asks_begun.pop(request.key, None)
        record.flash_requests.pop(request.key, None)
        self._state.blocks.give_back(request.blocks)
        request.blocks, request.finished = (), True


def _ends_entry(record: SessionRecord, cells: int) -> bool:
    """Whether an entry that was taken to be read ends within so many cells."""
    if not record.landing:
        return False
    end_cells, taken = record.landing[0]
    first = end_cells - taken.ends[-1][1]
    return end_cells <= cells or split(taken, cells - first) is not None


def _step_failed(cause: Exception) -> StepFailed:
    if isinstance(cause, NotFinite):
        return NotFinite(str(cause))
    error = StepFailed(f"the device failed in this step: {cause}")
    error.__cause__ = cause
    return error
