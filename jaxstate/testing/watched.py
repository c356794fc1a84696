"""A device that is watched: which step wrote which cells.

Comes in: what `Executor` says. Goes out: the same as `DeviceExecutor` gives, and an error when a
step wrote cells that it was not told to write. Does not know: what it is used for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.tables import BlockCopy, GroupBlock, Seen
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.protocol import HostCells, Pending, StepKind, StepOutput
from jaxstate.model.bundle import Model
from jaxstate.steps.packing import Row


class WatchedExecutor(DeviceExecutor):
    """Knows which cells steps may write, and sees whether they wrote others.

    Freed blocks are filled with NaN.

    Args:
        model: whose steps.
        session_cells: capacity of every session.
        cells: of the pool.
        sessions: how many may lie in it at once.
        steps_ahead: steps launched before the last one's result is fetched, as on an accelerator;
            None for what is usual on this device.
    """

    def __init__(
        self,
        model: Model,
        *,
        session_cells: int,
        cells: int,
        sessions: int = 64,
        steps_ahead: int | None = None,
    ) -> None:
        super().__init__(
            model, session_cells=session_cells, cells=cells, sessions=sessions, poison=True
        )
        if steps_ahead is not None:
            self._limits = dataclasses.replace(self._limits, steps_ahead=steps_ahead)
        layout = self._limits.layout
        self._written = [
            np.zeros((count, layout.block_cells), bool) for count in layout.group_blocks
        ]
        self._before = self._bits()

    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        """Launches a step: the cells of its chunks may change."""
        self._note_chunks([row for row in rows if row.commits])
        return super().run(kind, rows)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copies blocks: the targets may change."""
        self._note_blocks([GroupBlock(one.group, one.target) for one in copies])
        super().copy(copies)

    def freed(self, blocks: Sequence[GroupBlock]) -> None:
        """Poisons blocks."""
        self._note_blocks(blocks)
        super().freed(blocks)

    def place(self, seen: Seen, cells: HostCells) -> None:
        """Brings cells back to where the table says."""
        for group, table in enumerate(seen.tables):
            self._note_blocks([GroupBlock(group, block) for block in table.tolist() if block >= 0])
        super().place(seen, cells)

    def check_cells(self) -> None:
        """Compares all cells' bits with those at the last call.

        Raises:
            AssertionError: a cell changed that no step was to write.
        """
        after = self._bits()
        for group, (old, new) in enumerate(zip(self._before, after, strict=True)):
            changed = (old != new).any(axis=(1, 2, 4, 5))
            wrong = np.argwhere(changed & ~self._written[group])
            assert len(wrong) == 0, f"a step changed cells (block, offset) {wrong[:4].tolist()}"
        self._before = after
        for written in self._written:
            written[:] = False

    def _note_chunks(self, chunks: Sequence[Row]) -> None:
        size = self._limits.layout.block_cells
        for chunk in chunks:
            positions = chunk.seen.cells + np.arange(len(chunk.tokens))
            for group, table in enumerate(chunk.seen.tables):
                blocks = table[positions // size % len(table)]
                self._written[group][blocks, positions % size] = True

    def _note_blocks(self, blocks: Sequence[GroupBlock]) -> None:
        for one in blocks:
            self._written[one.group][one.block] = True

    def _bits(self) -> list[NDArray[np.uint32]]:
        """The cells of every group, as bits: NaN equals NaN."""
        return [np.array(one).view(np.uint32) for one in self._pool.cells.groups]
