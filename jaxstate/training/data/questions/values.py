"""Questions for one value: the last, the one at a time, the one before."""

from __future__ import annotations

from jaxstate.training.data.questions.view import (
    LAST,
    LATELY,
    MARK,
    NOW,
    WHAT,
    View,
    asked_with_verb,
    shown_value,
    words_of_time,
)
from jaxstate.training.data.records import Question


def last_value(view: View) -> Question | None:
    """The field in the entity's last record; without an entity, in the last record of all."""
    entity = view.entity()
    lately = view.say(LATELY, r=view.record_word())
    with_verb = asked_with_verb(view, entity, lately)
    if with_verb is not None:
        answer = shown_value(view.source.history.of[entity][-1], with_verb[0])
        return Question("last value", with_verb[1], answer)
    field, called = view.any_field()
    if view.alone and view.rng.random() < 0.12:
        text = view.say(
            (
                WHAT + " the {f} [in|of|on] the " + LAST + " {r}" + MARK,
                "[{f}|the {f}] [in|of] the " + LAST + " {r}" + MARK,
                "[Last|Latest|Newest] {r}: {f}?",
            ),
            f=called,
            r=view.record_word(),
        )
        return Question("last value", text, shown_value(view.records[-1], field))
    by, of = view.by(entity), view.of(entity)
    text = view.say(
        (
            WHAT + " the " + LAST + " {f}{of}" + NOW + MARK,
            WHAT + " {the_by}" + LAST + " {f}" + NOW + MARK,
            "[Latest|Last|Current|Most recent] {f}{of}[?|]",
            "[At|On] what {f} [did|was] the " + LAST + " {r}{of}[ come in|]?",
            "[What does|What did] {who} show [last|now|most recently] [for|as] {f}?",
            WHAT + " {nf} [in|at|of] the " + LAST + " {r}" + MARK,
            "[How high|How much|How large] [is|was] {nf}" + NOW + "?",
            "{nf}[ now|]?",
            "[Where|At what] [does|did] {nf} [stand|end|finish|stop|sit]" + NOW + "?",
            "What [does|did] {nf} [stand at|come to|amount to|read|end at]" + NOW + "?",
            "What [value|number|figure] [does|did] {nf} have [last|now|most recently]?",
            "[Quote|Read out|Repeat] {nf} [from|of] the " + LAST + " {r}" + MARK,
        ),
        f=called,
        of=of,
        the_by=by or "the ",
        who=entity if of or by else "the stream",
        r=view.record_word(),
        nf=view.named(entity, called),
    )
    return Question("last value", text, shown_value(view.source.history.of[entity][-1], field))


def value_at_time(view: View) -> Question | None:
    """The field of the one record of the entity with that time."""
    if not view.source.timed:
        return None
    field, called = view.any_field()
    entity = view.entity()
    records = view.source.history.of[entity]
    record = view.rng.choice(records)
    times = [one.time for one in records]
    if times.count(record.time) > 1:
        return None
    time_words = words_of_time(view, record.time)
    with_verb = asked_with_verb(view, entity, time_words["at"])
    if with_verb is not None:
        return Question("value at a time", with_verb[1], shown_value(record, with_verb[0]))
    text = view.say(
        (
            WHAT + " {nf} {at}" + MARK,
            WHAT + " {nf} {at}" + MARK,
            "{At}, what was {nf}?",
            "[What was|Which] {f}{of} [was recorded|was reported|was shown|did we see] {at}?",
            "{by}{f} {at}?",
            "[How high|How much|What] was {nf} {at}?",
            "What did {nf} [come to|read|show|reach] {at}?",
            "[Which|What] [value|number|figure] did {nf} have {at}?",
            "{At}: {nf}?",
            "[Go to|Look at|Find] {t}[ and give|:] {nf}" + MARK,
            "How high did {nf} get {at}?",
            WHAT + " {nf} [in|of] the {r} [{at}|from {t}|of {t}]" + MARK,
        ),
        **time_words,
        f=called,
        nf=view.named(entity, called),
        of=view.of(entity),
        by=view.by(entity),
        r=view.record_word(),
    )
    return Question("value at a time", text, shown_value(record, field))


def previous_value(view: View) -> Question | None:
    """The field in the last record but one; or in the record right before a time."""
    field, called = view.any_field()
    entity = view.entity()
    records = view.source.history.of[entity]
    if len(records) < 2:
        return None
    words = {
        "f": called,
        "of": view.of(entity),
        "the_by": view.by(entity) or "the ",
        "nf": view.named(entity, called),
        "r": view.record_word(),
        "rs": view.records_word(),
    }
    if view.source.timed and view.rng.random() < 0.2:
        at = view.rng.randrange(1, len(records))
        if [one.time for one in records].count(records[at].time) > 1:
            return None
        text = view.say(
            (
                WHAT + " {nf} [right |just |one {r} |]before {t}" + MARK,
                WHAT + " {nf} in the {r} before {t}" + MARK,
            ),
            **words,
            t=view.source.clock.asked(records[at].time),
        )
        return Question("previous value", text, shown_value(records[at - 1], field))
    if (
        shown_value(records[-1], field) != shown_value(records[-2], field)
        and view.rng.random() < 0.1
    ):
        text = view.say(
            (
                "What was {nf} before it [changed|went|moved] to {v}?",
                "{nf} is [now|] {v}; what was it before[ that|]?",
            ),
            **words,
            v=shown_value(records[-1], field),
        )
        return Question("previous value", text, shown_value(records[-2], field))
    text = view.say(
        (
            WHAT + " the [previous|prior|second to last|last but one|penultimate] {f}{of}" + MARK,
            WHAT + " {the_by}[previous|prior|second to last|next to last] {f}" + MARK,
            WHAT + " {nf} [before the last one|one {r} ago|before that|one {r} before the last]"
            + MARK,
            "[Previous|Prior] {f}{of}?",
            WHAT + " the {f}{of} before the [last|latest|current|most recent] [one|{r}|{f}]"
            + MARK,
            WHAT + " {nf} in the [previous|prior|second to last] {r}" + MARK,
            "What was {nf} [before|before it changed|just before the last {r}]?",
            "[Which|What] {f}{of} [came|was read|was seen|was there] [right|just|directly] before "
            "the " + LAST + " [one|{r}|{f}]?",
            WHAT + " {nf} in the {r} [preceding|ahead of|prior to] the " + LAST + " one" + MARK,
            "Not the last {f}{of} but the one before" + MARK,
        ),
        **words,
    )  # fmt: skip
    return Question("previous value", text, shown_value(records[-2], field))
