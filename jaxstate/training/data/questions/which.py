"""Questions for an entity: the one that came last, said something, is highest."""

from __future__ import annotations

from collections.abc import Mapping

from jaxstate.training.data.questions.extremes import HIGH, LOW
from jaxstate.training.data.questions.view import LAST, MARK, NOW, View, number_of, shown_value
from jaxstate.training.data.records import Question


def which(view: View) -> Question | None:
    """The entity that spoke last, the only one that said something, or has some value."""
    source, rng = view.source, view.rng
    if not source.named or len(source.history.of) < 2:
        return None
    words = {"n": view.entity_word(), "r": view.record_word()}
    if source.words.fields or rng.random() < 0.35:
        text = view.say(
            (
                "Which {n} [was updated|reported|came|appeared|was mentioned|spoke] last?",
                "[Which|What] {n} is the [last|latest|most recent] {r} [about|from|of]?",
                "[Which|What] {n}'s {r} [reached us|arrived|was read|was written] last?",
                "[From|About] [which|what] {n} is the " + LAST + " {r}?",
                "[Name|Give|What is] the {n} [in|of] the [last|latest] {r}" + MARK,
                "[Who|Which {n}] [was|is] [last|the last one]?",
                "[Which|What] {n} [does|did] the " + LAST + " {r} [belong to|come from|concern|"
                "name|mention|show]?",
                "The " + LAST + " {r} [is|was] [of|about|from] [which|what] {n}?",
                "[Which|What] {n} [did we hear from|sent something|had a {r}|was seen] [last|most "
                "recently]?",
                "[Whose|Which {n}'s] {r} is the " + LAST + "?",
            ),
            **words,
        )
        return Question("which one", text, source.history.records[-1].entity)
    if "code" in source.words.labels or "message" in source.words.labels:
        field = rng.choice([one for one in source.words.labels if one != "level"])
        value = shown_value(rng.choice(source.history.records), field)
        who = {one.entity for one in source.history.records if shown_value(one, field) == value}
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
    return _which_key(view, words)


def compare(view: View) -> Question | None:
    """The entity with the highest or lowest last value, of all or of two."""
    source, rng = view.source, view.rng
    found = view.number_field()
    if not source.named or len(source.history.of) < 2 or found is None:
        return None
    field, called = found
    words = {"n": view.entity_word(), "r": view.record_word()}
    high = rng.random() < 0.5
    lasts = sorted((number_of(of[-1], field), name) for name, of in source.history.of.items())
    scales = {source.decimals(name, field) for name in source.history.of}
    if len(scales) > 1:
        return None
    if rng.random() < 0.4:
        return _which_of_two(view, field, called, high)
    best, second = (lasts[-1], lasts[-2]) if high else (lasts[0], lasts[1])
    if best[0] == second[0]:
        return None
    text = view.say(
        (
            "Which {n} [has|had] the " + (HIGH if high else LOW) + " [last|latest|current|] {f}"
            + NOW + "?",
            "[Which|What] {n} is [highest|most expensive|at the top] by [last|latest] {f}?"
            if high
            else "[Which|What] {n} is [lowest|cheapest|at the bottom] by [last|latest] {f}?",
            "[By last {f}|Now|At the end], which {n} is the " + ("highest?" if high else "lowest?"),
            "[Comparing|Going by|Judging by] [the|] last {fs}, which {n} is [on top|the highest|"
            "ahead|first]?"
            if high
            else "[Comparing|Going by|Judging by] [the|] last {fs}, which {n} is [at the "
            "bottom|the "
            "lowest|behind|last]?",
            "[Of all {ns}|Among the {ns}], [whose|which one's] [last |latest |]{f} is the "
            + (HIGH if high else LOW) + "?",
            "[Name|Give|Find|Tell me] the {n} with the " + (HIGH if high else LOW)
            + " [last|latest|current] {f}" + MARK,
            "[Whose|Which {n}'s] [last |latest |current |]{f} is " + (HIGH if high else LOW) + "?",
            "[Which|What] {n} [leads|tops the list|ranks first] by [last|current|latest] {f}?"
            if high
            else "[Which|What] {n} [trails|ends the list|ranks last] by [last|current|latest] {f}?",
        ),
        **words,
        f=called,
        fs=called + ("es" if called.endswith("s") else "s"),
        ns=words["n"] + ("es" if words["n"].endswith(("s", "x")) else "s"),
    )  # fmt: skip
    return Question("which one", text, best[1], tuple(sorted(source.history.of)))


def _which_of_two(view: View, field: str, called: str, high: bool) -> Question | None:
    """Of two entities, by their last values."""
    pair = view.rng.sample(list(view.source.history.of), 2)
    first, second = (number_of(view.source.history.of[one][-1], field) for one in pair)
    if first == second:
        return None
    how = "[higher|greater]" if high else "[lower|smaller]"
    text = view.say(
        (
            "Which [has|had] the " + how + " [last |latest |]{f}, {a} or {b}?",
            "{a} or {b}: which [has|had] the " + how + " [last |latest |]{f}?",
            "Whose {f} is " + how + ", {a} or {b}?",
            "[Between|Of] {a} and {b}, which [has|shows] the " + how + " [last |latest |]{f}?",
            "[Compare|Take] {a} and {b}: [which|which one] is " + how + " [by|in] {f}?",
        ),
        f=called,
        a=pair[0],
        b=pair[1],
    )
    answer = pair[0] if (first > second) == high else pair[1]
    return Question("which one", text, answer, (pair[0], pair[1]))


def _which_key(view: View, words: Mapping[str, str]) -> Question | None:
    """The key that has a value which no other one has."""
    source = view.source
    field = next(iter(source.words.labels))
    lasts = {name: shown_value(of[-1], field) for name, of in source.history.of.items()}
    name = view.rng.choice(list(lasts))
    if list(lasts.values()).count(lasts[name]) > 1:
        return None
    text = view.say(
        (
            "Which {n} [has|is at|is] [the {f} |]{v}[ now|]?",
            "[What|Which {n}] is {v} [now|the {f} of]?",
            "{v} is the {f} of [which {n}|what]?",
            "[Find|Name|Give] the {n} [with|that has] [{f} |]{v}" + MARK,
        ),
        **words,
        f=view.rng.choice(source.words.labels[field]),
        v=lasts[name],
    )  # fmt: skip
    return Question("which one", text, name)
