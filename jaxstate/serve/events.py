"""What happens in a session, for those who watch it over HTTP or a WebSocket.

Comes in: a session, and what its flash queries have answered already. Goes out: named events, in
order, and a sign of life after some silence. Does not know: how they are sent.

A watcher that does not read in time is cut off by the engine, which costs it bounded memory; it
connects again, and is told what stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

from msgspec import UNSET

import jaxstate
from jaxstate.serve import wire
from jaxstate.serve.service import ServedSession, Service

FlashMode = Literal["changed", "always"]
Named = tuple[str, object]


def flash_number(flash_id: str) -> int:
    """A flash query's name, as clients know it: "q3" is 3."""
    return int(flash_id.removeprefix("q"))


async def watched(
    service: Service, served: ServedSession, mode: FlashMode
) -> AsyncIterator[Named | None]:
    """Events of a session: `connected`, the answers that are there, then what happens; None after
    some silence. Ends when the session or the server does, or the watcher was too slow."""
    subscription = service.watch(served, mode)
    heartbeat_s = service.settings.heartbeat_s
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    subscription.on_event(lambda: loop.call_soon_threadsafe(news.set))
    try:
        while not subscription.ended:
            news.clear()
            if (event := subscription.poll()) is not None:
                for named in _named(served, event):
                    yield named
                continue
            try:
                await asyncio.wait_for(news.wait(), heartbeat_s)
            except TimeoutError:
                yield None
    finally:
        service.unwatch(subscription)


def _named(served: ServedSession, event: jaxstate.Event) -> list[Named]:
    match event:
        case jaxstate.Connected():
            return _standing(served, event)
        case jaxstate.DataUpdated(version=version, pending=pending):
            tokens = served.session.info().tokens
            data = wire.DataUpdatedData(data_version=version, tokens=tokens, pending=pending)
            return [("data_updated", data)]
        case jaxstate.FlashReady(id=flash_id, question=question, answer=answer):
            return [("flash_ready", _answered(flash_id, question, answer))]
        case jaxstate.Moved() | jaxstate.WindowMoved() | jaxstate.Closed():
            return [(event.event, event.as_dict())]


def _standing(served: ServedSession, event: jaxstate.Connected) -> list[Named]:
    """The first event, and the answers that are there."""
    queries = served.session.flashes()
    connected = wire.ConnectedData(
        session_id=served.name, data_version=max(event.version, 0), flash_queries=len(queries)
    )
    replay: list[Named] = [
        ("flash_ready", _answered(one.id, one.question, answer))
        for one in queries
        if (answer := one.answer) is not None
    ]
    return [("connected", connected), *replay]


def _answered(flash_id: str, question: str, answer: jaxstate.Answer) -> wire.FlashReadyData:
    return wire.FlashReadyData(
        id=flash_number(flash_id),
        query=question,
        value=answer.text,
        data_version=answer.version,
        confidence=wire.finite(answer.confidence),
        probability=UNSET if answer.probability is None else answer.probability,
    )
