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
from jaxstate.engine.memory.block_budget import BlockBudget
from jaxstate.engine.memory.swap_policy import Now, SwapPolicy
from jaxstate.engine.requests.request import Request
from jaxstate.engine.scheduler.fairness import FairShare
from jaxstate.engine.scheduler.views import RequestView, SessionView, View
from jaxstate.engine.sessions.record import PendingAsk, SessionRecord, TailBlocks
from jaxstate.engine.sessions.residence import Residence
from jaxstate.engine.sessions.token_log import VersionEnd
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import Work
from jaxstate.errors import InvalidInput, VersionUnavailable
from jaxstate.records import checked_int

# A tenant with asks under way leaves one tail block in so many to others, where there are others.
OTHERS_SHARE = 8


# Of reading time that was not lent, no more is saved up than this.
_LENDABLE_S = 5.0


class EngineState:
    """All sessions, and what they share: the pool of cells, tail blocks, prefixes, the device.

    Args:
        executor: for its limits.
        config: bounds.
    """

    def __init__(self, executor: Executor, config: EngineConfig) -> None:
        self.limits = executor.limits
        self.config = config
        self.records: dict[int, SessionRecord] = {}
        self.by_id: dict[str, SessionRecord] = {}
        # Sessions of the journal that could not be brought back, and why.
        self.lost: dict[str, str] = {}
        self.blocks = TailBlocks(self.limits.tail_blocks)
        self.tables = TableBook(self.limits.layout)
        self.prefixes = PrefixCache(self.tables, executor.fingerprint)
        self.shares = FairShare(config.tenants)
        self.budget = BlockBudget(
            self.tables,
            sessions=self.limits.sessions,
            quota_cells=lambda tenant: self.shares.of(tenant).quota_cells,
        )
        self.swapper = SwapPolicy(
            self.budget,
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
        self.fresh_waiters: list[tuple[SessionRecord, Future[None]]] = []
        self._keys = 0
        self._readable_until = executor.readable_until

    def view(self, now_s: float) -> View:
        """What the scheduler is to see."""
        on_device = [
            record for record in self.records.values() if record.residence.on_device and record.busy
        ]
        self.shares.at_work(_tenants_at_work(on_device, now_s))
        leaves = self._leaves_blocks()
        active = [
            self._session_view(record, now_s, leaves.get(record.residence.tenant, 0))
            for record in on_device
        ]
        stale = (record.flash for record in self.records.values() if record.flash.stale)
        dues = [flash.next_due_s(now_s) for flash in stale]
        return View(
            sessions=tuple(active),
            free_blocks=len(self.blocks),
            evictable_blocks=sum(len(request.blocks) for _, request in self.evictable()),
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

    def evictable(self) -> list[tuple[SessionRecord, Request]]:
        """Registered questions that an ask may have the blocks of, the last begun first."""
        found = [
            (record, request)
            for record in self.records.values()
            for request, _ in record.flash_requests.values()
            if not request.holds
        ]
        return sorted(found, key=lambda one: -one[1].key)

    def now(self, time_s: float) -> Now:
        """The last step, and that time."""
        return Now(self.steps, time_s)

    def charge(self, record: SessionRecord, tokens: int, seen_cells: int) -> None:
        """A step computes so many tokens for a session, and reads so many cells."""
        self.shares.charge(record.residence.tenant, tokens, seen_cells)

    def begin_openings(self) -> int:
        """Begins sessions that have read nothing with what is kept of their openings. Where another
        session computes what comes next they wait: many that open with one prefix compute it once.

        Returns:
            Tokens that need not be read.
        """
        shared = 0
        for record in self.records.values():
            residence = record.residence
            if residence.on_device and residence.chain and not residence.table.cells:
                missing = self._missing_link(residence.chain)
                owner = (
                    record.key if missing is None else self.computing.get(missing.name, record.key)
                )
                residence.waits_for_prefix = owner != record.key
                if not residence.waits_for_prefix:
                    shared += self._begin_opening(record)
        return shared

    def _begin_opening(self, record: SessionRecord) -> int:
        residence = record.residence
        cells = self.prefixes.adopt(residence.table, residence.chain)
        if cells > len(residence.log):
            residence.log.append(record.queue.skip(cells - len(residence.log)))
        residence.there_cells = cells
        residence.landed_cells = max(residence.landed_cells, cells)
        whole = cells // self.limits.layout.block_cells
        self.computing.update({link.name: record.key for link in residence.chain[whole:]})
        self.budget.update(record)
        return cells

    def _missing_link(self, chain: tuple[Link, ...]) -> Link | None:
        return next((link for link in chain if not self.prefixes.has(link)), None)

    def keep_prefix(self, record: SessionRecord, start: int, end: int) -> None:
        """Cells start .. end of a session are to be computed: keeps the blocks of its opening among
        them, for nobody to find before `prefix_ready`."""
        size, residence = self.limits.layout.block_cells, record.residence
        for index in range(start // size, min(end // size, len(residence.chain))):
            self.prefixes.keep(residence.chain, index, residence.table)

    def prefix_ready(self, record: SessionRecord, start: int, end: int) -> None:
        """They were computed."""
        size, chain = self.limits.layout.block_cells, record.residence.chain
        for link in chain[start // size : end // size]:
            self.prefixes.ready(link, record.residence.table)
            if self.computing.get(link.name) == record.key:
                del self.computing[link.name]

    def stop_computing(self, record: SessionRecord) -> None:
        """A session does not go on reading its opening: others may."""
        for link in record.residence.chain:
            if self.computing.get(link.name) == record.key:
                del self.computing[link.name]

    def usable(self) -> list[SessionRecord]:
        """Sessions that users may see, in the order of opening."""
        return [record for record in self.records.values() if record.usable]

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

    def holds_up(self, record: SessionRecord, cells: int) -> bool:
        """Whether a session could not read on while a question looks at so many of its cells."""
        return self._readable_until(cells) <= record.residence.table.cells

    def _leaves_blocks(self) -> dict[str, int]:
        """Tail blocks that tenants with asks under way leave to the others, if there are any."""
        records = self.records.values()
        if len({record.residence.tenant for record in records}) < 2:
            return {}
        share = self.limits.tail_blocks // OTHERS_SHARE
        return {record.residence.tenant: share for record in records if record.asks_begun}

    def _session_view(self, record: SessionRecord, now_s: float, leaves_blocks: int) -> SessionView:
        residence = record.residence
        # Its version's cells are not all there: they are computed again, or were overwritten.
        launched = residence.table.cells
        lost = residence.missing > 0 or not self.readable(record.seen_cells, launched)
        leaves = residence.draining or residence.leaving
        rests = lost or leaves
        due = [] if rests else list(record.flash.due(now_s))
        growth = self._growth(record)
        # Asks that begin now would, one after the other, keep the entry half read for ever.
        stuck = record.queue.partly_read and growth <= 0
        tokens = residence.missing + record.queue.takeable_tokens
        readable = min(tokens, self.budget.readable_tokens(record))
        waits = residence.missing > 0 or not record.queue.empty or record.stranded
        reads = waits and (tokens == 0 or readable > 0)
        return SessionView(
            key=record.key,
            seen_cells=record.seen_cells,
            tenant_work=self.shares.work(residence.tenant),
            leaves_blocks=leaves_blocks,
            ingest_tokens=readable,
            ingest_entries=reads and not (leaves or residence.waits_for_prefix),
            ingest_since_s=record.queue.oldest_s or 0.0,
            ingest_served=record.ingest_served,
            growth_tokens=growth,
            asks_served=record.asks_served,
            requests=tuple(
                self._run_views(
                    record,
                    blocked=rests or stuck,
                    past_blocked=residence.missing > 0 or leaves or stuck,
                    reads=reads,
                )
            ),
            flash_due=len(due),
            flash_rows=len(record.flash_requests),
            flash_blocks=due[0].asked.blocks(self.limits) if due else 1,
            flash_since_s=record.flash.since_s,
            flash_served=record.flash.served,
            flash_overdue=self._flash_overdue(record, now_s),
        )

    def _flash_overdue(self, record: SessionRecord, now_s: float) -> bool:
        holding = any(request.holds for request, _ in record.flash_requests.values())
        if holding or record.flash.is_overdue(now_s):
            return True
        return self._lendable_s > 0 and record.flash.is_old(now_s)

    def step_done(self, works: frozenset[Work], device_s: float, *, lent: bool) -> None:
        """A step is done. Reading keeps half of the device: what is lent to flash queries whose
        answers are getting old is as much as it had, lately."""
        if lent:
            self._lendable_s -= device_s
        elif "ingest" in works:
            self._lendable_s = min(self._lendable_s + device_s, _LENDABLE_S)

    def _growth(self, record: SessionRecord) -> int:
        """Tokens that can be read before a question that may not loses sight of a cell."""
        ends = (self._readable_until(request.seen_cells) for request in record.holding())
        return min(ends, default=1 << 30) - record.residence.table.cells

    def _run_views(
        self, record: SessionRecord, *, blocked: bool, past_blocked: bool, reads: bool
    ) -> Iterator[RequestView]:
        waits = functools.partial(
            self._waits, record, blocked=blocked, past_blocked=past_blocked, reads=reads
        )
        yield from self._waiting_views(record, waits)
        begun = (ask.request for ask in record.asks_begun.values())
        for request in (*begun, *(request for request, _ in record.flash_requests.values())):
            if request.wants_step:
                yield self._run_view(request, request.seen_cells, blocked=False)

    def _waits(
        self,
        record: SessionRecord,
        ask: PendingAsk,
        *,
        blocked: bool,
        past_blocked: bool,
        reads: bool,
    ) -> bool:
        """Whether an ask cannot begin yet. Those about earlier versions may keep the session from
        reading on; one after the other would do so for ever, so it reads in between."""
        if ask.as_of is None:
            return blocked or record.version < max(ask.min_version, 0)
        turn = record.ingest_served < record.past_served
        return past_blocked or (reads and turn and self.holds_up(record, ask.as_of.cells))

    def _waiting_views(
        self, record: SessionRecord, waits: Callable[[PendingAsk], bool]
    ) -> Iterator[RequestView]:
        """The oldest that could begin, no more than a step takes, and the oldest that could not."""
        ready, seen_blocked = 0, False
        for ask in record.asks.values():
            if ask.request.begun:
                continue
            blocked = waits(ask)
            if not (blocked and seen_blocked):
                version_end = ask.as_of or record.version_end
                yield self._run_view(ask.request, version_end.cells, blocked=blocked)
            ready, seen_blocked = ready + (not blocked), seen_blocked or blocked
            if ready == self.limits.rows:
                return

    def _run_view(self, request: Request, seen_cells: int, *, blocked: bool) -> RequestView:
        return RequestView(
            key=request.key,
            work=request.work,
            stage=request.stage,
            arrived_s=request.arrived_s,
            served=request.served,
            seen_cells=seen_cells,
            tokens=request.next_tokens(self.limits),
            blocks=len(request.blocks) if request.begun else request.asked.blocks(self.limits),
            blocked=blocked,
        )


def _tenants_at_work(records: Iterable[SessionRecord], now_s: float) -> set[str]:
    """Those for whose sessions something could be done; one look at most for each that has it."""
    found: set[str] = set()
    for record in records:
        if record.residence.tenant not in found and record.has_work(now_s):
            found.add(record.residence.tenant)
    return found


def border_of(record: SessionRecord, name: str, version: int) -> VersionEnd:
    """Where a version of a session ends.

    Args:
        record: the session's.
        name: of the argument, for errors.
        version: as it was given.

    Raises:
        InvalidInput: the session has no such version.
        VersionUnavailable: whoever saved the session did not say where it ends.
    """
    number = checked_int(name, version)
    if record.version < 0:
        raise InvalidInput(
            f"{name}={version}: session {record.id!r} has no version before its opening is read; "
            "wait(0) waits for that"
        )
    if not 0 <= number <= record.version:
        raise InvalidInput(
            f"{name}={version}: session {record.id!r} has versions 0 to {record.version}; "
            "min_version= of ask, and wait(version), wait for later ones"
        )
    if number == record.version:
        return record.version_end
    cells = record.residence.log.version_end(number)
    if cells is None:
        raise VersionUnavailable(
            f"session {record.id!r} does not know where version {number} ends: it was restored "
            f"from a later one. The oldest version that it knows is {_oldest_known(record)}"
        )
    return VersionEnd(number, cells)


def unavailable(
    state: EngineState, record: SessionRecord, version_end: VersionEnd, *, forks: bool = False
) -> VersionUnavailable:
    """The error for a version that the session does not hold."""
    what = "be forked at" if forks else "be asked about"
    held = f"it can {what} {_oldest_held(state, record, forks=forks)} now"
    return VersionUnavailable(
        f"session {record.id!r} no longer holds version {version_end.version} "
        f"({version_end.cells} cells); {held}. A fork that is made while a version is held keeps "
        "it; what is gone can be read again, by a new session that is given the same entries"
    )


def may_be_shared(state: EngineState, record: SessionRecord, version_end: VersionEnd) -> bool:
    """Whether a fork at that version can share the session's cells. Where it ends sooner than they
    do, its last token is read again, as a session's own always is: what the model had in mind after
    it (`SessionState.ready`) is kept only of the last cell."""
    residence = record.residence
    if version_end.cells in (0, residence.cells):
        return True
    return state.holds(residence, version_end.cells - 1)


def shared_cells(record: SessionRecord, version_end: VersionEnd) -> int:
    """How many cells such a fork shares."""
    whole = version_end.cells == record.residence.cells
    return version_end.cells if whole else max(0, version_end.cells - 1)


def _oldest_known(record: SessionRecord) -> int:
    first = record.residence.log.first_version(0)
    return record.version if first is None else min(first, record.version)


def _oldest_held(state: EngineState, record: SessionRecord, *, forks: bool) -> str:
    """The versions that it holds, in words."""
    residence = record.residence
    oldest = residence.log.first_version(state.oldest_held(residence) + forks)
    if oldest == record.version:
        return f"version {record.version} alone"
    if oldest is None or oldest > record.version:
        return "none but its newest"
    return f"versions {oldest} to {record.version}"
