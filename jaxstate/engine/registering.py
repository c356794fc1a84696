"""What registering a flash question takes: its settings, checked, before anything is noted.

Comes in: a question with its settings, as a caller or a journal has them. Goes out: a `Registered`,
or an error; and the settings as a journal keeps them. Does not know: sessions, threads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TypeAlias

from jaxstate.engine.asking import GREEDY, Asker, Settings, checked_settings
from jaxstate.engine.conditions import (
    Changed,
    Condition,
    ConfidenceAbove,
    Crosses,
    Equals,
    Watch,
)
from jaxstate.engine.flash import Registered
from jaxstate.engine.values import Answer
from jaxstate.errors import InvalidInput
from jaxstate.records import shown

OnFire: TypeAlias = Callable[[Answer], None]


def new_registered(
    asker: Asker,
    question: str,
    settings: Settings,
    *,
    when: Condition | None,
    on_fire: OnFire | None,
    min_interval_s: float,
    deadline_s: float | None,
    staleness_s: float | None = None,
) -> Registered:
    """A question to be registered, with its settings; the other arguments as for `Session.flash`.

    Raises:
        InvalidInput, PromptTooLong: it cannot be asked, or its condition can never hold.
    """
    watch = Watch(when)
    if on_fire is not None and not callable(on_fire):
        raise InvalidInput(f"on_fire={shown(on_fire)} must be a function of an answer, or None")
    asked = asker.ask(question, settings)
    if isinstance(when, Equals) and asked.choices and when.choice not in asked.choices:
        raise InvalidInput(f"when={when!r} can never hold: the choices are {asked.choices}")
    return Registered(
        asked=asked,
        watch=watch,
        on_fire=on_fire,
        min_interval_s=_checked_seconds("min_interval_s", min_interval_s),
        deadline_s=None if deadline_s is None else _checked_seconds("deadline_s", deadline_s),
        staleness_s=None if staleness_s is None else _checked_seconds("staleness_s", staleness_s),
    )


_CONDITIONS: dict[str, type[Condition]] = {
    kind.__name__: kind for kind in (Changed, ConfidenceAbove, Crosses, Equals)
}


def flash_json(one: Registered) -> str:
    """A registered question as a journal keeps it; its callback cannot be kept."""
    asked, when = one.asked, one.watch.condition
    condition = None if when is None else [type(when).__name__, dataclasses.asdict(when)]
    return json.dumps(
        {
            "question": asked.question,
            "max_tokens": asked.max_tokens,
            "choices": asked.choices,
            "stop": asked.stop,
            "when": condition,
            "min_interval_s": one.min_interval_s,
            "deadline_s": one.deadline_s,
            "staleness_s": one.staleness_s,
        }
    )


def registered_of(asker: Asker, kept: str) -> Registered:
    """The question again, without its callback.

    Raises:
        InvalidInput, PromptTooLong: it cannot be asked of this model.
    """
    given = json.loads(kept)
    when, choices = given.pop("when"), given.pop("choices")
    max_tokens, stop = given.pop("max_tokens"), given.pop("stop")
    settings = checked_settings(
        # Beside choices they are what goes without saying, and bind nothing.
        max_tokens=max_tokens if choices is None else None,
        choices=choices,
        stop=stop if choices is None else None,
        sampling=GREEDY,
    )
    condition = None if when is None else _CONDITIONS[when[0]](**when[1])
    return new_registered(
        asker, given.pop("question"), settings, when=condition, on_fire=None, **given
    )


def _checked_seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InvalidInput(f"{name}={value!r} must be seconds, 0 or more")
    return float(value)
