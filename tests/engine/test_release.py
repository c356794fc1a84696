"""What a closed engine gives back, though its handles are still held."""

from __future__ import annotations

import gc

import jax
import pytest

import jaxstate
from jaxstate.errors import ClosedError
from jaxstate.testing import tiny_model


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_a_closed_engine_gives_the_device_its_memory_back() -> None:
    model = tiny_model()
    before = live_bytes()
    engine = jaxstate.Engine(model, cells=2048, session_cells=512, warm_up=False)
    session = engine.open()
    session.push("09:30 101.20")
    session.wait()
    pool_bytes = engine._core.limits.layout.pool_bytes(itemsize=4)
    assert live_bytes() - before > pool_bytes > 0
    engine.close()
    assert live_bytes() - before < pool_bytes / 8
    with pytest.raises(ClosedError):
        session.push("09:31 101.25")
