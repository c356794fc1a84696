"""Tables of many sessions in one pool, against a device that is a dict: every session always reads
its own tokens and nobody else's, and no block is ever lost. Plain Python.

A session *opens* with a text that others may open with too, and goes on with tokens that nobody
else has; so whatever is read in a wrong place is seen to be wrong.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jaxstate.cells.layout import PoolLayout, plan_layout, share_pool
from jaxstate.cells.prefixes import Link, PrefixCache
from jaxstate.cells.tables import NO_BLOCK, BlockCopy, CellTable, GroupBlock, TableBook
from jaxstate.config import LayerAttention, Rope
from jaxstate.testing import tiny_config

ROPE = Rope(base=10_000.0)
# A step reads no more tokens; so far a session may grow while somebody looks at its old cells.
CHUNK = 5
SESSIONS = 5
TENANTS = ("ann", "bob")
# 100 .. 119 and so on; the second begins like the first. The third is public, up to its end.
OPENINGS = (
    [*range(100, 120)],
    [*range(100, 109), *range(209, 217)],
    [*range(300, 312), *range(412, 416)],
)
PUBLIC = 2
PUBLIC_TOKENS = 10

GLOBAL, BOTH, RING = (None,), (7, None), (7,)
KINDS = {"global": GLOBAL, "both": BOTH, "window": RING}


def layout_of(windows: tuple[int | None, ...], block_cells: int, spare_blocks: int) -> PoolLayout:
    layers = tuple(LayerAttention(rope=ROPE, window=window) for window in windows)
    layout = plan_layout(
        tiny_config(layers=layers), cells=41, block_cells=block_cells, slack_cells=CHUNK
    )
    blocks = layout.groups[layout.primary].table_width + spare_blocks
    return share_pool(layout, blocks=blocks, sessions=SESSIONS)


@dataclass(frozen=True)
class Cell:
    """What one cell holds, and whose work it is."""

    position: int
    token: int
    tenant: str


class Device:
    """Blocks as dicts: what a pool on a device would hold."""

    def __init__(self, layout: PoolLayout) -> None:
        self.size = layout.block_cells
        self.blocks: list[dict[int, dict[int, Cell]]] = [{} for _ in layout.groups]

    def copy(self, copies: list[BlockCopy]) -> None:
        for one in copies:
            blocks = self.blocks[one.group]
            blocks[one.target] = dict(blocks[one.source])

    def write(self, table: CellTable, cell: Cell) -> None:
        """Into every group, where the table says."""
        logical, offset = divmod(cell.position, self.size)
        for blocks, entries in zip(self.blocks, table.blocks, strict=True):
            block = int(entries[logical % len(entries)])
            assert block != NO_BLOCK, "a cell has no place"
            blocks.setdefault(block, {})[offset] = cell

    def read(self, table: CellTable, group: int, position: int) -> Cell | None:
        logical, offset = divmod(position, self.size)
        entries = table.blocks[group]
        return self.blocks[group].get(int(entries[logical % len(entries)]), {}).get(offset)

    def poison(self, freed: GroupBlock) -> None:
        self.blocks[freed.group].pop(freed.block, None)


@dataclass(eq=False)
class Session:
    """What a session is to read back.

    Attributes:
        longest: it was that long since its table is what it is; `table.cells` may be less, after a
            step that failed.
        floor: no shorter version is there any more.
    """

    tenant: str
    table: CellTable
    tokens: list[int]
    rest: list[int] = field(default_factory=list)
    chain: tuple[Link, ...] = ()
    longest: int = 0
    floor: int = 0


class World:
    """A pool, its device, and sessions on it."""

    def __init__(self, layout: PoolLayout) -> None:
        self.layout = layout
        self.tables = TableBook(layout)
        self.prefixes = PrefixCache(self.tables, "a model")
        self.prefixes.publish(np.array(OPENINGS[PUBLIC][:PUBLIC_TOKENS], np.int32))
        self.device = Device(layout)
        self.sessions: list[Session] = []
        self.suspended: list[Session] = []
        self.fresh = itertools.count(1000)
        self.free = [set(range(count)) for count in layout.group_blocks]
        self.adopted_cells = self.copied_blocks = self.reclaimed = self.cut_forks = 0

    # --- what a caller may do ---------------------------------------------------------------

    def open(self, tenant: str, opening: list[int]) -> Session:
        session = Session(tenant, self.tables.new(), [], list(opening))
        session.chain = self.prefixes.chain(np.array(opening, np.int32), tenant)
        self.sessions.append(session)
        self._adopt(session)
        return session

    def _adopt(self, session: Session) -> None:
        cells = self.prefixes.adopt(session.table, session.chain)
        known = len(session.tokens)
        session.tokens += session.rest[: max(0, cells - known)]
        session.rest = session.rest[max(0, cells - known) :]
        assert cells == session.table.cells and cells % self.layout.block_cells == 0
        session.longest = session.floor = cells
        self.adopted_cells += cells

    def extend(self, session: Session, count: int) -> int:
        """Up to so many tokens, as far as there are blocks: again, of the opening, or new ones."""
        table, start = session.table, session.table.cells
        end = min(start + count, self.layout.cells)
        while end > start and not self._there_are_blocks(table, end):
            end -= 1
        if end == start:
            return 0
        while len(session.tokens) < end:
            session.tokens.append(session.rest.pop(0) if session.rest else next(self.fresh))
        copies_first = self.tables.copies_first(table)
        copies = self.tables.grow(table, end)
        groups = [one.group for one in copies]
        assert len(groups) == len(set(groups))
        assert (self.layout.primary in groups) == copies_first
        self.copied_blocks += len(copies)
        for index in range(
            start // self.device.size, min(end // self.device.size, len(session.chain))
        ):
            self.prefixes.keep(session.chain, index, table)
            self.prefixes.ready(session.chain[index], table)
        self.device.copy(copies)
        self._write(session, start, end)
        session.longest = max(session.longest, end)
        return end - start

    def cancel(self, session: Session, count: int) -> None:
        """A step fails before anything was written: as `Outcomes.reading_failed` does."""
        table, start = session.table, session.table.cells
        end = min(start + count, self.layout.cells)
        if (
            end == start
            or self.tables.copies_first(table)
            or not self._there_are_blocks(table, end)
        ):
            return
        assert not self.tables.grow(table, end)
        session.longest = max(session.longest, end)
        self.prefixes.clear()
        table.cells = start

    def fork(self, parent: Session) -> None:
        # As in the engine, it has no chain of its own: what it reads is not kept.
        twin = Session(
            parent.tenant,
            self.tables.fork(parent.table),
            list(parent.tokens),
            list(parent.rest),
            longest=parent.longest,
            floor=parent.floor,
        )
        self.sessions.append(twin)

    def fork_back(self, parent: Session, back: int) -> Session | None:
        """At an earlier length, if that can still be read; what it shares stays the parent's."""
        cells = max(0, parent.table.cells - back)
        oldest = next(v for v in range(self.layout.cells + 1) if parent.longest <= self._until(v))
        floor = max(parent.floor, oldest)
        if cells < floor:
            return None
        before = [entries.copy() for entries in parent.table.blocks]
        table = self.tables.fork(parent.table, cells)
        for own, old, group in zip(table.blocks, before, self.layout.groups, strict=True):
            held = {*own.tolist()} - {NO_BLOCK}
            assert held <= {*old.tolist()}, "it has blocks that its parent has not"
            most = group.held_blocks(cells, self.layout.block_cells)
            assert len(held) <= most or cells == parent.table.cells, "it has blocks behind its end"
        for entries, old in zip(parent.table.blocks, before, strict=True):
            assert (entries == old).all(), "its parent's table has changed"
        twin = Session(parent.tenant, table, parent.tokens[:cells], longest=cells, floor=floor)
        self.sessions.append(twin)
        self.cut_forks += cells < parent.table.cells
        return twin

    def close(self, session: Session) -> None:
        self.tables.drop(session.table)
        self.sessions.remove(session)

    def suspend(self, session: Session) -> None:
        self.close(session)
        assert session.table.cells == 0
        assert all((entries == NO_BLOCK).all() for entries in session.table.blocks)
        self.suspended.append(session)

    def resume_copied(self, session: Session) -> None:
        """Its cells come back from the host; those that no ring holds any more do not."""
        cells = len(session.tokens)
        if not self._there_are_blocks(session.table, cells):
            return
        self.suspended.remove(session)
        self.sessions.append(session)
        assert not self.tables.grow(session.table, cells), "nothing of it can be shared"
        self._write(session, 0, cells)
        session.longest, session.floor = cells, 0

    def resume_rebuilt(self, session: Session) -> None:
        """It begins with what is kept of its opening; the rest is read again by and by."""
        self.suspended.remove(session)
        self.sessions.append(session)
        self._adopt(session)

    def reclaim(self) -> None:
        before = len(self.prefixes)
        assert self.prefixes.reclaim() == (before > 0)
        assert len(self.prefixes) == max(0, before - 1)
        self.reclaimed += before > 0

    # --- what must hold ---------------------------------------------------------------------

    def poison_freed(self) -> None:
        """What the loop does between two steps. Every block that went free was told of."""
        told = self.tables.take_freed()
        for group, pool in enumerate(self.tables.groups):
            free = set(pool._free)
            freed = {one.block for one in told if one.group == group}
            assert free - self.free[group] <= freed, "a block was freed behind the device's back"
            self.free[group] = free
        for one in dict.fromkeys(told):
            is_free = one.block in self.free[one.group]
            assert self.tables.is_free(one) == is_free
            if is_free:
                self.device.poison(one)

    def check(self) -> None:
        kept = self.prefixes.blocks
        self.tables.check([one.table for one in self.sessions], kept)
        for group, pool in enumerate(self.tables.groups):
            held = {
                block
                for session in self.sessions
                for block in session.table.blocks[group].tolist()
                if block != NO_BLOCK
            }
            only_kept = {blocks[group] for blocks in kept} - held
            assert len(held) == pool.held
            assert pool.free + len(held) + len(only_kept) == pool.count
            assert len({blocks[group] for blocks in kept}) == len(kept), "kept twice"

    def check_cells(self, session: Session) -> None:
        """It reads its own tokens, at its length and at every older one that still may be read."""
        length, longest = session.table.cells, session.longest
        seen = [v for v in range(session.floor, length + 1) if longest <= self._until(v)]
        recent = range(max(session.floor, longest - self.layout.slack_cells), length + 1)
        assert {*recent} <= {*seen}
        for number, group in enumerate(self.layout.groups):
            positions = {
                position
                for version in seen
                for position in range(
                    0 if group.window is None else max(0, version - group.window + 1), version
                )
            }
            for position in positions:
                cell = self.device.read(session.table, number, position)
                assert cell is not None, f"position {position} was given to somebody else"
                assert (cell.position, cell.token) == (position, session.tokens[position])
                if cell.tenant != session.tenant:
                    end = (position // self.device.size + 1) * self.device.size
                    assert session.tokens[:end] == OPENINGS[PUBLIC][:end], "of another tenant"
                    assert end <= PUBLIC_TOKENS

    def _until(self, version: int) -> int:
        until = self.layout.readable_until(version)
        assert until >= min(self.layout.cells, version + self.layout.slack_cells)
        return until

    # --- how the device is filled -----------------------------------------------------------

    def _write(self, session: Session, start: int, end: int) -> None:
        table = session.table
        for position in range(start, end):
            cell = Cell(position, session.tokens[position], session.tenant)
            logical, offset = divmod(position, self.device.size)
            for group, entries in enumerate(table.blocks):
                if logical + len(entries) > (end - 1) // self.device.size:
                    block = int(entries[logical % len(entries)])
                    assert block != NO_BLOCK, "a cell has no place"
                    assert self.tables.groups[group].owners(block) == 1, "others see this write"
                    self.device.blocks[group].setdefault(block, {})[offset] = cell

    def _there_are_blocks(self, table: CellTable, cells: int) -> bool:
        """Whether `grow` finds all that it takes, once every prefix that nobody holds is gone."""
        size = self.layout.block_cells
        for pool, entries in zip(self.tables.groups, table.blocks, strict=True):
            new = range(-(-table.cells // size), -(-cells // size))
            replaced = [int(entries[logical % len(entries)]) for logical in new[: len(entries)]]
            needed = sum(block == NO_BLOCK or pool.owners(block) > 1 for block in replaced)
            if table.cells % size:
                needed += pool.owners(int(entries[table.cells // size % len(entries)])) > 1
            only_kept = pool.count - pool.free - pool.held
            if needed > pool.free + only_kept:
                return False
        return True


# --- one thing at a time ------------------------------------------------------------------------


def book_of(windows: tuple[int | None, ...], block_cells: int, spare_blocks: int = 9) -> TableBook:
    return TableBook(layout_of(windows, block_cells, spare_blocks))


def blocks_of(table: CellTable, group: int = 0) -> list[int]:
    return [block for block in table.blocks[group].tolist() if block != NO_BLOCK]


def test_a_table_grows_by_whole_blocks_and_gives_all_of_them_back() -> None:
    book = book_of(GLOBAL, 4)
    table = book.new()
    assert (table.cells, blocks_of(table), book.held_blocks(table)) == (0, [], 0)
    for cells, held in ((1, 1), (4, 1), (5, 2), (5, 2), (41, 11)):
        assert book.grow(table, cells) == []
        assert (table.cells, len(blocks_of(table)), book.held_blocks(table)) == (cells, held, held)
        assert book.primary.held == held
        book.check([table], [])
    first = blocks_of(table)
    book.drop(table)
    book.check([table], [])
    assert (table.cells, blocks_of(table), book.primary.held) == (0, [], 0)
    assert book.take_freed() == [GroupBlock(0, block) for block in first]
    assert book.take_freed() == []


def test_growing_leaves_the_blocks_that_are_there_where_they_are() -> None:
    book = book_of(GLOBAL, 4)
    table = book.new()
    book.grow(table, 10)
    before = blocks_of(table)
    book.grow(table, 20)
    assert blocks_of(table)[:3] == before


def test_a_ring_holds_no_more_than_its_width_and_says_what_it_freed() -> None:
    book = book_of(RING, 4)
    table, width = book.new(), book.layout.groups[0].table_width
    held = []
    for cells in range(1, 42):
        book.grow(table, cells)
        held.append(book.primary.held)
    assert held == [min(-(-cells // 4), width) for cells in range(1, 42)]
    # One for each block past the width; what was freed last is taken first, so none is free.
    freed = book.take_freed()
    assert len(freed) == 11 - width
    assert not any(book.is_free(one) for one in freed)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fork_shares_all_and_whoever_grows_first_copies_the_last_block(kind: str) -> None:
    book = book_of(KINDS[kind], 4)
    table = book.new()
    book.grow(table, 6)
    assert not book.copies_first(table)
    twin = book.fork(table)
    assert [*map(list, twin.blocks)] == [*map(list, table.blocks)]
    assert book.copies_first(table) and book.copies_first(twin)
    shared = book.block_of(table, 1)
    copies = book.grow(twin, 7)
    own = book.block_of(twin, 1)
    assert copies == [
        BlockCopy(group=group, source=shared[group], target=own[group])
        for group in range(len(shared))
    ]
    assert not set(enumerate(shared)) & set(enumerate(own))
    assert book.block_of(table, 1) == shared, "the parent's are where they were"
    assert book.block_of(table, 0) == book.block_of(twin, 0)
    assert not book.copies_first(table), "nobody else has its last block any more"
    assert book.grow(table, 7) == []
    book.check([table, twin], [])
    book.drop(table)
    assert book.primary.held == 2
    book.drop(twin)
    assert book.primary.held == 0


def test_a_fork_between_two_blocks_copies_nothing() -> None:
    book = book_of(BOTH, 4)
    table = book.new()
    book.grow(table, 8)
    twin = book.fork(table)
    assert not book.copies_first(table)
    assert book.grow(table, 9) == book.grow(twin, 9) == []
    assert book.block_of(table, 2) != book.block_of(twin, 2)
    book.check([table, twin], [])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_ring_that_turns_leaves_what_its_twin_and_the_cache_still_need(kind: str) -> None:
    book = book_of(KINDS[kind], 1, spare_blocks=30)
    table = book.new()
    book.grow(table, 8)
    book.keep(book.block_of(table, 0))
    twin = book.fork(table)
    before = [list(entries) for entries in twin.blocks]
    for cells in range(9, 30):
        book.grow(table, cells)
    assert [list(entries) for entries in twin.blocks] == before
    book.check([table, twin], [tuple(int(entries[0]) for entries in before)])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_adopting_takes_what_the_window_still_needs_and_no_more(kind: str) -> None:
    book = book_of(KINDS[kind], 1, spare_blocks=30)
    reader, kept = book.new(), []
    for cells in range(1, 21):
        book.grow(reader, cells)
        kept.append(book.block_of(reader, cells - 1))
        book.keep(kept[-1])
    book.drop(reader)
    assert [pool.held for pool in book.groups] == [0] * len(book.groups)
    table = book.new()
    book.adopt(table, kept)
    assert table.cells == 20
    for group, shape in enumerate(book.layout.groups):
        # The next token, at position 20, sees positions 14 .. 19 and itself in a window of 7.
        needed = range(14, 20) if shape.window else range(20)
        assert set(blocks_of(table, group)) == {kept[n][group] for n in needed}
        assert book.groups[group].held == len(needed)
        assert all(table.blocks[group][n % shape.table_width] == kept[n][group] for n in needed)
    book.check([table], kept)
    book.adopt(empty := book.new(), [])
    assert empty.cells == 0 and not blocks_of(empty)


def test_what_is_kept_is_freed_with_its_last_holder_or_when_it_is_given_up() -> None:
    book = book_of(BOTH, 4)
    table = book.new()
    book.grow(table, 4)
    blocks = book.block_of(table, 0)
    freed = [GroupBlock(group, block) for group, block in enumerate(blocks)]
    book.keep(blocks)
    assert book.is_held(blocks)
    book.drop(table)
    assert not book.is_held(blocks)
    assert book.take_freed() == []
    assert not any(book.is_free(one) for one in freed), "the cache has them"
    book.unkeep(blocks)
    assert book.take_freed() == freed
    assert all(book.is_free(one) for one in freed)
    book.grow(table, 4)
    assert not any(book.is_free(one) for one in freed), "taken again before anyone looked"


def test_a_full_pool_asks_the_cache_and_says_so_when_that_has_nothing() -> None:
    book = book_of(GLOBAL, 4, spare_blocks=0)
    table, other = book.new(), book.new()
    book.grow(table, 41)
    with pytest.raises(AssertionError, match="group 0 has no block left"):
        book.grow(other, 1)
    kept = book.block_of(table, 0)
    book.keep(kept)
    book.drop(table)
    asked: list[bool] = []

    def reclaim() -> bool:
        asked.append(True)
        book.unkeep(kept)
        return True

    book.reclaim = reclaim
    book.grow(other, 40)
    assert not asked, "there were free ones"
    book.grow(other, 41)
    assert asked == [True]
    book.check([table, other], [])


def test_the_check_finds_tables_that_are_wrong() -> None:
    """The other tests trust it."""
    book = book_of(GLOBAL, 4)
    table = book.new()
    book.grow(table, 12)
    book.check([table], [])
    with pytest.raises(AssertionError):
        book.check([], [])
    with pytest.raises(AssertionError):
        book.check([table, table], [])
    kept = book.block_of(table, 0)
    book.keep(kept)
    book.drop(table)
    with pytest.raises(AssertionError, match="leaked"):
        book.check([table], [])
    book.check([table], [kept])
    book.grow(table, 8)
    table.blocks[0][1] = table.blocks[0][0]
    with pytest.raises(AssertionError, match="twice"):
        book.check([table], [kept])


# --- forks at an earlier length ---------------------------------------------------------------


@pytest.mark.parametrize("cells", [0, 1, 3, 4, 5, 7, 8, 9])
def test_a_fork_at_an_earlier_length_has_the_blocks_of_that_length(cells: int) -> None:
    """Of 9 cells in blocks of 4; whoever writes into a block that is half full copies it."""
    book = book_of(GLOBAL, 4)
    table = book.new()
    book.grow(table, 9)
    twin = book.fork(table, cells)
    whole = blocks_of(table)
    assert twin.cells == cells and blocks_of(twin) == whole[: -(-cells // 4)]
    book.check([table, twin], [])
    copies = book.grow(twin, cells + 1)
    half = [whole[cells // 4]] if cells % 4 else []
    assert [one.source for one in copies] == half
    assert not {*blocks_of(twin)[cells // 4 :]} & {*whole}, "it writes into its parent's blocks"
    assert blocks_of(table) == whole
    book.check([table, twin], [])
    book.drop(table)
    book.check([twin], [])
    assert book.primary.held == len(blocks_of(twin)), "a block behind its end was kept"


def test_a_parent_does_not_copy_what_a_shorter_fork_does_not_share() -> None:
    book = book_of(GLOBAL, 4)
    table = book.new()
    book.grow(table, 9)
    twin = book.fork(table, 6)
    assert not book.copies_first(table) and book.copies_first(twin)
    assert book.grow(table, 10) == []
    other = book.fork(table, 9)
    assert book.copies_first(table) and book.copies_first(other)


def test_a_fork_of_a_ring_that_has_turned_shares_what_is_before_its_end() -> None:
    """Windows of 7 and 5 cells of slack: a ring of 4 blocks of 4, which 22 cells fill with the
    blocks 2 to 5; of the first 17 it has 2 to 4, and the place of block 5 is free."""
    book = book_of(RING, 4)
    table = book.new()
    book.grow(table, 22)
    assert len(table.blocks[0]) == 4
    twin = book.fork(table, 17)
    assert twin.blocks[0].tolist() == [table.blocks[0][0], NO_BLOCK, *table.blocks[0][2:]]
    book.check([table, twin], [])
    book.grow(twin, 22)
    shared = [own == old for own, old in zip(*(t.blocks[0].tolist() for t in (twin, table)))]  # noqa: B905
    assert shared == [False, False, True, True]
    book.check([table, twin], [])
    book.drop(table)
    book.drop(twin)
    assert book.primary.free == book.primary.count


# --- any order of everything ------------------------------------------------------------------


some_session = st.integers(0, SESSIONS - 1)


class TablesMachine(RuleBasedStateMachine):
    """Whatever sessions do, in whatever order, with a pool that is often full."""

    @initialize(
        windows=st.sampled_from([GLOBAL, BOTH, RING]),
        block_cells=st.sampled_from([1, 4]),
        spare_blocks=st.integers(0, 12),
    )
    def start(self, windows: tuple[int | None, ...], block_cells: int, spare_blocks: int) -> None:
        self.world = World(layout_of(windows, block_cells, spare_blocks))

    def one(self, number: int) -> Session:
        return self.world.sessions[number % len(self.world.sessions)]

    def any(self) -> bool:
        return bool(self.world.sessions)

    def room(self) -> bool:
        return len(self.world.sessions) < SESSIONS

    @precondition(room)
    @rule(tenant=st.sampled_from(TENANTS), opening=st.sampled_from([*OPENINGS, []]))
    def open(self, tenant: str, opening: list[int]) -> None:
        self.world.open(tenant, opening)

    @precondition(any)
    @rule(number=some_session, count=st.integers(1, CHUNK))
    def extend(self, number: int, count: int) -> None:
        self.world.extend(self.one(number), count)

    @precondition(any)
    @rule(number=some_session, chunks=st.integers(2, 8))
    def extend_far(self, number: int, chunks: int) -> None:
        for _ in range(chunks):
            self.world.extend(self.one(number), CHUNK)

    @precondition(any)
    @rule(number=some_session, count=st.integers(1, CHUNK))
    def cancel(self, number: int, count: int) -> None:
        self.world.cancel(self.one(number), count)

    @precondition(lambda self: self.any() and self.room())
    @rule(number=some_session)
    def fork(self, number: int) -> None:
        self.world.fork(self.one(number))

    @precondition(lambda self: self.any() and self.room())
    @rule(number=some_session, back=st.integers(0, 41))
    def fork_back(self, number: int, back: int) -> None:
        self.world.fork_back(self.one(number), back)

    @precondition(any)
    @rule(number=some_session)
    def close(self, number: int) -> None:
        self.world.close(self.one(number))

    @precondition(any)
    @rule(number=some_session)
    def suspend(self, number: int) -> None:
        self.world.suspend(self.one(number))

    @precondition(lambda self: bool(self.world.suspended) and self.room())
    @rule(copied=st.booleans())
    def resume(self, copied: bool) -> None:
        first = self.world.suspended[0]
        self.world.resume_copied(first) if copied else self.world.resume_rebuilt(first)

    @rule()
    def reclaim(self) -> None:
        self.world.reclaim()

    @invariant()
    def everybody_reads_their_own(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.poison_freed()
        self.world.check()
        for session in self.world.sessions:
            self.world.check_cells(session)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            all_closed(self.world)


def all_closed(world: World) -> None:
    """Everything is free or kept, and free once nothing is kept."""
    for session in tuple(world.sessions):
        world.close(session)
    world.check()
    kept = len(world.prefixes)
    for pool in world.tables.groups:
        assert (pool.held, pool.free) == (0, pool.count - kept)
    world.prefixes.clear()
    assert len(world.prefixes) == 0
    assert all(pool.free == pool.count for pool in world.tables.groups)
    world.poison_freed()
    assert not any(world.device.blocks), "a block was freed and nobody was told"


TablesMachine.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestAnyOrder = TablesMachine.TestCase


# --- for long ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "block_cells", "operations"),
    [("global", 4, 40_000), ("both", 4, 40_000), ("window", 1, 20_000)],
)
def test_a_hundred_thousand_operations_lose_no_block(
    kind: str, block_cells: int, operations: int
) -> None:
    rng = random.Random(f"{kind} {block_cells}")
    world = World(layout_of(KINDS[kind], block_cells, spare_blocks=15))
    full = forks = 0

    def act() -> Session | None:
        nonlocal forks
        sessions, suspended = world.sessions, world.suspended
        do = rng.random()
        room = len(sessions) < SESSIONS
        if not sessions or (do < 0.05 and room):
            return world.open(rng.choice(TENANTS), rng.choice(OPENINGS))
        one = rng.choice(sessions)
        if do < 0.09 and room and suspended:
            resumed = rng.choice(suspended)
            rng.choice([world.resume_copied, world.resume_rebuilt])(resumed)
        elif do < 0.13 and room:
            forks += 1
            if rng.random() < 0.5 or world.fork_back(one, rng.randint(0, 12)) is None:
                world.fork(one)
        elif 0.13 <= do < 0.18:
            leaves = len(suspended) < SESSIONS and rng.random() < 0.3
            world.suspend(one) if leaves else world.close(one)
            return None
        elif 0.18 <= do < 0.185:
            world.cancel(one, rng.randint(1, CHUNK))
        elif 0.185 <= do < 0.2:
            world.reclaim()
        else:
            world.extend(one, rng.randint(1, CHUNK))
        return one

    for number in range(operations):
        one = act()
        if one is not None:
            world.check_cells(one)
        if number % 7 == 0:
            world.poison_freed()
        full += world.tables.primary.held == world.tables.primary.count
        if number % 400 == 0:
            world.check()
            for session in world.sessions:
                world.check_cells(session)
    # Else the test would show little.
    assert min(full, forks, world.reclaimed) > operations / 100
    assert world.cut_forks > operations / 400
    assert world.adopted_cells > operations / 25
    assert (world.copied_blocks > operations / 400) == (block_cells > 1)
    all_closed(world)
