"""When a registered question's answer is news.

Comes in: a condition, then the answers in the order in which they were computed. Goes out: for each
answer, whether the condition fires. Does not know: sessions, versions, who listens.

A condition fires when something comes to be so, not for as long as it stays so: a stream of events
tells what happened, and a subscriber acts once.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from jaxstate.engine.types.values import Answer
from jaxstate.errors import InvalidInput

Direction = Literal["up", "down", "either"]


NUMBER = re.compile(
    r"""
    (?P<sign> (?<!\w) [-+\u2212] )?                 # not the dash of "BTC-100" or of "5-10"
    [$€£]?
    (?P<digits>
        (?: [0-9]{1,3} (?: ,[0-9]{3} )+ (?![0-9])   # 1,234,567
          | [0-9]+ )                                # 1234567
        (?: \.[0-9]+ )?
      | \.[0-9]+
    )
    (?P<exponent> [eE][-+]?[0-9]+ )?
    """,
    re.VERBOSE,
)


"""The first number of a text: "-$1,234.5" is -1234.5, "up 3%" is 3, "1e3 units" is 1000. The comma
groups thousands and nothing else: "1,5" is 1. Words for numbers, "nan" and "inf" are none."""


def checked_threshold(value: object) -> float:
    """A finite number.

    Raises:
        InvalidInput: it is something else.
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer beyond all floats
            number = float(value)
            if math.isfinite(number):
                return number
    raise InvalidInput(f"threshold={value!r} must be a finite number")


@dataclass(frozen=True, slots=True)
class Changed:
    """Fires when the text differs from the answer's before; the first answer does not fire."""


@dataclass(frozen=True, slots=True)
class Equals:
    """Fires when the answer becomes this text, the first answer included.

    Attributes:
        choice: the whole text, compared as it is.
    """

    choice: str

    def __post_init__(self) -> None:
        """Refuses what no answer can be."""
        if not isinstance(self.choice, str) or not self.choice.strip():
            raise InvalidInput(f"choice={self.choice!r} must be a text that is not blank")


@dataclass(frozen=True, slots=True)
class ConfidenceAbove:
    """Fires when the answer's confidence reaches a threshold, the first answer included.

    Attributes:
        threshold: in logits (`Answer.confidence`); a confidence equal to it counts as above.
    """

    threshold: float

    def __post_init__(self) -> None:
        """Refuses thresholds that are no finite numbers."""
        checked_threshold(self.threshold)


@dataclass(frozen=True, slots=True)
class Crosses:
    """Fires when the first number in the answer moves to the other side of a threshold.

    An answer without a number changes nothing; the first number only says on which side it is.

    Attributes:
        threshold: in the unit of the answers; a number equal to it counts as above.
        direction: which way fires.
    """

    threshold: float
    direction: Direction = "either"

    def __post_init__(self) -> None:
        """Refuses thresholds that are no finite numbers, and other directions."""
        checked_threshold(self.threshold)
        if self.direction not in get_args(Direction):
            allowed = ", ".join(repr(name) for name in get_args(Direction))
            raise InvalidInput(f"direction={self.direction!r} is none of {allowed}")


Condition: TypeAlias = Changed | Equals | ConfidenceAbove | Crosses


def checked_condition(value: object) -> Condition | None:
    """A condition, or None for the default: fires when the text differs, the first included.

    Raises:
        InvalidInput: it is something else.
    """
    if value is None or isinstance(value, Condition):
        return value
    allowed = "None, Changed(), Equals(choice), ConfidenceAbove(threshold), Crosses(threshold)"
    raise InvalidInput(f"when={value!r} must be one of {allowed}")


def first_number(text: str) -> float | None:
    """The first number in a text (see `NUMBER`), or None."""
    found = NUMBER.search(text)
    if found is None:
        return None
    sign = "" if found["sign"] in (None, "+") else "-"
    return float(sign + found["digits"].replace(",", "") + (found["exponent"] or ""))


class Watch:
    """What one registered question's condition remembers of the answers so far.

    Args:
        condition: what fires; None: each text that differs from the one before, also the first.

    Raises:
        InvalidInput: it is not a condition.
    """

    def __init__(self, condition: Condition | None) -> None:
        self.condition = checked_condition(condition)
        self._text: str | None = None
        self._held = False
        self._above: bool | None = None

    def observe(self, answer: Answer) -> bool:
        """Whether this answer is news; each answer is shown once, in order."""
        match self.condition:
            case None:
                return self._differs(answer.text, first_fires=True)
            case Changed():
                return self._differs(answer.text, first_fires=False)
            case Equals(choice=choice):
                return self._came_to_hold(answer.text == choice)
            case ConfidenceAbove(threshold=threshold):
                return self._came_to_hold(answer.confidence >= threshold)
            case Crosses() as crosses:
                return self._crossed(crosses, first_number(answer.text))

    def _differs(self, text: str, *, first_fires: bool) -> bool:
        before, self._text = self._text, text
        return first_fires if before is None else text != before

    def _came_to_hold(self, holds: bool) -> bool:
        before, self._held = self._held, holds
        return holds and not before

    def _crossed(self, crosses: Crosses, number: float | None) -> bool:
        if number is None:
            return False
        before, self._above = self._above, number >= crosses.threshold
        if before is None or before == self._above:
            return False
        return crosses.direction in ("either", "up" if self._above else "down")
