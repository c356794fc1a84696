"""What a session is asked: the answer that is there already, or a question for the loop.

Comes in: a question as it was asked, and of which version. Goes out: the answer of a fresh flash
query of that text, without the engine's lock, or futures. Does not know: how it is computed, when.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.session_manager import SessionManager, close_session
from jaxstate.engine.core.state import border_of, holds_version, unavailable
from jaxstate.engine.requests.encoding import ANY, PromptEncoder, Settings, VersionWanted
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.engine.requests.request import Question
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.types.values import Answer
from jaxstate.text import Messages


def flash_hit(
    core: EngineCore,
    record: SessionRecord,
    question: str | None,
    settings: Settings,
    wanted: VersionWanted,
    started_s: float,
) -> tuple[Answer | None, Question | None]:
    """The answer of the flash query of that text, if it is fresh and just what is asked for.

    Args:
        core: of the engine.
        record: the session's.
        question: as it was asked; None for what no flash query can be.
        settings: how.
        wanted: the version that the answer must have seen.
        started_s: when it was asked.

    Returns:
        The answer, or None; and the registered question, if its settings are what is asked for, so
        that it need not be made anew.
    """
    # Without the lock, which the loop holds for most of a busy turn: every reference that is read
    # here is replaced as a whole, and none is changed.
    core.owner.check()
    registered = record.flash.of_text(question) if isinstance(question, str) else None
    if registered is None or record.closed:
        return None, None
    if (given := registered.given) is not None:
        answer, steps = given
        fresh = record.flash.is_current(answer) and wanted.suits(answer.version)
        if fresh and settings.would_give(registered.asked, answer, steps):
            return _given(core, answer, started_s), None
        if fresh and (ready := registered.ready(settings, answer)) is not None:
            return _given(core, ready, started_s), None
    same = settings.fit(registered.asked) and settings.same_length(registered.asked)
    return None, registered.asked if same else None


def submit(
    core: EngineCore,
    encoder: PromptEncoder,
    records: Sequence[SessionRecord],
    question: str,
    settings: Settings,
) -> list[AskFuture]:
    """One question to many sessions, tokenised once and noted at once."""
    started_s = core.clock()
    make = functools.cache(lambda: encoder.ask(question, settings))
    found = [flash_hit(core, record, question, settings, ANY, started_s) for record in records]
    pairs = zip(records, found, strict=True)
    asks = [(record, same or make(), 0) for record, (given, same) in pairs if given is None]
    computed = iter(core.ask(asks, started_s))
    return [AskFuture.of(given) if given is not None else next(computed) for given, _ in found]


def _given(core: EngineCore, answer: Answer, started_s: float) -> Answer:
    """An answer that was there already."""
    latency_s = core.clock() - started_s
    if core.recorder.given(answer.source, latency_s):
        with core.lock:
            core.recorder.count_given()
    return answer.given(latency_s)


def given_or_submitted(
    core: EngineCore,
    encoder: PromptEncoder,
    record: SessionRecord,
    question: str | Messages,
    settings: Settings,
    wanted: VersionWanted,
    on_text: Callable[[str], None] | None = None,
) -> Answer | AskFuture:
    """The answer to a question if it is there already, or its future.

    Args:
        core, encoder: of the engine.
        record: the session's.
        question, settings, wanted: what is asked, how, and at which version.
        on_text: as in `PendingAsk`.

    Raises:
        InvalidInput, PromptTooLong: the question cannot be asked.
        JaxstateError: as `submit_one`.
    """
    started_s = core.clock()
    given, same = flash_hit(core, record, text_alone(question), settings, wanted, started_s)
    if given is not None:
        return given
    asked = same or encoder.ask(question, settings)
    return submit_one(core, record, asked, wanted, started_s, on_text)


def text_alone(question: str | Messages) -> str | None:
    """The text of a question that has nothing before it."""
    if isinstance(question, str):
        return question
    match question:
        case [{"role": "user", "content": str(content)}]:
            return content
    return None


def converse(
    core: EngineCore,
    manager: SessionManager,
    encoder: PromptEncoder,
    messages: Messages,
    settings: Settings,
    tenant: str,
    on_text: Callable[[str], None] | None = None,
) -> AskFuture:
    """A conversation that no session has read, to be answered.

    Args:
        core, manager, encoder: of the engine.
        messages: they end with what is asked.
        settings: how it is to be answered.
        tenant: who asks.
        on_text: as in `PendingAsk`.

    Raises:
        InvalidInput, PromptTooLong, CapacityExceeded: it cannot be asked.
        BudgetExceeded: there are no cells for it.
        ClosedError: the engine is closed.
    """
    started_s = core.clock()
    opening, asked = encoder.conversation(messages, settings)
    record = manager.open_passing(opening, tenant)
    with core.or_closed(record):
        future = submit_one(core, record, asked, ANY, started_s, on_text)
    future.add_done_callback(lambda _: close_session(core, record, "its answer was given"))
    return future


def submit_one(
    core: EngineCore,
    record: SessionRecord,
    asked: Question,
    wanted: VersionWanted,
    arrived_s: float,
    on_text: Callable[[str], None] | None = None,
) -> AskFuture:
    """A question to one session, noted.

    Args:
        core: of the engine.
        record: the session's.
        asked: the question.
        wanted: which version it is about.
        arrived_s: when it was asked.
        on_text: as in `PendingAsk`.

    Raises:
        InvalidInput: the session has no such version.
        VersionUnavailable: it does not hold that version.
        QueueFull: the session has as many asks as it may.
        ClosedError: the session or the engine is closed.
    """
    with core.changing() as state:
        core.check_asks([record])
        version_end = None
        if wanted.as_of is None:
            record.check_reads(wanted.least)
        else:
            version_end = border_of(record, "as_of", wanted.as_of)
            if not holds_version(state, record, version_end):
                raise unavailable(state, record, version_end)
        key, future = core.note(
            record,
            asked,
            arrived_s,
            min_version=wanted.least,
            as_of=version_end,
            on_text=on_text,
        )
    core.follow(record, key, future)
    return future
