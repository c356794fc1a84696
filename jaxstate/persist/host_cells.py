"""Cells in use, between a session's pool and the host.

Comes in: a session state, or host arrays in stream order. Goes out: the other. Only cells that the
session still needs travel (a sliding-window layer keeps its last window - 1), in pieces of a fixed
number of blocks, so nothing compiles for a new length. Does not know: files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import GroupLayout
from jaxstate.cells.session import SessionState
from jaxstate.model.devices import to_host
from jaxstate.steps.compiled import SessionSteps
from jaxstate.steps.spec import MOVED_BLOCKS

HostArray: TypeAlias = NDArray[np.generic]
# That copy pieces.
_THREADS = min(8, os.cpu_count() or 1)
T = TypeVar("T")
R = TypeVar("R")


def kept_cells(group: GroupLayout, length: int) -> tuple[int, int]:
    """The positions first .. end whose cells a session of that length still needs."""
    first = 0 if group.window is None else max(0, length - (group.window - 1))
    return first, length


def read_groups(
    steps: SessionSteps, state: SessionState, firsts: Sequence[int], end: int
) -> list[HostArray]:
    """Each group's cells [L, 2, n, K, H], in stream order, at positions `firsts[group]` .. end - 1.

    Pieces cross the bus while others are copied to where they belong.
    """
    targets: list[HostArray] = []

    def pieces() -> Iterator[tuple[jax.Array, slice, HostArray]]:
        for group, first in enumerate(firsts):
            cells = state.pool.groups[group]
            layers, both, _, *cell = cells.shape[1:]
            target = np.empty((layers, both, max(0, end - first), *cell), cells.dtype)
            targets.append(target)
            for start, stop, ids in _pieces(state, group, first, end):
                low, high = max(start, first), min(stop, end)
                to, part = slice(low - first, high - first), slice(low - start, high - start)
                yield to_host(steps.read(group, cells, ids)), part, target[:, :, to]

    for _ in _ahead(_land, pieces()):
        pass
    return targets


def _land(arriving: tuple[jax.Array, slice, HostArray]) -> None:
    """Some cells of a piece [L, 2, n, C, K, H], to where they belong."""
    piece, part, target = arriving
    content = np.asarray(piece)
    target[:] = content.reshape(*content.shape[:2], -1, *content.shape[4:])[:, :, part]


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
    (device,) = state.length.devices()  # a thread of its own has the process's default
    for group, (cells, layers) in enumerate(zip(state.pool.groups, arrays, strict=True)):
        first, shape = end - len(layers[0]), cells.shape[1:]
        size = (*shape[:2], MOVED_BLOCKS, *shape[2:])

        def upload(
            piece: tuple[int, int, jax.Array],
            layers: Sequence[HostArray] = layers,
            first: int = first,
            size: tuple[int, ...] = size,
        ) -> jax.Array:
            content = [_content(one, piece[0] - first, piece[1] - first) for one in layers]
            return jax.device_put(np.stack(content).reshape(size), device)

        for (_, _, ids), content in _ahead(upload, _pieces(state, group, first, end)):
            cells = steps.write(group, cells, ids, content)
        filled.append(cells)
    return tuple(filled)


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item with what a thread makes of it, in their order; several are under way at once.

    One thread fills fresh memory at 2 to 3 GB/s, a twentieth of what the bus carries.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="jaxstate-copy") as threads:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            waiting.append((item, threads.submit(function, item)))
            if len(waiting) > 2 * _THREADS:
                done, made = waiting.popleft()
                yield done, made.result()
        for done, made in waiting:
            yield done, made.result()


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
