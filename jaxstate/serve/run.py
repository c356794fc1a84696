"""A server as a process: it listens, loads, serves, and ends as it is told.

Comes in: settings, keys, and what makes the engine. Goes out: an exit code. On SIGTERM or Ctrl-C it
takes no more requests, lets answers under way end, takes a last snapshot, and ends with 0. Does not
know: routes, how the engine works.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jaxstate.errors import InvalidInput
from jaxstate.serve.app import Load, make_app
from jaxstate.serve.keys import KeyRing
from jaxstate.serve.service import Service
from jaxstate.serve.settings import ServeSettings

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PING_S, _PONG_S = 15.0, 30.0
# How long the engine's thread may keep the interpreter to itself while requests wait for it: each
# call that lets go of it for a moment, such as a tokenizer's, waits for so long to have it again.
_SWITCH_S = 0.0005
_log = logging.getLogger("jaxstate.serve")


def check_public(settings: ServeSettings, keys: KeyRing, *, insecure: bool) -> None:
    """Refuses to let everybody in from everywhere, unless that is what is wanted.

    Raises:
        InvalidInput: it is what was asked for.
    """
    if keys.is_open and not settings.is_local and not insecure:
        raise InvalidInput(
            f"--host {settings.host} lets other machines in, and no key is needed: give --api-key "
            "or --keys, or --insecure to mean it"
        )


def serve(
    load: Load, settings: ServeSettings, keys: KeyRing, started: Callable[[str], None]
) -> int:
    """Serves until it is told to stop.

    Args:
        load: makes the engine.
        settings: bounds.
        keys: who may use it.
        started: is told the address once it listens; the engine is still being loaded then.

    Returns:
        0, or 1 if the engine could not be made or the port not be had.

    Raises:
        InvalidInput: the address cannot be listened to.
    """
    sys.setswitchinterval(_SWITCH_S)
    service = Service(settings, keys)
    listening = _bound(settings)
    config = uvicorn.Config(
        make_app(load, service),
        http=_protocol(settings.body_s),
        ws="websockets-sansio",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.close_s)),
        ws_max_size=settings.body_bytes,
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PONG_S,
    )
    server = _Server(config, service)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{port}")
    with listening:
        server.run(sockets=[listening])
    return 0 if service.failed is None else 1


def _bound(settings: ServeSettings) -> socket.socket:
    """A socket at the address; a free port is known before anything is loaded."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidInput(
            f"--host {settings.host} --port {settings.port} cannot be listened to: "
            f"{error.strerror or error}"
        ) from error


class _Server(uvicorn.Server):
    """uvicorn's, which ends with 0 when it is told to stop, and ends streams of events first."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; and if the engine cannot be made, the server ends."""
        self._loop = asyncio.get_running_loop()
        self._service.on_failure = self._give_up
        await super().startup(sockets)

    def _give_up(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the signal's handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._service.stop)
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals, and does not raise them once more at the end."""
        before = {one: signal.signal(one, self.handle_exit) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def _protocol(header_s: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, but that a connection says something in time or is closed."""

    class Impatient(HttpToolsProtocol):
        """Closes a connection whose request's headers do not arrive."""

        _watch: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
            super().connection_made(transport)
            self._wait()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._wait()

        def on_headers_complete(self) -> None:
            self._forget()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._forget()
            self._watch = self.loop.call_later(header_s, self.transport.close)

        def _forget(self) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

    return Impatient
