"""Questions about a limit, and how often: above or below it, how many, whether ever."""

from __future__ import annotations

from jaxstate.training.data.questions.unknown import some_stranger
from jaxstate.training.data.questions.view import (
    LAST,
    MARK,
    NOW,
    View,
    count_word,
    number_of,
    plain_number,
    shown_value,
    yes_or_no,
)
from jaxstate.training.data.records import Question


def limit_near(view: View, entity: str, field: str) -> tuple[int, str]:
    """A threshold that is worth asking for, and its characters, often rounder than the values."""
    records = view.source.history.of[entity]
    now = number_of(records[-1], field)
    seen = [number_of(one, field) for one in records[-50:]]
    width = max(1, max(seen) - min(seen), abs(now) // 50)
    number = now + round(view.rng.gauss(0, 0.6) * width)
    if view.rng.random() < 0.6 and width > 10:
        scale = 10 ** max(0, len(str(width)) - view.rng.choice((1, 1, 2)))
        number = round(number / scale) * scale
    return number, plain_number(number, view.source.decimals(entity, field))


def threshold(view: View) -> Question | None:
    """Strictly above or below, in the last record or in that of a time."""
    found = view.number_field()
    if found is None:
        return None
    field, called = found
    entity = view.subject
    records = view.source.history.of[entity]
    limit, shown = limit_near(view, entity, field)
    record, at = records[-1], ""
    if view.source.timed and view.rng.random() < 0.15:
        record = view.rng.choice(records)
        if [one.time for one in records].count(record.time) > 1:
            return None
        at = " " + view.source.clock.on(view.source.clock.asked(record.time))
    above = view.rng.random() < 0.5
    number = number_of(record, field)
    if number == limit:
        return None
    words = {
        "f": called,
        "nf": view.named(called),
        "of": view.of(),
        "x": shown,
        "at": at,
        "r": view.record_word(),
    }
    more = "[above|over|higher than|greater than|more than|above|larger than|bigger than|past|in "
    more += "excess of|beyond]"
    less = "[below|under|lower than|less than|smaller than|below|beneath|short of]"
    if view.rng.random() < 0.2:
        text = view.say(
            (
                "[Is|Was] {nf}{at} above or below {x}?",
                "[Above or below|Over or under] {x}: {nf}{at}?",
                "[Is|Was] {nf}{at} higher or lower than {x}[, above or below|: above or below]?",
                "[On which side of|Where in relation to] {x} [is|was] {nf}{at}, above or below?",
                "[Compare|Comparing] {nf}{at} with {x}: [is it|] above or below?",
            ),
            **words,
        )
        answer = "above" if number > limit else "below"
        return Question("threshold", text, answer, ("above", "below"))
    patterns = (
        "[Is|Was] {nf}{at} " + (more if above else less) + " {x}?",
        "[Is|Was] {nf}{at} " + (more if above else less) + " {x}?",
        "[Does|Did] {nf}{at} "
        + ("[exceed|lie above|stand above]" if above else "[lie below|stand below|fall short of]")
        + " {x}?",
        "{nf}{at} " + (more if above else less) + " {x}[, yes or no|]?",
        "[Is it true that|Can you confirm that|Am I right that|True or not, yes or no:] {nf}{at} "
        "[is|was] " + (more if above else less) + " {x}?",
        "[Does|Did] {nf}{at} [come out|stay|sit|end|finish|stand] "
        + (more if above else less)
        + " {x}?",
        "[Would|Will] {nf}{at} count as " + (more if above else less) + " {x}?",
        "{x} is the [limit|threshold|mark|line][:|;|.] [is|was] {nf}{at} "
        + (more if above else less)
        + " it?",
        "[Has|Did] {nf}{at} [passed|pass|crossed|cross|topped|top|beaten|beat] {x}?"
        if above
        else "[Has|Did] {nf}{at} [remained|remain|stayed|stay|kept|keep] under {x}?",
    )
    if not at:
        patterns += (
            "[Is|Was] the " + LAST + " {f}{of} " + (more if above else less) + " {x}?",
            "[Is|Was] the " + LAST + " {f}{of} " + (more if above else less) + " {x}?",
            "[Is|Was] {nf}" + NOW + " " + (more if above else less) + " {x}?",
            "[Did|Has] the " + LAST + " {r}{of} [show|have|report|come with|shown|given] [a|an|] "
            "{f} " + (more if above else less) + " {x}?",
            "[With|At|As of] the " + LAST + " {r}, is {nf} " + (more if above else less) + " {x}?",
        )
    text = view.say(patterns, **words) + yes_or_no(view)
    answer = "yes" if (number > limit) == above else "no"
    return Question("threshold", text, answer, ("yes", "no"))


def how_many(view: View) -> Question | None:
    """Records of an entity, or with some property; at most 40."""
    source, rng = view.source, view.rng
    entity = view.subject
    records = source.history.of[entity]
    words = {"e": entity, "rs": view.records_word(), "of": view.of()}
    labels = source.words.labels
    if "level" in labels and rng.random() < 0.7:
        level = shown_value(rng.choice(records), "level")
        own = source.named and rng.random() < 0.6
        counted = records if own else source.history.records
        if not own and not view.alone:
            return None
        count = sum(shown_value(one, "level") == level for one in counted)
        words["level"] = rng.choice((level, level.upper(), level.lower()))
        text = view.say(
            ("How many {level} {rs} [did {e} write|has {e} logged|came from {e}|are from {e}]?",
             "How [often|many times] [did|has] {e} [log|logged|report|reported] [an |]{level}?",
             "[Count|Number of] {level} {rs} [of|from|by] {e}" + MARK)
            if own else
            ("How many {level} {rs} [are there|were there|have there been|so far]?",
             "[Count the|Number of|How many] {level} {rs}" + MARK),
            **words,
        )  # fmt: skip
    elif source.words.fields and rng.random() < 0.6:
        found = view.number_field()
        k = view.how_many_back(min(len(records), 12))
        if found is None or k is None:
            return None
        field, called = found
        limit, words["x"] = limit_near(view, entity, field)
        above = rng.random() < 0.5
        count = sum((number_of(one, field) > limit) == above for one in records[-k:])
        if any(number_of(one, field) == limit for one in records[-k:]):
            return None
        words |= {"k": count_word(view, k), "f": called, "nf": view.named(called)}
        words["how"] = view.say(("above", "over", "higher than") if above else ("below", "under"))
        text = view.say(
            ("[In how|How] many of the last {k} {rs}[ was|, was] {nf} {how} {x}?",
             "[How often|How many times] was {nf} {how} {x} [in|over] the last {k} {rs}?"),
            **words,
        )  # fmt: skip
    else:
        if not source.named:
            return None
        count = len(records)
        text = view.say(
            ("How many {rs} [of|for|from] {e} [are there|were there|have there been|have we seen]"
             "[ so far|]?",
             "How [often|many times] [was|did|has] {e} [been updated|appear|appeared|show up]?",
             "[Number of|Count the] {rs} [of|for|from] {e}" + MARK),
            **words,
        )  # fmt: skip
    return Question("how many", text, str(count)) if count <= 40 else None


def happened(view: View) -> Question | None:
    """Whether any record so far shows it."""
    source, rng = view.source, view.rng
    entity = view.subject
    records = source.history.of[entity]
    words = {"e": entity, "n": view.entity_word(), "rs": view.records_word()}
    found = view.number_field()
    if found is not None and rng.random() < 0.6:
        field, called = found
        numbers = [number_of(one, field) for one in records]
        above = rng.random() < 0.5
        edge = max(numbers) if above else min(numbers)
        width = max(1, (max(numbers) - min(numbers)) // 3, abs(edge) // 200)
        limit = edge + round(rng.gauss(0, 1) * width)
        if limit == edge:
            return None
        words |= {
            "nf": view.named(called),
            "x": plain_number(limit, source.decimals(entity, field)),
        }
        text = view.say(
            ("[Did|Has] {nf} [ever |][go above|exceed|rise above|been above|reach more than] {x}?",
             "[Was|Has] {nf} ever [been |]above {x}?")
            if above else
            ("[Did|Has] {nf} [ever |][go below|fall below|drop below|been below|sink under] {x}?",
             "[Was|Has] {nf} ever [been |]below {x}?"),
            **words,
        )  # fmt: skip
        answer = (edge > limit) if above else (edge < limit)
    elif source.words.labels and rng.random() < 0.75:
        field = rng.choice(list(source.words.labels))
        shown = {shown_value(one, field) for one in records}
        other = [shown_value(one, field) for one in source.history.records[-200:]]
        words["v"] = rng.choice(sorted(shown)) if rng.random() < 0.5 else rng.choice(other)
        answer = words["v"] in shown
        patterns = (
            ("[Did|Has] {e} [ever |][log|logged|report|reported|write|written] ["
             + '"{v}"|{v}|a {v}]?',
             '[Was there|Has there been] [a|any] ["{v}"|{v}] from {e}?')
            if source.kind == "logs" else
            ("[Was|Has] {e} ever [been |]{v}?", "[Did|Has] {e} [ever |][have|had|get] {v}?",
             "Was {v} ever the " + rng.choice(source.words.labels[field]) + " of {e}?")
        )  # fmt: skip
        if not source.named:
            return None
        text = view.say(patterns, **words)
    else:
        if not source.named:
            return None
        answer = rng.random() < 0.5
        if not answer:
            words["e"] = some_stranger(view)
        text = view.say(
            (
                "[Are|Were] there [any|] {rs} [of|from|for|about] {e}?",
                "[Did|Has] {e} [appear|appeared|show up|come up] [at all|so far|yet]?",
                "Is {e} [mentioned|in the stream|one of those here]?",
            ),
            **words,
        )
    return Question(
        "did it happen", text + yes_or_no(view), "yes" if answer else "no", ("yes", "no")
    )
