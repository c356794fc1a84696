"""The queue of entries: whole pushes, exact counts, and nothing lost or read twice."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jaxstate.engine.executor.protocol import Tokens
from jaxstate.engine.sessions.ingest_queue import IngestQueue
from jaxstate.engine.sessions.token_log import Offer, Taken
from jaxstate.engine.types.options import Coalesce, QueuePolicy, checked_policy
from jaxstate.engine.types.values import Span
from jaxstate.errors import CapacityExceeded, InvalidInput, JaxstateError, QueueFull

PLENTY = 1000
COALESCE = Coalesce(lambda text: text)


def tokens(count: int, value: int = 0) -> Tokens:
    return np.full(count, value, np.int32)


def push(queue: IngestQueue, *counts: int, room: int = PLENTY, now_s: float = 0.0) -> Offer | None:
    """Entries of so many tokens, each token the entry's own sequence number."""
    new = [(tokens(count, queue.last + 1 + i), None) for i, count in enumerate(counts)]
    return accepted(queue, queue.offer(new, now_s, room))


def push_keys(queue: IngestQueue, *keys: Hashable, room: int = PLENTY) -> Offer | None:
    return accepted(queue, queue.offer([(tokens(1), key) for key in keys], 0.0, room))


def accepted(queue: IngestQueue, offer: Offer | None) -> Offer | None:
    """Without a journal a push counts at once."""
    if offer is not None:
        queue.accept(offer)
    return offer


def taken(queue: IngestQueue, max_tokens: int) -> Taken:
    chunk = queue.take(max_tokens)
    assert chunk is not None
    return chunk


def facts(queue: IngestQueue) -> tuple[object, ...]:
    return (
        queue.pending,
        queue.pending_tokens,
        queue.unread_tokens,
        queue.empty,
        queue.oldest_s,
        queue.partly_read,
        queue.last,
        queue.dropped,
    )


def test_a_chunk_goes_across_entries_and_ends_inside_one() -> None:
    queue = IngestQueue(8, "reject")
    assert push(queue, 2, 3, now_s=5.0) == Offer(first=1, last=2)
    assert push(queue, 4, now_s=6.0) == Offer(first=3, last=3)
    chunk = taken(queue, 6)
    assert chunk.tokens.tolist() == [1, 1, 2, 2, 2, 3]
    assert chunk.tokens.dtype == np.int32
    assert (chunk.completes, chunk.entries, chunk.pushed_s) == (2, 2, (5.0, 5.0))
    assert (queue.pending, queue.pending_tokens, queue.partly_read) == (1, 3, True)
    assert queue.oldest_s == 6.0
    inside = taken(queue, 1)
    assert (inside.completes, inside.entries, inside.pushed_s) == (None, 0, ())
    assert taken(queue, 9).completes == 3
    assert queue.take(9) is None
    assert queue.oldest_s is None and queue.empty and not queue.partly_read


def test_entries_without_tokens_complete_for_free() -> None:
    queue = IngestQueue(8, "reject")
    push(queue, 0, 2, 0, 0, 1)
    assert taken(queue, 0).completes == 1
    assert queue.take(0) is None
    chunk = taken(queue, 2)
    assert (chunk.completes, chunk.entries, chunk.tokens.tolist()) == (4, 3, [2, 2])
    assert not queue.partly_read


def test_nothing_is_begun_without_a_token() -> None:
    queue = IngestQueue(1, "drop_oldest")
    push(queue, 3)
    assert queue.take(0) is None
    assert push(queue, 3) == Offer(first=2, last=2, dropped=(Span(first=1, last=1),))
    with pytest.raises(InvalidInput, match="max_tokens=-1"):
        queue.take(-1)


def test_what_was_taken_is_a_copy() -> None:
    queue = IngestQueue(1, "reject")
    mine = tokens(2, 7)
    accepted(queue, queue.offer([(mine, None)], 0.0, PLENTY))
    chunk = taken(queue, 2)
    mine[:] = 0
    assert chunk.tokens.tolist() == [7, 7]


def test_the_opening_comes_first_and_is_no_entry() -> None:
    queue = IngestQueue(1, "drop_oldest")
    queue.open_with(tokens(3, 9))
    assert facts(queue) == (0, 0, 3, False, None, False, 0, 0)
    push(queue, 2)
    push(queue, 2)  # displaces entry 1, not the opening
    assert (queue.pending, queue.pending_tokens, queue.unread_tokens) == (1, 2, 5)
    assert taken(queue, 2).completes is None
    assert queue.partly_read
    chunk = taken(queue, 1)
    assert (chunk.completes, chunk.entries, chunk.pushed_s) == (0, 0, ())
    assert taken(queue, 5).completes == 2


def test_an_opening_without_tokens_completes_too() -> None:
    queue = IngestQueue(1, "reject")
    queue.open_with(tokens(0))
    assert not queue.empty
    assert taken(queue, 4).completes == 0
    assert queue.empty


def test_the_openings_tokens_need_cells() -> None:
    queue = IngestQueue(4, "reject")
    queue.open_with(tokens(3))
    with pytest.raises(CapacityExceeded):
        push(queue, 3, room=5)
    push(queue, 3, room=6)


def test_there_is_one_opening_and_it_is_first() -> None:
    queue = IngestQueue(1, "reject")
    queue.open_with(tokens(1))
    with pytest.raises(InvalidInput, match="opening"):
        queue.open_with(tokens(1))
    for late in (IngestQueue(1, "reject"), IngestQueue(1, "reject", last=4)):
        if late.last == 0:
            push(late, 1)
        with pytest.raises(InvalidInput, match="opening"):
            late.open_with(tokens(1))


def test_numbers_go_on_where_a_saved_session_stopped() -> None:
    queue = IngestQueue(2, "reject", last=41)
    assert push(queue, 1, 1) == Offer(first=42, last=43)


@pytest.mark.parametrize("policy", ["block", "reject", "drop_oldest", COALESCE])
def test_what_no_policy_takes(policy: QueuePolicy) -> None:
    queue = IngestQueue(2, policy)
    push(queue, 1)
    before = facts(queue)
    with pytest.raises(InvalidInput, match="at least one entry"):
        push(queue)
    with pytest.raises(InvalidInput, match="3 entries in one push, and at most 2"):
        push(queue, 1, 1, 1)
    with pytest.raises(CapacityExceeded, match=r"4 tokens and 1 wait.*5 cells.* 4 left"):
        push(queue, 4, room=4)
    assert facts(queue) == before
    push(queue, 4, room=5)


def test_block_waits_and_reject_says_so() -> None:
    for policy in ("block", "reject"):
        queue = IngestQueue(2, policy)
        push(queue, 1, 1)
        before = facts(queue)
        if policy == "block":
            assert push(queue, 1) is None
        else:
            with pytest.raises(QueueFull, match="1 entries do not fit: 2 wait, and at most 2"):
                push(queue, 1)
        assert facts(queue) == before
        assert not queue.has_room(1)
        taken(queue, 1)
        assert queue.has_room(1) and not queue.has_room(2)
        assert push(queue, 1) == Offer(first=3, last=3)


def test_block_does_not_wait_for_cells_that_never_come() -> None:
    queue = IngestQueue(1, "block")
    push(queue, 3)
    with pytest.raises(CapacityExceeded):
        push(queue, 3, room=5)


def test_drop_oldest_keeps_what_is_partly_read() -> None:
    queue = IngestQueue(3, "drop_oldest")
    push(queue, 2, 2, 2)
    taken(queue, 1)
    assert push(queue, 1, 1) == Offer(first=4, last=5, dropped=(Span(first=2, last=3),))
    assert (queue.pending, queue.pending_tokens, queue.dropped) == (3, 3, 2)
    before = facts(queue)
    with pytest.raises(QueueFull, match="partly read"):
        push(queue, 1, 1, 1)
    assert facts(queue) == before
    assert taken(queue, 9).tokens.tolist() == [1, 4, 5]


def test_drop_oldest_frees_cells_but_drops_nothing_for_their_sake() -> None:
    queue = IngestQueue(2, "drop_oldest")
    push(queue, 4, 1)
    push(queue, 4, room=5)  # without entry 1 there are 5
    with pytest.raises(CapacityExceeded):
        push(queue, 5, room=8)  # without entry 2 there are 9, without 3 there would be 5


def test_coalescing_keeps_the_newest_of_each_key() -> None:
    queue = IngestQueue(3, COALESCE)
    push_keys(queue, "a", "b", "a")
    assert (queue.pending, queue.dropped) == (2, 1)
    offer = push_keys(queue, "b", "c", "c")
    spans = (Span(first=2, last=2), Span(first=5, last=5))
    assert offer == Offer(first=4, last=6, dropped=spans)
    chunk = taken(queue, 9)
    assert (chunk.completes, chunk.entries) == (6, 3)


def test_entries_without_a_key_are_all_kept() -> None:
    queue = IngestQueue(2, COALESCE)
    assert push_keys(queue, None, None) == Offer(first=1, last=2)
    with pytest.raises(QueueFull):
        push_keys(queue, None)


def test_coalescing_leaves_a_partly_read_entry_alone() -> None:
    queue = IngestQueue(2, COALESCE)
    accepted(queue, queue.offer([(tokens(2, 1), "a")], 0.0, PLENTY))
    taken(queue, 1)
    assert push_keys(queue, "a") == Offer(first=2, last=2)
    with pytest.raises(QueueFull):
        push_keys(queue, "b")
    dropped = (Span(first=2, last=2),)
    assert push_keys(queue, "a") == Offer(first=3, last=3, dropped=dropped)


def test_coalescing_counts_freed_cells() -> None:
    queue = IngestQueue(4, COALESCE)
    push_keys(queue, "a", "b", room=2)
    push_keys(queue, "a", "b", room=2)
    with pytest.raises(CapacityExceeded):
        push_keys(queue, "a", "c", room=2)
    assert queue.dropped == 2


def test_a_key_must_be_hashable_where_keys_matter() -> None:
    with pytest.raises(InvalidInput, match="not hashable"):
        IngestQueue(2, COALESCE).offer([(tokens(1), [])], 0.0, PLENTY)  # pyright: ignore
    other = IngestQueue(2, "drop_oldest")
    accepted(other, other.offer([(tokens(1), [])], 0.0, PLENTY))  # pyright: ignore
    assert taken(other, 1).completes == 1


@pytest.mark.parametrize("policy", ["drop", "", None, 3, ["block"], Coalesce])
def test_unknown_policies_are_named(policy: object) -> None:
    with pytest.raises(InvalidInput, match="'block', 'reject', 'drop_oldest', Coalesce"):
        checked_policy(policy)


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidInput, match="max_entries=0"):
        IngestQueue(0, "block")
    with pytest.raises(InvalidInput, match="last=-1"):
        IngestQueue(1, "block", last=-1)
    with pytest.raises(InvalidInput, match="function"):
        Coalesce("ticker")  # pyright: ignore


@dataclass
class Waiting:
    """An entry of the naive model: what is left of it, and whether reading began."""

    sequence: int
    rest: list[int]
    pushed_s: float
    key: Hashable
    begun: bool = False


class QueueMachine(RuleBasedStateMachine):
    """The queue against a plain list that is searched from end to end."""

    @initialize(
        max_entries=st.integers(1, 6),
        policy=st.sampled_from(["block", "reject", "drop_oldest", COALESCE]),
        opening=st.none() | st.integers(0, 3),
    )
    def start(self, max_entries: int, policy: QueuePolicy, opening: int | None) -> None:
        self.queue = IngestQueue(max_entries, policy)
        self.max_entries = max_entries
        self.policy = policy
        self.waiting: list[Waiting] = []
        self.now_s = 0.0
        self.last = 0
        self.token = 0
        self.completed: list[int] = []
        self.dropped: list[int] = []
        # Pushes that are on their way, with what they displace, oldest first.
        self.held: list[tuple[Offer, list[Waiting]]] = []
        if opening is not None:
            fresh = self.fresh_tokens(opening)
            self.queue.open_with(np.array(fresh, np.int32))
            self.waiting.append(Waiting(0, fresh, 0.0, None, begun=True))

    def fresh_tokens(self, count: int) -> list[int]:
        self.token += count
        return list(range(self.token - count, self.token))

    def entries(self) -> list[Waiting]:
        return [one for one in self.waiting if one.sequence > 0]

    def after(self, new: list[Waiting]) -> list[Waiting]:
        """What would wait after `new` was taken, room or not."""
        both = self.waiting + new
        if isinstance(self.policy, Coalesce):
            newest = {one.key: one.sequence for one in both if not one.begun}
            return [
                one
                for one in both
                if one.begun or one.key is None or newest[one.key] == one.sequence
            ]
        while self.policy == "drop_oldest" and self.too_many(both):
            old = [one for one in both if not one.begun and one not in new]
            if not old:
                break
            both.remove(old[0])
        return both

    def too_many(self, entries: list[Waiting]) -> bool:
        return sum(one.sequence > 0 for one in entries) > self.max_entries

    @rule(
        sizes_keys=st.lists(
            st.tuples(st.integers(0, 4), st.sampled_from([None, "a", "b", 3])), max_size=7
        ),
        room=st.just(PLENTY) | st.integers(0, 25),
        passed_s=st.floats(0.0, 2.0),
        hold=st.booleans(),
    )
    def offer(
        self, sizes_keys: list[tuple[int, Hashable]], room: int, passed_s: float, hold: bool
    ) -> None:
        self.now_s += passed_s
        hold = hold or bool(self.held)
        new = [
            Waiting(self.last + 1 + i, self.fresh_tokens(size), self.now_s, key)
            for i, (size, key) in enumerate(sizes_keys)
        ]
        offered = [(np.array(one.rest, np.int32), one.key) for one in new]
        after = self.after(new)
        refusal = self.refusal(new, after, room)
        before = facts(self.queue)
        if refusal is not None:
            with pytest.raises(refusal):
                self.queue.offer(offered, self.now_s, room)
            assert facts(self.queue) == before
            return
        offer = self.queue.offer(offered, self.now_s, room)
        if self.policy == "block" and self.too_many(after):
            assert offer is None
            assert facts(self.queue) == before
            return
        assert offer is not None
        assert (offer.first, offer.last) == (self.last + 1, self.last + len(new))
        gone = [one.sequence for one in self.waiting + new if one not in after]
        told = [n for span in offer.dropped for n in range(span.first, span.last + 1)]
        assert told == gone
        for left, right in zip(offer.dropped, offer.dropped[1:], strict=False):
            assert left.last + 1 < right.first
        self.dropped += gone
        self.held.append((offer, [one for one in self.waiting + new if one not in after]))
        if not hold:
            self.accept_next()
        self.waiting, self.last = after, offer.last

    def accept_next(self) -> None:
        offer, displaced = self.held.pop(0)
        assert self.queue.accept(offer) == len(displaced)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        """Some of the pushes that are on their way, the oldest first, are kept."""
        for _ in range(data.draw(st.integers(1, len(self.held)))):
            self.accept_next()

    @precondition(lambda self: self.held)
    @rule()
    def abandon(self) -> None:
        """All that are on their way never came."""
        self.queue.abandon()
        first = self.held[0][0].first
        back = [one for _, displaced in self.held for one in displaced]
        both = [*self.waiting, *back]
        self.waiting = sorted(
            (one for one in both if one.sequence < first), key=lambda one: one.sequence
        )
        self.dropped = [number for number in self.dropped if number not in self.undecided()]
        self.last, self.held = first - 1, []

    def undecided(self) -> list[int]:
        return [one.sequence for _, displaced in self.held for one in displaced]

    def may_read(self, one: Waiting) -> bool:
        """Nothing is read that may have to be taken back, nor behind what may come back."""
        if one.begun:
            return True
        firsts = [offer.first for offer, _ in self.held[:1]]
        back = [gone.sequence for _, displaced in self.held for gone in displaced]
        return all(one.sequence < number for number in (*firsts, *back))

    def refusal(
        self, new: list[Waiting], after: list[Waiting], room: int
    ) -> type[JaxstateError] | None:
        if not new or len(new) > self.max_entries:
            return InvalidInput
        if sum(len(one.rest) for one in after) > room:
            return CapacityExceeded
        if self.too_many(after) and self.policy != "block":
            return QueueFull
        return None

    @rule(max_tokens=st.integers(0, 9))
    def take(self, max_tokens: int) -> None:
        read: list[int] = []
        done: list[Waiting] = []
        while (
            self.waiting
            and self.may_read(self.waiting[0])
            and (len(read) < max_tokens or not self.waiting[0].rest)
        ):
            front = self.waiting[0]
            front.begun = True
            part = front.rest[: max_tokens - len(read)]
            read += part
            del front.rest[: len(part)]
            if front.rest:
                break
            done.append(self.waiting.pop(0))
        chunk = self.queue.take(max_tokens)
        if not read and not done:
            assert chunk is None
            return
        assert chunk is not None
        assert chunk.tokens.tolist() == read
        assert chunk.completes == (done[-1].sequence if done else None)
        pushed = [one for one in done if one.sequence > 0]
        assert chunk.pushed_s == tuple(one.pushed_s for one in pushed)
        assert chunk.entries == len(pushed)
        self.completed += [one.sequence for one in pushed]

    @precondition(lambda self: hasattr(self, "queue"))
    @invariant()
    def the_counts_are_exact(self) -> None:
        entries = self.entries()
        assert self.queue.pending == len(entries)
        assert self.queue.pending_tokens == sum(len(one.rest) for one in entries)
        assert self.queue.unread_tokens == sum(len(one.rest) for one in self.waiting)
        assert self.queue.empty == (not (self.waiting and self.may_read(self.waiting[0])))
        assert self.queue.arriving == bool(self.held)
        first = self.held[0][0].first if self.held else self.last + 1
        assert self.queue.takeable_tokens == sum(
            len(one.rest) for one in self.waiting if one.sequence < first
        )
        assert self.completed == sorted(self.completed), "a version would go back"
        assert self.queue.oldest_s == (entries[0].pushed_s if entries else None)
        assert self.queue.last == self.last
        assert self.queue.dropped == len(self.dropped) - len(self.undecided())
        for count in range(self.max_entries + 2):
            assert self.queue.has_room(count) == (len(entries) + count <= self.max_entries)

    @precondition(lambda self: hasattr(self, "queue"))
    @invariant()
    def every_entry_has_one_fate(self) -> None:
        assert self.completed == sorted(set(self.completed))
        waiting = [one.sequence for one in self.entries()]
        fates = self.completed + self.dropped + waiting
        assert sorted(fates) == list(range(1, self.last + 1))


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase


def test_pushes_do_not_get_slower_with_what_waits() -> None:
    """Displacing from the middle of a long queue touches what is displaced, and no more."""
    queue = IngestQueue(50_000, COALESCE)
    accepted(queue, queue.offer([(tokens(0), key) for key in range(50_000)], 0.0, PLENTY))
    for round_ in range(3):
        for key in range(0, 50_000, 5):
            accepted(queue, queue.offer([(tokens(0), key)], float(round_), PLENTY))
            assert queue.oldest_s is not None
    assert (queue.pending, queue.dropped) == (50_000, 30_000)
