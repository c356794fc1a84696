"""Streams as people push them: one or several sources, and small talk between.

Comes in: a random number generator. Goes out: entries, and questions about those so far. Does not
know: tokens.
"""

from __future__ import annotations

import random

from jaxstate.training.data.chatter import chatter, instruction
from jaxstate.training.data.facts import Facts
from jaxstate.training.data.logs import Logs
from jaxstate.training.data.markets import Bars, Ticks
from jaxstate.training.data.questions import ask
from jaxstate.training.data.records import Question
from jaxstate.training.data.sensors import Sensors
from jaxstate.training.data.sources import Source

_KINDS = (Bars, Bars, Bars, Ticks, Ticks, Sensors, Sensors, Logs, Facts, Facts, Facts)


class Stream:
    """One stream; the same seed makes the same one.

    Args:
        rng: decides about everything in it.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        kinds = list(dict.fromkeys(rng.choices(_KINDS, k=rng.choice((1, 1, 1, 1, 2, 3)))))
        self._sources: list[Source] = [kind(rng) for kind in kinds]
        self._weights = [rng.uniform(0.2, 1) for _ in kinds]
        self._chatter = rng.choice((0.0, 0.0, 0.0, 0.02, 0.1))
        self._opening = [instruction(rng)] if rng.random() < 0.15 else []

    def entry(self) -> str:
        """The next entry, without a line break."""
        if self._opening:
            return self._opening.pop()
        if self._rng.random() < self._chatter:
            return chatter(self._rng)
        return self._rng.choices(self._sources, self._weights)[0].emit()

    def question(self) -> Question | None:
        """About the entries so far; None where they say nothing yet."""
        spoke = [source for source in self._sources if source.history.records]
        if not spoke:
            return None
        source = self._rng.choice(spoke)
        return ask(self._rng, source, alone=len(self._sources) == 1)
