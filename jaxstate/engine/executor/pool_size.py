"""How large an engine's pool is: in cells, or as a share of the device's memory.

Comes in: what the caller of `Engine` said. Goes out: a `PoolSize`. Does not know: sessions, steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jaxstate.cells.layout import plan_layout, share_pool
from jaxstate.config import ModelConfig, StepConfig
from jaxstate.errors import DeviceError, InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.model.devices import Device
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
        DeviceError: the device has no memory for it.
    """
    if cells is not None and memory is not None:
        raise InvalidInput(f"cells={cells} and memory={memory}: say one of the two")
    count = checked_int("sessions", sessions)
    if count < 1:
        raise InvalidInput(f"sessions={sessions}: an engine is for one session or more")
    block = model.steps.block_cells
    wanted = None if session_cells is None else checked_int("session_cells", session_cells)
    if memory is not None:
        limit_bytes = int(_checked_share(memory) * device_bytes(model.device))
        total = cells_within(
            model.config, model.dtype.itemsize, model.steps, limit_bytes, wanted, count
        )
        if total == 0:
            raise InvalidInput(
                f"memory={memory}: {limit_bytes / 1e9:.2f} GB do not hold one block of {block} "
                "cells"
            )
    else:
        total = DEFAULT_CELLS if cells is None else checked_int("cells", cells)
    if total < 1:
        raise InvalidInput(f"cells={cells}: a pool has one cell or more")
    # Whole blocks, so that what was asked for is there.
    total = -(-total // block) * block
    each = min(total, model.config.max_context) if wanted is None else wanted
    size = PoolSize(cells=total, session_cells=each, sessions=count)
    if memory is None:
        free_bytes = device_bytes(model.device) - model.num_params * model.dtype.itemsize
        check_fits(model.config, model.dtype.itemsize, model.steps, size, free_bytes)
    return size


def check_fits(
    config: ModelConfig, itemsize: int, steps: StepConfig, size: PoolSize, free_bytes: int
) -> None:
    """Refuses a pool that is larger than all of the memory beside the parameters: where memory is
    only promised, as on a CPU, taking it would end the process instead.

    Args:
        config, itemsize, steps: of the model; bytes of a number.
        size: of the pool.
        free_bytes: of the device, beside the parameters.

    Raises:
        DeviceError: with what would fit.
    """
    each, count = size.session_cells, size.sessions
    wanted_bytes = _pool_bytes(config, itemsize, steps, size.cells, each, count)
    if wanted_bytes <= free_bytes:
        return
    most = cells_within(config, itemsize, steps, max(0, free_bytes), each, count)
    raise DeviceError(
        f"cells={size.cells:,}: the pool would take {wanted_bytes / 1e9:,.4g} GB, and the device "
        f"has {max(0, free_bytes) / 1e9:,.4g} GB beside the parameters; at most {most:,} cells fit"
    )


def _checked_share(memory: object) -> float:
    if isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 < memory <= 1:
        raise InvalidInput(f"memory={memory!r} must be a share of the device's memory, 0 to 1")
    return float(memory)


def cells_within(
    config: ModelConfig,
    itemsize: int,
    steps: StepConfig,
    limit_bytes: int,
    session_cells: int | None,
    sessions: int,
) -> int:
    """The most cells whose pool takes no more than that memory, in whole blocks; 0 if none do.

    Args:
        config, itemsize, steps: of the model; bytes of a number.
        limit_bytes: of the pool.
        session_cells: what each session may hold at most; None for all of it.
        sessions: how many may be on the device at once.
    """
    block = steps.block_cells

    def pool_bytes(cells: int) -> int:
        return _pool_bytes(config, itemsize, steps, cells, session_cells, sessions)

    low, high = 0, limit_bytes
    while low < high:
        middle = (low + high + 1) // 2
        within = pool_bytes(middle * block) <= limit_bytes
        low, high = (middle, high) if within else (low, middle - 1)
    return low * block


def _pool_bytes(
    config: ModelConfig,
    itemsize: int,
    steps: StepConfig,
    cells: int,
    session_cells: int | None,
    sessions: int,
) -> int:
    """Bytes of a pool of so many cells, which are whole blocks."""
    layout = plan_layout(
        config,
        cells=min(cells, config.max_context, session_cells or cells),
        block_cells=steps.block_cells,
        slack_cells=steps.extend_tokens[-1],
    )
    shared = share_pool(layout, blocks=cells // steps.block_cells, sessions=sessions)
    return shared.pool_bytes(itemsize)


def device_bytes(device: Device) -> int:
    """Memory of a device; of the machine, as far as this process may use it, for a CPU."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *container_bytes()])


def container_bytes(root: Path = Path("/")) -> Iterator[int]:
    """What the control groups of this process leave it: its own limits, and those around it.

    Args:
        root: where `proc` and `sys` are (for tests).
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in groups if line.count(":") > 1):
        if number == "0":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        # Within a container the path may be that of the outside: then the root is the container's.
        for group in (inner, *inner.parents):
            limit = _limit_in(base / group / name)
            if limit is not None:
                yield limit


def _limit_in(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) > 0 else None
