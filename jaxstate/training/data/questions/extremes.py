"""Questions for the highest and the lowest: of the last k records, or of all; and when it was."""

from __future__ import annotations

from jaxstate.training.data.questions.view import (
    MARK,
    WHAT,
    View,
    count_word,
    number_of,
    shown_value,
)
from jaxstate.training.data.records import Question

HIGH = "[highest|maximum|largest|max|top|highest|greatest|biggest|peak|maximal]"


LOW = "[lowest|minimum|smallest|min|bottom|lowest|least|minimal]"


def _extreme_field(view: View, high: bool) -> tuple[str, str] | None:
    """For bars, "the highest price" is the highest high."""
    if view.source.kind == "bars" and view.rng.random() < 0.4:
        field = "high" if high else "low"
        return field, view.rng.choice(("price", "price", field, "traded price"))
    found = view.number_field()
    if found is None:
        return None
    field, called = found
    if view.source.kind == "bars" and called in view.source.words.plain_words:
        return field, view.rng.choice(("close", "closing price"))
    return found


def extreme_of_last(view: View) -> Question | None:
    """Over the entity's last k records, the last one included."""
    high = view.rng.random() < 0.5
    found = _extreme_field(view, high)
    records = view.source.history.of[view.subject]
    k = view.how_many_back(len(records))
    if found is None or k is None:
        return None
    field, called = found
    values = [(number_of(one, field), shown_value(one, field)) for one in records[-k:]]
    answer = (max if high else min)(values, key=lambda one: one[0])[1]
    superlative = HIGH if high else LOW
    text = view.say(
        (
            WHAT + " the " + superlative + " {f}{of} [over|in|of|within|during|among] the last {k}"
            " {rs}" + MARK,
            WHAT + " {the_by}" + superlative + " {f} [over|in|of|within|during] the [last|past|"
            "most recent|latest] {k} {rs}" + MARK,
            "[Over|In|Of|Within] the [last|past|latest] {k} {rs}, what [was|is] the " + superlative
            + " {f}{of}?",
            "[Looking at|Considering|Given] the last {k} {rs}[ only|], [what is|give|find] the "
            + superlative + " {f}{of}" + MARK,
            "[How high did|What level did] {nf} [get|reach] [over|in|within] the last {k} {rs}?"
            if high
            else "[How low did|To what level did] {nf} [get|fall|go] [over|in|within] the last {k}"
            " {rs}?",
            "[Max|Maximum|Highest] {f}{of}[,|] last {k} {rs}?"
            if high
            else "[Min|Minimum|Lowest] {f}{of}[,|] last {k} {rs}?",
            "[What is|Give] the " + ("[peak|high point|top value]" if high else "[trough|low point|"
            "bottom value]") + " of {nf} [over|among|in|within] the [{k} last|{k} latest|last {k}|"
            "{k} most recent] {rs}" + MARK,
            "[Of|Among] the [{k} last|{k} latest|last {k}|{k} most recent] {rs}[ of {who}|], which "
            "{f} is the " + superlative + "?",
            "[Take|Use|Look at|Consider|Check] [the last {k}|the {k} newest|the {k} last|only the "
            "last {k}] {rs}[ of {who}|][:|;|.| and tell me:] " + superlative + " {f}?",
            "[Which|What] is the " + superlative + " of the [last|latest|past|most recent] {k} {fs}"
            "{of}?",
            "[How far up|How high|To what height] [has|did] {nf} [been|go|come|climb|rise] "
            "[in|over|"
            "within|during] the [last|past|latest] {k} {rs}?"
            if high
            else "[How far down|How low|To what depth] [has|did] {nf} [been|go|come|sink|drop] [in|"
            "over|within|during] the [last|past|latest] {k} {rs}?",
            "[Over|In|During|Across] [the last {k}|the {k} last|the past {k}|the {k} latest] {rs}, "
            "{nf} was at [most|its " + superlative + "][ at|] what?"
            if high
            else "[Over|In|During|Across] [the last {k}|the {k} last|the past {k}|the {k} latest] "
            "{rs}, {nf} was at [least|its " + superlative + "][ at|] what?",
            "[{k}-{r}|{k} {r}] [high|max|maximum|peak] [of|for] {nf}?"
            if high
            else "[{k}-{r}|{k} {r}] [low|min|minimum] [of|for] {nf}?",
            "[The|] " + superlative + " {f}{of} [since|counting from|starting] {k} {rs} back, the "
            "last one included[?|.]",
        ),
        f=called,
        fs=called + ("es" if called.endswith("s") else "s"),
        r=view.record_word(),
        who=view.who if view.source.named else "the stream",
        k=count_word(view, k),
        of=view.of(),
        the_by=view.by() or "the ",
        nf=view.named(called),
        rs=view.records_word(),
    )  # fmt: skip
    return Question("highest or lowest of the last k", text, answer)


def extreme_of_all(view: View) -> Question | None:
    """Over all records of the entity."""
    high = view.rng.random() < 0.5
    found = _extreme_field(view, high)
    if found is None:
        return None
    field, called = found
    records = view.source.history.of[view.subject]
    if len(records) < 2:
        return None
    values = [(number_of(one, field), shown_value(one, field)) for one in records]
    best = (max if high else min)(values, key=lambda one: one[0])
    words = {
        "f": called,
        "of": view.of(),
        "the_by": view.by() or "the ",
        "nf": view.named(called),
        "rs": view.records_word(),
        "r": view.record_word(),
        "who": view.who if view.source.named else "the stream",
        "at": view.rng.choice(("at", "where it is at")),
        "far": view.say(
            ("", " so far", " of all", " in the whole [stream|series|history]", " overall", " ever",
             " up to now", " over all {rs}", " in all {rs}[ so far|]", " among all {rs}",
             " since the [start|beginning]", " at any [time|point|moment]", " in all that time",
             " of them all", " to date", " from start to end", " in any {r}", " since the first "
             "{r}",
             " over the entire [record|series|stream|period]"),
            rs=view.records_word(), r=view.record_word()),
    }  # fmt: skip
    superlative = HIGH if high else LOW
    text = view.say(
        (
            WHAT + " the " + superlative + " {f}{of}{far}" + MARK,
            WHAT + " {the_by}" + superlative + " {f}{far}" + MARK,
            ("[How high did|What was the peak that] " if high else "How [low|far down] did ")
            + "{nf} [go|get|reach]{far}?",
            ("[Max|Maximum|Highest]" if high else "[Min|Minimum|Lowest]") + " {f}{of}{far}?",
            "[What is|Give] the " + ("[peak|record high|all-time high|top value]" if high else
            "[trough|record low|all-time low|bottom value]") + " of {nf}{far}" + MARK,
            "[Of|Among] all {rs}[ here| in this data| we have|], [what is|which is] the "
            + superlative + " {f}{of}?",
            "[Which|What] {f}{of} [is|was] the " + superlative + "{far}?",
            "[The|] [all-time|overall|absolute|total] [high|maximum|max|peak] of {nf}?"
            if high
            else "[The|] [all-time|overall|absolute|total] [low|minimum|min] of {nf}?",
            "[What|How much] [was|is] {nf} at its " + superlative + "{far}?",
            "{nf} [was|has been] [never|not once] [above|higher than|over] what?"
            if high
            else "{nf} [was|has been] [never|not once] [below|lower than|under] what?",
            "[To|At|Up to] what [level|value] did {nf} [climb|rise|get|go] at [most|its "
            "highest]{far}?"
            if high
            else "[To|At|Down to] what [level|value] did {nf} [fall|sink|get|go] at [least|its "
            "lowest]{far}?",
            "[Search|Go through|Check|Scan] all {rs}[ of {who}|][:| and give| for] the "
            + superlative + " {f}" + MARK,
            "[Give|Find|Show|Report] the {f} {at} its " + superlative + "{far}" + MARK,
        ),
        **words,
    )  # fmt: skip
    return Question("highest or lowest of all", text, best[1])


def when_extreme(view: View) -> Question | None:
    """The time of the one record of the subject that is highest or lowest of all, or of its last
    k records."""
    high = view.rng.random() < 0.5
    found = _extreme_field(view, high)
    records = view.source.history.of[view.subject]
    if found is None or not view.source.timed or len(records) < 2:
        return None
    field, called = found
    k = view.how_many_back(len(records)) if view.rng.random() < 0.4 else None
    seen = records if k is None else records[-k:]
    best = (max if high else min)(number_of(one, field) for one in seen)
    when = [one.time for one in seen if number_of(one, field) == best]
    if len(when) > 1 or [one.time for one in records].count(when[0]) > 1:
        return None
    superlative = HIGH if high else LOW
    text = view.say(
        (
            "[When|At what time|At which time] [was|did we see] {nf} [at its |]" + superlative
            + "{far}?",
            "[When|On which {r}|At which {r}|In which {r}] did {nf} [reach its "
            + ("maximum|peak|hit its high|climb highest]" if high else
            "minimum|hit its low|bottom|sink lowest]") + "{far}?",
            "[When was|What is the time of|What is the date of|Give the time of] the " + superlative
            + " {f}{of}{far}" + MARK,
            "[Which|What] [{r}|time|date|moment] [had|has|shows|saw|brought] the " + superlative
            + " {f}{of}{far}?",
            "[Name|Find|Tell me] the [{r}|time|moment] [of|with] the " + superlative + " {f}{of}"
            "{far}" + MARK,
            "The " + superlative + " {f}{of}{far}[: when was it?| was when?|, at what time?]",
            "[Since|From] when is the " + superlative + " {f}{of}{far}?",
        ),
        f=called,
        of=view.of(),
        nf=view.named(called),
        r=view.record_word(),
        far="" if k is None else view.say(
            (" of the last {k} {rs}", " [in|over|within|among] the [last|past|latest] {k} {rs}"),
            k=count_word(view, k),
            rs=view.records_word(),
        ),
    )  # fmt: skip
    return Question("when highest or lowest", text, when[0].strip("[]"))
