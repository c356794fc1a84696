"""Entries on their way into a session: as they wait, as a push was taken, as a chunk reads them.

Comes in: tokens and sequence numbers. Goes out: frozen records. Does not know: the queue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxstate.engine.executor import Tokens
from jaxstate.engine.values import Span


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
        displaced: the same, for `IngestQueue.retract`.
    """

    first: int
    last: int
    dropped: tuple[Span, ...] = ()
    displaced: tuple[Entry, ...] = field(default=(), compare=False, repr=False)


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
