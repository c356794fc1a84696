"""What a server lets its clients do.

Comes in: numbers, as the command line has them. Goes out: a frozen, checked record. Does not know:
HTTP, engines.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from jaxstate.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Bounds of a server.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        body_bytes: of a request, and of a WebSocket's frame; lines that are pushed one by one
            (`text/plain`, `application/x-ndjson`) are bounded each, and not together.
        body_s: seconds for a request's body to arrive, and for the headers before it.
        push_s: seconds that a push waits for room in a full queue (policy "block").
        ask_s: seconds for an answer.
        heartbeat_s: of silence, after which a stream of events says that it is alive.
        connections: at once; one more is told to come again.
        sessions: of each tenant that has no bound of its own.
        close_s: seconds for answers under way to end when the server is told to stop.
        webhook_hosts: to which answers of flash questions may be sent; none unless named.
        cors_origins: whose pages may talk to the server; none unless named.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    body_bytes: int = 16 << 20
    body_s: float = 30.0
    push_s: float = 30.0
    ask_s: float = 600.0
    heartbeat_s: float = 15.0
    connections: int = 1024
    sessions: int = 256
    close_s: float = 30.0
    webhook_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses bounds that would let nothing through."""
        for name in ("body_bytes", "connections", "sessions"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("body_s", "push_s", "ask_s", "heartbeat_s", "close_s"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name}={getattr(self, name)} must be seconds above 0")
        if not 0 <= self.port < 1 << 16:
            raise InvalidInput(f"port={self.port} must lie in 0 .. 65535")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
