"""The routes of sessions: made, listed, pushed to, asked, watched, ended.

Comes in: calls. Goes out: replies of `wire`, and streams of them. Does not know: keys, sockets.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import cast

from msgspec import UNSET
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import jaxstate
from jaxstate.serve import wire
from jaxstate.serve.calls import DONE, HEARTBEAT, Call, event_stream, frame, replied
from jaxstate.serve.errors import ApiError
from jaxstate.serve.events import flash_number, watched
from jaxstate.serve.keys import ServedTenant
from jaxstate.serve.lines import LINE_TYPES, push_lines
from jaxstate.serve.pushing import numbered, pushed
from jaxstate.serve.service import ServedSession
from jaxstate.text import Message

_JSON = "application/json"
# What `curl -d` says of any body; what is no JSON is refused then.
_OF_CURL = "application/x-www-form-urlencoded"
# Of an answer whose length the client left open.
_USUAL_TOKENS = 256
# Of its entries, that a session is asked to show at once.
_MOST_ENTRIES = 1000
_FLASH_TOKENS = range(1, 257)


# --- their lives ---


async def create(call: Call) -> Response:
    """A new session, once the journal has it."""
    wanted = await call.body(wire.SessionCreate)
    window = checked_window(wanted.window, call.tenant)
    name, known = call.service.new_name(call.tenant, wanted.id)
    session = call.service.engine.open(
        known,
        prefix=wanted.prefix,
        tenant=call.tenant.name,
        reserve=wanted.reserve,
        residency="pinned" if wanted.pinned else "evictable",
        policy=wanted.policy,
        window=window,
    )
    served = call.service.adopt(call.tenant, name, session)
    try:
        await session.journaled()
    except BaseException:  # then it never was
        call.service.forget(served)
        raise
    return replied(described(served), 201)


def checked_window(
    given: int | wire.WindowSpec | None, tenant: ServedTenant
) -> jaxstate.Window | None:
    """A window as a client gave it.

    Raises:
        ApiError: it has a regular expression, which would run in the engine, and may not.
        InvalidInput: it is none.
    """
    if given is None:
        return None
    if isinstance(given, int):
        return jaxstate.Window(tokens=given)
    if given.key is not None and not tenant.operator:
        raise ApiError(403, "window.key runs a regular expression in the engine: operators only")
    return given.window()


def described(served: ServedSession) -> wire.SessionReply:
    """A session as clients see it."""
    info = served.session.info()
    window = info.window
    return wire.SessionReply(
        id=served.name,
        created=int(served.created_s),
        last_used=int(served.used_s),
        tokens=info.tokens,
        kv_tokens=info.tokens,
        busy=served.busy,
        turns=served.turns,
        data_end=info.tokens,
        data_version=max(info.version, 0),
        pending=info.pending,
        pre_decode=False,
        ready=False,
        evicted=_left(info),
        pending_tokens=info.pending_tokens,
        cells=info.cells,
        bytes=info.bytes,
        residency=info.residency,
        lag_s=info.lag_s,
        dropped=info.dropped,
        flash_queries=info.flashes,
        window=UNSET if window is None or window.tokens is None else window.tokens,
        window_spec=UNSET if window is None else cast("dict[str, object]", window.as_dict()),
        visible=wire.spans(info.visible),
        stopped=UNSET if info.stopped is None else info.stopped,
        resume_s=wire.given(info.resume_s),
    )


def _left(info: jaxstate.SessionInfo) -> int:
    """Entries that its window has left behind."""
    if info.visible is None:
        return 0
    seen = sum(one.last - one.first + 1 for one in info.visible)
    return max(0, info.version - info.dropped - seen)


async def list_all(call: Call) -> Response:
    """A tenant's sessions."""
    _ = call.service.engine
    return replied(wire.SessionList(data=[*map(described, call.service.sessions(call.tenant))]))


async def get(call: Call) -> Response:
    """One session."""
    name = str(call.request.path_params["id"])
    reply = described(call.service.find(call.tenant, name, uses=False))
    call.service.find(call.tenant, name)
    return replied(reply)


async def delete(call: Call) -> Response:
    """Ends a session, once the journal knows; with `?erase=true` nothing of it stays."""
    served = call.session
    if served.busy:
        raise ApiError(
            409, f"session {served.name!r} is answering a question; wait for it", code="busy"
        )
    if call.request.query_params.get("erase") == "true":
        await served.session.erase()
    else:
        served.session.close()
        await served.session.journaled()
    call.service.forget(served)
    return replied(wire.SessionDeleted(id=served.name))


async def fork(call: Call) -> Response:
    """A session that goes on from another."""
    wanted, parent = await call.body(wire.ForkCreate), call.session
    name, known = call.service.new_name(call.tenant, wanted.id)
    forked = await parent.session.fork(known, version=wanted.version)
    return replied(described(call.service.adopt(call.tenant, name, forked)), 201)


async def suspend(call: Call) -> Response:
    """Its cells leave the device."""
    served = call.session
    await served.session.suspend(call.service.settings.ask_s)
    return replied(described(served))


async def resume(call: Call) -> Response:
    """Its cells come back."""
    served = call.session
    await served.session.resume(call.service.settings.ask_s)
    return replied(described(served))


async def set_window(call: Call) -> Response:
    """Another window."""
    wanted, served = await call.body(wire.WindowChange), call.session
    served.session.set_window(checked_window(wanted.window, call.tenant))
    await served.session.journaled()
    return replied(described(served))


# --- data ---


async def push(call: Call) -> Response:
    """Entries: JSON, or one a line (`text/plain`, `application/x-ndjson`)."""
    served = call.session
    kind = call.request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if kind in LINE_TYPES:
        return replied(await push_lines(call, served, kind))
    if kind not in (_JSON, _OF_CURL):
        raise ApiError(
            415,
            f"content-type {kind[:60]!r} is none of application/json (a push), text/plain (an "
            "entry a line), application/x-ndjson (an object a line)",
        )
    wanted = await call.body(wire.PushCreate)
    client, client_seq = numbered(call, wanted.client, wanted.client_seq)
    entries = [wanted.data] if isinstance(wanted.data, str) else wanted.data
    return replied(
        await pushed(
            served,
            entries,
            client=client,
            client_seq=client_seq,
            strict=wanted.strict,
            timeout_s=call.service.settings.push_s,
        )
    )


async def position(call: Call) -> Response:
    """Where a client that numbers its pushes goes on."""
    client = call.request.query_params.get("client", "")
    if not client:
        raise ApiError(400, "client is missing in the query: the name that the pushes had")
    return replied(
        wire.PositionReply(client=client, client_seq=await call.session.session.client_seq(client))
    )


async def entries(call: Call) -> Response:
    """The newest entries that a session sees, made of its tokens: `?last=20` of them."""
    served, last = call.session, call.number("last")
    newest = served.session.newest_entries(min(20 if last is None else last, _MOST_ENTRIES))
    return replied(
        wire.EntryList(data=[wire.EntryReply(number=number, text=text) for number, text in newest])
    )


async def wait(call: Call) -> Response:
    """Waits until entries are read: up to `?version=`, or all that was pushed."""
    served, settings = call.session, call.service.settings
    waiting = served.session.wait(call.number("version"), settings.ask_s)
    version = await call.unless_gone(waiting, until_stop=True)
    return replied(wire.WaitReply(data_version=version))


# --- questions ---


def options_of(call: Call, served: ServedSession, wanted: wire.Generate) -> dict[str, object]:
    """A question's settings as the engine has them. Where no length is given, it is that of the
    flash question of that text, or the usual one."""
    stop = [wanted.stop] if isinstance(wanted.stop, str) else wanted.stop
    ends = call.service.model.with_own(stop)
    max_tokens = wanted.max_tokens or wanted.max_completion_tokens
    if max_tokens is None and wanted.choices is None:
        is_flash = served.session.flash_of(wanted.prompt) is not None
        usual = min(_USUAL_TOKENS, call.service.model.tail_cells // 2)
        max_tokens = None if is_flash else usual
    given = {
        "max_tokens": max_tokens,
        "choices": wanted.choices,
        "stop": ends,
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "seed": wanted.seed,
        "min_version": wanted.min_version,
        "as_of": wanted.as_of,
    }
    return {name: value for name, value in given.items() if value is not None}


async def generate(call: Call) -> Response:
    """An answer; in pieces if `stream`."""
    wanted, served = await call.body(wire.Generate), call.session
    ends_s = time.monotonic() + call.service.ask_s(wanted.timeout_s)
    if wanted.fast_answer:
        with served.turn():
            quick = await call.unless_gone(_fast_answer(served, wanted, ends_s))
        if quick is not None:
            return _fast_reply(served, wanted, quick)
    timeout_s = round(max(0.0, ends_s - time.monotonic()), 3)
    options = options_of(call, served, wanted)
    if wanted.stream:
        stream = served.session.stream(wanted.prompt, timeout=timeout_s, **options)  # pyright: ignore
        served.streams.add(stream)
        return event_stream(_pieces(served, stream, wanted.prompt), "openai")
    asking = served.session.ask(wanted.prompt, timeout=timeout_s, **options)  # pyright: ignore
    with served.turn():
        answer = await call.unless_gone(asking)
    return replied(generation(served, answer, wanted.prompt))


async def _pieces(
    served: ServedSession, stream: jaxstate.AsyncAnswerStream, question: str
) -> AsyncIterator[bytes]:
    """An answer as it grows, then what it was."""
    async with stream:
        with served.turn():
            async for piece in stream:
                yield frame({"text": piece})
    if stream.answer is None:
        raise ClientDisconnect
    yield frame(generation(served, stream.answer, question, in_stream=True))
    yield DONE


async def _fast_answer(
    served: ServedSession, wanted: wire.Generate, ends_s: float
) -> jaxstate.Answer | None:
    """One of the candidates, if it leads by enough."""
    timeout_s = max(0.0, ends_s - time.monotonic())
    answer = await served.session.ask(wanted.prompt, choices=wanted.fast_answer, timeout=timeout_s)
    return answer if answer.confidence >= wanted.gap_threshold else None


def _fast_reply(served: ServedSession, wanted: wire.Generate, answer: jaxstate.Answer) -> Response:
    reply = generation(served, answer, wanted.prompt, in_stream=wanted.stream)
    reply.speculative, reply.logit_gap = True, wire.finite(answer.confidence)
    reply.usage = wire.UsageReply(prompt_tokens=0, completion_tokens=0)
    if not wanted.stream:
        return replied(reply)

    async def frames() -> AsyncIterator[bytes]:
        yield frame({"text": answer.text})
        yield frame(reply)
        yield DONE

    return event_stream(frames(), "openai")


def generation(
    served: ServedSession, answer: jaxstate.Answer, question: str, *, in_stream: bool = False
) -> wire.GenerationReply:
    """An answer as clients of sessions see it."""
    reply = wire.GenerationReply(
        id=f"gen_{time.time_ns():x}",
        session_id=served.name,
        finish_reason=answer.finish_reason,
        data_version=answer.version,
        usage=_usage(answer),
        source=answer.source,
        latency_s=answer.latency_s,
        logprob=answer.logprob,
        text=UNSET if in_stream else answer.text,
        done=True if in_stream else UNSET,
        confidence=wire.finite(answer.confidence),
        probability=wire.given(answer.probability),
        choice_logprobs=UNSET if answer.choice_logprobs is None else [*answer.choice_logprobs],
        seed=UNSET if answer.seed is None else answer.seed,
        visible=wire.spans(answer.visible),
        window=UNSET if answer.window is None else answer.window,
    )
    if answer.source != "computed":
        query = served.session.flash_of(question)
        reply.flash = True
        reply.flash_id = UNSET if query is None else flash_number(query.id)
    return reply


def _usage(answer: jaxstate.Answer) -> wire.UsageReply:
    if answer.source != "computed":
        return wire.UsageReply(prompt_tokens=0, completion_tokens=0)
    usage = answer.usage
    prompt = usage.context_tokens + usage.question_tokens
    return wire.UsageReply(
        prompt_tokens=prompt,
        completion_tokens=usage.answer_tokens,
        total_tokens=prompt + usage.answer_tokens,
        prompt_tokens_details=wire.PromptDetails(cached_tokens=usage.cached_tokens),
    )


async def warm(call: Call) -> Response:
    """Brings a session's cells to the device ahead of a turn; what it has read needs no more."""
    wanted, served = await call.body(wire.WarmCreate), call.session
    messages = cast("list[Message]", wanted.messages)
    tokens = served.session.check(messages, max_tokens=1)
    was_there = served.session.info().residency == "device"
    await call.unless_gone(served.session.resume(call.service.settings.ask_s))
    info = served.session.info()
    return replied(
        wire.WarmReply(
            id=f"warm_{time.time_ns():x}",
            session_id=served.name,
            finish_reason="covered" if was_there else "warmed",
            prompt_tokens=info.tokens + tokens,
            cached_tokens=info.tokens,
            data_version=max(info.version, 0),
        )
    )


# --- flash queries ---


async def flash(call: Call) -> Response:
    """Registers a question, once the journal has it."""
    wanted, served = await call.body(wire.FlashCreate), call.session
    condition = None if wanted.when is None else wanted.when.condition()
    on_fire = call.service.webhooks.sender(
        call.tenant.name, served.name, wanted.query, wanted.webhook
    )
    asked = served.session.check(wanted.query, max_tokens=1)
    room = call.service.model.tail_cells - asked + 1
    max_tokens = max(_FLASH_TOKENS[0], min(wanted.max_tokens, _FLASH_TOKENS[-1], room))
    try:
        query = served.session.flash(
            wanted.query,
            max_tokens=None if wanted.choices else max_tokens,
            choices=wanted.choices,
            stop=wanted.stop,
            when=condition,
            on_fire=on_fire,
            min_interval_s=wanted.min_interval_s,
            deadline_s=wanted.deadline_s,
            staleness_s=wanted.staleness_s,
        )
    except jaxstate.InvalidInput as error:
        if served.session.flash_of(wanted.query) is not None:
            raise ApiError(
                409,
                f"{wanted.query!r} is registered already; remove that one first to register it "
                "with other settings",
                code="flash_exists",
            ) from error
        raise
    await served.session.journaled()
    return replied(flash_reply(served, query), 201)


def flash_reply(served: ServedSession, query: jaxstate.FlashQuery) -> wire.FlashReply:
    """A registered question as clients see it."""
    answer = query.answer
    reply = wire.FlashReply(
        id=flash_number(query.id),
        query=query.question,
        max_tokens=query.max_tokens,
        tokens=query.tokens,
        fresh=query.fresh,
        error=UNSET if query.error is None else query.error,
    )
    if answer is not None:
        reply.value, reply.data_version = answer.text, answer.version
        reply.confidence = wire.finite(answer.confidence)
        if (age_s := query.age_s) is not None:
            reply.evaluated_at = int(time.time() - age_s)
        reply.probability = wire.given(answer.probability)
    return reply


async def list_flash(call: Call) -> Response:
    """The registered questions."""
    served = call.session
    queries = [flash_reply(served, one) for one in served.session.flashes()]
    version = max(served.session.version, 0)
    return replied(wire.FlashList(data=queries, data_version=version))


async def unflash(call: Call) -> Response:
    """Forgets a registered question."""
    served, number = call.session, str(call.request.path_params["flash_id"])
    there = {str(flash_number(one.id)): one.id for one in served.session.flashes()}
    if number not in there:
        raise ApiError(404, f"no flash query {number[:40]!r}; there are {sorted(there)}")
    served.session.unflash(there[number])
    await served.session.journaled()
    return replied(wire.FlashDeleted(id=int(number), remaining=len(there) - 1))


# --- events ---


async def events(call: Call) -> Response:
    """What happens in a session, from now on, behind the answers that are there."""
    served = call.session
    flash_mode = "always" if call.request.query_params.get("flash") == "always" else "changed"
    return event_stream(_framed(watched(call.service, served, flash_mode)), "openai")


async def _framed(
    happened: AsyncIterator[tuple[str, object] | None],
) -> AsyncIterator[bytes]:
    async for one in happened:
        yield HEARTBEAT if one is None else frame(one[1], one[0])
