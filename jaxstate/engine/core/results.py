"""What becomes of questions and sessions, and who hears of it.

Comes in: runs whose answer is complete, cancelled or failed; commits; sessions that close. Goes
out: books in order, and an outbox of deliveries (futures, events, callbacks) that the loop makes
once it has let go of the lock, so that no subscriber's code runs inside it. Does not know: devices,
threads, what is planned.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from jaxstate.engine.core.ledger import Ledger, unavailable
from jaxstate.engine.core.metrics import MetricsRecorder
from jaxstate.engine.flash.registry import Registered
from jaxstate.engine.requests.request import Run
from jaxstate.engine.sessions.record import Ask, Book
from jaxstate.engine.sessions.token_log import Taken
from jaxstate.engine.types.events import Subscription
from jaxstate.engine.types.values import Answer, DataUpdated, Event, FlashReady
from jaxstate.errors import ClosedError, JaxstateError, NotFinite, StepFailed

_log = logging.getLogger("jaxstate")


T = TypeVar("T")


Delivery = Callable[[], None]


class Outcomes:
    """Ends what has ended.

    Args:
        ledger: the books.
        recorder: counts it.
        on_thread: runs a user's callback somewhere else than in the loop.
        forget: a session is gone, wherever its cells are kept.
    """

    def __init__(
        self,
        ledger: Ledger,
        recorder: MetricsRecorder,
        on_thread: Callable[[Delivery], None],
        forget: Callable[[Book], None],
    ) -> None:
        self.recorder = recorder
        self._ledger = ledger
        self._on_thread = on_thread
        self._forget = forget
        self._outbox: list[Delivery] = []
        self._gone: list[tuple[Book, Subscription]] = []

    def take_outbox(self) -> list[Delivery]:
        """Deliveries to make, in order, without the lock."""
        self._forget_subscribers()
        outbox, self._outbox = self._outbox, []
        return outbox

    def runs_of(self, book: Book, keys: Iterable[int]) -> list[Run]:
        """The runs of those names."""
        asks, flash = book.asks, book.flash_runs
        return [asks[key].run if key in asks else flash[key][0] for key in keys]

    def finish(self, book: Book, runs: Sequence[Run], now_s: float) -> None:
        """Delivers those of `runs` that are complete and still wanted."""
        for run in runs:
            if run.finished and run.key in book.asks:
                self._answer(book.asks[run.key], book, now_s)
            elif run.finished and run.key in book.flash_runs:
                self._answer_flash(book, run, now_s)

    def _answer(self, ask: Ask, book: Book, now_s: float) -> None:
        self._let_go(book, ask.run)
        answer = ask.run.answer(now_s - ask.run.arrived_s)
        book.warm.computed(ask.run.asked, answer)
        self.recorder.ask_answered("computed", answer.latency_s)
        self.resolve(ask.future, answer)

    def _answer_flash(self, book: Book, run: Run, now_s: float) -> None:
        registered = book.flash_runs[run.key][1]
        self._let_go(book, run)
        if book.flash.get(registered.id) is not registered:
            return  # removed meanwhile
        answer = run.answer(now_s - run.arrived_s)
        missed_s = book.flash.missed_s(registered, now_s)
        fired = book.flash.answered(registered, answer, run.taken_tokens)
        behind = book.version - answer.version
        self.recorder.flash_answered(
            behind_entries=behind,
            behind_s=now_s - registered.stale_since_s if behind else 0.0,
            refresh_s=answer.latency_s,
            missed_s=missed_s,
        )
        event = FlashReady(
            id=registered.id, question=registered.asked.question, answer=answer, fired=fired
        )
        self.tell(book, event)
        if fired and registered.on_fire is not None:
            self._call_back(registered, answer)

    def _call_back(self, registered: Registered, answer: Answer) -> None:
        on_fire = registered.on_fire
        if on_fire is not None:
            self._outbox.append(lambda: self._on_thread(lambda: on_fire(answer)))

    def fail_ask(self, book: Book, key: int, error: JaxstateError) -> None:
        """An ask cannot be answered."""
        ask = book.asks[key]
        self._let_go(book, ask.run)
        self.recorder.count("asks_failed")
        self.reject(ask.future, error)

    def cancelled(self, book: Book, key: int, *, timed_out: bool) -> None:
        """Nobody waits for that ask any more; its step under way, if any, ends unheard."""
        if key in book.asks:
            self._let_go(book, book.asks[key].run)
            self.recorder.count("asks_timed_out" if timed_out else "asks_cancelled")

    def fail_runs(self, book: Book, runs: Sequence[Run], cause: Exception) -> None:
        """The device failed in a step that answered these; the sessions' cells are untouched."""
        for run in runs:
            if run.key in book.asks:
                self.fail_ask(book, run.key, _step_failed(cause))
            elif run.key in book.flash_runs:
                registered = book.flash_runs[run.key][1]
                self._let_go(book, run)
                book.flash.refused(registered, run.version, str(_step_failed(cause)))
                self.recorder.count("flash_refused")

    def not_finite(self, book: Book, run: Run) -> None:
        """The numbers of a question's step are NaN or infinite: it has no answer. Unless another
        question had one at the same version, the session's cells may be why; then they are computed
        again, once for each version."""
        self.fail_runs(book, [run], NotFinite())
        residence = book.residence
        sound = max(residence.sound_version, residence.doubted_version)
        if run.version == book.version > sound and residence.log.complete and residence.on_device:
            residence.doubted_version = book.version
            self._ledger.prefixes.clear()
            self._compute_again(book, NotFinite())

    def rows_lost(self, cause: Exception) -> None:
        """The device lost all questions under way: asks fail, registered questions begin again."""
        for book in tuple(self._ledger.books.values()):
            self.fail_runs(book, [ask.run for ask in book.asks_begun.values()], cause)
            self._drop_all_flash(book)

    def landed(self, book: Book, taken: Taken, border_cells: int, now_s: float) -> None:
        """Entries are in a session's cells, which end there with the last of them."""
        if taken.completes is None or book.closed:
            return
        self.recorder.entries_committed(taken.pushed_s, now_s)
        book.commit(taken.completes, border_cells, now_s)
        self.reached(book)
        self.tell(book, DataUpdated(version=book.version, pending=book.pending))

    def reading_failed(self, book: Book, start_cells: int | None, cause: Exception) -> None:
        """The device failed while it read for a session: it reads that again, once.

        Args:
            book: the session.
            start_cells: that are still there; None if even they may not be.
            cause: what the device said.
        """
        self._ledger.prefixes.clear()  # what was to be kept of it is not there
        residence = book.residence
        if book.closed or not residence.on_device:
            return
        residence.failures += 1
        residence.careful = isinstance(cause, NotFinite)
        residence.attempt += 1
        residence.attempt_cells = start_cells or 0
        last_try = residence.failures > 1 or not residence.log.complete
        if last_try and isinstance(cause, NotFinite) and book.version >= 0:
            self._stop_reading(book, cause)
        elif last_try:
            self.break_session(book, cause)
        elif start_cells is None:
            self._compute_again(book, cause)
        else:
            residence.table.cells = min(residence.table.cells, start_cells)
            self._ledger.room.update(book)

    def _stop_reading(self, book: Book, cause: NotFinite) -> None:
        """What comes next cannot be read, tried twice: the session stays at its version."""
        residence = book.residence
        taken = len(residence.log.ends(book.seen_cells, residence.cells))
        waiting = book.queue.pending + taken
        error = book.stopped = NotFinite(
            f"session {book.id!r} stays at version {book.version}: entry {book.version + 1} cannot "
            f"be read ({waiting} entries wait). {cause}"
        )
        _log.error("%s", error)
        whole = self._ledger.readable(book.seen_cells, residence.table.cells)
        residence.log.cut(book.seen_cells)
        residence.table.cells = min(residence.table.cells, book.seen_cells)
        residence.landed_cells = residence.there_cells = residence.table.cells
        residence.failures, book.stranded = 0, False
        book.landing.clear()
        book.queue.refuse(taken)
        if not whole and not residence.log.complete:
            self.break_session(book, cause)
            return
        if not whole:
            self._compute_again(book, cause)
        self._ledger.room.order(book, residence.cells)
        self._ledger.room.update(book)
        for key, ask in tuple(book.asks.items()):
            if ask.min_version > book.version:
                self.fail_ask(book, key, error)
        for future in (
            *(future for _, future in book.waiters),
            *self._waiting_for_room(book),
            *self._leave_fresh_waiters(book),
        ):
            self.reject(future, error)
        book.waiters, book.room_waiters = [], {}
        self.moved(book)

    def _leave_fresh_waiters(self, book: Book) -> list[Future[None]]:
        """Those who wait until everything of a session is read and answered, to be told."""
        waiting = self._ledger.fresh_waiters
        self._ledger.fresh_waiters = [one for one in waiting if one[0] is not book]
        return [future for one, future in waiting if one is book]

    def cells_lost(self, cause: Exception) -> None:
        """The device lost all cells: sessions are computed again from what they have read."""
        self._ledger.prefixes.clear()
        for book in tuple(self._ledger.books.values()):
            if not book.residence.on_device:
                continue
            if book.residence.log.complete:
                self._compute_again(book, cause)
            else:
                self.break_session(book, cause)

    def _compute_again(self, book: Book, cause: Exception) -> None:
        self.fail_runs(book, [ask.run for ask in book.asks_begun.values()], cause)
        self.send_away(book)
        self.moved(book)

    def send_away(self, book: Book) -> None:
        """A session gives its room up; nothing holds it any more."""
        self._drop_all_flash(book)
        self._ledger.stop_computing(book)
        self._ledger.room.leave(book)

    def break_session(self, book: Book, cause: Exception) -> None:
        """The device failed while it wrote a session's cells: they cannot be trusted."""
        self.close(book, f"the device failed while reading: {cause}", _step_failed(cause))

    def close(self, book: Book, reason: str, error: JaxstateError | None = None) -> None:
        """Ends a session: nothing that was asked of it stays unanswered."""
        if book.closed_because is not None:
            return
        book.closed_because = reason
        error = error or ClosedError(f"session {book.id!r} is closed: {reason}")
        for key in tuple(book.asks):
            self.fail_ask(book, key, error)
        self._drop_all_flash(book)
        for_fresh = self._leave_fresh_waiters(book)
        for_version = [future for _, future in book.waiters]
        for_move = [*book.leave_waiters, *book.come_waiters]
        for future in (*for_version, *self._waiting_for_room(book), *for_move, *for_fresh):
            self.reject(future, error)
        for subscription in book.subscriptions:
            self._outbox.append(functools.partial(subscription.close, reason))
        book.waiters, book.room_waiters = [], {}
        book.leave_waiters, book.come_waiters = [], []
        book.subscriptions = []
        for stand_in in tuple(book.stand_ins):
            self.close(stand_in, reason, error)
        if book.stands_for is not None:
            book.stands_for.stand_ins.remove(book)
        else:
            self._ledger.by_id.pop(book.id, None)
        self._ledger.books.pop(book.key, None)
        self._ledger.stop_computing(book)
        self._ledger.room.forget(book)
        self._forget(book)

    def evict(self, blocks: int) -> None:
        """Registered questions under way give so many tail blocks to asks; they begin again."""
        needed = blocks - len(self._ledger.blocks)
        for book, run in self._ledger.evictable():
            if needed <= 0:
                return
            needed -= len(run.blocks)
            self._drop_flash(book, run)

    def moved(self, book: Book) -> None:
        """A session has moved, or is not to move any more: tells those that wait for that."""
        residence = book.residence
        if not residence.leaving:
            self._resolve_all(book.leave_waiters)
        if residence.whole or not (residence.on_device or residence.coming):
            self._resolve_all(book.come_waiters)

    def _resolve_all(self, waiters: list[Future[None]]) -> None:
        for future in waiters:
            self.resolve(future, None)
        waiters.clear()

    def drop_unreadable(self, book: Book) -> None:
        """Registered questions under way that would lose cells to what is read now begin again;
        asks about a version that has lost some, and that wait, fail."""
        for run, _ in tuple(book.flash_runs.values()):
            if not self._ledger.readable(run.seen_cells, book.residence.table.cells):
                self._drop_flash(book, run)
        for key, ask in tuple(book.asks.items()):
            if not ask.run.begun:
                self.fail_unheld(book, key)

    def fail_unheld(self, book: Book, key: int) -> bool:
        """Whether an ask is about a version that its session does not hold any more; it fails."""
        border = book.asks[key].as_of
        if border is None or self._ledger.holds(book.residence, border.cells):
            return False
        self.fail_ask(book, key, unavailable(self._ledger, book, border))
        return True

    def _drop_all_flash(self, book: Book) -> None:
        for run, _ in tuple(book.flash_runs.values()):
            self._drop_flash(book, run)

    def _drop_flash(self, book: Book, run: Run) -> None:
        book.flash_runs[run.key][1].give_up()
        self._let_go(book, run)
        self.recorder.count("flash_rows_dropped")

    def room_made(self, book: Book) -> None:
        """Some entries left the queue: the first push that waits for room may try again."""
        first = next(iter(book.room_waiters.values()), None)
        if first is not None and first is not book.room_told:
            book.room_told = first
            self.resolve(first, None)

    def _waiting_for_room(self, book: Book) -> list[Future[None]]:
        """Those that are still to hear of it."""
        return [one for one in book.room_waiters.values() if one is not book.room_told]

    def reached(self, book: Book) -> None:
        """A new version: tells those that wait for it."""
        for version, future in book.waiters:
            if version <= book.version:
                self.resolve(future, None)
        book.waiters = [
            (version, future)
            for version, future in book.waiters
            if version > book.version and not future.cancelled()
        ]

    def freshened(self) -> None:
        """Tells those that wait for a session's flash queries to be up to date."""
        waiting, self._ledger.fresh_waiters = self._ledger.fresh_waiters, []
        for book, future in waiting:
            if book.up_to_date:
                self.resolve(future, None)
            elif not future.cancelled():
                self._ledger.fresh_waiters.append((book, future))

    def tell(self, book: Book, event: Event) -> None:
        """Sends an event to everyone who listens; who has gone, or is too slow, is forgotten."""
        if listening := tuple(book.subscriptions):
            self._outbox.append(lambda: self._offer(book, listening, event))

    def _offer(self, book: Book, listening: Sequence[Subscription], event: Event) -> None:
        self._gone += [(book, one) for one in listening if not one.offer(event)]

    def _forget_subscribers(self) -> None:
        """Those that were found gone, or too slow, while the lock was not held."""
        gone, self._gone = self._gone, []
        for book, subscription in gone:
            if subscription in book.subscriptions:
                book.subscriptions.remove(subscription)
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

    def _let_go(self, book: Book, run: Run) -> None:
        """Takes a run off the books; a step under way no longer reaches anyone."""
        book.asks.pop(run.key, None)
        book.asks_begun.pop(run.key, None)
        book.flash_runs.pop(run.key, None)
        self._ledger.blocks.give_back(run.blocks)
        run.blocks, run.finished = (), True


def _step_failed(cause: Exception) -> StepFailed:
    if isinstance(cause, NotFinite):
        return NotFinite(str(cause))
    error = StepFailed(f"the device failed in this step: {cause}")
    error.__cause__ = cause
    return error
