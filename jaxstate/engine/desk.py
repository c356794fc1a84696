"""Where clients' calls meet the engine's loop: the books, the lock, and what waits to be done.

Comes in: tokens, questions, registrations, from any thread. Goes out: futures, receipts, records;
the loop is woken. Does not know: text (`asking` makes tokens of it), devices, how steps are
planned and run (`loop`).

The lock is held for bookkeeping only: a client never waits for the device, except for what it asked
for.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar, cast

from jaxstate.engine.config import EngineConfig
from jaxstate.engine.executor import Executor, Saved, Tokens
from jaxstate.engine.flash import Registered
from jaxstate.engine.ingest import Offer, QueuePolicy
from jaxstate.engine.jobs import Job
from jaxstate.engine.ledger import Ask, Book, Ledger
from jaxstate.engine.metrics import EngineMetrics, Gauges, MetricsRecorder
from jaxstate.engine.outcomes import Delivery, Outcomes
from jaxstate.engine.runs import Asked, Run
from jaxstate.engine.subscription import FlashMode, Subscription
from jaxstate.engine.values import Connected
from jaxstate.engine.waiting import AskFuture, wait_for
from jaxstate.errors import (
    BudgetExceeded,
    CapacityExceeded,
    ClosedError,
    InvalidInput,
    QueueFull,
)

T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Desk:
    """Everything that clients and the loop share.

    Args:
        executor: for its limits; jobs that call it are left to the loop.
        cells: capacity of all sessions together.
        config: bounds and shares.
        clock: monotonic seconds.
        on_thread: runs a user's callback somewhere else than in the loop.

    Attributes:
        lock: guards all of it; `wake` is its condition.
        news: whether anything changed since the loop last looked.
        ended: what every call raises once the engine is closed.
        gone: sessions that the executor may forget.
        loop_thread: the thread that must never wait for the engine; None if a test turns the loop.
    """

    def __init__(
        self,
        executor: Executor,
        cells: int,
        config: EngineConfig,
        clock: Callable[[], float],
        on_thread: Callable[[Delivery], None],
    ) -> None:
        self.cells = cells
        self.config = config
        self.limits = executor.limits
        self.clock = clock
        self.lock = threading.Lock()
        self.wake = threading.Condition(self.lock)
        self.news = False
        self.ended: ClosedError | None = None
        self.gone: list[int] = []
        self.loop_thread: int | None = None
        self.jobs: deque[Job[object]] = deque()
        self.ledger = Ledger(executor, config)
        self.recorder = MetricsRecorder(clock())
        self.outcomes = Outcomes(
            self.ledger, self.recorder, on_thread, lambda book: self.gone.append(book.key)
        )
        self.session_bytes = executor.session_bytes()
        self._executor = executor
        self._compiled_before = executor.compilations()

    @contextmanager
    def changing(self) -> Iterator[Ledger]:
        """The books, to change them; wakes the loop.

        Raises:
            ClosedError: the engine is closed.
        """
        with self.lock:
            if self.ended is not None:
                raise refusal(self.ended)
            yield self.ledger
            self.tell_loop()

    def check_may_wait(self) -> None:
        """Refuses to wait on the engine's own thread, which would wait for itself for ever.

        Raises:
            InvalidInput: this is that thread.
        """
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
        if not future.done():
            try:
                self.check_may_wait()
            except InvalidInput:
                future.cancel()
                raise
        return wait_for(future, timeout, what)

    def tell_loop(self) -> None:
        """There is something to look at; the caller holds the lock."""
        self.news = True
        self.wake.notify_all()

    def open(self, session_id: str | None, opening: Tokens, policy: QueuePolicy) -> Book:
        """A new session that will read its opening first.

        Args:
            session_id: not in use; None for one of our own.
            opening: int32 [n], n >= 0.
            policy: of its queue.

        Raises:
            InvalidInput: the id is in use or malformed.
            BudgetExceeded: the engine's cells are spoken for.
            CapacityExceeded: the opening does not fit into a session.
        """
        if len(opening) > self.limits.session_cells:
            raise CapacityExceeded(
                f"the opening has {len(opening)} tokens; a session of this engine holds "
                f"{self.limits.session_cells} (session_cells=)"
            )
        with self.changing():
            book = self._new_book(session_id, policy)
            book.queue.open_with(opening)
            book.opens = True
            self._create(book, lambda: self._executor.open(book.key), lambda _: None)
        return book

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a saved session, on the caller's thread."""
        return self._executor.load(path)

    def restore(
        self, session_id: str | None, saved: Saved, version: int, policy: QueuePolicy
    ) -> tuple[Book, Future[int]]:
        """A session from a saved one; the future ends when it is there, or fails as it failed."""
        with self.changing():
            book = self._new_book(session_id, policy)

            def booked(cells: int) -> None:
                self._go_on(book, version, cells)

            return book, self._create(book, lambda: saved.place(book.key), booked)

    def fork(self, parent: Book, session_id: str | None) -> tuple[Book, Future[None]]:
        """A session that has read what another has at that moment, and goes its own way."""
        with self.changing():
            parent.check_open()
            book = self._new_book(session_id, parent.queue.policy)
            copy = lambda: self._executor.copy(parent.key, book.key)  # noqa: E731

            def booked(_: None) -> None:
                self._go_on(book, parent.version, parent.launched_cells)

            return book, self._create(book, copy, booked, border=parent)

    def capture(
        self, book: Book, notes: dict[str, str | int]
    ) -> Future[Callable[[str | os.PathLike[str]], None]]:
        """Copies a session to the host at a version's border, which the notes get as "entries"; the
        future's result writes it, on whatever thread."""
        with self.changing():
            book.check_open()

            def act() -> Callable[[str | os.PathLike[str]], None]:
                return self._executor.capture(book.key, {**notes, "entries": book.version})

            future: Future[Callable[[str | os.PathLike[str]], None]] = Future()
            self._add(Job(act=act, booked=_nothing, future=future, session=book, border=book))
            return future

    def close_session(self, book: Book, reason: str) -> None:
        """Ends a session; its asks, waiters and subscribers hear of it."""
        with self.lock:
            self.outcomes.close(book, reason)
            self.tell_loop()

    def push(
        self, book: Book, entries: Sequence[tuple[Tokens, Hashable | None]]
    ) -> tuple[Offer, int] | Future[None]:
        """Entries into the queue; a future to wait for if there is no room now."""
        with self.changing():
            book.check_open()
            offer = book.queue.offer(entries, self.clock(), book.free_cells(self.limits))
            if offer is None:
                future: Future[None] = Future()
                book.room_waiters = [one for one in book.room_waiters if not one.cancelled()]
                book.room_waiters.append(future)
                return future
            self.recorder.count("entries_pushed", len(entries))
            dropped = sum(span.last - span.first + 1 for span in offer.dropped)
            self.recorder.count("entries_dropped", dropped)
            return offer, book.queue.pending

    def wait(self, book: Book, version: int) -> Future[None]:
        """Ends once the session has that version."""
        future: Future[None] = Future()
        with self.changing():
            book.check_open()
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
            ledger.fresh_waiters.append((book, future))
        return future

    def ask(self, book: Book, asked: Asked, min_version: int, arrived_s: float) -> AskFuture:
        """A question; the future can be cancelled at any time."""
        future = AskFuture()
        with self.changing():
            book.check_open()
            if len(book.asks) >= self.config.waiting_asks:
                raise QueueFull(
                    f"session {book.id!r} has {len(book.asks)} asks waiting, as many as it may; "
                    "wait for some, or raise waiting_asks in EngineConfig"
                )
            run = Run(self.ledger.new_key(), "ask", asked, arrived_s)
            book.asks[run.key] = Ask(run=run, future=future, min_version=min_version)
        future.add_done_callback(lambda _: self._if_cancelled(book, run.key, future))
        return future

    def _if_cancelled(self, book: Book, key: int, future: AskFuture) -> None:
        if future.cancelled():
            with self.lock:
                self.outcomes.cancelled(book, key, timed_out=future.timed_out)
                self.tell_loop()

    def register(self, book: Book, one: Registered) -> None:
        """A flash query."""
        with self.changing():
            book.check_open()
            book.flash.add(one, self.clock())

    def unregister(self, book: Book, flash_id: str) -> None:
        """No longer a flash query; its answer under way is forgotten."""
        with self.changing():
            book.check_open()
            book.flash.remove(flash_id)

    def warm(self, book: Book, asked: Asked) -> None:
        """A warm question."""
        with self.changing():
            book.check_open()
            book.warm.add(asked)

    def unwarm(self, book: Book, question: str) -> None:
        """No longer a warm question."""
        with self.changing():
            book.check_open()
            book.warm.remove(question)

    def subscribe(self, book: Book, flash: FlashMode) -> Subscription:
        """Events from now on, the first of them `Connected`."""
        subscription = Subscription(self.config.events_limit, flash)
        with self.changing():
            book.check_open()
            subscription.offer(
                Connected(session=book.id, version=book.version, pending=book.queue.pending)
            )
            book.subscriptions.append(subscription)
        return subscription

    def metrics(self) -> EngineMetrics:
        """Everything counted so far."""
        with self.lock:
            now_s = self.clock()
            return self.recorder.snapshot(now_s, self._gauges(now_s))

    def _new_book(self, session_id: str | None, policy: QueuePolicy) -> Book:
        ledger, per_session = self.ledger, self.limits.session_cells
        name = self._free_id() if session_id is None else session_id
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise InvalidInput(f"id={name!r} must be 1 to 128 of A-Z a-z 0-9 _ . -")
        if name in ledger.by_id:
            raise InvalidInput(f"session {name!r} is open already: engine.session({name!r})")
        if (len(ledger.books) + 1) * per_session > self.cells:
            raise BudgetExceeded(
                f"{len(ledger.books)} sessions of {per_session} cells are open and the engine has "
                f"{self.cells} cells; close one, or start the engine with more cells= or smaller "
                "session_cells="
            )
        book = Book(ledger.new_key(), name, policy, self.config)
        ledger.books[book.key] = ledger.by_id[name] = book
        return book

    def _free_id(self) -> str:
        return next(name for n in itertools.count(1) if (name := f"s{n}") not in self.ledger.by_id)

    def _create(
        self,
        book: Book,
        act: Callable[[], T],
        booked: Callable[[T], None],
        border: Book | None = None,
    ) -> Future[T]:
        def opened(result: T) -> None:
            book.opened = True
            booked(result)

        future: Future[T] = Future()
        self._add(
            Job(act=act, booked=opened, future=future, session=book, border=border, creates=True)
        )
        return future

    def _add(self, job: Job[T]) -> None:
        self.jobs.append(cast("Job[object]", job))
        if job.border is not None:
            job.border.border_jobs += 1

    def _go_on(self, book: Book, version: int, cells: int) -> None:
        """A session that did not begin with an opening stands at that version."""
        book.number_from(version)
        book.launched_cells = cells
        book.commit(version, cells, self.clock())
        self.outcomes.reached(book)

    def _gauges(self, now_s: float) -> Gauges:
        books = tuple(self.ledger.books.values())
        asks = [ask.run for book in books for ask in book.asks.values()]
        oldest_s = [one for book in books if (one := book.queue.oldest_s) is not None]
        return Gauges(
            sessions=len(books),
            pending_entries=sum(book.queue.pending for book in books),
            pending_tokens=sum(book.queue.pending_tokens for book in books),
            asks_waiting=sum(not run.begun for run in asks),
            asks_running=sum(run.begun for run in asks),
            flash_queries=sum(len(book.flash) for book in books),
            flash_stale=sum(book.flash.stale for book in books),
            oldest_lag_s=now_s - min(oldest_s, default=now_s),
            compilations=self._executor.compilations() - self._compiled_before,
        )


def refusal(error: ClosedError) -> ClosedError:
    """The same error anew: each raising adds to an error's traceback."""
    fresh = type(error)(str(error))
    fresh.__cause__ = error.__cause__
    return fresh


def _nothing(_: object) -> None:
    """Books nothing."""
