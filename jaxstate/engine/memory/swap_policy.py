"""Which session leaves the device next, and which comes to it.

Comes in: the budget, and all sessions. Goes out: at most one `Move` at a time. Plain integers; does
not know: devices, tokens, threads, how much there is to share out (`block_budget`).

- Sessions that want room stand in a line. Only the first is given blocks, so no two of them wait
  for what the other holds. Tenants take turns at the front, by their weights, and the sessions of
  one tenant come in the order in which they began to want room. Who wants no more than its reserve,
  and finds it, passes.
- For the first in line sessions leave, rather those of the tenant that has most (by its weight):
  idle ones, the longest unused first. Where none is idle, one leaves in the midst of its work, and
  stands in line itself, after the first in line has waited for `room_patience` steps and it was
  served in as many since it came; in a quarter of them, and without a wait, if its tenant has more
  than the other will have. (Steps that only compute its cells again do not count: sessions that are
  sent away as soon as they are back would keep the device busy and get nothing done.)
- One session at a time is fetched from a checkpoint, and keeps nobody waiting meanwhile.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from jaxstate.engine.memory.block_budget import BlockBudget
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.sessions.residence import ResidencyState


@dataclass(frozen=True, slots=True)
class Move:
    """A session that is to leave the device, to come to it, or to come from disk to the host."""

    record: SessionRecord
    to: Literal["away", "device", "host"]


@dataclass(frozen=True, slots=True)
class Now:
    """The number of the last step, and monotonic seconds."""

    step: int
    time_s: float


# A session that is never served has had its turn after so many times the patience.
PASSED_OVER = 8


# One of a tenant that has more than its share has a patience so many times smaller.
LESS_PATIENCE = 4


class SwapPolicy:
    """Turns of sessions that cannot all be on the device.

    Args:
        room: the budget.
        patience: steps that serve a session which works before it may have to leave for others.
        weight: of a tenant.
    """

    def __init__(self, room: BlockBudget, *, patience: int, weight: Callable[[str], float]) -> None:
        self._budget = room
        self._patience = patience
        self._weight = weight
        # Of each tenant, by its weight, how often it was first (start-time fair queueing).
        self._turns: dict[str, float] = {}
        self._level = 0.0
        self._head: SessionRecord | None = None
        self._draining: SessionRecord | None = None

    def settle(self, records: Iterable[SessionRecord], now: Now, *, idle: bool) -> Move | None:
        """Grants what there is to those in line; the move that the first of them needs.

        Args:
            records: all sessions.
            now: the step and the time.
            idle: no step could be done: patience would be in vain.
        """
        if self._draining is not None:
            self._budget.touch(self._draining)
            if self._draining.residence.state is ResidencyState.DRAINING:
                self._draining.residence.become(ResidencyState.DEVICE)
            self._draining = None
        short = self._budget.short
        # Who reads nothing more, since it is to leave, would keep others waiting.
        if leaving := next((one for one in short if _wants_out(one)), None):
            return Move(leaving, "away")
        line = [record for record in short if self._stands_in_line(record, now)]
        if self._head not in line:
            self._head = None
        fetched = [one for one in line if one.residence.state is ResidencyState.FETCHING]
        line, fetching = [one for one in line if one not in fetched], bool(fetched)
        queues = _by_tenant(line)
        while queues:
            head = self._first(queues)
            if head.residence.place == "disk":
                if not fetching:
                    self._head = head
                    return _fetched(head)
            elif not self._budget.grant(head):
                # One that comes from disk stays the first: others would push it back there.
                self._head = self._head or head
                passing = self._passing(
                    sorted(chain(*queues.values()), key=_waits), fetching=fetching
                )
                move = passing or self._make_room(head, records, now, idle=idle)
                if move is not None or head.rebuilds is None:
                    return move
                self._head = None if self._head is head else self._head  # nobody waits for it
            else:
                self._had_turn(head)
                if not head.residence.on_device:
                    return Move(head, "device")
                head.residence.wants_since = None
            _leave(queues, head)
        return None

    def _first(self, queues: Mapping[str, deque[SessionRecord]]) -> SessionRecord:
        """Who was first stays so until it has what it wants: blocks were gathered for it. Else the
        one that has waited longest of the tenant that had least turns."""
        head = self._head
        if head is not None and head in queues.get(head.residence.tenant, ()):
            return head
        return min(
            (queue[0] for queue in queues.values()),
            key=lambda record: (self._turns.get(record.residence.tenant, 0.0), *_waits(record)),
        )

    def _had_turn(self, head: SessionRecord) -> None:
        tenant = head.residence.tenant
        self._level = max(self._level, self._turns.get(tenant, 0.0))
        self._turns[tenant] = self._level + 1.0 / self._weight(tenant)
        # Who had none for long has nothing to make up for.
        self._turns = {one: turn for one, turn in self._turns.items() if turn > self._level}
        if head is self._head:
            self._head = None

    def _stands_in_line(self, record: SessionRecord, now: Now) -> bool:
        residence = record.residence
        wants = (
            (residence.coming or record.tasks_waiting > 0 or record.has_work(now.time_s))
            and residence.state is not ResidencyState.LEAVING
            and (not residence.on_device or self._budget.lacks(record))
        )
        if not wants:
            residence.wants_since = None
        elif residence.wants_since is None:
            residence.wants_since = now.step
        return wants

    def _passing(self, line: Iterable[SessionRecord], *, fetching: bool) -> Move | None:
        """One that takes nothing from the first in line: what it wants is promised to it."""
        for record in line:
            place = record.residence.place
            if place == "device" or (place == "disk" and fetching):
                continue
            if self._budget.keeps_to_its_reserve(record) and self._budget.grant(record):
                return _fetched(record) if place == "disk" else Move(record, "device")
        return None

    def _make_room(
        self, head: SessionRecord, records: Iterable[SessionRecord], now: Now, *, idle: bool
    ) -> Move | None:
        """Who leaves for the first in line."""
        everyone, has = list(records), Counter[str]()
        for record in everyone:
            # Who shared blocks with others that are gone is promised less.
            self._budget.count_anew(record)
            if record.residence.missing:
                record.residence.placed_at = now.step  # its time begins when it is all there
            has[record.residence.tenant] += record.residence.granted_blocks
        most = {tenant: -blocks / self._weight(tenant) for tenant, blocks in has.items()}
        others = (one for one in everyone if one is not head and _may_leave_for(head, one))
        could = [record for record in others if self._may_leave(record)]
        resting = [record for record in could if not record.has_work(now.time_s)]
        if resting:
            return Move(
                min(resting, key=lambda one: (most[one.residence.tenant], one.residence.used_s)),
                "away",
            )
        served = [record for record in could if idle or self._had_its_time(record, head, most, now)]
        if not served or head.rebuilds is not None:
            return None
        record = min(
            served,
            key=lambda one: (
                most[one.residence.tenant],
                one.residence.missing > 0,
                any(one.holding()),
                one.residence.placed_at,
                one.key,
            ),
        )
        if not any(record.holding()):
            return Move(record, "away")
        self._budget.touch(record)
        if record.residence.state is ResidencyState.DEVICE:
            record.residence.become(ResidencyState.DRAINING)
        self._draining = record
        return None

    def _had_its_time(
        self, record: SessionRecord, head: SessionRecord, most: dict[str, float], now: Now
    ) -> bool:
        """Whether it was served for long enough, or others are served before it all the time, and
        the first in line has waited for long enough. A tenant that has more than the other will
        have gets less patience."""
        residence, tenant = record.residence, head.residence.tenant
        will_have = -most[tenant] + self._budget.lacking(head) / self._weight(tenant)
        if -most[residence.tenant] > will_have:
            return residence.served >= max(1, self._patience // LESS_PATIENCE)
        waited = now.step - (head.residence.wants_since or 0)
        stayed = now.step - residence.placed_at
        served = residence.served >= self._patience or stayed >= PASSED_OVER * self._patience
        return waited >= self._patience and served

    def _may_leave(self, record: SessionRecord) -> bool:
        """Whether its leaving would make room, and nothing forbids it."""
        residence = record.residence
        if not residence.on_device or residence.pinned:
            return False
        # Who lacks blocks never gets to the end of a version, and may stand behind one that waits.
        if record.tasks_waiting and not self._budget.lacks(record):
            return False
        return self._budget.gains_by(record)


def _may_leave_for(head: SessionRecord, record: SessionRecord) -> bool:
    """Whether what belongs to windows lets it leave: a session stays for its own rebuild; a rebuild
    does for others', and while its session reads through it, or questions look at it."""
    session = record.rebuilds
    if session is None or session.rebuild is None:
        return head.rebuilds is not record
    has_taken = record.residence.cells > record.seen_cells
    return head.rebuilds is None and not (session.rebuild.moved or has_taken)


def _waits(record: SessionRecord) -> tuple[int, int]:
    """Since when, as an order."""
    return (record.residence.wants_since or 0, record.key)


def _by_tenant(line: Iterable[SessionRecord]) -> dict[str, deque[SessionRecord]]:
    """A line for each tenant, the one that has waited longest first."""
    queues: dict[str, deque[SessionRecord]] = {}
    for record in sorted(line, key=_waits):
        queues.setdefault(record.residence.tenant, deque()).append(record)
    return queues


def _leave(queues: dict[str, deque[SessionRecord]], record: SessionRecord) -> None:
    queue = queues[record.residence.tenant]
    queue.remove(record)
    if not queue:
        del queues[record.residence.tenant]


def _fetched(record: SessionRecord) -> Move:
    record.residence.become(ResidencyState.FETCHING)
    return Move(record, "host")


def _wants_out(record: SessionRecord) -> bool:
    residence = record.residence
    return residence.state is ResidencyState.LEAVING and not any(record.holding())
