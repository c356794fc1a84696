"""Anthropic's dialect: messages, and counting their tokens.

Comes in: calls. Goes out: responses and streams as the client `anthropic` reads them. Does not
know: what a conversation is in tokens.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from msgspec import Meta
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import jaxstate
from jaxstate.serve.calls import Call, event_stream, frame, replied
from jaxstate.serve.dialects import (
    Chat,
    Content,
    Seed,
    Temperature,
    TextPart,
    TopP,
    Turn,
    merged,
    prompt_tokens,
    text_of,
    turn_of,
)
from jaxstate.serve.errors import ApiError
from jaxstate.serve.wire import Anything, Count, Request

_USAGE = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)


class InputMessage(Request, kw_only=True):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | list[TextPart]


class Thinking(Request, kw_only=True):
    """Thinking is off."""

    type: Literal["disabled"]


class OutputConfig(Request, kw_only=True):
    """Of the answer; the least effort is what there is."""

    effort: Literal["low"] | None = None


class Counted(Request, kw_only=True):
    """What shapes a prompt."""

    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    model: str = ""
    system: Content = None
    tools: list[Anything] | None = None
    tool_choice: dict[str, Anything] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Anything] | None = None


class CountTokens(Counted, kw_only=True):
    """A prompt whose tokens are counted; what else a request has is not read."""

    max_tokens: Count | None = None


class MessageCreate(Counted, kw_only=True):
    """A conversation to be answered. `choices` lets only these answers through."""

    max_tokens: Count
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    ignore_eos: Literal[False] = False
    stop_sequences: list[Annotated[str, Meta(min_length=1, max_length=64)]] | None = None
    stream: bool = False
    metadata: dict[str, Anything] | None = None
    service_tier: str | None = None
    choices: Annotated[list[str], Meta(min_length=1)] | None = None


def _messages(wanted: Counted) -> list[jaxstate.Message]:
    if wanted.tools:
        raise ApiError(400, "tools are not supported: leave them out")
    turns = [("system", text_of(wanted.system))]
    return merged([*turns, *((one.role, text_of(one.content)) for one in wanted.messages)])


async def messages(call: Call) -> Response:
    """Answers a conversation."""
    wanted = await call.body(MessageCreate)
    chat = Chat(
        messages=_messages(wanted),
        max_tokens=wanted.max_tokens,
        choices=wanted.choices,
        stop=wanted.stop_sequences,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        seed=wanted.seed,
    )
    turn = turn_of(call, chat)
    if wanted.stream:
        return event_stream(_events(turn, turn.stream(), wanted), "anthropic")
    answer = await turn.answer()
    text = [{"type": "text", "text": answer.text}] if answer.text else []
    ended = _ended(answer, wanted)
    return replied({**_message(turn, text, _usage(answer)), **ended})


def _message(turn: Turn, content: list[dict[str, str]], usage: dict[str, int]) -> dict[str, object]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": turn.call.service.model.name,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _ended(answer: jaxstate.Answer, wanted: MessageCreate) -> dict[str, object]:
    """Why: the model's own end, the client's stop sequence, or its `max_tokens`."""
    if answer.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if answer.stopped_by in (wanted.stop_sequences or ()):
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stopped_by}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _usage(answer: jaxstate.Answer) -> dict[str, int]:
    cached = answer.usage.cached_tokens
    return {
        "input_tokens": prompt_tokens(answer) - cached,
        "output_tokens": answer.usage.answer_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


async def _events(
    turn: Turn, stream: jaxstate.AsyncAnswerStream, wanted: MessageCreate
) -> AsyncIterator[bytes]:
    """A conversation's answer as it grows."""
    nothing = {name: 0 for name in _USAGE}
    async with stream:
        yield _event("message_start", message=_message(turn, [], nothing))
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        with turn.under_way():
            async for piece in stream:
                delta = {"type": "text_delta", "text": piece}
                yield _event("content_block_delta", index=0, delta=delta)
    if stream.answer is None:
        raise ClientDisconnect
    yield _event("content_block_stop", index=0)
    ended = _ended(stream.answer, wanted)
    yield _event("message_delta", delta=ended, usage=_usage(stream.answer))
    yield _event("message_stop")


def _event(kind: str, **data: object) -> bytes:
    return frame({"type": kind, **data}, kind)


async def count_tokens(call: Call) -> Response:
    """The tokens of a conversation as it would be read."""
    wanted = await call.body(CountTokens)
    return replied({"input_tokens": call.service.engine.engine.count_tokens(_messages(wanted))})
