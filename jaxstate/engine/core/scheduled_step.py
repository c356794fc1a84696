"""A step on its way, as data: which rows it has, and whose each of them is.

Comes in: what batching has chosen. Goes out: the executor's rows, and for whoever records the
result, or the failure, what each of them was for. Does not know: devices, how it was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxstate.cells.tables import BlockCopy
from jaxstate.engine.executor.protocol import StepKind
from jaxstate.engine.requests.request import Request
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.sessions.residence import Residence
from jaxstate.engine.types.values import Work
from jaxstate.steps.packing import Row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduledRead:
    """What one session reads.

    Attributes:
        record: the session, or the rebuild of its context.
        residence: the cells that it is read into; a session's window may move meanwhile.
        row: its chunk; None if what it reads has no tokens.
        start: cells that it goes on from.
        end: cells once it is there.
        attempt: of the session's residence; a later one reads the same again.
    """

    record: SessionRecord
    residence: Residence
    row: Row | None
    start: int
    end: int
    attempt: int

    @property
    def owner(self) -> SessionRecord | None:
        """Whose cells they are now; None for those of a rebuild that was given up."""
        record, session = self.record, self.record.rebuilds
        if session is None or session.residence is self.residence:
            return session or record
        return record if record.residence is self.residence and not record.closed else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduledRequest:
    """What one question reads, or is scored with.

    Attributes:
        record: its session.
        request: it.
        rows: its rows; a question of given answers has one for each of them that is scored.
        counts: whether what comes out counts: the question is read to its end.
    """

    record: SessionRecord
    request: Request
    rows: tuple[Row, ...]
    counts: bool


@dataclass(slots=True, kw_only=True, eq=False)
class ScheduledStep:
    """One step.

    Attributes:
        kind: what the executor does.
        planned_work: the class that the scheduler chose it for.
        requests: questions in it.
        reads: what sessions read in it.
        copies: of blocks, before it.
        lent: whether it was planned for registered questions that are as urgent as asks.
    """

    kind: StepKind
    planned_work: Work
    lent: bool
    requests: list[ScheduledRequest] = field(default_factory=list)
    reads: list[ScheduledRead] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """Those of the questions, then the chunks."""
        chunks = (read.row for read in self.reads if read.row is not None)
        return [*(row for one in self.requests for row in one.rows), *chunks]

    @property
    def work(self) -> Work:
        """The class that it is counted under."""
        if self.requests or self.planned_work == "rebuild":
            return self.planned_work
        return "ingest"

    @property
    def works(self) -> frozenset[Work]:
        """All classes that it serves: registered questions that are as urgent as asks count as
        asks, and what is read for an ask as the ask's, so that ingest keeps the share of its own;
        what rides along counts."""
        if self.lent:
            riding: set[Work] = set()
        else:
            riding = {one.request.work for one in self.requests}
        if self.requests and self.reads:
            riding.add("ingest")
        return frozenset[Work]({self.planned_work, *riding})

    @property
    def read_tokens(self) -> int:
        """That it reads for sessions, if it does nothing else."""
        if self.requests:
            return 0
        return sum(read.end - read.start for read in self.reads)
