"""Cells in use, between a session's pool and the host.

Comes in: a session state, or host arrays in stream order. Goes out: the other. Only cells that the
session still needs travel (a sliding-window layer keeps its last window - 1), in pieces of a fixed
number of blocks, so nothing compiles for a new length. Does not know: files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import GroupLayout
from jaxstate.cells.session import SessionState
from jaxstate.steps.compiled import SessionSteps
from jaxstate.steps.spec import MOVED_BLOCKS

HostArray: TypeAlias = NDArray[np.generic]
# Pieces on their way to the host at once: enough to keep the bus busy.
_IN_FLIGHT = 4


def kept_cells(group: GroupLayout, length: int) -> tuple[int, int]:
    """The positions first .. end whose cells a session of that length still needs."""
    first = 0 if group.window is None else max(0, length - (group.window - 1))
    return first, length


def read_groups(
    steps: SessionSteps, state: SessionState, firsts: Sequence[int], end: int
) -> list[HostArray]:
    """Each group's cells [L, 2, n, K, H], in stream order, at positions `firsts[group]` .. end - 1.

    Copies of several pieces are under way at once: the host waits for none of them by itself.
    """
    flying: deque[tuple[HostArray, slice, slice, jax.Array]] = deque()
    found: list[HostArray] = []

    def land() -> None:
        target, to, part, piece = flying.popleft()
        target[:, :, to] = np.asarray(piece).reshape(*piece.shape[:2], -1, *piece.shape[4:])[
            :, :, part
        ]

    for group, first in enumerate(firsts):
        cells = state.pool.groups[group]
        _, layers, both, _, *cell = cells.shape
        target = np.empty((layers, both, max(0, end - first), *cell), cells.dtype)
        for start, stop, ids in _pieces(state, group, first, end):
            piece = steps.read(group, cells, ids)
            piece.copy_to_host_async()
            low, high = max(start, first), min(stop, end)
            to, part = slice(low - first, high - first), slice(low - start, high - start)
            flying.append((target, to, part, piece))
            if len(flying) > _IN_FLIGHT:
                land()
        found.append(target)
    while flying:
        land()
    return found


def write_groups(
    steps: SessionSteps, state: SessionState, arrays: Sequence[Sequence[HostArray]], end: int
) -> tuple[jax.Array, ...]:
    """The groups of the pool with cells at the positions that end with `end`; takes them over.

    Args:
        steps, state: the session.
        arrays: of each group its layers' keys and values [n, K, H], one layer after the other.
        end: past the last position.
    """
    filled: list[jax.Array] = []
    for group, (cells, layers) in enumerate(zip(state.pool.groups, arrays, strict=True)):
        first, shape = end - len(layers[0]), cells.shape[1:]
        for start, stop, ids in _pieces(state, group, first, end):
            content = [_content(one, start - first, stop - first) for one in layers]
            piece = np.stack(content).reshape(*shape[:2], MOVED_BLOCKS, *shape[2:])
            cells = steps.write(group, cells, ids, jax.device_put(piece))
        filled.append(cells)
    return tuple(filled)


def _content(cells: HostArray, start: int, stop: int) -> HostArray:
    """Cells start .. stop - 1 of an array, zeros where it has none."""
    if start >= 0 and stop <= len(cells):
        return cells[start:stop]
    padded = np.zeros((stop - start, *cells.shape[1:]), cells.dtype)
    low, high = max(start, 0), min(stop, len(cells))
    padded[low - start : high - start] = cells[low:high]
    return padded


def _pieces(
    state: SessionState, group: int, first: int, end: int
) -> Iterator[tuple[int, int, jax.Array]]:
    """Pieces that cover positions first .. end - 1: position of their first cell, and past their
    last, and their blocks on the device, padded with numbers past the pool."""
    size, table = state.layout.block_cells, np.asarray(state.tables[group])
    last = -(-end // size) if end > first else first // size
    for begin in range(first // size, last, MOVED_BLOCKS):
        ids = np.full(MOVED_BLOCKS, state.layout.group_blocks[group], np.int32)
        logical = np.arange(begin, min(begin + MOVED_BLOCKS, last))
        ids[: len(logical)] = table[logical % len(table)]
        yield begin * size, (begin + MOVED_BLOCKS) * size, jax.device_put(ids)
