"""The door: who may come in, how many at once, and from which pages.

Comes in: every request and every WebSocket, before anything else sees it. Goes out: refusals, or
the request with its tenant. Does not know: routes, but for those that need no key.

- With keys, everything but `/health` and the page's own files needs one: `Authorization: Bearer …`
  or `X-Api-Key: …`.
- A browser says of which page a request is (`Origin`). Another site's pages are refused, also
  where no key is needed: they could push, and open WebSockets, without being asked.
- Without keys the server must be meant by its own name (`Host`), so that no other name that
  leads to this machine reaches it from a page.
"""

from __future__ import annotations

import contextlib
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from jaxstate.serve.access import log_access
from jaxstate.serve.calls import refused
from jaxstate.serve.errors import ApiError, Dialect
from jaxstate.serve.keys import OPEN, ServedTenant
from jaxstate.serve.metrics import ServerMetrics
from jaxstate.serve.service import Service

TENANT = "jaxstate.tenant"
_FREE = ("/health", "/healthz", "/livez", "/")
_PAGE = "/page/"
_LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
_ALLOWED_HEADERS = (
    "authorization, content-type, idempotency-key, x-api-key, x-layerscale-session-id"
)


class Gate:
    """Middleware around the whole application.

    Args:
        app: what is behind it.
        service: the server's.
        metrics: counts what passes.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: ServerMetrics) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, started_s = Headers(scope=scope), time.perf_counter()
        told = _Told(send, self._cors(headers))
        tenant = None
        try:
            self._check_page(headers)
            if scope["method"] == "OPTIONS" and "origin" in headers:
                await _preflight(told.send)
                return
            tenant = self._tenant(headers, scope["path"])
            scope[TENANT] = tenant
            with self._service.request(tenant), self._metrics.under_way.track_inprogress():
                await self._app(scope, receive, told.send)
        except ApiError as error:
            await refused(error, _dialect(scope["path"]))(scope, receive, told.send)
        finally:
            route = scope.get("jaxstate.route", "other")
            self._metrics.requests.labels(route, scope["method"], str(told.status)).inc()
            if told.began_s is not None:
                self._metrics.request_s.labels(route).observe(told.began_s - started_s)
            log_access(scope, route, told.status, time.perf_counter() - started_s, tenant)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_page(headers)
            tenant = self._tenant(headers, scope["path"])
            scope[TENANT] = tenant
            with self._service.request(tenant), self._metrics.under_way.track_inprogress():
                await self._app(scope, receive, send)
        except ApiError as error:
            with contextlib.suppress(RuntimeError):  # it was let in already
                await WebSocket(scope, receive, send).send_denial_response(refused(error, "openai"))

    def _tenant(self, headers: Headers, path: str) -> ServedTenant:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key")
        tenant = self._service.keys.tenant_of(key)
        if tenant is not None:
            return tenant
        if path in _FREE or path.startswith(_PAGE):
            return ServedTenant(name=OPEN.name)
        raise ApiError(
            401, "no valid API key: send one of this server's as Authorization: Bearer <key>"
        )

    def _check_page(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._service.keys.is_open and not self._is_own(host):
            raise ApiError(
                403,
                f"this server needs no key, and is reached by its own name alone, not as "
                f"{host[:80]!r}; start it with --api-key, or --host that name",
            )
        origin = headers.get("origin")
        if origin is None or origin in self._service.settings.cors_origins:
            return
        if origin.partition("://")[2] != host:
            raise ApiError(403, f"pages of {origin[:80]!r} may not use this server (--cors)")

    def _is_own(self, host: str) -> bool:
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        settings = self._service.settings
        return name in _LOCAL or name == settings.host or not settings.is_local

    def _cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin is None or origin not in self._service.settings.cors_origins:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"Origin"),
        ]


class _Told:
    """Passes a response on, and remembers its status and when it began."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self.status = 0
        self.began_s: float | None = None

    async def send(self, message: Message) -> None:
        """As ASGI's."""
        if message["type"] == "http.response.start":
            self.status, self.began_s = message["status"], time.perf_counter()
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
        await self._send(message)


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS.encode()),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _dialect(path: str) -> Dialect:
    return "anthropic" if path.startswith("/v1/messages") else "openai"
