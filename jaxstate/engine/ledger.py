"""What the engine knows about its sessions: the bookkeeping that one lock guards.

Comes in: sessions, asks, commits. Goes out: the scheduler's view of them. Plain Python; does not
know: devices, threads, text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from jaxstate.engine.config import EngineConfig
from jaxstate.engine.executor import Executor, Limits
from jaxstate.engine.flash import FlashBook, Registered, WarmBook
from jaxstate.engine.ingest import IngestQueue, QueuePolicy
from jaxstate.engine.runs import Run
from jaxstate.engine.subscription import Subscription
from jaxstate.engine.values import Answer
from jaxstate.engine.views import RunView, SessionView, View, Work
from jaxstate.errors import ClosedError


@dataclass(slots=True, kw_only=True, eq=False)
class Ask:
    """A question that somebody waits for."""

    run: Run
    future: Future[Answer]
    min_version: int


class TailBlocks:
    """Blocks for the private cells of questions under way.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...]:
        """So many free ones; the caller has looked that there are."""
        taken = self._free[-count:]
        del self._free[-count:]
        return tuple(taken)

    def give_back(self, blocks: Iterable[int]) -> None:
        """Free again."""
        self._free.extend(blocks)


class Book:
    """One session.

    Attributes:
        key: its name in the executor.
        id: its name for users.
        version: sequence number of the last committed entry; -1 before the opening is read.
        seen_cells: committed cells at that version.
        launched_cells: cells once every launched step is done; more than `seen_cells` while an
            entry is half read.
        committed_s: when the version was committed.
        asks: all, in the order of arrival; `asks_begun` are those of them that are under way.
        asks_served, ingest_served: numbers of the steps that last began an ask, and last read.
        border_jobs: forks and saves that wait for the end of the entry that is half read.
        opens: whether it begins with an opening, and is not made from another or a saved one.
    """

    def __init__(
        self, key: int, session_id: str, policy: QueuePolicy, config: EngineConfig
    ) -> None:
        self.key = key
        self.id = session_id
        self.queue = IngestQueue(config.queue_entries, policy)
        self._queue_entries = config.queue_entries
        self.flash = FlashBook(config.flash_limit)
        self.warm = WarmBook(config.warm_limit)
        self.version = -1
        self.seen_cells = 0
        self.launched_cells = 0
        self.committed_s = 0.0
        self.ingest_served = 0
        self.opened = False
        self.opens = False
        self.border_jobs = 0
        self.closed_because: str | None = None
        self.asks: dict[int, Ask] = {}
        self.asks_begun: dict[int, Ask] = {}
        self.asks_served = 0
        self.flash_runs: dict[int, tuple[Run, Registered]] = {}
        self.waiters: list[tuple[int, Future[None]]] = []
        self.room_waiters: list[Future[None]] = []
        self.subscriptions: list[Subscription] = []

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.closed_because is not None

    def check_open(self) -> None:
        """Refuses a session that is closed.

        Raises:
            ClosedError: with the reason.
        """
        if self.closed_because is not None:
            raise ClosedError(f"session {self.id!r} is closed: {self.closed_because}")

    @property
    def busy(self) -> bool:
        """Whether there may be something to do."""
        waits = bool(self.asks or self.flash_runs) or not self.queue.empty
        return self.opened and (waits or self.flash.stale > 0 or bool(self.warm.due()))

    def free_cells(self, limits: Limits) -> int:
        """Cells that neither are committed nor are being read."""
        return limits.session_cells - self.launched_cells

    def holding(self) -> Iterator[Run]:
        """Questions under way that may not lose what they have."""
        yield from (ask.run for ask in self.asks_begun.values())
        yield from (run for run, _ in self.flash_runs.values() if run.holds)

    def number_from(self, version: int) -> None:
        """Entries 1 .. `version` were read elsewhere: those pushed from now on follow them."""
        assert self.queue.empty, "nobody can push before a session is there"
        self.queue = IngestQueue(self._queue_entries, self.queue.policy, last=version)

    @property
    def usable(self) -> bool:
        """Whether users may see it: not before what it is made from is there."""
        return self.version >= 0 or self.opens

    @property
    def up_to_date(self) -> bool:
        """Whether everything pushed is committed, and every registered question settled there."""
        return self.version >= self.queue.last and self.flash.stale == 0

    def commit(self, version: int, seen_cells: int, now_s: float) -> None:
        """A new version: whatever was answered before is out of date."""
        self.version, self.seen_cells, self.committed_s = version, seen_cells, now_s
        self.flash.committed(version, now_s)
        self.warm.version = version


class Ledger:
    """All sessions, and what they share.

    Args:
        limits: of the executor.
        config: bounds.
    """

    def __init__(self, executor: Executor, config: EngineConfig) -> None:
        self.limits = executor.limits
        self.config = config
        self.books: dict[int, Book] = {}
        self.by_id: dict[str, Book] = {}
        self.blocks = TailBlocks(self.limits.tail_blocks)
        self.waited: dict[Work, int] = {}
        self.steps = 0
        self.asks_began = self.flash_lent = False
        self.fresh_waiters: list[tuple[Book, Future[None]]] = []
        self._keys = 0
        self._readable_until = executor.readable_until

    def view(self, now_s: float) -> View:
        """What the scheduler is to see."""
        active = [self._session_view(book, now_s) for book in self.books.values() if book.busy]
        dues = [book.flash.next_due_s(now_s) for book in self.books.values()]
        return View(
            sessions=tuple(active),
            free_blocks=len(self.blocks),
            evictable_blocks=sum(len(run.blocks) for _, run in self.evictable()),
            waited=dict(self.waited),
            asks_began=self.asks_began,
            flash_lent=self.flash_lent,
            rows=self.limits.rows,
            row_sizes=self.limits.row_sizes,
            start_rows=self.limits.start_rows,
            extend_tokens=self.limits.extend_tokens,
            next_due_s=min((due for due in dues if due is not None), default=None),
        )

    def evictable(self) -> list[tuple[Book, Run]]:
        """Registered questions that an ask may have the blocks of, the last begun first."""
        found = [
            (book, run)
            for book in self.books.values()
            for run, _ in book.flash_runs.values()
            if not run.holds
        ]
        return sorted(found, key=lambda one: -one[1].key)

    def usable(self) -> list[Book]:
        """Sessions that users may see, in the order of opening."""
        return [book for book in self.books.values() if book.usable]

    def new_key(self) -> int:
        """A name for a run or a session that nothing has had."""
        self._keys += 1
        return self._keys

    def let_go_first(self, works: frozenset[Work], runnable: frozenset[Work]) -> None:
        """Counts the step that serves `works` against the others that could have run."""
        for work in runnable:
            self.waited[work] = self.waited.get(work, 0) + 1
        for work in works:
            self.waited[work] = 0

    def readable(self, seen_cells: int, length: int) -> bool:
        """Whether so many cells can still be looked at in a session of that length."""
        return length <= self._readable_until(seen_cells)

    def _session_view(self, book: Book, now_s: float) -> SessionView:
        lost = not self.readable(book.seen_cells, book.launched_cells)
        due = [] if lost else list(book.flash.due(now_s))
        growth = self._growth(book)
        # Asks that begin now would, one after the other, keep the entry half read for ever.
        stuck = book.queue.partly_read and growth <= 0
        return SessionView(
            key=book.key,
            seen_cells=book.seen_cells,
            ingest_tokens=book.queue.unread_tokens,
            ingest_entries=not book.queue.empty,
            ingest_since_s=book.queue.oldest_s or 0.0,
            ingest_served=book.ingest_served,
            growth_tokens=growth,
            asks_served=book.asks_served,
            runs=tuple(self._run_views(book, blocked=lost or stuck)),
            flash_due=len(due),
            warm_due=0 if lost else len(book.warm.due()),
            flash_rows=len(book.flash_runs),
            flash_blocks=due[0].asked.blocks(self.limits) if due else 1,
            flash_since_s=book.flash.since_s,
            flash_served=book.flash.served,
            flash_overdue=self._flash_overdue(book, now_s),
            warm_served=book.warm.served,
        )

    def _flash_overdue(self, book: Book, now_s: float) -> bool:
        holding = any(run.holds for run, _ in book.flash_runs.values())
        return holding or book.flash.is_overdue(now_s)

    def _growth(self, book: Book) -> int:
        """Tokens that can be read before a question that may not loses sight of a cell."""
        ends = (self._readable_until(run.seen_cells) for run in book.holding())
        return min(ends, default=1 << 30) - book.launched_cells

    def _run_views(self, book: Book, *, blocked: bool) -> Iterator[RunView]:
        yield from self._waiting_views(book, blocked=blocked)
        begun = (ask.run for ask in book.asks_begun.values())
        for run in (*begun, *(run for run, _ in book.flash_runs.values())):
            if run.wants_step:
                yield self._run_view(book, run, blocked=False)

    def _waiting_views(self, book: Book, *, blocked: bool) -> Iterator[RunView]:
        """The oldest that could begin, no more than a step takes, and the oldest that could not."""
        ready, seen_blocked = 0, False
        for ask in book.asks.values():
            if ask.run.begun:
                continue
            waits = blocked or book.version < max(ask.min_version, 0)
            if not (waits and seen_blocked):
                yield self._run_view(book, ask.run, blocked=waits)
            ready, seen_blocked = ready + (not waits), seen_blocked or waits
            if ready == self.limits.rows:
                return

    def _run_view(self, book: Book, run: Run, *, blocked: bool) -> RunView:
        return RunView(
            key=run.key,
            work=run.work,
            stage=run.stage,
            arrived_s=run.arrived_s,
            served=run.served,
            seen_cells=run.seen_cells if run.begun else book.seen_cells,
            tokens=run.next_tokens(self.limits),
            blocks=len(run.blocks) if run.begun else run.asked.blocks(self.limits),
            blocked=blocked,
        )
