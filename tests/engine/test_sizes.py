"""How many rows a step should take, worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.engine.executor.protocol import RowSizes

CPU = RowSizes(sizes=(1, 8, 64), overhead_tokens=32)
GPU = RowSizes(sizes=(1, 8, 64), overhead_tokens=512)


@pytest.mark.parametrize(
    ("sizes", "waiting", "tokens", "most", "taken"),
    [
        (CPU, 1, 16, 64, 1),
        (CPU, 2, 16, 64, 2),  # padded to 8: they read their session once
        (CPU, 8, 16, 64, 8),
        (CPU, 9, 4, 64, 8),  # 64 rows: (32 + 256) / 9 = 32 a row; 8: (32 + 32) / 8 = 8
        (CPU, 19, 1, 64, 8),  # 64: 96 / 19 = 5.05; 8: 40 / 8 = 5
        (CPU, 20, 1, 64, 20),  # 64: 96 / 20 = 4.8
        (CPU, 64, 16, 64, 64),
        (CPU, 64, 16, 8, 8),
        (CPU, 5, 16, 7, 1),  # the size for 8 is too large here
        (GPU, 9, 4, 64, 8),  # 64: 768 / 9 = 85; 8: 544 / 8 = 68
        (GPU, 12, 4, 64, 12),  # 64: 768 / 12 = 64
        (GPU, 20, 1, 64, 20),
    ],
)
def test_by_hand(sizes: RowSizes, waiting: int, tokens: int, most: int, taken: int) -> None:
    assert sizes.take(waiting, tokens, most) == taken


@given(
    waiting=st.integers(1, 200),
    tokens=st.integers(1, 300),
    most=st.integers(1, 100),
    overhead=st.integers(0, 1000),
)
def test_some_are_taken_and_no_more_than_fit(
    waiting: int, tokens: int, most: int, overhead: int
) -> None:
    taken = RowSizes(sizes=(1, 8, 64), overhead_tokens=overhead).take(waiting, tokens, most)
    assert 1 <= taken <= min(waiting, most)
    assert taken > 1 or waiting == 1 or most < 8
