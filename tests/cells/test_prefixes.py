"""Prefixes that sessions share: who finds whose blocks, and which blocks make way. Plain Python.

Blocks have 4 cells where nothing else is said. A session that *reads* a text keeps the whole blocks
of it, as the engine does.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.cells.layout import GroupLayout, PoolLayout
from jaxstate.cells.prefixes import Link, PrefixCache
from jaxstate.cells.tables import CellTable, TableBook

BLOCK = 4


def layout_of(block_cells: int, blocks: int, window: int | None = None) -> PoolLayout:
    """One group, whose table holds all the pool; or one with a window beside it."""
    groups = [GroupLayout(window=None, table_width=blocks)]
    if window is not None:
        groups.append(GroupLayout(window=window, table_width=-(-window // block_cells) + 1))
    return PoolLayout(
        cells=blocks * block_cells,
        block_cells=block_cells,
        groups=tuple(groups),
        layer_groups=tuple(range(len(groups))),
        num_kv_heads=1,
        head_dim=1,
        pool_blocks=(blocks,) * len(groups),
    )


class Pool:
    """A cache and its tables."""

    def __init__(
        self, *, block_cells: int = BLOCK, blocks: int = 32, window: int | None = None
    ) -> None:
        self.tables = TableBook(layout_of(block_cells, blocks, window))
        self.cache = PrefixCache(self.tables, "a model")
        self.size = block_cells

    def chain(self, text: Sequence[int], tenant: str = "ann") -> tuple[Link, ...]:
        return self.cache.chain(np.array(text, np.int32), tenant)

    def publish(self, text: Sequence[int]) -> None:
        self.cache.publish(np.array(text, np.int32))

    def read(self, text: Sequence[int], tenant: str = "ann") -> CellTable:
        """A session that has read all of a text, and keeps what it can of it."""
        table = self.begin(text, tenant)
        self.end(text, table, tenant)
        return table

    def begin(self, text: Sequence[int], tenant: str = "ann") -> CellTable:
        """A session that reads a text in a step that is not done yet."""
        table, chain = self.tables.new(), self.chain(text, tenant)
        start = self.cache.adopt(table, chain)
        for end in range(start + 1, len(text) + 1):
            assert self.tables.grow(table, end) == []
            if end % self.size == 0 and end // self.size <= len(chain):
                self.cache.keep(chain, end // self.size - 1, table)
        return table

    def end(self, text: Sequence[int], table: CellTable, tenant: str = "ann") -> None:
        """The step is done."""
        for link in self.chain(text, tenant):
            self.cache.ready(link, table)

    def found(self, text: Sequence[int], tenant: str = "ann") -> int:
        """Cells that a session which opens with a text need not read."""
        table = self.tables.new()
        cells = self.cache.adopt(table, self.chain(text, tenant))
        assert cells == table.cells
        self.tables.drop(table)
        return cells

    def check(self, *tables: CellTable) -> None:
        self.tables.check(tables, self.cache.blocks)


def text(count: int, first: int = 100) -> list[int]:
    return list(range(first, first + count))


# --- names ------------------------------------------------------------------------------------


def test_names_are_what_they_say() -> None:
    """Spelled out once more: a name that changes would lose or, worse, mix up what is kept."""
    tokens = np.arange(9, dtype=np.int32)
    name = hashlib.sha256(b"a model").digest()
    expected = []
    for start in (0, 4):
        part = tokens[start : start + 4].tobytes()
        namespace = b"tenant:ann"
        joined = name + len(namespace).to_bytes(4, "little") + namespace + part
        name = hashlib.sha256(joined).digest()
        expected.append(Link(name=name, tokens=part))
    assert Pool().cache.chain(tokens, "ann") == tuple(expected)


def test_a_name_stands_for_the_model_the_tenant_and_all_tokens_up_to_there() -> None:
    pool = Pool()
    base = pool.chain(text(13))
    other_model = PrefixCache(TableBook(layout_of(BLOCK, 32)), "another model")
    changed = {
        "model": other_model.chain(np.array(text(13), np.int32), "ann"),
        "tenant": pool.chain(text(13), "bob"),
        "first token": pool.chain([1, *text(12, 101)]),
    }
    names = [link.name for chain in (base, *changed.values()) for link in chain]
    assert len(set(names)) == len(names) == 12
    middle = pool.chain([*text(5), 1, *text(7, 106)])
    assert [link.name == one.name for link, one in zip(middle, base, strict=True)] == [
        True,
        False,
        False,
    ]
    # The last token is left to the session, so it names nothing.
    assert pool.chain([*text(12), 1]) == base


def test_the_same_block_elsewhere_has_another_name() -> None:
    first, second, third = Pool().chain([*text(4)] * 3 + [1])
    assert first.tokens == second.tokens == third.tokens
    assert len({first.name, second.name, third.name}) == 3


def test_names_do_not_depend_on_how_tokens_are_stored() -> None:
    pool = Pool()
    strided = np.arange(0, 40, 2, dtype=np.int64)[:13]
    assert pool.cache.chain(strided.astype(np.int32), "ann") == pool.chain(range(0, 26, 2))
    assert pool.cache.chain(np.arange(26, dtype=np.int32)[::2], "ann") == pool.chain(
        range(0, 26, 2)
    )


@given(
    one=st.tuples(st.sampled_from(["ann", "anna", "b", ""]), st.lists(st.integers(0, 2))),
    other=st.tuples(st.sampled_from(["ann", "anna", "b", ""]), st.lists(st.integers(0, 2))),
)
def test_two_blocks_have_one_name_only_if_all_before_them_is_the_same(
    one: tuple[str, list[int]], other: tuple[str, list[int]]
) -> None:
    pool = Pool(block_cells=1)
    chains = [pool.chain(tokens, tenant) for tenant, tokens in (one, other)]
    for a, left in enumerate(chains[0]):
        for b, right in enumerate(chains[1]):
            same = a == b and one[0] == other[0] and one[1][: a + 1] == other[1][: a + 1]
            assert (left.name == right.name) == same


# --- borders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_at_every_border_whole_blocks_are_found_and_one_token_is_left(
    size: int, blocks: int, more: int
) -> None:
    """Of a text of n tokens at most n - 1 cells are found: the last token's hidden vector is what
    the session goes on from. Whoever reads n tokens keeps no more than that, so whoever comes with
    more finds no more."""
    length = blocks * size + more
    whole = max(0, length - 1) // size * size
    pool = Pool(block_cells=size)
    assert len(pool.chain(text(length))) * size == whole
    reader = pool.read(text(length))
    pool.check(reader)
    assert len(pool.cache) * size == whole
    for other in range(length + 2 * size + 2):
        assert pool.found(text(other)) == min(whole, max(0, other - 1) // size * size)
    pool.check(reader)


def test_nothing_is_found_of_nothing() -> None:
    pool = Pool()
    pool.read(text(9))
    assert pool.chain([]) == pool.chain(text(1)) == ()
    assert pool.found([]) == pool.found(text(1)) == 0


@settings(deadline=None)
@given(
    read=st.lists(st.lists(st.integers(0, 1), max_size=9), min_size=1, max_size=4),
    opening=st.lists(st.integers(0, 1), max_size=12),
    size=st.integers(1, 3),
)
def test_the_longest_beginning_that_anybody_read_is_found(
    read: list[list[int]], opening: list[int], size: int
) -> None:
    pool = Pool(block_cells=size, blocks=64)
    tables = [pool.read(one) for one in read]
    pool.check(*tables)

    def in_common(one: list[int]) -> int:
        """Whole blocks of both, the last token of each left out."""
        most = min(len(one), len(opening)) - 1
        return max(n for n in range(0, max(most, 0) + 1, size) if one[:n] == opening[:n])

    assert pool.found(opening) == max(map(in_common, read))


def test_what_is_read_at_the_same_time_is_kept_once() -> None:
    """Two sessions open with a text before either has read it: the second keeps its own cells."""
    pool = Pool()
    chain, tables = pool.chain(text(9)), [pool.tables.new() for _ in range(2)]
    for table in tables:
        pool.tables.grow(table, 9)
        for index in range(2):
            pool.cache.keep(chain, index, table)
            pool.cache.ready(chain[index], table)
    assert pool.cache.blocks == [pool.tables.block_of(tables[0], index) for index in range(2)]
    pool.check(*tables)


def test_nobody_finds_a_block_before_its_cells_are_there() -> None:
    pool = Pool()
    chain, table = pool.chain(text(13)), pool.begin(text(13))
    assert len(pool.cache) == 3
    found = []
    for index in (1, 0, 2):
        found.append((kept_of(pool, text(13)), pool.found(text(13))))
        pool.cache.ready(chain[index], table)
    assert found == [([0], 0), ([1], 0), ([2], 8)]
    assert pool.found(text(13)) == 12
    pool.check(table)


def test_only_who_computes_a_block_says_that_it_is_there() -> None:
    """Not who computes the same for itself, nor who did before it was given up."""
    pool = Pool()
    first, second = pool.begin(text(9)), pool.begin(text(9))
    pool.end(text(9), second)
    assert pool.found(text(9)) == 0
    pool.cache.clear()
    third = pool.begin(text(9))
    pool.end(text(9), first)
    assert pool.found(text(9)) == 0
    pool.end(text(9), third)
    assert pool.found(text(9)) == 8
    assert pool.cache.blocks == [pool.tables.block_of(third, index) for index in range(2)]
    pool.check(first, second, third)


def test_nothing_is_kept_behind_what_is_not() -> None:
    """It could not be found, and would never be given up."""
    pool = Pool()
    table = pool.tables.new()
    pool.tables.grow(table, 12)
    pool.cache.keep(pool.chain(text(13)), 1, table)
    assert len(pool.cache) == 0
    pool.check(table)


def test_who_adopts_shares_the_blocks_and_writes_only_its_own() -> None:
    pool = Pool()
    reader = pool.read(text(10))
    shared = [pool.tables.block_of(reader, index) for index in range(2)]
    table = pool.tables.new()
    assert pool.cache.adopt(table, pool.chain(text(10))) == 8
    assert [pool.tables.block_of(table, index) for index in range(2)] == shared
    assert pool.tables.grow(table, 10) == []
    assert pool.tables.block_of(table, 2) != pool.tables.block_of(reader, 2)
    pool.check(reader, table)


# --- collisions -------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_a_collision_gives_nobody_anothers_cells(index: int) -> None:
    """As if SHA-256 gave a block of bob's the name of ann's: the tokens are not hers."""
    pool = Pool()
    hers, his = text(9), text(9, 500)
    reader = pool.read(his, "bob")
    victim, planted = pool.chain(hers)[index], pool.chain(his, "bob")[index]
    kept = pool.cache._kept
    if index == 1:  # so that the search gets there
        kept[pool.chain(hers)[0].name] = kept.pop(pool.chain(his, "bob")[0].name)
        kept[pool.chain(hers)[0].name].tokens = pool.chain(hers)[0].tokens
    kept[victim.name] = kept.pop(planted.name)
    assert kept[victim.name].tokens == planted.tokens != victim.tokens
    assert not pool.cache.has(victim)
    assert pool.cache.has(Link(name=victim.name, tokens=planted.tokens))
    assert pool.found(hers) == index * BLOCK
    # Nor does she put hers in its place: the cells that are kept are those of its tokens.
    blocks = kept[victim.name].blocks
    mine = pool.read(hers)
    assert kept[victim.name].blocks == blocks
    assert pool.found(hers) == index * BLOCK
    assert not set(pool.cache.blocks) & {pool.tables.block_of(mine, n) for n in range(index, 3)}
    pool.tables.drop(reader)


# --- tenants ----------------------------------------------------------------------------------


def test_tenants_never_share() -> None:
    """The one finds its own, the other nothing: both, else a cache that finds nothing passes."""
    pool = Pool()
    reader = pool.read(text(13), "ann")
    assert pool.found(text(13), "ann") == 12
    assert pool.found(text(13), "bob") == 0
    assert not any(pool.cache.has(link) for link in pool.chain(text(13), "bob"))
    other = pool.read(text(13), "bob")
    assert not {*reader.blocks[0].tolist()} & ({*other.blocks[0].tolist()} - {-1})
    assert len(pool.cache) == 6
    pool.check(reader, other)


def test_a_public_text_is_shared_by_all_as_far_as_whole_blocks_go() -> None:
    """10 tokens are public: 2 blocks. What ann adds behind it stays hers, the third block too,
    though its first half is public."""
    pool = Pool()
    pool.publish(text(10))
    opening = text(17)
    pool.read(opening, "ann")
    assert pool.found(opening, "ann") == 16
    assert pool.found(opening, "bob") == 8
    assert pool.found(text(10), "bob") == 8
    assert pool.found(text(9), "bob") == 8
    assert pool.found(text(8), "bob") == 4  # one token is left to the session


@pytest.mark.parametrize(("public", "shared"), [(3, 0), (4, 1), (5, 1), (7, 1), (8, 2), (9, 2)])
def test_a_block_is_public_if_all_of_it_is(public: int, shared: int) -> None:
    pool = Pool()
    pool.publish(text(public))
    pool.read(text(13), "ann")
    assert pool.found(text(13), "bob") == shared * BLOCK


def test_whoever_opens_with_another_text_finds_no_public_block_behind_it() -> None:
    """A public text is a beginning: its words elsewhere are anybody's own."""
    pool = Pool()
    pool.publish(text(12))
    pool.read([*text(4, 900), *text(13)], "ann")
    assert pool.found([*text(4, 900), *text(13)], "ann") == 16
    assert pool.found([*text(4, 900), *text(13)], "bob") == 0
    pool.read([*text(6), 1, *text(13)], "ann")
    assert pool.found([*text(6), 1, *text(13)], "bob") == 4


def test_of_several_public_texts_the_one_with_most_in_common_counts() -> None:
    pool = Pool()
    for length in (4, 8, 5):
        pool.publish(text(length))
    pool.publish(text(12, 700))
    pool.read(text(13), "ann")
    pool.read(text(13, 700), "ann")
    assert pool.found(text(13), "bob") == 8
    assert pool.found(text(13, 700), "bob") == 12


def test_a_text_that_is_declared_public_again_is_kept_once() -> None:
    pool = Pool()
    for opening in (text(9), text(9), text(8), text(9)):
        pool.publish(opening)
    assert [one.tolist() for one in pool.cache._public] == [text(9), text(8)]


def test_what_was_read_before_it_became_public_stays_private() -> None:
    pool = Pool()
    pool.read(text(13), "ann")
    pool.publish(text(13))
    assert pool.found(text(13), "bob") == 0


@pytest.mark.parametrize("name", ["public", "tenant:ann", "ann\0", "", "ANN"])
def test_no_tenants_name_makes_it_public_or_another(name: str) -> None:
    pool = Pool()
    pool.publish(text(4))
    pool.read(text(13), "ann")
    public = pool.chain(text(4, 600), name)
    assert pool.found(text(13), name) == 4
    pool.read(text(13, 600), name)
    assert pool.found(text(13, 600), "ann") == 0
    assert public == pool.chain(text(4, 600), name)


def test_a_text_that_pretends_to_be_a_tenants_name_changes_nothing() -> None:
    """Tokens whose bytes spell a namespace, at every place in a block: they are tokens, and the
    name that is hashed is the tenant's own, with its length before it."""
    pool = Pool(block_cells=8)
    secret = text(17)
    pool.read(secret, "ann")
    spelled = b"\x0a\0\0\0tenant:ann" + np.array(secret, np.int32).tobytes()
    for shift in range(4):
        padded = b"\0" * shift + spelled
        padded += b"\0" * (-len(padded) % 4)
        attack = np.frombuffer(padded, np.int32)
        table = pool.tables.new()
        assert pool.cache.adopt(table, pool.cache.chain(attack, "bob")) == 0
    # A tenant's name cannot take a token's bytes in either.
    long_name = b"ann" + np.array(secret[:1], np.int32).tobytes()
    assert pool.found(secret[1:], long_name.decode("latin-1")) == 0


# --- who makes way ----------------------------------------------------------------------------


def kept_of(pool: Pool, *texts: Sequence[int]) -> list[int]:
    """How many blocks of each text are kept; nothing is used by looking."""
    return [sum(map(pool.cache.has, pool.chain(one))) for one in texts]


def test_the_end_of_the_longest_unused_text_goes_first() -> None:
    pool = Pool()
    old, new = text(9), text(9, 500)
    for one in (old, new):
        pool.tables.drop(pool.read(one))
    assert kept_of(pool, old, new) == [2, 2]
    left = []
    while pool.cache.reclaim():
        left.append(kept_of(pool, old, new))
        pool.check()
    assert left == [[1, 2], [0, 2], [0, 1], [0, 0]]
    assert pool.tables.primary.free == pool.tables.primary.count


def test_whoever_finds_a_text_makes_it_new_again() -> None:
    pool = Pool()
    old, new = text(9), text(9, 500)
    for one in (old, new):
        pool.tables.drop(pool.read(one))
    assert pool.found(old) == 8
    pool.cache.reclaim()
    assert kept_of(pool, old, new) == [2, 1]


def test_a_beginning_stays_as_long_as_anything_that_follows_it() -> None:
    """Two texts share their first block, which was kept long before both ends were used."""
    pool = Pool()
    one, other = text(9), [*text(4), *text(5, 500)]
    for each in (one, other):
        pool.tables.drop(pool.read(each))
    pool.found(one)
    left = []
    while pool.cache.reclaim():
        left.append(kept_of(pool, one, other))
    assert left == [[2, 1], [1, 1], [0, 0]]


def test_what_sessions_hold_is_given_up_last() -> None:
    """To give it up frees nothing while they are there, though it was unused for longest."""
    pool = Pool()
    held, loose = text(9), text(9, 500)
    table = pool.read(held)
    pool.tables.drop(pool.read(loose))
    pool.found(loose)
    left = []
    while pool.cache.reclaim():
        left.append((kept_of(pool, held, loose), pool.tables.primary.free))
    all_blocks = pool.tables.primary.count
    assert left == [
        ([2, 1], all_blocks - 4),
        ([2, 0], all_blocks - 3),
        ([1, 0], all_blocks - 3),
        ([0, 0], all_blocks - 3),
    ]
    pool.check(table)
    assert len(table.blocks[0][table.blocks[0] >= 0]) == 3


def test_nothing_to_give_up_is_said() -> None:
    pool = Pool()
    assert not pool.cache.reclaim()
    pool.cache.clear()
    pool.check()


def test_a_full_pool_takes_the_room_of_what_is_only_kept() -> None:
    pool = Pool(blocks=6)
    pool.tables.drop(pool.read(text(17)))
    assert (len(pool.cache), pool.tables.primary.free) == (4, 2)
    table = pool.tables.new()
    pool.tables.grow(table, 5 * BLOCK)
    assert kept_of(pool, text(17)) == [1]
    pool.check(table)
    pool.tables.grow(table, 6 * BLOCK)
    assert len(pool.cache) == 0


def test_all_is_given_up_at_once_while_sessions_keep_what_they_hold() -> None:
    pool = Pool(window=6)
    tables = [pool.read(text(13)), pool.read(text(13)), pool.read(text(9, 500))]
    pool.cache.clear()
    assert len(pool.cache) == 0 and pool.cache.blocks == []
    pool.check(*tables)
    assert pool.found(text(13)) == 0
    for table in tables:
        pool.tables.drop(table)
    assert all(group.free == group.count for group in pool.tables.groups)


def test_what_nobody_has_is_free_as_soon_as_all_is_given_up() -> None:
    """And what was under way then is not found later, nor is what was kept before given up."""
    pool = Pool(window=6)
    for one in (text(13), text(9, 500)):
        pool.tables.drop(pool.read(one))
    table = pool.begin(text(9, 700))
    pool.tables.take_freed()
    pool.cache.clear()
    assert [group.count - group.free for group in pool.tables.groups] == [3, 3]
    assert len(pool.tables.take_freed()) == 2 * 5
    pool.end(text(9, 700), table)
    assert pool.found(text(9, 700)) == 0
    assert not pool.cache.reclaim()
    pool.tables.drop(pool.read(text(9)))
    assert [pool.cache.reclaim() for _ in range(3)] == [True, True, False]
    pool.check(table)


def test_the_order_lasts_through_hundreds_of_uses() -> None:
    """Eight texts of a block each, used in an order that is not that of reading, and looked at
    after any number of uses around the one at which what is out of date is thrown away."""
    texts = [text(5, 100 * number) for number in range(8)]
    for uses in (*range(64, 96), 500):
        pool = Pool()
        for one in texts:
            pool.tables.drop(pool.read(one))
        turns = [-5 * use % 8 for use in range(uses)]
        for turn in turns:
            assert pool.found(texts[turn]) == BLOCK
            assert len(pool.cache._leaves) <= 2 * 8 + 64
        left = []
        while pool.cache.reclaim():
            left.append(kept_of(pool, *texts))
        last = turns[-8:]
        expected = [[int(n in last[gone:]) for n in range(8)] for gone in range(1, 9)]
        assert left == expected


class SimplyKept:
    """What is kept, as simple as can be: numbers of blocks by the text that ends with each, the
    longest unused first."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], int] = {}
        self.sessions: list[set[int]] = []
        self._numbers = itertools.count()

    def find(self, tokens: list[int], *, keep: bool = False) -> set[int]:
        """Uses what is kept of a text; keeps the rest too, if it is read."""
        mine: set[int] = set()
        for end in range(1, len(tokens)):
            path = tuple(tokens[:end])
            if path in self.kept or keep:
                self.kept[path] = self.kept.pop(path, next(self._numbers))
                mine.add(self.kept[path])
        return mine

    def reclaim(self) -> None:
        held = set[int]().union(*self.sessions)
        leaves = [one for one in self.kept if not any(more[:-1] == one for more in self.kept)]
        if leaves:
            del self.kept[min(leaves, key=lambda one: self.kept[one] in held)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "read and close", "find", "use a lot", "close", "reclaim"]),
            st.lists(st.integers(0, 1), max_size=5),
        ),
        max_size=30,
    )
)
def test_the_longest_unused_end_that_nobody_has_goes_first(
    actions: list[tuple[str, list[int]]],
) -> None:
    """Also when texts were used so often that most of what is noted of it is out of date."""
    pool, model = Pool(block_cells=1, blocks=200), SimplyKept()
    tables: list[CellTable] = []
    for do, tokens in (*actions, *[("reclaim", [])] * 40):
        if do == "reclaim":
            assert pool.cache.reclaim() == bool(model.kept)
            model.reclaim()
        elif do == "close" and tables:
            pool.tables.drop(tables.pop(0))
            model.sessions.pop(0)
        elif do in ("find", "use a lot"):
            for _ in range(1 if do == "find" else 70):
                pool.found(tokens)
            model.find(tokens)
        elif do.startswith("read"):
            tables.append(pool.read(tokens))
            model.sessions.append(model.find(tokens, keep=True))
            if do == "read and close":
                pool.tables.drop(tables.pop())
                model.sessions.pop()
        names = {pool.chain([*path, 0])[-1].name for path in model.kept}
        assert set(pool.cache._kept) == names
        pool.check(*tables)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "read and close", "find", "close", "reclaim"]),
            st.lists(st.integers(0, 1), max_size=6),
        ),
        max_size=30,
    )
)
def test_children_never_outlive_parents(actions: list[tuple[str, list[int]]]) -> None:
    """Whatever is read, used and given up, in any order, and with a ring beside."""
    pool = Pool(block_cells=1, blocks=12, window=3)
    tables: list[CellTable] = []
    for do, tokens in actions:
        if do == "reclaim":
            before = set(pool.cache._kept)
            pool.cache.reclaim()
            gone = before - set(pool.cache._kept)
            assert len(gone) == min(1, len(before))
        elif do == "close" and tables:
            pool.tables.drop(tables.pop(len(tokens) % len(tables)))
        elif do == "find":
            pool.found(tokens)
        elif do.startswith("read") and pool.tables.primary.held + len(tokens) <= 12:
            table = pool.read(tokens)
            tables.append(table)
            if do == "read and close":
                pool.tables.drop(tables.pop())
        kept = pool.cache._kept
        children = dict.fromkeys(kept, 0)
        for one in kept.values():
            if one.parent is not None:
                assert one.parent in kept, "its beginning is gone"
                children[one.parent] += 1
        assert {name: one.children for name, one in kept.items()} == children
        pool.check(*tables)
