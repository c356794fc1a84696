"""Answers of flash questions that are news, sent to where their client wants them.

Comes in: answers, on the engine's thread for callbacks. Goes out: POST requests with JSON, signed
with the client's secret, tried again with growing pauses; to hosts that the operator named, and no
other. Does not know: sessions, conditions.

    X-Jaxstate-Signature: t=<Unix seconds>,v1=<HMAC-SHA256 of "<t>.<body>" in hexadecimal>

What waits is bounded: a receiver that is away for long loses the oldest. No redirect is followed.
A webhook lives as long as the server: after a restart its question is registered once more, in the
same words, and has its webhook again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import msgspec

import jaxstate
from jaxstate.serve import wire
from jaxstate.serve.errors import ApiError

_log = logging.getLogger("jaxstate.serve")
_WAITING = 1000
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_SEND_S = 10.0


@dataclass(frozen=True, slots=True)
class _Notice:
    url: str
    secret: str | None
    body: bytes


def signature(secret: str, body: bytes, at_s: int) -> str:
    """The header of a signed request."""
    digest = hmac.new(secret.encode(), b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


class Webhooks:
    """Sends notices, one receiver's in order.

    Args:
        hosts: that may be sent to: `example.com`, or `example.com:8443`.
        pauses_s: between the attempts to send one.
    """

    def __init__(self, hosts: tuple[str, ...], pauses_s: tuple[float, ...] = _PAUSES_S) -> None:
        self._hosts = frozenset(hosts)
        self._pauses_s = pauses_s
        self._queues: dict[str, asyncio.Queue[_Notice]] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._client = httpx.AsyncClient(timeout=_SEND_S, follow_redirects=False)

    def sender(
        self, session: str, query: str, spec: wire.WebhookSpec | None
    ) -> Callable[[jaxstate.Answer], None] | None:
        """What is called with each answer that is news; None where no webhook is wanted.

        Raises:
            ApiError: the address may not be sent to.
        """
        if spec is None:
            return None
        host = self._checked(spec.url)
        loop = asyncio.get_running_loop()

        def on_fire(answer: jaxstate.Answer) -> None:
            body = msgspec.json.encode(
                {
                    "session_id": session,
                    "query": query,
                    "value": answer.text,
                    "data_version": answer.version,
                    "confidence": wire.finite(answer.confidence),
                    "probability": answer.probability,
                }
            )
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._put, host, _Notice(spec.url, spec.secret, body))

        return on_fire

    def _checked(self, url: str) -> str:
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL:
            parts = httpx.URL("")
        host = parts.netloc.decode("ascii").lower()
        if parts.scheme not in ("http", "https") or parts.userinfo or host not in self._hosts:
            allowed = ", ".join(sorted(self._hosts)) or "none (see --webhook-host)"
            raise ApiError(403, f"webhook.url may name http(s) hosts of these: {allowed}")
        return host

    def _put(self, host: str, notice: _Notice) -> None:
        if host not in self._queues:
            self._queues[host] = asyncio.Queue(_WAITING)
            self._workers.append(asyncio.ensure_future(self._work(self._queues[host])))
        queue = self._queues[host]
        if queue.full():
            queue.get_nowait()
            _log.error("a notice to %s was dropped: %d wait", host, _WAITING)
        queue.put_nowait(notice)

    async def _work(self, queue: asyncio.Queue[_Notice]) -> None:
        while True:
            notice = await queue.get()
            for pause_s in self._pauses_s:
                if await self._sent(notice):
                    break
                await asyncio.sleep(pause_s)
            else:
                if not await self._sent(notice):
                    _log.error("a notice was given up after %d attempts", len(self._pauses_s) + 1)

    async def _sent(self, notice: _Notice) -> bool:
        headers = {"content-type": "application/json"}
        if notice.secret is not None:
            signed = signature(notice.secret, notice.body, int(time.time()))
            headers["x-jaxstate-signature"] = signed
        try:
            response = await self._client.post(notice.url, content=notice.body, headers=headers)
        except httpx.HTTPError as error:
            _log.warning("a notice could not be sent: %s", error)
            return False
        if response.status_code >= 500 or response.status_code in (408, 429):
            _log.warning("a notice was not taken: status %d", response.status_code)
            return False
        return True

    async def close(self) -> None:
        """What waits is not sent any more."""
        for one in self._workers:
            one.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._client.aclose()
