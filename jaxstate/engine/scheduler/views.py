"""What the scheduler sees of the engine at one moment, and what it says: plain frozen numbers.

Comes in: numbers from the records. Goes out: a `View`; a `Plan` with one `Step`. Does not know: how
the one leads to the other (`scheduler`), devices, tokens, text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from jaxstate.engine.executor.protocol import RowSizes
from jaxstate.engine.types.values import Stage, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """A question that waits for its first step, or is under way.

    Attributes:
        key: its name.
        work: "ask" or "flash".
        stage: waiting (asks only), reading, scoring (given choices) or decoding.
        arrived_s: when it was asked, or when the version it answers was committed.
        served: number of the step that it last took part in, 0 for none.
        seen_cells: what it looks at; of one that waits, what it would look at now.
        tokens: what its next step reads, without padding.
        blocks: tail blocks that it holds, or would need.
        blocked: a waiting ask that cannot begin before its session has read more, or that would
            keep it from reading on.
        context: a name for what `seen_cells` are counted in: a session's window may move while a
            question is under way.
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
    context: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """One session that has something to do.

    Attributes:
        key: its name.
        seen_cells: committed cells, what a question that begins now looks at.
        tenant: whose it is.
        ingest_tokens: tokens that wait to be read, 0 also for entries without tokens.
        ingest_entries: whether any entry waits.
        ingest_since_s: since when the oldest waits.
        ingest_served: number of the step that last read for it.
        growth_tokens: how many may be read before questions under way would lose cells that they
            look at and may not lose.
        asks_served: number of the step in which one of its asks last began.
        requests: asks that wait (the oldest, as many as a step could begin) and all questions under
            way.
        flash_due: registered questions that are out of date, not under way, and may be
            computed now.
        flash_rows: registered questions under way, those whose last step is launched included.
        flash_blocks: tail blocks that the first of those due needs.
        flash_since_s: since when the session's version is unanswered.
        flash_served: number of the step that last served its registered questions.
        flash_overdue: one is past its deadline, or under way and was given up too often before.
        flash_old: one has used half of the time that its answer may be out of date.
        context: a name for what `seen_cells` are counted in.
        rebuilds: it is the context of another that is read anew, in idle time.
    """

    key: int
    seen_cells: int
    tenant: str = ""
    ingest_tokens: int = 0
    ingest_entries: bool = False
    ingest_since_s: float = 0.0
    ingest_served: int = 0
    growth_tokens: int = 1 << 30
    asks_served: int = 0
    requests: tuple[RequestView, ...] = ()
    flash_due: int = 0
    flash_rows: int = 0
    flash_blocks: int = 1
    flash_since_s: float = 0.0
    flash_served: int = 0
    flash_overdue: bool = False
    flash_old: bool = False
    context: int = 0
    rebuilds: bool = False

    @property
    def held_up(self) -> bool:
        """Whether only questions under way keep it from reading."""
        return self.ingest_entries and self.ingest_tokens > 0 >= self.growth_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The engine at one moment.

    Attributes:
        sessions: those that have something to do.
        changed: of those that are not as they were at the last view, what they are now (None for
            who has nothing to do any more); None if that may be all.
        free_blocks: tail blocks that nobody holds.
        evictable_blocks: those that registered questions hold and may lose.
        waited: steps that each class has let others go first while it could run, or only lacked
            what questions under way hold.
        asks_began: whether the last step as urgent as an ask was one that begins.
        flash_lent: whether it was one of registered questions.
        lends: whether registered questions whose answers are getting old are as urgent as asks.
        tenant_work: the work that each tenant had so far, by its weight.
        leaves_blocks: tail blocks that the asks of a tenant leave to others; none for who is not
            named.
        rows: rows of one step at most.
        row_sizes: in which numbers of rows steps come.
        start_rows: (tokens, rows), ascending: as many questions of so many tokens can begin in one
            step.
        extend_tokens: tokens of an ingest step at most.
        step_sessions: sessions that one step may serve.
        session_rows: rows of each, where it serves several.
        next_due_s: when a registered question may be computed again that may not be now.
    """

    sessions: Collection[SessionView]
    changed: Mapping[int, SessionView | None] | None = None
    free_blocks: int
    evictable_blocks: int = 0
    waited: dict[Work, int] = field(default_factory=dict)
    asks_began: bool = False
    flash_lent: bool = False
    lends: bool = False
    tenant_work: dict[str, float] = field(default_factory=dict)
    leaves_blocks: dict[str, int] = field(default_factory=dict)
    rows: int = 64
    row_sizes: RowSizes = field(
        default_factory=lambda: RowSizes(sizes=tuple(range(1, 65)), overhead_tokens=1)
    )
    start_rows: tuple[tuple[int, int], ...] = ((1024, 64),)
    extend_tokens: int = 256
    step_sessions: int = 1
    session_rows: int = 8
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

    `evict`: tail blocks of registered questions under way are needed for it.
    """

    work: Work
    session: int
    requests: tuple[int, ...] = ()
    evict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GoOn:
    """Take questions that are under way one step further; all in the same stage."""

    work: Work
    session: int
    stage: Stage
    requests: tuple[int, ...]


Step: TypeAlias = Ingest | Begin | GoOn


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now.

    Attributes:
        step: the next step, or None.
        joined: what other sessions have to do that shares the step, the most urgent first; as much
            of it is done as there are rows.
        runnable: classes that could have run.
        held_up: classes that only lacked what questions under way hold.
        until_s: without a step: when to look again, None if only something new can help.
    """

    step: Step | None
    joined: tuple[Step, ...] = ()
    runnable: frozenset[Work] = frozenset()
    held_up: frozenset[Work] = frozenset()
    until_s: float | None = None
