"""Who may hold how much of the pool, who waits and who leaves: the room, without an engine.

A pool has 8 blocks of 4 cells where nothing else is said. `Pool` does what the engine's loop does
with sessions, and nothing more: it admits them, reads what was granted, makes the moves that the
room names. Plain integers; a step reads at most 4 tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.cells.layout import GroupLayout, PoolLayout
from jaxstate.cells.prefixes import PrefixCache
from jaxstate.cells.tables import TableBook
from jaxstate.engine.memory.block_budget import BlockBudget
from jaxstate.engine.memory.swap_policy import PASSED_OVER, Move, Now, SwapPolicy
from jaxstate.engine.requests.request import Question, Request
from jaxstate.engine.sessions.record import PendingAsk, SessionRecord
from jaxstate.engine.sessions.residence import Residence, ResidencyState
from jaxstate.engine.types.options import EngineConfig, QueuePolicy
from jaxstate.errors import BudgetExceeded, CapacityExceeded
from jaxstate.records import Sampling

BLOCK = 4
CHUNK = 4
QUEUE = 3
PATIENCE = 3


def layout_of(blocks: int, width: int | None = None, window: int | None = None) -> PoolLayout:
    """Sessions that may fill the pool; or rings of so many blocks."""
    return PoolLayout(
        cells=blocks * BLOCK if window is None else 1000,
        slack_cells=CHUNK,
        block_cells=BLOCK,
        groups=(GroupLayout(window=window, table_width=width or blocks),),
        layer_groups=(0,),
        num_kv_heads=1,
        head_dim=1,
        pool_blocks=(blocks,),
    )


class Pool:
    """A room and its sessions.

    Args:
        blocks, sessions, patience: of the room.
        quotas, weights: of tenants; cells, and 1 where nothing is said.
        layout: if not that of `blocks` blocks.
        keeps: sessions that leave are copied, else they are read again.
        one_text: all open with the beginning of one text, else with one of their own.
    """

    def __init__(
        self,
        blocks: int = 8,
        *,
        sessions: int = 8,
        patience: int = PATIENCE,
        quotas: dict[str, int] | None = None,
        weights: dict[str, float] | None = None,
        layout: PoolLayout | None = None,
        keeps: bool = True,
        one_text: bool = False,
    ) -> None:
        self.tables = TableBook(layout or layout_of(blocks))
        quota_cells = (quotas or {}).get
        self.prefixes = PrefixCache(self.tables, "a model")
        self.room = BlockBudget(self.tables, sessions=sessions, quota_cells=quota_cells)
        weight = (weights or {}).get
        self.swapper = SwapPolicy(
            self.room, patience=patience, weight=lambda tenant: weight(tenant, 1.0)
        )
        self.records: dict[int, SessionRecord] = {}
        self.keeps, self.one_text = keeps, one_text
        self.step = self.keys = 0
        self.moves: list[tuple[str, str]] = []
        self.jobs: list[tuple[SessionRecord, Callable[[SessionRecord], None]]] = []

    # --- what callers do --------------------------------------------------------------------

    def open(
        self,
        name: str | None = None,
        cells: int = 0,
        *,
        reserve: int = 0,
        pinned: bool = False,
        tenant: str = "ann",
        policy: QueuePolicy = "block",
    ) -> SessionRecord:
        """As `SessionManager.open`; `reserve` in blocks."""
        record = self._new(name, tenant, policy, pinned=pinned)
        residence = record.residence
        self.room.admit(record, reserve, cells)
        self.records[record.key] = record
        opening = np.arange(cells, dtype=np.int32) + 1000 * (0 if self.one_text else record.key)
        residence.chain = self.prefixes.chain(opening, tenant)
        record.queue.open_with(opening)
        record.opened = True
        residence.used_s = self.time_s
        if not self.room.has_line and self.room.has_room_for(record):
            self.room.arrive(record, self.step)
        self.check()
        return record

    def _new(
        self, name: str | None, tenant: str, policy: QueuePolicy, *, pinned: bool
    ) -> SessionRecord:
        self.keys += 1
        residence = Residence(name=self.keys, table=self.tables.new(), tenant=tenant, pinned=pinned)
        config = EngineConfig(queue_entries=QUEUE)
        return SessionRecord(self.keys, name or f"s{self.keys}", policy, config, residence)

    def push(self, record: SessionRecord, tokens: int) -> None:
        """As `EngineCore.push`; a push that finds the queue full is forgotten.

        Raises:
            BudgetExceeded: the room does not allow it.
        """
        residence, queue = record.residence, record.queue
        most = min(self.tables.layout.cells, self.room.most_cells(record))
        try:
            left = most - residence.cells
            offer = queue.offer([(np.zeros(tokens, np.int32), None)], self.time_s, left)
            if offer is None:
                return
            queue.accept(offer)
        except CapacityExceeded:
            wanted = residence.cells + queue.unread_tokens + tokens
            raise self.room.refusal(record, wanted) from None
        self.room.order(record, residence.cells + queue.unread_tokens)
        residence.used_s = self.time_s
        self.check()

    def suspend(self, record: SessionRecord) -> None:
        """As `SessionManager.suspend`."""
        if record.residence.on_device and not record.residence.pinned:
            record.residence.become(ResidencyState.LEAVING)
            record.residence.coming = False
            self.room.update(record)
        self.check()

    def resume(self, record: SessionRecord) -> None:
        record.residence.coming = True
        self.room.update(record)
        self.check()

    def close(self, record: SessionRecord) -> None:
        record.closed_because = "test"
        del self.records[record.key]
        self.room.forget(record)
        self.check()

    def job(
        self, record: SessionRecord, act: Callable[[SessionRecord], None] = lambda _: None
    ) -> None:
        """As `SessionManager` has forks and saves wait for the end of an entry."""
        self.jobs.append((record, act))
        record.tasks_waiting += 1
        record.residence.coming = not record.residence.on_device
        self.room.update(record)
        self.check()

    def fork(self, parent: SessionRecord) -> None:
        """As `SessionManager._fork_now`."""
        source = parent.residence
        record = self._new(None, source.tenant, "block", pinned=False)
        residence = record.residence
        residence.log = source.log.copy()
        self.room.admit(record, 0, len(residence.log))
        self.records[record.key] = record
        if self.room.has_room(self.tables.fork_blocks(source.table.cells)):
            residence.table = self.tables.fork(source.table)
            self.room.arrive(record, self.step)
            self.room.update(parent)
        record.number_from(parent.version)
        record.commit(parent.version, len(residence.log), self.time_s)
        record.opened = True

    def hold(self, record: SessionRecord) -> None:
        """A question is under way, which may not lose its cells."""
        self.keys += 1
        asked = Question(
            question="?",
            tokens=np.zeros(1, np.int32),
            max_tokens=1,
            sampling=Sampling(),
            stop=(),
        )
        request = Request(self.keys, "ask", asked, 0.0)
        request.begin(0, record.residence.seen(record.seen_cells), (), None, cached_tokens=0)
        ask = PendingAsk(request=request, future=Future(), min_version=0)
        record.asks[request.key] = record.asks_begun[request.key] = ask

    # --- what the loop does -----------------------------------------------------------------

    @property
    def time_s(self) -> float:
        return float(self.step)

    @property
    def now(self) -> Now:
        return Now(self.step, self.time_s)

    def settle(self, *, idle: bool = False) -> tuple[str, str] | None:
        """The move that the room wants, not made."""
        move = self.swapper.settle(self.records.values(), self.now, idle=idle)
        self.check()
        return None if move is None else (move.record.id, move.to)

    def turn(self) -> bool:
        """A move, or a step, or a move since no step could be done."""
        if self._do_job():
            return True
        move = self.swapper.settle(self.records.values(), self.now, idle=False)
        self.check()
        did = self._make(move) or self._begin_openings() or self._read() or self._answer()
        if not did:
            did = self._make(self.swapper.settle(self.records.values(), self.now, idle=True))
        self.check()
        return did

    def run(self, turns: int = 400) -> None:
        """Until nothing is left to do."""
        for _ in range(turns):
            if not self.turn():
                return
        raise AssertionError(f"still busy after {turns} turns: {self.moves[-20:]}")

    def _do_job(self) -> bool:
        for record, act in self.jobs:
            residence = record.residence
            there = residence.on_device and not residence.missing and record.version >= 0
            if record.closed or (there and not record.queue.partly_read):
                self.jobs.remove((record, act))
                record.tasks_waiting -= 1
                if not record.closed:
                    with contextlib.suppress(BudgetExceeded):
                        act(record)
                return True
        return False

    def _make(self, move: Move | None) -> bool:
        if move is None:
            return False
        record, residence = move.record, move.record.residence
        self.moves.append((record.id, move.to))
        if move.to == "away":
            assert residence.on_device and not residence.pinned
            assert not any(record.holding()), "a question would lose its cells"
            keeps = self.keeps and not residence.missing
            self.room.leave(record)
            residence.become(ResidencyState.HOST if keeps else ResidencyState.LOG)
        elif move.to == "host":
            residence.become(ResidencyState.HOST)
        else:
            assert not residence.on_device and self.room.has_room_for(record)
            if residence.place == "host":
                self.tables.grow(residence.table, residence.cells)
            self.room.arrive(record, self.step)
        return True

    def _begin_openings(self) -> bool:
        """As `EngineState.begin_openings`, though nobody waits for another to compute a prefix."""
        for record in self.records.values():
            residence = record.residence
            if residence.on_device and residence.chain and not residence.table.cells:
                cells = self.prefixes.adopt(residence.table, residence.chain)
                if cells > len(residence.log):
                    residence.log.append(record.queue.skip(cells - len(residence.log)))
                self.room.update(record)
                self.check()
        return False

    def _read(self) -> bool:
        """A step for the first session that has something to read and room for it."""
        for record in sorted(self.records.values(), key=lambda one: (one.ingest_served, one.key)):
            residence = record.residence
            leaves = residence.leaves
            if (
                not residence.on_device
                or leaves
                or not (residence.missing or not record.queue.empty)
            ):
                continue
            unread = residence.missing + record.queue.unread_tokens
            count = min(CHUNK, self.room.readable_tokens(record), residence.missing or CHUNK)
            if unread and count <= 0:
                continue
            self.read(record, count)
            return True
        return False

    def read(self, record: SessionRecord, tokens: int) -> None:
        """A step that reads so many tokens of one session."""
        self.step += 1
        residence, start = record.residence, record.residence.table.cells
        residence.served += not residence.missing
        if residence.missing:
            count = min(tokens, residence.missing)
        else:
            rest = record.queue.rest_tokens if record.tasks_waiting else 0
            taken = record.queue.take(min(tokens, rest or tokens))
            assert taken is not None
            count = len(taken.tokens)
            residence.log.append(taken.tokens)
            if taken.completes is not None:
                version_end = len(residence.log) - record.queue.partly_read_tokens
                record.commit(taken.completes, version_end, self.time_s)
        self.tables.grow(residence.table, start + count)
        whole = min((start + count) // BLOCK, len(residence.chain))
        for index in range(start // BLOCK, whole):
            self.prefixes.keep(residence.chain, index, residence.table)
            self.prefixes.ready(residence.chain[index], residence.table)
        record.ingest_served, residence.used_s = self.step, self.time_s
        self.room.update(record)
        self.check()

    def _answer(self) -> bool:
        """The step that ends every question under way."""
        held = [record for record in self.records.values() if record.asks_begun]
        self.step += bool(held)
        for record in held:
            record.residence.served += 1
            record.asks.clear()
            record.asks_begun.clear()
            record.residence.used_s = self.time_s
        return bool(held)

    # --- what must hold ---------------------------------------------------------------------

    def places(self) -> dict[str, str]:
        return {record.id: record.residence.place for record in self.records.values()}

    def promise(self, record: SessionRecord) -> int:
        """Blocks that are kept free for a session."""
        residence = record.residence
        if not residence.on_device:
            return residence.reserve_blocks
        if self.tables.layout.turns:
            # Of a ring nothing stays shared.
            return residence.granted_blocks
        copies = self.tables.copies_first(residence.table)
        return max(0, residence.granted_blocks - self.held(record)) + copies

    def held(self, record: SessionRecord) -> int:
        return int((record.residence.table.blocks[0] >= 0).sum())

    def check(self) -> None:
        records = self.records.values()
        self.tables.check([record.residence.table for record in records], self.prefixes.blocks)
        there = sum(self.promise(record) for record in records if record.residence.on_device)
        held = self.tables.primary.held if not self.tables.layout.turns else 0
        assert held + there <= self.room.blocks, "blocks were granted that are not there"
        away = sum(b.residence.reserve_blocks for b in records if not b.residence.on_device)
        assert self.room.free + away >= 0, "more is promised than was granted and reserved"
        assert self.room.on_device == sum(record.residence.on_device for record in records)
        for record in records:
            residence = record.residence
            assert self.held(record) <= residence.granted_blocks
            assert residence.on_device or not self.held(record)

    def check_done(self) -> None:
        for record in self.records.values():
            assert not record.has_work(self.time_s), f"{record.id} was never served"
            assert not record.tasks_waiting, f"{record.id} never came to a border"
            assert record.queue.empty and not record.residence.missing


# --- who is admitted ----------------------------------------------------------------------------


def test_sessions_without_a_reserve_may_be_more_than_the_pool_holds() -> None:
    pool = Pool()
    records = [pool.open(cells=20) for _ in range(5)]
    assert [record.residence.on_device for record in records] == [True, False, False, False, False]
    assert (pool.room.blocks, pool.room.free, pool.room.firm) == (8, 3, 0)
    pool.run()
    pool.check_done()
    assert all(record.residence.cells == 20 for record in records)


def test_a_session_that_never_could_be_there_is_refused() -> None:
    """3 of 8 blocks are reserved, so nobody else may ever have more than 5."""
    pool = Pool()
    pool.open(reserve=3)
    with pytest.raises(BudgetExceeded):
        pool.open(cells=21)
    pool.open(cells=20)


def test_a_reserve_is_kept_free_and_no_more_is_promised_than_there_is() -> None:
    pool = Pool()
    pool.open(reserve=5)
    assert (pool.room.free, pool.room.firm) == (3, 5)
    with pytest.raises(BudgetExceeded):
        pool.open(reserve=4)
    pool.open(reserve=3)
    assert (pool.room.free, pool.room.firm) == (0, 8)
    pool.open()  # nothing is nothing
    with pytest.raises(BudgetExceeded):
        pool.open(cells=1)


def test_a_reserve_counts_once_with_what_lies_in_it() -> None:
    pool = Pool()
    record = pool.open(cells=20, reserve=3)
    assert (record.residence.granted_blocks, pool.room.free, pool.room.firm) == (5, 3, 3)
    small = pool.open(cells=4, reserve=3)
    assert (small.residence.granted_blocks, pool.room.free, pool.room.firm) == (3, 0, 6)
    pool.run()
    assert pool.room.free == 0, "what is held is promised no more"


def test_what_a_pinned_session_orders_is_firm() -> None:
    pool = Pool()
    pinned = pool.open(cells=8, pinned=True)
    assert pool.room.firm == 2
    pool.push(pinned, 8)
    assert pool.room.firm == 4
    other = pool.open(cells=16)
    with pytest.raises(BudgetExceeded):
        pool.push(pinned, 1)  # the other could not come back
    with pytest.raises(BudgetExceeded):
        pool.push(other, 1)
    pool.close(other)
    pool.push(pinned, 16)
    assert pool.room.firm == 8


def test_a_reserve_that_would_keep_others_from_coming_back_is_refused() -> None:
    """A session of 24 cells is away; it needs 6 blocks, so at most 2 may be firm."""
    pool = Pool()
    away = pool.open(cells=24)
    pool.run()
    pool.suspend(away)
    pool.run()
    assert (pool.places()[away.id], pool.room.free) == ("host", 8)
    for pinned in (False, True):
        with pytest.raises(BudgetExceeded):
            pool.open(reserve=3, pinned=pinned)
        pool.close(pool.open(reserve=2, pinned=pinned))
    pool.open(cells=32)  # who can leave again is no hindrance


def test_a_refusal_says_what_is_there_and_what_would_help() -> None:
    pool = Pool()
    pool.open(reserve=3)
    mine = pool.open("mine", cells=8)
    pool.run()
    with pytest.raises(BudgetExceeded) as refused:
        pool.open("more", cells=24)
    text = str(refused.value)
    assert "'more' needs 24 cells and could have 20" in text
    assert "in blocks of 4: of 32 cells 12 are reserved or pinned and 12 are free" in text
    assert "Close a session" in text and "reserve less" in text and "cells=" in text
    assert "tenant" not in text
    with pytest.raises(BudgetExceeded, match="'mine' needs 24 cells and could have 20"):
        pool.push(mine, 13)  # 21 cells


def test_a_refusal_changes_nothing() -> None:
    pool = Pool()
    record = pool.open(cells=8, reserve=3)
    pool.open(cells=20)

    def facts() -> object:
        room = pool.room
        one = record.residence
        return (room.free, room.firm, room.on_device, one.ordered_blocks, one.granted_blocks)

    before = facts()
    for refused in (
        lambda: pool.open(cells=24),
        lambda: pool.open(reserve=4),
        lambda: pool.open(cells=1, reserve=4, pinned=True),
        lambda: pool.push(record, 25),
    ):
        with pytest.raises(BudgetExceeded):
            refused()
        assert facts() == before
    pool.run()
    pool.check_done()


def test_pinned_sessions_leave_a_place_to_those_that_come_and_go() -> None:
    """Places are few as well as blocks: with two of two pinned, nobody else would be served."""
    pool = Pool(sessions=2)
    pool.open(pinned=True)
    come = pool.open()
    with pytest.raises(BudgetExceeded, match="sessions="):
        pool.open(pinned=True)
    pool.close(come)
    pool.open(pinned=True)
    with pytest.raises(BudgetExceeded, match="finds no place"):
        pool.open()


# --- quotas -------------------------------------------------------------------------------------


def test_a_tenant_has_its_quota_over_all_its_sessions() -> None:
    pool = Pool(quotas={"ann": 16})
    first, second = pool.open(cells=4), pool.open(cells=8)
    with pytest.raises(BudgetExceeded) as refused:
        pool.push(second, 5)
    assert "could have 12" in str(refused.value)
    assert "tenant 'ann' may have 16 in all its sessions" in str(refused.value)
    assert "quota_cells" in str(refused.value) and "reserved" not in str(refused.value)
    with pytest.raises(BudgetExceeded):
        pool.open(cells=8)
    bob = pool.open(cells=32, tenant="bob")  # none of his
    pool.push(first, 4)
    pool.close(second)
    pool.push(first, 8)  # all 16
    with pytest.raises(BudgetExceeded):
        pool.open(reserve=1)
    pool.close(bob)
    with pytest.raises(BudgetExceeded):
        pool.push(first, 1)


def test_a_quota_that_is_not_the_bound_is_not_blamed() -> None:
    pool = Pool(quotas={"ann": 32})
    pool.open(reserve=6, tenant="bob")
    with pytest.raises(BudgetExceeded, match="24 are reserved or pinned") as refused:
        pool.open(cells=12)
    assert "quota" not in str(refused.value)


def test_a_quota_counts_reserves_and_what_waits_to_be_read() -> None:
    pool = Pool(quotas={"ann": 16})
    pool.open(reserve=3)
    waits = pool.open(cells=4)
    with pytest.raises(BudgetExceeded):
        pool.push(waits, 1)
    # Away or not: a session counts as long as it is open.
    pool.suspend(waits)
    pool.run()
    with pytest.raises(BudgetExceeded):
        pool.open(cells=1)


# --- the line -----------------------------------------------------------------------------------


def test_room_is_given_in_the_order_of_coming_though_later_ones_are_smaller() -> None:
    """2 blocks are free; the first wants 4 and the second 1, and waits."""
    pool = Pool(patience=100)
    busy = pool.open(cells=24)
    first, second = pool.open(), pool.open()
    pool.push(first, 16)
    pool.settle()
    pool.push(second, 4)
    assert pool.settle() is None
    assert [one.residence.granted_blocks for one in (busy, first, second)] == [6, 2, 0]
    assert pool.room.free == 0
    pool.close(busy)
    pool.settle()
    assert [one.residence.granted_blocks for one in (first, second)] == [4, 1]


def test_nobody_overtakes_one_that_cannot_come_yet() -> None:
    """2 blocks are free; the first wants 4, and the others, who want 1, wait behind it."""
    pool = Pool(patience=100)
    busy = pool.open(cells=24)
    pool.open(cells=16)
    assert pool.settle() is None
    pool.open(cells=4)
    assert pool.settle() is None
    assert list(pool.places().values()) == ["device", "log", "log"]
    pool.close(busy)
    pool.run()
    assert pool.moves == [("s2", "device"), ("s3", "device")]


def test_sessions_that_come_and_go_all_the_time_keep_nobody_waiting() -> None:
    """The first needs all of the pool, and there is always somebody who needs a little of it."""
    pool = Pool()
    (idle,) = used(pool, 4)
    first = pool.open(cells=32)
    there = [idle]
    for _ in range(20):
        there.append(pool.open(cells=4))
        pool.turn()
        pool.turn()
        pool.close(there.pop(0))
        if first.residence.on_device:
            return
    raise AssertionError("it never came")


def test_whoever_came_first_is_first_after_others_come_and_go() -> None:
    pool = Pool(sessions=1, patience=100)
    there = pool.open(cells=4)
    late, later = pool.open(cells=4), pool.open(cells=4)
    pool.read(there, 4)
    pool.settle()
    assert pool.settle() == (there.id, "away")
    pool.run()
    # `there` has nothing to do any more and does not come back.
    assert pool.moves == [
        (there.id, "away"),
        (late.id, "device"),
        (late.id, "away"),
        (later.id, "device"),
    ]


def test_who_has_nothing_to_do_does_not_stand_in_line() -> None:
    pool = Pool(sessions=1)
    pool.open(cells=4)
    pool.run()
    idle = pool.open()
    idle.queue.take(0)  # an opening without tokens is read at once
    assert pool.settle() is None
    assert idle.residence.wants_since is None
    pool.resume(idle)
    assert pool.settle() == ("s1", "away")
    pool.run()
    assert pool.places() == {"s1": "host", "s2": "device"}


# --- tenants' turns -----------------------------------------------------------------------------


def came(pool: Pool) -> list[str]:
    """Which sessions came to the device, in order, until all is done."""
    pool.moves.clear()
    pool.run()
    return [name for name, to in pool.moves if to == "device"]


def test_tenants_take_turns_at_the_front_of_the_line() -> None:
    """Ann's four came first; bob's one is not behind all of them."""
    pool = Pool(patience=200)
    pool.open("there", cells=32, tenant="cy")
    pool.run()
    for number in range(4):
        pool.open(f"ann{number}", cells=32)
    pool.open("bob", cells=32, tenant="bob")
    assert came(pool) == ["ann0", "bob", "ann1", "ann2", "ann3"]


def test_a_tenant_of_twice_the_weight_has_twice_the_turns() -> None:
    pool = Pool(patience=200, weights={"ann": 2.0})
    pool.open("there", cells=32, tenant="cy")
    pool.run()
    for number in range(4):
        pool.open(f"ann{number}", cells=32)
    for number in range(2):
        pool.open(f"bob{number}", cells=32, tenant="bob")
    assert came(pool) == ["ann0", "bob0", "ann1", "ann2", "bob1", "ann3"]


def test_a_pause_gives_a_tenant_no_turns_to_make_up_for() -> None:
    pool = Pool(patience=200)
    pool.open("there", cells=32, tenant="cy")
    pool.run()
    for number in range(6):
        pool.open(f"ann{number}", cells=32)
    came(pool)
    pool.open("late0", cells=32, tenant="bob")
    came(pool)
    pool.open("busy", cells=32, tenant="cy")
    for number in range(1, 4):
        pool.open(f"late{number}", cells=32, tenant="bob")
        pool.open(f"again{number}", cells=32)
    order = [name[:-1] for name in came(pool) if name != "busy"]
    assert max(abs(order[:n].count("late") - order[:n].count("again")) for n in range(1, 7)) <= 1


def test_who_keeps_to_its_reserve_passes_those_that_wait() -> None:
    """Three of eight blocks are promised to it; the first in line waits for six of the others."""
    pool = Pool(patience=50)
    own = pool.open("own", reserve=3)
    pool.run()
    pool._make(Move(own, "away"))
    there = pool.open("there", cells=20)
    big = pool.open("big", cells=20)
    pool.settle()
    pool.push(own, 8)
    assert pool.settle() == ("own", "device")
    assert not big.residence.on_device and there.residence.on_device
    pool.run()
    pool.check_done()


def test_one_within_its_reserve_passes_from_disk_too() -> None:
    pool = Pool(patience=50)
    own = pool.open("own", reserve=3)
    pool.run()
    pool._make(Move(own, "away"))
    own.residence.become(ResidencyState.DISK)
    pool.open("there", cells=20)
    pool.open("big", cells=20)
    pool.settle()
    pool.push(own, 8)
    assert pool.settle() == ("own", "host")
    own.residence.become(ResidencyState.HOST)
    assert pool.settle() == ("own", "device")


def test_one_that_comes_from_disk_stays_the_first() -> None:
    """Otherwise another would be the first meanwhile, and push it back there."""
    pool = Pool(patience=50)
    first = pool.open("first", cells=20)
    pool.run()
    pool._make(Move(first, "away"))
    first.residence.become(ResidencyState.DISK)
    pool.open("there", cells=32)
    first.residence.coming = True
    pool.room.update(first)
    other = pool.open("other", cells=20)
    assert pool.settle() == ("first", "host")
    assert pool.settle() is None, "the other has to wait for room"
    first.residence.become(ResidencyState.HOST)
    other.residence.become(ResidencyState.DISK)
    assert pool.settle() is None, "and is not fetched before the first was there"
    pool.run()
    assert [name for name, to in pool.moves if to == "device"][:2] == ["first", "other"]


def test_a_wait_that_ended_by_itself_does_not_count_later() -> None:
    pool = Pool(blocks=8, patience=3)
    pool.open("there", cells=24)
    record = pool.open("mine", cells=4)
    pool.run()
    pool.push(record, 8)
    pool.settle()
    assert record.residence.wants_since is not None
    pool.room.order(record, record.residence.cells)
    assert record.residence.wants_since is None


def test_sessions_of_the_tenant_that_has_most_leave_first() -> None:
    """Though bob's was not used for longest."""
    pool = Pool()
    bob = pool.open("bob", cells=8, tenant="bob")
    pool.run()
    anns = [pool.open(f"ann{number}", cells=8) for number in range(3)]
    pool.run()
    pool.open("more", cells=8, tenant="cy")
    pool.run()
    assert bob.residence.on_device
    assert [one.residence.on_device for one in anns] == [False, True, True]


def test_one_at_work_of_the_tenant_that_has_most_leaves_first() -> None:
    pool = Pool(patience=1)
    bob = pool.open("bob", cells=8, tenant="bob")
    anns = [pool.open(f"ann{number}", cells=8) for number in range(3)]
    for record in (bob, *anns):
        record.residence.served, record.residence.placed_at = 9, record.key
    pool.step += 99
    pool.open("more", cells=8, tenant="cy")
    pool.settle()
    pool.step += 99
    assert pool.settle() == ("ann0", "away")


def test_tokens_are_read_as_far_as_blocks_were_granted() -> None:
    pool = Pool(patience=100)
    pool.open(cells=20)
    record = pool.open()
    assert pool.room.readable_tokens(record) == 0
    pool.push(record, 16)
    assert pool.room.readable_tokens(record) == 0, "ordered is not granted"
    pool.settle()
    assert pool.room.readable_tokens(record) == 12
    pool.read(record, 4)
    assert pool.room.readable_tokens(record) == 8


def test_a_ring_that_is_granted_in_full_may_turn_for_ever() -> None:
    pool = Pool(layout=layout_of(8, width=3, window=4))
    record = pool.open()
    pool.push(record, 12)
    pool.settle()
    assert (record.residence.granted_blocks, pool.room.readable_tokens(record)) == (3, 1000)
    assert pool.room.most_cells(record) == 1000
    pool.run()
    pool.push(record, 100)
    pool.run()
    assert (record.residence.cells, pool.room.free) == (112, 5)


def test_what_is_on_disk_is_fetched_once_and_keeps_nobody_waiting() -> None:
    pool = Pool(sessions=2)
    asleep = pool.open(cells=4)
    pool.run()
    pool.suspend(asleep)
    pool.run()
    asleep.residence.become(ResidencyState.DISK)
    other = pool.open()
    pool.run()
    pool.suspend(other)
    pool.run()
    for record in (asleep, other):
        pool.push(record, 4)
    assert pool.settle() == (asleep.id, "host")
    assert pool.settle() == (other.id, "device"), "the disk is slow, and the other need not wait"
    asleep.residence.become(ResidencyState.HOST)
    pool.run()
    pool.check_done()


# --- who leaves ---------------------------------------------------------------------------------


def used(pool: Pool, *cells: int) -> list[SessionRecord]:
    """Sessions of so many cells, the first unused for longest."""
    records = []
    for count in cells:
        records.append(pool.open(cells=count))
        pool.run()
    return records


def test_the_longest_unused_of_those_that_rest_leaves_first() -> None:
    pool = Pool()
    first, second, third = used(pool, 8, 8, 8)
    first.residence.used_s = pool.time_s + 1  # it was asked something
    new = pool.open(cells=20)
    assert pool.settle() == (second.id, "away")
    pool.turn()
    assert pool.settle() == (third.id, "away")
    pool.run()
    assert pool.places() == {
        first.id: "device",
        second.id: "host",
        third.id: "host",
        new.id: "device",
    }


def test_pinned_ones_and_those_within_their_reserve_stay() -> None:
    pool = Pool()
    pool.open(cells=8, pinned=True)
    pool.open(cells=8, reserve=2)
    pool.open(cells=8, reserve=1)
    pool.run()
    pool.open(cells=12)
    pool.run()
    assert pool.moves[0] == ("s3", "away")
    assert pool.places() == {"s1": "device", "s2": "device", "s3": "host", "s4": "device"}


def test_for_a_place_those_within_their_reserve_leave_too() -> None:
    pool = Pool(sessions=1)
    pool.open(cells=8, reserve=2)
    pool.run()
    pool.open(cells=4)
    pool.run()
    assert pool.places() == {"s1": "host", "s2": "device"}
    assert (pool.room.free, pool.room.firm) == (5, 2), "the reserve is there all the same"


def test_a_fork_or_save_to_come_keeps_a_session_that_can_get_to_it() -> None:
    pool = Pool()
    first, second = used(pool, 12, 12)
    first.tasks_waiting = 1
    pool.open(cells=20)
    assert pool.settle() == (second.id, "away")


def test_one_at_work_leaves_once_it_and_the_other_had_their_patience() -> None:
    """The one was served 3 steps, the other waited 3."""
    pool = Pool(patience=3)
    busy = pool.open(cells=32)
    pool.read(busy, 4)
    pool.open(cells=8)
    left = []
    for _ in range(4):
        left.append(pool.settle())
        pool.read(busy, 4)
    assert left == [None, None, None, (busy.id, "away")]


def test_one_that_just_came_has_its_patience_too() -> None:
    pool = Pool(patience=3)
    busy = pool.open(cells=32)
    pool.open(cells=8)
    pool.settle()
    pool.step += 5
    left = []
    for _ in range(4):
        left.append(pool.settle())
        pool.read(busy, 4)
    assert left == [None, None, None, (busy.id, "away")]


def test_computing_cells_again_is_no_service_however_long_it_takes() -> None:
    """Else two such sessions would send each other away before they are all there."""
    pool = Pool(patience=3, keeps=False)
    busy = pool.open(cells=32)
    for _ in range(7):
        pool.read(busy, 4)
    pool.suspend(busy)
    for _ in range(2):
        pool.turn()
    assert busy.residence.on_device and busy.residence.missing == 28
    pool.open(cells=8)
    left = []
    for _ in range(8):
        left.append(pool.settle())
        pool.read(busy, 4)
    assert left == [None] * 8
    arrived = pool.step - 8
    assert busy.residence.placed_at == arrived + 6, "all there after the step that then began"
    pool.push(busy, 0)
    pool.step = busy.residence.placed_at + PASSED_OVER * 3 - 1
    assert pool.settle() is None
    pool.step += 1
    assert pool.settle() == (busy.id, "away"), "others are served before it all the time"


def test_the_one_at_work_that_came_first_leaves_first() -> None:
    pool = Pool(patience=3)
    records = [pool.open(cells=8) for _ in range(3)]
    for number, record in zip((5, 2, 4), records, strict=True):
        record.residence.placed_at, record.residence.served = number, 3
    records[1].residence.served = 2
    pool.open(cells=20)
    pool.settle()
    pool.step = 3
    assert pool.settle() == (records[2].id, "away")
    records[1].residence.served = 3
    assert pool.settle() == (records[1].id, "away")


def test_without_a_step_to_do_patience_would_be_in_vain() -> None:
    pool = Pool(patience=100)
    busy = pool.open(cells=32)
    pool.open(cells=8)
    assert pool.settle() is None
    assert pool.settle(idle=True) == (busy.id, "away")


def test_one_with_questions_under_way_is_drained_first_and_only_while_someone_waits() -> None:
    pool = Pool(patience=3)
    busy = pool.open(cells=32)
    for _ in range(3):
        pool.read(busy, 4)
    pool.hold(busy)
    head = pool.open(cells=8)
    pool.settle()
    pool.step += 3
    assert pool.settle() is None
    assert busy.residence.state is ResidencyState.DRAINING
    assert pool.settle() is None and busy.residence.leaves
    pool.close(head)
    assert pool.settle() is None
    assert busy.residence.state is not ResidencyState.DRAINING, "it may go on: nobody waits"
    pool.open(cells=8)
    pool.settle()
    pool.step += 3
    pool.settle()
    assert busy.residence.state is ResidencyState.DRAINING
    pool._answer()
    assert pool.settle() == (busy.id, "away")
    pool.run()
    pool.check_done()
    assert busy.residence.state is not ResidencyState.DRAINING


def test_who_leaves_keeps_its_reserve_unless_its_user_sent_it_away() -> None:
    pool = Pool()
    record = pool.open(cells=16, reserve=3)
    pool.run()
    other = pool.open(cells=20)
    pool.run()
    assert pool.places() == {record.id: "host", other.id: "device"}
    assert (pool.room.free, pool.room.firm) == (0, 3)
    pool.close(other)
    pool.resume(record)
    pool.run()
    assert (record.residence.granted_blocks, pool.room.free) == (4, 4)
    pool.suspend(record)
    assert pool.room.free == 4
    pool.run()
    assert (pool.room.free, pool.room.firm, record.residence.reserve_blocks) == (8, 0, 0)


def test_a_closed_session_leaves_nothing_behind() -> None:
    pool = Pool()
    for where in ("before it is read", "read", "away", "leaving"):
        record = pool.open(cells=20, reserve=6)
        if where != "before it is read":
            pool.run()
        if where in ("away", "leaving"):
            pool.suspend(record)
        if where == "away":
            pool.run()
        pool.close(record)
        assert (pool.room.free, pool.room.firm, pool.room.on_device) == (8, 0, 0), where
        assert pool.settle() is None


# --- what once kept somebody waiting for ever ----------------------------------------------------


def test_who_waits_for_a_border_behind_the_one_that_wants_its_room_leaves() -> None:
    """s1 is half way through an entry, lacks blocks for the rest, and is to be saved at its end;
    s2 was first in line and needs what s1 holds."""
    pool = Pool(patience=2)
    first = pool.open(cells=0)
    pool.push(first, 18)
    pool.settle()
    second = pool.open()
    pool.push(second, 20)
    pool.settle()
    pool.push(first, 10)
    while pool.room.readable_tokens(first):
        pool.read(first, min(CHUNK, pool.room.readable_tokens(first)))
    assert first.queue.partly_read
    pool.job(first)
    pool.run()
    pool.check_done()


def test_who_is_to_leave_does_so_before_others_wait_for_it() -> None:
    """It reads no more, so it would come to no border and be at work for ever."""
    pool = Pool(patience=100)
    first = pool.open()
    pool.push(first, 20)
    for _ in range(2):
        pool.turn()
    second = pool.open()
    pool.push(second, 28)
    pool.job(first)
    pool.suspend(first)
    pool.turn()
    assert pool.moves == [(first.id, "away")]
    pool.run()
    pool.check_done()


def test_a_session_that_was_sent_away_comes_back_for_a_fork_or_save() -> None:
    pool = Pool(keeps=False)
    record = pool.open(cells=12)
    pool.run()
    pool.suspend(record)
    pool.run()
    pool.job(record)
    pool.turn()
    assert record.residence.on_device and record.residence.missing == 12
    pool.suspend(record)
    pool.run()
    pool.check_done()


def test_a_pinned_session_gives_back_what_it_was_granted_for_displaced_entries() -> None:
    """5 blocks were granted for an entry that a later one displaced: nobody could take them."""
    pool = Pool()
    pinned = pool.open(pinned=True, policy="drop_oldest")
    for tokens in (20, 1, 1):
        pool.push(pinned, tokens)
    pool.settle()
    assert pinned.residence.granted_blocks == 6
    pool.push(pinned, 1)
    assert (pinned.residence.granted_blocks, pool.room.free) == (1, 7)
    other = pool.open(cells=28)
    pool.run()
    pool.check_done()
    assert other.residence.on_device


def test_two_that_are_computed_again_both_get_on() -> None:
    """Reading 24 cells again takes 6 steps, and the patience is of 2."""
    pool = Pool(patience=2, keeps=False)
    records = used(pool, 24, 24)
    for record in records:
        pool.push(record, 8)
    pool.run(100)
    pool.check_done()
    assert [record.residence.cells for record in records] == [32, 32]


def test_rings_that_were_shared_find_blocks_when_they_turn() -> None:
    """A fork of a ring shares it only at first: each will need one of its own. Where those are not
    there, it comes later."""
    for blocks, together in ((6, True), (5, False)):
        pool = Pool(layout=layout_of(blocks, width=3, window=4))
        (parent,) = used(pool, 24)
        pool.job(parent, pool.fork)
        pool.turn()
        fork = pool.records[2]
        assert fork.residence.on_device == together
        fillers = [pool.open(cells=8) for _ in range(2)]
        for record in (parent, fork, *fillers):
            pool.push(record, 20)
        pool.run()
        pool.check_done()


def test_a_ring_that_begins_with_a_kept_prefix_finds_the_blocks_that_it_skipped() -> None:
    """It needs 1 block of a prefix of 2; its ring has 3, so 2 more are to come, not 1."""
    pool = Pool(layout=layout_of(4, width=3, window=4), one_text=True)
    (reader,) = used(pool, 9)
    pool.close(reader)
    record = pool.open(cells=20)
    pool._begin_openings()
    assert (record.residence.table.cells, pool.held(record)) == (8, 1)
    assert pool.room.free == 1
    other = pool.open(cells=8)
    pool.push(record, 40)
    pool.run()
    pool.check_done()
    assert other.residence.cells == 8


# --- any order ----------------------------------------------------------------------------------


@st.composite
def manager(draw: st.DrawFn) -> list[tuple[str, int, int, int, bool]]:
    """What callers do: what, which session or with how many cells, ..., and turns after it."""
    what = ["open"] * 2 + ["push"] * 4 + ["close", "suspend", "resume", "hold", "save", "fork"]
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(what),
                st.integers(0, 7),
                st.integers(0, 32),
                st.sampled_from([0, 0, 1, 2, 5]),
                st.booleans(),
            ),
            max_size=40,
        )
    )


@settings(deadline=None, max_examples=600)
@given(
    manager=manager(),
    sessions=st.integers(1, 6),
    patience=st.integers(1, 6),
    keeps=st.booleans(),
    ring=st.booleans(),
    one_text=st.booleans(),
    policy=st.sampled_from(["block", "drop_oldest"]),
)
def test_whatever_was_accepted_gets_done(
    manager: list[tuple[str, int, int, int, bool]],
    sessions: int,
    patience: int,
    keeps: bool,
    ring: bool,
    one_text: bool,
    policy: QueuePolicy,
) -> None:
    """However sessions come, grow, wait and go: no two wait for each other, nobody gets a block
    that is not there, and what was refused is not missed. `Pool.check` looks after every action."""
    layout = layout_of(8, width=3, window=4) if ring else None
    pool = Pool(sessions=sessions, patience=patience, keeps=keeps, layout=layout, one_text=one_text)
    for what, number, cells, turns, firm in manager:
        records = list(pool.records.values())
        record = records[number % len(records)] if records else None
        with contextlib.suppress(BudgetExceeded):
            if what == "open" and len(records) < 8:
                reserve = number if firm else 0
                pool.open(cells=cells, reserve=reserve % 5, pinned=number > 5, policy=policy)
            elif record is not None:
                _act(pool, what, record, cells)
        for _ in range(turns):
            pool.turn()
    pool.run()
    pool.check_done()
    for record in tuple(pool.records.values()):
        pool.close(record)
    assert (pool.room.free, pool.room.firm, pool.room.on_device) == (8, 0, 0)


def _act(pool: Pool, what: str, record: SessionRecord, cells: int) -> None:
    if what == "push":
        pool.push(record, cells)
    elif what == "close":
        pool.close(record)
    elif what == "suspend":
        pool.suspend(record)
    elif what == "resume":
        pool.resume(record)
    elif what == "hold" and record.residence.on_device and not record.residence.missing:
        pool.hold(record)
    elif what == "save":
        pool.job(record)
    elif what == "fork":
        pool.job(record, pool.fork)
