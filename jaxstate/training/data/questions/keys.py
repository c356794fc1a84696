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
    words = {"n": view.entity_word(), "f": view.rng.choice(source.words.labels[source.fields[0]])}
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
            "[Who or what|What|Which {n}] [comes|came|is named|appears|stands] in the "
            + LAST
            + " [entry|line|update|message]?",
            "[For|Of|About] [what|which {n}] [did we hear|was there news|is the newest information]"
            " last?",
            "[What|Which {n}] has [just|most recently|last] [been changed|been updated|been set|"
            "changed]?",
            WHAT + " the {n} [of|in|behind] the " + LAST + " [change|update|entry]" + MARK,
            "[What|Which {n}] was the [last|latest|most recent] [one|{n}] to [change|be updated|be "
            "set|get a new {f}]?",
            "[Whose|Which {n}'s] {f} [changed|was updated|was set] [last|most recently]?",
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
    of_often = view.subject in often or not often or view.rng.random() < 0.3
    entity = view.subject if of_often else view.rng.choice(often)
    field = source.fact.field
    text = view.say(
        source.fact.ask
        if view.rng.random() < 0.5
        else (
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
            "[For|About|As for|Regarding|Concerning|With] {e}[, |: ][what is|what's|give|tell me|"
            "which is] [its|the] [current |latest |last |new |]{f}" + NOW + MARK,
            "{e}[, |: | - ][latest|current|last|newest] {f}?",
            WHAT
            + " the {f} [that {e} has|that {e} got last|{e} has|belonging to {e}]"
            + NOW
            + MARK,
            "[Where do things stand with|What do we know of|What is known about|What about|How "
            "about|"
            "What became of|Any news on] {e}[ now|]?",
            "[Look up|Check|Find|Read|Get|Tell me] {e}" + MARK,
            "[After|With] all [updates|changes][ so far|], [what is|which is] the {f} [of|for] "
            "{e}?",
            "[According to|In|From] the [last|latest|newest] [entry|update|line|news] "
            "[on|about|for]"
            " {e}, what is [its|the] {f}?",
            "{e}'s {f}[ now| at present| today|]?",
            "[Which|What kind of] {f} [has {e}|does {e} have|is given for {e}][ now|]?",
        ),
        e=entity,
        f=view.rng.choice(source.fact.words),
    )
    return Question("updated key", text, shown_value(source.history.of[entity][-1], field))
