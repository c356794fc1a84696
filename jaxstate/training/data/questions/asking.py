"""Which question is asked, and how people would type it.

Comes in: a source and its history. Goes out: a `Question` of a family that the history allows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from jaxstate.training.data.questions.directions import bullish, direction
from jaxstate.training.data.questions.extremes import extreme_of_all, extreme_of_last
from jaxstate.training.data.questions.keys import changed, updated
from jaxstate.training.data.questions.limits import happened, how_many, threshold
from jaxstate.training.data.questions.unknown import unknown
from jaxstate.training.data.questions.values import last_value, previous_value, value_at_time
from jaxstate.training.data.questions.view import View
from jaxstate.training.data.questions.which import which
from jaxstate.training.data.records import Question
from jaxstate.training.data.sources import Source

_Family = Callable[[View], Question | None]


_FAMILIES: Sequence[tuple[_Family, float]] = (
    (last_value, 2.5),
    (value_at_time, 4),
    (previous_value, 2),
    (extreme_of_last, 3),
    (extreme_of_all, 1.8),
    (direction, 3.5),
    (bullish, 5),
    (threshold, 3),
    (how_many, 0.8),
    (which, 2.5),
    (happened, 1),
    (changed, 2),
    (updated, 6),
    (unknown, 1.3),
)
_MAKERS, _WEIGHTS = zip(*_FAMILIES, strict=True)


def ask(rng: random.Random, source: Source, *, alone: bool) -> Question:
    """A question about what a source has said, which must be something.

    Args:
        rng: chooses it.
        source: whose history it is about.
        alone: whether nobody else speaks in the stream, so that names may be left out.
    """
    view = View(source=source, rng=rng, alone=alone)
    while True:
        question = rng.choices(_MAKERS, _WEIGHTS)[0](view)
        if question is not None and _fits(question):
            return _dressed(rng, question, source.entities)


def _fits(question: Question) -> bool:
    return len(question.text) < 240 and len(question.answer) < 60


def _dressed(rng: random.Random, question: Question, entities: list[str]) -> Question:
    """As people type: polite, in small letters, with a request for a short answer."""
    text, draw = question.text, rng.random()
    if not text.startswith(tuple(entities)):  # a name stays as it is written
        text = (text[0].lower() if draw < 0.06 else text[0].upper()) + text[1:]
    if draw < 0.04:
        pass
    elif draw < 0.08:
        text = "Please: " + text
    elif draw < 0.11:
        text += rng.choice(
            (" Answer briefly.", " Be brief.", " Just the answer.", " Short answer.")
        )
    elif draw < 0.13:
        text = text.rstrip("?.")
    return Question(question.family, text, question.answer, question.choices)
