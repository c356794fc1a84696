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
    """The field in the subject's last record; without a subject, in the last record of all."""
    mine = view.source.history.of[view.subject]
    with_verb = asked_with_verb(view, view.say(LATELY, r=view.record_word()))
    if with_verb is not None:
        return Question("last value", with_verb[1], shown_value(mine[-1], with_verb[0]))
    field, called = view.any_field()
    if view.alone and not view.announced and view.rng.random() < 0.12:
        text = view.say(
            (
                WHAT + " the {f} [in|of|on] the " + LAST + " {r}" + MARK,
                "[{f}|the {f}] [in|of] the " + LAST + " {r}" + MARK,
                "[Last|Latest|Newest] {r}: {f}?",
                "Which {f} does the " + LAST + " {r} [show|have|give]?",
                "The {r} that came in last: what is its {f}?",
            ),
            f=called,
            r=view.record_word(),
        )
        return Question("last value", text, shown_value(view.records[-1], field))
    by, of = view.by(), view.of()
    text = view.say(
        (
            WHAT + " the " + LAST + " {f}{of}" + NOW + MARK,
            WHAT + " {the_by}" + LAST + " {f}" + NOW + MARK,
            WHAT + " the " + LAST + " {f}{of}" + MARK,
            "[Latest|Last|Current|Newest|Final] {f}{of}[?|]",
            "[At|On] what {f} [did|was] the " + LAST + " {r}{of}[ come in|]?",
            "[What does|What did] {who} show [last|now|most recently] [for|as] {f}?",
            WHAT + " {nf} [in|at|of|according to|as of] the " + LAST + " {r}" + MARK,
            "[How high|How much|How large|How big] [is|was] {nf}" + NOW + "?",
            "{nf}[ now|]?",
            "[Where|At what] [does|did|is] {nf} [stand|end|finish|stop|sit|end up|land]" + NOW
            + "?",
            "What [does|did] {nf} [stand at|come to|amount to|read|end at|say|show|finish at]" + NOW
            + "?",
            "What [value|number|figure] [does|did] {nf} have [last|now|most recently]?",
            "[Quote|Read out|Repeat|Copy|Write down] {nf} [from|of] the " + LAST + " {r}" + MARK,
            "What [would|should] I [write down|report|say|note] [as|for] {nf}" + NOW + "?",
            "To what [value|level|number] [has|did] {nf} [come|get|move|go]" + NOW + "?",
            "[Which|What] {f} [do|did] we [have|see|get] [last|most recently]{of}?",
            "The [{f}{of}|{f}] [after|following|as of] the " + LAST + " {r}[, please|]?",
            "What has {nf} [become|come to be|turned into]" + NOW + "?",
            "[What's|What is] [the status of|new with|the news on] {nf}?",
        ),
        f=called,
        of=of,
        the_by=by or "the ",
        who=view.who if by or of or view.announced else "the stream",
        r=view.record_word(),
        nf=view.named(called),
    )  # fmt: skip
    return Question("last value", text, shown_value(mine[-1], field))


def value_at_time(view: View) -> Question | None:
    """The field of the one record of the subject with that time."""
    if not view.source.timed:
        return None
    records = view.source.history.of[view.subject]
    record = view.rng.choice(records)
    if [one.time for one in records].count(record.time) > 1:
        return None
    field, text = asked_at_time(view, record.time)
    return Question("value at a time", text, shown_value(record, field))


def asked_at_time(view: View, time: str) -> tuple[str, str]:
    """A field of the subject, and a question for its value at a time."""
    time_words = words_of_time(view, time)
    with_verb = asked_with_verb(view, time_words["at"])
    if with_verb is not None:
        return with_verb
    field, called = view.any_field()
    text = view.say(
        (
            WHAT + " {nf} {at}" + MARK,
            WHAT + " {nf} {at}" + MARK,
            "{At}, what was {nf}?",
            "[What was|Which] {f}{of} [was recorded|was reported|was shown|did we see] {at}?",
            "{by}{f} {at}?",
            "[How high|How much|What|How large] was {nf} {at}?",
            "What did {nf} [come to|read|show|reach|amount to|stand at] {at}?",
            "[Which|What] [value|number|figure] did {nf} have {at}?",
            "{At}: {nf}?",
            "{t}: {nf}?",
            "[Go to|Look at|Find|Take|Go back to] {t}[ and give|:|, then say] {nf}" + MARK,
            "How high did {nf} get {at}?",
            WHAT + " {nf} [in|of] the {r} [{at}|from {t}|of {t}|with time {t}|dated {t}|marked {t}]"
            + MARK,
            "The {r} [of|from|at] {t}: [what is its|give its|which] {f}{of}?",
            "[Where|At what level] [was|did] {nf} [stand|be|lie|sit] {at}?",
            "[Back|Earlier|Then], {at}, [what|how much] was {nf}?",
            "What do the {rs} [say|show|give|have] for {nf} {at}?",
            "[Recall|Remember|Check] {t}: {nf} was what?",
            "{nf} {at} was [what|how much]?",
        ),
        **time_words,
        f=called,
        nf=view.named(called),
        of=view.of(),
        by=view.by(),
        r=view.record_word(),
        rs=view.records_word(),
    )  # fmt: skip
    return field, text


def previous_value(view: View) -> Question | None:
    """The field in the subject's last record but one; or in the record right before a time."""
    field, called = view.any_field()
    records = view.source.history.of[view.subject]
    if len(records) < 2:
        return None
    words = {
        "f": called,
        "of": view.of(),
        "the_by": view.by() or "the ",
        "nf": view.named(called),
        "r": view.record_word(),
        "rs": view.records_word(),
    }
    last, before = shown_value(records[-1], field), shown_value(records[-2], field)
    draw = view.rng.random()
    if view.source.timed and draw < 0.2:
        at = view.rng.randrange(1, len(records))
        if [one.time for one in records].count(records[at].time) > 1:
            return None
        text = view.say(
            (
                WHAT + " {nf} [right |just |one {r} |directly |immediately |]before {t}" + MARK,
                WHAT + " {nf} in the {r} [before|preceding|ahead of|prior to] {t}" + MARK,
                "[Right|Just|Directly] before {t}, what was {nf}?",
                "The {r} before {t}: {nf}?",
            ),
            **words,
            t=view.source.clock.asked(records[at].time),
        )
        return Question("previous value", text, shown_value(records[at - 1], field))
    if last != before and draw < 0.3:
        text = view.say(
            (
                "What was {nf} before it [changed|went|moved|turned] to {v}?",
                "{nf} is [now|] {v}; what was it before[ that|]?",
                "{nf} [came|went|changed] to {v} from what?",
                "From [what|which value] did {nf} [come|go|change|move] to {v}?",
            ),
            **words,
            v=last,
        )
        return Question("previous value", text, before)
    text = view.say(
        (
            WHAT + " the [previous|prior|second to last|last but one|penultimate|preceding|former] "
            "{f}{of}" + MARK,
            WHAT + " {the_by}[previous|prior|second to last|next to last|preceding|second latest] "
            "{f}" + MARK,
            WHAT + " {nf} [before the last one|one {r} ago|before that|one {r} before the last|one "
            "{r} back|a {r} earlier|a {r} ago]" + MARK,
            "[Previous|Prior|Second to last|Preceding] {f}{of}?",
            WHAT + " the {f}{of} before the [last|latest|current|most recent|newest] [one|{r}|{f}]"
            + MARK,
            WHAT + " {nf} in the [previous|prior|second to last|preceding|last but one] {r}" + MARK,
            "What was {nf} [before|before it changed|just before the last {r}|previously|until the "
            "last {r}|up to the last {r}]?",
            "[Which|What] {f}{of} [came|was read|was seen|was there] [right|just|directly] before "
            "the " + LAST + " [one|{r}|{f}]?",
            WHAT + " {nf} in the {r} [preceding|ahead of|prior to] the " + LAST + " one" + MARK,
            "Not the last {f}{of} but the one before" + MARK,
            "[Leave out|Skip|Ignore|Forget|Without] the " + LAST + " {r}[:|;|,] what [is|was] {nf}"
            + "?",
            "[Go|Step|Look] back one {r} from the " + LAST + "[:| one:] {nf}?",
            "What [did|had] {nf} [been|stand at|read|show] one {r} before the " + LAST + " one?",
            "Of the last two {rs}[{of}|], what is the {f} [in|of] the [first|earlier|older] one?",
            "[Where|At what] was {nf} before the " + LAST + " {r} [came|came in|arrived]?",
        ),
        **words,
    )  # fmt: skip
    return Question("previous value", text, before)
