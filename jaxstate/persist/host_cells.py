"""Cells in use, between a session's pool and the host.

Comes in: a session state, or host arrays in stream order. Goes out: the other. Only cells that the
session still needs travel (a sliding-window layer keeps its last window - 1), in pieces of a fixed
number of blocks, so nothing compiles for a new length. Does not know: files.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import GroupLayout, PoolLayout
from jaxstate.cells.session import SessionState
from jaxstate.steps.compiled import SessionSteps
from jaxstate.steps.spec import COPY_BLOCKS


def kept_cells(group: GroupLayout, length: int) -> tuple[int, int]:
    """The positions first .. end whose cells a session of that length still needs."""
    first = 0 if group.window is None else max(0, length - (group.window - 1))
    return first, length


def read_layer(
    steps: SessionSteps, state: SessionState, layer: int, first: int, end: int
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """One layer's keys and values [cells, K, H] in stream order, at positions first .. end - 1."""
    layout = state.layout
    group = layout.layer_groups[layer]
    table = np.asarray(state.tables[group])

    def collect(pool: jax.Array) -> NDArray[np.generic]:
        pieces = [np.zeros((0, layout.num_kv_heads, layout.head_dim), pool.dtype)]
        for logical, ids in _pieces(layout, table, first, end, pool.shape[0]):
            blocks = np.asarray(steps.read(pool, jax.device_put(ids)))
            pieces.append(blocks[: len(logical)].reshape(-1, *pieces[0].shape[1:]))
        start = first // layout.block_cells * layout.block_cells
        return np.concatenate(pieces)[first - start : end - start]

    return collect(state.pool.keys[layer]), collect(state.pool.values[layer])


def write_layer(
    steps: SessionSteps,
    pool: jax.Array,
    table: NDArray[np.int32],
    cells: NDArray[np.generic],
    first: int,
) -> jax.Array:
    """One layer's pool with `cells` [n, K, H] at positions first, first + 1, …; takes it over."""
    layout = steps.layout
    size = layout.block_cells
    start, end = first // size * size, first + len(cells)
    padded = np.zeros((-(-(end - start) // size) * size, *cells.shape[1:]), cells.dtype)
    padded[first - start : end - start] = cells
    blocks = padded.reshape(-1, *layout.block_shape())
    for logical, ids in _pieces(layout, table, first, end, pool.shape[0]):
        content = np.zeros((COPY_BLOCKS, *layout.block_shape()), cells.dtype)
        content[: len(logical)] = blocks[
            logical.start - start // size : logical.stop - start // size
        ]
        pool = steps.write(pool, *jax.device_put((ids, content)))
    return pool


def _pieces(
    layout: PoolLayout, table: NDArray[np.int32], first: int, end: int, num_blocks: int
) -> Iterator[tuple[range, NDArray[np.int32]]]:
    """Logical blocks of positions first .. end, `COPY_BLOCKS` at a time, with their places."""
    stop = -(-end // layout.block_cells) if end > first else first // layout.block_cells
    for begin in range(first // layout.block_cells, stop, COPY_BLOCKS):
        logical = range(begin, min(begin + COPY_BLOCKS, stop))
        ids = np.full(COPY_BLOCKS, num_blocks, np.int32)
        ids[: len(logical)] = [table[block % len(table)] for block in logical]
        yield logical, ids
