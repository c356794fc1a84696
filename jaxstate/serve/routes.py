"""Every route of a server, once: its path, what it takes and gives, and what it is for.

Comes in: nothing. Goes out: the table from which the application and its OpenAPI document are made,
so that neither can say what the other does not. Does not know: keys, sockets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.responses import Response

from jaxstate.serve import anthropic, openai, overview, sessions, wire
from jaxstate.serve.calls import Call
from jaxstate.serve.errors import Dialect

Run = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route.

    Attributes:
        method, path: of HTTP; names in braces are parameters.
        run: answers it.
        body: what it takes; None for nothing.
        reply: what it gives; None for an object that the dialect's own documents describe.
        status: when all went well.
        query: its parameters there, with what they are.
        streams: whether it may give server-sent events.
        dialect: of its errors.
        also: other types of its body.
        media: of its reply.
    """

    method: str
    path: str
    run: Run
    body: type | None = None
    reply: type | None = None
    status: int = 200
    query: dict[str, str] = field(default_factory=dict[str, str])
    streams: bool = False
    dialect: Dialect = "openai"
    also: tuple[str, ...] = ()
    media: str = "application/json"

    @property
    def summary(self) -> str:
        """What it is for."""
        return (self.run.__doc__ or "").partition("\n")[0]


_ONE = "/v1/sessions/{id}"
_LINE_QUERY = {
    "client": "who pushes, if its pushes are numbered",
    "client_seq": "the number of this push",
    "format": "of lines: auto, lines, jsonl, csv or syslog",
    "template": "of JSON's fields: {time} {message}",
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(method="GET", path="/health", run=overview.health),
    Operation(method="GET", path="/healthz", run=overview.health),
    Operation(method="GET", path="/livez", run=overview.alive),
    Operation(method="GET", path="/metrics", run=overview.metrics, media="text/plain"),
    Operation(method="GET", path="/v1/overview", run=overview.overview),
    Operation(method="GET", path="/v1/models", run=openai.models),
    Operation(method="GET", path="/v1/models/{name}", run=openai.model),
    Operation(
        method="POST",
        path="/v1/chat/completions",
        run=openai.chat_completions,
        body=openai.ChatCompletionCreate,
        streams=True,
    ),
    Operation(
        method="POST",
        path="/v1/completions",
        run=openai.completions,
        body=openai.CompletionCreate,
        streams=True,
    ),
    Operation(
        method="POST",
        path="/v1/messages",
        run=anthropic.messages,
        body=anthropic.MessageCreate,
        streams=True,
        dialect="anthropic",
    ),
    Operation(
        method="POST",
        path="/v1/messages/count_tokens",
        run=anthropic.count_tokens,
        body=anthropic.CountTokens,
        dialect="anthropic",
    ),
    Operation(method="GET", path="/v1/sessions", run=sessions.list_all, reply=wire.SessionList),
    Operation(
        method="POST",
        path="/v1/sessions",
        run=sessions.create,
        body=wire.SessionCreate,
        reply=wire.SessionReply,
        status=201,
    ),
    Operation(method="GET", path=_ONE, run=sessions.get, reply=wire.SessionReply),
    Operation(
        method="DELETE",
        path=_ONE,
        run=sessions.delete,
        reply=wire.SessionDeleted,
        query={"erase": "true: nothing of it stays, in the journal neither"},
    ),
    Operation(
        method="POST",
        path=f"{_ONE}/push",
        run=sessions.push,
        body=wire.PushCreate,
        reply=wire.PushReply,
        query=_LINE_QUERY,
        also=("text/plain", "application/x-ndjson"),
    ),
    Operation(
        method="GET",
        path=f"{_ONE}/entries",
        run=sessions.entries,
        reply=wire.EntryList,
        query={"last": "how many of the newest; 20 without it"},
    ),
    Operation(
        method="GET",
        path=f"{_ONE}/position",
        run=sessions.position,
        reply=wire.PositionReply,
        query={"client": "the name that its pushes had"},
    ),
    Operation(
        method="GET",
        path=f"{_ONE}/wait",
        run=sessions.wait,
        reply=wire.WaitReply,
        query={"version": "to wait for; all that was pushed without it"},
    ),
    Operation(
        method="POST",
        path=f"{_ONE}/generate",
        run=sessions.generate,
        body=wire.Generate,
        reply=wire.GenerationReply,
        streams=True,
    ),
    Operation(
        method="POST",
        path=f"{_ONE}/warm",
        run=sessions.warm,
        body=wire.WarmCreate,
        reply=wire.WarmReply,
    ),
    Operation(
        method="POST",
        path=f"{_ONE}/flash",
        run=sessions.flash,
        body=wire.FlashCreate,
        reply=wire.FlashReply,
        status=201,
    ),
    Operation(method="GET", path=f"{_ONE}/flash", run=sessions.list_flash, reply=wire.FlashList),
    Operation(
        method="DELETE",
        path=f"{_ONE}/flash/{{flash_id}}",
        run=sessions.unflash,
        reply=wire.FlashDeleted,
    ),
    Operation(
        method="GET",
        path=f"{_ONE}/events",
        run=sessions.events,
        query={"flash": "changed: answers that are news; always: all of them"},
        media="text/event-stream",
    ),
    Operation(
        method="POST",
        path=f"{_ONE}/fork",
        run=sessions.fork,
        body=wire.ForkCreate,
        reply=wire.SessionReply,
        status=201,
    ),
    Operation(method="POST", path=f"{_ONE}/suspend", run=sessions.suspend, reply=wire.SessionReply),
    Operation(method="POST", path=f"{_ONE}/resume", run=sessions.resume, reply=wire.SessionReply),
    Operation(
        method="PUT",
        path=f"{_ONE}/window",
        run=sessions.set_window,
        body=wire.WindowChange,
        reply=wire.SessionReply,
    ),
)
