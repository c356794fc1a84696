"""One session's queue of entries that are to be read.

Comes in: entries as tokens, whole pushes at a time. Goes out: sequence numbers, the ranges that
were displaced, and the tokens of the next chunk with the entry that it completes. Does not know:
text, cells (only how many are left), clocks, threads; the caller holds one lock around every call.

A push is taken whole or not at all. An entry that a chunk has begun to read is read to its end;
nothing displaces it. No call looks at entries that it does not move.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias, get_args

import numpy as np

from jaxstate.engine.executor import Tokens
from jaxstate.engine.values import Span
from jaxstate.errors import CapacityExceeded, InvalidInput, QueueFull
from jaxstate.records import checked_int

NamedPolicy = Literal["block", "reject", "drop_oldest"]
NAMED_POLICIES: tuple[NamedPolicy, ...] = get_args(NamedPolicy)


@dataclass(frozen=True, slots=True)
class Coalesce:
    """Only the newest entry of each key waits; a queue that is still full refuses.

    Attributes:
        key: of an entry's text; anything hashable. Entries with key None are all kept.
    """

    key: Callable[[str], Hashable]

    def __post_init__(self) -> None:
        """Refuses what cannot be called."""
        if not callable(self.key):
            raise InvalidInput(f"key={self.key!r} must be a function from an entry's text to a key")


QueuePolicy: TypeAlias = NamedPolicy | Coalesce


def checked_policy(value: object) -> QueuePolicy:
    """What a full queue does, as given.

    Raises:
        InvalidInput: it is none of the policies.
    """
    if isinstance(value, Coalesce):
        return value
    for name in NAMED_POLICIES:
        if isinstance(value, str) and value == name:
            return name
    allowed = ", ".join(map(repr, NAMED_POLICIES))
    raise InvalidInput(f"policy={value!r} is none of {allowed}, Coalesce(key)")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One pushed piece of text, as tokens.

    Attributes:
        sequence: its number in the session, from 1; 0 is the session's opening.
        tokens: int32 [n], n >= 0.
        pushed_s: when, in monotonic seconds.
        key: entries that share one displace each other (policy `Coalesce`); None never does.
    """

    sequence: int
    tokens: Tokens
    pushed_s: float
    key: Hashable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A push that was taken.

    Attributes:
        first, last: sequence numbers of its entries.
        dropped: entries that it displaced, in order, ranges as long as they can be; with `Coalesce`
            some may be of this very push. They will never be read.
    """

    first: int
    last: int
    dropped: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """What one chunk reads.

    Attributes:
        tokens: int32 [n], n >= 0, a copy.
        completes: the last entry whose tokens are all in after it, 0 for the opening; None if it
            completes none.
        entries: how many it completes, the opening not counted.
        pushed_s: when those were pushed, in monotonic seconds.
        ends: of each that it completes, the opening included: its number, and how many of these
            tokens there are up to its end.
    """

    tokens: Tokens
    completes: int | None
    entries: int
    pushed_s: tuple[float, ...]
    ends: tuple[tuple[int, int], ...] = ()


class IngestQueue:
    """Entries of one session that wait to be read, oldest first.

    Args:
        max_entries: how many may wait, the one that is partly read included, the opening not.
        policy: what happens to a push that finds no room.
        last: the sequence number to go on from.

    Raises:
        InvalidInput: `max_entries` is not positive, `last` is negative, or there is no such policy.
    """

    def __init__(self, max_entries: int, policy: QueuePolicy, *, last: int = 0) -> None:
        self._max_entries = checked_int("max_entries", max_entries)
        self._last = checked_int("last", last)
        if self._max_entries < 1 or self._last < 0:
            raise InvalidInput(
                f"max_entries={max_entries} must be positive, last={last} not negative"
            )
        self._policy: QueuePolicy = checked_policy(policy)
        # Ordered by sequence number, and any entry leaves in O(1).
        self._waiting: OrderedDict[int, Entry] = OrderedDict()
        self._of_key: dict[Hashable, Entry] = {}
        # The entry under way has left `_waiting`; the opening never was there.
        self._reading: Entry | None = None
        self._read_tokens = 0
        self._unread_tokens = 0
        self._dropped = 0

    @property
    def pending(self) -> int:
        """Entries that are not completely taken."""
        return len(self._waiting) + (self._reading is not None and self._reading.sequence > 0)

    @property
    def pending_tokens(self) -> int:
        """Tokens of those entries that are not taken yet."""
        opening = self._reading is not None and self._reading.sequence == 0
        return self._unread_tokens - (self._rest() if opening else 0)

    @property
    def unread_tokens(self) -> int:
        """The same, the opening's included."""
        return self._unread_tokens

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take, not even an entry or opening without tokens."""
        return self._reading is None and not self._waiting

    @property
    def oldest_s(self) -> float | None:
        """When the oldest pending entry was pushed, in monotonic seconds; None without one."""
        if self._reading is not None and self._reading.sequence > 0:
            return self._reading.pushed_s
        return next(iter(self._waiting.values())).pushed_s if self._waiting else None

    @property
    def partly_read(self) -> bool:
        """Whether some, and not all, tokens of an entry (or of the opening) are taken."""
        return self._read_tokens > 0

    @property
    def partly_read_tokens(self) -> int:
        """How many tokens of the entry under way are taken; 0 at an entry's border."""
        return self._read_tokens

    @property
    def rest_tokens(self) -> int:
        """How many tokens of the entry under way are not taken; 0 at an entry's border."""
        return self._rest() if self.partly_read else 0

    @property
    def policy(self) -> QueuePolicy:
        """What happens to a push that finds no room."""
        return self._policy

    @property
    def last(self) -> int:
        """The last sequence number given."""
        return self._last

    @property
    def dropped(self) -> int:
        """How many entries were displaced so far."""
        return self._dropped

    def has_room(self, count: int) -> bool:
        """Whether `count` more entries could wait without displacing any."""
        return self.pending + count <= self._max_entries

    def open_with(self, tokens: Tokens) -> None:
        """Puts what the session starts with, int32 [n], before the first entry.

        Raises:
            InvalidInput: there are entries already, or an opening.
        """
        if self._last > 0 or self._reading is not None:
            raise InvalidInput("a session's opening comes once, before its first entry")
        self._reading = Entry(sequence=0, tokens=tokens, pushed_s=0.0)
        self._unread_tokens = len(tokens)

    def offer(
        self, texts_tokens: Sequence[tuple[Tokens, Hashable | None]], now_s: float, room_tokens: int
    ) -> Offer | None:
        """Takes all entries of a push, or none.

        Args:
            texts_tokens: each entry's tokens, int32 [n], n >= 0 (kept, not copied), and its key.
            now_s: the time, in monotonic seconds.
            room_tokens: cells of the session that are neither committed nor being read.

        Returns:
            What was taken; None if the policy is "block" and there is no room now.

        Raises:
            InvalidInput: no entries, more than can ever wait, or a key that is not hashable.
            CapacityExceeded: the session will have no cells for them, however long one waits.
            QueueFull: too many entries wait, and the policy cannot or may not make room.
        """
        self._check_size(len(texts_tokens))
        keyed = isinstance(self._policy, Coalesce)
        new = [
            Entry(sequence=number, tokens=tokens, pushed_s=now_s, key=key if keyed else None)
            for number, (tokens, key) in enumerate(texts_tokens, self._last + 1)
        ]
        displaced = self._displaced_by(new)
        self._check_cells(new, displaced, room_tokens)
        if not self.has_room(len(new) - len(displaced)):
            if self._policy == "block":
                return None
            raise QueueFull(self._full_message(len(new)))
        self._swap(new, displaced)
        dropped = _spans([entry.sequence for entry in displaced])
        return Offer(first=new[0].sequence, last=self._last, dropped=dropped)

    def skip(self, count: int) -> Tokens:
        """The next `count` tokens of the opening, which need not be read: its cells are there.

        They complete nothing; the opening has more tokens.
        """
        taken = self.take(count)
        assert taken is not None and taken.completes is None, "an opening has one token to read"
        return taken.tokens

    def take(self, max_tokens: int) -> Taken | None:
        """Takes what the next chunk reads, from the front, across entries.

        Args:
            max_tokens: at most so many, >= 0. Entries without tokens complete even with 0.

        Returns:
            None if there is nothing to take.

        Raises:
            InvalidInput: `max_tokens` is negative.
        """
        if max_tokens < 0:
            raise InvalidInput(f"max_tokens={max_tokens} must not be negative")
        parts: list[Tokens] = []
        done: list[Entry] = []
        ends: list[tuple[int, int]] = []
        left = max_tokens
        while (front := self._front(left)) is not None:
            part = front.tokens[self._read_tokens : self._read_tokens + left]
            parts.append(part)
            left -= len(part)
            self._advance(len(part))
            if self._reading is None:
                done.append(front)
                ends.append((front.sequence, max_tokens - left))
        return _taken(parts, done, ends) if parts else None

    def _front(self, left: int) -> Entry | None:
        """The entry to read next, if `left` tokens are enough to get on with it."""
        front = self._reading or next(iter(self._waiting.values()), None)
        if front is None or (left == 0 and len(front.tokens) > 0):
            return None
        if self._reading is None:
            self._remove(front)
            self._reading = front
        return front

    def _advance(self, tokens: int) -> None:
        self._read_tokens += tokens
        self._unread_tokens -= tokens
        if self._rest() == 0:
            self._reading = None
            self._read_tokens = 0

    def _rest(self) -> int:
        """Tokens of the entry under way that are not taken yet."""
        return 0 if self._reading is None else len(self._reading.tokens) - self._read_tokens

    def _check_size(self, count: int) -> None:
        if count == 0:
            raise InvalidInput("a push needs at least one entry")
        if count > self._max_entries:
            raise InvalidInput(
                f"{count} entries in one push, and at most {self._max_entries} may wait; push "
                "fewer at once or open the session with a longer queue"
            )

    def _displaced_by(self, new: Sequence[Entry]) -> list[Entry]:
        """What the policy takes out for `new`, by sequence number; nothing is changed."""
        if isinstance(self._policy, Coalesce):
            return self._outdated_by(new)
        if self._policy == "drop_oldest":
            excess = self.pending + len(new) - self._max_entries
            return list(islice(self._waiting.values(), max(0, excess)))
        return []

    def _outdated_by(self, new: Sequence[Entry]) -> list[Entry]:
        """Waiting and new entries whose key a later one has."""
        outdated: list[Entry] = []
        newest: dict[Hashable, Entry] = {}
        for entry in new:
            if entry.key is None:
                continue
            try:
                older = newest.get(entry.key) or self._of_key.get(entry.key)
            except TypeError as error:
                raise InvalidInput(f"the key {entry.key!r} of an entry is not hashable") from error
            if older is not None:
                outdated.append(older)
            newest[entry.key] = entry
        return sorted(outdated, key=lambda entry: entry.sequence)

    def _check_cells(
        self, new: Sequence[Entry], displaced: Sequence[Entry], room_tokens: int
    ) -> None:
        added = sum(len(entry.tokens) for entry in new)
        freed = sum(len(entry.tokens) for entry in displaced)
        needed = self._unread_tokens + added - freed
        if needed > room_tokens:
            raise CapacityExceeded(
                f"the push has {added} tokens and {self._unread_tokens} wait ({freed} of all these "
                f"displaced): {needed} cells, and the session has {room_tokens} left; nothing was "
                "added; push less, or open a session with more cells"
            )

    def _full_message(self, count: int) -> str:
        reading = ", one of them partly read" if self.partly_read else ""
        return (
            f"{count} entries do not fit: {self.pending} wait{reading}, and at most "
            f"{self._max_entries} may; nothing was added; wait until some are read, or open the "
            'session with a longer queue or the policy "block"'
        )

    def _swap(self, new: Sequence[Entry], displaced: Sequence[Entry]) -> None:
        """Adds `new`, then removes `displaced`, which may be among them."""
        for entry in new:
            self._waiting[entry.sequence] = entry
            self._unread_tokens += len(entry.tokens)
        self._last = new[-1].sequence
        for entry in displaced:
            self._remove(entry)
            self._unread_tokens -= len(entry.tokens)
        self._dropped += len(displaced)
        self._of_key.update((entry.key, entry) for entry in new if entry.key is not None)

    def _remove(self, entry: Entry) -> None:
        del self._waiting[entry.sequence]
        self._of_key.pop(entry.key, None)


def _taken(
    parts: Sequence[Tokens], done: Sequence[Entry], ends: Sequence[tuple[int, int]]
) -> Taken:
    pushed_s = tuple(entry.pushed_s for entry in done if entry.sequence > 0)
    return Taken(
        tokens=np.concatenate(parts),
        completes=done[-1].sequence if done else None,
        entries=len(pushed_s),
        pushed_s=pushed_s,
        ends=tuple(ends),
    )


def _spans(sequences: Sequence[int]) -> tuple[Span, ...]:
    """Ascending numbers as ranges, neighbours merged."""
    spans: list[Span] = []
    for number in sequences:
        if spans and spans[-1].last == number - 1:
            spans[-1] = Span(first=spans[-1].first, last=number)
        else:
            spans.append(Span(first=number, last=number))
    return tuple(spans)
