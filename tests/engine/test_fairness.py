"""Tenants get work by their weights, whatever the others do. On the fake device."""

from __future__ import annotations

import dataclasses

import pytest

from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.protocol import Limits
from jaxstate.engine.scheduler.fairness import CELLS_PER_TOKEN, START_TOKENS, FairShare
from jaxstate.engine.types.options import EngineConfig, Policy, Tenant
from jaxstate.errors import BudgetExceeded, InvalidInput
from jaxstate.testing import FAKE_LIMITS, SHARED_LIMITS, fake_layout
from tests.engine.rig import Rig, said

alone_and_shared = pytest.mark.parametrize(
    "limits", [FAKE_LIMITS, SHARED_LIMITS], ids=["alone", "shared"]
)


def test_work_is_tokens_and_cells_by_weight() -> None:
    shares = FairShare({"big": Tenant(weight=4.0)})
    for tenant in ("big", "small"):
        shares.charge(tenant, tokens=10, seen_cells=2 * CELLS_PER_TOKEN)
    assert (shares.work("big"), shares.work("small")) == (3.0, 12.0)


def test_a_tenant_that_comes_back_has_a_short_start() -> None:
    shares = FairShare({})
    shares.at_work(["busy", "other"])
    shares.charge("busy", 1000, 0)
    shares.charge("other", 800, 0)
    shares.at_work(["busy", "other", "late"])
    assert shares.work("late") == 800.0 - START_TOKENS
    shares.at_work(["busy"])
    shares.charge("late", 500, 0)
    shares.at_work(["busy", "late"])
    assert shares.work("late") == 1300.0 - START_TOKENS, "what it had more stays"


def test_a_pause_of_everybody_is_not_made_up_for_either() -> None:
    shares = FairShare({})
    shares.at_work(["busy"])
    shares.charge("busy", 1_000_000, 0)
    shares.at_work([])
    shares.at_work(["late"])
    shares.at_work(["late", "busy"])
    assert shares.work("busy") - shares.work("late") == START_TOKENS


@pytest.mark.parametrize(
    "wrong", [{"weight": 0}, {"weight": "1"}, {"weight": True}, {"quota_cells": 0}]
)
def test_shares_of_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Tenant(**wrong)  # pyright: ignore
    with pytest.raises(InvalidInput):
        EngineConfig(tenants={"a": 3})  # pyright: ignore


def one_chunk_a_step(limits: Limits) -> Limits:
    """Whoever is read for is read for alone, so that it shows whose turn it is."""
    return dataclasses.replace(limits, chunk_rows=((16, (1,)),))


def served(rig: Rig, sessions: dict[str, list[Session]], turns: int) -> dict[str, int]:
    """Tokens that were read for each tenant within so many turns."""
    before = {t: sum(s.record.residence.cells for s in group) for t, group in sessions.items()}
    rig.turns(turns)
    return {
        tenant: sum(s.record.residence.cells for s in group) - before[tenant]
        for tenant, group in sessions.items()
    }


@alone_and_shared
def test_a_flood_of_sessions_gets_no_more_than_its_share(limits: Limits) -> None:
    """Nine sessions of one tenant and one of another: both get half of the tokens."""
    rig = Rig(limits=one_chunk_a_step(limits))
    sessions = {
        "flood": [rig.open(tenant="flood") for _ in range(9)],
        "quiet": [rig.open(tenant="quiet")],
    }
    for group in sessions.values():
        for session in group:
            session.push(["x" * 15] * 60)
    rig.turns(40)  # while whoever came last has its start
    tokens = served(rig, sessions, 40)
    assert abs(tokens["flood"] - tokens["quiet"]) <= 16


@alone_and_shared
@pytest.mark.parametrize("last", ["busy", "both"])
@pytest.mark.parametrize("first", ["busy", "idle"])
def test_a_pause_of_both_is_neither_punished_nor_rewarded(
    limits: Limits, last: str, first: str
) -> None:
    """One tenant had eight times its start, the other next to nothing. Whoever was at work last and
    whoever comes back first: the other has its start once more, and from then on half."""
    rig = Rig(limits=one_chunk_a_step(limits))
    little = rig.open("x" * 15, tenant="idle")
    flooded(rig, "busy")
    if last == "both":
        little.push(["x" * 15] * 2)
    rig.engine.run()
    rig.clock.pass_s(60)
    assert not rig.engine.turn()
    sessions: dict[str, list[Session]] = {}
    for name in (first, "idle" if first == "busy" else "busy"):
        sessions[name] = flooded(rig, name)
        rig.turns(1)
    start, after = served(rig, sessions, 60), served(rig, sessions, 60)
    assert start["idle"] - start["busy"] == pytest.approx(START_TOKENS, abs=3 * 16)
    assert abs(after["idle"] - after["busy"]) <= 16
    assert sum(after.values()) == 60 * 16, "both had something to read all the time"


@alone_and_shared
@pytest.mark.parametrize("waits_for", ["a version", "its interval"])
def test_who_only_waits_is_not_at_work(limits: Limits, waits_for: str) -> None:
    """Nothing can be done for it while the other has eight times its start: it comes back as after
    a pause."""
    rig = Rig(limits=one_chunk_a_step(limits))
    little = rig.open("x" * 15, tenant="idle")
    if waits_for == "a version":
        little.submit("q", min_version=5)
    else:
        query = little.flash("q", min_interval_s=1e6)
        rig.engine.run()
        little.push("x" * 15)
        rig.engine.run()
        assert query.answer is not None and not query.fresh
    flooded(rig, "busy")
    rig.turns(125)
    more = flooded(rig, "busy")
    rig.turns(5)
    sessions = {"busy": more, "idle": flooded(rig, "idle")}
    start, after = served(rig, sessions, 40), served(rig, sessions, 100)
    assert 0 <= start["idle"] - start["busy"] <= START_TOKENS + 16
    assert abs(after["idle"] - after["busy"]) <= 16
    assert sum(after.values()) == 100 * 16, "both had something to read all the time"


def flooded(rig: Rig, tenant: str) -> list[Session]:
    """Two sessions with 1,920 tokens to read."""
    sessions = [rig.engine.open(tenant=tenant) for _ in range(2)]
    for session in sessions:
        session.push(["x" * 15] * 60)
    return sessions


def test_weights_share_the_work() -> None:
    config = EngineConfig(tenants={"big": Tenant(weight=3.0)})
    rig = Rig(config=config)
    sessions = {name: [rig.open(tenant=name)] for name in ("big", "small")}
    for group in sessions.values():
        group[0].push(["x" * 15] * 60)
    tokens = served(rig, sessions, 40)
    assert tokens["big"] == pytest.approx(3 * tokens["small"], rel=0.15)


@alone_and_shared
def test_a_noisy_tenant_leaves_anothers_latency_within_a_factor_of_three(limits: Limits) -> None:
    """An ask takes 0.8 s on an idle device; behind another's 200 asks and 200 entries no more than
    three times that."""
    rig = Rig(limits=limits)
    noisy = [rig.open("abcd", tenant="noisy") for _ in range(10)]
    quiet = rig.open("abcd", tenant="quiet")
    for session in noisy:
        session.push(["x" * 15] * 20)
        for number in range(20):
            session.submit(f"question {number}", max_tokens=8)
    latencies_s: list[float] = []
    for _ in range(20):
        rig.turns(3)
        future = quiet.submit("xyz")
        while not future.done():
            rig.turns(1)
        assert said(future) == "5:3 v1"
        latencies_s.append(future.result().latency_s)
    assert max(latencies_s) <= 3 * 0.8 + 1.0, "an extend that had begun is waited for"


def at_a_full_pool(limits: Limits, tenant: str) -> float:
    """How long the slowest of twenty asks of one session takes, beside ten of the tenant "noisy".

    Sessions have two blocks each, the pool eight; all ten always have something to read and to
    answer, so the one that rests between its asks is sent away each time.
    """
    small = dataclasses.replace(limits, layout=fake_layout(32))
    config = EngineConfig(scheduling=Policy(room_patience=4))
    rig = Rig(limits=small, cells=64, config=config)
    one = rig.open("abcd", tenant=tenant)
    noisy = [rig.open("abcd", tenant="noisy") for _ in range(10)]
    latencies_s: list[float] = []
    for number in range(20):
        for session in noisy:
            if session.info().tokens + session.info().pending_tokens <= 14:
                session.push("x")
            session.submit(f"q{number}", max_tokens=8)
        rig.turns(5)
        future = one.submit("xyz")
        while not future.done():
            rig.turns(1)
        assert said(future) == "5:3 v1"
        latencies_s.append(future.result().latency_s)
    assert rig.engine.metrics().counts.sessions_suspended > 20, "the pool was full"
    return max(latencies_s)


@alone_and_shared
def test_a_noisy_tenant_at_a_full_pool_leaves_anothers_latency_bounded(limits: Limits) -> None:
    """Six times what it takes to send one session away and bring another, which is 3.5 s on the
    fake device; as one of the noisy tenant's own it would take more than twice as long."""
    slowest_s = at_a_full_pool(limits, "quiet")
    assert slowest_s <= 6 * 3.5
    assert at_a_full_pool(limits, "noisy") > 2 * slowest_s


def test_tail_blocks_go_to_the_tenant_that_had_least() -> None:
    """One tenant's asks hold all four blocks and more wait; the other's is next all the same."""
    limits = dataclasses.replace(FAKE_LIMITS, tail_cells=32, tail_blocks=4)
    rig = Rig(limits=limits)
    noisy, quiet = rig.open("abcd", tenant="noisy"), rig.open("abcd", tenant="quiet")
    flood = [noisy.submit("q" * 12, max_tokens=8) for _ in range(5)]
    rig.turns(2)
    future = quiet.submit("xyz")
    rig.engine.run()
    done = sorted([*flood, future], key=lambda one: one.result().latency_s)
    assert future in done[:2]


def test_a_quota_bounds_what_a_tenant_holds_and_what_waits() -> None:
    """Blocks of 8 cells: 32 cells are four of them."""
    rig = Rig(config=EngineConfig(tenants={"a": Tenant(quota_cells=32)}))
    one, two = rig.open(tenant="a"), rig.open(tenant="a")
    one.push("x" * 15)
    two.push("x" * 7)
    with pytest.raises(BudgetExceeded, match="tenant 'a' may have 32"):
        two.push("x" * 16)
    assert two.info().pending == 1
    two.push("x" * 7)
    with pytest.raises(BudgetExceeded, match="tenant 'a' may have 32"):
        rig.engine.open(tenant="a", reserve=8)
    rig.engine.open(tenant="b", reserve=512)
    one.close()
    two.push("x" * 15)
    rig.engine.run()
    assert two.info().tokens == 32
