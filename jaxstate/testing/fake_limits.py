"""What the steps of the fake device can take: small numbers, so that tests reach every bound.

Comes in: sizes. Goes out: layouts and limits. Does not know: what the device does.
"""

from __future__ import annotations

import dataclasses

from jaxstate.cells.layout import GroupLayout, PoolLayout, share_pool
from jaxstate.engine.executor.protocol import Limits, RowSizes

BLOCK_CELLS = 8


def fake_layout(session_cells: int = 1024, cells: int = 65_536) -> PoolLayout:
    """Sessions of one layer that sees everything, in a pool of so many cells."""
    width = -(-session_cells // BLOCK_CELLS)
    alone = PoolLayout(
        cells=session_cells,
        block_cells=BLOCK_CELLS,
        groups=(GroupLayout(window=None, table_width=width),),
        layer_groups=(0,),
        num_kv_heads=1,
        head_dim=1,
    )
    return share_pool(alone, blocks=cells // BLOCK_CELLS, sessions=64)


# One session a step, so that what happens to one can be followed; see `SHARED_LIMITS`.
FAKE_LIMITS = Limits(
    layout=fake_layout(),
    sessions=64,
    itemsize=2,
    max_context=4096,
    extend_tokens=16,
    chunk_rows=((16, (1,)),),
    step_sessions=1,
    session_rows=8,
    question_tokens=32,
    choice_tokens=8,
    rows=8,
    row_sizes=RowSizes(sizes=tuple(range(1, 9)), overhead_tokens=1),  # nothing is ever padded
    start_rows=((16, 8), (32, 4)),
    tail_cells=64,
    tail_blocks=64,
    tail_block_cells=8,
    idle_tokens=128,
    steps_ahead=0,
)
# The same where up to 8 sessions share a step.
SHARED_LIMITS = dataclasses.replace(
    FAKE_LIMITS, chunk_rows=((4, tuple(range(1, 9))), (16, tuple(range(1, 5)))), step_sessions=8
)
