"""Where one session's cells live, what they are made of, and what they may take. Plain numbers.

Comes in: tokens that were read, moves. Goes out: a `Residence` that `BlockBudget` and
batching look at. The token log is the truth and the cells are a cache of it: whatever becomes of
them, they can be computed again. Does not know: other sessions, devices, text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypeAlias

from jaxstate.cells.prefixes import Link
from jaxstate.cells.tables import CellTable, Seen
from jaxstate.engine.sessions.token_log import TokenLog
from jaxstate.engine.types.values import Place
from jaxstate.errors import InvalidInput

Residency: TypeAlias = Literal["evictable", "pinned"]


def checked_residency(value: object) -> bool:
    """Whether a session of that class is pinned.

    Raises:
        InvalidInput: there is no such class.
    """
    if value not in ("evictable", "pinned"):
        raise InvalidInput(f'residency={value!r} is neither "evictable" nor "pinned"')
    return value == "pinned"


class ResidencyState(Enum):
    """Where a session's cells are, and where they are about to go.

    LOG: nowhere; they are computed again from the log. HOST: in the host's memory. DISK: in a
    checkpoint. FETCHING: on their way from there to the host. DEVICE: in the pool. DRAINING: in the
    pool, and to leave it for others, so nothing begins that would hold them. LEAVING: in the pool,
    and to leave it since the session's user said so.
    """

    LOG = "log"
    HOST = "host"
    DISK = "disk"
    FETCHING = "fetching"
    DEVICE = "device"
    DRAINING = "draining"
    LEAVING = "leaving"


_PLACES: dict[ResidencyState, Place] = {
    ResidencyState.LOG: "log",
    ResidencyState.HOST: "host",
    ResidencyState.DISK: "disk",
    ResidencyState.FETCHING: "disk",
    ResidencyState.DEVICE: "device",
    ResidencyState.DRAINING: "device",
    ResidencyState.LEAVING: "device",
}

# What may come next. Who is on the device leaves it through the log: a copy that was made is kept
# after that. Cells that are away may be lost (log), or be given up where a checkpoint has them.
_NEXT: dict[ResidencyState, frozenset[ResidencyState]] = {
    ResidencyState.LOG: frozenset(
        {ResidencyState.DEVICE, ResidencyState.HOST, ResidencyState.DISK}
    ),
    ResidencyState.HOST: frozenset(
        {ResidencyState.DEVICE, ResidencyState.DISK, ResidencyState.LOG}
    ),
    ResidencyState.DISK: frozenset(
        {ResidencyState.FETCHING, ResidencyState.HOST, ResidencyState.LOG}
    ),
    ResidencyState.FETCHING: frozenset(
        {ResidencyState.HOST, ResidencyState.DISK, ResidencyState.LOG}
    ),
    ResidencyState.DEVICE: frozenset(
        {ResidencyState.DRAINING, ResidencyState.LEAVING, ResidencyState.LOG}
    ),
    ResidencyState.DRAINING: frozenset(
        {ResidencyState.DEVICE, ResidencyState.LEAVING, ResidencyState.LOG}
    ),
    ResidencyState.LEAVING: frozenset({ResidencyState.DEVICE, ResidencyState.LOG}),
}


@dataclass(slots=True, kw_only=True, eq=False)
class Residence:
    """One session's cells.

    Attributes:
        name: rows that look at the same of these cells go by it.
        table: where they lie while they are on the device.
        log: what they are made of.
        slid_cells: that were dropped before the newest, which kept their positions. (All that is
            computed again from the log begins at the first.)
        tenant: whose they are.
        reserve_blocks: that are always there for it; none any more once its user suspended it.
        pinned: whether it never leaves the device.
        chain: names of the whole blocks of its opening.
        state: where they are, and where they are about to go; `become` changes it.
        on_device: whether steps can look at them, which the state says.
        granted_blocks: that it may have while it is on the device.
        ordered_blocks: what the budgets count for it: the blocks of all that it has read and of
            what waits to be read.
        wants_since: number of the step since when it waits for room; None if it does not.
        waits_for_prefix: another session computes what it opens with.
        placed_at: number of the step at which it last came to the device, or was seen not to be all
            there yet.
        served: steps since then that did something for it, computing cells again not counted.
        used_s: when it was last pushed to, asked, or read for.
        coming: it is away, and its user wants it on the device, though it has nothing to do.
        failures: steps and moves that failed for it, in a row.
        careful: what failed last came to no number, so the entries before it are read by
            themselves.
        attempt: how often it has gone back to read something again, and `attempt_cells`: from
            where on, the last time.
        sound_version: at which a question last had finite numbers, so that its cells are sound.
        doubted_version: at which its cells were last computed again, since a question had not.
        landed_cells: the most that were ever there: beyond them tokens are read for the first time.
        there_cells: that are there now, those of steps under way not counted.
        oldest_cells: who sees fewer of its cells does not find all of them, however short it is: a
            ring had turned before these cells were copied, or shared with it.
    """

    name: int
    table: CellTable
    log: TokenLog = field(default_factory=TokenLog)
    slid_cells: int = 0
    tenant: str = "default"
    reserve_blocks: int = 0
    pinned: bool = False
    chain: tuple[Link, ...] = ()
    state: ResidencyState = ResidencyState.LOG
    on_device: bool = False
    granted_blocks: int = 0
    ordered_blocks: int = 0
    wants_since: int | None = None
    waits_for_prefix: bool = False
    placed_at: int = 0
    served: int = 0
    used_s: float = 0.0
    coming: bool = False
    failures: int = 0
    careful: bool = False
    attempt: int = 0
    attempt_cells: int = 0
    sound_version: int = -1
    doubted_version: int = -1
    landed_cells: int = 0
    there_cells: int = 0
    oldest_cells: int = 0

    @property
    def unbegun(self) -> bool:
        """Whether it is on the device with an opening that others may share, and none of its cells
        is there."""
        return self.on_device and bool(self.chain) and not self.table.cells

    @property
    def place(self) -> Place:
        """Where they are."""
        return _PLACES[self.state]

    @property
    def leaves(self) -> bool:
        """Whether it is to leave the device."""
        return self.state in (ResidencyState.DRAINING, ResidencyState.LEAVING)

    def become(self, state: ResidencyState) -> None:
        """The next state, which may be the same."""
        assert state is self.state or state in _NEXT[self.state], f"{self.state} became {state}"
        self.state, self.on_device = state, _PLACES[state] == "device"

    @property
    def cells(self) -> int:
        """How many it has read, wherever they are, once all that was launched is done."""
        return len(self.log)

    @property
    def missing(self) -> int:
        """Cells that are to be computed again."""
        return len(self.log) - self.table.cells if self.on_device else 0

    @property
    def whole(self) -> bool:
        """Whether all cells that it ever had are on the device."""
        return self.on_device and self.there_cells >= self.landed_cells

    def is_sound(self, version: int) -> None:
        """A question had finite numbers at that version: its cells are not to blame for others."""
        self.sound_version = max(self.sound_version, version)

    def has_gone_back(self, attempt: int, end_cells: int) -> bool:
        """Whether what a step read up to there, launched in an earlier attempt, is read again."""
        if attempt == self.attempt:
            return False
        return attempt + 1 < self.attempt or end_cells > self.attempt_cells

    def seen(self, cells: int) -> Seen:
        """What a row or a chunk looks at; valid as long as the session stays on the device."""
        return Seen(
            session=self.name, tables=self.table.blocks, cells=cells, slid_cells=self.slid_cells
        )
