"""The device arrays that hold keys and values, and the pure functions that write and read them.

Comes in: block tables, positions and new cells. Goes out: a pool with those cells written; the
argument is not touched (a step that donates it lets XLA do so in place). Does not know: which
session owns which block.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxstate.cells.layout import PoolLayout, layers_by_group

# All layers of a group in one array: a step takes and gives few arrays, and writes a token's cells
# in all layers at once (docs/performance.md).
GroupCells = Float[Array, "P L 2 C K H"]
# Keys and values of tokens that were just computed, of each layer.
NewCells = tuple[Float[Array, "B Q T 2 K H"], ...]


@struct.dataclass
class KVPool:
    """All cells.

    Attributes:
        groups: of each group of layers [P, L, 2, C, K, H]: keys, with position embedding applied,
            and values.
    """

    groups: tuple[GroupCells, ...]


@struct.dataclass
class Context:
    """The committed cells of B sessions, read only.

    Rows of tokens [B, Q, T] look at their own session's: row b, q at session b. Where rows of
    several sessions are mixed (`place`), tokens are [1, R, T], and the rows that look at one
    session are brought side by side, so that its cells are read once.

    Attributes:
        pool: where they lie.
        tables: for each group int32 [B, W]: physical block of logical block b at entry b % W.
        lengths: int32 [B], committed cells of each session.
        slid: int32 [B], cells that were dropped before the newest of them, which keep their
            positions; None for none.
        place: int32 [R], b * `rows_each` + (which of the rows that look at session b); B *
            `rows_each` for a row that looks at none. None where rows are not mixed.
        rows_each: static; rows that may look at one session.
    """

    pool: KVPool
    tables: tuple[Int[Array, "B W"], ...]
    lengths: Int[Array, " B"]
    place: Int[Array, " R"] | None = None
    rows_each: int = struct.field(pytree_node=False, default=1)
    slid: Int[Array, " B"] | None = None

    def seen(self) -> Int[Array, "B Q"]:
        """How many cells each row sees, in an order that goes with [B, Q, T] tokens."""
        return self._of_rows(self.lengths)

    def next_positions(self) -> Int[Array, "B Q"]:
        """Where each row goes on, in the same order."""
        return self._of_rows(self.ends)

    @property
    def ends(self) -> Int[Array, " B"]:
        """Where each session goes on."""
        return self.lengths if self.slid is None else self.lengths + self.slid

    def _of_rows(self, values: Int[Array, " B"]) -> Int[Array, "B Q"]:
        if self.place is None:
            return values[:, None]
        return values.at[self.place // self.rows_each].get(mode="fill", fill_value=0)[None]


def empty_pool(layout: PoolLayout, dtype: jnp.dtype) -> KVPool:
    """A pool for one session, zero-filled."""
    blocks = enumerate(layout.group_blocks)
    shapes = [(count, *layout.block_shape(group)) for group, count in blocks]
    return KVPool(groups=tuple(jnp.zeros(shape, dtype) for shape in shapes))


def write_cells(
    pool: KVPool,
    tables: tuple[Int[Array, "B W"], ...],
    layer_groups: tuple[int, ...],
    new: NewCells,
    start: Int[Array, " B"],
    counts: Int[Array, " B"],
) -> KVPool:
    """Commits the first `counts` of T new cells of each session at positions start, start + 1, …

    Padding, and cells of a chunk that is longer than a ring, are dropped: no branch, one shape.
    `new` has Q = 1.
    """
    by_group = zip(pool.groups, tables, layers_by_group(layer_groups), strict=True)
    return KVPool(
        groups=tuple(
            write_group(cells, table, [new[layer] for layer in layers], start, counts)
            for cells, table, layers in by_group
        )
    )


def write_group(
    cells: GroupCells,
    table: Int[Array, "B W"],
    new: Sequence[Float[Array, "B 1 T 2 K H"]],
    start: Int[Array, " B"],
    counts: Int[Array, " B"],
) -> GroupCells:
    """`write_cells` of one group: `new` are its layers' cells.

    One write for all layers, of rows [K, H]: what is dropped gets a block past the last one.
    """
    layers, both, block_cells = cells.shape[1:4]
    width = table.shape[1]
    offsets = jnp.arange(new[0].shape[2], dtype=jnp.int32)[None, :]
    positions = start[:, None] + offsets
    blocks, ends = positions // block_cells, (start + counts)[:, None]
    kept = (offsets < counts[:, None]) & (blocks > (ends - 1) // block_cells - width)
    physical = jnp.take_along_axis(table, blocks % width, axis=1)
    physical = jnp.where(kept, physical, cells.shape[0])
    fresh = jnp.stack([one[:, 0] for one in new], axis=2)  # [B, T, L, 2, K, H]
    rows = (
        physical[..., None, None],
        jnp.arange(layers, dtype=jnp.int32)[None, None, :, None],
        jnp.arange(both, dtype=jnp.int32)[None, None, None, :],
        (positions % block_cells)[..., None, None],
    )
    return cells.at[rows].set(fresh, mode="drop")


def layer_blocks(
    cells: GroupCells, layer: Int[Array, ""], blocks: Int[Array, "*n"]
) -> tuple[Float[Array, "*n C K H"], Float[Array, "*n C K H"]]:
    """Copies of one layer's keys and values of some blocks; past the last block anything."""
    keys, values = (cells.at[blocks, layer, part].get(mode="clip") for part in (0, 1))
    return keys, values


def after_reading(
    counts: Int[Array, " B"], at_most: int, read: Float[Array, "*shape"]
) -> Int[Array, " B"]:
    """`counts`, which are known only once all that led to `read` is.

    A donated pool that a step both reads and writes stays in place only if every read certainly
    comes before the first write; otherwise XLA copies all of it (Gemma-3-270M: 300 MB in each
    decode step, half of its time on a CPU). Nothing else makes the order certain: an optimization
    barrier is gone before copies are decided on.

    Args:
        counts: int32, at most `at_most`.
        at_most: as many as there can be.
        read: what was computed from the pool; its values do not matter.
    """
    same = jnp.minimum(counts, at_most)  # but XLA does not know that it is
    return jnp.where(jnp.isinf(read.reshape(-1)[0]), same, counts)


def read_blocks(cells: GroupCells, blocks: Int[Array, " n"]) -> Float[Array, "L 2 n C K H"]:
    """Copies of some blocks of one group, layer by layer; past the last block zeros."""
    return jnp.moveaxis(cells.at[blocks].get(mode="fill", fill_value=0), 0, 2)


def write_blocks(
    cells: GroupCells, blocks: Int[Array, " n"], content: Float[Array, "L 2 n C K H"]
) -> GroupCells:
    """One group with some blocks replaced; block numbers past the end are dropped."""
    return cells.at[blocks].set(jnp.moveaxis(content, 2, 0), mode="drop")
