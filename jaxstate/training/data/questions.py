"""Questions about what a source has said so far, with their exact answers.

Comes in: a source and its history. Goes out: a `Question` of a family that the history allows, or
None. Every rule that an answer follows stands in the docstring of its family. Does not know: how
entries look.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxstate.training.data import names
from jaxstate.training.data.facts import Facts
from jaxstate.training.data.phrases import say_one
from jaxstate.training.data.records import UNKNOWN, Question, Record
from jaxstate.training.data.sources import Source

_WHAT = (
    "[What is|What was|What's|Tell me|Give me|State|Report|Say|Find|What is|What was|Show me|I "
    "need|Do you know|Can you tell me|Look up|Name|Which was|Output]"
)
_LAST = (
    "[last|latest|most recent|newest|current|last|latest|last seen|last known|final|most current]"
)
_NOW = "[| now| right now| at the moment| so far| currently|||| at present| as of now| these days]"
_MARK = "[?|?|?|.|]"


@dataclass(frozen=True, kw_only=True)
class _View:
    """What a question is about.

    Attributes:
        source: who said it.
        rng: chooses.
        alone: whether nothing else in the stream could be meant.
    """

    source: Source
    rng: random.Random
    alone: bool

    @property
    def records(self) -> list[Record]:
        return self.source.history.records

    @property
    def can_omit(self) -> bool:
        """Whether an entity need not be named."""
        return self.alone and len(self.source.entities) == 1

    def entity(self) -> str:
        """One that has spoken; those that spoke lately are likelier."""
        if self.rng.random() < 0.5:
            return self.rng.choice(self.records[-40:]).entity
        return self.rng.choice(list(self.source.history.of))

    def of(self, entity: str) -> str:
        """How an entity is named behind what it has; empty where it may be left out."""
        if not self.source.named or (self.can_omit and self.rng.random() < 0.5):
            return ""
        return say_one(self.rng, (" of {e}", " of {e}", " for {e}", " in {e}"), {"e": entity})

    def by(self, entity: str) -> str:
        """How an entity is named in front of what it has, with a space behind it."""
        if not self.source.named or (self.can_omit and self.rng.random() < 0.5):
            return ""
        return say_one(self.rng, ("{e}'s ", "{e} "), {"e": entity})

    def named(self, entity: str, field_words: str) -> str:
        """The field with its owner: "the close of X", "X's close"."""
        if self.rng.random() < 0.35:
            by = self.by(entity)
            return (by or "the ") + field_words
        return "the " + field_words + self.of(entity)

    def number_field(self) -> tuple[str, str] | None:
        """A numeric field and how it is called here."""
        words = self.source.words
        if not words.fields:
            return None
        if words.plain is not None and self.rng.random() < 0.3:
            return words.plain, self.rng.choice(words.plain_words)
        if words.plain is not None and self.rng.random() < 0.4:
            return words.plain, self.rng.choice(words.fields[words.plain])
        field = self.rng.choice(list(words.fields))
        return field, self.rng.choice(words.fields[field])

    def any_field(self) -> tuple[str, str]:
        """A field of any kind."""
        found = self.number_field()
        if found is not None:
            return found
        labels = self.source.words.labels
        field = self.rng.choice(list(labels))
        return field, self.rng.choice(labels[field])

    def record_word(self) -> str:
        return self.rng.choice(self.source.words.record)

    def records_word(self) -> str:
        return self.rng.choice(self.source.words.records)

    def entity_word(self) -> str:
        return self.rng.choice(self.source.words.entity)

    def say(self, patterns: Sequence[str], **values: str) -> str:
        return say_one(self.rng, patterns, values)

    def how_many_back(self, at_most: int) -> int | None:
        """A usual number of records, at least 2."""
        fitting = [k for k in (2, 3, 3, 4, 5, 5, 5, 6, 7, 8, 10, 10, 10, 12, 15, 20, 20, 20, 25, 30)
                   if k <= at_most]  # fmt: skip
        if not fitting:
            return None
        if self.rng.random() < 0.1:
            return self.rng.randint(2, min(at_most, 30))
        return self.rng.choice(fitting)


def _shown(record: Record, field: str) -> str:
    return record.values[field].shown


def _number(record: Record, field: str) -> int:
    number = record.values[field].number
    if number is None:
        raise TypeError(f"{field} is a word")
    return number


_LATELY = (
    "last",
    "most recently",
    "in the end",
    "at the end",
    "in its last {r}",
    "in the last {r}",
)


def _asked_with_verb(view: _View, entity: str, when: str) -> tuple[str, str] | None:
    """A field and a question for it in other words than its name, where there are such words."""
    verbs = view.source.words.verbs
    if not verbs or not view.source.named or view.rng.random() > 0.3:
        return None
    field = view.rng.choice(list(verbs))
    if field not in view.source.fields:
        return None
    return field, view.say(verbs[field], e=entity, when=f" {when}")


def _last(view: _View) -> Question | None:
    """The field in the entity's last record; without an entity, in the last record of all."""
    entity = view.entity()
    lately = view.say(_LATELY, r=view.record_word())
    with_verb = _asked_with_verb(view, entity, lately)
    if with_verb is not None:
        answer = _shown(view.source.history.of[entity][-1], with_verb[0])
        return Question("last value", with_verb[1], answer)
    field, called = view.any_field()
    if view.alone and view.rng.random() < 0.12:
        text = view.say(
            (
                _WHAT + " the {f} [in|of|on] the " + _LAST + " {r}" + _MARK,
                "[{f}|the {f}] [in|of] the " + _LAST + " {r}" + _MARK,
                "[Last|Latest|Newest] {r}: {f}?",
            ),
            f=called,
            r=view.record_word(),
        )
        return Question("last value", text, _shown(view.records[-1], field))
    by, of = view.by(entity), view.of(entity)
    text = view.say(
        (
            _WHAT + " the " + _LAST + " {f}{of}" + _NOW + _MARK,
            _WHAT + " {the_by}" + _LAST + " {f}" + _NOW + _MARK,
            "[Latest|Last|Current|Most recent] {f}{of}[?|]",
            "[At|On] what {f} [did|was] the " + _LAST + " {r}{of}[ come in|]?",
            "[What does|What did] {who} show [last|now|most recently] [for|as] {f}?",
            _WHAT + " {nf} [in|at|of] the " + _LAST + " {r}" + _MARK,
            "[How high|How much|How large] [is|was] {nf}" + _NOW + "?",
            "{nf}[ now|]?",
            "[Where|At what] [does|did] {nf} [stand|end|finish|stop|sit]" + _NOW + "?",
            "What [does|did] {nf} [stand at|come to|amount to|read|end at]" + _NOW + "?",
            "What [value|number|figure] [does|did] {nf} have [last|now|most recently]?",
            "[Quote|Read out|Repeat] {nf} [from|of] the " + _LAST + " {r}" + _MARK,
        ),
        f=called,
        of=of,
        the_by=by or "the ",
        who=entity if of or by else "the stream",
        r=view.record_word(),
        nf=view.named(entity, called),
    )
    return Question("last value", text, _shown(view.source.history.of[entity][-1], field))


def _at_time(view: _View) -> Question | None:
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
    time_words = _time_words(view, record.time)
    with_verb = _asked_with_verb(view, entity, time_words["at"])
    if with_verb is not None:
        return Question("value at a time", with_verb[1], _shown(record, with_verb[0]))
    text = view.say(
        (
            _WHAT + " {nf} {at}" + _MARK,
            _WHAT + " {nf} {at}" + _MARK,
            "{At}, what was {nf}?",
            "[What was|Which] {f}{of} [was recorded|was reported|was shown|did we see] {at}?",
            "{by}{f} {at}?",
            "[How high|How much|What] was {nf} {at}?",
            "What did {nf} [come to|read|show|reach] {at}?",
            "[Which|What] [value|number|figure] did {nf} have {at}?",
            "{At}: {nf}?",
            "[Go to|Look at|Find] {t}[ and give|:] {nf}" + _MARK,
            "How high did {nf} get {at}?",
            _WHAT + " {nf} [in|of] the {r} [{at}|from {t}|of {t}]" + _MARK,
        ),
        **time_words,
        f=called,
        nf=view.named(entity, called),
        of=view.of(entity),
        by=view.by(entity),
        r=view.record_word(),
    )
    return Question("value at a time", text, _shown(record, field))


def _time_words(view: _View, time: str) -> dict[str, str]:
    asked = view.source.clock.asked(time)
    at = view.source.clock.on(asked)
    return {"at": at, "At": at[0].upper() + at[1:], "t": asked}


def _previous(view: _View) -> Question | None:
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
                _WHAT + " {nf} [right |just |one {r} |]before {t}" + _MARK,
                _WHAT + " {nf} in the {r} before {t}" + _MARK,
            ),
            **words,
            t=view.source.clock.asked(records[at].time),
        )
        return Question("previous value", text, _shown(records[at - 1], field))
    if _shown(records[-1], field) != _shown(records[-2], field) and view.rng.random() < 0.1:
        text = view.say(
            (
                "What was {nf} before it [changed|went|moved] to {v}?",
                "{nf} is [now|] {v}; what was it before[ that|]?",
            ),
            **words,
            v=_shown(records[-1], field),
        )
        return Question("previous value", text, _shown(records[-2], field))
    text = view.say(
        (
            _WHAT + " the [previous|prior|second to last|last but one|penultimate] {f}{of}" + _MARK,
            _WHAT + " {the_by}[previous|prior|second to last|next to last] {f}" + _MARK,
            _WHAT + " {nf} [before the last one|one {r} ago|before that|one {r} before the last]"
            + _MARK,
            "[Previous|Prior] {f}{of}?",
            _WHAT + " the {f}{of} before the [last|latest|current|most recent] [one|{r}|{f}]"
            + _MARK,
            _WHAT + " {nf} in the [previous|prior|second to last] {r}" + _MARK,
            "What was {nf} [before|before it changed|just before the last {r}]?",
            "[Which|What] {f}{of} [came|was read|was seen|was there] [right|just|directly] before "
            "the " + _LAST + " [one|{r}|{f}]?",
            _WHAT + " {nf} in the {r} [preceding|ahead of|prior to] the " + _LAST + " one" + _MARK,
            "Not the last {f}{of} but the one before" + _MARK,
        ),
        **words,
    )  # fmt: skip
    return Question("previous value", text, _shown(records[-2], field))


_HIGH = "[highest|maximum|largest|max|top|highest|greatest]"
_LOW = "[lowest|minimum|smallest|min|bottom|lowest]"


def _extreme_field(view: _View, high: bool) -> tuple[str, str] | None:
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


def _extreme_last(view: _View) -> Question | None:
    """Over the entity's last k records, the last one included."""
    high = view.rng.random() < 0.5
    found = _extreme_field(view, high)
    entity = view.entity()
    records = view.source.history.of[entity]
    k = view.how_many_back(len(records))
    if found is None or k is None:
        return None
    field, called = found
    values = [(_number(one, field), _shown(one, field)) for one in records[-k:]]
    answer = (max if high else min)(values, key=lambda one: one[0])[1]
    superlative = _HIGH if high else _LOW
    text = view.say(
        (
            _WHAT + " the " + superlative + " {f}{of} [over|in|of|within|during|among] the last {k}"
            " {rs}" + _MARK,
            _WHAT + " {the_by}" + superlative + " {f} [over|in|of|within|during] the [last|past|"
            "most recent|latest] {k} {rs}" + _MARK,
            "[Over|In|Of|Within] the [last|past|latest] {k} {rs}, what [was|is] the " + superlative
            + " {f}{of}?",
            "[Looking at|Considering|Given] the last {k} {rs}[ only|], [what is|give|find] the "
            + superlative + " {f}{of}" + _MARK,
            "[How high did|What level did] {nf} [get|reach] [over|in|within] the last {k} {rs}?"
            if high
            else "[How low did|To what level did] {nf} [get|fall|go] [over|in|within] the last {k}"
            " {rs}?",
            "[Max|Maximum|Highest] {f}{of}[,|] last {k} {rs}?"
            if high
            else "[Min|Minimum|Lowest] {f}{of}[,|] last {k} {rs}?",
            "[What is|Give] the " + ("[peak|high point|top value]" if high else "[trough|low point|"
            "bottom value]") + " of {nf} [over|among|in|within] the [{k} last|{k} latest|last {k}|"
            "{k} most recent] {rs}" + _MARK,
            "[Of|Among] the [{k} last|{k} latest|last {k}|{k} most recent] {rs}[ of {who}|], which "
            "{f} is the " + superlative + "?",
        ),
        f=called,
        who=entity if view.source.named else "the stream",
        k=_count_word(view, k),
        of=view.of(entity),
        the_by=view.by(entity) or "the ",
        nf=view.named(entity, called),
        rs=view.records_word(),
    )  # fmt: skip
    return Question("highest or lowest of the last k", text, answer)


_COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
                "ten", "eleven", "twelve")  # fmt: skip


def _count_word(view: _View, count: int) -> str:
    """A number in digits, or small ones in words."""
    if count < len(_COUNT_WORDS) and view.rng.random() < 0.25:
        return _COUNT_WORDS[count]
    return str(count)


def _extreme_all(view: _View) -> Question | None:
    """Over all records of the entity."""
    high = view.rng.random() < 0.5
    found = _extreme_field(view, high)
    if found is None:
        return None
    field, called = found
    entity = view.entity()
    records = view.source.history.of[entity]
    if len(records) < 2:
        return None
    values = [(_number(one, field), _shown(one, field)) for one in records]
    best = (max if high else min)(values, key=lambda one: one[0])
    words = {
        "f": called,
        "of": view.of(entity),
        "the_by": view.by(entity) or "the ",
        "nf": view.named(entity, called),
        "rs": view.records_word(),
        "r": view.record_word(),
        "far": view.say(
            ("", " so far", " of all", " in the whole [stream|series|history]", " overall", " ever",
             " up to now", " over all {rs}", " in all {rs}[ so far|]", " among all {rs}",
             " since the [start|beginning]"), rs=view.records_word()),
    }  # fmt: skip
    superlative = _HIGH if high else _LOW
    if view.source.timed and view.rng.random() < 0.2:
        when = [one.time for one in records if _number(one, field) == best[0]]
        if len(when) > 1:
            return None
        text = view.say(
            (
                "[When|At what time|At which time] was {nf} " + superlative + "?",
                "[When|On which {r}|At which {r}] did {nf} [reach its "
                + ("maximum|peak|hit its high]?" if high else "minimum|hit its low|bottom]?"),
                "[When was|What is the time of] the " + superlative + " {f}{of}?",
            ),
            **words,
        )
        return Question("when highest or lowest", text, when[0].strip("[]"))
    text = view.say(
        (
            _WHAT + " the " + superlative + " {f}{of}{far}" + _MARK,
            _WHAT + " {the_by}" + superlative + " {f}{far}" + _MARK,
            ("[How high did|What was the peak that] " if high else "How [low|far down] did ")
            + "{nf} [go|get|reach]{far}?",
            ("[Max|Maximum|Highest]" if high else "[Min|Minimum|Lowest]") + " {f}{of}{far}?",
            "[What is|Give] the " + ("[peak|record high|all-time high|top value]" if high else
            "[trough|record low|all-time low|bottom value]") + " of {nf}{far}" + _MARK,
            "[Of|Among] all {rs}[ here| in this data| we have|], [what is|which is] the "
            + superlative + " {f}{of}?",
        ),
        **words,
    )  # fmt: skip
    return Question("highest or lowest of all", text, best[1])


def _direction(view: _View) -> Question | None:
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
        words["k"] = _count_word(view, k)
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
    change = _number(records[-1], field) - _number(first, field)
    if not change:
        return None
    if view.rng.random() < 0.15:
        return _rose(view, words, change, records, field)
    text = view.say(patterns, **words)
    if view.rng.random() < 0.15:
        text += view.say((" [Answer|Say|Reply] up or down.", " (up/down)", " up/down?"))
    return Question("up or down", text, "up" if change > 0 else "down", ("up", "down"))


def _rose(
    view: _View, words: Mapping[str, str], change: int, records: list[Record], field: str
) -> Question | None:
    """The same question, to be answered with yes or no."""
    up = view.rng.random() < 0.5
    if "k" not in words:
        change = _number(records[-1], field) - _number(records[-2], field)
        back = "[the previous {r}|the one before|before|the previous one]"
    elif view.rng.random() < 0.5:
        text = view.say(
            ("[Did|Has] {nf} [rise|risen|go up|gone up|increase] over the last {k} {rs}?",)
            if up
            else ("[Did|Has] {nf} [fall|fallen|go down|gone down|drop] over the last {k} {rs}?",),
            **words,
        )
        first = records[-_back(words["k"])]
        change = _number(records[-1], field) - _number(first, field)
        return _yes(view, text, change, up)
    else:
        change = _number(records[-1], field) - _number(records[-_back(words["k"]) - 1], field)
        back = "{k} {rs} [ago|earlier|before]"
    how = "[higher|greater|larger]" if up else "[lower|smaller]"
    text = view.say(
        ("[Is|Was] {nf} " + how + " than " + back + "?",
         "[Is|Was] the [last|latest|current] {f}{of} " + how + " than " + back + "?"),
        **words,
    )  # fmt: skip
    return _yes(view, text, change, up)


def _back(count: str) -> int:
    return _COUNT_WORDS.index(count) if count in _COUNT_WORDS else int(count)


def _yes(view: _View, text: str, change: int, up: bool) -> Question | None:
    if not change:
        return None
    answer = "yes" if (change > 0) == up else "no"
    return Question("up or down", text + _yes_or_no(view), answer, ("yes", "no"))


def _bullish(view: _View) -> Question | None:
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
            "[Is|Was] the " + _LAST + " {r}{of} bullish or bearish?",
            "[Is|Was] {by}" + _LAST + " {r} bullish or bearish?",
            "[Bullish or bearish|Bearish or bullish]: the " + _LAST + " {r}{of}?",
            "[What kind of {r} was the last one{of}|How was the last {r}{of}], bullish or bearish?",
        )
    change = _number(record, "close") - _number(record, "open")
    if not change:
        return None
    text = rule + view.say(patterns, **words)
    answer = "bullish" if change > 0 else "bearish"
    return Question("bullish or bearish", text, answer, ("bullish", "bearish"))


def _limit(view: _View, entity: str, field: str) -> tuple[int, str]:
    """A threshold that is worth asking for, and its characters, often rounder than the values."""
    records = view.source.history.of[entity]
    now = _number(records[-1], field)
    seen = [_number(one, field) for one in records[-50:]]
    width = max(1, max(seen) - min(seen), abs(now) // 50)
    number = now + round(view.rng.gauss(0, 0.6) * width)
    if view.rng.random() < 0.6 and width > 10:
        scale = 10 ** max(0, len(str(width)) - view.rng.choice((1, 1, 2)))
        number = round(number / scale) * scale
    return number, _plain(number, view.source.decimals(entity, field))


def _plain(number: int, decimals: int) -> str:
    """Without zeros behind the point."""
    sign, size = "-" if number < 0 else "", abs(number)
    if not decimals:
        return sign + str(size)
    whole, part = divmod(size, 10**decimals)
    tail = f"{part:0{decimals}d}".rstrip("0")
    return f"{sign}{whole}.{tail}" if tail else f"{sign}{whole}"


def _threshold(view: _View) -> Question | None:
    """Strictly above or below, in the last record or in that of a time."""
    found = view.number_field()
    if found is None:
        return None
    field, called = found
    entity = view.entity()
    records = view.source.history.of[entity]
    limit, shown = _limit(view, entity, field)
    record, at = records[-1], ""
    if view.source.timed and view.rng.random() < 0.15:
        record = view.rng.choice(records)
        if [one.time for one in records].count(record.time) > 1:
            return None
        at = " " + view.source.clock.on(view.source.clock.asked(record.time))
    above = view.rng.random() < 0.5
    number = _number(record, field)
    if number == limit:
        return None
    words = {
        "f": called,
        "nf": view.named(entity, called),
        "of": view.of(entity),
        "who": entity if view.source.named else "it",
        "x": shown,
        "at": at,
        "r": view.record_word(),
    }
    more = "[above|over|higher than|greater than|more than|above]"
    less = "[below|under|lower than|less than|smaller than|below]"
    if view.rng.random() < 0.2:
        text = view.say(
            (
                "[Is|Was] {nf}{at} above or below {x}?",
                "[Above or below|Over or under] {x}: {nf}{at}?",
                "[Is|Was] {nf}{at} higher or lower than {x}[, above or below|: above or below]?",
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
    )
    if not at:
        patterns += (
            "[Is|Was] the " + _LAST + " {f}{of} " + (more if above else less) + " {x}?",
            "[Is|Was] the " + _LAST + " {f}{of} " + (more if above else less) + " {x}?",
        )
    text = view.say(patterns, **words) + _yes_or_no(view)
    answer = "yes" if (number > limit) == above else "no"
    return Question("threshold", text, answer, ("yes", "no"))


def _yes_or_no(view: _View) -> str:
    if view.rng.random() < 0.85:
        return ""
    return view.say((" [Answer|Say|Reply] yes or no.", " (yes/no)", " Yes or no?"))


def _how_many(view: _View) -> Question | None:
    """Records of an entity, or with some property; at most 40."""
    source, rng = view.source, view.rng
    entity = view.entity()
    records = source.history.of[entity]
    words = {"e": entity, "rs": view.records_word(), "of": view.of(entity)}
    labels = source.words.labels
    if "level" in labels and rng.random() < 0.7:
        level = _shown(rng.choice(records), "level")
        own = source.named and rng.random() < 0.6
        counted = records if own else source.history.records
        if not own and not view.alone:
            return None
        count = sum(_shown(one, "level") == level for one in counted)
        words["level"] = rng.choice((level, level.upper(), level.lower()))
        text = view.say(
            ("How many {level} {rs} [did {e} write|has {e} logged|came from {e}|are from {e}]?",
             "How [often|many times] [did|has] {e} [log|logged|report|reported] [an |]{level}?",
             "[Count|Number of] {level} {rs} [of|from|by] {e}" + _MARK)
            if own else
            ("How many {level} {rs} [are there|were there|have there been|so far]?",
             "[Count the|Number of|How many] {level} {rs}" + _MARK),
            **words,
        )  # fmt: skip
    elif source.words.fields and rng.random() < 0.6:
        found = view.number_field()
        k = view.how_many_back(min(len(records), 12))
        if found is None or k is None:
            return None
        field, called = found
        limit, words["x"] = _limit(view, entity, field)
        above = rng.random() < 0.5
        count = sum((_number(one, field) > limit) == above for one in records[-k:])
        if any(_number(one, field) == limit for one in records[-k:]):
            return None
        words |= {"k": _count_word(view, k), "f": called, "nf": view.named(entity, called)}
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
             "[Number of|Count the] {rs} [of|for|from] {e}" + _MARK),
            **words,
        )  # fmt: skip
    return Question("how many", text, str(count)) if count <= 40 else None


def _which(view: _View) -> Question | None:
    """The entity with the highest or lowest last value, the one that spoke last, or the only one
    that said something."""
    source, rng = view.source, view.rng
    if not source.named or len(source.history.of) < 2:
        return None
    words = {"n": view.entity_word(), "r": view.record_word()}
    if rng.random() < 0.35:
        text = view.say(
            (
                "Which {n} [was updated|reported|came|appeared|was mentioned|spoke] last?",
                "[Which|What] {n} is the [last|latest|most recent] {r} [about|from|of]?",
                "[Which|What] {n}'s {r} [came in|arrived|was read|was written] last?",
                "[From|About] [which|what] {n} is the " + _LAST + " {r}?",
                "[Name|Give|What is] the {n} [in|of] the [last|latest] {r}" + _MARK,
                "[Who|Which {n}] [was|is] [last|the last one]?",
            ),
            **words,
        )
        return Question("which one", text, source.history.records[-1].entity)
    if "code" in source.words.labels or "message" in source.words.labels:
        field = rng.choice([one for one in source.words.labels if one != "level"])
        value = _shown(rng.choice(source.history.records), field)
        who = {one.entity for one in source.history.records if _shown(one, field) == value}
        if len(who) > 1:
            return None
        text = view.say(
            (
                'Which {n} [logged|wrote|reported|said|had] ["{v}"|{v}]?',
                '[Who|Which {n}] [did|does] ["{v}"|{v}] [come from|belong to]?',
            ),
            **words,
            v=value,
        )
        return Question("which one", text, who.pop())
    found = view.number_field()
    if found is None:
        return _which_key(view, words)
    field, called = found
    high = rng.random() < 0.5
    lasts = sorted((_number(of[-1], field), name) for name, of in source.history.of.items())
    scales = {source.decimals(name, field) for name in source.history.of}
    if len(scales) > 1:
        return None
    if rng.random() < 0.3:
        return _which_of_two(view, field, called, high)
    best, second = (lasts[-1], lasts[-2]) if high else (lasts[0], lasts[1])
    if best[0] == second[0]:
        return None
    text = view.say(
        (
            "Which {n} [has|had] the " + (_HIGH if high else _LOW) + " [last|latest|current|] {f}"
            + _NOW + "?",
            "[Which|What] {n} is [highest|most expensive|at the top] by [last|latest] {f}?"
            if high
            else "[Which|What] {n} is [lowest|cheapest|at the bottom] by [last|latest] {f}?",
            "[By last {f}|Now|At the end], which {n} is the " + ("highest?" if high else "lowest?"),
        ),
        **words,
        f=called,
    )  # fmt: skip
    return Question("which one", text, best[1])


def _which_of_two(view: _View, field: str, called: str, high: bool) -> Question | None:
    """Of two entities, by their last values."""
    pair = view.rng.sample(list(view.source.history.of), 2)
    first, second = (_number(view.source.history.of[one][-1], field) for one in pair)
    if first == second:
        return None
    how = "[higher|greater]" if high else "[lower|smaller]"
    text = view.say(
        (
            "Which [has|had] the " + how + " [last |latest |]{f}, {a} or {b}?",
            "{a} or {b}: which [has|had] the " + how + " [last |latest |]{f}?",
            "Whose {f} is " + how + ", {a} or {b}?",
        ),
        f=called,
        a=pair[0],
        b=pair[1],
    )
    answer = pair[0] if (first > second) == high else pair[1]
    return Question("which one", text, answer, (pair[0], pair[1]))


def _which_key(view: _View, words: Mapping[str, str]) -> Question | None:
    """The key that has a value which no other one has."""
    source = view.source
    field = next(iter(source.words.labels))
    lasts = {name: _shown(of[-1], field) for name, of in source.history.of.items()}
    name = view.rng.choice(list(lasts))
    if list(lasts.values()).count(lasts[name]) > 1:
        return None
    text = view.say(
        (
            "Which {n} [has|is at|is] [the {f} |]{v}[ now|]?",
            "[What|Which {n}] is {v} [now|the {f} of]?",
        ),
        **words,
        f=view.rng.choice(source.words.labels[field]),
        v=lasts[name],
    )  # fmt: skip
    return Question("which one", text, name)


def _happened(view: _View) -> Question | None:
    """Whether any record so far shows it."""
    source, rng = view.source, view.rng
    entity = view.entity()
    records = source.history.of[entity]
    words = {"e": entity, "n": view.entity_word(), "rs": view.records_word()}
    found = view.number_field()
    if found is not None and rng.random() < 0.6:
        field, called = found
        numbers = [_number(one, field) for one in records]
        above = rng.random() < 0.5
        edge = max(numbers) if above else min(numbers)
        width = max(1, (max(numbers) - min(numbers)) // 3, abs(edge) // 200)
        limit = edge + round(rng.gauss(0, 1) * width)
        if limit == edge:
            return None
        words |= {
            "nf": view.named(entity, called),
            "x": _plain(limit, source.decimals(entity, field)),
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
        shown = {_shown(one, field) for one in records}
        other = [_shown(one, field) for one in source.history.records[-200:]]
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
            words["e"] = _stranger(view)
        text = view.say(
            (
                "[Are|Were] there [any|] {rs} [of|from|for|about] {e}?",
                "[Did|Has] {e} [appear|appeared|show up|come up] [at all|so far|yet]?",
                "Is {e} [mentioned|in the stream|one of those here]?",
            ),
            **words,
        )
    return Question(
        "did it happen", text + _yes_or_no(view), "yes" if answer else "no", ("yes", "no")
    )


def _changed(view: _View) -> Question | None:
    """The key of the last record; what a key was changed to or from."""
    source = view.source
    if source.kind != "facts" or not view.alone:
        return None
    last = source.history.records[-1]
    words = {"n": view.entity_word(), "e": last.entity}
    text = view.say(
        (
            "[What|Which {n}|Which one] [changed|was changed|was updated|was set] "
            "[last|most recently]?",
            "[What|Which {n}] did the "
            + _LAST
            + " [update|change|entry|line] [touch|concern|set]?",
            "[What|Which {n}] is the [last|latest|most recent] [change|update] about?",
            "[Name|Give] the {n} that [changed|was updated] last" + _MARK,
            "[What|Which {n}] [was touched|got a new value|got an update] last?",
            "The [last|latest|newest] [change|update|entry|line] [concerns|is about] [what|which "
            "{n}]?",
        ),
        **words,
    )
    return Question("what changed", text, last.entity)


def _updated(view: _View) -> Question | None:
    """A key's latest value, mostly of one that was set several times."""
    source = view.source
    if not isinstance(source, Facts):
        return None
    often = [name for name, of in source.history.of.items() if len(of) > 1]
    entity = view.rng.choice(often) if often and view.rng.random() < 0.75 else view.entity()
    field = source.fact.field
    text = view.say(
        (
            *source.fact.ask,
            *source.fact.ask,
            _WHAT + " the [current |latest |last |new |newest |]{f} [of|for] {e}" + _NOW + _MARK,
            "[To|At|On] what is {e} [set|put]" + _NOW + "?",
            "{e}: [which|what] {f}" + _NOW + "?",
            "[Which|What] was the last {f} [given|written] for {e}?",
            _WHAT + " {e}'s [current |latest |]{f}" + _NOW + _MARK,
            "[What|Which] {f} does {e} have[ now|]?",
            "{e} {f}?",
            "[What|Which {f}] is [recorded|on record|stored|noted|given|listed] for {e}"
            + _NOW
            + "?",
            "[As of|After] the [last|latest] update, what is {e}?",
        ),
        e=entity,
        f=view.rng.choice(source.fact.words),
    )
    return Question("updated key", text, _shown(source.history.of[entity][-1], field))


def _stranger(view: _View) -> str:
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


def _unknown(view: _View) -> Question | None:
    """Who never spoke, a time that never came, a field that nothing has."""
    source, rng = view.source, view.rng
    kind = rng.random()
    if kind < 0.5 and source.named:
        stranger = _stranger(view)
        if isinstance(source, Facts):
            text = view.say(
                (*source.fact.ask, _WHAT + " the {f} of {e}" + _MARK),
                e=stranger,
                f=rng.choice(source.fact.words),
            )
            return Question("unknown", text, UNKNOWN)
        with_verb = _asked_with_verb(view, stranger, view.say(_LATELY, r=view.record_word()))
        if with_verb is not None:
            return Question("unknown", with_verb[1], UNKNOWN)
        _, called = view.any_field()
        k = str(rng.choice((3, 5, 10, 20)))
        text = view.say(
            (
                _WHAT + " the " + _LAST + " {f} of {e}" + _MARK,
                _WHAT + " {e}'s " + _LAST + " {f}" + _MARK,
                _WHAT + " the [previous|highest|lowest] {f} [of|for] {e}" + _MARK,
                _WHAT + " the [highest|lowest] {f} [of|for] {e} over the last {k} {rs}" + _MARK,
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
        time_words = _time_words(view, time)
        with_verb = _asked_with_verb(view, entity, time_words["at"])
        if with_verb is not None:
            return Question("unknown", with_verb[1], UNKNOWN)
        text = view.say(
            (_WHAT + " {nf} {at}" + _MARK, "{At}, what was {nf}?"),
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
        (_WHAT + " the " + _LAST + " {f}{of}" + _MARK, _WHAT + " {nf}" + _MARK),
        f=field,
        of=view.of(entity),
        nf=view.named(entity, field),
    )
    return Question("unknown", text, UNKNOWN)


_ABSENT: Mapping[str, tuple[str, ...]] = {
    "bars": ("volume", "dividend", "market cap", "spread", "bid", "ask", "open interest", "yield"),
    "ticks": ("size", "volume", "bid", "ask", "spread", "opening price", "dividend", "exchange"),
    "sensors": ("temperature", "pressure", "humidity", "voltage", "speed", "battery", "color"),
    "logs": ("code", "user id", "thread", "latency", "host", "region", "trace id"),
    "facts": ("price", "weight", "color", "phone number", "birthday", "size"),
}
_Family = Callable[[_View], Question | None]
_FAMILIES: Sequence[tuple[_Family, float]] = (
    (_last, 2.5),
    (_at_time, 4),
    (_previous, 2),
    (_extreme_last, 3),
    (_extreme_all, 1.8),
    (_direction, 3.5),
    (_bullish, 5),
    (_threshold, 3),
    (_how_many, 0.8),
    (_which, 2.5),
    (_happened, 1),
    (_changed, 2),
    (_updated, 6),
    (_unknown, 1.3),
)
_MAKERS, _WEIGHTS = zip(*_FAMILIES, strict=True)


def ask(rng: random.Random, source: Source, *, alone: bool) -> Question:
    """A question about what a source has said, which must be something.

    Args:
        rng: chooses it.
        source: whose history it is about.
        alone: whether nobody else speaks in the stream, so that names may be left out.
    """
    view = _View(source=source, rng=rng, alone=alone)
    while True:
        question = rng.choices(_MAKERS, _WEIGHTS)[0](view)
        if question is not None and _fits(question):
            return _dressed(rng, question, source.entities)


def _fits(question: Question) -> bool:
    return len(question.text) < 240 and len(question.answer) < 60


def _dressed(rng: random.Random, question: Question, entities: list[str]) -> Question:
    """As people type: polite, in small letters, with a request for a short answer."""
    text, draw = question.text, rng.random()
    if not text.startswith(tuple(entities)):  # a name stays as it is written
        text = (text[0].lower() if draw < 0.06 else text[0].upper()) + text[1:]
    if draw < 0.04:
        pass
    elif draw < 0.08:
        text = "Please: " + text
    elif draw < 0.11:
        text += rng.choice(
            (" Answer briefly.", " Be brief.", " Just the answer.", " Short answer.")
        )
    elif draw < 0.13:
        text = text.rstrip("?.")
    return Question(question.family, text, question.answer, question.choices)
