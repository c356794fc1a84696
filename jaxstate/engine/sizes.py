"""How many rows a step should take: compiled steps come in few sizes, and padding costs time.

Comes in: how many rows wait, and how long they are. Goes out: how many to take now. Does not know:
what the rows are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSizes:
    """The sizes in which steps over rows come, and what a step costs.

    Attributes:
        sizes: numbers of rows, ascending from 1; fewer are padded to the next.
        overhead_tokens: a step takes as long as reading so many tokens, beside the tokens of its
            padded rows (reading the weights, above all).
    """

    sizes: tuple[int, ...]
    overhead_tokens: int

    def take(self, waiting: int, tokens: int, most: int) -> int:
        """How many rows of so many tokens to take: as many as make a row cheapest.

        Nine rows in a step for 64 pay for 55 that are padding: eight first, then one, cost less.
        But rows never go one by one where several can go together and read their session once.

        Args:
            waiting: rows that there are, >= 1.
            tokens: of the longest, padded, >= 1.
            most: rows that the step may have, >= 1.
        """
        fitting = [size for size in self.sizes if size <= most]
        several = [size for size in fitting if size > 1] if waiting > 1 else []
        cheapest = min(
            several or fitting, key=lambda size: (self._cost_per_row(size, waiting, tokens), -size)
        )
        return min(waiting, cheapest)

    def _cost_per_row(self, size: int, waiting: int, tokens: int) -> float:
        return (self.overhead_tokens + size * tokens) / min(waiting, size)
