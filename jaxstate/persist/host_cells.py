"""Cells in use, between a session's pool and the host.

Comes in: a session state, or host arrays in stream order. Goes out: the other. Only cells that the
session still needs travel (a sliding-window layer keeps its last window - 1), in pieces of a fixed
number of blocks, so nothing compiles for a new length. Does not know: files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import GroupLayout
from jaxstate.cells.session import SessionState
from jaxstate.steps.compiled import SessionSteps
from jaxstate.steps.spec import MOVED_BLOCKS

HostArray: TypeAlias = NDArray[np.generic]
# Pieces on their way to the host at once: enough to keep the bus busy, 270 MB of Llama-3.1-8B.
_IN_FLIGHT = 64


def kept_cells(group: GroupLayout, length: int) -> tuple[int, int]:
    """The positions first .. end whose cells a session of that length still needs."""
    first = 0 if group.window is None else max(0, length - (group.window - 1))
    return first, length


def read_layers(
    steps: SessionSteps, state: SessionState, firsts: Sequence[int], end: int
) -> list[tuple[HostArray, HostArray]]:
    """Each layer's keys and values [cells, K, H] in stream order, at positions `firsts[layer]` ..
    end - 1.

    Copies of many pieces are under way at once: the host waits for none of them by itself.
    """
    layout, uploads = state.layout, _Uploads(state, end)
    flying: deque[tuple[HostArray, slice, slice, jax.Array]] = deque()
    found: list[tuple[HostArray, HostArray]] = []

    def land() -> None:
        target, to, part, blocks = flying.popleft()
        target[to] = np.asarray(blocks).reshape(-1, *target.shape[1:])[part]

    def collect(pool: jax.Array, group: int, first: int) -> HostArray:
        target = np.empty((max(0, end - first), *pool.shape[2:]), pool.dtype)
        for start, stop, ids in uploads.pieces(group, first, pool.shape[0]):
            blocks = steps.read(pool, ids)
            blocks.copy_to_host_async()
            low, high = max(start, first), min(stop, end)
            to, part = slice(low - first, high - first), slice(low - start, high - start)
            flying.append((target, to, part, blocks))
            if len(flying) > _IN_FLIGHT:
                land()
        return target

    for layer, first in enumerate(firsts):
        group = layout.layer_groups[layer]
        pools = (state.pool.keys[layer], state.pool.values[layer])
        keys, values = (collect(pool, group, first) for pool in pools)
        found.append((keys, values))
    while flying:
        land()
    return found


def write_layers(
    steps: SessionSteps, state: SessionState, name: str, arrays: Mapping[str, HostArray], end: int
) -> tuple[jax.Array, ...]:
    """The pools of `name` ("keys" or "values") with each layer's cells [n, K, H] at the positions
    that end with `end`; takes them over."""
    uploads, filled = _Uploads(state, end), list[jax.Array]()
    for layer, pool in enumerate(getattr(state.pool, name)):
        cells = arrays[f"{name}_{layer:03d}"]
        first, group = end - len(cells), state.layout.layer_groups[layer]
        for start, stop, ids in uploads.pieces(group, first, pool.shape[0]):
            content = _content(cells, start - first, stop - first)
            blocks = content.reshape(MOVED_BLOCKS, *pool.shape[1:])
            pool = steps.write(pool, ids, jax.device_put(blocks))
        filled.append(pool)
    return tuple(filled)


def _content(cells: HostArray, start: int, stop: int) -> HostArray:
    """Cells start .. stop - 1 of an array, zeros where it has none."""
    if start >= 0 and stop <= len(cells):
        return cells[start:stop]
    padded = np.zeros((stop - start, *cells.shape[1:]), cells.dtype)
    low, high = max(start, 0), min(stop, len(cells))
    padded[low - start : high - start] = cells[low:high]
    return padded


class _Uploads:
    """Which blocks hold positions up to `end`, a piece at a time; each list is uploaded once for
    all layers of a group."""

    def __init__(self, state: SessionState, end: int) -> None:
        self._tables = [np.asarray(table) for table in state.tables]
        self._block_cells, self._end = state.layout.block_cells, end
        self._ids: dict[tuple[int, int], jax.Array] = {}

    def pieces(
        self, group: int, first: int, num_blocks: int
    ) -> Iterator[tuple[int, int, jax.Array]]:
        """Pieces that cover positions first .. end - 1: position of their first cell, and past
        their last, and their blocks on the device, padded with numbers past the pool."""
        size, table = self._block_cells, self._tables[group]
        last = -(-self._end // size) if self._end > first else first // size
        for begin in range(first // size, last, MOVED_BLOCKS):
            if (group, begin) not in self._ids:
                ids = np.full(MOVED_BLOCKS, num_blocks, np.int32)
                logical = range(begin, min(begin + MOVED_BLOCKS, last))
                ids[: len(logical)] = [table[block % len(table)] for block in logical]
                self._ids[group, begin] = jax.device_put(ids)
            yield begin * size, (begin + MOVED_BLOCKS) * size, self._ids[group, begin]
