"""Where one session's cells live, what they are made of, and what they may take. Plain numbers.

Comes in: tokens that were read, moves. Goes out: a `Residence` that `BlockBudget` and the
launcher look at. The token log is the truth and the cells are a cache of it: whatever becomes of
them, they can be computed again. Does not know: other sessions, devices, text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(slots=True, kw_only=True, eq=False)
class Residence:
    """One session's cells.

    Attributes:
        table: where they lie while they are on the device.
        log: what they are made of.
        tenant: whose they are.
        reserve_blocks: that are always there for it; none any more once its user suspended it.
        pinned: whether it never leaves the device.
        chain: names of the whole blocks of its opening.
        place: where they are.
        granted_blocks: that it may have while it is on the device.
        ordered_blocks: what the budgets count for it: the blocks of all that it has read and of
            what waits to be read.
        wants_since: number of the step since when it waits for room; None if it does not.
        waits_for_prefix: another session computes what it opens with.
        placed_at: number of the step at which it last came to the device, or was seen not to be all
            there yet.
        served: steps since then that did something for it, computing cells again not counted.
        used_s: when it was last pushed to, asked, or read for.
        draining: it is to leave, so nothing begins that would hold it.
        leaving: its user wants it to leave.
        coming: its user wants it on the device, though it has nothing to do there.
        fetching: it is on its way from the disk to the host.
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

    table: CellTable
    log: TokenLog = field(default_factory=TokenLog)
    tenant: str = "default"
    reserve_blocks: int = 0
    pinned: bool = False
    chain: tuple[Link, ...] = ()
    place: Place = "log"
    granted_blocks: int = 0
    ordered_blocks: int = 0
    wants_since: int | None = None
    waits_for_prefix: bool = False
    placed_at: int = 0
    served: int = 0
    used_s: float = 0.0
    draining: bool = False
    leaving: bool = False
    coming: bool = False
    fetching: bool = False
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
    def on_device(self) -> bool:
        """Whether steps can look at its cells."""
        return self.place == "device"

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

    def seen(self, session: int, cells: int) -> Seen:
        """What a row or a chunk looks at; valid as long as the session stays on the device."""
        return Seen(session=session, tables=self.table.blocks, cells=cells)
