"""How large an engine's pool is: in cells, or as a share of the device's memory.

Comes in: what the caller of `Engine` said. Goes out: a `PoolSize`. Does not know: sessions, steps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import jax

from jaxstate.cells.layout import plan_layout, share_pool
from jaxstate.errors import InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.records import checked_int

DEFAULT_CELLS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """Cells of the pool and of each session at most, and sessions on the device at once."""

    cells: int
    session_cells: int
    sessions: int


def pool_size(
    model: Model,
    cells: int | None,
    memory: float | None,
    session_cells: int | None,
    sessions: int,
) -> PoolSize:
    """The pool that these arguments of `Engine` ask for.

    Raises:
        InvalidInput: they contradict each other, or are out of range.
    """
    if cells is not None and memory is not None:
        raise InvalidInput(f"cells={cells} and memory={memory}: say one of the two")
    count = checked_int("sessions", sessions)
    if count < 1:
        raise InvalidInput(f"sessions={sessions}: an engine is for one session or more")
    block = model.steps.block_cells
    wanted = None if session_cells is None else checked_int("session_cells", session_cells)
    if memory is not None:
        total = _cells_within(model, _checked_share(memory), wanted, count)
    else:
        total = DEFAULT_CELLS if cells is None else checked_int("cells", cells)
    if total < 1:
        raise InvalidInput(f"cells={cells}: a pool has one cell or more")
    # Whole blocks, so that what was asked for is there.
    total = -(-total // block) * block
    each = min(total, model.config.max_context) if wanted is None else wanted
    return PoolSize(cells=total, session_cells=each, sessions=count)


def _checked_share(memory: object) -> float:
    if isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 < memory <= 1:
        raise InvalidInput(f"memory={memory!r} must be a share of the device's memory, 0 to 1")
    return float(memory)


def _cells_within(model: Model, share: float, session_cells: int | None, sessions: int) -> int:
    """The most cells whose pool takes no more than that share of the memory."""
    limit_bytes = share * device_bytes()
    block = model.steps.block_cells
    low, high = 0, int(limit_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        within = _pool_bytes(model, middle * block, session_cells, sessions) <= limit_bytes
        low, high = (middle, high) if within else (low, middle - 1)
    if low == 0:
        raise InvalidInput(
            f"memory={share}: {limit_bytes / 1e9:.2f} GB do not hold one block of {block} cells"
        )
    return low * block


def _pool_bytes(model: Model, cells: int, session_cells: int | None, sessions: int) -> int:
    each = min(cells, model.config.max_context, session_cells or cells)
    layout = plan_layout(
        model.config,
        cells=each,
        block_cells=model.steps.block_cells,
        slack_cells=model.steps.extend_tokens[-1],
    )
    shared = share_pool(layout, blocks=cells // model.steps.block_cells, sessions=sessions)
    return shared.pool_bytes(model.dtype.itemsize)


def device_bytes() -> int:
    """Memory of the default device; of the machine, where that is the device."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
