"""Which question is asked, and how people would type it.

Comes in: a source and its history. Goes out: a `Question` of a family that the history allows.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence

from jaxstate.training.data.phrases import say
from jaxstate.training.data.questions.directions import bullish, direction
from jaxstate.training.data.questions.extremes import (
    extreme_of_all,
    extreme_of_last,
    when_extreme,
)
from jaxstate.training.data.questions.keys import changed, updated
from jaxstate.training.data.questions.limits import happened, how_many, threshold
from jaxstate.training.data.questions.unknown import unknown
from jaxstate.training.data.questions.values import last_value, previous_value, value_at_time
from jaxstate.training.data.questions.view import View, announce
from jaxstate.training.data.questions.which import compare, which
from jaxstate.training.data.records import Question
from jaxstate.training.data.sources import Source

_Family = Callable[[View], Question | None]


# Weight, and whether a question may begin with whom it is about.
_FAMILIES: Sequence[tuple[_Family, float, bool]] = (
    (last_value, 1.8, True),
    (value_at_time, 4.5, True),
    (previous_value, 1.8, True),
    (extreme_of_last, 4, True),
    (extreme_of_all, 3, True),
    (when_extreme, 2.5, True),
    (direction, 4, True),
    (bullish, 7, True),
    (threshold, 2.5, True),
    (how_many, 1.2, False),
    (which, 3, False),
    (compare, 12, False),
    (happened, 1, False),
    (changed, 3, False),
    (updated, 6, False),
    (unknown, 2.2, False),
)
_WEIGHTS = [weight for _, weight, _ in _FAMILIES]
_ANNOUNCED = 0.12
_CONTEXTS = (
    "[In|From|Going by|According to|Based on|Looking at|Judging by|Given|Using|Out of] [this|the] "
    "[feed|stream|data|record|history|input|list|transcript|series|material|information]",
    "[In|From|Going by|According to|Based on|Judging by|Given] [what|everything that|all that] "
    "[you have read|came in|we have|you know|was said|has been received|you have seen]",
    "[From|In] the [lines|entries|messages|updates|rows] [above|so far|that you have|received so "
    "far|here]",
)
_BEFORE = (
    "Please: ",
    "Please, ",
    "[Quick|Short|One|Another|Next|Simple] question: ",
    "[Hey|Hi|Hello|OK|Okay|So|Now|Well|And|Also|Then|Right], ",
    "[Question|Query|Q|Task|Request|User]: ",
    "[Help me|Tell me this|One more thing|Let me ask|I wonder|I was asked|My boss asks]: ",
)
_AFTER = (
    " Answer briefly.",
    " Be brief.",
    " [Just|Only] the [answer|value|result|fact].",
    " Short answer[.|, please.|]",
    " [Thanks|Thank you|Please|Cheers][.|!]",
    " [Give|Answer with|Reply with|Say|Return] [only|just|nothing but] the [answer|value|result].",
    " [No|Without] [explanation|other words|comment].",
    " [One|A single] [word or number|value] [only|is enough|will do].",
    " If [you do not know|it is not there|nothing says so], say unknown.",
)


def ask(rng: random.Random, source: Source, *, alone: bool) -> Question:
    """A question about what a source has said, which must be something.

    Args:
        rng: chooses it.
        source: whose history it is about.
        alone: whether nobody else speaks in the stream, so that names may be left out.
    """
    while True:
        ((make, _, announces),) = rng.choices(_FAMILIES, _WEIGHTS)
        view = View(
            source=source,
            rng=rng,
            alone=alone,
            subject=_subject(rng, source),
            announced=announces and source.named and rng.random() < _ANNOUNCED,
        )
        question = make(view)
        if question is None:
            continue
        if view.announced:
            text = announce(view, question, view.subject)
            question = dataclasses.replace(question, text=text)
        if _fits(question):
            return _dressed(rng, question, source.entities)


def _subject(rng: random.Random, source: Source) -> str:
    """An entity that has spoken; those that spoke lately are likelier."""
    if rng.random() < 0.5:
        return rng.choice(source.history.records[-40:]).entity
    return rng.choice(list(source.history.of))


def _fits(question: Question) -> bool:
    return len(question.text) < 240 and len(question.answer) < 60


def _dressed(rng: random.Random, question: Question, entities: list[str]) -> Question:
    """As people type: in context, polite, in small letters, with a request for a short answer."""
    text, draw = question.text, rng.random()
    named = text.startswith(tuple(entities))  # a name stays as it is written
    if not named:
        text = (text[0].lower() if draw < 0.06 else text[0].upper()) + text[1:]
    small = text if named else text[0].lower() + text[1:]
    if draw < 0.06:
        pass
    elif draw < 0.16:
        text = say(rng, rng.choice(_CONTEXTS), {}) + rng.choice((", ", ", ", ": ")) + small
    elif draw < 0.22 and text.endswith("?"):
        context = say(rng, rng.choice(_CONTEXTS), {})
        text = text[:-1] + " " + context[0].lower() + context[1:] + "?"
    elif draw < 0.27:
        text = say(rng, rng.choice(_BEFORE), {}) + rng.choice((text, small))
    elif draw < 0.33:
        text += say(rng, rng.choice(_AFTER), {})
    elif draw < 0.36:
        text = text.rstrip("?.")
    elif draw < 0.40:
        text = _mistyped(rng, text, question)
    return dataclasses.replace(question, text=text)


def _mistyped(rng: random.Random, text: str, question: Question) -> str:
    """With a slip in one word, where no name or value can be taken for another by it."""
    if question.family in ("updated key", "what changed", "which one", "did it happen", "unknown"):
        return text
    words = [found for found in re.finditer(r"(?<![\w-])[a-z]{5,}(?![\w-])", text)]
    if not words:
        return text
    chosen = rng.choice(words)
    at = chosen.start() + rng.randrange(1, len(chosen.group()) - 2)
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    dropped = text[:at] + text[at + 1 :]
    doubled = text[:at] + text[at] + text[at:]
    return rng.choice((swapped, dropped, doubled))
