"""Questions whether something rose or fell: over records, or within one."""

from __future__ import annotations

from collections.abc import Mapping

from jaxstate.training.data.questions.view import (
    COUNT_WORDS,
    LAST,
    View,
    count_word,
    number_of,
    yes_or_no,
)
from jaxstate.training.data.records import Question, Record


def direction(view: View) -> Question | None:
    """From the first to the last of the last k records; or, where the question says "ago" or
    "earlier" or compares with the previous one, from the record so many before the last."""
    found = view.number_field()
    entity = view.entity()
    records = view.source.history.of[entity]
    if found is None or len(records) < 2:
        return None
    field, called = found
    words = {
        "f": called,
        "nf": view.named(entity, called),
        "of": view.of(entity),
        "rs": view.records_word(),
        "r": view.record_word(),
        "who": entity if view.source.named else "it",
    }
    kind = view.rng.random()
    if kind < 0.3:
        first = records[-2]
        patterns = (
            "[Did|Has] {nf} [go up or down|rise or fall|increase or decrease] [in|with|at] the"
            " [last|latest] {r}[, up or down|]?",
            "[Is|Was] the [last|latest] {f}{of} [up or down|higher or lower] [from|than|compared to"
            "|versus] the [previous|prior] [one|{r}|{f}]?",
            "[Which way|In which direction] did {nf} [move|go] [last|with the last {r}]?",
            "[Up or down|Direction][:| since the previous {r}:] {nf}?",
        )
    else:
        k = view.how_many_back(len(records) - 1)
        if k is None:
            return None
        ago = kind > 0.8
        first = records[-k - 1] if ago else records[-k]
        words["k"] = count_word(view, k)
        patterns = (
            (
                "[Is|Was] {nf} [up or down|higher or lower] [compared to|than|from|versus] {k} {rs}"
                " [ago|earlier|before]?",
                "[Compared with|Since] {k} {rs} ago, [is|did] {nf} [up or down|higher or lower|go "
                "up or down]?",
            )
            if ago
            else (
                "[Did|Has] {nf} [go up or down|rise or fall|gone up or down|move up or down|"
                "increase or decrease] [over|in|during|within] the [last|past] {k} {rs}?",
                "[Over|In|During] the [last|past|latest] {k} {rs}, [did|has] {nf} [go up or down|"
                "gone up or down|rise or fall]?",
                "[Is|Was] {nf} [up or down|going up or down|trending up or down] [over|in] the last"
                " {k} {rs}?",
                "[Which way|In which direction] did {nf} [move|go] [over|in|during] the last {k}"
                " {rs}?",
                "[Up or down|Direction|Trend] of {nf} over the last {k} {rs}?",
                "From the first to the last of the [last {k}|{k} latest] {rs}, did {nf} go up or"
                " down?",
                "[Comparing|Compare] the first and the last of the [last {k}|{k} latest] {rs}[, "
                "did|: did] {nf} [go up or down|rise or fall]?",
                "[Across|Throughout] the [last {k}|{k} most recent] {rs}, [was|is] {nf} [up or "
                "down|moving up or down]?",
            )
        )
    change = number_of(records[-1], field) - number_of(first, field)
    if not change:
        return None
    if view.rng.random() < 0.15:
        return _rose(view, words, change, records, field)
    text = view.say(patterns, **words)
    if view.rng.random() < 0.15:
        text += view.say((" [Answer|Say|Reply] up or down.", " (up/down)", " up/down?"))
    return Question("up or down", text, "up" if change > 0 else "down", ("up", "down"))


def _rose(
    view: View, words: Mapping[str, str], change: int, records: list[Record], field: str
) -> Question | None:
    """The same question, to be answered with yes or no."""
    up = view.rng.random() < 0.5
    if "k" not in words:
        change = number_of(records[-1], field) - number_of(records[-2], field)
        back = "[the previous {r}|the one before|before|the previous one]"
    elif view.rng.random() < 0.5:
        text = view.say(
            ("[Did|Has] {nf} [rise|risen|go up|gone up|increase] over the last {k} {rs}?",)
            if up
            else ("[Did|Has] {nf} [fall|fallen|go down|gone down|drop] over the last {k} {rs}?",),
            **words,
        )
        first = records[-_back(words["k"])]
        change = number_of(records[-1], field) - number_of(first, field)
        return _yes(view, text, change, up)
    else:
        change = number_of(records[-1], field) - number_of(records[-_back(words["k"]) - 1], field)
        back = "{k} {rs} [ago|earlier|before]"
    how = "[higher|greater|larger]" if up else "[lower|smaller]"
    text = view.say(
        ("[Is|Was] {nf} " + how + " than " + back + "?",
         "[Is|Was] the [last|latest|current] {f}{of} " + how + " than " + back + "?"),
        **words,
    )  # fmt: skip
    return _yes(view, text, change, up)


def _back(count: str) -> int:
    return COUNT_WORDS.index(count) if count in COUNT_WORDS else int(count)


def _yes(view: View, text: str, change: int, up: bool) -> Question | None:
    if not change:
        return None
    answer = "yes" if (change > 0) == up else "no"
    return Question("up or down", text + yes_or_no(view), answer, ("yes", "no"))


def bullish(view: View) -> Question | None:
    """A bar is bullish if it closes above its open, bearish if below."""
    if view.source.kind != "bars":
        return None
    entity = view.entity()
    records = view.source.history.of[entity]
    rule = view.say(
        (
            "", "", "", "",
            "A bar is bullish [if|when] [it closes above its open|its close is above its open]"
            "[, else bearish|, and bearish otherwise|]. ",
            "Bullish means close above open[, bearish means close below open|]. ",
            "[Rule: |]bullish if close > open, [else|otherwise] bearish[.|:] ",
            "Call a bar bearish if it closes below where it opened[, else bullish|]. ",
        )
    )  # fmt: skip
    record = records[-1]
    words = {"of": view.of(entity), "by": view.by(entity) or "the ", "at": "", "r": "bar"}
    words["r"] = view.record_word()
    if view.source.timed and view.rng.random() < 0.35:
        record = view.rng.choice(records)
        if [one.time for one in records].count(record.time) > 1:
            return None
        words["at"] = view.source.clock.on(view.source.clock.asked(record.time))
        patterns: tuple[str, ...] = (
            "[Was|Is] the {r}{of} {at} bullish or bearish?",
            "Was {by}{r} {at} [bullish or bearish|a bullish or a bearish one]?",
        )
    else:
        patterns = (
            "[Is|Was] the " + LAST + " {r}{of} bullish or bearish?",
            "[Is|Was] {by}" + LAST + " {r} bullish or bearish?",
            "[Bullish or bearish|Bearish or bullish]: the " + LAST + " {r}{of}?",
            "[What kind of {r} was the last one{of}|How was the last {r}{of}], bullish or bearish?",
        )
    change = number_of(record, "close") - number_of(record, "open")
    if not change:
        return None
    text = rule + view.say(patterns, **words)
    answer = "bullish" if change > 0 else "bearish"
    return Question("bullish or bearish", text, answer, ("bullish", "bearish"))
