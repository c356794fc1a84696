"""Which step comes next: a pure function of a view of the engine and its policy.

Comes in: `View`, plain numbers about sessions and questions at one moment, and `Policy`. Goes out:
a `Plan`: one step, or how long there is nothing to do. Does not know: devices, tokens, text,
threads.

Four classes of work, in order of urgency: ask, ingest, flash, warm. The most urgent one that can
run runs, with three exceptions that keep everything moving:

- A class that could have run in each of the last `patience` steps, and did not, gets the next step.
- What an ask waits for (a version that is not read yet, an entry that is half read) is as urgent as
  the ask, and so is a registered question past its deadline.
- Asks that begin and asks that go on take turns, so neither can keep the other waiting for more
  than a step.

Within a class, whoever was served longest ago comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Work = Literal["ask", "ingest", "flash", "warm"]
Stage = Literal["waiting", "reading", "scoring", "decoding"]

WORKS: tuple[Work, ...] = ("ask", "ingest", "flash", "warm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How much the urgent may keep the others waiting, in steps.

    Attributes:
        ingest_patience: steps that ingest lets others go first while it could run.
        flash_patience: the same of registered questions.
        warm_patience: the same of warm questions.
        ride_rows: registered questions under way may join a decode step of asks up to so many rows
            in all.
    """

    ingest_patience: int = 8
    flash_patience: int = 32
    warm_patience: int = 128
    ride_rows: int = 8

    def patience(self, work: Work) -> int:
        """Steps that a class lets others go first; asks never do."""
        by_work = {
            "ask": 0,
            "ingest": self.ingest_patience,
            "flash": self.flash_patience,
            "warm": self.warm_patience,
        }
        return by_work[work]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A question that waits for its first step, or is under way.

    Attributes:
        key: its name.
        work: "ask", "flash" or "warm".
        stage: waiting (asks only), reading, scoring (given choices) or decoding.
        arrived_s: when it was asked, or when the version it answers was committed.
        served: number of the step that it last took part in, 0 for none.
        seen_cells: what it looks at; of one that waits, what it would look at now.
        tokens: what its next step reads, without padding.
        blocks: tail blocks that it holds, or would need.
        blocked: a waiting ask that cannot begin before its session has read more.
    """

    key: int
    work: Work
    stage: Stage
    arrived_s: float
    served: int = 0
    seen_cells: int = 0
    tokens: int = 1
    blocks: int = 1
    blocked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """One session that has something to do.

    Attributes:
        key: its name.
        seen_cells: committed cells, what a question that begins now looks at.
        ingest_tokens: tokens that wait to be read, 0 also for entries without tokens.
        ingest_entries: whether any entry waits.
        ingest_since_s: since when the oldest waits.
        ingest_served: number of the step that last read for it.
        growth_tokens: how many may be read before the asks under way would lose cells they look at.
        runs: asks that wait and all questions under way.
        flash_due, warm_due: registered questions that are out of date, not under way, and may be
            computed now.
        flash_rows: registered questions under way, those whose last step is launched included.
        flash_blocks: tail blocks that the first of those due needs.
        flash_since_s: since when the session's version is unanswered.
        flash_served: number of the step that last served its registered questions.
        flash_overdue: a due one is past its deadline.
    """

    key: int
    seen_cells: int
    ingest_tokens: int = 0
    ingest_entries: bool = False
    ingest_since_s: float = 0.0
    ingest_served: int = 0
    growth_tokens: int = 1 << 30
    runs: tuple[RunView, ...] = ()
    flash_due: int = 0
    warm_due: int = 0
    flash_rows: int = 0
    flash_blocks: int = 1
    flash_since_s: float = 0.0
    flash_served: int = 0
    flash_overdue: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The engine at one moment.

    Attributes:
        sessions: those that have something to do.
        free_blocks: tail blocks that nobody holds.
        evictable_blocks: those that registered and warm questions hold.
        waited: steps that each class has let others go first while it could run.
        asks_began: whether the last step of asks began some.
        rows: rows of one step at most.
        start_rows: (tokens, rows), ascending: as many questions of so many tokens can begin in one
            step.
        extend_tokens: tokens of an ingest step at most.
        next_due_s: when a registered question may be computed again that may not be now.
    """

    sessions: tuple[SessionView, ...]
    free_blocks: int
    evictable_blocks: int = 0
    waited: dict[Work, int] = field(default_factory=dict)
    asks_began: bool = False
    rows: int = 64
    start_rows: tuple[tuple[int, int], ...] = ((1024, 64),)
    extend_tokens: int = 256
    next_due_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Read up to `tokens` of what waits in a session's queue."""

    work: Work
    session: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Begin questions of a session: those waiting asks, or (none named) what is due of the class.

    `evict`: the tail blocks of registered and warm questions under way are needed for it.
    """

    work: Work
    session: int
    runs: tuple[int, ...] = ()
    evict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GoOn:
    """Take questions that are under way one step further; all in the same stage."""

    work: Work
    session: int
    stage: Stage
    runs: tuple[int, ...]


Step: TypeAlias = Ingest | Begin | GoOn


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now.

    Attributes:
        step: the next step, or None.
        runnable: classes that could have run.
        until_s: without a step: when to look again, None if only something new can help.
    """

    step: Step | None
    runnable: frozenset[Work] = frozenset()
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A step that could be next; the smallest order comes first."""

    step: Step
    served: int
    since_s: float
    begins: bool = False

    @property
    def order(self) -> tuple[int, float, int]:
        return (self.served, self.since_s, self.step.session)


def plan(view: View, policy: Policy) -> Plan:
    """The next step."""
    candidates: dict[Work, list[_Candidate]] = {work: [] for work in WORKS}
    for session in view.sessions:
        candidates["ask"] += _ask_candidates(session, view, policy)
        candidates["ingest"] += _ingest_candidates(session, view)
        candidates["flash"] += _flash_candidates(session, view)
        candidates["warm"] += _warm_candidates(session, view)
    runnable = frozenset[Work](work for work in WORKS if candidates[work])
    work = _choose_class(runnable, view, policy)
    if work is None:
        return Plan(step=None, until_s=view.next_due_s)
    step = _choose(candidates[work], prefer_going_on=work == "ask" and view.asks_began)
    return Plan(step=step, runnable=runnable)


def _choose_class(runnable: frozenset[Work], view: View, policy: Policy) -> Work | None:
    for work in WORKS:
        patient = work == "ask" or view.waited.get(work, 0) < policy.patience(work)
        if work in runnable and not patient:
            return work
    return next((work for work in WORKS if work in runnable), None)


def _choose(candidates: list[_Candidate], *, prefer_going_on: bool) -> Step:
    preferred = [one for one in candidates if one.begins != prefer_going_on]
    return min(preferred or candidates, key=lambda one: one.order).step


def _ask_candidates(session: SessionView, view: View, policy: Policy) -> Iterator[_Candidate]:
    asks = [run for run in session.runs if run.work == "ask"]
    waiting = sorted((run for run in asks if run.stage == "waiting"), key=lambda run: run.arrived_s)
    blocked = [run for run in waiting if run.blocked]
    if blocked and session.ingest_entries:
        yield from _ingest_candidates(session, view, work="ask", since_s=blocked[0].arrived_s)
    ready = [run for run in waiting if not run.blocked]
    if begun := _fitting(ready, view):
        evict = sum(run.blocks for run in begun) > view.free_blocks
        keys = tuple(run.key for run in begun)
        step = Begin(work="ask", session=session.key, runs=keys, evict=evict)
        yield _Candidate(step, served=0, since_s=begun[0].arrived_s, begins=True)
    yield from _going_on(session, asks, view, policy)
    if session.flash_overdue:
        yield from _flash_candidates(session, view, work="ask")


def _fitting(waiting: list[RunView], view: View) -> list[RunView]:
    """As many of these, oldest first, as one step and the tail blocks can take."""
    taken: list[RunView] = []
    blocks_left, longest = view.free_blocks + view.evictable_blocks, 0
    for run in waiting:
        longest = max(longest, run.tokens)
        if run.blocks > blocks_left or len(taken) >= rows_beginning(longest, view.start_rows):
            break
        taken.append(run)
        blocks_left -= run.blocks
    return taken


def rows_beginning(tokens: int, start_rows: tuple[tuple[int, int], ...]) -> int:
    """How many questions can begin in one step if the longest reads so many tokens."""
    return next(rows for size, rows in start_rows if tokens <= size)


def _going_on(
    session: SessionView, runs: list[RunView], view: View, policy: Policy
) -> Iterator[_Candidate]:
    """One candidate for each stage and pinned length; questions still reading go one by one."""
    groups: dict[tuple[Stage, int, int], list[RunView]] = {}
    for run in runs:
        if run.stage != "waiting":
            alone = run.key if run.stage == "reading" else -1
            groups.setdefault((run.stage, run.seen_cells, alone), []).append(run)
    for (stage, seen_cells, _), members in groups.items():
        chosen = sorted(members, key=lambda run: (run.served, run.arrived_s))[: view.rows]
        riding = _riders(session, stage, seen_cells, len(chosen), view, policy)
        step = GoOn(
            work=chosen[0].work,
            session=session.key,
            stage=stage,
            runs=tuple(run.key for run in (*chosen, *riding)),
        )
        yield _Candidate(step, served=chosen[0].served, since_s=chosen[0].arrived_s)


def _riders(
    session: SessionView, stage: Stage, seen_cells: int, rows: int, view: View, policy: Policy
) -> list[RunView]:
    """Registered questions that decode at the same length and cost next to nothing in this step."""
    room = min(policy.ride_rows, view.rows) - rows
    riders = [
        run
        for run in session.runs
        if run.work == "flash" and run.stage == stage and run.seen_cells == seen_cells
    ]
    return riders[: max(room, 0)] if stage == "decoding" else []


def _ingest_candidates(
    session: SessionView, view: View, *, work: Work = "ingest", since_s: float | None = None
) -> Iterator[_Candidate]:
    tokens = min(view.extend_tokens, session.growth_tokens, session.ingest_tokens)
    if session.ingest_entries and (tokens > 0 or session.ingest_tokens == 0):
        step = Ingest(work=work, session=session.key, tokens=tokens)
        began_s = session.ingest_since_s if since_s is None else since_s
        yield _Candidate(step, session.ingest_served, began_s, begins=True)


def _flash_candidates(
    session: SessionView, view: View, *, work: Work = "flash"
) -> Iterator[_Candidate]:
    """Those of one session go together: all that are due begin before any goes on."""
    running = [run for run in session.runs if run.work == "flash"]
    outdated = any(run.seen_cells != session.seen_cells for run in running)
    room = session.flash_rows < view.rows and view.free_blocks >= session.flash_blocks
    if session.flash_due and room and not outdated:
        step = Begin(work=work, session=session.key)
        served = 0 if work == "ask" else session.flash_served  # among asks, who came first begins
        yield _Candidate(step, served, session.flash_since_s, begins=True)
    else:
        yield from _going_on_alone(session, running, view, work)


def _going_on_alone(
    session: SessionView, running: list[RunView], view: View, work: Work
) -> Iterator[_Candidate]:
    by_stage: dict[Stage, list[RunView]] = {}
    for run in running:
        by_stage.setdefault(run.stage, []).append(run)
    for stage, members in by_stage.items():
        chosen = sorted(members, key=lambda run: run.served)
        chosen = chosen[: 1 if stage == "reading" else view.rows]
        keys = tuple(run.key for run in chosen)
        step = GoOn(work=work, session=session.key, stage=stage, runs=keys)
        yield _Candidate(step, session.flash_served, session.flash_since_s)


def _warm_candidates(session: SessionView, view: View) -> Iterator[_Candidate]:
    if session.warm_due:
        step = Begin(work="warm", session=session.key)
        yield _Candidate(step, session.flash_served, session.flash_since_s, begins=True)
