"""The whole engine, turned by hand: in the tests that use it every step and every time is worked
out on paper.

The fake device takes 1 s for an extend, 0.5 s for a start, 0.1 s for a decode, 0.3 s for a score.
A question of n tokens that sees c cells is answered "c:n", one byte a token, then <eos>: at 5 cells
a question of 3 tokens takes a start ("5") and three decodes (":", "3", <eos>), 0.8 s.
Here a session opens with nothing, a question is its own bytes, an entry its bytes and a line break.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path

from jaxstate.engine.api.session import NewEntries, Session, push
from jaxstate.engine.executor.protocol import Limits, Tokens
from jaxstate.engine.sessions.dedup import Pushed
from jaxstate.engine.types.events import Subscription
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import (
    Answer,
    Closed,
    Connected,
    DataUpdated,
    Event,
    FlashReady,
    Receipt,
)
from jaxstate.records import Durability
from jaxstate.testing import FAKE_LIMITS, FakeClock, FakeExecutor, SteppedEngine, fake_layout
from jaxstate.text import Template

BARE = Template(bare="", opening=("", ""), asking=("", ""))
AHEAD = dataclasses.replace(FAKE_LIMITS, steps_ahead=1)


class Rig:
    """An engine with everything that a test looks at."""

    def __init__(
        self,
        *,
        limits: Limits = FAKE_LIMITS,
        ring_cells: int | None = None,
        template: Template = BARE,
        cells: int | None = None,
        config: EngineConfig | None = None,
        journal: Path | None = None,
        durability: Durability = "os",
        staleness_s: float | None = 1e6,
    ) -> None:
        self.clock = FakeClock()
        if staleness_s is not None:  # else patience alone decides what comes next
            config = dataclasses.replace(config or EngineConfig(), flash_staleness_s=staleness_s)
        if cells is not None:
            layout = fake_layout(limits.session_cells, cells)
            limits = dataclasses.replace(limits, layout=layout)
        self.executor = FakeExecutor(self.clock, limits=limits, ring_cells=ring_cells)
        self.engine = SteppedEngine(
            self.executor,
            self.clock,
            config=config,
            template=template,
            journal=journal,
            durability=durability,
        )
        self.core, self.manager = self.engine._core, self.engine._manager
        self._told = 0

    def open(self, text: str | None = None, **settings: object) -> Session:
        """A session that has read its opening, and one entry if there is a text."""
        session = self.engine.open(**settings)  # pyright: ignore
        self.engine.run()
        if text is not None:
            session.push(text)
            self.engine.run()
        self.news()
        return session

    def news(self, *, times: bool = False) -> list[str]:
        """Device steps since the last look: "extend s1 5", "start s1 x2", "decode s1 s2 x2"."""
        names = {key: record.id for key, record in self.core.state.records.items()}
        fresh = self.executor.steps[self._told :]
        self._told = len(self.executor.steps)
        told = []
        for step in fresh:
            whose = "".join(f" {names.get(one, 'gone')}" for one in step.sessions)
            size = f" x{step.rows}" if step.rows else f" {step.tokens}" if step.tokens else ""
            also = "".join(f" +{names.get(one, 'gone')}" for one in step.chunks)
            at = f"{round(step.began_s, 6):g} " if times else ""
            told.append(f"{at}{step.call}{whose}{size}{also}")
        return told

    def cells(self, session: Session) -> list[int]:
        """The tokens in its cells, as the device has them."""
        record = session.record
        return self.executor.cells(record.residence.seen(record.residence.table.cells))

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.engine.turn()

    def push_now(self, session: Session, text: str) -> Receipt:
        """A push that must not have to wait."""
        return session.push(text, timeout=0)

    def push_tokens(
        self, session: Session, entries: Sequence[tuple[Tokens, Hashable | None]]
    ) -> Pushed | Future[None]:
        """Entries whose tokens no text has."""
        return push(self.core, session.record, self.entries_of(entries))

    def entries_of(self, entries: Sequence[tuple[Tokens, Hashable | None]]) -> NewEntries:
        """The same, to be pushed again if there is no room."""
        texts = ("",) * len(entries)
        return NewEntries(texts=texts, tokens=tuple(entries), origin=None)

    def at_rest(self) -> None:
        """Nothing is under way, and everything that a question borrows is back."""
        gauges = self.engine.metrics().gauges
        assert (gauges.asks_waiting, gauges.asks_running) == (0, 0)
        blocks = self.core.state.blocks
        assert sorted(blocks._free) == list(range(self.executor.limits.tail_blocks))
        for record in self.core.state.records.values():
            assert not record.asks and not record.flash_requests
        assert not self.engine._loop._in_flight
        self.check_blocks()

    def check_blocks(self) -> None:
        """Every block of the pool is free, or has the owners that it should have."""
        state = self.core.state
        tables = [record.residence.table for record in state.records.values()]
        state.tables.check(tables, state.prefixes.blocks)
        assert state.tables.primary.held + state.budget._promised <= state.budget.blocks


def read(subscription: Subscription) -> list[Event]:
    events = []
    while (event := subscription.poll()) is not None:
        events.append(event)
    return events


def short(events: Sequence[Event]) -> list[str]:
    """Events as words: "C0", "D1", "F1:1:3" (the answer's version and text), "X"."""
    words = []
    for event in events:
        match event:
            case Connected():
                words.append(f"C{event.version}")
            case DataUpdated():
                words.append(f"D{event.version}")
            case FlashReady():
                words.append(f"F{event.answer.version}={event.answer.text}")
            case Closed():
                words.append("X")
    return words


def said(future: Future[Answer]) -> str:
    """An answer that is there: its text and its version."""
    assert future.done()
    answer = future.result(timeout=0)
    return f"{answer.text} v{answer.version}"
