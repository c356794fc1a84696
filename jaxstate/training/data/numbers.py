"""Numbers that move: prices, readings, volumes.

Comes in: a random number generator. Goes out: integers in units of the last decimal, and how they
are shown. Does not know: what is measured.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from jaxstate.training.data.records import Value


@dataclass(frozen=True, slots=True)
class Shown:
    """How a number is written.

    Attributes:
        decimals: behind the point.
        strips: whether zeros at the end are left out ("183.2"; "183.0" for a whole number, as
            programs print floats).
        groups: whether thousands are separated by commas.
    """

    decimals: int
    strips: bool = False
    groups: bool = False

    def value(self, number: int) -> Value:
        """The number with its characters."""
        return Value(self.text(number), number)

    def text(self, number: int) -> str:
        """Its characters."""
        sign, size = "-" if number < 0 else "", abs(number)
        whole, part = divmod(size, 10**self.decimals)
        head = f"{whole:,}" if self.groups else str(whole)
        if not self.decimals:
            return sign + head
        tail = f"{part:0{self.decimals}d}"
        if self.strips:
            tail = tail.rstrip("0") or "0"
        return f"{sign}{head}.{tail}"


class Walk:
    """A random walk with a volatility of its own, in units of the last decimal.

    Args:
        rng: moves it.
        start: where it begins.
        step: the size of a typical move, at least 1.
        floor: it does not go below.
        relative: whether moves grow with the number, as those of prices do.
    """

    def __init__(
        self, rng: random.Random, start: int, step: float, floor: int | None, *, relative: bool
    ) -> None:
        self._rng, self.now, self._floor = rng, start, floor
        self._step, self._relative = step / max(1, abs(start)) if relative else step, relative
        self._drift = rng.gauss(0, 0.15)

    def move(self) -> int:
        """The next number."""
        size = self._step * abs(self.now) if self._relative else self._step
        self.now += round(self._rng.gauss(self._drift, 1) * max(size, 1))
        if self._floor is not None and self.now < self._floor:
            self.now = self._floor + self._rng.randint(0, max(1, round(size)))
        return self.now


def price_walk(rng: random.Random) -> tuple[Walk, Shown]:
    """A price between a few cents and some ten thousands, and how it is shown."""
    level = math.exp(rng.uniform(math.log(0.5), math.log(3000)))
    if rng.random() < 0.1:
        level = math.exp(rng.uniform(math.log(3000), math.log(90_000)))
    decimals = rng.choice((2, 2, 2, 2, 2, 1, 0, 3, 4)) if level > 5 else rng.choice((2, 3, 4, 4, 5))
    shown = Shown(decimals, strips=rng.random() < 0.35)
    start = max(20, round(level * 10**decimals))
    step = start * math.exp(rng.uniform(math.log(0.002), math.log(0.04)))
    return Walk(rng, start, max(3.0, step), 5, relative=True), shown
