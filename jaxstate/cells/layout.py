"""Where the cells of a session lie: blocks, tables, and rings for sliding windows.

Comes in: a model config, the block size and a capacity in cells. Goes out: a frozen, hashable
`PoolLayout` that decides every array shape. Plain Python: no arrays, no jax.

The cell at position p lies in logical block `p // C`; logical block b is entry `b % W` of a table
of width W, which names the physical block. For layers that see everything, W covers the capacity
and the modulus does nothing. Layers with a sliding window w need only the last w - 1 cells, so
their W is just large enough for those, and the table is a ring. Layers with the same window form a
*group* and share a table.

A ring with *slack* is so much wider that cells which were visible stay readable while the session
grows by that many more: a question may go on looking at the version that it began with.

A session may own its pool alone, or share one with others (`share_pool`): the tables are the same,
the physical blocks are more.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jaxstate.config import ModelConfig
from jaxstate.errors import InvalidInput
from jaxstate.records import checked_int


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """The layers with one window, and their table.

    Attributes:
        window: tokens that a token sees, its own included; None for all.
        table_width: W, blocks of one session.
    """

    window: int | None
    table_width: int

    def first_kept_block(self, length: int, block_cells: int) -> int:
        """The oldest logical block that a session of `length` cells still needs."""
        if self.window is None or length == 0:
            return 0
        return max(0, length - self.window + 1) // block_cells

    def held_blocks(self, length: int, block_cells: int) -> int:
        """Blocks that a session of `length` cells has in its table."""
        return min(-(-length // block_cells), self.table_width)


@dataclass(frozen=True, kw_only=True)
class PoolLayout:
    """The shapes of one session's cells, and of the pool that they lie in.

    Attributes:
        cells: capacity of the session in tokens.
        slack_cells: how far a session may grow while somebody still reads it at its old length.
        block_cells: C.
        groups: one for each distinct window of the model.
        layer_groups: for each layer, the index of its group.
        num_kv_heads: K.
        head_dim: H.
        pool_blocks: P of each group, where several sessions share the pool; empty where one session
            owns it and has as many as its table.
    """

    cells: int
    slack_cells: int = 0
    block_cells: int
    groups: tuple[GroupLayout, ...]
    layer_groups: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    pool_blocks: tuple[int, ...] = ()

    def block_shape(self, group: int) -> tuple[int, int, int, int, int]:
        """[L, 2, C, K, H], one block of a group: keys and values of all its layers."""
        layers = self.layer_groups.count(group)
        return (layers, 2, self.block_cells, self.num_kv_heads, self.head_dim)

    @property
    def group_blocks(self) -> tuple[int, ...]:
        """P of each group."""
        return self.pool_blocks or tuple(group.table_width for group in self.groups)

    @property
    def primary(self) -> int:
        """The group that holds most: budgets count its blocks. No group needs more than it."""
        widths = [group.table_width for group in self.groups]
        return widths.index(max(widths))

    @property
    def turns(self) -> bool:
        """Whether the primary group is a ring too, whose blocks are used again and again."""
        return self.groups[self.primary].table_width * self.block_cells < self.cells

    def held_blocks(self, length: int) -> int:
        """Blocks of the primary group that a session of `length` cells has."""
        return self.groups[self.primary].held_blocks(length, self.block_cells)

    def pool_bytes(self, itemsize: int) -> int:
        """Bytes of the whole pool's keys and values, for cells of `itemsize` bytes a number."""
        return sum(
            self.group_blocks[group] * self._block_bytes(itemsize) for group in self.layer_groups
        )

    def bytes_of(self, length: int, itemsize: int) -> int:
        """Bytes of the blocks, in all layers, of a session of `length` cells."""
        held = [group.held_blocks(length, self.block_cells) for group in self.groups]
        return sum(held[group] * self._block_bytes(itemsize) for group in self.layer_groups)

    def _block_bytes(self, itemsize: int) -> int:
        return 2 * self.block_cells * self.num_kv_heads * self.head_dim * itemsize

    def bytes_per_session(self, itemsize: int) -> int:
        """Bytes of a full session's keys and values, for cells of `itemsize` bytes a number."""
        return self.bytes_of(self.cells, itemsize)

    def readable_until(self, seen_cells: int) -> int:
        """The largest length at which whoever sees `seen_cells` still finds all its cells.

        At least `seen_cells + slack_cells`, unless the capacity ends before.
        """
        return min(self.cells, *(self._kept_until(group, seen_cells) for group in self.groups))

    def _kept_until(self, group: GroupLayout, seen_cells: int) -> int:
        """The length past which the ring overwrites the oldest cell that is still needed."""
        if group.window is None:
            return self.cells
        first = group.first_kept_block(seen_cells, self.block_cells)
        return (first + group.table_width) * self.block_cells


def layers_by_group(layer_groups: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Of each group its layers, in the order in which its blocks hold them.

    Args:
        layer_groups: for each layer, the index of its group.
    """
    layers = tuple(enumerate(layer_groups))
    groups = range(max(layer_groups) + 1)
    return tuple(tuple(layer for layer, its in layers if its == group) for group in groups)


def plan_layout(
    config: ModelConfig, *, cells: int, block_cells: int, slack_cells: int = 0
) -> PoolLayout:
    """The layout for one session of `cells` tokens.

    Raises:
        InvalidInput: `cells` is no integer, not positive, or exceeds the positions that the model
            was made for; or `slack_cells` is negative.
    """
    cells = checked_int("cells", cells)
    if cells < 1 or cells > config.max_context:
        raise InvalidInput(
            f"cells={cells}: a session of this model holds 1 to {config.max_context} tokens "
            "(max_context; pass max_context= to load() to change it)"
        )
    if checked_int("slack_cells", slack_cells) < 0:
        raise InvalidInput(f"slack_cells={slack_cells} must not be negative")
    windows = config.windows
    return PoolLayout(
        cells=cells,
        slack_cells=slack_cells,
        block_cells=block_cells,
        groups=tuple(_group(window, cells, block_cells, slack_cells) for window in windows),
        layer_groups=tuple(windows.index(layer.window) for layer in config.layers),
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )


def share_pool(layout: PoolLayout, *, blocks: int, sessions: int) -> PoolLayout:
    """The layout of sessions that lie in one pool.

    A group whose layers see a window only never needs more than `sessions` rings, nor more than the
    primary group.

    Args:
        layout: of each session.
        blocks: P of the primary group.
        sessions: how many may lie in the pool at once.

    Raises:
        InvalidInput: not one full session fits, or there is to be none.
    """
    needed = layout.groups[layout.primary].table_width
    if blocks < needed:
        raise InvalidInput(
            f"a pool of {blocks} blocks of {layout.block_cells} cells; one session of "
            f"{layout.cells} cells takes {needed}: give the pool more cells, or sessions less"
        )
    if sessions < 1:
        raise InvalidInput(f"sessions={sessions}: a pool is for one session or more")
    shared = tuple(min(blocks, sessions * group.table_width) for group in layout.groups)
    pool_blocks = tuple(
        blocks if number == layout.primary else count for number, count in enumerate(shared)
    )
    return dataclasses.replace(layout, pool_blocks=pool_blocks)


def _group(window: int | None, cells: int, block_cells: int, slack_cells: int) -> GroupLayout:
    covering = -(-cells // block_cells)
    if window is None:
        return GroupLayout(window=None, table_width=covering)
    # n cells touch at most ceil((n - 1) / C) + 1 blocks, wherever they start.
    needed = max(window - 1, 1) + slack_cells
    ring = -(-(needed - 1) // block_cells) + 1
    return GroupLayout(window=window, table_width=min(covering, ring))
