"""Questions that nothing in the stream answers: their answer is "unknown"."""

from __future__ import annotations

from collections.abc import Mapping

from jaxstate.training.data import names
from jaxstate.training.data.facts import Facts
from jaxstate.training.data.questions.view import (
    LAST,
    LATELY,
    MARK,
    WHAT,
    View,
    asked_with_verb,
    words_of_time,
)
from jaxstate.training.data.records import UNKNOWN, Question


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


def unknown(view: View) -> Question | None:
    """Who never spoke, a time that never came, a field that nothing has."""
    source, rng = view.source, view.rng
    kind = rng.random()
    if kind < 0.5 and source.named:
        stranger = some_stranger(view)
        if isinstance(source, Facts):
            text = view.say(
                (*source.fact.ask, WHAT + " the {f} of {e}" + MARK),
                e=stranger,
                f=rng.choice(source.fact.words),
            )
            return Question("unknown", text, UNKNOWN)
        with_verb = asked_with_verb(view, stranger, view.say(LATELY, r=view.record_word()))
        if with_verb is not None:
            return Question("unknown", with_verb[1], UNKNOWN)
        _, called = view.any_field()
        k = str(rng.choice((3, 5, 10, 20)))
        text = view.say(
            (
                WHAT + " the " + LAST + " {f} of {e}" + MARK,
                WHAT + " {e}'s " + LAST + " {f}" + MARK,
                WHAT + " the [previous|highest|lowest] {f} [of|for] {e}" + MARK,
                WHAT + " the [highest|lowest] {f} [of|for] {e} over the last {k} {rs}" + MARK,
                "{e} {f}?",
            ),
            e=stranger,
            f=called,
            k=k,
            rs=view.records_word(),
        )
        return Question("unknown", text, UNKNOWN)
    if kind < 0.8 and source.timed:
        _, called = view.any_field()
        entity, time = view.entity(), source.clock.absent()
        if any(one.time == time for one in source.history.records):
            return None
        time_words = words_of_time(view, time)
        with_verb = asked_with_verb(view, entity, time_words["at"])
        if with_verb is not None:
            return Question("unknown", with_verb[1], UNKNOWN)
        text = view.say(
            (WHAT + " {nf} {at}" + MARK, "{At}, what was {nf}?"),
            **time_words,
            nf=view.named(entity, called),
        )
        return Question("unknown", text, UNKNOWN)
    absent = [one for one in _ABSENT[source.kind] if one not in source.fields]
    if not absent or not view.alone:
        return None
    entity = view.entity()
    field = rng.choice(absent)
    text = view.say(
        (WHAT + " the " + LAST + " {f}{of}" + MARK, WHAT + " {nf}" + MARK),
        f=field,
        of=view.of(entity),
        nf=view.named(entity, field),
    )
    return Question("unknown", text, UNKNOWN)
