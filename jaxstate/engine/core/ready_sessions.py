"""What the scheduler sees: sessions with something to do, each looked at again only if it changed.

Comes in: the records, and which of them were touched since the last look. Goes out: a `View`. A
session is looked at anew if somebody touched it (`EngineState.touch`), or if time alone changes
what is due of it; what all of them share is counted as they change. So a turn costs what has
changed, not what there is. Does not know: devices, threads, what is planned.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxstate.engine.core.state import EngineState
from jaxstate.engine.flash.registry import FlashMoment, Registered
from jaxstate.engine.requests.request import Request
from jaxstate.engine.scheduler.views import RequestView, SessionView, View
from jaxstate.engine.sessions.record import PendingAsk, SessionRecord

# More tokens than there ever are.
_ANY = 1 << 30

# A tenant with asks under way leaves one tail block in so many to others, where there are others.
_OTHERS_SHARE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One session, until it changes.

    Attributes:
        tenant: whose it is.
        view: what the scheduler sees; None if there is nothing to do, or it is not on the device.
        at_work: whether something could be done now.
        asks_begun: whether asks are under way.
        due: registered questions that may be computed now, the longest unanswered first.
        evictable_blocks: tail blocks that its registered questions may lose.
        due_s: when a registered question may be computed again that may not be now; infinite if
            there is none.
        until_s: when it changes by itself; infinite if never.
    """

    tenant: str
    view: SessionView | None
    at_work: bool
    asks_begun: bool
    due: tuple[Registered, ...]
    evictable_blocks: int
    due_s: float
    until_s: float


class ReadySessions:
    """Looks at sessions, and remembers what it saw.

    Args:
        state: the records.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._limits = state.limits
        self._looks: dict[int, _Look] = {}
        self._views: dict[int, SessionView] = {}
        self._dues_s: dict[int, float] = {}
        # (when, session) of looks that time changes; those that were replaced meanwhile stay in it.
        self._timers: list[tuple[float, int]] = []
        self._evictable_blocks = 0
        self._tenants = Counter[str]()
        self._at_work = Counter[str]()
        self._asking = Counter[str]()

    def view(self, now_s: float) -> View:
        """What the scheduler is to see."""
        state, limits = self._state, self._limits
        while self._timers and self._timers[0][0] <= now_s:
            until_s, key = heapq.heappop(self._timers)
            if key in self._looks and self._looks[key].until_s == until_s:
                state.touched.add(key)
        changed = dict.fromkeys(state.touched)
        state.touched.clear()
        for key in changed:
            changed[key] = self._look_again(key, now_s)
        tenants = self._at_work.keys()
        state.shares.at_work(tenants)
        return View(
            sessions=self._views.values(),
            changed=changed,
            free_blocks=len(state.blocks),
            evictable_blocks=self._evictable_blocks,
            waited=dict(state.waited),
            asks_began=state.asks_began,
            flash_lent=state.flash_lent,
            lends=state.lends,
            tenant_work={one: state.shares.work(one) for one in tenants},
            leaves_blocks=self._leaves_blocks(),
            rows=limits.rows,
            row_sizes=limits.row_sizes,
            start_rows=limits.start_rows,
            extend_tokens=limits.extend_tokens,
            step_sessions=limits.step_sessions,
            session_rows=limits.session_rows,
            next_due_s=min(self._dues_s.values(), default=None),
        )

    def due(self, session: int) -> Sequence[Registered]:
        """Registered questions of a session that could be computed at the last `view`, the longest
        unanswered first."""
        return self._looks[session].due

    def check(self, now_s: float) -> None:
        """Compares what is remembered with what there is, for tests.

        Raises:
            AssertionError: somebody changed a session and did not touch it.
        """
        for key, record in self._state.records.items():
            now = self._look(record, now_s)
            assert self._looks.get(key) == now, (
                f"session {record.id!r} was not touched: {self._looks.get(key)} is now {now}"
            )
        assert self._looks.keys() <= self._state.records.keys(), "a session that is gone is seen"

    def _look_again(self, key: int, now_s: float) -> SessionView | None:
        old = self._looks.pop(key, None)
        if old is not None:
            self._count(old, -1)
            self._views.pop(key, None)
            self._dues_s.pop(key, None)
        if (record := self._state.records.get(key)) is None:
            return None
        new = self._looks[key] = self._look(record, now_s)
        self._count(new, 1)
        if new.view is not None:
            self._views[key] = new.view
        if new.due_s < math.inf:
            self._dues_s[key] = new.due_s
        if new.until_s < math.inf and (old is None or old.until_s != new.until_s):
            self._wake_at(new.until_s, key)
        return new.view

    def _wake_at(self, until_s: float, key: int) -> None:
        heapq.heappush(self._timers, (until_s, key))
        if len(self._timers) > 2 * len(self._looks) + 64:  # most were replaced
            looks = self._looks.items()
            self._timers = [(one.until_s, key) for key, one in looks if one.until_s < math.inf]
            heapq.heapify(self._timers)

    def _count(self, look: _Look, by: int) -> None:
        self._evictable_blocks += by * look.evictable_blocks
        _add(self._tenants, look.tenant, by)
        if look.at_work:
            _add(self._at_work, look.tenant, by)
        if look.asks_begun:
            _add(self._asking, look.tenant, by)

    def _leaves_blocks(self) -> dict[str, int]:
        """Tail blocks that tenants with asks under way leave to the others, if there are any."""
        if len(self._tenants) < 2:
            return {}
        return dict.fromkeys(self._asking, self._limits.tail_blocks // _OTHERS_SHARE)

    # --- one session ---

    def _look(self, record: SessionRecord, now_s: float) -> _Look:
        residence, moment = record.residence, record.flash.at(now_s)
        runs = residence.on_device and record.busy and not _reads_for_its_session(record)
        return _Look(
            tenant=residence.tenant,
            view=self._session_view(record, moment) if runs else None,
            at_work=runs and (record.has_other_work or bool(moment.due)),
            asks_begun=bool(record.asks_begun),
            due=tuple(moment.due),
            evictable_blocks=sum(
                len(request.blocks)
                for request, _ in record.flash_requests.values()
                if not request.holds
            ),
            due_s=moment.next_due_s,
            until_s=moment.until_s,
        )

    def _session_view(self, record: SessionRecord, moment: FlashMoment) -> SessionView:
        residence = record.residence
        # Its version's cells are not all there: they are computed again, or were overwritten.
        launched = residence.table.cells
        lost = residence.missing > 0 or not self._state.readable(record.seen_cells, launched)
        leaves = residence.leaves
        moves = _moves(record)
        rests = lost or leaves or moves
        due = [] if rests else moment.due
        reader = record.reader
        growth = self._growth(record) if reader is record else _ANY
        # Asks that begin now would, one after the other, keep the entry half read for ever.
        stuck = record.queue.partly_read and growth <= 0
        missing = reader.residence.missing
        takes = record.takes_next
        tokens = missing + (record.queue.takeable_tokens if takes else 0)
        readable = min(tokens, self._state.budget.readable_tokens(reader))
        waits = missing > 0 or takes or reader.stranded
        reads = waits and (tokens == 0 or readable > 0)
        return SessionView(
            key=record.key,
            seen_cells=record.seen_cells,
            tenant=residence.tenant,
            ingest_tokens=readable,
            # One whose cells came from elsewhere meanwhile does not wait for a prefix any more.
            ingest_entries=reads and not (leaves or _waits_for_prefix(reader)),
            ingest_since_s=record.queue.oldest_s or 0.0,
            ingest_served=record.ingest_served,
            growth_tokens=growth,
            asks_served=record.asks_served,
            requests=tuple(
                self._run_views(
                    record,
                    blocked=rests or stuck,
                    past_blocked=residence.missing > 0 or leaves or stuck or moves,
                    reads=reads,
                )
            ),
            flash_due=len(due),
            flash_rows=len(record.flash_requests),
            flash_blocks=due[0].asked.blocks(self._limits) if due else 1,
            flash_since_s=moment.since_s if record.flash.stale else 0.0,
            flash_served=record.flash.served,
            flash_overdue=_holds(record) or moment.overdue,
            flash_old=moment.old,
            context=residence.name,
            rebuilds=record.rebuilds is not None,
        )

    def _growth(self, record: SessionRecord) -> int:
        """Tokens that can be read before a question that may not loses sight of a cell."""
        ends = (self._state.readable_until(request.seen_cells) for request in record.holding())
        return min(ends, default=_ANY) - record.residence.table.cells

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
        return past_blocked or (reads and turn and self._state.holds_up(record, ask.as_of.cells))

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
                context = record.residence.name
                yield self._run_view(
                    ask.request, version_end.cells, blocked=blocked, context=context
                )
            ready, seen_blocked = ready + (not blocked), seen_blocked or blocked
            if ready == self._limits.rows:
                return

    def _run_view(
        self, request: Request, seen_cells: int, *, blocked: bool, context: int = 0
    ) -> RequestView:
        return RequestView(
            key=request.key,
            work=request.work,
            stage=request.stage,
            arrived_s=request.arrived_s,
            served=request.served,
            seen_cells=seen_cells,
            tokens=request.next_tokens(self._limits),
            blocks=len(request.blocks) if request.begun else request.asked.blocks(self._limits),
            blocked=blocked,
            context=request.seen.session if request.begun else context,
        )


def _reads_for_its_session(record: SessionRecord) -> bool:
    """Whether it is a rebuild that is not read by itself any more: its session reads through it, or
    it has what that had before."""
    rebuild = None if record.rebuilds is None else record.rebuilds.rebuild
    return rebuild is not None and (rebuild.takes or rebuild.moved)


def _waits_for_prefix(reader: SessionRecord) -> bool:
    """Whether another session computes what it begins with."""
    return reader.residence.waits_for_prefix and not reader.residence.table.cells


def _moves(record: SessionRecord) -> bool:
    """Whether its cells are about to be given up, or are of a version that is not there yet, so
    that no question begins."""
    return record.ahead or (record.window is not None and record.window.in_place)


def _holds(record: SessionRecord) -> bool:
    """Whether a registered question under way may not lose what it has."""
    return any(request.holds for request, _ in record.flash_requests.values())


def _add(counts: Counter[str], tenant: str, by: int) -> None:
    """Names that count nothing are forgotten."""
    counts[tenant] += by
    if not counts[tenant]:
        del counts[tenant]
