"""What registering a flash question takes: its settings, checked, before anything is noted.

Comes in: a question with its settings. Goes out: a `Registered`, or an error. Does not know:
sessions, threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxstate.engine.asking import GREEDY, Asker, checked_settings
from jaxstate.engine.conditions import Condition, Equals, Watch
from jaxstate.engine.flash import Registered
from jaxstate.engine.values import Answer
from jaxstate.errors import InvalidInput

OnFire: TypeAlias = Callable[[Answer], None]


def new_registered(
    asker: Asker,
    question: str,
    *,
    max_tokens: int | None,
    choices: Sequence[str] | None,
    stop: Sequence[str] | None,
    when: Condition | None,
    on_fire: OnFire | None,
    min_interval_s: float,
    deadline_s: float | None,
) -> Registered:
    """A question to be registered; arguments as for `Session.flash`.

    Raises:
        InvalidInput, PromptTooLong: it cannot be asked, or its condition can never hold.
    """
    settings = checked_settings(max_tokens=max_tokens, choices=choices, stop=stop, sampling=GREEDY)
    asked = asker.ask(question, settings)
    if isinstance(when, Equals) and asked.choices and when.choice not in asked.choices:
        raise InvalidInput(f"when={when!r} can never hold: the choices are {asked.choices}")
    return Registered(
        asked=asked,
        watch=Watch(when),
        on_fire=on_fire,
        min_interval_s=_checked_seconds("min_interval_s", min_interval_s),
        deadline_s=None if deadline_s is None else _checked_seconds("deadline_s", deadline_s),
    )


def _checked_seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InvalidInput(f"{name}={value!r} must be seconds, 0 or more")
    return float(value)
