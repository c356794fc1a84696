"""Which sessions may hold how many blocks of the pool.

Comes in: sessions with what they have read, what waits, what was reserved for them. Goes out:
grants of blocks, and refusals. Plain integers; does not know: devices, tokens, threads, which
session comes first.

All counts are blocks of the primary group. A session on the device is *granted* blocks, at least
its reserve, and its table never holds more. What is granted and not held yet is *promised*, and so
is the reserve of a session that is not there: nobody else gets it. So

    held by tables + promised to sessions on the device <= all

always, and a granted block is always there to be taken. (With the reserves of those that are not
there it may be more than all, until sessions that got the blocks before make way.)

What cannot be taken from a session is *firm*: its reserve, and all that a pinned session was
ordered to hold. A request is accepted only if what it orders fits beside what is firm of the
others; so whoever was accepted can always be given room, by sending away sessions that are not
firm. That is why nothing deadlocks, however the pool was filled (`swap_policy` says who leaves).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxstate.cells.tables import TableBook
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.sessions.residence import ResidencyState
from jaxstate.errors import BudgetExceeded


@dataclass(slots=True)
class _Counted:
    """What one session counts for."""

    tenant: str
    pinned: bool
    rebuilds: bool
    promised: int = 0
    firm: int = 0
    ordered: int = 0


def _counted(record: SessionRecord) -> _Counted:
    residence = record.residence
    return _Counted(residence.tenant, residence.pinned, record.rebuilds is not None)


class BlockBudget:
    """The budget of one pool.

    Args:
        tables: its blocks.
        sessions: how many may be on the device at once.
        quota_cells: of a tenant, None for no bound.
        touch: is told of each session whose share has changed.
    """

    def __init__(
        self,
        tables: TableBook,
        *,
        sessions: int,
        quota_cells: Callable[[str], int | None],
        touch: Callable[[SessionRecord], None] = lambda _: None,
    ) -> None:
        self.touch = touch
        self._tables = tables
        self._layout = tables.layout
        self._sessions = sessions
        self._quota_cells = quota_cells
        self._counted: dict[int, _Counted] = {}
        self._promised = self._firm = self._on_device = 0
        # Sessions that are not on the device, or lack blocks there, or are to leave it.
        self._short: dict[int, SessionRecord] = {}

    @property
    def blocks(self) -> int:
        """All that there are."""
        return self._tables.primary.count

    @property
    def free(self) -> int:
        """Blocks that nobody holds and nobody was promised; kept prefixes make way. Negative while
        others have what is reserved for a session that is not there."""
        # Rings share blocks only until they turn, so all that was granted for them is promised.
        held = 0 if self._layout.turns else self._tables.primary.held
        return self.blocks - held - self._promised

    @property
    def firm(self) -> int:
        """Blocks that cannot be taken from their sessions."""
        return self._firm

    @property
    def on_device(self) -> int:
        """Sessions whose cells are there."""
        return self._on_device

    @property
    def short(self) -> Sequence[SessionRecord]:
        """Sessions that are not on the device, or lack blocks there, or are to leave it."""
        return tuple(self._short.values())

    @property
    def has_line(self) -> bool:
        """Whether sessions wait for room; who comes now would overtake them."""
        return any(record.residence.wants_since is not None for record in self._short.values())

    def admit(self, record: SessionRecord, reserve_blocks: int, cells: int) -> None:
        """A new session, which comes to the device at once if it can.

        Args:
            record: its records.
            reserve_blocks: that are to be there for it at any time.
            cells: that it begins with.

        Raises:
            BudgetExceeded: there is no room for it, or others could not come back beside it; the
                records are as they were.
        """
        blocks = max(reserve_blocks, self._layout.held_blocks(cells))
        residence = record.residence
        firm = blocks if residence.pinned else reserve_blocks
        most, most_firm = self._most_blocks(record), self._most_firm(record)
        if blocks > most or (firm and firm > most_firm):
            could = most if firm <= most_firm else min(most, most_firm)
            raise BudgetExceeded(self._refusal(record, blocks, could))
        self._check_places(record)
        residence.reserve_blocks = reserve_blocks
        residence.ordered_blocks = self._layout.held_blocks(cells)
        self.update(record)

    def _check_places(self, record: SessionRecord) -> None:
        """Pinned sessions leave a place on the device to those that come and go.

        Raises:
            BudgetExceeded: with this one they would not.
        """
        pinned = record.residence.pinned + sum(one.pinned for one in self._counted.values())
        others = not record.residence.pinned or any(
            not one.pinned for one in self._counted.values()
        )
        if pinned + others > self._sessions:
            raise BudgetExceeded(
                f"session {record.id!r} finds no place: {self._sessions} sessions may be on the "
                f"device at once, and {pinned} would be pinned there; close one of them, open "
                'sessions with residency="evictable", or start the engine with more sessions='
            )

    def most_cells(self, record: SessionRecord) -> int:
        """How many cells a session may order in all."""
        most = self._most_blocks(record)
        if record.residence.pinned:
            most = min(most, self._most_firm(record))
        if most >= self._layout.groups[self._layout.primary].table_width:
            return self._layout.cells
        return most * self._layout.block_cells

    def refusal(self, record: SessionRecord, cells: int) -> BudgetExceeded:
        """The error for who orders more than that."""
        blocks, most = self._layout.held_blocks(cells), self.most_cells(record)
        return BudgetExceeded(self._refusal(record, blocks, most // self._layout.block_cells))

    def order(self, record: SessionRecord, cells: int) -> None:
        """A session is to hold so many cells in all, at most `most_cells`."""
        residence = record.residence
        residence.ordered_blocks = self._layout.held_blocks(cells)
        # Entries may have been displaced: a pinned session would keep what it was granted for them.
        residence.granted_blocks = min(residence.granted_blocks, self._wanted(record))
        self.update(record)

    def update(self, record: SessionRecord) -> None:
        """Counts a session anew after anything of it has changed."""
        self.touch(record)
        self.count_anew(record)

    def count_anew(self, record: SessionRecord) -> None:
        """Counts a session anew, after others that it shared blocks with have changed."""
        counted = self._counted.setdefault(record.key, _counted(record))
        promised, firm = self._promise_of(record), self._firm_of(record)
        self._promised += promised - counted.promised
        self._firm += firm - counted.firm
        counted.promised, counted.firm = promised, firm
        counted.ordered = self._wanted(record)
        residence = record.residence
        stays = residence.on_device and residence.state is not ResidencyState.LEAVING
        if stays and not self.lacks(record):
            self._short.pop(record.key, None)
            residence.wants_since = None
        else:
            self._short[record.key] = record

    def forget(self, record: SessionRecord) -> None:
        """A session is gone, and its cells with it."""
        if record.residence.on_device:
            self._on_device -= 1
        record.residence.become(ResidencyState.LOG)
        self._tables.drop(record.residence.table)
        self._short.pop(record.key, None)
        counted = self._counted.pop(record.key, None)
        if counted is not None:
            self._promised -= counted.promised
            self._firm -= counted.firm

    def readable_tokens(self, record: SessionRecord) -> int:
        """Tokens that may be read for it within what it was granted."""
        residence = record.residence
        if residence.granted_blocks >= self._layout.groups[self._layout.primary].table_width:
            return self._layout.cells - residence.table.cells
        return residence.granted_blocks * self._layout.block_cells - residence.table.cells

    def arrive(self, record: SessionRecord, now_step: int) -> None:
        """A session comes to the device, and is granted all that it wants."""
        residence = record.residence
        residence.become(ResidencyState.DEVICE)
        residence.placed_at = now_step
        residence.wants_since, residence.coming = None, False
        residence.granted_blocks, residence.served = self._wanted(record), 0
        residence.there_cells = 0  # until they are placed, or computed
        self._on_device += 1
        self.update(record)

    def leave(self, record: SessionRecord) -> None:
        """A session leaves the device; if its user said so, it gives its reserve up."""
        residence = record.residence
        self._tables.drop(residence.table)
        self._on_device -= 1
        was_suspended = residence.state is ResidencyState.LEAVING
        residence.become(ResidencyState.LOG)
        residence.oldest_cells = residence.granted_blocks = 0
        if was_suspended:
            residence.reserve_blocks = 0
        # Who waits for it to be on the device still does.
        residence.coming = bool(record.come_waiters) and not was_suspended
        self.update(record)

    def blocks_of(self, cells: int) -> int:
        """Blocks of a session of so many cells."""
        return self._layout.held_blocks(cells)

    def has_room(self, blocks: int) -> bool:
        """Whether one more session, with so many blocks of its own, can be on the device."""
        return self._on_device < self._sessions and blocks <= self.free

    def has_room_for(self, record: SessionRecord) -> bool:
        """Whether a session can come to the device now, with all that it wants."""
        # Its own reserve is promised already.
        counted = self._counted.get(record.key)
        own = 0 if counted is None else counted.promised
        return self._on_device < self._sessions and self._wanted(record) <= self.free + own

    def grant(self, record: SessionRecord) -> bool:
        """Gives what there is; whether that is all that it wants."""
        residence = record.residence
        if not residence.on_device:
            return self.has_room_for(record)
        missing = self._wanted(record) - residence.granted_blocks
        residence.granted_blocks += max(0, min(missing, self.free))
        self.update(record)
        return not self.lacks(record)

    def lacks(self, record: SessionRecord) -> bool:
        """Whether it was granted less than it wants."""
        return self.lacking(record) > 0

    def lacking(self, record: SessionRecord) -> int:
        """Blocks that it wants beyond those that it was granted."""
        return max(0, self._wanted(record) - record.residence.granted_blocks)

    def keeps_to_its_reserve(self, record: SessionRecord) -> bool:
        """Whether it wants nothing that is not promised to it."""
        return self._wanted(record) <= record.residence.reserve_blocks

    def gains_by(self, record: SessionRecord) -> bool:
        """Whether there is more room for others once a session has left the device."""
        residence = record.residence
        takes = residence.granted_blocks + self._copies(record)
        return takes > residence.reserve_blocks or self._on_device >= self._sessions

    def _wanted(self, record: SessionRecord) -> int:
        return max(record.residence.ordered_blocks, record.residence.reserve_blocks)

    def _promise_of(self, record: SessionRecord) -> int:
        residence = record.residence
        if not residence.on_device:
            return residence.reserve_blocks
        held = 0 if self._layout.turns else self._tables.held_blocks(residence.table)
        return max(0, residence.granted_blocks - held) + self._copies(record)

    def _firm_of(self, record: SessionRecord) -> int:
        residence = record.residence
        if not residence.pinned:
            return residence.reserve_blocks
        return max(residence.reserve_blocks, residence.ordered_blocks) + self._copies(record)

    def _copies(self, record: SessionRecord) -> int:
        """Blocks that it takes beside those that it was granted."""
        residence = record.residence
        if not residence.on_device or self._layout.turns:
            return 0
        return int(self._tables.copies_first(residence.table))

    def _most_blocks(self, record: SessionRecord) -> int:
        """What is left beside the others' firm blocks, and within the tenant's quota."""
        own = self._counted.get(record.key, _counted(record))
        most = self.blocks - (self._firm - own.firm)
        left = self._quota_left(record)
        return most if left is None else min(most, left)

    def _quota_left(self, record: SessionRecord) -> int | None:
        """What the tenant's other sessions leave of its quota; None without one."""
        quota_cells = self._quota_cells(record.residence.tenant)
        if quota_cells is None or record.rebuilds is not None:
            return None  # what is read anew beside a session is not counted twice
        others = (
            one.ordered
            for key, one in self._counted.items()
            if key != record.key and one.tenant == record.residence.tenant and not one.rebuilds
        )
        return quota_cells // self._layout.block_cells - sum(others)

    def _most_firm(self, record: SessionRecord) -> int:
        """What may become firm so that every other session can still come back."""
        own = self._counted.get(record.key, _counted(record))
        beside = self.blocks - (self._firm - own.firm)
        others = (
            one.ordered - one.firm
            for key, one in self._counted.items()
            if key != record.key and not one.rebuilds
        )
        return beside - max(others, default=0)

    def _refusal(self, record: SessionRecord, blocks: int, most: int) -> str:
        """What was wanted, what is there, what would help."""
        size, tenant = self._layout.block_cells, record.residence.tenant
        left = self._quota_left(record)
        needs = (
            f"session {record.id!r} needs {blocks * size} cells and could have "
            f"{max(0, most) * size}, in blocks of {size}: "
        )
        if left is not None and left <= most:
            return (
                f"{needs}tenant {tenant!r} may have {self._quota_cells(tenant)} in all its "
                "sessions together. Close one of them, or give the tenant a larger quota_cells"
            )
        return (
            f"{needs}of {self.blocks * size} cells {self._firm * size} are reserved or pinned and "
            f"{max(0, self.free) * size} are free. Close a session that has a reserve or is "
            "pinned, suspend one that has a reserve, reserve less, or start the engine with more "
            "cells="
        )
