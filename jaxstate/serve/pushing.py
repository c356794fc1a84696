"""A push over HTTP or a WebSocket, and what its client is told of it.

Comes in: entries. Goes out: the session's receipt with what stands then. Does not know: requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import jaxstate
from jaxstate.serve import wire
from jaxstate.serve.errors import ApiError
from jaxstate.serve.service import ServedSession

# Bytes that a token takes in a session's queue.
_TOKEN_BYTES = 4


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
