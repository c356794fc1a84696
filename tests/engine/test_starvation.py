"""Floods of one thing in which something else must still be done.

`tests.engine.rig` says how the numbers come about. Every loop here is bounded: what must come to be
comes within a number of turns that is said why.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig, Policy
from jaxstate.engine.types.values import Answer
from jaxstate.testing import FAKE_LIMITS, fake_layout
from tests.engine.rig import Rig, said

LARGE = dataclasses.replace(FAKE_LIMITS, layout=fake_layout(10**5, 10**6), max_context=10**7)
FEW_BLOCKS = dataclasses.replace(LARGE, tail_blocks=8)


def rig_of(**settings: object) -> Rig:
    return Rig(**{"limits": LARGE, **settings})  # pyright: ignore


class Flood:
    """Keeps so many asks of a session under way or waiting, one more in each turn at most."""

    def __init__(self, session: Session, count: int, **settings: object) -> None:
        self.session, self.count, self.settings = session, count, settings
        self.live: list[Future[Answer]] = []
        self.answered = 0

    def more(self) -> None:
        self.answered += sum(one.done() for one in self.live)
        self.live = [one for one in self.live if not one.done()]
        if len(self.live) < self.count:
            self.live.append(self.session.submit("q", **self.settings))  # pyright: ignore


def test_an_ask_under_way_beside_one_that_waits_for_a_version() -> None:
    """Reading for the one and going on with the other take turns."""
    rig = rig_of()
    session, other = rig.open("abcd"), rig.open("efgh")
    session.push(["x" * 15] * 40)  # a step each
    waiting = session.submit("later", min_version=41, max_tokens=1)
    rig.turns(3)
    rig.news()
    future = other.submit("xyz")
    rig.engine.run()
    assert said(future) == "5:3 v1" and waiting.done()
    # The second extend in a row is ingest's own share: it has waited for eight steps.
    assert rig.news()[:7] == [
        "start s2 x1",
        *["decode s2 x1", "extend s1 16"] * 2,
        "extend s1 16",
        "decode s2 x1",
    ]


def test_an_entry_that_asks_would_keep_half_read() -> None:
    """A ring with 16 cells to spare, an entry of 81 tokens, asks that overlap: those that wait let
    those under way end, and ingest has waited long enough by then."""
    for count in (1, 2, 3, 5):
        rig = rig_of(ring_cells=16)
        session = rig.open("abcd")
        session.push("x" * 80)
        flood = Flood(session, count, max_tokens=3)
        turns = 0
        while session.version < 2:
            flood.more()
            rig.turns(1)
            turns += 1
            assert turns < 200, f"{count} asks at a time keep an entry half read"
        assert count < 2 or flood.answered > 0


def test_flash_queries_of_a_saturated_ring() -> None:
    """More is read between two flash steps than the ring spares: after `flash_drops` attempts the
    answer is finished before more is read."""
    policy = Policy(flash_patience=4, flash_drops=2)
    rig = rig_of(ring_cells=16, config=EngineConfig(scheduling=policy))
    session = rig.open("abcd")
    query = session.flash("fl")
    answers = 0
    for _ in range(300):
        while session.info().pending < 4:
            session.push("x" * 15)
        rig.turns(1)
        answers += query.fresh
    counts = rig.engine.metrics().counts
    assert counts.flash_answers >= 10
    # Two given up, then one answered.
    assert abs(counts.flash_rows_dropped - 2 * counts.flash_answers) <= 2


def test_every_sessions_asks_take_turns() -> None:
    """A thousand asks of one session do not stand before the one of another."""
    rig = rig_of()
    session, other = rig.open("abcd"), rig.open("efgh")
    for _ in range(1000):
        session.submit("q", max_tokens=2)
    future = other.submit("xyz", max_tokens=1)
    rig.turns(3)
    assert future.done()


def test_overdue_flash_queries_of_many_sessions() -> None:
    """However many are as urgent as an ask: one step of theirs at most before each of the ask's."""
    rig = rig_of()
    sessions = [rig.open("abcd") for _ in range(6)]
    for one in sessions:
        one.flash("fl", deadline_s=0.0)
    other = rig.open("efgh")
    for one in sessions:
        one.push("x")
    rig.turns(2)
    rig.news()
    future = other.submit("xyz")
    turns = 0
    while not future.done():
        for one in sessions:
            one.push("x")
        rig.turns(1)
        turns += 1
    steps = rig.news()
    asked = [number for number, step in enumerate(steps) if f" {other.id} " in step]
    between = [later - earlier for earlier, later in zip([-1, *asked], asked, strict=False)]
    # Ingest's own share (one step in nine) may come between as well.
    assert len(asked) == 4 and max(between) <= 3, steps


def test_a_large_ask_among_small_ones() -> None:
    """It needs all eight blocks; the small ones of another session come all the time."""
    rig = rig_of(limits=FEW_BLOCKS)
    session, other = rig.open("abcd"), rig.open("efgh")
    flood = Flood(session, 3, max_tokens=3)
    for _ in range(3):
        flood.more()
        rig.turns(1)
    large = other.submit("x" * 32, max_tokens=32)  # 63 cells of 8 each
    for _ in range(30):
        flood.more()
        rig.turns(1)
        if large.done():
            break
    assert said(large) == "5:32 v1"
    answered = flood.answered
    for _ in range(30):
        flood.more()
        rig.turns(1)
    assert flood.answered > answered, "and the small ones go on after it"


def test_flash_queries_whose_blocks_asks_take() -> None:
    """Asks need every block, again and again: given up `flash_drops` times, a flash query is then
    answered; and asks go on all the while."""
    policy = Policy(flash_patience=8, flash_drops=2)
    rig = rig_of(limits=FEW_BLOCKS, config=EngineConfig(scheduling=policy))
    session, other = rig.open("abcd"), rig.open("efgh")
    query = session.flash("fl")
    flood = Flood(other, 2, max_tokens=60)  # 60 cells, all eight blocks; says 5 tokens
    for _ in range(200):
        flood.more()
        rig.turns(1)
        if query.fresh:
            break
    assert query.fresh
    answered = flood.answered
    assert answered >= 5
    for _ in range(30):
        flood.more()
        rig.turns(1)
    assert flood.answered > answered


def test_only_as_many_flash_rows_are_given_up_as_an_ask_needs() -> None:
    rig = rig_of(limits=FEW_BLOCKS)
    session = rig.open("abcd")
    queries = [session.flash(f"f{n}", max_tokens=6) for n in range(7)]  # a block each
    rig.turns(1)
    future = session.submit("q", max_tokens=20)  # 20 cells: 3 blocks, 1 is free
    rig.turns(1)
    assert rig.engine.metrics().counts.flash_rows_dropped == 2
    rig.engine.run()
    assert said(future) == "5:1 v1" and all(query.fresh for query in queries)
    rig.at_rest()
