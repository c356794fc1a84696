"""The next step, as a table: a view in, one step out. And what holds for every view."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxstate.engine.executor.protocol import RowSizes, size_for
from jaxstate.engine.scheduler.scheduler import plan
from jaxstate.engine.scheduler.views import (
    Begin,
    GoOn,
    Ingest,
    RequestView,
    SessionView,
    Step,
    View,
)
from jaxstate.engine.types.options import Policy
from jaxstate.engine.types.values import WORKS, Stage, Work
from jaxstate.errors import InvalidInput

START_ROWS = ((16, 8), (32, 4))


def ask(key: int, stage: Stage = "waiting", **settings_: object) -> RequestView:
    return RequestView(**{"key": key, "work": "ask", "stage": stage, "arrived_s": 0.0, **settings_})


def flash(key: int, stage: Stage = "decoding", **settings_: object) -> RequestView:
    return RequestView(
        **{"key": key, "work": "flash", "stage": stage, "arrived_s": 0.0, **settings_}
    )


def session(key: int, *requests: RequestView, **settings_: object) -> SessionView:
    return SessionView(**{"key": key, "seen_cells": 0, "requests": requests, **settings_})


def entries(key: int, tokens: int, *requests: RequestView, **settings_: object) -> SessionView:
    return session(key, *requests, ingest_tokens=tokens, ingest_entries=True, **settings_)


def view(*sessions: SessionView, **settings_: object) -> View:
    defaults = {"free_blocks": 64, "rows": 8, "start_rows": START_ROWS, "extend_tokens": 16}
    return View(**{"sessions": sessions, **defaults, **settings_})


def begin(key: int, *requests: int, work: Work = "ask", evict: bool = False) -> Begin:
    return Begin(work=work, session=key, requests=requests, evict=evict)


def go_on(key: int, *requests: int, work: Work = "ask", stage: Stage = "decoding") -> GoOn:
    return GoOn(work=work, session=key, stage=stage, requests=requests)


def ingest(key: int, tokens: int, work: Work = "ingest") -> Ingest:
    return Ingest(work=work, session=key, tokens=tokens)


ALL = session(1, ask(1), ingest_tokens=5, ingest_entries=True, flash_due=1)


def without(**settings_: object) -> SessionView:
    return replace(ALL, **settings_)


WAITED = {"ingest": 8, "flash": 32}

TABLE: dict[str, tuple[View, Step | None]] = {
    # the order of the classes
    "nothing": (view(), None),
    "a session without work": (view(session(1)), None),
    "ask first": (view(ALL), begin(1, 1)),
    "then ingest": (view(without(requests=())), ingest(1, 5)),
    "then flash": (
        view(without(requests=(), ingest_tokens=0, ingest_entries=False)),
        begin(1, work="flash"),
    ),
    "ask of another session": (
        view(entries(1, 5, flash_due=1), session(2, ask(7))),
        begin(2, 7),
    ),
    # patience
    "ingest is patient": (view(ALL, waited={"ingest": 7}), begin(1, 1)),
    "ingest is no longer patient": (view(ALL, waited={"ingest": 8}), ingest(1, 5)),
    "flash is patient": (view(ALL, waited={"flash": 31}), begin(1, 1)),
    "flash is no longer patient": (view(ALL, waited={"flash": 32}), begin(1, work="flash")),
    "of the impatient the most urgent": (view(ALL, waited=WAITED), ingest(1, 5)),
    "impatience without work": (view(session(1, ask(1)), waited=WAITED), begin(1, 1)),
    "asks have no patience to lose": (view(ALL, waited={"ask": 999}), begin(1, 1)),
    # asks that begin
    "oldest first within a session": (
        view(session(1, ask(1, arrived_s=3.0), ask(2, arrived_s=1.0))),
        begin(1, 2, 1),
    ),
    "oldest session first": (
        view(session(1, ask(1, arrived_s=3.0)), session(2, ask(2, arrived_s=1.0))),
        begin(2, 2),
    ),
    "as many as rows begin": (
        view(session(1, *(ask(n, tokens=16) for n in range(9)))),
        begin(1, *range(8)),
    ),
    "fewer of long ones": (
        view(session(1, *(ask(n, tokens=17) for n in range(9)))),
        begin(1, *range(4)),
    ),
    "a long one among short ones": (
        view(session(1, *(ask(n, tokens=20 if n == 4 else 3) for n in range(9)))),
        begin(1, 0, 1, 2, 3),
    ),
    "a long one first": (
        view(session(1, *(ask(n, tokens=20 if n == 0 else 3) for n in range(9)))),
        begin(1, 0, 1, 2, 3),
    ),
    # blocks
    "as many as blocks": (
        view(session(1, ask(1, blocks=3), ask(2, blocks=3)), free_blocks=5),
        begin(1, 1),
    ),
    "none without blocks": (view(session(1, ask(1, blocks=3)), free_blocks=2), None),
    "no overtaking for blocks": (
        view(session(1, ask(1, blocks=3), ask(2, blocks=1)), free_blocks=2),
        None,
    ),
    "none of another session's overtakes for blocks": (
        view(session(1, ask(1, blocks=3)), session(2, ask(2, arrived_s=9.0)), free_blocks=2),
        None,
    ),
    "but it is not held back by one that could not begin": (
        view(
            session(1, ask(1, blocks=3, blocked=True)),
            session(2, ask(2, arrived_s=9.0)),
            free_blocks=2,
        ),
        begin(2, 2),
    ),
    "nor held back if it is older": (
        view(session(1, ask(1, blocks=3, arrived_s=9.0)), session(2, ask(2)), free_blocks=2),
        begin(2, 2),
    ),
    "whoever began asks longest ago": (
        view(session(1, ask(1), asks_served=4), session(2, ask(2, arrived_s=9.0), asks_served=3)),
        begin(2, 2),
    ),
    "registered questions that lack blocks are patient": (
        view(session(1, ask(1), flash_due=1, flash_blocks=3), free_blocks=2, waited={"flash": 31}),
        begin(1, 1),
    ),
    "until their patience is spent": (
        view(
            session(1, ask(1), ask(2, "decoding"), flash_due=1, flash_blocks=3),
            free_blocks=2,
            waited={"flash": 32},
        ),
        go_on(1, 2),
    ),
    "then they begin": (
        view(
            session(1, ask(1), ask(2, "decoding"), flash_due=1, flash_blocks=3),
            free_blocks=3,
            waited={"flash": 32},
        ),
        begin(1, work="flash"),
    ),
    "evict for an ask": (
        view(session(1, ask(1, blocks=3)), free_blocks=2, evictable_blocks=1),
        begin(1, 1, evict=True),
    ),
    "do not evict without need": (
        view(session(1, ask(1, blocks=3)), free_blocks=3, evictable_blocks=60),
        begin(1, 1),
    ),
    "eviction that would not help": (
        view(session(1, ask(1, blocks=3)), free_blocks=1, evictable_blocks=1),
        None,
    ),
    "asks without blocks go on": (
        view(session(1, ask(1, blocks=3), ask(2, "decoding")), free_blocks=0),
        go_on(1, 2),
    ),
    # asks that go on
    "decode together": (
        view(session(1, ask(1, "decoding"), ask(2, "decoding"))),
        go_on(1, 1, 2),
    ),
    "not with other cells": (
        view(
            session(
                1,
                ask(1, "decoding", seen_cells=5, served=4),
                ask(2, "decoding", seen_cells=9, served=3),
            )
        ),
        go_on(1, 2),
    ),
    "not in another stage": (
        view(session(1, ask(1, "decoding", served=2), ask(2, "scoring", served=1))),
        go_on(1, 2, stage="scoring"),
    ),
    "score together": (
        view(session(1, ask(1, "scoring"), ask(2, "scoring"))),
        go_on(1, 1, 2, stage="scoring"),
    ),
    "read alone": (
        view(session(1, ask(1, "reading", served=2), ask(2, "reading", served=1))),
        go_on(1, 2, stage="reading"),
    ),
    "as many as rows, the longest unserved": (
        view(session(1, *(ask(n, "decoding", served=20 - n) for n in range(10)))),
        go_on(1, *range(9, 1, -1)),
    ),
    "the longest unserved session": (
        view(session(1, ask(1, "decoding", served=5)), session(2, ask(2, "decoding", served=4))),
        go_on(2, 2),
    ),
    # those that begin and those that go on take turns
    "begin after going on": (
        view(session(1, ask(1), ask(2, "decoding")), asks_began=False),
        begin(1, 1),
    ),
    "go on after a beginning": (
        view(session(1, ask(1), ask(2, "decoding")), asks_began=True),
        go_on(1, 2),
    ),
    "begin again if none goes on": (view(session(1, ask(1)), asks_began=True), begin(1, 1)),
    "go on again if none begins": (
        view(session(1, ask(2, "decoding")), asks_began=False),
        go_on(1, 2),
    ),
    # riding along
    "flash rides along": (
        view(session(1, ask(1, "decoding"), flash(2), flash(3))),
        go_on(1, 1, 2, 3),
    ),
    "not at another length": (
        view(session(1, ask(1, "decoding", seen_cells=5), flash(2, seen_cells=4))),
        go_on(1, 1),
    ),
    "not of another session": (
        view(session(1, ask(1, "decoding")), session(2, flash(2))),
        go_on(1, 1),
    ),
    "not while it reads": (
        view(session(1, ask(1, "decoding"), flash(2, "reading"))),
        go_on(1, 1),
    ),
    "not with an ask that reads": (
        view(session(1, ask(1, "reading"), flash(2, "reading"))),
        go_on(1, 1, stage="reading"),
    ),
    "only where there is room": (
        view(session(1, *(ask(n, "decoding") for n in range(7)), flash(8), flash(9))),
        go_on(1, *range(7), 8),
    ),
    # what an ask waits for
    "a blocked ask lends its urgency": (
        view(entries(1, 40, ask(1, blocked=True)), session(2, ask(2, "decoding"))),
        ingest(1, 16, work="ask"),
    ),
    "only to its own session": (
        view(session(1, ask(1, blocked=True)), entries(2, 40), waited={}),
        ingest(2, 16),
    ),
    "a blocked ask without entries": (view(session(1, ask(1, blocked=True))), None),
    "others of the session begin": (
        view(session(1, ask(1, blocked=True), ask(2))),
        begin(1, 2),
    ),
    # ingest
    "a chunk at most": (view(entries(1, 17)), ingest(1, 16)),
    "what waits at most": (view(entries(1, 3)), ingest(1, 3)),
    "entries without tokens": (view(entries(1, 0)), ingest(1, 0)),
    "not past pinned cells": (view(entries(1, 17, growth_tokens=4)), ingest(1, 4)),
    "not without room to grow": (view(entries(1, 17, growth_tokens=0)), None),
    "without tokens it needs no room": (view(entries(1, 0, growth_tokens=0)), ingest(1, 0)),
    "a pinned ask goes on": (
        view(entries(1, 17, ask(1, "decoding"), growth_tokens=0), waited={"ingest": 99}),
        go_on(1, 1),
    ),
    "the session read longest ago": (
        view(entries(1, 5, ingest_served=9), entries(2, 5, ingest_served=8)),
        ingest(2, 5),
    ),
    "or waiting longest": (
        view(entries(1, 5, ingest_since_s=2.0), entries(2, 5, ingest_since_s=1.0)),
        ingest(2, 5),
    ),
    # flash
    "flash begins before it goes on": (
        view(session(1, flash(1), flash_due=1, flash_rows=1)),
        begin(1, work="flash"),
    ),
    "but finishes what is outdated": (
        view(session(1, flash(1, seen_cells=4), flash_due=1, flash_rows=1, seen_cells=5)),
        go_on(1, 1, work="flash"),
    ),
    "or what holds its blocks": (
        view(session(1, flash(1), flash_due=1, flash_rows=1, flash_blocks=3), free_blocks=2),
        go_on(1, 1, work="flash"),
    ),
    "or all rows": (
        view(session(1, *(flash(n) for n in range(8)), flash_due=1, flash_rows=8)),
        go_on(1, *range(8), work="flash"),
    ),
    "no row is left though none can go on": (
        view(session(1, flash(1), flash_due=1, flash_rows=8)),
        go_on(1, 1, work="flash"),
    ),
    "flash waits for asks' blocks": (
        view(session(1, flash_due=1, flash_blocks=3), free_blocks=2),
        None,
    ),
    "the session served longest ago": (
        view(session(1, flash_due=1, flash_served=3), session(2, flash_due=1, flash_served=2)),
        begin(2, work="flash"),
    ),
    "flash reads alone": (
        view(session(1, flash(1, "reading", served=2), flash(2, "reading", served=1))),
        go_on(1, 2, work="flash", stage="reading"),
    ),
    # deadlines
    "overdue is as urgent as an ask": (
        view(
            session(1, flash_due=1, flash_overdue=True),
            entries(2, 5),
            session(3, ask(1, "decoding")),
        ),
        begin(1, work="ask"),
    ),
    "overdue and under way": (
        view(
            session(1, flash(4, served=1), flash_overdue=True),
            session(2, ask(1, "decoding", served=2)),
        ),
        go_on(1, 4, work="ask"),
    ),
    "an older ask first": (
        view(
            session(1, flash_due=1, flash_overdue=True, flash_since_s=5.0),
            session(2, ask(1, arrived_s=4.0)),
        ),
        begin(2, 1),
    ),
    "a younger ask second": (
        view(
            session(1, flash_due=1, flash_overdue=True, flash_since_s=5.0, flash_served=7),
            session(2, ask(1, arrived_s=6.0), asks_served=8),
        ),
        begin(1, work="ask"),
    ),
    "an ask of a session that was served longer ago": (
        view(
            session(1, flash_due=1, flash_overdue=True, flash_since_s=5.0, flash_served=7),
            session(2, ask(1, arrived_s=6.0), asks_served=6),
        ),
        begin(2, 1),
    ),
    "no two lent steps in a row before an ask": (
        view(
            session(1, flash_due=1, flash_overdue=True),
            session(2, ask(1, arrived_s=6.0), asks_served=6),
            flash_lent=True,
        ),
        begin(2, 1),
    ),
    "but as many as there are without one": (
        view(session(1, flash_due=1, flash_overdue=True), flash_lent=True),
        begin(1, work="ask"),
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_table(case: str) -> None:
    seen, step = TABLE[case]
    planned = plan(seen, Policy())
    assert planned.step == step


@pytest.mark.parametrize(
    ("rows", "ride_rows", "asks", "riders"),
    [(8, 8, 3, 5), (8, 4, 3, 1), (8, 3, 3, 0), (8, 0, 3, 0), (4, 8, 3, 1), (8, 99, 1, 5)],
)
def test_how_many_ride_along(rows: int, ride_rows: int, asks: int, riders: int) -> None:
    requests = [ask(n, "decoding") for n in range(asks)] + [flash(10 + n) for n in range(5)]
    planned = plan(view(session(1, *requests), rows=rows), Policy(ride_rows=ride_rows))
    assert planned.step == go_on(1, *range(asks), *range(10, 10 + riders))


@pytest.mark.parametrize(
    ("rows", "ride_rows", "planned_rows"), [(4, 8, 4), (4, 99, 4), (4, 3, 3), (8, 8, 5), (8, 0, 1)]
)
def test_how_many_ride_along_from_other_sessions(
    rows: int, ride_rows: int, planned_rows: int
) -> None:
    """Two of each, and never more than a step has rows."""
    seen = view(
        session(1, ask(1, "decoding")),
        session(2, flash(10), flash(11)),
        session(3, flash(20), flash(21)),
        rows=rows,
        row_sizes=RowSizes(sizes=(1, 4), overhead_tokens=32),
        step_sessions=4,
        session_rows=2,
    )
    planned = plan(seen, Policy(ride_rows=ride_rows))
    assert planned.step == go_on(1, 1)
    riding = [
        request for one in planned.joined if isinstance(one, GoOn) for request in one.requests
    ]
    assert riding == [10, 11, 20, 21][: planned_rows - 1]


def test_runnable_is_what_could_have_run() -> None:
    rebuild = entries(2, 5, rebuilds=True)
    assert plan(view(ALL, rebuild), Policy()).runnable == frozenset(WORKS)
    assert plan(view(without(flash_due=0)), Policy()).runnable == {"ask", "ingest"}
    blocked = session(1, ask(1, blocked=True), flash_due=1)
    assert plan(view(blocked), Policy()).runnable == {"flash"}
    assert plan(view(), Policy()).runnable == frozenset()


def test_what_is_held_up_by_questions_under_way() -> None:
    """It counts as waiting, though it could not have run."""
    half_read = entries(1, 5, ask(1, "decoding"), growth_tokens=0)
    assert plan(view(half_read), Policy()).held_up == {"ingest"}
    assert plan(view(replace(half_read, growth_tokens=1)), Policy()).held_up == frozenset()
    assert plan(view(replace(half_read, ingest_tokens=0)), Policy()).held_up == frozenset()
    short = session(1, ask(1, "decoding"), flash_due=1, flash_blocks=3)
    assert plan(view(short, free_blocks=2), Policy()).held_up == {"flash"}
    assert plan(view(short, free_blocks=3), Policy()).held_up == frozenset()
    old = replace(short, requests=(flash(1, seen_cells=4),), seen_cells=5)
    assert plan(view(old, free_blocks=2), Policy()).held_up == frozenset()


@pytest.mark.parametrize("name", ["ingest_patience", "flash_patience"])
def test_shares_with_which_somebody_would_starve_are_refused(name: str) -> None:
    for value in (0, -1, 1.5, True, None):
        with pytest.raises(InvalidInput, match=name):
            Policy(**{name: value})  # pyright: ignore
    for other in ("ride_rows", "flash_drops"):
        with pytest.raises(InvalidInput, match=other):
            Policy(**{other: -1})
    assert Policy(ride_rows=0, flash_drops=0, ingest_patience=1).ride_rows == 0


def test_when_to_look_again() -> None:
    assert plan(view(next_due_s=7.0), Policy()).until_s == 7.0
    assert plan(view(), Policy()).until_s is None


@pytest.mark.parametrize(("tokens", "rows"), [(1, 8), (16, 8), (17, 4), (32, 4)])
def test_how_many_begin(tokens: int, rows: int) -> None:
    assert size_for(tokens, START_ROWS)[1] == rows


def test_the_documented_patience() -> None:
    policy = Policy()
    assert [policy.patience(work) for work in WORKS] == [0, 8, 32, 32]


# --- properties --------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn) -> View:
    """Anything the records could say: keys are unique, held rows are at least those shown."""
    keys = iter(range(100, 10_000))
    stages: st.SearchStrategy[Stage] = st.sampled_from(
        ["waiting", "reading", "scoring", "decoding"]
    )
    sessions = []
    for key in range(draw(st.integers(0, 4))):
        requests = []
        for _ in range(draw(st.integers(0, 5))):
            stage = draw(stages)
            requests.append(
                RequestView(
                    key=next(keys),
                    work="ask" if stage == "waiting" else draw(st.sampled_from(["ask", "flash"])),
                    stage=stage,
                    arrived_s=draw(st.integers(0, 9)),
                    served=draw(st.integers(0, 9)),
                    seen_cells=draw(st.sampled_from([5, 9])),
                    tokens=draw(st.integers(1, 32)),
                    blocks=draw(st.integers(1, 8)),
                    blocked=stage == "waiting" and draw(st.booleans()),
                )
            )
        waits = draw(st.booleans())
        running = sum(request.work == "flash" for request in requests)
        sessions.append(
            SessionView(
                key=key,
                seen_cells=draw(st.sampled_from([5, 9])),
                ingest_tokens=draw(st.integers(0, 40)) if waits else 0,
                ingest_entries=waits,
                ingest_since_s=draw(st.integers(0, 9)),
                ingest_served=draw(st.integers(0, 9)),
                growth_tokens=draw(st.sampled_from([0, 3, 1 << 30])),
                asks_served=draw(st.integers(0, 9)),
                requests=tuple(requests),
                flash_due=draw(st.integers(0, 2)),
                flash_rows=running + draw(st.integers(0, 2)),
                flash_blocks=draw(st.integers(1, 8)),
                flash_since_s=draw(st.integers(0, 9)),
                flash_served=draw(st.integers(0, 9)),
                flash_overdue=draw(st.booleans()),
            )
        )
    return View(
        sessions=tuple(sessions),
        free_blocks=draw(st.integers(0, 20)),
        evictable_blocks=draw(st.integers(0, 20)),
        waited={work: draw(st.integers(0, 140)) for work in WORKS},
        asks_began=draw(st.booleans()),
        flash_lent=draw(st.booleans()),
        rows=draw(st.integers(1, 8)),
        start_rows=START_ROWS,
        extend_tokens=16,
        next_due_s=draw(st.none() | st.just(3.0)),
    )


def lacks_blocks(one: SessionView, seen: View) -> bool:
    """Whether registered questions of a session would begin, but for tail blocks."""
    flashes = [request for request in one.requests if request.work == "flash"]
    return (
        one.flash_due > 0
        and one.flash_rows < seen.rows
        and all(request.seen_cells == one.seen_cells for request in flashes)
        and seen.free_blocks < one.flash_blocks
    )


def can_run(seen: View) -> set[Work]:
    """The classes that have something that a step could do, found without the scheduler."""
    found: set[Work] = set()
    ready = [
        request
        for one in seen.sessions
        for request in one.requests
        if request.stage == "waiting" and not request.blocked
    ]
    first = min(ready, key=lambda request: request.arrived_s, default=None)
    fits = first is not None and first.blocks <= seen.free_blocks + seen.evictable_blocks
    yields = seen.waited["flash"] >= 32 and any(lacks_blocks(one, seen) for one in seen.sessions)
    for one in seen.sessions:
        waiting = [
            request
            for request in one.requests
            if request.stage == "waiting" and not request.blocked
        ]
        oldest = min(waiting, key=lambda request: request.arrived_s, default=None)
        going = [request for request in one.requests if request.stage != "waiting"]
        reads = one.ingest_entries and (one.ingest_tokens == 0 or one.growth_tokens > 0)
        blocked = any(request.blocked for request in one.requests)
        flashes = [request for request in going if request.work == "flash"]
        begins = (
            one.flash_due > 0
            and one.flash_rows < seen.rows
            and seen.free_blocks >= one.flash_blocks
            and all(request.seen_cells == one.seen_cells for request in flashes)
        )
        room = seen.free_blocks + seen.evictable_blocks
        if oldest and oldest.blocks <= room and fits and not yields:
            found.add("ask")
        if any(request.work == "ask" for request in going) or (blocked and reads):
            found.add("ask")
        if reads:
            found.add("ingest")
        if flashes or begins:
            found.add("flash")
            if one.flash_overdue:
                found.add("ask")
    return found


@given(seen=views())
@settings(max_examples=120, deadline=None)
def test_something_runs_whenever_something_can(seen: View) -> None:
    planned = plan(seen, Policy())
    assert planned.runnable == can_run(seen)
    assert (planned.step is not None) == bool(planned.runnable)


@given(seen=views())
@settings(max_examples=120, deadline=None)
def test_a_step_is_possible(seen: View) -> None:
    """It names what is in the view, and fits into a step."""
    step = plan(seen, Policy()).step
    assume(step is not None)
    assert step is not None
    one = {one.key: one for one in seen.sessions}[step.session]
    requests = {request.key: request for request in one.requests}
    match step:
        case Ingest():
            assert 0 <= step.tokens <= min(seen.extend_tokens, one.ingest_tokens)
            assert step.tokens <= one.growth_tokens and one.ingest_entries
            assert step.tokens > 0 or one.ingest_tokens == 0
            assert step.work == "ingest" or any(request.blocked for request in one.requests)
        case Begin(requests=()):
            assert step.work == "flash" or one.flash_overdue
            assert one.flash_due > 0
        case Begin():
            chosen = [requests[key] for key in step.requests]
            assert step.work == "ask" and len(set(step.requests)) == len(chosen)
            assert all(request.stage == "waiting" and not request.blocked for request in chosen)
            longest = max(request.tokens for request in chosen)
            assert len(chosen) <= size_for(longest, seen.start_rows)[1]
            blocks = sum(request.blocks for request in chosen)
            assert blocks <= seen.free_blocks + (seen.evictable_blocks if step.evict else 0)
            assert step.evict == (blocks > seen.free_blocks)
        case GoOn():
            chosen = [requests[key] for key in step.requests]
            assert 1 <= len(chosen) <= seen.rows and len(set(step.requests)) == len(chosen)
            assert all(request.stage == step.stage != "waiting" for request in chosen)
            assert step.stage != "reading" or len(chosen) == 1
            if chosen[0].work == "ask":
                assert len({request.seen_cells for request in chosen}) == 1
            works = [request.work for request in chosen]
            assert works == sorted(works), "asks before those that ride along"


@given(seen=views())
@settings(max_examples=120, deadline=None)
def test_the_most_urgent_class_wins_unless_patience_is_spent(seen: View) -> None:
    planned = plan(seen, Policy())
    assume(planned.step is not None)
    assert planned.step is not None
    impatient = [
        work
        for work in ("ingest", "flash")
        if work in planned.runnable and seen.waited[work] >= Policy().patience(work)
    ]
    runnable = [work for work in WORKS if work in planned.runnable]
    assert planned.step.work == (impatient or runnable)[0]


@given(seen=views())
@settings(max_examples=50, deadline=None)
def test_the_same_view_gives_the_same_step(seen: View) -> None:
    assert plan(seen, Policy()) == plan(seen, Policy())


# --- a small loop ------------------------------------------------------------------------------


@dataclass
class Question:
    """A question of the loop: it begins with one step and then takes `left` more."""

    key: int
    arrived: int
    left: int
    begun: bool = False
    served: int = 0
    waits: list[str] = field(default_factory=list)


@dataclass
class Small:
    """One session that answers asks and flash questions, and reads; nothing but plan decides."""

    policy: Policy
    asks: list[Question] = field(default_factory=list)
    flash: list[Question] = field(default_factory=list)
    entries: int = 0
    flash_due: int = 0
    step: int = 0
    waited: dict[Work, int] = field(default_factory=dict)
    asks_began: bool = False
    log: list[str] = field(default_factory=list)
    keys: int = 0

    def question(self, left: int) -> Question:
        self.keys += 1
        return Question(self.keys, self.step, left)

    def view(self) -> View:
        requests = [
            RequestView(
                key=q.key,
                work=work,
                stage="decoding" if q.begun else "waiting",
                arrived_s=q.arrived,
                served=q.served,
            )
            for work, questions in (("ask", self.asks), ("flash", self.flash))
            for q in questions
        ]
        one = session(
            1,
            *requests,
            ingest_tokens=self.entries,
            ingest_entries=self.entries > 0,
            flash_due=self.flash_due,
            flash_rows=len(self.flash),
        )
        return view(one, waited=dict(self.waited), asks_began=self.asks_began)

    def turn(self) -> str | None:
        planned = plan(self.view(), self.policy)
        self.step += 1
        if planned.step is None:
            return None
        step, served = planned.step, {planned.step.work}
        match step:
            case Ingest():
                self.entries -= step.tokens
            case Begin(requests=()):
                self.flash += [replace(self.question(3), begun=True) for _ in range(self.flash_due)]
                self.flash_due = 0
            case Begin():
                self.asks_began = True
                for q in self.asks:
                    if q.key in step.requests:
                        q.begun, q.served = True, self.step
            case GoOn():
                self.asks_began = self.asks_began and step.work != "ask"
                for q in (*self.asks, *self.flash):
                    if q.key in step.requests:
                        q.left, q.served = q.left - 1, self.step
                        served.add("ask" if q in self.asks else "flash")
        for q in self.asks:
            ran = isinstance(step, Begin | GoOn) and q.key in step.requests
            q.waits.append("ran" if ran else step.work)
        self.asks = [q for q in self.asks if q.left > 0]
        self.flash = [q for q in self.flash if q.left > 0]
        for work in planned.runnable:
            self.waited[work] = self.waited.get(work, 0) + 1
        for work in served:
            self.waited[work] = 0
        self.log.append(step.work)
        return step.work


ACTS = st.sampled_from(["ask", "entries", "flash", "nothing"])


@given(acts=st.lists(ACTS, max_size=120), spare=st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_an_ask_never_waits_behind_flash_for_more_than_a_step(acts: list[str], spare: int) -> None:
    """Whatever arrives: between two steps of other classes, one flash step at most stands before an
    ask, and one begin or decode of other asks; and in the end everything is done."""
    policy = Policy(ingest_patience=3 + spare, flash_patience=5 + spare)
    loop = Small(policy)
    asked: list[Question] = []
    for act in acts:
        if act == "ask":
            asked.append(loop.question(2))
            loop.asks.append(asked[-1])
        loop.entries += 20 * (act == "entries")
        loop.flash_due = 2 if act == "flash" else loop.flash_due
        loop.turn()
    for _ in range(2000):
        if loop.turn() is None:
            break
    assert not (loop.asks or loop.flash or loop.entries or loop.flash_due)
    for question in asked:
        for work in ("flash", "ingest"):
            in_a_row = "".join("x" if one == work else "." for one in question.waits)
            assert "xx" not in in_a_row, f"{work} twice in a row before an ask"
        window = 5 + spare
        for start in range(len(question.waits) - window):
            assert question.waits[start : start + window].count("flash") <= 1


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_shares_under_a_flood_of_asks(patience: int) -> None:
    """A class of patience n gets one step in n + 1."""
    loop = Small(Policy(ingest_patience=patience))
    loop.entries = 10_000
    for _ in range(6 * (patience + 1)):
        loop.asks.append(loop.question(1))
        loop.turn()
    assert loop.log == (["ask"] * patience + ["ingest"]) * 6


def test_all_shares_at_once() -> None:
    """Nobody starves when all are impatient again and again (and nobody rides along)."""
    policy = Policy(ingest_patience=2, flash_patience=4, ride_rows=0)
    loop = Small(policy)
    for _ in range(200):
        loop.asks.append(loop.question(1))
        loop.entries, loop.flash_due = 100, 1
        loop.turn()
    counts = {work: loop.log.count(work) for work in WORKS}
    assert counts["ingest"] >= 200 // 4
    assert counts["flash"] >= 200 // 7
    assert counts["ask"] >= 200 // 3
