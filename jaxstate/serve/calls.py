"""One request on its way: decoded, checked, answered, or refused in the words of its dialect.

Comes in: requests of starlette. Goes out: responses. Does not know: what any route does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from jaxstate.errors import JaxstateError
from jaxstate.records import JsonValue
from jaxstate.serve.errors import ApiError, Dialect, of_engine
from jaxstate.serve.keys import ServedTenant
from jaxstate.serve.service import ServedSession, Service

T = TypeVar("T")
_log = logging.getLogger("jaxstate.serve")


@dataclass(frozen=True, slots=True)
class Call:
    """A request with whom it is of, and what it is to.

    Attributes:
        service: the server's.
        request: starlette's.
        tenant: whose key it had.
    """

    service: Service
    request: Request
    tenant: ServedTenant

    @property
    def session(self) -> ServedSession:
        """The session that its path names.

        Raises:
            ApiError: there is none.
        """
        return self.service.find(self.tenant, str(self.request.path_params["id"]))

    async def body(self, kind: type[T]) -> T:
        """Its body as JSON of that type.

        Raises:
            ApiError: it is too large or too slow, no JSON, or of another form.
        """
        return decoded(await self.read(), kind)

    async def read(self) -> bytes:
        """Its body.

        Raises:
            ApiError: it is too large, or did not come in time.
        """
        settings = self.service.settings
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(settings.body_s):
                async for piece in self.request.stream():
                    size += len(piece)
                    if size > settings.body_bytes:
                        raise too_large(settings.body_bytes)
                    pieces.append(piece)
        except TimeoutError:
            raise ApiError(
                408, f"the request's body did not arrive within {settings.body_s:g} s"
            ) from None
        return b"".join(pieces)

    def number(self, name: str) -> int | None:
        """A number in the query; None if it is not there.

        Raises:
            ApiError: it is none.
        """
        given = self.request.query_params.get(name)
        if given is None:
            return None
        if not given.isdecimal() or len(given) > 19:
            raise ApiError(400, f"{name}={given[:40]!r} in the query must be a number, 0 or more")
        return int(given)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its body as it comes, until the server is to stop.

        Raises:
            ApiError: it is.
            ClientDisconnect: the client has gone away.
        """
        stream = aiter(self.request.stream())
        while (piece := await self.unless_stopped(anext(stream, None))) is not None:
            yield piece

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """What comes of some work, which is cancelled if the server is to stop.

        Raises:
            ApiError: it is.
        """
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self.service.stopped.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            raise stopping()
        finally:
            task.cancel()
            stopped.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def unless_gone(self, work: Coroutine[None, None, T], *, until_stop: bool = False) -> T:
        """What comes of some work, which is cancelled if the client goes away meanwhile.

        Args:
            work: it.
            until_stop: whether it is cancelled as well if the server is to stop.

        Raises:
            ClientDisconnect: it did.
            ApiError: the server is to stop.
        """
        waiting = self.unless_stopped(work) if until_stop else work
        task, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            raise ClientDisconnect
        finally:
            for one in (task, gone):
                one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def decoded(body: bytes, kind: type[T]) -> T:
    """JSON of that type.

    Raises:
        ApiError: it is something else, and what.
    """
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise ApiError(400, str(error)) from error
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is no JSON: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON in UTF-8: {error}") from error


def stopping() -> ApiError:
    """What a client is told whose request would go on for ever."""
    return ApiError(503, "the server is being stopped", code="not_ready", retry_after_s=1)


def too_large(body_bytes: int) -> ApiError:
    """What a client is told whose body, or entry, is."""
    return ApiError(413, f"the request is larger than {body_bytes:,} bytes; send less at once")


def replied(value: object, status: int = 200) -> Response:
    """JSON of a reply."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def refused(error: ApiError, dialect: Dialect) -> Response:
    """An error as a response."""
    body = msgspec.json.encode(error.envelope(dialect))
    return Response(body, error.status, error.headers, "application/json")


def as_refusal(error: Exception) -> ApiError:
    """What a client is told of whatever went wrong; what nobody expected is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, JaxstateError):
        return of_engine(error)
    _log.exception("a request failed in a way that nobody expected", exc_info=error)
    return ApiError(500, "the server failed; its log says how", code="internal")


def answering(
    run: Callable[[Call], Awaitable[Response]],
    service: Service,
    dialect: Dialect,
    route: str,
    query: frozenset[str] = frozenset(),
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint: what `run` replies, or what it raises as a response.

    Args:
        run: it.
        service: the server's.
        dialect: of its errors.
        route: its path, as it is counted.
        query: the parameters that it has there.
    """

    async def endpoint(request: Request) -> Response:
        request.scope["jaxstate.route"] = route
        tenant: ServedTenant = request.scope["jaxstate.tenant"]
        try:
            if unknown := sorted(set(request.query_params) - query):
                known = f"; it takes {', '.join(sorted(query))}" if query else ""
                raise ApiError(400, f"{unknown[0][:40]!r} in the query is not known{known}")
            return await run(Call(service, request, tenant))
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            refusal = as_refusal(error)
            # As the tenant names its sessions, and not as the engine does.
            refusal.message = refusal.message.replace(f"'{tenant.name}.", "'")
            return refused(refusal, dialect)

    return endpoint


# --- streams ---


def frame(value: object, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + msgspec.json.encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": heartbeat\n\n"


def event_stream(frames: AsyncIterator[bytes], dialect: Dialect) -> StreamingResponse:
    """Server-sent events; what goes wrong on the way is the last of them."""
    return StreamingResponse(
        _with_errors(frames, dialect),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _with_errors(frames: AsyncIterator[bytes], dialect: Dialect) -> AsyncIterator[bytes]:
    try:
        async for one in frames:
            yield one
    except Exception as error:
        envelope: dict[str, JsonValue] = as_refusal(error).envelope(dialect)
        yield frame(envelope, "error" if dialect == "anthropic" else None)
        if dialect == "openai":
            yield DONE
