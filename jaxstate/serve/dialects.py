"""What the two chat dialects have in common: messages, and whom they are asked of.

Comes in: messages as a client wrote them, and the header that names a session. Goes out: answers
and streams of the engine. Does not know: how either dialect writes a response.

Without a session a conversation is read anew, but for what earlier ones of the tenant share. With
one, it is asked of what the session has read, which does not keep it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

import jaxstate
from jaxstate.serve.calls import Call
from jaxstate.serve.service import ServedModel, ServedSession
from jaxstate.serve.wire import Anything, Request

SESSION_HEADER = "x-layerscale-session-id"
Temperature = Annotated[float, Meta(ge=0, le=100)]
TopP = Annotated[float, Meta(gt=0, le=1)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]


class TextPart(Request, tag_field="type", tag="text"):
    """A piece of a message's text."""

    text: str
    cache_control: dict[str, Anything] | None = None


Content = str | list[TextPart] | None


def text_of(content: Content) -> str:
    """The text of a message."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What a client of either dialect wants.

    Attributes:
        messages: in order, the last the user's.
        max_tokens: as it said; None for as many as there can be.
        choices: the only answers allowed.
        stop: strings that end the answer, beside the template's own.
        temperature, top_p, seed: None where it said nothing: nothing is drawn then.
    """

    messages: Sequence[jaxstate.Message]
    max_tokens: int | None = None
    choices: Sequence[str] | None = None
    stop: Sequence[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def options(self, model: ServedModel, most: int) -> dict[str, object]:
        """As the engine has them; an answer is never longer than `most`, and says so
        (`finish_reason`)."""
        tokens = min(self.max_tokens or most, most)
        given = {
            "max_tokens": None if self.choices else tokens,
            "choices": self.choices,
            "stop": model.with_own(self.stop),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        return {name: value for name, value in given.items() if value is not None}


def merged(turns: Sequence[tuple[str, str]]) -> list[jaxstate.Message]:
    """Messages as the engine takes them: system messages first and in one, and those of one side
    that follow each other in one.

    Args:
        turns: (role, text), in order.
    """
    system = "\n\n".join(text for role, text in turns if role == "system" and text)
    sides: list[tuple[str, list[str]]] = []
    for role, text in turns:
        if role == "system":
            continue
        if sides and sides[-1][0] == role:
            sides[-1][1].append(text)
        else:
            sides.append((role, [text]))
    messages: list[jaxstate.Message] = []
    if system:
        messages.append({"role": "system", "content": system})
    for role, texts in sides:
        side: Literal["user", "assistant"] = "user" if role == "user" else "assistant"
        messages.append({"role": side, "content": "\n\n".join(texts)})
    return messages


@dataclass(frozen=True, slots=True)
class Turn:
    """A conversation on its way to an answer.

    Attributes:
        call: its request.
        chat: what is wanted.
        session: whom it is asked of; None for nobody's data.
    """

    call: Call
    chat: Chat
    session: ServedSession | None

    async def answer(self) -> jaxstate.Answer:
        """The whole answer.

        Raises:
            JaxstateError: as `Session.ask` and `Engine.chat`.
            ClientDisconnect: nobody waits for it any more.
        """
        service, messages = self.call.service, self.chat.messages
        timeout, options = service.settings.ask_s, self._options()
        if self.session is None:
            tenant = self.call.tenant.name
            asking = service.engine.chat(messages, tenant=tenant, timeout=timeout, **options)  # pyright: ignore
        else:
            asking = self.session.session.ask(messages, timeout=timeout, **options)  # pyright: ignore
        with self.under_way():
            return await self.call.unless_gone(asking)

    def stream(self) -> jaxstate.AsyncAnswerStream:
        """The answer as it grows; what cannot be asked is refused at once.

        Raises:
            JaxstateError: as `Session.stream` and `Engine.stream_chat`.
        """
        service, messages = self.call.service, self.chat.messages
        timeout, options = service.settings.ask_s, self._options()
        if self.session is not None:
            stream = self.session.session.stream(messages, timeout=timeout, **options)  # pyright: ignore
            self.session.streams.add(stream)
            return stream
        tenant = self.call.tenant.name
        return service.engine.stream_chat(messages, tenant=tenant, timeout=timeout, **options)  # pyright: ignore

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """While it is being answered."""
        if self.session is None:
            yield
            return
        with self.session.turn():
            yield

    def _options(self) -> dict[str, object]:
        """Of what a tail holds, the question takes its part first."""
        model = self.call.service.model
        if self.session is None:
            return self.chat.options(model, model.answer_tokens)
        asked = self.session.session.check(self.chat.messages, max_tokens=1)
        return self.chat.options(model, model.tail_cells - asked + 1)


def turn_of(call: Call, chat: Chat) -> Turn:
    """A conversation, asked of the session that the header names, if it names one.

    Raises:
        ApiError: there is no such session.
    """
    name = call.request.headers.get(SESSION_HEADER)
    session = None if name is None else call.service.find(call.tenant, name)
    return Turn(call, chat, session)


def prompt_tokens(answer: jaxstate.Answer) -> int:
    """Of what an answer was computed from."""
    return answer.usage.context_tokens + answer.usage.question_tokens


def logprob(value: float) -> float:
    """A log-probability as JSON has it."""
    return max(value, -9999.0) if math.isfinite(value) else -9999.0
