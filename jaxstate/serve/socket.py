"""A session's WebSocket: pushes in, events out.

Comes in: messages of a client. Goes out: what became of each push, before anything that it caused,
and what happens in the session. Does not know: how a socket was let in.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from jaxstate.serve import wire
from jaxstate.serve.calls import as_refusal, decoded
from jaxstate.serve.errors import ApiError
from jaxstate.serve.events import watched
from jaxstate.serve.pushing import pushed
from jaxstate.serve.service import ServedSession, Service

_NORMAL, _GOING_AWAY = 1000, 1001


class SessionSocket:
    """One client's socket to one session.

    Args:
        service: the server's.
        served: the session.
        socket: accepted already.
    """

    def __init__(self, service: Service, served: ServedSession, socket: WebSocket) -> None:
        self._service = service
        self._served = served
        self._socket = socket
        # So that what became of a push is said before what it caused.
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Until either side has enough."""
        listening = asyncio.ensure_future(self._listen())
        telling = asyncio.ensure_future(self._tell())
        try:
            await asyncio.wait((listening, telling), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (listening, telling):
                one.cancel()
            await asyncio.gather(listening, telling, return_exceptions=True)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
                await self._socket.close(_GOING_AWAY if self._service.stopping else _NORMAL)

    async def _tell(self) -> None:
        async for one in watched(self._service, self._served, "changed"):
            if one is None:
                continue  # the protocol's own pings say that it is alive
            async with self._turn:
                await self._send(*one)

    async def _listen(self) -> None:
        while True:
            try:
                raw = await self._receive()
            except (WebSocketDisconnect, RuntimeError):
                return
            try:
                message = decoded(raw, wire.SocketMessage)
                if message.type == "close":
                    return
                if message.type == "ping":
                    await self._send("pong", {})
                else:
                    await self._push(message)
            except WebSocketDisconnect:
                return
            except Exception as error:
                refusal = as_refusal(error)
                await self._send("error", {"message": refusal.message, "code": refusal.status})

    async def _receive(self) -> bytes:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", _NORMAL))
        text = message.get("text")
        return (message.get("bytes") or b"") if text is None else text.encode("utf-8")

    async def _push(self, message: wire.SocketMessage) -> None:
        if message.data is None:
            raise ApiError(400, "a push needs data: a text, or a list of texts")
        entries = [message.data] if isinstance(message.data, str) else message.data
        async with self._turn:
            reply = await pushed(
                self._served,
                entries,
                client=message.client,
                client_seq=message.client_seq,
                timeout_s=self._service.settings.push_s,
            )
            await self._send("push_ack", reply)

    async def _send(self, kind: str, data: object) -> None:
        body = msgspec.json.encode({"type": kind, "data": data})
        await self._socket.send_text(body.decode())
