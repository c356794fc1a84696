"""What is said between the entries and means nothing to any question.

Comes in: a random number generator. Goes out: lines. Does not know: sources.
"""

from __future__ import annotations

import random

from jaxstate.training.data.names import person, word
from jaxstate.training.data.phrases import say_one

_LINES = (
    "[good morning|hello|hi] [everyone|all|team|{p}][!|]",
    "{p}: [any news|can you take a look|on it|thanks|thank you|ok|will do|see you later|lunch?]",
    "[--- quiet|no updates|nothing to report|all quiet|---|...]",
    "heartbeat[ ok| received|]",
    "ping",
    "[note|reminder|info]: [check the {w}|the {w} is closed today|meeting about {w} tomorrow]",
    "# {w} {v}",
    "[the|our] {w} [looks fine|needs paint|is by the {v}]",
    "{p} [says|said|thinks] [the {w} is nice|it will rain|{v} is a good name]",
    "[weather|traffic|news]: {w} and {v}",
    "[break|pause|end of session|start of session|market opens|market closes|shift change]",
)


def chatter(rng: random.Random) -> str:
    """One line."""
    return say_one(rng, _LINES, {"p": person(rng), "w": word(rng), "v": word(rng)})


_INSTRUCTIONS = (
    "You [are watching|see|read|monitor] [a|the] [stream|feed|log] of [{w} data|events|updates|"
    "market data|prices|sensor readings|messages][.|:]",
    "[Answer|Reply] [from the data only|briefly|with one word or number][.|]",
    "The following lines are [a feed|updates|data|records][, oldest first|][.|:]",
    "[Context|System]: you are [an assistant|a monitor|an analyst] for {w} {v}.",
    "[Live|Today's] [{w} |][feed|data|prices|log][:|]",
)


def instruction(rng: random.Random) -> str:
    """What sessions are opened with."""
    return say_one(rng, _INSTRUCTIONS, {"w": word(rng), "v": word(rng)})
