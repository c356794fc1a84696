"""What the loop's thread does for a session between two steps: fork, save.

Comes in: something to do and what it changes in the books. Goes out: a future. Does not know: what
is done, when.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from jaxstate.engine.core.journal_writer import Keeper
from jaxstate.engine.core.ledger import Ledger
from jaxstate.engine.core.metrics import EngineMetrics, Gauges, MetricsRecorder
from jaxstate.engine.core.results import Delivery, Outcomes
from jaxstate.engine.executor.protocol import Executor
from jaxstate.engine.memory.cell_store import Vault
from jaxstate.engine.requests.futures import AskFuture, wait_for, wait_for_all
from jaxstate.engine.requests.request import Asked, Run
from jaxstate.engine.sessions.record import Ask, Book
from jaxstate.engine.sessions.token_log import Border
from jaxstate.engine.types.events import FlashMode, Subscription
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.owner import OwnedLock, Owner
from jaxstate.engine.types.values import Connected, SessionInfo
from jaxstate.errors import ClosedError, InvalidInput, QueueFull
from jaxstate.persist.changes import ended
from jaxstate.persist.journal import Ticket

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Job(Generic[T]):
    """Something the loop's thread does between steps.

    Attributes:
        act: it, without the lock.
        booked: what its result changes in the books.
        future: its result.
        session: which session it is for; if that is closed meanwhile, the job is not done.
        border: it waits until this session is on the device, at a version's border: no entry half
            read.
        creates: whether it makes `session`, which is closed if it fails.
        midway: an entry may be half read: it is about a version before that.
    """

    act: Callable[[], T]
    booked: Callable[[T], None]
    future: Future[T]
    session: Book
    border: Book | None = None
    creates: bool = False
    midway: bool = False

    @property
    def may_run(self) -> bool:
        """Whether what it needs is at a version's border."""
        border = self.border
        if border is None:
            return True
        residence = border.residence
        there = residence.on_device and not residence.missing and border.version >= 0
        return there and (self.midway or not (border.landing or border.queue.partly_read))

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    @property
    def ended(self) -> bool:
        """Whether a session that it needs was closed meanwhile."""
        return self.session.closed or (self.border is not None and self.border.closed)

    def check_open(self) -> None:
        """Refuses it if so.

        Raises:
            ClosedError: with the reason.
        """
        self.session.check_open()
        if self.border is not None:
            self.border.check_open()


class Desk:
    """Everything that clients and the loop share.

    Args:
        executor: for its limits; jobs that call it are left to the loop.
        config: bounds and shares.
        clock: monotonic seconds.
        on_thread: runs a user's callback somewhere else than in the loop.
        keeper: of the journal; None for none.

    Attributes:
        owner: the process that it belongs to.
        lock: guards all of it; `wake` is its condition.
        news: whether anything changed since the loop last looked.
        ended: what every call raises once the engine is closed.
        jobs: what the loop's thread is to do between steps.
        vault: cells that are not on the device.
        keeper: tells the journal, if there is one.
        wipes: those who wait until no cells are left of what nobody has.
        loop_thread: the thread that must never wait for the engine; None if a test turns the loop.
    """

    def __init__(
        self,
        executor: Executor,
        config: EngineConfig,
        clock: Callable[[], float],
        on_thread: Callable[[Delivery], None],
        keeper: Keeper | None = None,
    ) -> None:
        self.config = config
        self.keeper = keeper or Keeper(None)
        self.limits = executor.limits
        self.clock = clock
        self.owner = Owner()
        self.lock = OwnedLock(self.owner)
        self.wake = threading.Condition(cast("threading.Lock", self.lock))
        self.news = False
        self.ended: ClosedError | None = None
        self.loop_thread: int | None = None
        self.jobs: deque[Job[object]] = deque()
        self.ledger = Ledger(executor, config)
        self.recorder = MetricsRecorder(clock())
        self.vault = Vault(executor, config.host_bytes, config.disk_path, self._moved)
        self.outcomes = Outcomes(
            self.ledger, self.recorder, on_thread, lambda book: self.vault.drop(book.key)
        )
        self.wipes: list[Future[None]] = []
        self._executor = executor
        self.keeper.attach(self.lock, self.tell_loop)
        self._compiled_before = executor.compilations()

    @contextmanager
    def changing(self) -> Iterator[Ledger]:
        """The books, to change them; wakes the loop.

        Raises:
            ClosedError: the engine is closed.
        """
        with self.noting() as ledger:
            yield ledger
            self.tell_loop()

    @contextmanager
    def noting(self) -> Iterator[Ledger]:
        """The books, to note what does not count yet: the loop has nothing to do.

        Raises:
            ClosedError: the engine is closed.
        """
        with self.lock:
            if self.ended is not None:
                raise refusal(self.ended)
            yield self.ledger

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
        if self.keeper.waits:
            self.check_may_wait()

    def settled(self, noted: Ticket | None) -> None:
        """Waits until the journal has what was noted.

        Raises:
            JournalError: it could not be written.
        """
        if noted is not None and not noted.stays:
            noted.settled.result()

    @contextmanager
    def or_closed(self, book: Book) -> Iterator[None]:
        """Closes a new session if whoever made it does not get it after all, however that comes."""
        try:
            yield
        except BaseException:
            with self.lock:
                self.unwanted(book)
            raise

    def unwanted(self, book: Book) -> None:
        """A session that nobody got ends, in the journal too; the caller holds the lock."""
        if not book.closed:
            if book.log_key:
                self.keeper.note(ended(book.log_key))
            self.outcomes.close(book, "whoever made it did not wait for it")
            self.tell_loop()

    def wait(self, book: Book, version: int) -> Future[None]:
        """Ends once the session has that version."""
        future: Future[None] = Future()
        with self.changing():
            book.check_open()
            book.check_reads(version)
            if version > book.version:
                # Those that were given up would otherwise stay until the next commit.
                book.waiters = [one for one in book.waiters if not one[1].cancelled()]
                book.waiters.append((version, future))
                return future
        future.set_result(None)
        return future

    def wait_fresh(self, book: Book) -> Future[None]:
        """Ends once everything is read and every flash query answered, or refused, there."""
        future: Future[None] = Future()
        with self.changing() as ledger:
            book.check_open()
            book.check_reads(book.queue.last)
            ledger.fresh_waiters.append((book, future))
        return future

    def ask(self, asks: Sequence[tuple[Book, Asked, int]], arrived_s: float) -> list[AskFuture]:
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
            self.check_asks([book for book, _, _ in asks])
            for book, _, min_version in asks:
                book.check_reads(min_version)
            noted = [
                (book, *self.note(book, asked, arrived_s, min_version=min_version))
                for book, asked, min_version in asks
            ]
        for one in noted:
            self.follow(*one)
        return [future for _, _, future in noted]

    def note(
        self,
        book: Book,
        asked: Asked,
        arrived_s: float,
        *,
        min_version: int = 0,
        as_of: Border | None = None,
    ) -> tuple[int, AskFuture]:
        """One question in the books, its name and its future; the caller holds the lock, and has
        it followed afterwards."""
        run, future = Run(self.ledger.new_key(), "ask", asked, arrived_s), AskFuture()
        ask = Ask(run=run, future=future, min_version=min_version, as_of=as_of)
        book.asks[run.key] = ask
        book.residence.used_s = arrived_s
        return run.key, future

    def follow(self, book: Book, key: int, future: AskFuture) -> None:
        """Takes a question off the books if its future is cancelled; without the lock."""
        future.add_done_callback(functools.partial(self._if_cancelled, book, key, future))

    def check_asks(self, books: Sequence[Book]) -> None:
        """Refuses questions, one to each of these, that a session cannot take.

        Raises:
            QueueFull: a session has as many asks as it may.
            ClosedError: a session is closed.
        """
        for book, more in Counter(books).items():
            book.check_open()
            waiting = len(book.asks) + len(book.stand_ins)
            if waiting + more > self.config.waiting_asks:
                raise QueueFull(
                    f"session {book.id!r} has {waiting} asks waiting; it may have "
                    f"{self.config.waiting_asks}; wait for some, or raise waiting_asks in "
                    "EngineConfig"
                )

    def _if_cancelled(self, book: Book, key: int, future: AskFuture, _: object) -> None:
        if future.cancelled():
            with self.lock:
                self.outcomes.cancelled(book, key, timed_out=future.timed_out)
                self.tell_loop()

    def subscribe(self, book: Book, flash: FlashMode) -> Subscription:
        """Events from now on, the first of them `Connected`."""
        subscription = Subscription(self.config.events_limit, flash)
        with self.changing():
            book.check_open()
            subscription.offer(
                Connected(session=book.id, version=book.version, pending=book.pending)
            )
            book.subscriptions.append(subscription)
        return subscription

    def info(self, book: Book) -> SessionInfo:
        """Facts about a session at this moment."""
        layout, residence = self.limits.layout, book.residence
        with self.lock:
            oldest_s = book.oldest_s
            kept = 0 if residence.place == "log" else residence.cells
            return SessionInfo(
                id=book.id,
                version=book.version,
                pending=book.pending,
                pending_tokens=book.pending_tokens,
                cells=layout.cells,
                tokens=book.seen_cells,
                bytes=layout.bytes_of(kept, self.limits.itemsize),
                residency=residence.place,
                resume_s=self._resume_s(book),
                tenant=residence.tenant,
                reserve=residence.reserve_blocks * layout.block_cells,
                pinned=residence.pinned,
                lag_s=0.0 if oldest_s is None else self.clock() - oldest_s,
                dropped=book.queue.dropped,
                flashes=len(book.flash),
                stopped=None if book.stopped is None else str(book.stopped),
            )

    def _resume_s(self, book: Book) -> float | None:
        residence = book.residence
        if residence.on_device or residence.cells == 0:
            return 0.0
        if residence.place == "log":
            return self.recorder.read_s(residence.cells)
        size_bytes = self.limits.layout.bytes_of(residence.cells, self.limits.itemsize)
        copy_s = self.recorder.copy_s(size_bytes)
        if residence.place == "host" or copy_s is None:
            return copy_s
        read_s = self.vault.read_s(size_bytes)
        return None if read_s is None else read_s + copy_s

    def metrics(self) -> EngineMetrics:
        """Everything counted so far."""
        with self.lock:
            now_s = self.clock()
            return self.recorder.snapshot(now_s, self._gauges(now_s))

    def _moved(self, session: int) -> None:
        """Cells came from the disk, or went there, or were lost; on the vault's thread."""
        with self.lock:
            book = self.ledger.books.get(session)
            if book is not None:
                self.look_for(book)
            self.tell_loop()

    def look_for(self, book: Book) -> None:
        """Notes where a session's cells are now, if it is away; the caller holds the lock."""
        residence = book.residence
        if residence.on_device:
            return
        residence.place, residence.fetching = self.vault.where(book.key), False
        if residence.place == "log" and not residence.log.complete:
            self.outcomes.close(book, "its cells were lost, and so was what they were made of")

    def _gauges(self, now_s: float) -> Gauges:
        books = tuple(self.ledger.books.values())
        room, size = self.ledger.room, self.limits.layout.block_cells
        asks = [ask.run for book in books for ask in book.asks.values()]
        oldest_s = [one for book in books if (one := book.oldest_s) is not None]
        return Gauges(
            sessions=sum(book.stands_for is None for book in books),
            pending_entries=sum(book.pending for book in books),
            pending_tokens=sum(book.pending_tokens for book in books),
            asks_waiting=sum(not run.begun for run in asks),
            asks_running=sum(run.begun for run in asks),
            flash_queries=sum(len(book.flash) for book in books),
            flash_stale=sum(book.flash.stale for book in books),
            oldest_lag_s=now_s - min(oldest_s, default=now_s),
            compilations=self._executor.compilations() - self._compiled_before,
            on_device=self.ledger.room.on_device,
            cells=room.blocks * size,
            cells_held=self.ledger.tables.primary.held * size,
            cells_free=max(0, room.free) * size,
            cells_firm=room.firm * size,
            prefix_cells=len(self.ledger.prefixes) * size,
            host_bytes=self.vault.bytes,
        )


def refusal(error: ClosedError) -> ClosedError:
    """The same error anew: each raising adds to an error's traceback."""
    fresh = type(error)(str(error))
    fresh.__cause__ = error.__cause__
    return fresh
