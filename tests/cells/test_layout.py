"""Where cells lie: block accounting, ring widths, and what is refused. Plain Python."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.cells.layout import GroupLayout, PoolLayout, layers_by_group, plan_layout
from jaxstate.cells.pool import empty_pool
from jaxstate.cells.session import SessionState, as_context, check_alive, new_session
from jaxstate.config import LayerAttention, Rope
from jaxstate.errors import InvalidInput, StaleState
from jaxstate.testing import TINY_CONFIG, tiny_config

ROPE = Rope(base=10_000.0)
MAX_CONTEXT = 4096
windows = st.one_of(st.none(), st.integers(1, 70))


def layout_of(*wanted: int | None, cells: int, block: int, slack: int = 0) -> PoolLayout:
    layers = tuple(LayerAttention(rope=ROPE, window=window) for window in wanted)
    config = tiny_config(layers=layers, max_context=MAX_CONTEXT)
    return plan_layout(config, cells=cells, block_cells=block, slack_cells=slack)


@given(cells=st.integers(1, MAX_CONTEXT), block=st.integers(1, 130))
def test_a_table_without_window_covers_the_capacity_and_no_block_more(
    cells: int, block: int
) -> None:
    (group,) = layout_of(None, cells=cells, block=block).groups
    assert group.window is None
    assert (group.table_width - 1) * block < cells <= group.table_width * block


@given(cells=st.integers(1, 600), block=st.integers(1, 20), window=st.integers(1, 70))
def test_a_ring_holds_all_that_a_window_needs_at_every_length(
    cells: int, block: int, window: int
) -> None:
    (group,) = layout_of(window, cells=cells, block=block).groups
    covering = -(-cells // block)
    assert 1 <= group.table_width <= covering
    # What it needs, and one block for the border: never the whole stream.
    assert group.table_width <= -(-(window - 1) // block) + 1
    for length in range(1, cells + 1):
        needed = range(max(0, length - window + 1), length)
        blocks = {position // block for position in needed}
        assert len({number % group.table_width for number in blocks}) == len(blocks)


@given(
    cells=st.integers(1, 300),
    block=st.integers(1, 20),
    window=st.integers(1, 70),
    slack=st.integers(0, 50),
    data=st.data(),
)
def test_with_slack_a_session_may_grow_while_its_old_cells_are_read(
    cells: int, block: int, window: int, slack: int, data: st.DataObject
) -> None:
    """Against the ring itself: which needed block is overwritten at which length."""
    layout = layout_of(window, None, cells=cells, block=block, slack=slack)
    width = layout.groups[0].table_width
    seen = data.draw(st.integers(0, cells))
    until = layout.readable_until(seen)
    assert min(cells, seen + slack) <= until <= cells

    def lost(length: int) -> set[int]:
        """Needed positions whose block a session of that length has reused."""
        newest = (length - 1) // block
        needed = range(max(0, seen - window + 1), seen)
        return {position for position in needed if position // block + width <= newest}

    assert not lost(until)
    if until < cells and seen > 0 and window > 1:
        assert lost(until + 1), "cells are there that nobody may read"


@given(cells=st.integers(1, 300), block=st.integers(1, 20), window=windows)
def test_slack_costs_only_rings(cells: int, block: int, window: int | None) -> None:
    tight, slack = (layout_of(window, cells=cells, block=block, slack=n).groups[0] for n in (0, 9))
    covering = -(-cells // block)
    more = 0 if window is None else -(-9 // block)
    assert tight.table_width <= slack.table_width <= min(covering, tight.table_width + more)


def test_without_windows_everything_stays_readable() -> None:
    layout = layout_of(None, cells=50, block=4, slack=3)
    assert {layout.readable_until(seen) for seen in range(51)} == {50}


@pytest.mark.parametrize("slack", [-1, 1.5, True])
def test_impossible_slack_is_refused(slack: int) -> None:
    with pytest.raises(InvalidInput, match="slack_cells"):
        layout_of(7, cells=50, block=4, slack=slack)


@given(length=st.integers(0, 300), block=st.integers(1, 20), window=windows)
def test_the_first_kept_block_is_that_of_the_oldest_cell_that_is_seen(
    length: int, block: int, window: int | None
) -> None:
    """The next token, at position `length`, sees positions length - window + 1 and later."""
    group = GroupLayout(window=window, table_width=99)
    oldest = 0 if window is None or length == 0 else max(0, length - window + 1)
    assert group.first_kept_block(length, block) == oldest // block


@given(st.lists(windows, min_size=1, max_size=8))
def test_layers_with_one_window_share_a_group(wanted: list[int | None]) -> None:
    layout = layout_of(*wanted, cells=100, block=8)
    assert len(layout.groups) == len(set(wanted))
    assert [layout.groups[group].window for group in layout.layer_groups] == wanted
    for layer, group in enumerate(layout.layer_groups):
        assert layout.group_blocks[group] == layout.groups[group].table_width
        assert layer in layers_by_group(layout.layer_groups)[group]


@pytest.mark.parametrize("block", [1, 3, 4])
@pytest.mark.parametrize("cells", [1, 11, 12, 13])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_bytes_of_a_session_are_those_of_its_pool(
    block: int, cells: int, dtype: jnp.dtype
) -> None:
    layout = layout_of(None, 5, 1, 5, cells=cells, block=block)
    pool = empty_pool(layout, dtype)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(pool))
    assert held == layout.bytes_per_session(jnp.dtype(dtype).itemsize)
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(pool))
    shapes = jax.eval_shape(lambda: empty_pool(layout, dtype))
    assert jax.tree.structure(shapes) == jax.tree.structure(pool)
    for group, leaf in enumerate(pool.groups):
        assert leaf.shape[1:] == layout.block_shape(group)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(pool), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


def test_layouts_are_values() -> None:
    """Frozen and hashable: they are part of what names a compiled step."""
    one, same = (plan_layout(TINY_CONFIG, cells=30, block_cells=4) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != plan_layout(TINY_CONFIG, cells=31, block_cells=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.cells = 5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("cells", [0, -1, MAX_CONTEXT + 1, 10**12])
def test_impossible_capacities_are_refused(cells: int) -> None:
    with pytest.raises(InvalidInput, match=f"1 to {MAX_CONTEXT}"):
        layout_of(None, cells=cells, block=4)


@pytest.mark.parametrize("cells", [1, MAX_CONTEXT])
def test_the_smallest_and_the_largest_capacity(cells: int) -> None:
    assert layout_of(None, 7, cells=cells, block=4).cells == cells


def small_session() -> SessionState:
    layout = plan_layout(TINY_CONFIG, cells=10, block_cells=4)
    return new_session(layout, model_dim=32, dtype=jnp.float32)


def test_a_new_session_is_empty_and_owns_distinct_blocks() -> None:
    state = small_session()
    assert (int(state.length), state.length.dtype, state.length.shape) == (0, jnp.int32, ())
    assert state.ready.shape == (32,)
    assert not jnp.any(state.ready)
    for group, table in zip(state.layout.groups, state.tables, strict=True):
        assert table.dtype == jnp.int32
        assert sorted(table.tolist()) == list(range(group.table_width))


def test_a_session_is_a_batch_of_one() -> None:
    state = small_session()
    context = as_context(state)
    assert context.lengths.shape == (1,)
    assert [table.shape for table in context.tables] == [(1, *t.shape) for t in state.tables]
    assert jax.tree.leaves(context.pool)[0] is jax.tree.leaves(state.pool)[0]


def test_a_state_is_frozen_and_its_layout_static() -> None:
    state = small_session()
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.length = jnp.int32(5)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert jax.tree.map(lambda leaf: leaf, state).layout == state.layout


@pytest.mark.parametrize("which", range(6))
def test_a_state_with_any_array_taken_over_is_stale(which: int) -> None:
    state = small_session()
    check_alive(state)
    leaves = jax.tree.leaves(state)
    assert len(leaves) == 6
    leaves[which].delete()
    with pytest.raises(StaleState, match=r"state = extend\(model, state, tokens\)"):
        check_alive(state)
