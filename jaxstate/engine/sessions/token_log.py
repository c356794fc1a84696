"""What a session has read: a log of tokens that knows where each entry ends.

Comes in: tokens of entries. Goes out: spans of tokens, ends of versions. Does not know: cells.
"""

from __future__ import annotations

import dataclasses
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxstate.engine.executor.protocol import Tokens
from jaxstate.engine.types.values import Span


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


def taken_of(
    parts: Sequence[Tokens], done: Sequence[Entry], ends: Sequence[tuple[int, int]]
) -> Taken:
    """What a chunk reads, of the parts of entries that it takes and those that end with it."""
    pushed_s = tuple(entry.pushed_s for entry in done if entry.sequence > 0)
    return Taken(
        tokens=np.concatenate(parts),
        completes=done[-1].sequence if done else None,
        entries=len(pushed_s),
        pushed_s=pushed_s,
        ends=tuple(ends),
    )


def split(taken: Taken, count: int) -> tuple[Taken, Taken] | None:
    """What ends within the first `count` tokens of a chunk, and the rest; None if nothing does.
    Tokens stay with the rest: both are about entries only."""
    done = sum(end <= count for _, end in taken.ends)
    if done == 0:
        return None
    opening = taken.ends[0][0] == 0
    entries = done - opening
    head = Taken(
        tokens=taken.tokens[:0],
        completes=taken.ends[done - 1][0],
        entries=entries,
        pushed_s=taken.pushed_s[:entries],
        ends=taken.ends[:done],
    )
    rest = dataclasses.replace(
        taken,
        entries=taken.entries - entries,
        pushed_s=taken.pushed_s[entries:],
        ends=taken.ends[done:],
    )
    return head, rest


def spans_of(sequences: Sequence[int]) -> tuple[Span, ...]:
    """Ascending numbers as ranges, neighbours merged."""
    spans: list[Span] = []
    for number in sequences:
        if spans and spans[-1].last == number - 1:
            spans[-1] = Span(first=spans[-1].first, last=number)
        else:
            spans.append(Span(first=number, last=number))
    return tuple(spans)


def merged(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Ascending ranges, neighbours merged."""
    found: list[Span] = []
    for one in spans:
        if found and found[-1].last == one.first - 1:
            found[-1] = Span(first=found[-1].first, last=one.last)
        else:
            found.append(one)
    return tuple(found)


def numbers_of(spans: Iterable[Span]) -> list[int]:
    """The numbers that are in ranges."""
    return [number for one in spans for number in range(one.first, one.last + 1)]


@dataclass(frozen=True, slots=True)
class VersionEnd:
    """Where a version ends.

    Attributes:
        version: it saw the opening and entries 1 .. `version`, nothing else.
        cells: how many those are.
    """

    version: int
    cells: int


class TokenLog:
    """Every token of a session's context, in order, half-read entries included, and where entries
    end: that is what a version saw.

    Attributes:
        base_version: entries up to that one are those that stayed when the session's window moved:
            the versions before the next saw others. -1 if it never did.
        begins_with: entries that what it begins with holds, beside the session's prefix.
    """

    def __init__(self) -> None:
        self.base_version = -1
        self.begins_with: tuple[Span, ...] = ()
        self._tokens = np.zeros(0, np.int32)
        self._count = 0
        # Ascending: entries that were read to their end, and how many tokens there were then.
        self._entries = array("q")
        self._ends = array("q")
        # What the newest version that was asked for sees: of how many entries, and which. The next
        # sees a little more.
        self._visible: tuple[int, tuple[Span, ...]] = 0, ()

    def __len__(self) -> int:
        return self._count

    def append(self, tokens: Tokens, ends: Iterable[tuple[int, int]] = ()) -> None:
        """Tokens that were taken to be read.

        Args:
            tokens: int32 [n].
            ends: entries that end among them, each with the number of these tokens up to its end.
        """
        for entry, count in ends:
            self._entries.append(entry)
            self._ends.append(len(self) + count)
        end = self._count + len(tokens)
        if end > len(self._tokens):
            grown = np.zeros(max(end, 2 * len(self._tokens), 64), np.int32)
            grown[: self._count] = self._tokens[: self._count]
            self._tokens = grown
        self._tokens[self._count : end] = tokens
        self._count = end

    def tokens(self, start: int, count: int) -> Tokens:
        """int32 [n]: at most `count` from position `start` on, a copy."""
        return self._tokens[start : min(start + count, self._count)].copy()

    def version_end(self, version: int) -> int | None:
        """How many tokens that version saw: those of entries 1 .. `version` that were not displaced
        (0: of the opening alone). None for one that was not read, or not by this log, or that saw
        entries which have left it."""
        if version <= self.base_version:
            return None
        known = bisect_right(self._entries, version)
        return self._ends[known - 1] if known else None

    def first_version(self, cells: int) -> int | None:
        """The first version that saw at least so many tokens; None if the log has none."""
        known = bisect_left(self._ends, cells)
        found = self._entries[known] if known < len(self._entries) else None
        return None if found is None else max(found, self.base_version + 1)

    def ends(self, start: int, end: int) -> list[tuple[int, int]]:
        """Entries that end beyond token `start`, up to token `end`, as `append` takes them."""
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, end)
        first = 0 if start == 0 else first  # an opening without tokens ends at 0
        found = zip(self._entries[first:last], self._ends[first:last], strict=True)
        return [(entry, cells - start) for entry, cells in found]

    def cut(self, count: int) -> None:
        """Forgets all but the first `count` tokens."""
        known = bisect_right(self._ends, count)
        del self._entries[known:], self._ends[known:]
        self._count, self._visible = count, (0, ())

    def copy(self, count: int | None = None) -> TokenLog:
        """The same, or its first `count` tokens, going on by itself."""
        end = len(self) if count is None else count
        twin = TokenLog()
        twin.base_version, twin.begins_with = self.base_version, self.begins_with
        twin.append(self._tokens[:end], self.ends(0, end))
        return twin

    # --- what of it stays ---

    def first_end(self) -> int:
        """Tokens of what it begins with, which always stays."""
        return self._ends[0] if self._ends else 0

    @property
    def numbers(self) -> list[int]:
        """The entries that were read to their end, ascending, but for what it begins with."""
        return self._entries[1:].tolist()

    @property
    def oldest(self) -> int | None:
        """The first of them."""
        return self._entries[1] if len(self._entries) > 1 else None

    @property
    def count(self) -> int:
        """How many they are."""
        return max(0, len(self._entries) - 1)

    def tokens_of(self, number: int) -> int:
        """How many tokens one of them has."""
        at = bisect_left(self._entries, number)
        return self._ends[at] - self._ends[at - 1]

    def behind(self, number: int) -> list[tuple[int, int]]:
        """Those behind that one, and how many tokens each has."""
        first = max(1, bisect_right(self._entries, number))
        return [
            (self._entries[at], self._ends[at] - self._ends[at - 1])
            for at in range(first, len(self._entries))
        ]

    def newest_first(self, cells: int) -> Iterator[tuple[int, int]]:
        """Those that end within the first `cells`, and how many tokens each has."""
        for at in range(bisect_right(self._ends, cells) - 1, 0, -1):
            yield self._entries[at], self._ends[at] - self._ends[at - 1]

    def start_of(self, number: int) -> int:
        """Where one of them begins."""
        return self._ends[bisect_left(self._entries, number) - 1]

    def only(self, numbers: Sequence[int], version: int, frozen_cells: int) -> TokenLog:
        """The first tokens, which always stay, and some of its entries, ascending, as that version
        goes on from."""
        twin = TokenLog()
        twin.base_version = version
        twin.append(self._tokens[:frozen_cells], [(self._entries[0], frozen_cells)])
        for number in numbers:
            start, count = self.start_of(number), self.tokens_of(number)
            twin.append(self._tokens[start : start + count], [(number, count)])
        return twin

    def without(self, first: int, last: int, version: int) -> TokenLog:
        """The log without tokens first .. last - 1, which lie behind what it begins with, as that
        version goes on from. What is left of entries before them belongs to what it begins with
        from now on, what is left of one that goes on behind them to the next."""
        twin, gap = TokenLog(), last - first
        twin.base_version = version
        before = [
            n for n, end in zip(self._entries[1:], self._ends[1:], strict=True) if end <= first
        ]
        twin.begins_with = merged([*self.begins_with, *spans_of(before)])
        starts = zip(self._entries[1:], self._ends, self._ends[1:], strict=False)
        behind = [(number, end - gap) for number, start, end in starts if start >= last]
        tokens = np.concatenate([self._tokens[:first], self._tokens[last : self._count]])
        twin.append(tokens, [(self._entries[0], first), *behind])
        return twin

    def visible(self, version: int) -> tuple[Span, ...]:
        """The entries that such a version sees. What a session was restored from counts as all
        entries up to its version."""
        known = bisect_right(self._entries, version)
        at, spans = self._visible
        if at > known or at == 0:  # of an earlier version, or the first time
            base = self._entries[0] if self._entries else 0
            restored = (Span(first=1, last=base),) if base > 0 else ()
            at, spans = 1, merged([*self.begins_with, *restored])
        if at < known:
            spans = merged([*spans, *spans_of(self._entries[at:known].tolist())])
        if known > self._visible[0]:
            self._visible = known, spans
        return spans
