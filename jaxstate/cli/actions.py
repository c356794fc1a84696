"""What `jaxstate stream` does when the answer of a flash question is news.

Comes in: `--when`, `--exec`, `--webhook`. Goes out: a condition, and what the engine calls on its
thread for callbacks: a command gets the answer as JSON on standard input, a receiver as the body of
a POST. Does not know: sessions, engines.

What fails is told, and ends nothing: the stream goes on.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from jaxstate.cli.show import Show
from jaxstate.engine.flash.conditions import Changed, Condition, ConfidenceAbove, Crosses, Equals
from jaxstate.engine.types.values import Answer
from jaxstate.errors import InvalidInput

# A command, or a receiver, that takes longer holds up those behind it.
_MOST_S = 60.0

Act = Callable[[str, Answer], None]


def condition_of(given: str | None) -> Condition | None:
    """`--when`, as given.

    Raises:
        InvalidInput: it is none of those that there are.
    """
    if given is None:
        return None
    name, _, value = given.partition("=")
    if given == "changed":
        return Changed()
    if name == "equals" and value:
        return Equals(value)
    try:
        if name == "confidence":
            return ConfidenceAbove(float(value))
        if name in ("crosses", "rises-above", "falls-below"):
            direction = {"rises-above": "up", "falls-below": "down"}.get(name, "either")
            return Crosses(float(value), direction)  # pyright: ignore[reportArgumentType]
    except ValueError:
        pass
    raise InvalidInput(
        f"--when {given!r} is none of: changed, equals=TEXT, crosses=NUMBER, rises-above=NUMBER, "
        "falls-below=NUMBER, confidence=NUMBER"
    )


def checked_choices(given: str | None) -> tuple[str, ...] | None:
    """`--choices`, as given.

    Raises:
        InvalidInput: there are fewer than two, or one twice.
    """
    if given is None:
        return None
    choices = tuple(one.strip() for one in given.split(","))
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise InvalidInput(f"--choices {given!r} must be two answers or more, such as yes,no")
    return choices


def action_of(show: Show, command: str | None, webhook: str | None) -> Act | None:
    """What is done with an answer that is news; None for nothing.

    Args:
        show: where failures are told.
        command: for the shell.
        webhook: an address, `http://…`.

    Raises:
        InvalidInput: the address is none, or the package that sends to it is missing.
    """
    acts: list[Act] = []
    if command is not None:
        acts.append(lambda question, answer: _run(show, command, question, answer))
    if webhook is not None:
        acts.append(_sender(show, webhook))
    if not acts:
        return None

    def act(question: str, answer: Answer) -> None:
        for one in acts:
            one(question, answer)

    return act


def _said(question: str, answer: Answer) -> str:
    return json.dumps({"question": question, **answer.as_dict()}, ensure_ascii=False)


def _run(show: Show, command: str, question: str, answer: Answer) -> None:
    try:
        done = subprocess.run(
            command, shell=True, input=_said(question, answer), text=True, timeout=_MOST_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        show.error(f"--exec: {error}")
        return
    if done.returncode:
        show.error(f"--exec: {command} ended with {done.returncode}")


def _sender(show: Show, url: str) -> Act:
    from jaxstate.cli.extras import needs_extra

    with needs_extra("serve"):
        import httpx
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"--webhook {url!r} must begin with http:// or https://")

    def send(question: str, answer: Answer) -> None:
        try:
            httpx.post(
                url,
                content=_said(question, answer),
                headers={"content-type": "application/json"},
                timeout=_MOST_S,
            ).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            show.error(f"--webhook: {error}")

    return send
