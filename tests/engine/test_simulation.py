"""Random lives of a whole engine on the tiny model: what must hold, after every step.

What is checked, and how, stands in `jaxstate.testing.simulation`. More seeds than here:
`python scripts/simulate.py --seeds 0:5000`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jaxstate.cells.tables import BlockCopy, Seen
from jaxstate.config import StepConfig
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.protocol import HostCells, Pending, StepKind, StepOutput
from jaxstate.model.bundle import Model
from jaxstate.steps.packing import Row
from jaxstate.testing import Simulation, WatchedExecutor, simulate, tiny_config, tiny_model
from jaxstate.testing.simulation import POOL_SESSIONS, SESSION_CELLS

SEEDS = 24
# One window smaller than a block, one larger than the largest chunk.
NARROW = StepConfig(
    block_cells=8,
    extend_tokens=(5,),
    question_tokens=(8, 24),
    tail_cells=(32,),
    question_rows=(1, 3),
    step_tokens=24,
    choice_tokens=(6,),
    tail_block_cells=4,
    tail_blocks=16,
)


@functools.cache
def model() -> Model:
    return tiny_model()


def test_random_lives_keep_every_promise() -> None:
    tallies = simulate(model(), range(SEEDS))
    operations, sources = Counter[str](), Counter[str]()
    for tally in tallies:
        operations.update(tally.operations)
        sources.update(tally.sources)
    # The lives were full ones: every kind of thing happened, and every way of answering.
    wanted = {"push", "ask", "flash", "unflash", "cancel", "open", "close", "fork"}
    wanted |= {"suspend", "resume", "ask_many", "ask_past", "fork_past", "VersionUnavailable"}
    assert wanted <= set(operations), operations
    assert {"QueueFull", "CapacityExceeded", "BudgetExceeded"} <= set(operations), operations
    assert sources["computed"] > 10 * SEEDS // 2
    assert sources["flash"] > SEEDS // 4
    # Only where the scores of all choices are there at that version.
    assert sources["ready"] > 0


def test_other_shapes_and_few_tail_blocks() -> None:
    """Tail blocks run out, chunks are shorter than entries, blocks larger than windows."""
    config = tiny_config()
    simulate(tiny_model(config, steps=NARROW, seed=3), range(1000, 1000 + SEEDS // 8))


def test_a_seed_replays_the_same_life() -> None:
    first, second = (Simulation(model(), 5).run() for _ in range(2))
    assert first == second


class _WritesAnothersCells(WatchedExecutor):
    """Writes the last cell of some other session again, whenever questions begin."""

    @functools.cached_property
    def _known(self) -> dict[int, Seen]:
        """What each session has."""
        return {}

    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        if kind == "extend":
            for chunk in rows:
                cells = chunk.seen.cells + len(chunk.tokens)
                self._known[chunk.seen.session] = dataclasses.replace(chunk.seen, cells=cells)
        if kind == "start":
            self._write({row.seen.session for row in rows if not row.commits})
        return super().run(kind, rows)

    def _write(self, asked: set[int]) -> None:
        for other, seen in self._known.items():
            if other not in asked and seen.tables[0][0] >= 0:  # it is still there
                last = dataclasses.replace(seen, cells=seen.cells - 1)
                wrong = Row(seen=last, tokens=np.array([1], np.int32), commits=True)
                DeviceExecutor.run(self, "extend", [wrong])  # nobody notes it
                break


class _LosesAToken(WatchedExecutor):
    """Forgets the last token of chunks, and writes another."""

    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        return super().run(kind, list(map(self._without_last, rows)))

    def _without_last(self, row: Row) -> Row:
        if not row.commits:
            return row
        return dataclasses.replace(row, tokens=np.append(row.tokens[:-1], np.int32(7)))


class _ForgetsToCopy(WatchedExecutor):
    """Whoever grows into a block that it shares finds nothing in its own."""

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Nothing."""


class _BringsNothingBack(WatchedExecutor):
    """Sessions that were away find nothing, or what others left."""

    def place(self, seen: Seen, cells: HostCells) -> None:
        """Nothing."""


class _BringsTheWrongCellsBack(WatchedExecutor):
    """Sessions that were away find their cells one place further."""

    def place(self, seen: Seen, cells: HostCells) -> None:
        moved = {
            name: np.roll(array, 1, axis=0) if array.ndim > 2 else array
            for name, array in cells.arrays.items()
        }
        super().place(seen, dataclasses.replace(cells, arrays=moved))


class _MixesSessionsUp(WatchedExecutor):
    """In a step of several sessions, the first row looks at the cells of the last."""

    def run(self, kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        if kind != "decode":
            return super().run(kind, rows)
        first = dataclasses.replace(rows[0], seen=rows[-1].seen)
        return super().run(kind, [first, *rows[1:]])


def broken_device(kind: Callable[..., WatchedExecutor]) -> WatchedExecutor:
    """One that is like that of a simulation otherwise."""
    return kind(
        model(), session_cells=SESSION_CELLS, cells=POOL_SESSIONS * SESSION_CELLS, sessions=3
    )


@pytest.mark.parametrize(
    "broken",
    [
        _WritesAnothersCells,
        _LosesAToken,
        _ForgetsToCopy,
        _BringsNothingBack,
        _BringsTheWrongCellsBack,
        _MixesSessionsUp,
    ],
)
def test_a_broken_engine_is_found_and_the_seed_is_named(
    broken: Callable[..., WatchedExecutor],
) -> None:
    with pytest.raises(AssertionError, match="seed"):
        simulate(model(), range(40), executor=broken_device(broken))


def test_what_replays_a_failure_is_said() -> None:
    with pytest.raises(AssertionError) as caught:
        simulate(model(), range(40), executor=broken_device(_LosesAToken))
    assert "alone it does not fail" in str(caught.value)  # the model's own device is sound
    assert "operations=40).run()" in str(caught.value)


def test_a_stale_answer_given_as_fresh_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxstate.engine.flash.registry import FlashRegistry

    monkeypatch.setattr(FlashRegistry, "is_current", lambda *_: True)
    with pytest.raises(AssertionError, match="seed"):
        simulate(model(), range(40))
