"""Where clients' calls meet the engine's loop: the state behind its one lock, and what waits.

Comes in: tokens, questions, registrations, from any thread. Goes out: futures, receipts, facts; the
loop is woken. Does not know: text (`encoding` makes tokens of it), how steps are planned and run.

The lock is held for bookkeeping only: a client never waits for the device, except for what it asked
for.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from jaxstate.engine.core.journal_writer import JournalWriter
from jaxstate.engine.core.metrics import EngineMetrics, Gauges, MetricsRecorder
from jaxstate.engine.core.ready_sessions import ReadySessions
from jaxstate.engine.core.results import Delivery, ResultProcessor
from jaxstate.engine.core.state import EngineState
from jaxstate.engine.core.window_moves import window_change
from jaxstate.engine.executor.protocol import Executor, HostCells
from jaxstate.engine.memory.cell_store import CellStore
from jaxstate.engine.requests.futures import AskFuture, wait_for, wait_for_all
from jaxstate.engine.requests.request import Question, Request
from jaxstate.engine.scheduler.scheduler import Scheduler
from jaxstate.engine.sessions.record import PendingAsk, SessionRecord
from jaxstate.engine.sessions.residence import ResidencyState
from jaxstate.engine.sessions.token_log import VersionEnd
from jaxstate.engine.types.events import FlashMode, Subscription
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.owner import OwnedLock, Owner
from jaxstate.engine.types.values import Connected, SessionInfo
from jaxstate.errors import ClosedError, InvalidInput, JournalError, QueueFull
from jaxstate.persist.changes import ended
from jaxstate.persist.journal import PendingWrite

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class ControlTask(Generic[T]):
    """Something the loop's thread does between steps.

    Attributes:
        act: it, without the lock.
        booked: what its result changes in the records.
        future: its result.
        session: which session it is for; if that is closed meanwhile, the job is not done.
        version_end: it waits until this session is on the device, at a version's end: no entry half
            read.
        creates: whether it makes `session`, which is closed if it fails.
        midway: an entry may be half read: it is about a version before that.
    """

    act: Callable[[], T]
    booked: Callable[[T], None]
    future: Future[T]
    session: SessionRecord
    version_end: SessionRecord | None = None
    creates: bool = False
    midway: bool = False

    @property
    def may_run(self) -> bool:
        """Whether what it needs is at a version's end."""
        version_end = self.version_end
        if version_end is None:
            return True
        residence = version_end.residence
        there = residence.on_device and not residence.missing and version_end.version >= 0
        there = there and not version_end.ahead
        return there and (self.midway or not (version_end.landing or version_end.queue.partly_read))

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    @property
    def ended(self) -> bool:
        """Whether a session that it needs was closed meanwhile."""
        return self.session.closed or (self.version_end is not None and self.version_end.closed)

    def check_open(self) -> None:
        """Refuses it if so.

        Raises:
            ClosedError: with the reason.
        """
        self.session.check_open()
        if self.version_end is not None:
            self.version_end.check_open()


class EngineCore:
    """Everything that clients and the loop share.

    Args:
        executor: for its limits; jobs that call it are left to the loop.
        config: bounds and shares.
        clock: monotonic seconds.
        on_thread: runs a user's callback somewhere else than in the loop.
        journal_writer: of the journal; None for none.

    Attributes:
        owner: the process that it belongs to.
        lock: guards all of it; `wake` is its condition.
        news: whether anything changed since the loop last looked.
        ended: what every call raises once the engine is closed.
        ready, scheduler: what there is to do, and what of it comes next.
        jobs: what the loop's thread is to do between steps.
        cell_store: cells that are not on the device.
        journal_writer: tells the journal, if there is one.
        wipes: those who wait until no cells are left of what nobody has.
        loop_thread: the thread that must never wait for the engine; None if a test turns the loop.
    """

    def __init__(
        self,
        executor: Executor,
        config: EngineConfig,
        clock: Callable[[], float],
        on_thread: Callable[[Delivery], None],
        journal_writer: JournalWriter | None = None,
    ) -> None:
        self.config = config
        self.journal_writer = journal_writer or JournalWriter(None)
        self.limits = executor.limits
        self.clock = clock
        self.owner = Owner()
        self.lock = OwnedLock(self.owner)
        self.wake = threading.Condition(cast("threading.Lock", self.lock))
        self.news = False
        self.ended: ClosedError | None = None
        self.loop_thread: int | None = None
        self.jobs: deque[ControlTask[object]] = deque()
        self.state = EngineState(executor, config)
        self.ready = ReadySessions(self.state)
        self.scheduler = Scheduler(config.scheduling)
        self.recorder = MetricsRecorder(clock())
        self.cell_store = CellStore(config.host_bytes, self._moved)
        self.results = ResultProcessor(
            self.state,
            self.recorder,
            on_thread,
            lambda record: self.cell_store.forget(record.key),
            self.note_window,
        )
        self.wipes: list[Future[None]] = []
        self._executor = executor
        self.journal_writer.attach(self.lock, self.tell_loop, self._abandon)
        self._compiled_before = executor.compilations()

    @contextmanager
    def changing(self, *records: SessionRecord) -> Iterator[EngineState]:
        """The records, to change them; wakes the loop, which looks again at these.

        Raises:
            ClosedError: the engine is closed.
        """
        with self.noting() as state:
            yield state
            for record in records:
                state.touch(record)
            self.tell_loop()

    @contextmanager
    def noting(self) -> Iterator[EngineState]:
        """The records, to note what does not count yet: the loop has nothing to do.

        Raises:
            ClosedError: the engine is closed.
        """
        with self.lock:
            if self.ended is not None:
                raise refusal(self.ended)
            yield self.state

    def check_may_wait(self) -> None:
        """Refuses to wait on the engine's own thread, which would wait for itself for ever.

        Raises:
            InvalidInput: this is that thread.
        """
        self.owner.check()
        if threading.get_ident() == self.loop_thread:
            raise InvalidInput(
                "this call would wait for the engine on the engine's own thread, where callbacks "
                "of futures run; let another thread make it"
            )

    def outcome(self, future: Future[T], timeout: float | None, what: str) -> T:
        """A future's result, for a client that waits for it; if it cannot, it is cancelled.

        Raises:
            InvalidInput: on the engine's own thread.
            TimedOut: `what`, within the timeout.
        """
        try:
            if not future.done():
                self.check_may_wait()
            return wait_for(future, timeout, what)
        except BaseException:  # a signal, an interrupt: nobody waits for it any more
            future.cancel()
            raise

    def outcomes_of(
        self, futures: Sequence[Future[T]], timeout: float | None, what: str
    ) -> list[T]:
        """The results of all, or the first error; what is not there then is cancelled.

        Raises:
            InvalidInput: on the engine's own thread.
            TimedOut: `what`, within the timeout.
        """
        try:
            if not all(future.done() for future in futures):
                self.check_may_wait()
            return wait_for_all(futures, timeout, what)
        finally:
            for future in futures:
                future.cancel()

    def tell_loop(self) -> None:
        """There is something to look at; the caller holds the lock."""
        self.news = True
        self.wake.notify_all()

    def check_may_note(self) -> None:
        """Refuses to wait for the journal on the engine's own thread, which others wait for.

        Raises:
            InvalidInput: this is that thread, and there is a journal that is waited for.
        """
        if self.journal_writer.waits:
            self.check_may_wait()

    def settled(self, written: PendingWrite | None, timeout: float | None = None) -> None:
        """Waits until the journal has a change.

        Args:
            written: it; None for nothing to wait for.
            timeout: seconds at most for one that took effect at once, and only waits since the line
                is long; others are waited for until it is known what becomes of them.

        Raises:
            JournalError: it could not be written, and did not take effect.
        """
        if written is None or not written.awaited:
            return
        if written.stays:
            wait([written.settled], timeout)
        else:
            written.settled.result()

    def _abandon(self) -> None:
        """The journal could not be written: what is on its way to it never takes effect."""
        for record in tuple(self.state.records.values()):
            if record.is_new:
                error = JournalError("it could not be journaled")
                self.results.close(record, str(error), error)
                continue
            arriving = record.queue.arriving
            record.abandon()
            if not arriving:
                continue
            self.state.budget.order(record, record.residence.cells + record.queue.unread_tokens)
            self.results.room_made(record)

    @contextmanager
    def or_closed(self, record: SessionRecord) -> Iterator[None]:
        """Closes a new session if whoever made it does not get it after all, however that comes."""
        try:
            yield
        except BaseException:
            with self.lock:
                self.unwanted(record)
            raise

    def unwanted(self, record: SessionRecord) -> None:
        """A session that nobody got ends, in the journal too; the caller holds the lock."""
        if not record.closed:
            if record.log_key:
                with contextlib.suppress(JournalError):  # at the next start it is there again
                    self.journal_writer.append(ended(record.log_key))
            self.results.close(record, "whoever made it did not wait for it")
            self.tell_loop()

    def wait(self, record: SessionRecord, version: int) -> Future[None]:
        """Ends once the session has that version."""
        future: Future[None] = Future()
        with self.changing():
            record.check_open()
            record.check_reads(version)
            if version > record.version:
                # Those that were given up would otherwise stay until the next commit.
                record.waiters = [one for one in record.waiters if not one[1].cancelled()]
                record.waiters.append((version, future))
                return future
        future.set_result(None)
        return future

    def wait_fresh(self, record: SessionRecord) -> Future[None]:
        """Ends once everything is read and every flash query answered, or refused, there."""
        future: Future[None] = Future()
        with self.changing() as state:
            record.check_open()
            record.check_reads(record.queue.last)
            state.fresh_waiters.append((record, future))
        return future

    def ask(
        self, asks: Sequence[tuple[SessionRecord, Question, int]], arrived_s: float
    ) -> list[AskFuture]:
        """Questions, noted all at once or not at all, so that they can share their steps.

        Args:
            asks: of which session, what, and the version that it has to have.
            arrived_s: when they were asked.

        Returns:
            Futures, each of which can be cancelled at any time.

        Raises:
            QueueFull: a session has as many asks as it may.
            ClosedError: a session or the engine is closed.
        """
        with self.changing():
            self.check_asks([record for record, _, _ in asks])
            for record, _, min_version in asks:
                record.check_reads(min_version)
            noted = [
                (record, *self.note(record, asked, arrived_s, min_version=min_version))
                for record, asked, min_version in asks
            ]
        for one in noted:
            self.follow(*one)
        return [future for _, _, future in noted]

    def note(
        self,
        record: SessionRecord,
        asked: Question,
        arrived_s: float,
        *,
        min_version: int = 0,
        as_of: VersionEnd | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> tuple[int, AskFuture]:
        """One question in the records, its name and its future; the caller holds the lock, and has
        it followed afterwards."""
        request, future = Request(self.state.new_key(), "ask", asked, arrived_s), AskFuture()
        ask = PendingAsk(
            request=request,
            future=future,
            min_version=min_version,
            as_of=as_of,
            on_text=on_text,
        )
        record.asks[request.key] = ask
        self.state.touch(record)
        record.residence.used_s = arrived_s
        return request.key, future

    def follow(self, record: SessionRecord, key: int, future: AskFuture) -> None:
        """Takes a question off the records if its future is cancelled; without the lock."""
        future.add_done_callback(functools.partial(self._if_cancelled, record, key, future))

    def check_asks(self, records: Sequence[SessionRecord]) -> None:
        """Refuses questions, one to each of these, that a session cannot take.

        Raises:
            QueueFull: a session has as many asks as it may.
            ClosedError: a session is closed.
        """
        for record, more in Counter(records).items():
            record.check_open()
            waiting = len(record.asks)
            if waiting + more > self.config.waiting_asks:
                raise QueueFull(
                    f"session {record.id!r} has {waiting} asks waiting; it may have "
                    f"{self.config.waiting_asks}; wait for some, or raise waiting_asks in "
                    "EngineConfig"
                )

    def _if_cancelled(self, record: SessionRecord, key: int, future: AskFuture, _: object) -> None:
        if future.cancelled():
            with self.lock:
                self.results.cancelled(record, key, timed_out=future.timed_out)
                self.tell_loop()

    def subscribe(self, record: SessionRecord, flash: FlashMode) -> Subscription:
        """Events from now on, the first of them `Connected`."""
        subscription = Subscription(self.config.events_limit, flash)
        with self.changing():
            record.check_open()
            subscription.offer(
                Connected(session=record.id, version=record.version, pending=record.pending)
            )
            record.subscriptions.append(subscription)
        return subscription

    def info(self, record: SessionRecord) -> SessionInfo:
        """Facts about a session at this moment."""
        layout, residence = self.limits.layout, record.residence
        with self.lock:
            oldest_s = record.oldest_s
            kept = 0 if residence.place == "log" else residence.cells
            return SessionInfo(
                id=record.id,
                version=record.version,
                pending=record.pending,
                pending_tokens=record.pending_tokens,
                cells=layout.cells,
                tokens=record.seen_cells,
                bytes=layout.bytes_of(kept, self.limits.itemsize),
                residency=residence.place,
                resume_s=self._resume_s(record),
                tenant=residence.tenant,
                reserve=residence.reserve_blocks * layout.block_cells,
                pinned=residence.pinned,
                lag_s=0.0 if oldest_s is None else self.clock() - oldest_s,
                dropped=record.queue.dropped,
                flashes=len(record.flash),
                stopped=None if record.stopped is None else str(record.stopped),
                window=None if record.window is None else record.window.window,
                visible=record.visible(record.version),
            )

    def _resume_s(self, record: SessionRecord) -> float | None:
        residence = record.residence
        if residence.on_device or residence.cells == 0:
            return 0.0
        if residence.place == "log":
            return self.recorder.read_s(residence.cells)
        size_bytes = self.limits.layout.bytes_of(residence.cells, self.limits.itemsize)
        copy_s = self.recorder.copy_s(size_bytes)
        if residence.place == "host" or copy_s is None:
            return copy_s
        read_s = self.cell_store.read_s(size_bytes)
        return None if read_s is None else read_s + copy_s

    def metrics(self) -> EngineMetrics:
        """Everything counted so far."""
        with self.lock:
            now_s = self.clock()
            return self.recorder.snapshot(now_s, self._gauges(now_s))

    def _moved(self, session: int) -> None:
        """Cells came from a checkpoint, or were lost; on the cell store's thread."""
        with self.lock:
            record = self.state.records.get(session)
            if record is not None:
                self.look_for(record)
            self.tell_loop()

    def note_window(self, record: SessionRecord) -> None:
        """Tells the journal of what is in a session's context; a restart is as good without it. The
        caller holds the lock."""
        if record.log_key:
            log = record.residence.log
            window = record.windows_to_come[-1] if record.windows_to_come else record.window
            change = window_change(record.log_key, window, log)
            with contextlib.suppress(JournalError):
                self.journal_writer.append(change, level="memory")

    def look_for(self, record: SessionRecord) -> None:
        """Notes where a session's cells are now, if it is away; the caller holds the lock."""
        residence = record.residence
        if residence.on_device:
            return
        self.state.touch(record)
        residence.become(ResidencyState(self.cell_store.where(record.key)))
        if residence.place != "host":
            residence.oldest_cells = 0  # what comes back decides

    def keep_cells(self, record: SessionRecord, cells: HostCells, *, wanted: bool = False) -> None:
        """Cells of a session that is away go to the host; sessions whose cells were given up for
        them are looked for, perhaps this one. The caller holds the lock."""
        gone = self.cell_store.put(record.key, cells, wanted=wanted)
        for one in (record, *(self.state.records.get(key) for key in gone)):
            if one is not None:
                self.look_for(one)

    def _gauges(self, now_s: float) -> Gauges:
        records = [one for one in self.state.records.values() if one.rebuilds is None]
        room, size = self.state.budget, self.limits.layout.block_cells
        asks = [ask.request for record in records for ask in record.asks.values()]
        oldest_s = [one for record in records if (one := record.oldest_s) is not None]
        return Gauges(
            sessions=sum(not record.passing for record in records),
            pending_entries=sum(record.pending for record in records),
            pending_tokens=sum(record.pending_tokens for record in records),
            asks_waiting=sum(not request.begun for request in asks),
            asks_running=sum(request.begun for request in asks),
            flash_queries=sum(len(record.flash) for record in records),
            flash_stale=sum(record.flash.stale for record in records),
            oldest_lag_s=now_s - min(oldest_s, default=now_s),
            compilations=self._executor.compilations() - self._compiled_before,
            on_device=self.state.budget.on_device,
            cells=room.blocks * size,
            cells_held=self.state.tables.primary.held * size,
            cells_free=max(0, room.free) * size,
            cells_firm=room.firm * size,
            prefix_cells=len(self.state.prefixes) * size,
            host_bytes=self.cell_store.bytes,
        )


def refusal(error: ClosedError) -> ClosedError:
    """The same error anew: each raising adds to an error's traceback."""
    fresh = type(error)(str(error))
    fresh.__cause__ = error.__cause__
    return fresh
