"""No state of one tenant influences another's answers, in whatever tier its cells are.

Real steps. One tenant's sessions hold canary tokens; the other's answers are compared, logit by
logit, with those that it gets alone. Paired with that: what one tenant may find again (a kept
prefix, its own suspended cells), and the other never.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

import jaxstate
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.session import Session
from jaxstate.engine.values import Answer, Place
from jaxstate.testing import FakeClock, SteppedEngine, WatchedExecutor, tiny_model
from jaxstate.testing.simulation import SESSION_CELLS, TEMPLATE

PREFIX = "both tenants open with just this"
CANARY = "CANARY-7351"
TIERS: tuple[Place, ...] = ("device", "host", "disk", "log")


@functools.cache
def model() -> jaxstate.Model:
    return dataclasses.replace(tiny_model(), template=TEMPLATE)


@functools.cache
def device() -> WatchedExecutor:
    cells = 2 * SESSION_CELLS
    return WatchedExecutor(model(), session_cells=SESSION_CELLS, cells=cells, sessions=3)


def engine_in(tier: Place, folder: Path) -> SteppedEngine:
    config = EngineConfig(
        resume="rebuild" if tier == "log" else "copy",
        host_bytes=1 if tier == "disk" else 1 << 30,
        disk_path=str(folder),
    )
    return SteppedEngine(device(), FakeClock(), config=config, template=TEMPLATE)


def settled(engine: SteppedEngine) -> None:
    """Turns until neither the loop nor the disk has anything to do."""
    for _ in range(3):
        engine.run()
        engine._desk.vault.rest()
    engine.run()


def moved_to(tier: Place, engine: SteppedEngine, session: Session) -> None:
    if tier != "device":
        session.suspending()
        settled(engine)
    assert session.info().residency == tier


def victim(engine: SteppedEngine) -> list[Answer]:
    """What the other tenant gets: a free answer, and scores that show every logit's change."""
    session = engine.open(prefix=PREFIX, tenant="victim")
    session.push("up 12")
    settled(engine)
    free = session.submit("is it up", max_tokens=5)
    scored = session.submit("up", choices=["y", "no", "CANARY"])
    settled(engine)
    return [free.result(timeout=0), scored.result(timeout=0)]


def check_equal(answers: list[Answer], alone: list[Answer]) -> None:
    for got, expected in zip(answers, alone, strict=True):
        assert got.token_ids == expected.token_ids
        np.testing.assert_allclose(got.logprob, expected.logprob, atol=1e-4)
        np.testing.assert_allclose(got.confidence, expected.confidence, atol=1e-4)
    assert alone[1].choice_logprobs is not None and answers[1].choice_logprobs is not None
    np.testing.assert_allclose(answers[1].choice_logprobs, alone[1].choice_logprobs, atol=1e-4)


@functools.cache
def alone() -> list[Answer]:
    engine = SteppedEngine(device(), FakeClock(), template=TEMPLATE)
    answers = victim(engine)
    engine.close()
    return answers


@pytest.mark.parametrize("tier", TIERS)
def test_canaries_of_one_tenant_do_not_reach_anothers_logits(tier: Place, tmp_path: Path) -> None:
    """The canary's session opens with the same prefix; its cells, wherever they went, were in
    blocks that the victim gets afterwards."""
    expected = alone()
    engine = engine_in(tier, tmp_path)
    spy = engine.open(prefix=PREFIX, tenant="spy")
    spy.push([CANARY, CANARY])
    spy.flash("up", choices=["y", "n"])
    settled(engine)
    moved_to(tier, engine, spy)
    check_equal(victim(engine), expected)
    assert engine.metrics().counts.prefix_tokens_shared == 0
    later = spy.submit("is it up", max_tokens=5)
    settled(engine)
    assert later.result(timeout=0).version == 2, "and the spy's own session goes on"
    engine.close()
    engine._desk.vault.close()


@pytest.mark.parametrize("tier", TIERS)
def test_the_same_tenant_finds_its_prefix_and_another_does_not(tier: Place, tmp_path: Path) -> None:
    engine = engine_in(tier, tmp_path)
    owner = engine.open(prefix=PREFIX, tenant="owner")
    settled(engine)
    moved_to(tier, engine, owner)
    shared = lambda: engine.metrics().counts.prefix_tokens_shared  # noqa: E731
    other = engine.open(prefix=PREFIX, tenant="other")
    settled(engine)
    assert shared() == 0
    other.close()
    same = engine.open(prefix=PREFIX, tenant="owner")
    settled(engine)
    assert shared() == 32, "eight whole blocks of 4"
    same.close()
    engine.close()
    engine._desk.vault.close()


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_only_its_own_cells_come_back(tier: Place, tmp_path: Path) -> None:
    """Two tenants with the same prefix and other entries, both away: each gets its own, bit for
    bit, without computing anything again."""
    engine = engine_in(tier, tmp_path)
    sessions = [engine.open(prefix=PREFIX, tenant=tenant) for tenant in ("a", "b")]
    for session, text in zip(sessions, (CANARY, "quiet day"), strict=True):
        session.push(text)
    settled(engine)
    before = [cells_of(session) for session in sessions]
    for session in sessions:
        moved_to(tier, engine, session)
    for session in reversed(sessions):
        session.resuming()
        settled(engine)
    for session, cells in zip(sessions, before, strict=True):
        now = cells_of(session)
        assert now.keys() == cells.keys()
        for name, array in cells.items():
            np.testing.assert_array_equal(now[name], array)
    assert engine.metrics().counts.tokens_rebuilt == 0
    engine.close()
    engine._desk.vault.close()


def cells_of(session: Session) -> dict[str, np.ndarray]:
    book = session.book
    count = book.residence.table.cells
    return dict(device().fetch(book.residence.seen(book.key, count), count).arrays)


def test_a_pushed_text_cannot_choose_a_namespace() -> None:
    """The namespace comes from the caller of `open`; text that looks like one is text."""
    engine = SteppedEngine(device(), FakeClock(), template=TEMPLATE)
    engine.open(prefix=PREFIX, tenant="owner")
    settled(engine)
    for prefix in ("tenant:owner" + PREFIX, "public" + PREFIX):
        thief = engine.open(prefix=prefix, tenant="thief")
        settled(engine)
        thief.close()
    assert engine.metrics().counts.prefix_tokens_shared == 0
    engine.close()
