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
# What streams of numbers and facts do not say.
_OFF_TOPIC = (
    "[What|How] is the weather[ today| in {p}| now|]?",
    "[Who|Which team] [won|lost|plays] [the match|today|last night|in {p}]?",
    "[What is|Tell me|Name] the capital of {p}.",
    "[Who|What] [are|is] [you|your maker|the president of {p}|the boss|{p}]?",
    "[What time|What day|What year] is it[ in {p}|]?",
    "[How are you|How do you do|What do you think|Can you sing]?",
    "[Why|How come] [is|was|did] [it so|that|this happen|{w} there]?",
    "[Where|How] [can I buy|do I find|do I make|is] [a|the best|some] {w}?",
    "[What does|What is meant by|Explain|Define] {w}[?|.]",
    "[How old|How tall|How far away|How heavy] is {p}?",
    "[Tell|Write|Read] me a [story|joke|poem] [about {w}|]?",
    "[Translate|Spell|Pronounce] {w}.",
    "[Should|May|Can] I [buy|sell|eat|open|trust] [it|{w}|this {w}]?",
    "[What|Who] comes [after|with|from] {p}?",
    "[Do|Does] [they|he|she|{p}] [like|want|need|own] {w}?",
    "[When|Where] [was|is] {p} [born|going|built|open]?",
    "[What|Which] {w} [is best|should I take|do you like|has {p}]?",
    "[Who wrote|Who invented|Who painted|Who found] [the |]{w}?",
)
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
    """Who never spoke, a time that never came, a field that nothing has, another subject."""
    source, rng = view.source, view.rng
    kind = rng.random()
    if kind < 0.45 and source.named:
        text = _of_a_stranger(view)
    elif kind < 0.7 and source.timed:
        text = _at_no_time(view)
    elif kind < 0.85:
        text = _absent_field(view)
    else:
        text = _off_topic(view)
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


def _off_topic(view: View) -> str | None:
    words = {"p": names.place(view.rng), "w": names.noun(view.rng)}
    if set(words.values()) & {*view.source.entities, *view.source.fields}:
        return None
    return view.say(_OFF_TOPIC, **words)


def _absent_field(view: View) -> str | None:
    if not view.alone:
        return None
    absent = [*_ABSENT[view.source.kind], names.noun(view.rng), names.made_up(view.rng)]
    field = view.rng.choice(absent)
    if field in (*view.source.fields, *view.source.words.entity, *view.source.entities):
        return None
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
