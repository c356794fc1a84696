"""Random lives of a whole engine on the tiny model: what must hold, after every step.

What is checked, and how, stands in `jaxstate.testing.simulation`. More seeds than here:
`python scripts/simulate.py --seeds 0:5000`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from jaxstate.config import StepConfig
from jaxstate.engine.executor import Pending, RowTokens, Tokens
from jaxstate.engine.runs import Asked
from jaxstate.engine.values import Answer
from jaxstate.model.bundle import Model
from jaxstate.testing import Simulation, WatchedExecutor, simulate, tiny_config, tiny_model
from jaxstate.testing.simulation import SESSION_CELLS

SEEDS = 160
# One window smaller than a block, one larger than the largest chunk.
NARROW = StepConfig(
    block_cells=8,
    extend_tokens=(5,),
    question_tokens=(8, 24),
    tail_cells=(32,),
    question_rows=(1, 3),
    step_tokens=24,
    choice_tokens=(4,),
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
    wanted = {"push", "ask", "flash", "unflash", "warm", "cancel", "open", "close", "fork"}
    assert wanted <= set(operations), operations
    assert {"QueueFull", "CapacityExceeded", "BudgetExceeded"} <= set(operations), operations
    assert sources["computed"] > 10 * SEEDS // 2
    assert sources["flash"] > SEEDS // 4
    assert sources["ready"] > SEEDS // 4


def test_other_shapes_and_few_tail_blocks() -> None:
    """Tail blocks run out, chunks are shorter than entries, blocks larger than windows."""
    config = tiny_config()
    simulate(tiny_model(config, steps=NARROW, seed=3), range(1000, 1000 + SEEDS // 4))


def test_a_seed_replays_the_same_life() -> None:
    first, second = (Simulation(model(), 5).run() for _ in range(2))
    assert first == second


class _WritesAnothersCells(WatchedExecutor):
    """Reads every second entry into the cells of some other session, too."""

    def start(self, session: int, seen_cells: int, rows: list[RowTokens]) -> Pending[object]:  # pyright: ignore
        others = [name for name in self.states() if name != session]
        if others and self._sessions[others[0]].cells < SESSION_CELLS:
            WatchedExecutor.__mro__[1].extend(self, others[0], np.array([1], np.int32))  # pyright: ignore
        return super().start(session, seen_cells, rows)


class _LosesAToken(WatchedExecutor):
    """Forgets the last token of long chunks, and writes another."""

    def extend(self, session: int, tokens: Tokens) -> Pending[None]:
        return super().extend(session, np.append(tokens[:-1], np.int32(7)))


@pytest.mark.parametrize("broken", [_WritesAnothersCells, _LosesAToken])
def test_a_broken_engine_is_found_and_the_seed_is_named(
    broken: Callable[..., WatchedExecutor],
) -> None:
    with pytest.raises(AssertionError, match="seed"):
        simulate(model(), range(40), executor=broken(model(), session_cells=SESSION_CELLS))


def test_what_replays_a_failure_is_said() -> None:
    broken = _LosesAToken(model(), session_cells=SESSION_CELLS)
    with pytest.raises(AssertionError) as caught:
        simulate(model(), range(40), executor=broken)
    assert "alone it does not fail" in str(caught.value)  # the model's own device is sound
    assert "operations=40).run()" in str(caught.value)


def test_a_stale_ready_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxstate.engine.flash import Warm, WarmBook

    def forgetful(self: WarmBook, asked: Asked) -> Warm | None:
        one = self._by_text.get(asked.question)
        single = bool(asked.choice_tokens) and all(len(ids) == 1 for ids in asked.choice_tokens)
        return one if one is not None and one.version >= 0 and single else None

    monkeypatch.setattr(WarmBook, "fresh", forgetful)
    with pytest.raises(AssertionError, match="it fails alone, too"):
        simulate(model(), range(60))


def test_a_stale_answer_given_as_fresh_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxstate.engine.flash import FlashBook, Registered

    def forgetful(self: FlashBook, one: Registered) -> bool:
        answer: Answer | None = one.answer
        return answer is not None

    monkeypatch.setattr(FlashBook, "is_fresh", forgetful)
    with pytest.raises(AssertionError, match="seed"):
        simulate(model(), range(40))
