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
    records = view.source.history.of[view.subject]
    if found is None or len(records) < 2:
        return None
    field, called = found
    words = {
        "f": called,
        "nf": view.named(called),
        "of": view.of(),
        "rs": view.records_word(),
        "r": view.record_word(),
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
            "[Did|Has] the " + LAST + " {r} [bring|take|move] {nf} up or down?",
            "[Compared with|Against|Relative to|Next to] the [{r} before|previous {r}|{r} before it"
            "], [is|was] the " + LAST + " {f}{of} [up or down|higher or lower]?",
            "{nf}: [up or down|higher or lower|rising or falling] [since|from|against] the "
            "[previous"
            "|prior|last but one] {r}?",
            "[In|At|With] the "
            + LAST
            + " {r}, did {nf} [climb or drop|gain or lose|rise or sink]?",
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
                "[Compared with|Since|Against|Relative to] {k} {rs} ago, [is|did] {nf} [up or down|"
                "higher or lower|go up or down]?",
                "{k} {rs} [back|ago|earlier], {nf} was [something|a value][:|;] is it up or down "
                "[since|now|from there]?",
                "[Going|Counting|Looking] back {k} {rs} from the " + LAST + " one: is {nf} up or "
                "down [since|now]?",
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
                "[Between|Taking] the first and the last of the [last {k}|{k} newest] {rs}, [is|was"
                "|has] {nf} [up or down|gone up or down|rising or falling|higher or lower]?",
                "[Does|Did] {nf} [end|finish] the last {k} {rs} [higher or lower|up or down] than "
                "it"
                " [began|started]?",
                "[Of|In|Over] the {k} [last|latest|newest] {rs}, is the last {f}{of} [above or "
                "below"
                "|higher or lower than] the first[, up or down|: up or down]?",
                "[Look at|Take|Consider|Check] the last {k} {rs}[:|. |;] [is|was] {nf} [going up "
                "or "
                "down|up or down|on the way up or down]?",
                "{k}-{r} [trend|direction|move] of {nf}[, up or down|: up or down|]?",
                "[In|Over|For] the [last|past] {k} {rs}, has {nf} [climbed or dropped|risen or "
                "fallen|increased or decreased|gained or lost]?",
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
    records = view.source.history.of[view.subject]
    rule = view.say(
        (
            "", "", "", "",
            "A bar is bullish [if|when] [it closes above its open|its close is above its open]"
            "[, else bearish|, and bearish otherwise|]. ",
            "Bullish means close above open[, bearish means close below open|]. ",
            "[Rule: |]bullish if close > open, [else|otherwise] bearish[.|:] ",
            "Call a bar bearish if it closes below where it opened[, else bullish|]. ",
            "[Close over open|Closing higher than it opened] [is|counts as|makes it] bullish[, "
            "close "
            "under open bearish|, the other way round bearish|]. ",
            "[White|Green] candles are bullish, [black|red] ones bearish. ",
        )
    )  # fmt: skip
    record = records[-1]
    words = {"of": view.of(), "by": view.by() or "the ", "at": "", "r": "bar"}
    words["r"] = view.record_word()
    if view.source.timed and view.rng.random() < 0.35:
        record = view.rng.choice(records)
        if [one.time for one in records].count(record.time) > 1:
            return None
        at = view.source.clock.on(view.source.clock.asked(record.time))
        words |= {"at": at, "At": at[0].upper() + at[1:]}
        patterns: tuple[str, ...] = (
            "[Was|Is] the {r}{of} {at} bullish or bearish?",
            "Was {by}{r} {at} [bullish or bearish|a bullish or a bearish one]?",
            "{At}, was the {r}{of} bullish or bearish?",
            "[Bullish or bearish|Bearish or bullish]: the {r}{of} {at}?",
            "[Classify|Judge|Label] the {r}{of} {at} as bullish or bearish.",
        )
    else:
        patterns = (
            "[Is|Was] the " + LAST + " {r}{of} bullish or bearish?",
            "[Is|Was] {by}" + LAST + " {r} bullish or bearish?",
            "[Bullish or bearish|Bearish or bullish]: the " + LAST + " {r}{of}?",
            "[What kind of {r} was the last one{of}|How was the last {r}{of}], bullish or bearish?",
            "[Classify|Judge|Label|Call] the " + LAST + " {r}{of}[ as|:] bullish or bearish[.|?]",
            "[Does|Did] the " + LAST + " {r}{of} [look|count as|turn out|end] bullish or bearish?",
            "[Would you call|Do we call|Is it right to call] the " + LAST + " {r}{of} bullish or "
            "bearish?",
            "[Which is it|What is it], bullish or bearish, [for|with] the " + LAST + " {r}{of}?",
            "{by}" + LAST + " {r}[:|,] [bullish or bearish|bearish or bullish]?",
        )
    change = number_of(record, "close") - number_of(record, "open")
    if not change:
        return None
    text = rule + view.say(patterns, **words)
    answer = "bullish" if change > 0 else "bearish"
    return Question("bullish or bearish", text, answer, ("bullish", "bearish"))
