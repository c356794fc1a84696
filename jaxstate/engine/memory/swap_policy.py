"""What the room says: which session is to move, as of which moment.

Comes in: nothing but values. Goes out: `Move`, `Now`. Does not know: why a session moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxstate.engine.memory.block_budget import Room
from jaxstate.engine.sessions.record import Book


@dataclass(frozen=True, slots=True)
class Move:
    """A session that is to leave the device, to come to it, or to come from disk to the host."""

    book: Book
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


class Swapper:
    """Turns of sessions that cannot all be on the device.

    Args:
        room: the budget.
        patience: steps that serve a session which works before it may have to leave for others.
        weight: of a tenant.
    """

    def __init__(self, room: Room, *, patience: int, weight: Callable[[str], float]) -> None:
        self._room = room
        self._patience = patience
        self._weight = weight
        # Of each tenant, by its weight, how often it was first (start-time fair queueing).
        self._turns: dict[str, float] = {}
        self._level = 0.0
        self._head: Book | None = None
        self._draining: Book | None = None

    def settle(self, books: Iterable[Book], now: Now, *, idle: bool) -> Move | None:
        """Grants what there is to those in line; the move that the first of them needs.

        Args:
            books: all sessions.
            now: the step and the time.
            idle: no step could be done: patience would be in vain.
        """
        if self._draining is not None:
            self._draining.residence.draining, self._draining = False, None
        short = self._room.short
        # Who reads nothing more, since it is to leave, would keep others waiting.
        if leaving := next((one for one in short if _wants_out(one)), None):
            return Move(leaving, "away")
        line = [book for book in short if self._stands_in_line(book, now)]
        if self._head not in line:
            self._head = None
        fetching = any(book.residence.fetching for book in line)
        line = [book for book in line if not book.residence.fetching]
        while line:
            head = self._first(line)
            if head.residence.place == "disk":
                if not fetching:
                    self._head = head
                    return _fetched(head)
            elif not self._room.grant(head):
                # One that comes from disk stays the first: others would push it back there.
                self._head = self._head or head
                passing = self._passing(line, fetching=fetching)
                return passing or self._make_room(head, books, now, idle=idle)
            else:
                self._had_turn(head)
                if not head.residence.on_device:
                    return Move(head, "device")
                head.residence.wants_since = None
            line.remove(head)
        return None

    def _first(self, line: Sequence[Book]) -> Book:
        """Who was first stays so until it has what it wants: blocks were gathered for it."""
        if self._head in line:
            assert self._head is not None
            return self._head
        return min(
            line,
            key=lambda book: (
                self._turns.get(book.residence.tenant, 0.0),
                book.residence.wants_since or 0,
                book.key,
            ),
        )

    def _had_turn(self, head: Book) -> None:
        tenant = head.residence.tenant
        self._level = max(self._level, self._turns.get(tenant, 0.0))
        self._turns[tenant] = self._level + 1.0 / self._weight(tenant)
        # Who had none for long has nothing to make up for.
        self._turns = {one: turn for one, turn in self._turns.items() if turn > self._level}
        if head is self._head:
            self._head = None

    def _stands_in_line(self, book: Book, now: Now) -> bool:
        residence = book.residence
        wants = (
            (residence.coming or book.border_jobs > 0 or book.has_work(now.time_s))
            and not residence.leaving
            and (not residence.on_device or self._room.lacks(book))
        )
        if not wants:
            residence.wants_since = None
        elif residence.wants_since is None:
            residence.wants_since = now.step
        return wants

    def _passing(self, line: Sequence[Book], *, fetching: bool) -> Move | None:
        """One that takes nothing from the first in line: what it wants is promised to it."""
        for book in line:
            place = book.residence.place
            if place == "device" or (place == "disk" and fetching):
                continue
            if self._room.keeps_to_its_reserve(book) and self._room.grant(book):
                return _fetched(book) if place == "disk" else Move(book, "device")
        return None

    def _make_room(self, head: Book, books: Iterable[Book], now: Now, *, idle: bool) -> Move | None:
        """Who leaves for the first in line."""
        everyone, has = list(books), Counter[str]()
        for book in everyone:
            self._room.update(book)  # who shared blocks with others that are gone is promised less
            if book.residence.missing:
                book.residence.placed_at = now.step  # its time begins when it is all there
            has[book.residence.tenant] += book.residence.granted_blocks
        most = {tenant: -blocks / self._weight(tenant) for tenant, blocks in has.items()}
        could = [book for book in everyone if book is not head and self._may_leave(book)]
        resting = [book for book in could if not book.has_work(now.time_s)]
        if resting:
            return Move(
                min(resting, key=lambda one: (most[one.residence.tenant], one.residence.used_s)),
                "away",
            )
        served = [book for book in could if idle or self._had_its_time(book, head, most, now)]
        if not served:
            return None
        book = min(
            served,
            key=lambda one: (
                most[one.residence.tenant],
                one.residence.missing > 0,
                any(one.holding()),
                one.residence.placed_at,
                one.key,
            ),
        )
        if not any(book.holding()):
            return Move(book, "away")
        book.residence.draining, self._draining = True, book
        return None

    def _had_its_time(self, book: Book, head: Book, most: dict[str, float], now: Now) -> bool:
        """Whether it was served for long enough, or others are served before it all the time, and
        the first in line has waited for long enough. A tenant that has more than the other will
        have gets less patience."""
        residence, tenant = book.residence, head.residence.tenant
        will_have = -most[tenant] + self._room.lacking(head) / self._weight(tenant)
        if -most[residence.tenant] > will_have:
            return residence.served >= max(1, self._patience // LESS_PATIENCE)
        waited = now.step - (head.residence.wants_since or 0)
        stayed = now.step - residence.placed_at
        served = residence.served >= self._patience or stayed >= PASSED_OVER * self._patience
        return waited >= self._patience and served

    def _may_leave(self, book: Book) -> bool:
        """Whether its leaving would make room, and nothing forbids it."""
        residence = book.residence
        if not residence.on_device or residence.pinned:
            return False
        # Who lacks blocks gets to no border, and may stand behind the one that waits for its own.
        if book.border_jobs and not self._room.lacks(book):
            return False
        return self._room.gains_by(book)


def _fetched(book: Book) -> Move:
    book.residence.fetching = True
    return Move(book, "host")


def _wants_out(book: Book) -> bool:
    residence = book.residence
    return residence.on_device and residence.leaving and not any(book.holding())
