"""The device arrays that hold keys and values, and the pure functions that write and read them.

Comes in: block tables, positions and new cells. Goes out: a pool with those cells written; the
argument is not touched (a step that donates it lets XLA do so in place). Does not know: which
session owns which block.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxstate.cells.layout import PoolLayout

LayerCells = Float[Array, "P C K H"]


@struct.dataclass
class KVPool:
    """All cells, per layer.

    Attributes:
        keys: L arrays [P, C, K, H], position embedding applied.
        values: L arrays [P, C, K, H].
    """

    keys: tuple[LayerCells, ...]
    values: tuple[LayerCells, ...]


@struct.dataclass
class NewCells:
    """The cells of tokens that were just computed, per layer [B, Q, T, K, H]."""

    keys: tuple[Float[Array, "B Q T K H"], ...]
    values: tuple[Float[Array, "B Q T K H"], ...]


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
        place: int32 [R], b * `rows_each` + (which of the rows that look at session b); B *
            `rows_each` for a row that looks at none. None where rows are not mixed.
        rows_each: static; rows that may look at one session.
    """

    pool: KVPool
    tables: tuple[Int[Array, "B W"], ...]
    lengths: Int[Array, " B"]
    place: Int[Array, " R"] | None = None
    rows_each: int = struct.field(pytree_node=False, default=1)

    def seen(self) -> Int[Array, "B Q"]:
        """How many cells each row sees, in an order that goes with [B, Q, T] tokens."""
        if self.place is None:
            return self.lengths[:, None]
        return self.lengths.at[self.place // self.rows_each].get(mode="fill", fill_value=0)[None]


def empty_pool(layout: PoolLayout, dtype: jnp.dtype) -> KVPool:
    """A pool for one session, zero-filled."""

    def zeros() -> tuple[LayerCells, ...]:
        layers = range(len(layout.layer_groups))
        return tuple(
            jnp.zeros((layout.num_blocks(i), *layout.block_shape()), dtype) for i in layers
        )

    return KVPool(keys=zeros(), values=zeros())


def write_cells(
    pool: KVPool,
    tables: tuple[Int[Array, "B W"], ...],
    layer_groups: tuple[int, ...],
    new: NewCells,
    start: Int[Array, " B"],
    counts: Int[Array, " B"],
) -> KVPool:
    """Commits the first `counts` of T new cells of each session at positions start, start + 1, …

    Padding, and cells of a chunk that is longer than a ring, get an index past the pool and are
    dropped: no branch, one shape. `new` has Q = 1.
    """
    tokens = new.keys[0].shape[2]
    offsets = jnp.arange(tokens, dtype=jnp.int32)[None, :]
    positions = start[:, None] + offsets
    ends = (start + counts)[:, None]
    valid = offsets < counts[:, None]

    def place(cells: LayerCells, group: int, fresh: Float[Array, "B 1 T K H"]) -> LayerCells:
        table = tables[group]
        blocks, width = positions // cells.shape[1], table.shape[1]
        kept = valid & (blocks > (ends - 1) // cells.shape[1] - width)
        physical = jnp.take_along_axis(table, blocks % width, axis=1)
        physical = jnp.where(kept, physical, cells.shape[0])
        return cells.at[physical, positions % cells.shape[1]].set(fresh[:, 0], mode="drop")

    keys = [place(*args) for args in zip(pool.keys, layer_groups, new.keys, strict=True)]
    values = [place(*args) for args in zip(pool.values, layer_groups, new.values, strict=True)]
    return KVPool(keys=tuple(keys), values=tuple(values))


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


def read_blocks(cells: LayerCells, blocks: Int[Array, " n"]) -> Float[Array, "n C K H"]:
    """Copies of some blocks of one layer; block numbers past the end read as zeros."""
    return cells.at[blocks].get(mode="fill", fill_value=0)


def write_blocks(
    cells: LayerCells, blocks: Int[Array, " n"], content: Float[Array, "n C K H"]
) -> LayerCells:
    """One layer with some blocks replaced; block numbers past the end are dropped."""
    return cells.at[blocks].set(content, mode="drop")
