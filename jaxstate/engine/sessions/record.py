"""One session's bookkeeping, all under the engine's lock: what it read, what is asked of it.

Comes in: entries, asks, registrations, commits. Goes out: the facts that the state, the budget and
batching look at. Does not know: other sessions, devices, threads, text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from jaxstate.engine.flash.registry import FlashRegistry, Registered
from jaxstate.engine.requests.request import Request
from jaxstate.engine.sessions.context_window import ContextWindow
from jaxstate.engine.sessions.dedup import IdempotencyTable
from jaxstate.engine.sessions.ingest_queue import IngestQueue
from jaxstate.engine.sessions.residence import Residence
from jaxstate.engine.sessions.token_log import Taken, VersionEnd
from jaxstate.engine.types.events import Subscription
from jaxstate.engine.types.options import EngineConfig, QueuePolicy
from jaxstate.engine.types.values import Answer, Span
from jaxstate.errors import ClosedError, NotFinite
from jaxstate.persist.journal import PendingWrite
from jaxstate.persist.segments import Segment
from jaxstate.text import Place


@dataclass(slots=True, kw_only=True, eq=False)
class PendingAsk:
    """A question that somebody waits for.

    Attributes:
        request: it.
        future: its answer.
        min_version: it waits until its session has that version.
        as_of: the earlier version that it is about; None for the newest.
        on_text: told what the answer's text begins with, whenever that has grown, on the engine's
            thread; None where nobody reads along.
    """

    request: Request
    future: Future[Answer]
    min_version: int
    as_of: VersionEnd | None = None
    on_text: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class SavedCells:
    """The newest snapshot of a session.

    Attributes:
        version: that it is of; -1 if there is none.
        segments: its pieces, in order.
    """

    version: int = -1
    segments: tuple[Segment, ...] = ()

    def until(self, cells: int) -> tuple[Segment, ...]:
        """Those that lie within the first `cells`."""
        return tuple(one for one in self.segments if one.last <= cells)


@dataclass(slots=True, kw_only=True, eq=False)
class Rebuild:
    """The context that a session has once its window moves, while it is read in the background.

    Attributes:
        record: reads it: bookkeeping of its own, that no user sees. Once the window has moved it
            has the context before, as long as questions look at that.
        copied_cells: of the session's log, that it has or leaves out.
        takes: whether it reads the next entries in the session's place; from the first of them on
            the session has its context.
        moved: whether that has happened.
    """

    record: SessionRecord
    copied_cells: int
    takes: bool = False
    moved: bool = False


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


class SessionRecord:
    """One session.

    Attributes:
        key: its name in the executor.
        id: its name for users.
        version: sequence number of the last committed entry; -1 before the opening is read.
        seen_cells: committed cells at that version.
        residence: its cells: `residence.cells` once every launched step is done, more than
            `seen_cells` while an entry is half read.
        committed_s: when the version was committed.
        landing: entries whose tokens are launched to be read: the cells at their end, and what was
            taken.
        stopped: why it reads nothing more, though it can be asked; None while it reads.
        stranded: the step that should have landed them failed.
        asks: all, in the order of arrival; `asks_begun` are those of them that are under way.
        asks_served, ingest_served: numbers of the steps that last began an ask, and last read.
        past_served: number of the step that last began an ask about an earlier version which keeps
            the session from reading on.
        room_waiters: pushes that wait for room, in the order in which they came; only the first is
            let in, so that a large one does not starve behind small ones. `room_told` is that of
            the one who has been told, and has not come yet.
        leave_waiters, come_waiters: those who wait for it to leave the device, or for all its cells
            to be there.
        tasks_waiting: forks and saves that wait for the end of the entry that is half read.
        first_place: what its first entry follows; all others follow text.
        frozen_cells: of what it begins with, which is always in its context.
        shared_cells: of its opening, that it did not have to read.
        passing: whether it is there for one conversation's answer: no user sees it, and no journal.
        opens: whether it begins with an opening, and is not made from another or a saved one.
        ending: its end is on the way to the journal, and it is open until it is there; what came
            now would be behind it.
        has_ended: its user has ended it, and the journal knows.
        log_key: its key in the journal; 0 without one.
        written: tells when the journal has the session.
        receipts: of clients that number their pushes.
        saved: the pieces of its cells that are on disk, in order, and the version that they end at.
        window: what of its entries stays in its context; None for all.
        windows_to_come: those that it will have once the journal has them, None for none; what is
            pushed meanwhile has to fit into them.
        ahead: its context is already that of the next version, which is being read: no question
            looks at it before.
        rebuild: of its context without what has left the window, if one is under way.
        rebuilds: the session whose rebuild it is itself; None for all that users see.
    """

    def __init__(
        self,
        key: int,
        session_id: str,
        policy: QueuePolicy,
        config: EngineConfig,
        residence: Residence,
    ) -> None:
        self.key = key
        self.id = session_id
        self.residence = residence
        self.queue = IngestQueue(config.queue_entries, policy)
        self._queue_entries = config.queue_entries
        self.flash = FlashRegistry(config.flash_limit, config.flash_staleness_s)
        self.version = -1
        self.seen_cells = 0
        self.committed_s = 0.0
        self.ingest_served = self.past_served = 0
        self.opened = False
        self.opens = False
        self.first_place: Place = "text"
        self.frozen_cells = 0
        self.shared_cells = 0
        self.passing = False
        self.tasks_waiting = 0
        self.closed_because: str | None = None
        self.ending = self.has_ended = False
        self.landing: deque[tuple[int, Taken]] = deque()
        self.stranded = False
        self.stopped: NotFinite | None = None
        self.asks: dict[int, PendingAsk] = {}
        self.asks_begun: dict[int, PendingAsk] = {}
        self.asks_served = 0
        self.flash_requests: dict[int, tuple[Request, Registered]] = {}
        self.leave_waiters: list[Future[None]] = []
        self.come_waiters: list[Future[None]] = []
        self.waiters: list[tuple[int, Future[None]]] = []
        self.room_waiters: dict[object, Future[None]] = {}
        self.room_told: Future[None] | None = None
        self.subscriptions: list[Subscription] = []
        self.log_key = 0
        self.written: PendingWrite | None = None
        self.receipts = IdempotencyTable()
        self.saved = SavedCells()
        self.window: ContextWindow | None = None
        self.windows_to_come: deque[ContextWindow | None] = deque()
        self.ahead = False
        self.rebuild: Rebuild | None = None
        self.rebuilds: SessionRecord | None = None

    @property
    def reader(self) -> SessionRecord:
        """What reads its next entries: itself, or its rebuild in its place."""
        rebuild = self.rebuild
        return rebuild.record if rebuild is not None and rebuild.takes else self

    @property
    def landing_entries(self) -> int:
        """Entries under way."""
        readers = (self,) if self.reader is self else (self, self.reader)
        return sum(taken.entries for one in readers for _, taken in one.landing)

    @property
    def version_end(self) -> VersionEnd:
        """Where its version ends: what a question that begins now looks at."""
        return VersionEnd(self.version, self.seen_cells)

    @property
    def pending(self) -> int:
        """Entries that were pushed and are not committed: those that wait, and those under way."""
        return self.queue.pending + self.landing_entries

    @property
    def pending_tokens(self) -> int:
        """Tokens of those entries."""
        under_way = self.residence.cells - self.seen_cells if self.version >= 0 else 0
        reader = self.reader
        if reader is not self:
            under_way += reader.residence.cells - reader.seen_cells
        return self.queue.pending_tokens + max(0, under_way)

    @property
    def oldest_s(self) -> float | None:
        """When the oldest of those entries was pushed; None without one."""
        landing = (*self.landing, *(self.reader.landing if self.reader is not self else ()))
        pushed_s = next((taken.pushed_s for _, taken in landing if taken.pushed_s), ())
        return pushed_s[0] if pushed_s else self.queue.oldest_s

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.closed_because is not None

    def check_open(self) -> None:
        """Refuses a session that is closed, or is about to be.

        Raises:
            ClosedError: with the reason.
        """
        if self.closed_because is not None:
            raise ClosedError(f"session {self.id!r} is closed: {self.closed_because}")
        if self.ending:
            raise ClosedError(f"session {self.id!r} is being closed")

    def check_reads(self, version: int) -> None:
        """Refuses to wait for a version that will not come.

        Raises:
            NotFinite: what comes next could not be read.
        """
        if self.stopped is not None and version > self.version:
            raise NotFinite(str(self.stopped))

    @property
    def is_new(self) -> bool:
        """Whether it is still on its way to the journal."""
        written = self.written
        return written is not None and not (written.stays or written.settled.done())

    def abandon(self) -> None:
        """Nothing that is on its way to the journal takes effect."""
        self.ending = False
        self.windows_to_come.clear()
        self.queue.abandon()
        self.receipts.abandon()
        self.flash.abandon()

    @property
    def busy(self) -> bool:
        """Whether there may be something to do."""
        waits = bool(self.asks or self.flash_requests) or not self.queue.empty
        waits = waits or self._reads_again
        return self.opened and (waits or self.flash.stale > 0)

    @property
    def _reads_again(self) -> bool:
        """Whether what it, or its rebuild in its place, has taken is still to be read."""
        reader = self.reader
        own = self.residence.missing > 0 or bool(self.landing)
        return own or reader.residence.missing > 0 or bool(reader.landing)

    def has_work(self, now_s: float) -> bool:
        """Whether something could be done now, were there room on the device."""
        if not self.opened or self.closed:
            return False
        return self.has_other_work or (self.flash.stale > 0 and bool(self.flash.at(now_s).due))

    @property
    def has_other_work(self) -> bool:
        """Whether there is something to do but for beginning flash questions."""
        reads = not self.queue.empty or self._reads_again
        asked = any(
            ask.request.begun or ask.min_version <= self.version for ask in self.asks.values()
        )
        return reads or asked or bool(self.flash_requests)

    def requests_of(self, keys: Iterable[int]) -> list[Request]:
        """Its questions of those names."""
        asks, flash = self.asks, self.flash_requests
        return [asks[key].request if key in asks else flash[key][0] for key in keys]

    def holding(self) -> Iterator[Request]:
        """Questions under way that may not lose what they have."""
        yield from (ask.request for ask in self.asks_begun.values())
        yield from (request for request, _ in self.flash_requests.values() if request.holds)

    def number_from(self, version: int) -> None:
        """Entries 1 .. `version` were read elsewhere: those pushed from now on follow them."""
        assert self.queue.empty, "nobody can push before a session is there"
        self.queue = IngestQueue(self._queue_entries, self.queue.policy, last=version)

    @property
    def usable(self) -> bool:
        """Whether users may see it: not before what it is made from is there."""
        return (self.version >= 0 or self.opens) and not self.passing

    @property
    def up_to_date(self) -> bool:
        """Whether everything pushed is committed, and every registered question settled there."""
        return self.version >= self.queue.last and self.flash.stale == 0

    @property
    def room_tokens(self) -> int | None:
        """Tokens of entries that its reader may begin, so that its window holds; None for all."""
        if self.window is None:
            return None
        return self.window.tokens_left(self.reader.residence.log) - self.queue.rest_tokens

    @property
    def room_entries(self) -> int | None:
        """How many entries it may begin; None for any number."""
        left = None if self.window is None else self.window.entries_left(self.reader.residence.log)
        return None if left is None else left - self.queue.partly_read

    @property
    def full(self) -> bool:
        """Whether its context cannot take the entry that comes next before its window moves."""
        next_tokens = self.queue.next_tokens
        if self.window is None or next_tokens is None:
            return False
        return not self.window.fits(self.reader.residence.log, next_tokens)

    @property
    def takes_next(self) -> bool:
        """Whether its reader could go on with what waits."""
        # One entry at a time moves a window; the rest comes when it has.
        moves = self.reader is not self and bool(self.reader.landing)
        return not (self.queue.empty or self.full or moves)

    def visible(self, version: int) -> tuple[Span, ...] | None:
        """The entries that such a version of it sees; None if it never had a window: all up to it,
        but for those that were displaced."""
        log = self.residence.log
        return None if self.window is None and log.base_version < 0 else log.visible(version)

    def commit(self, version: int, seen_cells: int, now_s: float) -> None:
        """A new version: whatever was answered before is out of date."""
        if self.window is not None:
            self.window.read(self.residence.log, max(0, seen_cells - self.seen_cells))
        self.ahead = self.ahead and version <= self.residence.log.base_version
        self.version, self.seen_cells, self.committed_s = version, seen_cells, now_s
        self.flash.committed(version, now_s)
