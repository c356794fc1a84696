"""Lines that are pushed as they come: what log shippers and `curl --data-binary @-` send.

Comes in: a body of any length, one entry a line. Goes out: pushes of some lines each, as fast as
the session takes them, and in the end what became of all. Does not know: formats (`formats`).

A body whose lines are numbered (`?client=…&client_seq=…`, Idempotency-Key) is one push, all or
nothing, and as large as any other. Without numbers what came before an error stays, and the error
says how much.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec.structs import replace
from starlette.requests import ClientDisconnect

from jaxstate.errors import InvalidInput
from jaxstate.formats import EntryFormat, FormatName
from jaxstate.serve import wire
from jaxstate.serve.calls import Call, as_refusal, too_large
from jaxstate.serve.errors import ApiError
from jaxstate.serve.pushing import numbered, pushed
from jaxstate.serve.service import ServedSession

_LINES = 256
_TEXT = "text/plain"
LINE_TYPES = (_TEXT, "application/x-ndjson", "application/jsonl")


async def push_lines(call: Call, served: ServedSession, kind: str) -> wire.PushReply:
    """Pushes a body's lines.

    Args:
        call: the request.
        served: the session.
        kind: its content type.

    Raises:
        ApiError: a line is too long, no UTF-8 or of another form, or the queue stayed full.
        JaxstateError: as `Session.push`.
    """
    form = _format(call, kind)
    client = call.request.query_params.get("client")
    client, client_seq = numbered(call, client, call.number("client_seq"))
    timeout_s = call.service.settings.push_s
    if client is not None or client_seq is not None:
        body = await call.read()
        entries = _entries(form, body.split(b"\n"), 0)
        form.end()
        if not entries:
            raise ApiError(400, "the body has no lines that make entries")
        return await pushed(
            served, entries, client=client, client_seq=client_seq, timeout_s=timeout_s
        )
    return await _pushed_as_they_come(call, served, form)


def _format(call: Call, kind: str) -> EntryFormat:
    """As `?format=` and `?template=` say; else lines as they are, or objects of JSON."""
    query = call.request.query_params
    names: dict[str, FormatName] = {
        name: name for name in ("auto", "lines", "jsonl", "csv", "syslog")
    }
    usual: FormatName = "lines" if kind == _TEXT else "jsonl"
    given = query.get("format", usual)
    if given not in names:
        raise ApiError(400, f"format={given[:40]!r} in the query is none of {', '.join(names)}")
    return EntryFormat(names[given], query.get("template"))


async def _pushed_as_they_come(
    call: Call, served: ServedSession, form: EntryFormat
) -> wire.PushReply:
    sum_of: wire.PushReply | None = None
    before = 0
    try:
        async for raw in _lines(call):
            entries = _entries(form, raw, before)
            before += len(raw)
            if not entries:
                continue
            one = await pushed(served, entries, timeout_s=call.service.settings.push_s)
            sum_of = one if sum_of is None else _added(sum_of, one)
        form.end()
    except ClientDisconnect:
        raise
    except Exception as error:
        refusal = as_refusal(error)
        taken, last = (0, "") if sum_of is None else (sum_of.pushed, f", up to {sum_of.last}")
        refusal.message += f" ({taken} entries of this body are taken{last})"
        raise refusal from error
    if sum_of is None:
        raise ApiError(400, "the body has no lines that make entries")
    return sum_of


def _added(before: wire.PushReply, one: wire.PushReply) -> wire.PushReply:
    return replace(
        one,
        pushed=before.pushed + one.pushed,
        dropped=before.dropped + one.dropped,
        first=before.first,
        data_version=before.data_version,
    )


def _entries(form: EntryFormat, raw: list[bytes], before: int) -> list[str]:
    """What some lines make, which come behind so many others."""
    entries: list[str] = []
    for number, line in enumerate(raw, before + 1):
        try:
            entry = form.entry(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInput(f"line {number} is not UTF-8: {error}") from error
        except InvalidInput as error:
            raise InvalidInput(f"line {number}: {error}") from error
        if entry is not None:
            entries.append(entry)
    return entries


async def _lines(call: Call) -> AsyncIterator[list[bytes]]:
    """Whole lines of the body, some at a time: as many as a piece of it has."""
    body_bytes = call.service.settings.body_bytes
    rest = b""
    async for piece in call.pieces():  # which may be silent for as long as it likes
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > body_bytes:
            raise too_large(body_bytes)
        for start in range(0, len(whole), _LINES):
            yield whole[start : start + _LINES]
    if rest:
        yield [rest]
