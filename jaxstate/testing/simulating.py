"""Many random lives, one after the other.

Comes in: seeds. Goes out: what the lives contained, or an error that says how to replay the first
that failed. Does not know: what a life is.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxstate.model.bundle import Model
from jaxstate.testing.lives import Tally
from jaxstate.testing.reference import Reference
from jaxstate.testing.simulation import SESSION_CELLS, Simulation, watched_executor
from jaxstate.testing.watched import WatchedExecutor


def simulate(
    model: Model,
    seeds: Iterable[int],
    *,
    operations: int = 40,
    executor: WatchedExecutor | None = None,
) -> list[Tally]:
    """Lives as many lives as there are seeds.

    Args:
        model: with a byte tokenizer and small steps.
        seeds: one for each life.
        operations: how many things clients do in each.
        executor: the device of all of them; None for one of the model's.

    Raises:
        AssertionError: with what replays it, and whether it does with a device of its own.
    """
    devices = [executor or watched_executor(model, parity, SESSION_CELLS) for parity in (0, 1)]
    reference = Reference(model, SESSION_CELLS)
    tallies: list[Tally] = []
    for seed in seeds:
        device = devices[seed % 2]
        life = Simulation(model, seed, operations=operations, executor=device, reference=reference)
        try:
            tallies.append(life.run())
        except Exception as error:
            alone = (
                "it fails alone, too"
                if _fails_alone(model, seed, operations)
                else ("alone it does not fail: it needs the lives before it")
            )
            raise AssertionError(
                f"seed {seed}: {error}\nreplay, with a model of {model.config.num_layers} layers "
                f"and {model.steps}: Simulation(model, {seed}, operations={operations}).run() "
                f"({alone})"
            ) from error
    return tallies


def _fails_alone(model: Model, seed: int, operations: int) -> bool:
    try:
        Simulation(model, seed, operations=operations).run()
    except Exception:
        return True
    return False
