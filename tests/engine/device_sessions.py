"""Sessions on a real device, without an engine: tables by hand, and what the core says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

import jaxstate
from jaxstate.cells.tables import CellTable, Seen, TableBook
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.steps.packing import Row


class DeviceSessions:
    """What a state does: tables, tokens read; one executor."""

    def __init__(self, executor: DeviceExecutor) -> None:
        self.executor = executor
        self.tables = TableBook(executor.limits.layout)
        self.of: dict[int, CellTable] = {}
        self.read: dict[int, list[int]] = {}

    def open(self, name: int) -> None:
        self.of[name], self.read[name] = self.tables.new(), []

    def fork(self, name: int, into: int) -> None:
        self.of[into] = self.tables.fork(self.of[name])
        self.read[into] = list(self.read[name])

    def close(self, name: int) -> None:
        self.tables.drop(self.of.pop(name))
        del self.read[name]
        self.poison()

    def poison(self) -> None:
        freed = {one for one in self.tables.take_freed() if self.tables.is_free(one)}
        self.executor.freed(sorted(freed, key=lambda one: (one.group, one.block)))

    def seen(self, name: int, cells: int | None = None) -> Seen:
        table = self.of[name]
        return Seen(
            session=name, tables=table.blocks, cells=table.cells if cells is None else cells
        )

    def chunk(self, name: int, tokens: Sequence[int]) -> Row:
        """Grows the table; the chunk must be launched next."""
        start = self.of[name].cells
        copies = self.tables.grow(self.of[name], start + len(tokens))
        if copies:
            self.executor.copy(copies)
        self.read[name] += tokens
        ids = np.array(tokens, np.int32)
        return Row(seen=self.seen(name, start), tokens=ids, commits=True)

    def extend(self, tokens: dict[int, Sequence[int]]) -> None:
        """One step for all of them."""
        self.executor.run("extend", [self.chunk(*one) for one in tokens.items()]).get()

    def row(self, name: int, block: int, question: Sequence[int], seen: int | None = None) -> Row:
        """A question in a tail block, or two, of its own."""
        size = self.executor.limits.tail_block_cells
        count = -(-(len(question) + 8) // size)
        return Row(
            seen=self.seen(name, seen),
            blocks=tuple(range(block, block + count)),
            tokens=np.array(question, np.int32),
        )

    def check_cells(self, model: jaxstate.Model, name: int) -> None:
        """The cells are those that the functional core computes."""
        state = jaxstate.init_state(model, self.executor.limits.session_cells)
        state = jaxstate.extend(model, state, self.read[name])
        question = [5, 6, 7]
        expected = jaxstate.query(model, state, question, 1)
        view = self.executor.view(self.seen(name))
        np.testing.assert_allclose(view.ready, state.ready, atol=1e-4)
        row = dataclasses.replace(self.row(name, 0, question), blocks=())
        chosen = self.executor.run("start", [row]).get()
        logprobs = expected.logits - np.log(np.exp(expected.logits).sum())
        np.testing.assert_allclose(chosen.logprobs[0], logprobs[chosen.tokens[0]], atol=1e-4)


def next_step(row: Row, used: int) -> Row:
    """The token that it chose last, read back."""
    return dataclasses.replace(row, tokens=np.zeros(0, np.int32), used_cells=used)
