"""The application: routes behind the gate, around an engine that is loaded in the background.

Comes in: what makes the engine, bounds, keys. Goes out: an ASGI application. Does not know:
sockets, processes, signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

import jaxstate
from jaxstate.serve.calls import answering, refused, replied
from jaxstate.serve.errors import ApiError
from jaxstate.serve.gate import TENANT, Gate
from jaxstate.serve.openapi import document
from jaxstate.serve.routes import OPERATIONS
from jaxstate.serve.service import ServedModel, Service
from jaxstate.serve.socket import SessionSocket

Load = Callable[[], Awaitable[tuple[jaxstate.AsyncEngine, ServedModel]]]
PAGE = Path(__file__).parent / "page"
# Nothing but our own files runs in the page, and nobody puts it into a frame.
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_log = logging.getLogger("jaxstate.serve")


def make_app(load: Load, service: Service) -> Starlette:
    """The application.

    Args:
        load: makes the engine, entered; it is awaited beside the server, which says meanwhile that
            it is not ready.
        service: what the server has.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        loading = asyncio.ensure_future(_begin(load, service))
        try:
            yield
        finally:
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
            await service.close()

    routes: list[BaseRoute] = [
        Route(
            one.path,
            answering(one.run, service, one.dialect, one.path, frozenset(one.query)),
            methods=[one.method],
        )
        for one in OPERATIONS
    ]

    async def socket(websocket: WebSocket) -> None:
        served = service.find(websocket.scope[TENANT], str(websocket.path_params["id"]))
        await websocket.accept()
        await SessionSocket(service, served, websocket).run()

    async def openapi(_: Request) -> Response:
        return replied(document())

    async def page(_: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    routes += [
        WebSocketRoute("/v1/sessions/{id}/ws", socket),
        Route("/openapi.json", openapi),
        Route("/", page),
        Mount("/page", _PageFiles(directory=PAGE)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Gate, service=service, metrics=service.metrics)],
        exception_handlers={HTTPException: _no_route},
        lifespan=lifespan,
    )


class _PageFiles(StaticFiles):
    """The page's own files."""

    def file_response(self, *args: object, **options: object) -> Response:
        """With what keeps them to themselves."""
        response = super().file_response(*args, **options)  # pyright: ignore
        response.headers.update(_PAGE_HEADERS)
        return response


async def _begin(load: Load, service: Service) -> None:
    try:
        engine, model = await load()
    except Exception as error:
        _log.error("the engine could not be made: %s", error)
        service.fail(str(error) or repr(error))
        return
    service.begin(engine, model)
    _log.info("ready: %s", model.name)


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {
        404: f"there is no {request.url.path[:80]!r} here; /openapi.json lists what there is",
        405: f"{request.method} is not for this path; /openapi.json lists what is",
    }
    made = ApiError(error.status_code, what.get(error.status_code, str(error.detail)))
    response = refused(made, "openai")
    response.headers.update(error.headers or {})
    return response
