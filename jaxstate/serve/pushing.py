"""A push over HTTP or a WebSocket, and what its client is told of it.

Comes in: entries. Goes out: the session's receipt with what stands then. Does not
know: bodies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jaxstate
from jaxstate.serve import wire
from jaxstate.serve.calls import Call
from jaxstate.serve.errors import ApiError
from jaxstate.serve.service import ServedSession

# Bytes that a token takes in a session's queue.
_TOKEN_BYTES = 4


def numbered(
    call: Call, client: str | None, client_seq: int | None
) -> tuple[str | None, int | None]:
    """Who pushes, and for the how manieth time: as the body or the query says, or the header
    Idempotency-Key, `client/17`, or any text, which is then a client of its own that pushes once.

    Raises:
        ApiError: both say it, or the header is too long.
    """
    key = call.request.headers.get("idempotency-key")
    if key is None:
        return client, client_seq
    if client is not None or client_seq is not None:
        raise ApiError(400, "give client and client_seq, or Idempotency-Key, and not both")
    name, _, number = key.rpartition("/")
    if name and number.isdecimal() and len(number) < 19:
        return name, int(number)
    if not 1 <= len(key) <= 256:
        raise ApiError(400, "Idempotency-Key has 1 to 256 characters")
    return f"key:{hashlib.sha256(key.encode()).hexdigest()[:40]}", 1


async def pushed(
    served: ServedSession,
    entries: Sequence[str],
    *,
    client: str | None = None,
    client_seq: int | None = None,
    strict: bool = False,
    timeout_s: float,
) -> wire.PushReply:
    """Pushes, and says what became of it.

    Raises:
        ApiError: the queue stayed full.
        JaxstateError: as `Session.push`.
    """
    session = served.session
    try:
        receipt = await session.push(
            entries, client=client, client_seq=client_seq, strict=strict, timeout=timeout_s
        )
    except jaxstate.TimedOut as error:
        raise ApiError(429, str(error), code="queue_full", retry_after_s=1) from error
    info = session.info()
    return wire.PushReply(
        pushed=receipt.last - receipt.first + 1,
        dropped=sum(one.last - one.first + 1 for one in receipt.dropped),
        pending=info.pending,
        pending_bytes=info.pending_tokens * _TOKEN_BYTES,
        total_pushed=max(receipt.last, info.version + info.pending),
        total_dropped=info.dropped,
        # Of before this push, so that it is past once all of it was read.
        data_version=min(max(info.version, 0), receipt.first - 1),
        first=receipt.first,
        last=receipt.last,
        durable=receipt.durable,
    )
