"""What the engine knows about its sessions: the bookkeeping that one lock guards.

Comes in: sessions, asks, commits. Goes out: the scheduler's view of them. Plain Python; does not
know: devices, threads, text.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from jaxstate.cells.prefixes import Link, PrefixCache
from jaxstate.cells.tables import TableBook
from jaxstate.engine.executor.protocol import Executor
from jaxstate.engine.memory.block_budget import Room
from jaxstate.engine.memory.swap_policy import Now, Swapper
from jaxstate.engine.requests.request import Run
from jaxstate.engine.scheduler.fairness import TenantShares
from jaxstate.engine.scheduler.views import RunView, SessionView, View
from jaxstate.engine.sessions.record import Ask, Book, TailBlocks
from jaxstate.engine.sessions.residence import Residence
from jaxstate.engine.sessions.token_log import Border
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import Work
from jaxstate.errors import InvalidInput, VersionUnavailable
from jaxstate.records import checked_int

# A tenant with asks under way leaves one tail block in so many to others, where there are others.
OTHERS_SHARE = 8


# Of reading time that was not lent, no more is saved up than this.
_LENDABLE_S = 5.0


class Ledger:
    """All sessions, and what they share: the pool of cells, tail blocks, prefixes, the device.

    Args:
        executor: for its limits.
        config: bounds.
    """

    def __init__(self, executor: Executor, config: EngineConfig) -> None:
        self.limits = executor.limits
        self.config = config
        self.books: dict[int, Book] = {}
        self.by_id: dict[str, Book] = {}
        # Sessions of the journal that could not be brought back, and why.
        self.lost: dict[str, str] = {}
        self.blocks = TailBlocks(self.limits.tail_blocks)
        self.tables = TableBook(self.limits.layout)
        self.prefixes = PrefixCache(self.tables, executor.fingerprint)
        self.shares = TenantShares(config.tenants)
        self.room = Room(
            self.tables,
            sessions=self.limits.sessions,
            quota_cells=lambda tenant: self.shares.of(tenant).quota_cells,
        )
        self.swapper = Swapper(
            self.room,
            patience=config.scheduling.room_patience,
            weight=lambda tenant: self.shares.of(tenant).weight,
        )
        # Which session computes a block of a prefix now, so that the others wait for it.
        self.computing: dict[bytes, int] = {}
        self.waited: dict[Work, int] = {}
        self.steps = 0
        self.asks_began = self.flash_lent = False
        # What reading has had of the device's time beyond what it lent to flash queries.
        self._lendable_s = 0.0
        self.fresh_waiters: list[tuple[Book, Future[None]]] = []
        self._keys = 0
        self._readable_until = executor.readable_until

    def view(self, now_s: float) -> View:
        """What the scheduler is to see."""
        on_device = [book for book in self.books.values() if book.residence.on_device and book.busy]
        self.shares.at_work(_tenants_at_work(on_device, now_s))
        leaves = self._leaves_blocks()
        active = [
            self._session_view(book, now_s, leaves.get(book.residence.tenant, 0))
            for book in on_device
        ]
        stale = (book.flash for book in self.books.values() if book.flash.stale)
        dues = [flash.next_due_s(now_s) for flash in stale]
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
            step_sessions=self.limits.step_sessions,
            session_rows=self.limits.session_rows,
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

    def now(self, time_s: float) -> Now:
        """The last step, and that time."""
        return Now(self.steps, time_s)

    def charge(self, book: Book, tokens: int, seen_cells: int) -> None:
        """A step computes so many tokens for a session, and reads so many cells."""
        self.shares.charge(book.residence.tenant, tokens, seen_cells)

    def begin_openings(self) -> int:
        """Begins sessions that have read nothing with what is kept of their openings. Where another
        session computes what comes next they wait: many that open with one prefix compute it once.

        Returns:
            Tokens that need not be read.
        """
        shared = 0
        for book in self.books.values():
            residence = book.residence
            if residence.on_device and residence.chain and not residence.table.cells:
                missing = self._missing_link(residence.chain)
                owner = book.key if missing is None else self.computing.get(missing.name, book.key)
                residence.waits_for_prefix = owner != book.key
                if not residence.waits_for_prefix:
                    shared += self._begin_opening(book)
        return shared

    def _begin_opening(self, book: Book) -> int:
        residence = book.residence
        cells = self.prefixes.adopt(residence.table, residence.chain)
        if cells > len(residence.log):
            residence.log.append(book.queue.skip(cells - len(residence.log)))
        residence.there_cells = cells
        residence.landed_cells = max(residence.landed_cells, cells)
        whole = cells // self.limits.layout.block_cells
        self.computing.update({link.name: book.key for link in residence.chain[whole:]})
        self.room.update(book)
        return cells

    def _missing_link(self, chain: tuple[Link, ...]) -> Link | None:
        return next((link for link in chain if not self.prefixes.has(link)), None)

    def keep_prefix(self, book: Book, start: int, end: int) -> None:
        """Cells start .. end of a session are to be computed: keeps the blocks of its opening among
        them, for nobody to find before `prefix_ready`."""
        size, residence = self.limits.layout.block_cells, book.residence
        for index in range(start // size, min(end // size, len(residence.chain))):
            self.prefixes.keep(residence.chain, index, residence.table)

    def prefix_ready(self, book: Book, start: int, end: int) -> None:
        """They were computed."""
        size, chain = self.limits.layout.block_cells, book.residence.chain
        for link in chain[start // size : end // size]:
            self.prefixes.ready(link, book.residence.table)
            if self.computing.get(link.name) == book.key:
                del self.computing[link.name]

    def stop_computing(self, book: Book) -> None:
        """A session does not go on reading its opening: others may."""
        for link in book.residence.chain:
            if self.computing.get(link.name) == book.key:
                del self.computing[link.name]

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

    def holds(self, residence: Residence, cells: int) -> bool:
        """Whether a session still has all that who sees so many of its cells needs, wherever they
        are. Who sees more finds it as well."""
        return cells >= residence.oldest_cells and self.readable(cells, residence.cells)

    def oldest_held(self, residence: Residence) -> int:
        """The fewest cells of which that is so; one more than it has if there are none."""
        counts = range(residence.cells + 1)
        return bisect_left(counts, True, key=lambda cells: self.holds(residence, cells))

    def oldest_copied(self, readable_cells: int) -> int:
        """`Residence.oldest_cells` of a copy that was made for who sees so many cells."""
        turns = self._readable_until(0) < self.limits.session_cells
        return readable_cells if turns else 0

    def holds_up(self, book: Book, cells: int) -> bool:
        """Whether a session could not read on while a question looks at so many of its cells."""
        return self._readable_until(cells) <= book.residence.table.cells

    def _leaves_blocks(self) -> dict[str, int]:
        """Tail blocks that tenants with asks under way leave to the others, if there are any."""
        books = self.books.values()
        if len({book.residence.tenant for book in books}) < 2:
            return {}
        share = self.limits.tail_blocks // OTHERS_SHARE
        return {book.residence.tenant: share for book in books if book.asks_begun}

    def _session_view(self, book: Book, now_s: float, leaves_blocks: int) -> SessionView:
        residence = book.residence
        # Its version's cells are not all there: they are computed again, or were overwritten.
        launched = residence.table.cells
        lost = residence.missing > 0 or not self.readable(book.seen_cells, launched)
        leaves = residence.draining or residence.leaving
        rests = lost or leaves
        due = [] if rests else list(book.flash.due(now_s))
        growth = self._growth(book)
        # Asks that begin now would, one after the other, keep the entry half read for ever.
        stuck = book.queue.partly_read and growth <= 0
        tokens = residence.missing + book.queue.takeable_tokens
        readable = min(tokens, self.room.readable_tokens(book))
        waits = residence.missing > 0 or not book.queue.empty or book.stranded
        reads = waits and (tokens == 0 or readable > 0)
        return SessionView(
            key=book.key,
            seen_cells=book.seen_cells,
            tenant_work=self.shares.work(residence.tenant),
            leaves_blocks=leaves_blocks,
            ingest_tokens=readable,
            ingest_entries=reads and not (leaves or residence.waits_for_prefix),
            ingest_since_s=book.queue.oldest_s or 0.0,
            ingest_served=book.ingest_served,
            growth_tokens=growth,
            asks_served=book.asks_served,
            runs=tuple(
                self._run_views(
                    book,
                    blocked=rests or stuck,
                    past_blocked=residence.missing > 0 or leaves or stuck,
                    reads=reads,
                )
            ),
            flash_due=len(due),
            warm_due=0 if rests else len(book.warm.due()),
            flash_rows=len(book.flash_runs),
            flash_blocks=due[0].asked.blocks(self.limits) if due else 1,
            flash_since_s=book.flash.since_s,
            flash_served=book.flash.served,
            flash_overdue=self._flash_overdue(book, now_s),
            warm_served=book.warm.served,
        )

    def _flash_overdue(self, book: Book, now_s: float) -> bool:
        holding = any(run.holds for run, _ in book.flash_runs.values())
        if holding or book.flash.is_overdue(now_s):
            return True
        return self._lendable_s > 0 and book.flash.is_old(now_s)

    def step_done(self, works: frozenset[Work], device_s: float, *, lent: bool) -> None:
        """A step is done. Reading keeps half of the device: what is lent to flash queries whose
        answers are getting old is as much as it had, lately."""
        if lent:
            self._lendable_s -= device_s
        elif "ingest" in works:
            self._lendable_s = min(self._lendable_s + device_s, _LENDABLE_S)

    def _growth(self, book: Book) -> int:
        """Tokens that can be read before a question that may not loses sight of a cell."""
        ends = (self._readable_until(run.seen_cells) for run in book.holding())
        return min(ends, default=1 << 30) - book.residence.table.cells

    def _run_views(
        self, book: Book, *, blocked: bool, past_blocked: bool, reads: bool
    ) -> Iterator[RunView]:
        waits = functools.partial(
            self._waits, book, blocked=blocked, past_blocked=past_blocked, reads=reads
        )
        yield from self._waiting_views(book, waits)
        begun = (ask.run for ask in book.asks_begun.values())
        for run in (*begun, *(run for run, _ in book.flash_runs.values())):
            if run.wants_step:
                yield self._run_view(run, run.seen_cells, blocked=False)

    def _waits(
        self, book: Book, ask: Ask, *, blocked: bool, past_blocked: bool, reads: bool
    ) -> bool:
        """Whether an ask cannot begin yet. Those about earlier versions may keep the session from
        reading on; one after the other would do so for ever, so it reads in between."""
        if ask.as_of is None:
            return blocked or book.version < max(ask.min_version, 0)
        turn = book.ingest_served < book.past_served
        return past_blocked or (reads and turn and self.holds_up(book, ask.as_of.cells))

    def _waiting_views(self, book: Book, waits: Callable[[Ask], bool]) -> Iterator[RunView]:
        """The oldest that could begin, no more than a step takes, and the oldest that could not."""
        ready, seen_blocked = 0, False
        for ask in book.asks.values():
            if ask.run.begun:
                continue
            blocked = waits(ask)
            if not (blocked and seen_blocked):
                border = ask.as_of or book.border
                yield self._run_view(ask.run, border.cells, blocked=blocked)
            ready, seen_blocked = ready + (not blocked), seen_blocked or blocked
            if ready == self.limits.rows:
                return

    def _run_view(self, run: Run, seen_cells: int, *, blocked: bool) -> RunView:
        return RunView(
            key=run.key,
            work=run.work,
            stage=run.stage,
            arrived_s=run.arrived_s,
            served=run.served,
            seen_cells=seen_cells,
            tokens=run.next_tokens(self.limits),
            blocks=len(run.blocks) if run.begun else run.asked.blocks(self.limits),
            blocked=blocked,
        )


def _tenants_at_work(books: Iterable[Book], now_s: float) -> set[str]:
    """Those for whose sessions something could be done; one look at most for each that has it."""
    found: set[str] = set()
    for book in books:
        if book.residence.tenant not in found and book.has_work(now_s):
            found.add(book.residence.tenant)
    return found


def border_of(book: Book, name: str, version: int) -> Border:
    """Where a version of a session ends.

    Args:
        book: the session's.
        name: of the argument, for errors.
        version: as it was given.

    Raises:
        InvalidInput: the session has no such version.
        VersionUnavailable: whoever saved the session did not say where it ends.
    """
    number = checked_int(name, version)
    if book.version < 0:
        raise InvalidInput(
            f"{name}={version}: session {book.id!r} has no version before its opening is read; "
            "wait(0) waits for that"
        )
    if not 0 <= number <= book.version:
        raise InvalidInput(
            f"{name}={version}: session {book.id!r} has versions 0 to {book.version}; min_version= "
            "of ask, and wait(version), wait for later ones"
        )
    if number == book.version:
        return book.border
    cells = book.residence.log.border(number)
    if cells is None:
        raise VersionUnavailable(
            f"session {book.id!r} does not know where version {number} ends: it was restored from "
            f"a later one. The oldest version that it knows is {_oldest_known(book)}"
        )
    return Border(number, cells)


def check_rebuild(
    ledger: Ledger, book: Book, border: Border, rebuild_tokens: int, *, forks: bool = False
) -> None:
    """Refuses to compute a version again that takes more than the caller allows, or whose tokens
    nobody knows.

    Args:
        ledger: of the engine.
        book: the session's.
        border: the version, which the session no longer holds.
        rebuild_tokens: that may be computed.
        forks: it was to be forked.

    Raises:
        VersionUnavailable: with what is held, and what would help.
    """
    if not book.residence.log.complete or border.cells > rebuild_tokens:
        raise unavailable(ledger, book, border, forks=forks)


def unavailable(
    ledger: Ledger, book: Book, border: Border, *, forks: bool = False
) -> VersionUnavailable:
    """The error for a version that the session does not hold."""
    what = "be forked at" if forks else "be asked about"
    held = f"it can {what} {_oldest_held(ledger, book, forks=forks)} now"
    takes = (
        f"Computing it again takes {border.cells} tokens: rebuild_tokens={border.cells}, or more, "
        "allows that"
        if book.residence.log.complete
        else "It was saved without its tokens, so it cannot be computed again"
    )
    return VersionUnavailable(
        f"session {book.id!r} no longer holds version {border.version} ({border.cells} cells); "
        f"{held}. {takes}"
    )


def may_be_shared(ledger: Ledger, book: Book, border: Border) -> bool:
    """Whether a fork at that version can share the session's cells. Where it ends sooner than they
    do, its last token is read again, as a session's own always is: what the model had in mind after
    it (`SessionState.ready`) is kept only of the last cell."""
    residence = book.residence
    if border.cells in (0, residence.cells):
        return True
    return residence.log.complete and ledger.holds(residence, border.cells - 1)


def shared_cells(book: Book, border: Border) -> int:
    """How many cells such a fork shares."""
    whole = border.cells == book.residence.cells
    return border.cells if whole else max(0, border.cells - 1)


def _oldest_known(book: Book) -> int:
    first = book.residence.log.first_version(0)
    return book.version if first is None else min(first, book.version)


def _oldest_held(ledger: Ledger, book: Book, *, forks: bool) -> str:
    """The versions that it holds, in words."""
    residence = book.residence
    oldest = residence.log.first_version(ledger.oldest_held(residence) + forks)
    if oldest == book.version or (forks and not residence.log.complete):
        return f"version {book.version} alone"
    if oldest is None or oldest > book.version:
        return "none but its newest"
    return f"versions {oldest} to {book.version}"
