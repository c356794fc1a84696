"""The unmodified clients `openai` and `anthropic` against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from tests.serve.servers import Server

TALK = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?"},
]
SESSION = {"x-layerscale-session-id": "feed"}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as one:
        yield one


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0) as one:
        yield one


def test_a_chat_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    how = {"model": "-", "messages": TALK, "max_tokens": 12, "temperature": 1.0, "seed": 3}
    whole = client.chat.completions.create(**how, logprobs=True)  # pyright: ignore
    (choice,) = whole.choices
    assert whole.model == "tiny" and choice.message.role == "assistant"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    chunks = [
        *client.chat.completions.create(
            **how,  # pyright: ignore
            stream=True,
            stream_options={"include_usage": True},
        )
    ]
    pieces = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    assert "".join(pieces) == choice.message.content
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    usage = chunks[-1].usage
    assert usage is not None and not chunks[-1].choices
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0  # which the first has read


def test_content_in_parts_and_roles_in_a_row(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "two"}, {"type": "text", "text": "?"}]
    talks = [
        [{"role": "user", "content": "two?"}],
        [{"role": "user", "content": parts}],
        [{"role": "system", "content": ""}, {"role": "user", "content": "two?"}],
    ]
    said = {
        client.chat.completions.create(model="-", messages=talk, max_tokens=8)  # pyright: ignore
        .choices[0]
        .message.content
        for talk in talks
    }
    assert len(said) == 1


def test_one_of_few_values(client: openai.OpenAI) -> None:
    def said(schema: dict[str, object]) -> str:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        reply = client.chat.completions.create(
            model="-",
            messages=TALK,  # pyright: ignore
            response_format=form,  # pyright: ignore
        )
        return reply.choices[0].message.content or ""

    assert json.loads(said({"enum": ["up", "down"]})) in ("up", "down")
    assert json.loads(said({"type": "boolean"})) in (True, False)
    assert json.loads(said({"const": 3})) == 3
    assert json.loads(said({"type": "boolean", "const": False})) is False
    with pytest.raises(openai.BadRequestError, match="schema whose values are few"):
        said({"type": "object"})
    plain = client.chat.completions.create(
        model="-",
        messages=TALK,  # pyright: ignore
        extra_body={"choices": ["up", "down"]},
    )
    assert plain.choices[0].message.content in ("up", "down")


def test_completions_and_models(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="-", prompt="two?", max_tokens=8)
    chunks = [*client.completions.create(model="-", prompt="two?", max_tokens=8, stream=True)]
    assert "".join(one.choices[0].text for one in chunks) == whole.choices[0].text
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_an_answer_is_never_longer_than_there_is_room(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="-",
        messages=TALK,  # pyright: ignore
        max_tokens=100_000,
        temperature=5.0,
        seed=1,
        stop=["\x00\x00\x00\x00"],
    )
    most = client.models.retrieve("tiny").max_output_tokens  # pyright: ignore
    assert reply.usage is not None and reply.usage.completion_tokens <= most
    assert reply.choices[0].finish_reason == (
        "length" if reply.usage.completion_tokens == most else "stop"
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"logit_bias": {"1": 2}}, "logit_bias is not supported"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 5, "logprobs": True}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"session_id": "feed"}}, "session_id"),
        ({"extra_body": {"choices": ["a"], "response_format": {"type": "json_object"}}}, "one of"),
        ({"messages": [*TALK, {"role": "assistant", "content": "x"}]}, "must end with"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "characters|cells|position"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: openai.OpenAI, more: dict[str, object], says: str
) -> None:
    how = {"model": "-", "messages": TALK, **more}
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(**how)  # pyright: ignore
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(**how, stream=True)  # pyright: ignore


def test_what_changes_nothing_is_taken(client: openai.OpenAI) -> None:
    usual = client.chat.completions.create(model="-", messages=TALK, max_tokens=4)  # pyright: ignore
    more = client.chat.completions.create(
        model="-",
        messages=TALK,  # pyright: ignore
        max_completion_tokens=4,
        n=1,
        user="me",
        store=False,
        presence_penalty=0,
        reasoning_effort="low",
        metadata={"a": "b"},
        tools=[],
        parallel_tool_calls=False,
    )
    assert more.choices[0].message.content == usual.choices[0].message.content


def test_a_chat_of_a_session(client: openai.OpenAI, http: httpx.Client) -> None:
    http.post("/v1/sessions", json={"id": "feed"})
    http.post("/v1/sessions/feed/push", json={"data": "one"})
    http.get("/v1/sessions/feed/wait")
    http.post("/v1/sessions/feed/flash", json={"query": "two?", "max_tokens": 8})
    with http.stream("GET", "/v1/sessions/feed/events") as events:
        for line in events.iter_lines():
            if line == "event: flash_ready":
                break
    alone = client.chat.completions.create(
        model="-",
        messages=TALK[-1:],  # pyright: ignore
        max_tokens=8,
        extra_headers=SESSION,
    )
    assert alone.source == "flash" and alone.data_version == 1  # pyright: ignore
    more = client.chat.completions.create(
        model="-",
        messages=TALK,  # pyright: ignore
        max_tokens=4,
        extra_headers=SESSION,
    )
    assert more.source == "computed"  # pyright: ignore
    tokens = http.get("/v1/sessions/feed").json()["tokens"]
    assert more.usage.prompt_tokens_details.cached_tokens == tokens  # pyright: ignore


def test_messages_and_their_stream_say_the_same(claude: anthropic.Anthropic) -> None:
    how = {"model": "-", "max_tokens": 12, "system": "Be brief"}
    talk, body = TALK[1:], {"seed": 3, "temperature": 1.0}
    whole = claude.messages.create(**how, messages=talk, extra_body=body)  # pyright: ignore
    text = "".join(block.text for block in whole.content)
    with claude.messages.stream(**how, messages=talk, extra_body=body) as stream:  # pyright: ignore
        assert "".join(stream.text_stream) == text
        final = stream.get_final_message()
    assert final.stop_reason == whole.stop_reason
    prompt = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == prompt
    counted = claude.messages.count_tokens(model="-", system="Be brief", messages=talk)  # pyright: ignore
    assert counted.input_tokens == prompt


def test_a_stop_sequence_is_named_and_an_answer_may_be_empty(claude: anthropic.Anthropic) -> None:
    talk = [{"role": "user", "content": "two?"}]
    every = [chr(code) for code in range(32, 127)]
    stopped = claude.messages.create(
        model="-",
        max_tokens=200,
        messages=talk,  # pyright: ignore
        stop_sequences=every,
        extra_body={"temperature": 1.0, "seed": 5},
    )
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence in every
    empty = [*talk, {"role": "assistant", "content": []}, *talk]
    again = claude.messages.create(model="-", max_tokens=4, messages=empty)  # pyright: ignore
    assert again.stop_reason in ("max_tokens", "end_turn")


def test_errors_in_anthropics_words(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        claude.messages.create(
            model="-", max_tokens=4, messages=[{"role": "user", "content": "x" * 5000}]
        )
    with pytest.raises(anthropic.BadRequestError, match="top_k"):
        claude.messages.create(
            model="-",
            max_tokens=4,
            messages=[{"role": "user", "content": "x"}],
            extra_body={"top_k": 3},
        )
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(
            model="-",
            max_tokens=4,
            messages=[{"role": "user", "content": "x"}],
            extra_headers=SESSION,
        )
