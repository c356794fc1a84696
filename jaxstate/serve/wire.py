"""Sessions on the wire: what requests may hold, and what responses do.

Comes in: JSON, decoded and checked here: an unknown field, a wrong type or a value out of range is
refused in words that name it. Goes out: JSON of the types below, from which the OpenAPI document is
made as well. The shapes are those of the client `layerscale` 0.8, and more: everything that it does
not know has a default. Does not know: engines, HTTP.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

import jaxstate

Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,128}$")]
Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Number = Annotated[int, Meta(ge=0)]
Stops = Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=4)]
Anything = Annotated[object, Meta(extra_json_schema={"description": "any JSON"})]
# A choice alone has an infinite lead over the others, which JSON has no number for.
_MOST_CONFIDENT = 1e9


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a client sends."""


class Reply(Struct, kw_only=True):
    """What a client gets; what is not there is left out."""


# --- sessions ---


class WindowSpec(Request, kw_only=True):
    """What stays in a session's context behind its prefix: `jaxstate.Window`."""

    tokens: Count | None = None
    entries: Count | None = None
    age_s: float | None = None
    key: str | None = None
    hop: float | None = None
    mode: Literal["exact", "slide"] = "exact"

    def window(self) -> jaxstate.Window:
        """As the engine knows it."""
        return jaxstate.Window(
            tokens=self.tokens,
            entries=self.entries,
            age_s=self.age_s,
            key=self.key,
            hop=self.hop,
            mode=self.mode,
        )


class SessionCreate(Request, kw_only=True):
    """A new session. `window` as a number is one of tokens; `pre_decode` is taken and changes
    nothing: answers are as they are."""

    id: Name | None = None
    pre_decode: bool = False
    window: Count | WindowSpec | None = None
    prefix: str = ""
    policy: Literal["block", "reject", "drop_oldest"] = "block"
    reserve: Count | None = None
    pinned: bool = False


class WindowChange(Request, kw_only=True):
    """Another window, or none."""

    window: Count | WindowSpec | None = None


class SpanReply(Reply, kw_only=True):
    """Entries first .. last."""

    first: int
    last: int


class SessionReply(Reply, kw_only=True):
    """A session. `tokens`, `kv_tokens` and `data_end` are the same: what it has read is what its
    cells hold."""

    id: str
    created: int
    last_used: int
    tokens: int
    kv_tokens: int
    busy: bool
    turns: int
    data_end: int
    data_version: int
    pending: int
    pre_decode: bool
    ready: bool
    evicted: int
    pending_tokens: int
    cells: int
    bytes: int
    residency: str
    lag_s: float
    dropped: int
    flash_queries: int
    kind: str = field(default="session", name="object")
    window: int | UnsetType = UNSET
    window_spec: dict[str, Anything] | UnsetType = UNSET
    visible: list[SpanReply] | UnsetType = UNSET
    stopped: str | UnsetType = UNSET
    resume_s: float | UnsetType = UNSET


class SessionList(Reply, kw_only=True):
    """Sessions by creation."""

    data: list[SessionReply]
    kind: str = field(default="list", name="object")


class SessionDeleted(Reply, kw_only=True):
    """A session that is no more."""

    id: str
    deleted: bool = True
    kind: str = field(default="session.deleted", name="object")


class ForkCreate(Request, kw_only=True):
    """A session that goes on from another, at its newest version or an earlier one."""

    id: Name | None = None
    version: Number | None = None


# --- data ---


class PushCreate(Request, kw_only=True):
    """One entry or several, all or none. With `client` and `client_seq` exactly once."""

    data: str | Annotated[list[str], Meta(min_length=1)]
    client: str | None = None
    client_seq: Number | None = None
    strict: bool = False


class PushReply(Reply, kw_only=True):
    """What became of a push. `data_version` is from before it: once the session's is `last`, all of
    it is read."""

    pushed: int
    dropped: int
    pending: int
    pending_bytes: int
    total_pushed: int
    total_dropped: int
    data_version: int
    first: int
    last: int
    durable: str


class PositionReply(Reply, kw_only=True):
    """Where a client that numbers its pushes stands in a session."""

    client: str
    client_seq: int | None


class EntryReply(Reply):
    """An entry that a session sees."""

    number: int
    text: str


class EntryList(Reply):
    """The newest of them, ascending."""

    data: list[EntryReply]
    kind: str = field(default="list", name="object")


class WaitReply(Reply, kw_only=True):
    """The version that a session has now."""

    data_version: int


# --- questions ---


class TemplateOptions(Request, kw_only=True):
    """What the template is told: thinking is off, and that is all there is to say."""

    enable_thinking: Literal[False] = False
    add_generation_prompt: Literal[True] = True


class Generate(Request, kw_only=True):
    """A question about what a session has read. Without a temperature nothing is drawn."""

    prompt: Text
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**32)] | None = None
    stop: Stops | Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    stream: bool = False
    fast_answer: list[Text] = []
    gap_threshold: float = 2.0
    ignore_eos: Literal[False] = False
    reasoning_effort: Literal["none", "minimal", "low"] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    choices: Annotated[list[Text], Meta(min_length=1)] | None = None
    min_version: Number | None = None
    as_of: Number | None = None
    timeout_s: Annotated[float, Meta(gt=0)] | None = None


class PromptDetails(Reply, kw_only=True):
    """Of the prompt."""

    cached_tokens: int


class UsageReply(Reply, kw_only=True):
    """Tokens of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | UnsetType = UNSET
    prompt_tokens_details: PromptDetails | UnsetType = UNSET


class GenerationReply(Reply, kw_only=True):
    """An answer, and the version that it saw. `done` ends a stream, and has no `text` then."""

    id: str
    session_id: str
    finish_reason: str
    data_version: int
    usage: UsageReply
    source: str
    latency_s: float
    logprob: float
    kind: str = field(default="session.generation", name="object")
    text: str | UnsetType = UNSET
    done: bool | UnsetType = UNSET
    flash: bool | UnsetType = UNSET
    flash_id: int | UnsetType = UNSET
    confidence: float | UnsetType = UNSET
    speculative: bool | UnsetType = UNSET
    logit_gap: float | UnsetType = UNSET
    probability: float | UnsetType = UNSET
    choice_logprobs: list[float] | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    visible: list[SpanReply] | UnsetType = UNSET
    window: str | UnsetType = UNSET


class WarmCreate(Request, kw_only=True):
    """The conversation that is to be asked next; only what shapes it is read."""

    messages: list[dict[str, Anything]]
    tools: list[Anything] | None = None
    tool_choice: Anything = None
    reasoning_effort: Literal["none", "minimal", "low"] | None = None
    chat_template_kwargs: TemplateOptions | None = None


class WarmReply(Reply, kw_only=True):
    """A session whose cells are on the device."""

    id: str
    session_id: str
    finish_reason: Literal["warmed", "covered"]
    prompt_tokens: int
    cached_tokens: int
    data_version: int
    prefix_cached_tokens: int = 0
    kind: str = field(default="session.warm", name="object")


# --- flash queries ---


class ConditionSpec(Request, kw_only=True):
    """Which answers are news: one of these; without any, those whose text differs from the one
    before, and the first."""

    changed: Literal[True] | None = None
    equals: Text | None = None
    confidence_above: float | None = None
    crosses: float | None = None
    direction: Literal["up", "down", "either"] = "either"

    def condition(self) -> jaxstate.Condition | None:
        """As the engine knows it.

        Raises:
            InvalidInput: several at once, or a direction of nothing.
        """
        given: list[jaxstate.Condition] = []
        if self.changed:
            given.append(jaxstate.Changed())
        if self.equals is not None:
            given.append(jaxstate.Equals(self.equals))
        if self.confidence_above is not None:
            given.append(jaxstate.ConfidenceAbove(self.confidence_above))
        if self.crosses is not None:
            given.append(jaxstate.Crosses(self.crosses, self.direction))
        elif self.direction != "either":
            raise jaxstate.InvalidInput("when: direction goes with crosses")
        if len(given) > 1:
            raise jaxstate.InvalidInput("when: give one of changed, equals, crosses and so on")
        return given[0] if given else None


class WebhookSpec(Request, kw_only=True):
    """Where answers that are news are sent to, signed with `secret` if that is given."""

    url: Text
    secret: str | None = None


class FlashCreate(Request, kw_only=True):
    """A question that is kept answered."""

    query: Text
    max_tokens: int = 32
    choices: Annotated[list[Text], Meta(min_length=1)] | None = None
    stop: Stops | None = None
    when: ConditionSpec | None = None
    min_interval_s: Annotated[float, Meta(ge=0)] = 0.0
    deadline_s: Annotated[float, Meta(ge=0)] | None = None
    staleness_s: Annotated[float, Meta(ge=0)] | None = None
    webhook: WebhookSpec | None = None


class FlashReply(Reply, kw_only=True):
    """A registered question, and its newest answer if there is one."""

    id: int
    query: str
    max_tokens: int
    tokens: int
    fresh: bool
    kind: str = field(default="session.flash_query", name="object")
    value: str | UnsetType = UNSET
    data_version: int | UnsetType = UNSET
    confidence: float | UnsetType = UNSET
    evaluated_at: int | UnsetType = UNSET
    probability: float | UnsetType = UNSET
    error: str | UnsetType = UNSET


class FlashList(Reply, kw_only=True):
    """The registered questions of a session."""

    data: list[FlashReply]
    data_version: int
    kind: str = field(default="list", name="object")


class FlashDeleted(Reply, kw_only=True):
    """A question that is registered no more."""

    id: int
    remaining: int
    deleted: bool = True
    kind: str = field(default="session.flash_query.deleted", name="object")


# --- events ---


class ConnectedData(Reply, kw_only=True):
    """The first event."""

    session_id: str
    data_version: int
    flash_queries: int


class DataUpdatedData(Reply, kw_only=True):
    """Entries were read."""

    data_version: int
    tokens: int
    pending: int


class FlashReadyData(Reply, kw_only=True):
    """A registered question was answered."""

    id: int
    query: str
    value: str
    data_version: int
    confidence: float
    probability: float | UnsetType = UNSET


class SocketMessage(Request, kw_only=True):
    """What a WebSocket may say."""

    type: Literal["push", "ping", "close"]
    data: str | Annotated[list[str], Meta(min_length=1)] | None = None
    client: str | None = None
    client_seq: Number | None = None


def finite(value: float) -> float:
    """A confidence as JSON has it."""
    return min(value, _MOST_CONFIDENT) if math.isfinite(value) else _MOST_CONFIDENT


def spans(visible: tuple[jaxstate.Span, ...] | None) -> list[SpanReply] | UnsetType:
    """Entries that something sees; nothing where it sees all."""
    if visible is None:
        return UNSET
    return [SpanReply(first=one.first, last=one.last) for one in visible]


def given(value: float | None) -> float | UnsetType:
    """A number that may not be there."""
    return UNSET if value is None else value
