"""Questions that nothing in the stream answers: their answer is "unknown"."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from jaxstate.training.data import names
from jaxstate.training.data.facts import Facts
from jaxstate.training.data.questions.extremes import extreme_of_all, extreme_of_last
from jaxstate.training.data.questions.keys import updated
from jaxstate.training.data.questions.values import asked_at_time, last_value, previous_value
from jaxstate.training.data.questions.view import LAST, MARK, WHAT, View, announce
from jaxstate.training.data.records import UNKNOWN, Question

_ANNOUNCED = 0.15


def some_stranger(view: View) -> str:
    """An entity that has not spoken, of a kind that could have."""
    source = view.source
    for _ in range(20):
        if isinstance(source, Facts):
            name = source.fact.key(view.rng)
        elif source.kind in ("bars", "ticks"):
            name = names.symbol(view.rng)
        else:
            name = view.rng.choice(list(source.history.of))
            name = name[:-1] + view.rng.choice("0123456789xyz")
        if name not in source.history.of:
            return name
    return "nobody"


_ABSENT: Mapping[str, tuple[str, ...]] = {
    "bars": ("volume", "dividend", "market cap", "spread", "bid", "ask", "open interest", "yield"),
    "ticks": ("size", "volume", "bid", "ask", "spread", "opening price", "dividend", "exchange"),
    "sensors": ("temperature", "pressure", "humidity", "voltage", "speed", "battery", "color"),
    "logs": ("code", "user id", "thread", "latency", "host", "region", "trace id"),
    "facts": ("price", "weight", "color", "phone number", "birthday", "size"),
}
_OF_SOMEBODY: Sequence[Callable[[View], Question | None]] = (
    last_value,
    last_value,
    previous_value,
    extreme_of_last,
    extreme_of_all,
    updated,
    updated,
    updated,
)


def unknown(view: View) -> Question | None:
    """Who never spoke, a time that never came, a field that nothing has."""
    source, rng = view.source, view.rng
    kind = rng.random()
    if kind < 0.55 and source.named:
        text = _of_a_stranger(view)
    elif kind < 0.85 and source.timed:
        text = _at_no_time(view)
    else:
        text = _absent_field(view)
    return None if text is None else Question("unknown", text, UNKNOWN)


def _of_a_stranger(view: View) -> str | None:
    """What is asked of those who have spoken, with another name."""
    view = dataclasses.replace(view, announced=view.rng.random() < _ANNOUNCED)
    question = view.rng.choice(_OF_SOMEBODY)(view)
    if question is None:
        return None
    stranger = some_stranger(view)
    if view.announced and question.family != "updated key":
        return announce(view, question, stranger)
    text, found = re.subn(
        rf"(?<!\w){re.escape(view.subject)}(?!\w)", lambda _: stranger, question.text
    )
    return text if found == 1 and len(view.subject) > 1 else None


def _at_no_time(view: View) -> str | None:
    time = view.source.clock.absent()
    if any(one.time == time for one in view.source.history.records):
        return None
    return asked_at_time(view, time)[1]


def _absent_field(view: View) -> str | None:
    absent = [one for one in _ABSENT[view.source.kind] if one not in view.source.fields]
    if not absent or not view.alone:
        return None
    field = view.rng.choice(absent)
    return view.say(
        (
            WHAT + " the " + LAST + " {f}{of}" + MARK,
            WHAT + " {nf}" + MARK,
            "[How high|How much] is {nf}?",
            "{nf}[ now|]?",
        ),
        f=field,
        of=view.of(),
        nf=view.named(field),
    )
