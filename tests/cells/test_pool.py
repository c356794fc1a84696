"""Writing and reading cells against plain loops; what must stay as it is holds poison."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jaxstate.cells.pool import (
    KVPool,
    NewCells,
    layer_blocks,
    read_blocks,
    write_blocks,
    write_cells,
)
from tests.reference import layers_of_pool, pool_of_layers

BLOCK, TOKENS, SESSIONS = 4, 11, 3
WIDTHS = (7, 2, 1)  # 28 cells; a ring of 8; a ring of 4, shorter than a chunk
LAYER_GROUPS = (1, 0, 2, 1)
CAPACITY = WIDTHS[0] * BLOCK
SPARE = 3
SHAPE = (2, 3)

compiled_write = jax.jit(write_cells, static_argnums=2)
compiled_write_blocks = jax.jit(write_blocks)
compiled_read_blocks = jax.jit(read_blocks)


@dataclass
class Mirror:
    """The pool as it should be: numpy arrays, one number a cell written with plain loops."""

    tables: tuple[NDArray[np.int32], ...]
    keys: list[NDArray[np.float32]]
    values: list[NDArray[np.float32]]

    @staticmethod
    def poisoned(seed: int) -> Mirror:
        random = np.random.default_rng(seed)
        tables, layers = [], []
        for width in WIDTHS:
            order = random.permutation(SESSIONS * width + SPARE).astype(np.int32)
            tables.append(order[: SESSIONS * width].reshape(SESSIONS, width))
        for group in LAYER_GROUPS:
            blocks = SESSIONS * WIDTHS[group] + SPARE
            layers.append(np.full((blocks, BLOCK, *SHAPE), np.nan, np.float32))
        return Mirror(tuple(tables), layers, [layer.copy() for layer in layers])

    def pool(self) -> KVPool:
        return pool_of_layers(LAYER_GROUPS, list(zip(self.keys, self.values, strict=True)))

    def write(self, new: NewCells, start: NDArray[np.int32], counts: NDArray[np.int32]) -> None:
        for index, group in enumerate(LAYER_GROUPS):
            table, width = self.tables[group], WIDTHS[group]
            for session in range(SESSIONS):
                end = int(start[session] + counts[session])
                for offset in range(int(counts[session])):
                    position = int(start[session]) + offset
                    if position // BLOCK <= (end - 1) // BLOCK - width:
                        continue  # a later cell of this chunk takes its place
                    block = table[session, position // BLOCK % width]
                    at = (block, position % BLOCK)
                    cell = np.asarray(new[index])[session, 0, offset]
                    self.keys[index][at], self.values[index][at] = cell

    def check(self, pool: KVPool) -> None:
        """Bit for bit, poison included."""
        mine = zip(self.keys, self.values, strict=True)
        for pair, found in zip(mine, layers_of_pool(LAYER_GROUPS, pool), strict=True):
            assert [part.tobytes() for part in pair] == [part.tobytes() for part in found]


def fresh(seed: int, counts: NDArray[np.int32]) -> NewCells:
    """New cells whose padding is NaN of another kind than the poison: it must never arrive."""
    random = np.random.default_rng(seed)

    def layer() -> jax.Array:
        cells = random.normal(0, 1, (SESSIONS, 1, TOKENS, 2, *SHAPE)).astype(np.float32)
        for session, count in enumerate(counts):
            cells[session, 0, count:] = np.inf
        return jnp.asarray(cells)

    return tuple(layer() for _ in LAYER_GROUPS)


def write_all(seed: int, writes: list[tuple[int, ...]]) -> None:
    """Each write brings so many new cells to each session, as far as its capacity goes."""
    mirror = Mirror.poisoned(seed)
    pool, lengths = mirror.pool(), np.zeros(SESSIONS, np.int32)
    for number, wanted in enumerate(writes):
        counts = np.minimum(np.array(wanted, np.int32), CAPACITY - lengths)
        new = fresh(seed + number, counts)
        before = pool
        pool = compiled_write(before, mirror.tables, LAYER_GROUPS, new, lengths, counts)
        mirror.write(new, lengths, counts)
        mirror.check(pool)
        lengths = lengths + counts


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    writes=st.lists(
        st.tuples(*[st.integers(0, TOKENS)] * SESSIONS).filter(any), min_size=1, max_size=8
    ),
)
def test_any_sequence_of_writes(seed: int, writes: list[tuple[int, ...]]) -> None:
    write_all(seed, writes)


@pytest.mark.parametrize("first", range(TOKENS + 1))
@pytest.mark.parametrize("second", [1, 3, 4, 5, TOKENS])
def test_borders_of_blocks_and_rings(first: int, second: int) -> None:
    write_all(first, [(first, 0, TOKENS), (second, second, second), (TOKENS, 1, 0)])


def test_writing_up_to_the_last_cell_of_the_capacity() -> None:
    write_all(1, [(TOKENS, TOKENS, TOKENS)] * 3)


def test_writing_nothing_changes_nothing() -> None:
    mirror = Mirror.poisoned(2)
    none = np.zeros(SESSIONS, np.int32)
    for start in (0, 5, CAPACITY):
        starts = np.full(SESSIONS, start, np.int32)
        new = fresh(3, none)
        mirror.check(compiled_write(mirror.pool(), mirror.tables, LAYER_GROUPS, new, starts, none))


def test_the_argument_is_not_touched() -> None:
    mirror = Mirror.poisoned(4)
    pool, counts = mirror.pool(), np.full(SESSIONS, 5, np.int32)
    zeros = np.zeros(SESSIONS, np.int32)
    compiled_write(pool, mirror.tables, LAYER_GROUPS, fresh(5, counts), zeros, counts)
    mirror.check(pool)


LAYERS = 3


def blocks_of_a_group() -> NDArray[np.float32]:
    return np.random.default_rng(6).normal(0, 1, (9, LAYERS, 2, BLOCK, *SHAPE)).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(12)))
def test_blocks_are_read_and_written_whole(order: list[int]) -> None:
    """Block numbers 9, 10, 11 lie past the end: read as zeros, not written anywhere."""
    cells, wanted = blocks_of_a_group(), np.array(order[:5], np.int32)
    found = np.asarray(compiled_read_blocks(jnp.asarray(cells), wanted))
    for place, block in enumerate(wanted):
        np.testing.assert_array_equal(found[:, :, place], cells[block] if block < 9 else 0)
    content = np.random.default_rng(7).normal(0, 1, found.shape).astype(np.float32)
    written = np.asarray(compiled_write_blocks(jnp.asarray(cells), wanted, content))
    expected = cells.copy()
    for place, block in enumerate(wanted):
        if block < 9:
            expected[block] = content[:, :, place]
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_one_layer_of_some_blocks(layer: int) -> None:
    """Blocks in any order and shape; what is read past the end does not matter."""
    cells = blocks_of_a_group()
    wanted = np.array([[8, 0, 3], [11, 9, 8]], np.int32)
    for part, found in enumerate(layer_blocks(jnp.asarray(cells), jnp.int32(layer), wanted)):
        assert found.shape == (2, 3, BLOCK, *SHAPE)
        for at in np.ndindex(wanted.shape):
            if wanted[at] < 9:
                np.testing.assert_array_equal(np.asarray(found)[at], cells[wanted[at], layer, part])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_blocks_travel_bit_for_bit(dtype: jnp.dtype) -> None:
    """NaN payloads and negative zeros included."""
    size = (6, LAYERS, 2, BLOCK, 2, 4)
    raw = np.random.default_rng(8).integers(0, 256, size, np.uint8)
    cells = jnp.asarray(raw.reshape(-1).view(dtype).reshape(*size[:-1], -1))
    wanted = jnp.asarray(np.array([4, 0, 5], np.int32))
    content = read_blocks(cells, wanted)
    there = np.asarray(cells)[[4, 0, 5]]
    assert np.moveaxis(np.asarray(content), 2, 0).tobytes() == there.tobytes()
    back = write_blocks(jnp.zeros_like(cells), wanted, content)
    assert np.asarray(back)[[4, 0, 5]].tobytes() == there.tobytes()
