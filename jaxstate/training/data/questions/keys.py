"""Questions about keys that are updated: the latest value, and what changed."""

from __future__ import annotations

from jaxstate.training.data.facts import Facts
from jaxstate.training.data.questions.view import LAST, MARK, NOW, WHAT, View, shown_value
from jaxstate.training.data.records import Question


def changed(view: View) -> Question | None:
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
            "[What|Which {n}] did the " + LAST + " [update|change|entry|line] [touch|concern|set]?",
            "[What|Which {n}] is the [last|latest|most recent] [change|update] about?",
            "[Name|Give] the {n} that [changed|was updated] last" + MARK,
            "[What|Which {n}] [was touched|got a new value|got an update] last?",
            "The [last|latest|newest] [change|update|entry|line] [concerns|is about] [what|which "
            "{n}]?",
        ),
        **words,
    )
    return Question("what changed", text, last.entity)


def updated(view: View) -> Question | None:
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
            WHAT + " the [current |latest |last |new |newest |]{f} [of|for] {e}" + NOW + MARK,
            "[To|At|On] what is {e} [set|put]" + NOW + "?",
            "{e}: [which|what] {f}" + NOW + "?",
            "[Which|What] was the last {f} [given|written] for {e}?",
            WHAT + " {e}'s [current |latest |]{f}" + NOW + MARK,
            "[What|Which] {f} does {e} have[ now|]?",
            "{e} {f}?",
            "[What|Which {f}] is [recorded|on record|stored|noted|given|listed] for {e}"
            + NOW
            + "?",
            "[As of|After] the [last|latest] update, what is {e}?",
        ),
        e=entity,
        f=view.rng.choice(source.fact.words),
    )
    return Question("updated key", text, shown_value(source.history.of[entity][-1], field))
