"""Which step comes next: decided by a view of the engine and its policy, and by nothing else.

Comes in: `View`, plain numbers about sessions and questions at one moment, and `Policy`. Goes out:
a `Plan`: one step, or how long there is nothing to do. What a session could do is worked out again
only if it, or what it depends on, is not what it was, and stands in line by then. Does not know:
devices, tokens, text, threads.

Four classes of work, in order of urgency: ask, ingest, flash, rebuild (a session's context, read
anew since its window is to move). The most urgent one that can run runs, with three exceptions that
keep everything moving:

- A class that could have run in each of the last `patience` steps, and did not, gets the next step.
  One that only lacks what questions under way hold (cells, tail blocks) is counted as well; once
  registered questions have lacked blocks for so long, no ask begins before they do.
- What an ask waits for (a version that is not read yet, an entry that is half read) is as urgent as
  the ask, and so is a registered question past its deadline, or given up too often.
- Asks that begin and asks that go on take turns, so neither can keep the other waiting for more
  than a step; and no two steps in a row serve such registered questions while an ask could run.

Within a class, the tenant that had least work comes first, and of its sessions the one that was
served longest ago. No ask overtakes another for tail blocks: while the first that could begin does
not find enough of them, none begins. A tenant that has asks under way leaves some to the others.

What other sessions have to do joins the step, where steps are shared: first what is of the same
class and kind, then what costs nothing beside it.
"""

from __future__ import annotations

import dataclasses
import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from jaxstate.engine.executor.protocol import size_for
from jaxstate.engine.scheduler.views import (
    Begin,
    GoOn,
    Ingest,
    Plan,
    RequestView,
    SessionView,
    Step,
    View,
)
from jaxstate.engine.types.options import Policy
from jaxstate.engine.types.values import WORKS, Stage, Work

# Of each class, so many times as many sessions as a step serves are offered a place in it.
_JOINING = 2


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A step that could be next.

    `begins` tells questions that begin from those that go on, `lent` registered questions that are
    as urgent as asks from asks.
    """

    step: Step
    tenant: str
    served: int
    since_s: float
    begins: bool = False
    lent: bool = False


# A candidate's place in the line of its class and tenant: steps since it was served, since when it
# waits, its session, and which of that session's candidates it is. The smallest comes first.
_Place: TypeAlias = tuple[int, float, int, int]


@dataclass(slots=True, eq=False)
class _Known:
    """What was worked out of one session.

    Attributes:
        session: it.
        first_ready: when its first ask that is ready came, and the tail blocks that it needs.
        wants_flash: whether registered questions would begin, were there blocks.
        needs_blocks: with so many free ones, how many there are makes no difference to it.
        places: of the steps that it could have, in the line of each class.
    """

    session: SessionView
    first_ready: tuple[float, int] | None
    wants_flash: bool
    needs_blocks: int
    places: list[tuple[Work, _Place]] = field(default_factory=list)


class _Line:
    """The candidates of one class, in their order."""

    def __init__(self) -> None:
        self._places: dict[str, list[_Place]] = {}
        self._candidates: dict[_Place, _Candidate] = {}

    def __bool__(self) -> bool:
        return bool(self._candidates)

    def add(self, one: _Candidate, number: int) -> _Place:
        """One more; `number` is which of its session's it is."""
        place = (one.served, one.since_s, one.step.session, number)
        insort(self._places.setdefault(one.tenant, []), place)
        self._candidates[place] = one
        return place

    def remove(self, place: _Place) -> None:
        """One less."""
        tenant = self._candidates.pop(place).tenant
        places = self._places[tenant]
        del places[bisect_left(places, place)]
        if not places:
            del self._places[tenant]

    def in_order(self, tenant_work: Mapping[str, float]) -> Iterator[_Candidate]:
        """Those of the tenant that had least work first."""
        of_work: dict[float, list[list[_Place]]] = {}
        for tenant, places in self._places.items():
            of_work.setdefault(tenant_work.get(tenant, 0.0), []).append(places)
        for work in sorted(of_work):
            tied = of_work[work]
            places = tied[0] if len(tied) == 1 else heapq.merge(*tied)
            yield from map(self._candidates.__getitem__, places)


def plan(view: View, policy: Policy) -> Plan:
    """The next step, worked out anew."""
    return Scheduler(policy).plan(view)


class Scheduler:
    """Plans one step after the other.

    Args:
        policy: what comes before what.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._known: dict[int, _Known] = {}
        self._lines: dict[Work, _Line] = {}
        # At least what any session needs. While more blocks are free than that, what one could do
        # depends on nothing else but `_depends`.
        self._needs_blocks = 0
        self._depends: tuple[bool, bool] | None = None
        self._held_up: set[int] = set()

    def plan(self, view: View) -> Plan:
        """The next step."""
        held_up = self._update(view)
        runnable = frozenset[Work](work for work in WORKS if self._lines[work])
        work = _choose_class(runnable, view, self._policy)
        if work is None:
            return Plan(step=None, held_up=held_up, until_s=view.next_due_s)
        first = self._lines[work].in_order(view.tenant_work)
        step = _choose_ask(list(first), view) if work == "ask" else next(first).step
        joined = self._joined(step, view) if view.step_sessions > 1 else ()
        return Plan(step=step, joined=joined, runnable=runnable, held_up=held_up)

    def _update(self, view: View) -> frozenset[Work]:
        """Works out what sessions could do, of those alone that changed if that is all that did;
        returns the classes that are held up."""
        changed = self._learn_all(view) if view.changed is None else self._learn(view)
        if not (plenty := self._has_plenty(view)) or self._depends != (True, view.lends):
            # Who could do what may be different for any of them.
            changed = self._learn_all(view)
            plenty = self._has_plenty(view)
        if plenty:
            held_up = frozenset[Work]({"ingest"} if self._held_up else ())
            begins = True
        else:
            held_up = _held_up(self._known.values(), view)
            begins = _asks_may_begin(self._known.values(), view, self._policy, held_up)
        self._depends = (begins, view.lends) if plenty else None
        for known in changed:
            self._place(known, view, may_begin=begins)
        return held_up

    def _has_plenty(self, view: View) -> bool:
        """Whether no session lacks tail blocks, for whatever it could do."""
        left = max(view.leaves_blocks.values(), default=0)
        return view.free_blocks - left >= self._needs_blocks

    def _learn_all(self, view: View) -> list[_Known]:
        """What there is to know of all sessions, none of which stands in line yet."""
        self._known.clear()
        self._held_up.clear()
        self._needs_blocks = 0
        self._lines = {work: _Line() for work in WORKS}
        return [self._know(session, view) for session in view.sessions]

    def _learn(self, view: View) -> list[_Known]:
        """What there is to know of sessions that changed, which do not stand in line any more."""
        assert view.changed is not None
        for key in view.changed:
            self._held_up.discard(key)
            if (old := self._known.pop(key, None)) is not None:
                for work, place in old.places:
                    self._lines[work].remove(place)
        return [self._know(one, view) for one in view.changed.values() if one is not None]

    def _know(self, session: SessionView, view: View) -> _Known:
        ready = [request for request in session.requests if _is_ready(request)]
        known = self._known[session.key] = _Known(
            session=session,
            first_ready=min(((one.arrived_s, one.blocks) for one in ready), default=None),
            wants_flash=_flash_wants_to_begin(session, view),
            needs_blocks=max(sum(one.blocks for one in ready), session.flash_blocks),
        )
        self._needs_blocks = max(self._needs_blocks, known.needs_blocks)
        if session.held_up:
            self._held_up.add(session.key)
        return known

    def _place(self, known: _Known, view: View, *, may_begin: bool) -> None:
        """The steps that a session could have, into their lines."""
        session = known.session
        found: dict[Work, Iterator[_Candidate]] = {
            "ask": _ask_candidates(session, view, self._policy, may_begin=may_begin),
            "ingest": iter(()) if session.rebuilds else _ingest_candidates(session, view),
            "flash": _flash_candidates(session, view),
            "rebuild": _rebuild_candidates(session, view),
        }
        for work, steps in found.items():
            for number, one in enumerate(steps):
                known.places.append((work, self._lines[work].add(one, number)))

    def _joined(self, step: Step, view: View) -> tuple[Step, ...]:
        """What shares the step, the most urgent first; one part of each other session."""
        found: dict[int, Step] = {}
        served = (
            view.step_sessions if isinstance(step, Ingest) else min(view.step_sessions, view.rows)
        )
        for work in WORKS:
            # Not all that could go along will fit; beyond so many others the rest can wait.
            most = len(found) + _JOINING * served
            for one in self._lines[work].in_order(view.tenant_work):
                if one.step.session != step.session and _goes_with(one.step, step):
                    found.setdefault(one.step.session, one.step)
                if len(found) == most:
                    break
        if not isinstance(step, GoOn):
            return tuple(found.values())
        others = [one for one in found.values() if isinstance(one, GoOn)]
        return _rows_beside(step, others, view, self._policy)


def _goes_with(other: Step, step: Step) -> bool:
    """Whether a part can be of the same step, apart from how many rows that has."""
    if isinstance(step, GoOn):
        same = isinstance(other, GoOn) and other.stage == step.stage != "reading"
        return same and (other.work == step.work or step.stage == "decoding")
    return not (isinstance(other, GoOn) or (isinstance(other, Begin) and other.evict))


def _rows_beside(step: GoOn, others: list[GoOn], view: View, policy: Policy) -> tuple[GoOn, ...]:
    """Rows that go on in the same step: as many of its class as make one cheapest, then those that
    cost next to nothing."""
    if len(step.requests) > view.session_rows:
        return ()
    alike = [one for one in others if one.work == step.work][: view.step_sessions - 1]
    riders = [one for one in others if one.work != step.work] if step.work == "ask" else []
    rows = len(step.requests)
    waiting = rows + sum(min(len(one.requests), view.session_rows) for one in alike)
    most = view.row_sizes.take(waiting, 1, view.rows) if step.stage == "decoding" else view.rows
    joined: list[GoOn] = []
    for one, bound in (
        *((one, most) for one in alike),
        *((one, min(policy.ride_rows, view.rows)) for one in riders),
    ):
        room = min(bound - rows, view.session_rows)
        if room > 0 and len(joined) + 1 < view.step_sessions:
            joined.append(dataclasses.replace(one, requests=one.requests[:room]))
            rows += len(joined[-1].requests)
    return tuple(joined)


def _held_up(sessions: Iterable[_Known], view: View) -> frozenset[Work]:
    """Classes that have something to do which questions under way keep from being done."""
    held_up: set[Work] = set()
    for one in sessions:
        if one.session.held_up:
            held_up.add("ingest")
        if one.wants_flash and view.free_blocks < one.session.flash_blocks:
            held_up.add("flash")
    return frozenset(held_up)


def _asks_may_begin(
    sessions: Iterable[_Known], view: View, policy: Policy, held_up: frozenset[Work]
) -> bool:
    """Whether the first ask that is ready finds its blocks, and nobody has waited for some in
    vain for too long."""
    if "flash" in held_up and view.waited.get("flash", 0) >= policy.patience("flash"):
        return False
    ready = (
        (view.tenant_work.get(one.session.tenant, 0.0), *one.first_ready)
        for one in sessions
        if one.first_ready is not None
    )
    *_, blocks = min(ready, default=(0.0, 0.0, 0))
    return blocks <= view.free_blocks + view.evictable_blocks


def _is_ready(request: RequestView) -> bool:
    return request.stage == "waiting" and not request.blocked


def _choose_class(runnable: frozenset[Work], view: View, policy: Policy) -> Work | None:
    for work in WORKS:
        patient = work == "ask" or view.waited.get(work, 0) < policy.patience(work)
        if work in runnable and not patient:
            return work
    return next((work for work in WORKS if work in runnable), None)


def _choose_ask(candidates: list[_Candidate], view: View) -> Step:
    """Registered questions that are as urgent as asks take turns with them, and so do asks that
    begin with asks that go on. The candidates are in order."""
    asks = [one for one in candidates if not one.lent]
    chosen = asks if asks and view.flash_lent else candidates
    return next((one for one in chosen if one.begins != view.asks_began), chosen[0]).step


def _ask_candidates(
    session: SessionView, view: View, policy: Policy, *, may_begin: bool
) -> Iterator[_Candidate]:
    asks = [request for request in session.requests if request.work == "ask"]
    waiting = sorted(
        (request for request in asks if request.stage == "waiting"),
        key=lambda request: request.arrived_s,
    )
    blocked = [request for request in waiting if request.blocked]
    if blocked and session.ingest_entries:
        yield from _ingest_candidates(session, view, work="ask", since_s=blocked[0].arrived_s)
    ready = [request for request in waiting if not request.blocked]
    # What begins in one step looks at one version; the oldest says which.
    ready = [request for request in ready if request.seen_cells == ready[0].seen_cells]
    if may_begin and (begun := _fitting(ready, view.leaves_blocks.get(session.tenant, 0), view)):
        evict = sum(request.blocks for request in begun) > view.free_blocks
        keys = tuple(request.key for request in begun)
        step = Begin(work="ask", session=session.key, requests=keys, evict=evict)
        yield _Candidate(step, session.tenant, session.asks_served, begun[0].arrived_s, begins=True)
    yield from _going_on(session, asks, view, policy)
    if session.flash_overdue or (view.lends and session.flash_old):
        yield from _flash_candidates(session, view, work="ask")


def _fitting(waiting: list[RequestView], leaves_blocks: int, view: View) -> list[RequestView]:
    """As many of these, oldest first, as tail blocks allow and one step should take."""
    taken: list[RequestView] = []
    blocks_left, longest = view.free_blocks + view.evictable_blocks - leaves_blocks, 0
    for request in waiting:
        longest = max(longest, request.tokens)
        if request.blocks > blocks_left or len(taken) >= size_for(longest, view.start_rows)[1]:
            break
        taken.append(request)
        blocks_left -= request.blocks
    if not taken:
        return []
    tokens, rows = size_for(max(request.tokens for request in taken), view.start_rows)
    return taken[: view.row_sizes.take(len(taken), tokens, rows)]


def _going_on(
    session: SessionView, requests: list[RequestView], view: View, policy: Policy
) -> Iterator[_Candidate]:
    """One candidate for each stage and pinned length; questions still reading go one by one."""
    groups: dict[tuple[Stage, int, int, int], list[RequestView]] = {}
    for request in requests:
        if request.stage != "waiting":
            alone = request.key if request.stage == "reading" else -1
            place = (request.stage, request.context, request.seen_cells, alone)
            groups.setdefault(place, []).append(request)
    for (stage, context, seen_cells, _), members in groups.items():
        chosen = sorted(members, key=lambda request: (request.served, request.arrived_s))
        chosen = chosen[: _rows_going_on(stage, len(chosen), view)]
        riding = _riders(session, stage, (context, seen_cells), len(chosen), view, policy)
        step = GoOn(
            work=chosen[0].work,
            session=session.key,
            stage=stage,
            requests=tuple(request.key for request in (*chosen, *riding)),
        )
        yield _Candidate(step, session.tenant, chosen[0].served, chosen[0].arrived_s)


def _rows_going_on(stage: Stage, waiting: int, view: View) -> int:
    """How many go on together; how many choices a step scores is decided where they are known."""
    if stage == "reading":
        return 1
    return view.row_sizes.take(waiting, 1, view.rows) if stage == "decoding" else view.rows


def _riders(
    session: SessionView,
    stage: Stage,
    seen: tuple[int, int],
    rows: int,
    view: View,
    policy: Policy,
) -> list[RequestView]:
    """Registered questions that decode at the same length and cost next to nothing in this step."""
    room = min(policy.ride_rows, view.rows) - rows
    riders = [
        request
        for request in session.requests
        if request.work == "flash" and request.stage == stage
        if (request.context, request.seen_cells) == seen
    ]
    return riders[: max(room, 0)] if stage == "decoding" else []


def _ingest_candidates(
    session: SessionView, view: View, *, work: Work = "ingest", since_s: float | None = None
) -> Iterator[_Candidate]:
    tokens = min(view.extend_tokens, session.growth_tokens, session.ingest_tokens)
    if session.ingest_entries and (tokens > 0 or session.ingest_tokens == 0):
        step = Ingest(work=work, session=session.key, tokens=tokens)
        began_s = session.ingest_since_s if since_s is None else since_s
        yield _Candidate(step, session.tenant, session.ingest_served, began_s, begins=True)


def _rebuild_candidates(session: SessionView, view: View) -> Iterator[_Candidate]:
    if session.rebuilds:
        yield from _ingest_candidates(session, view, work="rebuild")


def _flash_candidates(
    session: SessionView, view: View, *, work: Work = "flash"
) -> Iterator[_Candidate]:
    """Those of one session go together: all that are due begin before any goes on."""
    if _flash_wants_to_begin(session, view) and view.free_blocks >= session.flash_blocks:
        step = Begin(work=work, session=session.key)
        since_s, lent, share = session.flash_since_s, work == "ask", session.tenant
        yield _Candidate(step, share, session.flash_served, since_s, begins=True, lent=lent)
    else:
        running = [request for request in session.requests if request.work == "flash"]
        yield from _going_on_alone(session, running, view, work)


def _flash_wants_to_begin(session: SessionView, view: View) -> bool:
    """Whether some are due and there are rows for them, beside none that look at an old version."""
    running = (request for request in session.requests if request.work == "flash")
    seen = session.context, session.seen_cells
    outdated = any((request.context, request.seen_cells) != seen for request in running)
    return session.flash_due > 0 and session.flash_rows < view.rows and not outdated


def _going_on_alone(
    session: SessionView, running: list[RequestView], view: View, work: Work
) -> Iterator[_Candidate]:
    by_stage: dict[Stage, list[RequestView]] = {}
    for request in running:
        by_stage.setdefault(request.stage, []).append(request)
    for stage, members in by_stage.items():
        chosen = sorted(members, key=lambda request: request.served)
        chosen = chosen[: _rows_going_on(stage, len(chosen), view)]
        keys = tuple(request.key for request in chosen)
        step = GoOn(work=work, session=session.key, stage=stage, requests=keys)
        since_s, lent, share = session.flash_since_s, work == "ask", session.tenant
        yield _Candidate(step, share, session.flash_served, since_s, lent=lent)
