"""What the engine knows about its sessions: the bookkeeping that one lock guards.

Comes in: sessions, asks, commits. Goes out: what they have and may have, and which of them the
scheduler has to look at again. Plain Python; does not know: devices, threads, text.
"""

from __future__ import annotations

from bisect import bisect_left
from concurrent.futures import Future

from jaxstate.cells.prefixes import Link, PrefixCache
from jaxstate.cells.tables import TableBook
from jaxstate.engine.executor.protocol import Executor
from jaxstate.engine.memory.block_budget import BlockBudget
from jaxstate.engine.memory.swap_policy import Now, SwapPolicy
from jaxstate.engine.requests.request import Request
from jaxstate.engine.scheduler.fairness import FairShare
from jaxstate.engine.sessions.record import SessionRecord, TailBlocks
from jaxstate.engine.sessions.residence import Residence
from jaxstate.engine.sessions.token_log import VersionEnd
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import Work
from jaxstate.errors import InvalidInput, VersionUnavailable
from jaxstate.records import checked_int

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
        # Sessions that the scheduler has to look at again.
        self.touched: set[int] = set()
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
            touch=self.touch,
        )
        self.swapper = SwapPolicy(
            self.budget,
            patience=config.scheduling.room_patience,
            weight=lambda tenant: self.shares.of(tenant).weight,
        )
        # Which session computes a block of a prefix now, so that the others wait for it.
        self.computing: dict[bytes, int] = {}
        # Sessions on the device that have an opening and none of its cells.
        self._unbegun: set[int] = set()
        self.waited: dict[Work, int] = {}
        self.steps = 0
        self.asks_began = self.flash_lent = False
        # What reading has had of the device's time beyond what it lent to flash queries.
        self._lendable_s = 0.0
        self.fresh_waiters: list[tuple[SessionRecord, Future[None]]] = []
        self._keys = 0
        self.readable_until = executor.readable_until

    def touch(self, record: SessionRecord) -> None:
        """Something of a session has changed: the scheduler looks at it again."""
        self.touched.add(record.key)

    @property
    def lends(self) -> bool:
        """Whether reading has had device time that it can lend to flash queries."""
        return self._lendable_s > 0

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
        for key in sorted(self.touched | self._unbegun):
            record = self.records.get(key)
            if record is None or not record.residence.unbegun:
                self._unbegun.discard(key)
                continue
            self._unbegun.add(key)
            residence = record.residence
            missing = self._missing_link(residence.chain)
            owner = key if missing is None else self.computing.get(missing.name, key)
            if residence.waits_for_prefix != (owner != key):
                residence.waits_for_prefix = owner != key
                self.touch(record)
            if not residence.waits_for_prefix:
                shared += self._begin_opening(record)
        return shared

    def _begin_opening(self, record: SessionRecord) -> int:
        residence = record.residence
        cells = self.prefixes.adopt(residence.table, residence.chain)
        if cells > len(residence.log):
            residence.log.append(record.queue.skip(cells - len(residence.log)))
        record.shared_cells = residence.there_cells = cells
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
        return length <= self.readable_until(seen_cells)

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
        turns = self.readable_until(0) < self.limits.session_cells
        return readable_cells if turns else 0

    def holds_up(self, record: SessionRecord, cells: int) -> bool:
        """Whether a session could not read on while a question looks at so many of its cells."""
        return self.readable_until(cells) <= record.residence.table.cells

    def step_done(self, works: frozenset[Work], device_s: float, *, lent: bool) -> None:
        """A step is done. Reading keeps half of the device: what is lent to flash queries whose
        answers are getting old is as much as it had, lately."""
        if lent:
            self._lendable_s -= device_s
        elif "ingest" in works:
            self._lendable_s = min(self._lendable_s + device_s, _LENDABLE_S)


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
    log = record.residence.log
    cells = log.version_end(number)
    if cells is None and number <= log.base_version:
        raise VersionUnavailable(
            f"session {record.id!r} does not hold version {number} any more: its window moved "
            f"behind version {log.base_version}. The oldest version that it holds is "
            f"{_oldest_known(record)}; a fork that is made while a version is held keeps it"
        )
    if cells is None:
        raise VersionUnavailable(
            f"session {record.id!r} does not know where version {number} ends: it was restored "
            f"from a later one. The oldest version that it knows is {_oldest_known(record)}"
        )
    return VersionEnd(number, cells)


def holds_version(state: EngineState, record: SessionRecord, version_end: VersionEnd) -> bool:
    """Whether a session still has all that such a version saw, wherever it is."""
    there = version_end.version > record.residence.log.base_version
    return there and state.holds(record.residence, version_end.cells)


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
