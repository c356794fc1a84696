"""The unmodified client `layerscale` against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import layerscale
import pytest
from layerscale.types import GenerationDone, GenerationTextChunk

from tests.serve.servers import Server


@pytest.fixture
def client(server: Server) -> Iterator[layerscale.LayerScale]:
    with layerscale.LayerScale(base_url=server.url) as one:
        yield one
        for session in one.sessions.list().data:
            one.sessions.delete(session.id)


def test_health_models_metrics(client: layerscale.LayerScale) -> None:
    health = client.health.check()
    assert health.ok and health.body is not None and health.body.status == "ok"
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.max_model_len == 2048
    assert client.models.retrieve("TINY").id == "tiny"
    with pytest.raises(layerscale.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    assert "jaxstate_entries_pushed_total" in client.metrics.get()


def test_a_sessions_life(client: layerscale.LayerScale) -> None:
    session = client.sessions.create(id="feed", window=256)
    assert (session.id, session.window, session.data_version) == ("feed", 256, 0)
    with pytest.raises(layerscale.ConflictError, match="open already"):
        client.sessions.create(id="feed")
    ours = client.sessions.create()
    assert [one.id for one in client.sessions.list().data] == ["feed", ours.id]
    with pytest.raises(layerscale.NotFoundError):
        client.sessions.get("nobody")
    with pytest.raises(layerscale.BadRequestError):
        client.sessions.create(id="no such/name")
    assert client.sessions.delete("feed").deleted
    with pytest.raises(layerscale.NotFoundError):
        client.sessions.get("feed")


def test_push_waits_until_it_is_read(client: layerscale.LayerScale) -> None:
    client.sessions.create(id="feed")
    ack = client.sessions.push("feed", ["one", "two"], wait=True)
    assert (ack.pushed, ack.dropped, ack.total_pushed, ack.data_version) == (2, 0, 2, 0)
    ack = client.sessions.push("feed", "three", wait=True)
    assert (ack.pushed, ack.total_pushed, ack.data_version) == (1, 3, 2)
    session = client.sessions.get("feed")
    assert (session.data_version, session.pending) == (3, 0)
    assert session.tokens == session.kv_tokens == session.data_end > 0
    with pytest.raises(layerscale.BadRequestError):
        client.sessions.push("feed", [])


def test_generate_and_its_stream_say_the_same(client: layerscale.LayerScale) -> None:
    client.sessions.create(id="feed")
    client.sessions.push("feed", "one", wait=True)
    how = {"prompt": "What?", "max_tokens": 12, "temperature": 1.0, "seed": 7, "stop": ["\x00"]}
    whole = client.sessions.generate("feed", **how)  # pyright: ignore
    *pieces, done = client.sessions.generate_stream("feed", **how)  # pyright: ignore
    assert isinstance(done, GenerationDone)
    assert all(isinstance(one, GenerationTextChunk) for one in pieces)
    assert "".join(one.text for one in pieces) == whole.text  # pyright: ignore
    assert (done.finish_reason, done.data_version) == (whole.finish_reason, 1)
    assert done.usage == whole.usage
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == client.sessions.get("feed").tokens
    with pytest.raises(layerscale.BadRequestError, match="ignore_eos"):
        client.sessions.generate("feed", prompt="What?", ignore_eos=True)
    with pytest.raises(layerscale.BadRequestError) as long:
        client.sessions.generate("feed", prompt="x" * 300)
    assert long.value.context_overflow


def test_flash_queries(client: layerscale.LayerScale) -> None:
    client.sessions.create(id="feed")
    client.sessions.push("feed", "one", wait=True)
    query = client.sessions.flash("feed", "What?", max_tokens=4)
    assert (query.id, query.query, query.max_tokens) == (1, "What?", 4)
    with pytest.raises(layerscale.ConflictError, match="registered already"):
        client.sessions.flash("feed", "What?", max_tokens=4)
    for event in client.sessions.events("feed"):
        if event.type == "flash_ready":
            break
    (listed,) = client.sessions.list_flash("feed").data
    assert listed.fresh and listed.data_version == 1 and listed.value is not None
    assert listed.confidence is not None and listed.evaluated_at is not None
    hit = client.sessions.generate("feed", prompt="What?")
    assert (hit.flash, hit.flash_id, hit.text) == (True, 1, listed.value)
    assert hit.usage.prompt_tokens == 0 and hit.usage.total_tokens is None
    assert client.sessions.flash("feed", "Long?", max_tokens=9999).max_tokens == 256 - 24 + 1
    assert client.sessions.unflash("feed", 1).remaining == 1
    with pytest.raises(layerscale.NotFoundError):
        client.sessions.unflash("feed", 1)


def test_a_fast_answer(client: layerscale.LayerScale) -> None:
    client.sessions.create(id="feed")
    client.sessions.push("feed", "one", wait=True)
    how = {"prompt": "Up?", "fast_answer": ["yes", "no"], "max_tokens": 4}
    quick = client.sessions.generate("feed", **how, gap_threshold=0.0)  # pyright: ignore
    assert quick.speculative and quick.text in ("yes", "no") and quick.logit_gap is not None
    slow = client.sessions.generate("feed", **how, gap_threshold=1e6)  # pyright: ignore
    assert slow.speculative is None


def test_events_and_the_socket(client: layerscale.LayerScale) -> None:
    client.sessions.create(id="feed")
    client.sessions.flash("feed", "What?", max_tokens=4)
    kinds: list[str] = []
    with client.sessions.ws("feed") as socket:
        socket.push(["one", "two"])
        socket.ping()
        for event in socket:
            kinds.append(event.type)
            if event.type == "flash_ready" and event.data.data_version == 2:
                break
    assert kinds[0] == "connected"
    assert kinds.index("push_ack") < kinds.index("data_updated")
    assert "pong" in kinds
    first = next(iter(client.sessions.events("feed")))
    assert first.type == "connected" and first.flash_queries == 1
    with pytest.raises(layerscale.NotFoundError), client.sessions.ws("nobody"):
        pass


def test_warm_and_chats_of_a_session(client: layerscale.LayerScale) -> None:
    client.sessions.create(id="feed")
    client.sessions.push("feed", "one", wait=True)
    talk = [{"role": "user", "content": "What?"}]
    warm = client.sessions.warm("feed", messages=talk)  # pyright: ignore
    assert warm.finish_reason == "covered" and warm.cached_tokens > 0
    asked = client.sessions.generate("feed", prompt="What?", max_tokens=4)
    chat = client.chat.create(messages=talk, session_id="feed", max_tokens=4)  # pyright: ignore
    assert chat.choices[0].message.content == asked.text
    message = client.messages.create(messages=talk, session_id="feed", max_tokens=4)  # pyright: ignore
    assert "".join(block.text for block in message.content) == asked.text  # pyright: ignore
    chunks = [*client.chat.stream(messages=talk, session_id="feed", max_tokens=4)]  # pyright: ignore
    pieces = [one.choices[0].delta.content or "" for one in chunks]
    assert "".join(pieces) == asked.text
    events = [*client.messages.stream(messages=talk, session_id="feed", max_tokens=4)]  # pyright: ignore
    assert [one.type for one in events][-1] == "message_stop"
    with pytest.raises(layerscale.NotFoundError):
        client.chat.create(messages=talk, session_id="nobody")  # pyright: ignore


def test_the_client_in_asyncio(server: Server) -> None:
    async def talk() -> None:
        async with layerscale.AsyncLayerScale(base_url=server.url) as client:
            await client.sessions.create(id="feed")
            await client.sessions.push("feed", "one", wait=True)
            answer = await client.sessions.generate("feed", prompt="What?", max_tokens=4)
            chunks = [
                one
                async for one in await client.sessions.generate_stream(
                    "feed", prompt="What?", max_tokens=4
                )
            ]
            assert "".join(one.text for one in chunks[:-1]) == answer.text  # pyright: ignore
            async with client.sessions.ws("feed") as socket:
                await socket.push("two")
                async for event in socket:
                    if event.type == "data_updated":
                        break
            await client.sessions.delete("feed")

    asyncio.run(talk())
