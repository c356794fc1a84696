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
from collections import deque
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
    """Sends notices: those of one tenant to one address in order, and none behind another's.

    Args:
        hosts: that may be sent to: `example.com`, or `example.com:8443`.
        pauses_s: between the attempts to send one.
    """

    def __init__(self, hosts: tuple[str, ...], pauses_s: tuple[float, ...] = _PAUSES_S) -> None:
        self._hosts = frozenset(one.lower() for one in hosts)
        self._pauses_s = pauses_s
        self._waiting: dict[tuple[str, str], deque[_Notice]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._client = httpx.AsyncClient(timeout=_SEND_S, follow_redirects=False)

    def sender(
        self, tenant: str, session: str, query: str, spec: wire.WebhookSpec | None
    ) -> Callable[[jaxstate.Answer], None] | None:
        """What is called with each answer that is news; None where no webhook is wanted.

        Raises:
            ApiError: the address may not be sent to.
        """
        if spec is None:
            return None
        self._check(spec.url)
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
            notice = _Notice(spec.url, spec.secret, body)
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._put, (tenant, spec.url), notice)

        return on_fire

    def _check(self, url: str) -> None:
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL:
            parts = httpx.URL("")
        host = parts.netloc.decode("ascii").lower()
        if parts.scheme not in ("http", "https") or parts.userinfo or host not in self._hosts:
            allowed = ", ".join(sorted(self._hosts)) or "none (see --webhook-host)"
            raise ApiError(403, f"webhook.url may name http(s) hosts of these: {allowed}")

    def _put(self, whose: tuple[str, str], notice: _Notice) -> None:
        waiting = self._waiting.get(whose)
        if waiting is None:
            waiting = self._waiting[whose] = deque(maxlen=_WAITING)
            worker = asyncio.ensure_future(self._work(whose, waiting))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        if len(waiting) == _WAITING:
            _log.error("a notice was dropped: %d wait for the same receiver", _WAITING)
        waiting.append(notice)

    async def _work(self, whose: tuple[str, str], waiting: deque[_Notice]) -> None:
        """Sends what waits, and ends."""
        try:
            while waiting:
                await self._send(waiting.popleft())
        finally:
            self._waiting.pop(whose, None)

    async def _send(self, notice: _Notice) -> None:
        for pause_s in self._pauses_s:
            if await self._sent(notice):
                return
            await asyncio.sleep(pause_s)
        if not await self._sent(notice):
            _log.error("a notice was given up after %d attempts", len(self._pauses_s) + 1)

    async def _sent(self, notice: _Notice) -> bool:
        headers = {"content-type": "application/json"}
        if notice.secret is not None:
            signed = signature(notice.secret, notice.body, int(time.time()))
            headers["x-jaxstate-signature"] = signed
        try:
            response = await self._client.post(notice.url, content=notice.body, headers=headers)
        except Exception as error:  # whatever it is, those behind it are still to be sent
            _log.warning("a notice could not be sent: %r", error)
            return False
        if response.status_code >= 500 or response.status_code in (408, 429):
            _log.warning("a notice was not taken: status %d", response.status_code)
            return False
        return True

    async def close(self) -> None:
        """What waits is not sent any more."""
        for one in tuple(self._workers):
            one.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._client.aclose()
