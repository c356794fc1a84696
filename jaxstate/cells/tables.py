"""The tables of all sessions in one pool: growing, sharing, copying on a write. Host side only.

Comes in: what a session is to hold. Goes out: block numbers, and the copies that the device must
make before the next write. A table shares blocks with others after a `fork`, or when it begins with
a kept prefix; a shared block is never written: whoever grows into it gets a copy first. Does not
know: device arrays, tokens, queues, budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.blocks import BlockPool
from jaxstate.cells.layout import PoolLayout

NO_BLOCK = -1


@dataclass(frozen=True, slots=True)
class GroupBlock:
    """A block of one group's pool."""

    group: int
    block: int


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """What the device must copy, in all layers of a group, before anything is written."""

    group: int
    source: int
    target: int


@dataclass(slots=True, eq=False)
class CellTable:
    """Where one session's cells lie.

    Attributes:
        cells: how many it holds, once all that was launched is done.
        blocks: for each group int32 [W], the physical block of logical block b at entry b % W;
            `NO_BLOCK` where there is none.
    """

    blocks: tuple[NDArray[np.int32], ...]
    cells: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """The cells of one session that a row looks at, or that a chunk goes on from.

    Attributes:
        session: its name; rows that name the same session and cells read them together.
        tables: for each group int32 [W], as in `CellTable`.
        cells: how many of them.
        slid_cells: that were dropped before the newest of them, which keep their positions: what is
            read next goes on at position `cells` + `slid_cells`.
    """

    session: int
    tables: tuple[NDArray[np.int32], ...]
    cells: int
    slid_cells: int = 0

    @property
    def together(self) -> tuple[int, int]:
        """Rows with the same look at the same."""
        return self.session, self.cells


@dataclass(slots=True, eq=False)
class TableBook:
    """All tables, and the blocks that they share.

    Attributes:
        layout: of the sessions and their pool.
        groups: the blocks of each group.
        reclaim: frees a block that is only kept, and says whether there was one; asked when a pool
            has no free block left.
    """

    layout: PoolLayout
    reclaim: Callable[[], bool] = lambda: False
    groups: tuple[BlockPool, ...] = field(init=False)
    _freed: list[GroupBlock] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Nothing is held yet."""
        self.groups = tuple(map(BlockPool, self.layout.group_blocks))

    @property
    def primary(self) -> BlockPool:
        """The blocks that budgets count."""
        return self.groups[self.layout.primary]

    def new(self) -> CellTable:
        """A table without cells."""
        widths = (group.table_width for group in self.layout.groups)
        return CellTable(tuple(np.full(width, NO_BLOCK, np.int32) for width in widths))

    def held_blocks(self, table: CellTable) -> int:
        """Blocks of the primary group in it."""
        return int(np.count_nonzero(table.blocks[self.layout.primary] != NO_BLOCK))

    def fork_blocks(self, cells: int) -> int:
        """Blocks that have to be there so that a fork of so many cells and its parent can both go
        on: each may have to copy the block that is half full. Of a ring that turns nothing stays
        shared."""
        if self.layout.turns:
            return self.layout.held_blocks(cells)
        return 2 * (cells % self.layout.block_cells > 0)

    def copies_first(self, table: CellTable) -> bool:
        """Whether its next cell lies in a block that others see as well."""
        block_cells, primary = self.layout.block_cells, self.layout.primary
        if table.cells % block_cells == 0:
            return False
        entries = table.blocks[primary]
        last = int(entries[table.cells // block_cells % len(entries)])
        return self.primary.is_shared(last)

    def grow(self, table: CellTable, cells: int) -> list[BlockCopy]:
        """Blocks for `cells` in all; the caller has looked that there are enough.

        Returns:
            What must be copied before the new cells are written.
        """
        copies: list[BlockCopy] = []
        for group, entries in enumerate(table.blocks):
            copies += self._own_last(group, entries, table.cells)
            first = -(-table.cells // self.layout.block_cells)
            for logical in range(first, -(-cells // self.layout.block_cells)):
                self._release(group, int(entries[logical % len(entries)]))
                entries[logical % len(entries)] = self._take(group)
        table.cells = cells
        return copies

    def without(self, table: CellTable, first: int, last: int) -> CellTable:
        """A table that shares its blocks but for logical blocks first .. last - 1; the device has
        nothing to do. No group may be a ring."""
        twin = self.new()
        twin.cells = table.cells - (last - first) * self.layout.block_cells
        for group, entries in enumerate(table.blocks):
            kept = np.concatenate([entries[:first], entries[last:]])
            twin.blocks[group][: len(kept)] = kept
            for block in kept.tolist():
                if block != NO_BLOCK:
                    self.groups[group].share(block)
        return twin

    def fork(self, table: CellTable, cells: int | None = None) -> CellTable:
        """A table that shares its blocks; the device has nothing to do.

        Args:
            table: its cells stay as they are.
            cells: the fork has only its first so many, all of which must be there still
                (`PoolLayout.readable_until`); None for all.
        """
        if cells is None or cells == table.cells:
            shared = [np.arange(len(entries)) for entries in table.blocks]
        else:
            shared = [self._entries_before(table, entries, cells) for entries in table.blocks]
        twin = self.new()
        twin.cells = table.cells if cells is None else cells
        for group, (entries, taken) in enumerate(zip(table.blocks, shared, strict=True)):
            twin.blocks[group][taken] = entries[taken]
            for block in entries[taken].tolist():
                if block != NO_BLOCK:
                    self.groups[group].share(block)
        return twin

    def _entries_before(
        self, table: CellTable, entries: NDArray[np.int32], cells: int
    ) -> NDArray[np.int64]:
        """Which entries of a table have blocks of its first `cells` cells. Those that a ring used
        again for later ones are not among them."""
        end, last = (-(-count // self.layout.block_cells) for count in (cells, table.cells))
        return np.arange(max(0, last - len(entries)), max(end, 0)) % len(entries)

    def adopt(self, table: CellTable, blocks: Sequence[Sequence[int]]) -> None:
        """Begins an empty table with whole blocks that are kept.

        Args:
            table: without cells.
            blocks: of each logical block from 0 on, one of each group.
        """
        cells = len(blocks) * self.layout.block_cells
        for group, entries in enumerate(table.blocks):
            first = self.layout.groups[group].first_kept_block(cells, self.layout.block_cells)
            for logical in range(first, len(blocks)):
                block = blocks[logical][group]
                self.groups[group].share(block)
                entries[logical % len(entries)] = block
        table.cells = cells

    def block_of(self, table: CellTable, logical: int) -> tuple[int, ...]:
        """The physical blocks, one of each group, of a logical block that the table still has."""
        return tuple(int(entries[logical % len(entries)]) for entries in table.blocks)

    def drop(self, table: CellTable) -> None:
        """Gives all its blocks back; the table is empty.

        Its arrays are new ones: a step that was prepared with the old ones may not have been
        launched yet, and must not find its blocks gone (it is done before whoever gets them next).
        """
        for group, entries in enumerate(table.blocks):
            for block in entries.tolist():
                self._release(group, block)
        table.blocks = tuple(np.full_like(entries, NO_BLOCK) for entries in table.blocks)
        table.cells = 0

    def keep(self, blocks: Sequence[int]) -> None:
        """One block of each group stays when its owners go."""
        for group, block in enumerate(blocks):
            self.groups[group].keep(block)

    def unkeep(self, blocks: Sequence[int]) -> None:
        """It goes with its owners."""
        for group, block in enumerate(blocks):
            if self.groups[group].unkeep(block):
                self._freed.append(GroupBlock(group, block))

    def is_held(self, blocks: Sequence[int]) -> bool:
        """Whether a table has that block of the primary group."""
        return self.primary.owners(blocks[self.layout.primary]) > 0

    def take_freed(self) -> list[GroupBlock]:
        """Blocks that were freed since the last call, in order; some may be taken again."""
        freed, self._freed = self._freed, []
        return freed

    def is_free(self, freed: GroupBlock) -> bool:
        """Whether nobody has taken it since."""
        return not self.groups[freed.group].is_shared(freed.block) and (
            self.groups[freed.group].owners(freed.block) == 0
        )

    def free_blocks(self) -> list[GroupBlock]:
        """All that nobody has."""
        return [
            GroupBlock(group, block)
            for group, pool in enumerate(self.groups)
            for block in pool.free_blocks
        ]

    def check(self, tables: Sequence[CellTable], kept: Sequence[Sequence[int]]) -> None:
        """What must always hold, if these are all tables and all kept blocks.

        Raises:
            AssertionError: it does not.
        """
        for group, pool in enumerate(self.groups):
            pool.check()
            owners = [0] * pool.count
            for table in tables:
                held = [b for b in table.blocks[group].tolist() if b != NO_BLOCK]
                assert len(held) == len(set(held)), "a table has a block twice"
                for block in held:
                    owners[block] += 1
            assert owners == [pool.owners(block) for block in range(pool.count)]
            used = {block for block, count in enumerate(owners) if count}
            used |= {blocks[group] for blocks in kept}
            assert pool.free == pool.count - len(used), "a block leaked"

    def _own_last(self, group: int, entries: NDArray[np.int32], cells: int) -> list[BlockCopy]:
        """A block that is partly full and shared becomes a copy of its own."""
        pool, size = self.groups[group], self.layout.block_cells
        if cells % size == 0:
            return []
        at = cells // size % len(entries)
        shared = int(entries[at])
        if not pool.is_shared(shared):
            return []
        entries[at] = self._take(group)
        self._release(group, shared)
        return [BlockCopy(group=group, source=shared, target=int(entries[at]))]

    def _take(self, group: int) -> int:
        pool = self.groups[group]
        while pool.free == 0:
            assert self.reclaim(), f"group {group} has no block left, and none is only kept"
        return pool.take()

    def _release(self, group: int, block: int) -> None:
        if block != NO_BLOCK and self.groups[group].release(block):
            self._freed.append(GroupBlock(group, block))
