"""What callers of the engine get back: plain frozen values.

Comes in: numbers and text. Goes out: receipts, answers, session facts, events. Does not know: how
any of it came about; no jax, no threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from jaxstate.engine.types.window import Window, WindowMode
from jaxstate.records import Durability, EventRecord, FinishReason, Record

Source = Literal["computed", "flash", "ready"]


# Where a session's cells are; "log": nowhere, they are computed again from its tokens.
Place: TypeAlias = Literal["device", "host", "disk", "log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(Record):
    """Entries first .. last, by sequence number."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Record):
    """What `push` returns at once.

    Attributes:
        first, last: sequence numbers of the entries pushed.
        pending: entries of the session that are not committed yet, these included.
        durable: what they outlive: "memory" nothing but a suspended session, "os" the end of this
            process, however it ends, "fsync" also a machine that loses its power.
        dropped: entries that this push displaced from the queue (policies "drop_oldest" and
            coalescing); they will never be read.
    """

    first: int
    last: int
    pending: int
    durable: Durability = "memory"
    dropped: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(Record):
    """What an answer cost, in tokens; of one that was there already, only the context counts.

    Attributes:
        context_tokens: committed cells that it saw.
        cached_tokens: of those, what had been read before it was asked: all of a session, and what
            a conversation shares with earlier ones.
        question_tokens: of the question, with its template.
        answer_tokens: of the answer, or of all choices that were scored.
    """

    context_tokens: int
    question_tokens: int
    answer_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Record):
    """An answer, and which version of the session it saw.

    Attributes:
        text: without surrounding blanks; one of the choices, as given, if there were any.
        token_ids: of the answer, without what ended it.
        version: it saw entries 1 .. version, and nothing else.
        source: "computed" for this call, "flash" if a registered question had been answered at this
            version, "ready" if the scores of its choices were kept at this version.
        confidence: the largest minus the second largest logit of the first token; with choices,
            the same of the choices' total log-probabilities (infinite for a single choice).
        logprob: sum over the answer's tokens.
        finish_reason: "stop" or "length"; "stop" with choices.
        latency_s: from the call to the answer; for an answer inside a `FlashQuery` or an event,
            from the commit of its version, or from the registration if that came later.
        usage: tokens.
        probability: with choices, the best one's share: softmax over the total log-probabilities,
            at the model's `choice_temperature`.
        choice_logprobs: with choices, their total log-probabilities, in the order given.
        token_logprobs: without choices, one for each of `token_ids`.
        stopped_by: the stop string that ended it; None for any other end.
        seed: that it was drawn with; None for a greedy answer.
        visible: of a session with a window, the entries that it saw; None without one: it saw all
            up to its version, but for those that were displaced from the queue.
        window: the mode of that window; "slide": its context is approximate.
    """

    text: str
    token_ids: tuple[int, ...]
    version: int
    source: Source
    confidence: float
    logprob: float
    finish_reason: FinishReason
    latency_s: float
    usage: Usage
    probability: float | None = None
    choice_logprobs: tuple[float, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None
    stopped_by: str | None = None
    seed: int | None = None
    visible: tuple[Span, ...] | None = None
    window: WindowMode | None = None

    def given(self, latency_s: float) -> Answer:
        """The same answer, given again after that time."""
        return Answer(  # three times as fast as dataclasses.replace, and a hit is all about that
            text=self.text,
            token_ids=self.token_ids,
            version=self.version,
            source=self.source,
            confidence=self.confidence,
            logprob=self.logprob,
            finish_reason=self.finish_reason,
            latency_s=latency_s,
            usage=self.usage,
            probability=self.probability,
            choice_logprobs=self.choice_logprobs,
            token_logprobs=self.token_logprobs,
            stopped_by=self.stopped_by,
            seed=self.seed,
            visible=self.visible,
            window=self.window,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo(Record):
    """Facts about a session at one moment.

    Attributes:
        id: its name.
        version: entries in its cells.
        pending: entries that were pushed and are not in the cells yet: those that wait and those
            that are being read. `version + pending` is the last number that was given, as long as
            none is dropped.
        pending_tokens: their tokens.
        cells: capacity.
        tokens: cells in use at that version.
        bytes: of its cells, wherever they are kept; those that it shares with other sessions
            included. 0 if they are to be computed again.
        residency: where its cells live; "log" if they are to be computed again from its tokens.
        resume_s: what bringing them to the device would take, as measured so far; 0 if they are
            there, None if nothing was measured yet.
        tenant: whose it is.
        reserve: cells that are always there for it.
        pinned: whether it never leaves the device.
        lag_s: how long the oldest of them has waited; 0 if none does.
        dropped: entries that were displaced from its queue so far.
        flashes: registered questions.
        stopped: why it reads nothing more, though it can be asked; None while it reads.
        window: what of its entries stays in its context; None for all.
        visible: with a window, the entries that its version sees; None without one.
    """

    id: str
    version: int
    pending: int
    pending_tokens: int
    cells: int
    tokens: int
    bytes: int
    residency: Place
    resume_s: float | None
    tenant: str
    reserve: int
    pinned: bool
    lag_s: float
    dropped: int
    flashes: int
    stopped: str | None
    window: Window | None = None
    visible: tuple[Span, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected(EventRecord):
    """The first event of a subscription.

    Attributes:
        session: its id.
        version: where it stands.
        pending: entries that are not committed yet.
    """

    event: ClassVar[str] = "connected"
    session: str
    version: int
    pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUpdated(EventRecord):
    """Entries were committed: the session's new version, and how many are not committed yet."""

    event: ClassVar[str] = "data_updated"
    version: int
    pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashReady(EventRecord):
    """A registered question was answered.

    Attributes:
        id: of the flash query.
        question: its text.
        answer: with the version that it saw.
        fired: whether the query's condition came true with this answer (without a condition:
            whether the text differs from the answer before).
    """

    event: ClassVar[str] = "flash_ready"
    id: str
    question: str
    answer: Answer
    fired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(EventRecord):
    """A session's cells moved.

    Attributes:
        to: where they are now; "log" if they were given up, to be computed again from the tokens.
        cells: how many.
        took_s: how long copying them took; what computing takes again shows as ingest.
    """

    event: ClassVar[str] = "moved"
    to: Place
    cells: int
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMoved(EventRecord):
    """A session's window moved: the versions behind `version` do not see what has left.

    Attributes:
        version: the last that saw it.
        visible: entries up to that version that later ones see.
        left: entries that no later version sees, since they are too old, too many, or too long.
        replaced: likewise, since a newer entry has their key.
    """

    event: ClassVar[str] = "window_moved"
    version: int
    visible: tuple[Span, ...]
    left: tuple[Span, ...]
    replaced: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(EventRecord):
    """The last event of a subscription, and why it is the last."""

    event: ClassVar[str] = "closed"
    reason: str


Event: TypeAlias = Connected | DataUpdated | FlashReady | Moved | WindowMoved | Closed


Work = Literal["ask", "ingest", "flash", "rebuild"]


Stage = Literal["waiting", "reading", "scoring", "decoding"]


WORKS: tuple[Work, ...] = ("ask", "ingest", "flash", "rebuild")
