"""OpenAI's dialect: chat completions, completions, models.

Comes in: calls. Goes out: responses and streams as the client `openai` reads them. A parameter that
cannot be honoured is refused by its name; those that say the usual are taken. Does not know: what a
conversation is in tokens.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Meta
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import jaxstate
from jaxstate.serve.calls import DONE, Call, event_stream, frame, replied
from jaxstate.serve.dialects import (
    Chat,
    Content,
    Seed,
    Temperature,
    TopP,
    Turn,
    logprob,
    merged,
    prompt_tokens,
    text_of,
    turn_of,
)
from jaxstate.serve.errors import ApiError
from jaxstate.serve.service import ServedModel
from jaxstate.serve.wire import Anything, Count, Request, TemplateOptions

_FEW = Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=4)]
Stop = _FEW | Annotated[str, Meta(min_length=1, max_length=64)] | None


class ChatMessage(Request, kw_only=True):
    """One message. Names are not written by templates, and calls of tools not made."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Anything] | None = None


class StreamOptions(Request, kw_only=True):
    """Of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Request, kw_only=True):
    """A schema whose values are few: a list of texts (`enum`), or one (`const`)."""

    schema: dict[str, Anything]
    name: str = ""
    description: str = ""
    strict: bool | None = None


class ResponseFormat(Request, kw_only=True):
    """Text, or one of the values of a schema."""

    type: Literal["text", "json_schema", "json_object"]
    json_schema: JsonSchema | None = None


class Sampled(Request, kw_only=True):
    """What both kinds of completions take. Those of the second part change nothing, and are taken
    where they say so; `choices` (or a `response_format`) lets only these answers through."""

    model: str = ""
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    choices: Annotated[list[str], Meta(min_length=1)] | None = None
    ignore_eos: Literal[False] = False

    n: Literal[1] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Anything] | None = None
    store: bool | None = None
    service_tier: str | None = None

    def check(self) -> None:
        """Refuses what would change the answer, and cannot.

        Raises:
            ApiError: which parameter.
        """
        for name in ("frequency_penalty", "presence_penalty"):
            if getattr(self, name):
                raise ApiError(400, f"{name} is not supported: leave it out, or give 0")
        if self.logit_bias:
            raise ApiError(400, "logit_bias is not supported: leave it out")

    @property
    def stops(self) -> list[str] | None:
        """Strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatCompletionCreate(Sampled, kw_only=True):
    """A conversation to be answered."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Anything] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low"] | None = None
    include_reasoning: bool = True
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    chat_template_kwargs: TemplateOptions | None = None


class CompletionCreate(Sampled, kw_only=True):
    """A text to be gone on with: what the model is asked, as it is asked questions."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    logprobs: None = None


def _choices(wanted: ChatCompletionCreate) -> list[str] | None:
    """The only answers that a schema lets through."""
    form = wanted.response_format
    if form is None or form.type == "text":
        return wanted.choices
    if wanted.choices is not None:
        raise ApiError(400, "choices and response_format: give one of them")
    values = None
    if form.type == "json_schema" and form.json_schema is not None:
        schema = form.json_schema.schema
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is None and schema.get("type") == "boolean":
            values = [True, False]
    if not isinstance(values, list) or not values:
        raise ApiError(
            400,
            "response_format takes a JSON schema whose values are few: enum, const, or the type "
            "boolean; they are scored as whole answers. Other schemas are not supported",
        )
    return [json.dumps(value, ensure_ascii=False) for value in values]


def _chat(wanted: ChatCompletionCreate) -> Chat:
    wanted.check()
    if wanted.tools:
        raise ApiError(400, "tools are not supported: leave them out")
    roles = {"developer": "system"}
    turns = [(roles.get(one.role, one.role), text_of(one.content)) for one in wanted.messages]
    choices = _choices(wanted)
    drawn = choices is None
    return Chat(
        messages=merged(turns),
        max_tokens=wanted.max_completion_tokens or wanted.max_tokens,
        choices=choices,
        stop=wanted.stops if drawn else None,
        temperature=wanted.temperature if drawn else None,
        top_p=wanted.top_p if drawn else None,
        seed=wanted.seed if drawn else None,
    )


async def chat_completions(call: Call) -> Response:
    """Answers a conversation."""
    wanted = await call.body(ChatCompletionCreate)
    turn = turn_of(call, _chat(wanted))
    written = _Written(call.service.model.name, "chatcmpl", "chat.completion")
    if wanted.stream:
        with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        stream = turn.stream()
        return event_stream(_chat_chunks(written, turn, stream, wanted, with_usage), "openai")
    answer = await turn.answer()
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(call, answer) if wanted.logprobs else None,
        "finish_reason": answer.finish_reason,
    }
    return replied(written.whole(choice, answer))


async def completions(call: Call) -> Response:
    """Answers a text."""
    wanted = await call.body(CompletionCreate)
    wanted.check()
    prompt = wanted.prompt if isinstance(wanted.prompt, str) else wanted.prompt[0]
    chat = Chat(
        messages=merged([("user", prompt)]),
        max_tokens=wanted.max_tokens or 16,
        choices=wanted.choices,
        stop=wanted.stops,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        seed=wanted.seed,
    )
    turn, written = (
        turn_of(call, chat),
        _Written(call.service.model.name, "cmpl", "text_completion"),
    )
    if wanted.stream:
        with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        return event_stream(_text_chunks(written, turn, turn.stream(), with_usage), "openai")
    answer = await turn.answer()
    choice = {
        "index": 0,
        "text": answer.text,
        "logprobs": None,
        "finish_reason": answer.finish_reason,
    }
    return replied(written.whole(choice, answer))


class _Written:
    """What every part of one response has."""

    def __init__(self, model: str, prefix: str, kind: str) -> None:
        self._kind = kind
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choice: dict[str, object], answer: jaxstate.Answer) -> dict[str, object]:
        """A response."""
        head = {**self._head, "object": self._kind}
        return {**head, "choices": [choice], "usage": _usage(answer), **_extras(answer)}

    def chunk(self, choice: dict[str, object] | None, with_usage: bool) -> dict[str, object]:
        """A piece of one; usage is null until the last, if it is wanted."""
        kind = f"{self._kind}.chunk" if self._kind == "chat.completion" else self._kind
        usage: dict[str, object] = {"usage": None} if with_usage else {}
        return {**self._head, "object": kind, "choices": [choice] if choice else [], **usage}


def _extras(answer: jaxstate.Answer) -> dict[str, object]:
    """What we say beyond: which version of a session an answer saw, and whence it came."""
    return {"data_version": answer.version, "source": answer.source}


def _usage(answer: jaxstate.Answer) -> dict[str, object]:
    prompt, said = prompt_tokens(answer), answer.usage.answer_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": answer.usage.cached_tokens},
    }


def _logprobs(call: Call, answer: jaxstate.Answer) -> dict[str, object]:
    decode = call.service.model.tokenizer.token_bytes
    logprobs = answer.token_logprobs or ()
    content: list[dict[str, object]] = []
    for token, value in zip(answer.token_ids, logprobs, strict=False):
        data = decode(token)
        content.append(
            {
                "token": data.decode("utf-8", "replace"),
                "logprob": logprob(value),
                "bytes": list(data),
                "top_logprobs": [],
            }
        )
    return {"content": content, "refusal": None}


async def _chat_chunks(
    written: _Written,
    turn: Turn,
    stream: jaxstate.AsyncAnswerStream,
    wanted: ChatCompletionCreate,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    def choice(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

    async with stream:
        yield frame(written.chunk(choice({"role": "assistant", "content": ""}), with_usage))
        with turn.under_way():
            async for piece in stream:
                yield frame(written.chunk(choice({"content": piece}), with_usage))
    answer = _ended(stream)
    last = choice({}, answer.finish_reason)
    if wanted.logprobs:
        last["logprobs"] = _logprobs(turn.call, answer)
    yield frame({**written.chunk(last, with_usage), **_extras(answer)})
    async for one in _closing(written, answer, with_usage):
        yield one


async def _text_chunks(
    written: _Written, turn: Turn, stream: jaxstate.AsyncAnswerStream, with_usage: bool
) -> AsyncIterator[bytes]:
    def choice(text: str, finish: str | None = None) -> dict[str, object]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    async with stream:
        with turn.under_way():
            async for piece in stream:
                yield frame(written.chunk(choice(piece), with_usage))
    answer = _ended(stream)
    yield frame({**written.chunk(choice("", answer.finish_reason), with_usage), **_extras(answer)})
    async for one in _closing(written, answer, with_usage):
        yield one


async def _closing(
    written: _Written, answer: jaxstate.Answer, with_usage: bool
) -> AsyncIterator[bytes]:
    if with_usage:
        yield frame({**written.chunk(None, True), "usage": _usage(answer)})
    yield DONE


def _ended(stream: jaxstate.AsyncAnswerStream) -> jaxstate.Answer:
    if stream.answer is None:
        raise ClientDisconnect
    return stream.answer


# --- models ---


def _described(model: ServedModel) -> dict[str, object]:
    """The one model, in both dialects' shapes at once."""
    at = datetime.fromtimestamp(int(model.created_s), UTC)
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_s),
        "owned_by": "jaxstate",
        "max_model_len": model.max_tokens,
        "type": "model",
        "display_name": model.name,
        "created_at": at.isoformat().replace("+00:00", "Z"),
        "max_input_tokens": model.max_tokens - 1,
        "max_tokens": model.max_tokens - 1,
        "max_output_tokens": model.answer_tokens,
        "lifecycle": "active",
        "capabilities": None,
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
    }


async def models(call: Call) -> Response:
    """The model that is served."""
    described = _described(call.service.model)
    name = call.service.model.name
    return replied(
        {
            "object": "list",
            "data": [described],
            "has_more": False,
            "first_id": name,
            "last_id": name,
        }
    )


async def model(call: Call) -> Response:
    """The same by its name."""
    name, served = str(call.request.path_params["name"]), call.service.model
    if name.lower() != served.name.lower():
        raise ApiError(404, f"no model {name[:80]!r} is served, but {served.name!r}")
    return replied(_described(served))
