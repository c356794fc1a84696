"""How large a pool is that was asked for in cells, or as a share of the device's memory."""

from __future__ import annotations

import pytest

from jaxstate.engine.executor import pool_size as module
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.pool_size import DEFAULT_CELLS, device_bytes, pool_size
from jaxstate.errors import InvalidInput
from jaxstate.testing import tiny_model

BLOCK = 4  # cells, of the tiny model's steps


def test_cells_come_in_whole_blocks_and_sessions_may_fill_the_pool() -> None:
    size = pool_size(tiny_model(), 97, None, None, 3)
    assert (size.cells, size.session_cells, size.sessions) == (100, 100, 3)
    size = pool_size(tiny_model(), None, None, None, 64)
    assert (size.cells, size.session_cells) == (DEFAULT_CELLS, 512)  # the model's positions
    assert pool_size(tiny_model(), 97, None, 20, 1).session_cells == 20


@pytest.mark.parametrize("sessions", [1, 3, 64])
def test_a_share_of_the_memory_is_filled_and_not_exceeded(
    monkeypatch: pytest.MonkeyPatch, sessions: int
) -> None:
    """Half of a megabyte, of which the layer with a window takes its part."""
    monkeypatch.setattr(module, "device_bytes", lambda _: 1 << 20)
    model = tiny_model()
    size = pool_size(model, None, 0.5, 64, sessions)

    def bytes_of(cells: int) -> int:
        device = DeviceExecutor(model, session_cells=64, cells=cells, sessions=sessions)
        return device.limits.layout.pool_bytes(model.dtype.itemsize)

    assert size.cells % BLOCK == 0
    assert bytes_of(size.cells) <= 1 << 19 < bytes_of(size.cells + BLOCK)


def test_the_machines_memory_is_known() -> None:
    assert device_bytes(tiny_model().device) > 1 << 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((100, 0.5, None, 1), "say one of the two"),
        ((0, None, None, 1), "cells=0"),
        ((100, None, None, 0), "sessions=0"),
        ((None, 0.0, None, 1), "memory=0.0"),
        ((None, 1.5, None, 1), "memory=1.5"),
        ((None, True, None, 1), "memory=True"),
        ((None, 1e-12, None, 1), "do not hold one block"),
    ],
)
def test_what_makes_no_pool_is_refused(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        pool_size(tiny_model(), *arguments)  # pyright: ignore
