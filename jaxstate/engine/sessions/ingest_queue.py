"""One session's queue of entries that are to be read.

Comes in: entries as tokens, whole pushes at a time. Goes out: sequence numbers, the ranges that
were displaced, and the tokens of the next chunk with the entry that it completes. Does not know:
text, cells (only how many are left), clocks, threads; the caller holds one lock around every call.

A push is taken whole or not at all. An entry that a chunk has begun to read is read to its end;
nothing displaces it. A push that was offered has its numbers and its place, and is *on its way*:
nothing of it is read, and nothing that it displaces is read or gone, before `accept`; `abandon`
forgets all that are on their way. No call but that one costs more with more entries waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice

from jaxstate.engine.executor.protocol import Tokens
from jaxstate.engine.sessions.token_log import Entry, Offer, Taken, spans_of, taken_of
from jaxstate.engine.types.options import Coalesce, QueuePolicy, checked_policy
from jaxstate.errors import CapacityExceeded, InvalidInput, QueueFull
from jaxstate.records import checked_int


@dataclass(slots=True)
class _Room:
    """What may be begun: entries of so many tokens in all, and so many of them; None for all."""

    tokens: int | None
    entries: int | None

    def take(self, tokens: int) -> bool:
        """Begins one of so many tokens, if there is room for it."""
        tokens_fit = self.tokens is None or tokens <= self.tokens
        if not tokens_fit or self.entries == 0:
            return False
        self.tokens = None if self.tokens is None else self.tokens - tokens
        self.entries = None if self.entries is None else self.entries - 1
        return True


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
        # Entries behind that one are on their way; so many tokens they have.
        self._accepted = self._last
        self._arriving_tokens = 0
        # Entries that one on its way displaces, and the last number of its push.
        self._leaving: dict[int, int] = {}
        # Entries up to that one came back from a journal; so many of them wait.
        self._returned_last = self._returned = 0

    @property
    def pending(self) -> int:
        """Entries that are not completely taken."""
        reading = self._reading is not None and self._reading.sequence > 0
        return len(self._waiting) - len(self._leaving) + reading

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
    def takeable_tokens(self) -> int:
        """The same, without those of entries that are on their way."""
        return self._unread_tokens - self._arriving_tokens

    @property
    def arriving(self) -> bool:
        """Whether pushes are on their way."""
        return self._last > self._accepted

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take, not even an entry or opening without tokens."""
        return self._next() is None

    @property
    def oldest_s(self) -> float | None:
        """When the oldest pending entry was pushed, in monotonic seconds; None without one."""
        if self._reading is not None and self._reading.sequence > 0:
            return self._reading.pushed_s
        stay = (one for one in self._waiting.values() if one.sequence not in self._leaving)
        return next((one.pushed_s for one in stay), None)

    @property
    def partly_read(self) -> bool:
        """Whether some, and not all, tokens of an entry (or of the opening) are taken."""
        return self._read_tokens > 0

    @property
    def partly_read_tokens(self) -> int:
        """How many tokens of the entry under way are taken; 0 at an entry's end."""
        return self._read_tokens

    @property
    def rest_tokens(self) -> int:
        """How many tokens of the entry under way are not taken; 0 at an entry's end."""
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
    def accepted(self) -> int:
        """The last one whose push is not on its way any more."""
        return self._accepted

    @property
    def dropped(self) -> int:
        """How many entries were displaced so far."""
        return self._dropped

    def has_room(self, count: int) -> bool:
        """Whether `count` more entries could wait without displacing any. Those that came back take
        no room: they had theirs, and may have been read long ago."""
        return self._new_pending + count <= self._max_entries

    @property
    def _new_pending(self) -> int:
        """Entries that did not come back, and are not completely taken."""
        reading = self._reading is not None and self._reading.sequence > self._returned_last
        return len(self._waiting) - len(self._leaving) - self._returned + reading

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
        self,
        texts_tokens: Sequence[tuple[Tokens, Hashable | None]],
        now_s: float,
        room_tokens: int,
    ) -> Offer | None:
        """Takes all entries of a push, or none; they are on their way until `accept`.

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
        self._add(new, displaced)
        dropped = spans_of([entry.sequence for entry in displaced])
        return Offer(first=new[0].sequence, last=self._last, dropped=dropped)

    def _add(self, new: Sequence[Entry], displaced: Sequence[Entry]) -> None:
        """Entries on their way, and those that they displace, which may be among them."""
        for entry in new:
            self._waiting[entry.sequence] = entry
            self._count(entry, 1)
        self._last = new[-1].sequence
        for entry in displaced:
            self._leaving[entry.sequence] = self._last
            self._count(entry, -1)
        self._of_key.update((entry.key, entry) for entry in new if entry.key is not None)

    def _count(self, entry: Entry, by: int) -> None:
        tokens = by * len(entry.tokens)
        self._unread_tokens += tokens
        if entry.sequence > self._accepted:
            self._arriving_tokens += tokens

    def accept(self, offer: Offer) -> int:
        """The oldest push that is on its way may be read, and what it displaces is gone: how many
        entries those are."""
        assert offer.first == self._accepted + 1, "pushes take effect in their order"
        gone = [number for number, last in self._leaving.items() if last == offer.last]
        for number in range(offer.first, offer.last + 1):
            if number in self._waiting and number not in self._leaving:
                self._arriving_tokens -= len(self._waiting[number].tokens)
        for number in gone:
            del self._leaving[number]
            self._remove(self._waiting[number])
        self._accepted = offer.last
        self._dropped += len(gone)
        return len(gone)

    def abandon(self) -> None:
        """Nothing of what is on its way ever came: its numbers are used again."""
        for number in tuple(self._leaving):
            if number <= self._accepted:
                self._unread_tokens += len(self._waiting[number].tokens)
        self._leaving.clear()
        for number in tuple(self._waiting):
            if number > self._accepted:
                del self._waiting[number]
        self._unread_tokens -= self._arriving_tokens
        self._arriving_tokens, self._last = 0, self._accepted
        self._of_key = {one.key: one for one in self._waiting.values() if one.key is not None}

    def bring_back(self, entries: Sequence[tuple[int, Tokens]], last: int, now_s: float) -> None:
        """Entries of a journal that are still to be read, however many; nothing was offered yet.

        None of them is ever displaced: whoever asked before the engine ended may have had an answer
        that saw it, and so may forks.

        Args:
            entries: number and tokens of each, in order.
            last: the last number that was given.
            now_s: the time, in monotonic seconds.
        """
        assert not self._waiting, "what is brought back comes first"
        for number, tokens in entries:
            self._waiting[number] = Entry(sequence=number, tokens=tokens, pushed_s=now_s)
            self._unread_tokens += len(tokens)
        self._last = self._accepted = self._returned_last = last
        self._returned = len(entries)

    def refuse(self, taken: int) -> None:
        """Drops all that waits, the entry under way, and so many that were taken and did not land:
        nothing of it can be read."""
        self._dropped += self.pending + taken
        self._reading, self._read_tokens, self._unread_tokens = None, 0, 0
        for waiting in (self._waiting, self._of_key, self._leaving):
            waiting.clear()
        self._arriving_tokens = self._returned = 0

    def skip(self, count: int) -> Tokens:
        """The next `count` tokens of the opening, which need not be read: its cells are there.

        They complete nothing; the opening has more tokens.
        """
        taken = self.take(count)
        assert taken is not None and taken.completes is None, "an opening has one token to read"
        return taken.tokens

    @property
    def waiting(self) -> list[tuple[int, Tokens]]:
        """Number and tokens of entries of which nothing was taken."""
        return [(one.sequence, one.tokens) for one in self._waiting.values()]

    @property
    def next_tokens(self) -> int | None:
        """Tokens of the entry that is begun next; None if one is begun, or there is none."""
        front = None if self._reading is not None else self._next()
        return None if front is None else len(front.tokens)

    def take(
        self, max_tokens: int, *, room: int | None = None, entries: int | None = None
    ) -> Taken | None:
        """Takes what the next chunk reads, from the front, across entries.

        Args:
            max_tokens: at most so many, >= 0. Entries without tokens complete even with 0.
            room: entries are begun as long as there is room in it for all their tokens; None for
                all.
            entries: so many are begun at most; None for any number.

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
        begins = _Room(room, entries)
        while (front := self._front(left, begins)) is not None:
            part = front.tokens[self._read_tokens : self._read_tokens + left]
            parts.append(part)
            left -= len(part)
            self._advance(len(part))
            if self._reading is None:
                done.append(front)
                ends.append((front.sequence, max_tokens - left))
        return taken_of(parts, done, ends) if parts else None

    def _front(self, left: int, begins: _Room) -> Entry | None:
        """The entry to read next, if `left` tokens are enough to get on with it, and it may be
        begun."""
        front = self._next()
        if front is None or (left == 0 and len(front.tokens) > 0):
            return None
        if self._reading is None:
            if not begins.take(len(front.tokens)):
                return None
            self._remove(front)
            self._reading = front
        return front

    def _next(self) -> Entry | None:
        """The entry to read next; None if there is none, or what becomes of it is not known yet."""
        if self._reading is not None:
            return self._reading
        front = next(iter(self._waiting.values()), None)
        if front is None or front.sequence > self._accepted or front.sequence in self._leaving:
            return None
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
            excess = max(0, self._new_pending + len(new) - self._max_entries)
            stay = (one for one in self._waiting.values() if one.sequence not in self._leaving)
            return list(islice(stay, self._returned, self._returned + excess))
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
                "added; push less, open a session with more cells, or let what is old go: "
                "session.set_window(jaxstate.Window(tokens=...))"
            )

    def _full_message(self, count: int) -> str:
        reading = ", one of them partly read" if self.partly_read else ""
        return (
            f"{count} entries do not fit: {self.pending} wait{reading}, and at most "
            f"{self._max_entries} may; nothing was added; wait until some are read, or open the "
            'session with a longer queue or the policy "block"'
        )

    def _remove(self, entry: Entry) -> None:
        del self._waiting[entry.sequence]
        self._returned -= entry.sequence <= self._returned_last
        if self._of_key.get(entry.key) is entry:
            del self._of_key[entry.key]
