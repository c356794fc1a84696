"""What a simulation knows by itself: the lives of its sessions, asks under way, what happened.

Comes in: what was pushed, dropped and asked. Goes out: what a version has read. Does not know: what
the engine makes of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxstate.engine.api.session import FlashQuery, Session
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.engine.requests.request import Question
from jaxstate.engine.types.options import EngineConfig, Policy, Tenant
from jaxstate.engine.types.values import Span


@dataclass(eq=False)
class Life:
    """A session, and what the simulation knows of it by itself.

    Attributes:
        opening: tokens that it started with.
        entries: tokens of every entry pushed, by sequence number.
        dropped: those that were reported dropped.
        first: the version that it began at: a fork has its parent's entries up to there.
        seen: what each version was said to see, of a session with a window.
    """

    session: Session
    opening: tuple[int, ...]
    entries: dict[int, tuple[int, ...]] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    first: int = 0
    seen: dict[int, tuple[Span, ...]] = field(default_factory=dict)
    flashes: dict[str, FlashQuery] = field(default_factory=dict)
    asked: dict[str, Question] = field(default_factory=dict)

    def read(self, version: int, visible: tuple[Span, ...] | None = None) -> tuple[int, ...]:
        """Every token that a version has read; with a window, what of it was said to be visible."""
        there = [one for one in sorted(self.entries) if one <= version and one not in self.dropped]
        if visible is not None:
            wanted = [n for one in visible for n in range(one.first, one.last + 1)]
            assert set(wanted) <= set(there), "something is visible that was not read"
            assert self.seen.setdefault(version, visible) == visible, "a version has two contexts"
            there = wanted
        return self.opening + tuple(token for one in there for token in self.entries[one])

    def fork(self, session: Session) -> Life:
        """One that goes on from here."""
        version = session.version
        return Life(
            session=session,
            opening=self.opening,
            entries={one: tokens for one, tokens in self.entries.items() if one <= version},
            dropped={one for one in self.dropped if one <= version},
            first=version,
        )

    def some_version(self, chance: random.Random) -> int | None:
        """One that it has and knows what was read of; None before it has one."""
        last = self.session.version
        return chance.randint(self.first, last) if last >= self.first else None

    def drop(self, spans: Sequence[Span]) -> None:
        """Notes entries that will never be read."""
        for span in spans:
            self.dropped |= set(range(span.first, span.last + 1))


@dataclass(eq=False)
class Waiting:
    """An ask under way.

    Attributes:
        least_version: its answer saw this version, or a later one.
        as_of: its answer saw this version and no other.
    """

    life: Life
    future: AskFuture
    asked: Question
    least_version: int
    as_of: int | None = None


@dataclass(frozen=True)
class Tally:
    """What one simulated life contained.

    Attributes:
        operations: by name.
        sources: answers by source.
        turns: of the loop.
    """

    operations: dict[str, int]
    sources: dict[str, int]
    turns: int


def some_config(chance: random.Random) -> EngineConfig:
    """Bounds and shares of an engine."""
    patience = chance.choice((1, 2, 8))
    policy = Policy(
        ingest_patience=patience,
        flash_patience=2 * patience,
        room_patience=4 * patience,
    )
    return EngineConfig(
        queue_entries=chance.choice((3, 8)),
        scheduling=policy,
        host_bytes=chance.choice((1 << 30, 1 << 30, 0, 300)),
        idle_s=chance.choice((None, None, 3.0)),
        tenants={"b": Tenant(weight=2.0, quota_cells=chance.choice((None, 120)))},
    )
