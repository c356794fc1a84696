"""No state of one tenant influences another's answers, in whatever tier its cells are.

Real steps. One tenant's sessions hold canary tokens; the other's answers are compared, logit by
logit, with those that it gets alone. Paired with that: what one tenant may find again (a kept
prefix, its own suspended cells), and the other never.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import jaxstate
from jaxstate.cells.prefixes import PrefixCache
from jaxstate.cells.tables import TableBook
from jaxstate.engine.api.session import Session
from jaxstate.engine.core.metrics import Counts
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import Answer, Place
from jaxstate.errors import InvalidInput
from jaxstate.testing import FakeClock, SteppedEngine, WatchedExecutor, tiny_model
from jaxstate.testing.simulation import SESSION_CELLS, TEMPLATE

PREFIX = "both tenants open with just this"
OPENING = 33  # <bos> and the prefix
KEPT = 32  # eight whole blocks of 4
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
    config = EngineConfig(host_bytes=0 if tier in ("disk", "log") else 1 << 30)
    journal = folder / "journal" if tier == "disk" else None
    return SteppedEngine(device(), FakeClock(), config=config, template=TEMPLATE, journal=journal)


def settled(engine: SteppedEngine) -> None:
    """Turns until neither the loop nor the disk has anything to do."""
    for _ in range(3):
        engine.run()
        engine._core.cell_store.rest()
    engine.run()


def moved_to(tier: Place, engine: SteppedEngine, session: Session) -> None:
    if tier == "disk":
        engine.snapshot()
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
    engine._core.cell_store.close()


@pytest.mark.parametrize("tier", TIERS)
def test_the_same_tenant_finds_its_prefix_and_another_does_not(tier: Place, tmp_path: Path) -> None:
    """What is kept of a prefix stays on the device when its session leaves."""
    engine = engine_in(tier, tmp_path)
    owner = engine.open(prefix=PREFIX, tenant="owner")
    settled(engine)
    moved_to(tier, engine, owner)
    for tenant, shared in (("other", 0), ("owner", KEPT), ("other", KEPT), ("third", 0)):
        assert opened(engine, tenant) == Opened(read=OPENING - shared, shared=shared)
    engine.close()
    engine._core.cell_store.close()


@pytest.mark.parametrize("reclaimed", [False, True], ids=["kept", "reclaimed"])
@pytest.mark.parametrize("tier", ["host", "disk", "log"])
def test_what_is_away_comes_back_to_its_owner_and_helps_nobody_else(
    tier: Place, reclaimed: bool, tmp_path: Path
) -> None:
    """Another tenant with the same prefix reads all of it, whatever there is of the owner's.
    Copied cells come back bit for bit; a log is read again, but for what is kept of the prefix
    (not of the other's, which is kept all the while)."""
    engine = engine_in(tier, tmp_path)
    owner = engine.open(prefix=PREFIX, tenant="owner")
    owner.push(CANARY)
    settled(engine)
    before, count = cells_of(owner), owner.info().tokens
    moved_to(tier, engine, owner)
    if reclaimed:
        fill_pool(engine)
    assert opened(engine, "other") == Opened(read=OPENING, shared=0)
    counts = engine.metrics().counts
    owner.resuming()
    settled(engine)
    assert owner.info().residency == "device"
    again = Opened.between(counts, engine.metrics().counts)
    kept = KEPT if tier == "log" and not reclaimed else 0
    assert again == Opened(shared=kept, rebuilt=count - kept if tier == "log" else 0)
    check_cells_equal(cells_of(owner), before, atol=1e-4 if tier == "log" else 0.0)
    engine.close()
    engine._core.cell_store.close()


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Tokens that were read, found in what is kept, and read again."""

    read: int = 0
    shared: int = 0
    rebuilt: int = 0

    @classmethod
    def between(cls, before: Counts, after: Counts) -> Opened:
        """What came to it."""
        return cls(
            read=after.tokens_ingested - before.tokens_ingested,
            shared=after.prefix_tokens_shared - before.prefix_tokens_shared,
            rebuilt=after.tokens_rebuilt - before.tokens_rebuilt,
        )


def opened(engine: SteppedEngine, tenant: str, prefix: str = PREFIX) -> Opened:
    """What it takes to open a session, which is closed again."""
    before = engine.metrics().counts
    session = engine.open(prefix=prefix, tenant=tenant)
    settled(engine)
    taken = Opened.between(before, engine.metrics().counts)
    session.close()
    return taken


def fill_pool(engine: SteppedEngine) -> None:
    """Two sessions of a third tenant take all blocks, so that nothing is only kept; they go."""
    flood = [engine.open(tenant="flood") for _ in range(2)]
    for session in flood:
        session.push(["x" * 18] * 5)
    settled(engine)
    assert engine._core.state.tables.primary.free == 0
    assert len(engine._core.state.prefixes) == 0
    for session in flood:
        session.close()
    settled(engine)


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
        check_cells_equal(cells_of(session), cells)
    assert engine.metrics().counts.tokens_rebuilt == 0
    engine.close()
    engine._core.cell_store.close()


def cells_of(session: Session) -> dict[str, np.ndarray]:
    record = session.record
    count = record.residence.table.cells
    return dict(device().fetch(record.residence.seen(count), count).arrays)


def check_cells_equal(
    now: dict[str, np.ndarray], before: dict[str, np.ndarray], atol: float = 0.0
) -> None:
    assert now.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_allclose(now[name], array, rtol=0, atol=atol)


# --- names of tenants -------------------------------------------------------------------------


def test_no_two_tenants_names_lead_to_the_same_block() -> None:
    """Nor does any lead to what is public, or do tokens that spell a namespace."""
    cache = PrefixCache(TableBook(device().limits.layout), "a model")
    texts = [b"a secret, long enough", b"tenant:a a secret, long", b"public a secret, long enough"]
    openings = [np.frombuffer(text, np.uint8).astype(np.int32) for text in texts]
    tenants = ["a", "A", " a", "a ", "a\0", "", "tenant:a", "tenant:", "tenant:public", "public"]
    private = [cache.chain(opening, tenant) for opening in openings for tenant in tenants]
    for opening in openings:
        cache.publish(opening)
    public = [{cache.chain(opening, tenant) for tenant in tenants} for opening in openings]
    assert [len(chains) for chains in public] == [1, 1, 1], "all tenants share what is public"
    chains = [*private, *(chain for one in public for chain in one)]
    names = [link.name for chain in chains for link in chain]
    assert len(set(names)) == len(names)


def test_a_tenant_called_public_shares_what_is_its_own_with_nobody() -> None:
    """Neither before nor after the operator declares the same text public."""
    engine = SteppedEngine(device(), FakeClock(), template=TEMPLATE)
    private, public = Opened(read=OPENING), Opened(read=OPENING - KEPT, shared=KEPT)
    assert opened(engine, "public") == private
    assert opened(engine, "other") == private
    engine.publish_prefix(PREFIX)
    assert opened(engine, "another") == private, "what 'public' read is not the operator's"
    for tenant in ("public", "other", "third"):
        assert opened(engine, tenant) == public
    engine.close()


def test_what_is_public_is_no_tenants_own() -> None:
    """Beside a public text, tenant "public" finds no more of others' openings than anybody."""
    engine = SteppedEngine(device(), FakeClock(), template=TEMPLATE)
    engine.publish_prefix(PREFIX)
    longer = PREFIX + ", and goes on with its own"
    for tenant in ("owner", "public", "other"):
        shared = 0 if tenant == "owner" else KEPT
        expected = Opened(read=OPENING + 26 - shared, shared=shared)
        assert opened(engine, tenant, longer) == expected
    engine.close()


@pytest.mark.parametrize("tenant", ["tenant:owner", "owner\0", "", " owner", "a b", ".."])
def test_a_tenants_name_has_no_room_for_another_namespace(tenant: str) -> None:
    engine = SteppedEngine(device(), FakeClock(), template=TEMPLATE)
    with pytest.raises(InvalidInput, match="tenant="):
        engine.open(prefix=PREFIX, tenant=tenant)
    engine.close()
