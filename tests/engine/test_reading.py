"""Entries on their way into the cells, and queues that are full.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import numpy as np
import pytest

from jaxstate.engine.types.options import Coalesce, EngineConfig, Policy
from jaxstate.engine.types.values import Span
from jaxstate.errors import CapacityExceeded, QueueFull
from jaxstate.testing import FAKE_LIMITS, fake_layout
from tests.engine.rig import Rig, said

# --- ingest -------------------------------------------------------------------------------------


def test_entries_share_chunks() -> None:
    """Six entries of 5 tokens: chunks of 16 and 14; version 3 is there after the first."""
    rig = Rig()
    session = rig.open()
    session.push(["abcd"] * 6)
    rig.turns(1)
    assert (session.version, session.info().tokens, session.info().pending) == (3, 15, 3)
    rig.engine.run()
    assert rig.news() == ["extend s1 16", "extend s1 14"]
    assert (session.version, session.info().tokens, session.info().pending) == (6, 30, 0)


def test_a_half_read_entry_is_seen_by_nobody() -> None:
    """An entry of 40 tokens takes three chunks; asks in between see the version before it."""
    rig = Rig()
    session = rig.open("abcd")
    session.push("e" * 39)
    answers = []
    for _ in range(2):
        rig.turns(1)
        future = session.submit("xyz")
        while not future.done():
            rig.turns(1)
        answers.append(said(future))
        assert session.version == 1
    rig.engine.run()
    assert answers == ["5:3 v1", "5:3 v1"]
    assert session.version == 2 and session.info().tokens == 45
    future = session.submit("xyz")
    rig.engine.run()
    assert said(future) == "45:3 v2"


def test_a_run_keeps_its_version_to_its_end() -> None:
    """Ingest has patience 1 here, so entries are committed in the middle of an answer."""
    rig = Rig(config=EngineConfig(scheduling=Policy(ingest_patience=1)))
    session = rig.open("abcd")
    for text in ("e", "f", "g"):
        session.push(text)
    future = session.submit("xyz")
    rig.engine.run()
    assert said(future) == "5:3 v1"
    assert rig.news() == [
        "start s1 x1",
        "extend s1 6",
        *["decode s1 x1"] * 3,
    ]
    assert session.version == 4


def test_min_version_waits_and_lends_its_urgency() -> None:
    """The other session's asks do not hold back what an ask waits for."""
    rig = Rig()
    session, other = rig.open("abcd"), rig.open("efgh")
    receipt = session.push("e" * 31)  # 32 tokens: two chunks
    waiting = session.submit("xyz", min_version=receipt.last, max_tokens=1)
    busy = other.submit("abc", max_tokens=16)
    old = session.submit("xyz", max_tokens=1)
    rig.engine.run()
    assert (said(waiting), said(old)) == ("3 v2", "5 v1")  # 37 cells, 5 cells
    steps = rig.news()
    last_extend = max(i for i, step in enumerate(steps) if step.startswith("extend"))
    last_decode = max(i for i, step in enumerate(steps) if step.startswith("decode s2"))
    assert busy.done() and last_extend < last_decode


def test_min_version_of_an_entry_still_to_come() -> None:
    rig = Rig()
    session = rig.open("abcd")
    future = session.submit("xyz", min_version=3)
    assert rig.engine.run() == 0 and not future.done()
    session.push("e")
    rig.engine.run()
    assert not future.done()
    session.push("f")
    rig.engine.run()
    assert said(future) == "9:3 v3"


def test_wait_ends_with_the_version() -> None:
    rig = Rig()
    session = rig.open()
    session.push(["e" * 9, "f" * 9])  # 10 tokens each: after one chunk of 16 version 1 is there
    first, second = rig.core.wait(session._record, 1), rig.core.wait(session._record, 2)
    rig.turns(1)
    assert first.done() and not second.done()
    rig.turns(1)
    assert second.done()
    assert rig.core.wait(session._record, 2).done()
    assert session.wait(timeout=0) == 2


def test_a_push_past_the_cells_is_refused_whole() -> None:
    rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, layout=fake_layout(20)))
    session = rig.open("abcd")
    session.push("a" * 9)
    with pytest.raises(CapacityExceeded):
        session.push(["a", "a" * 4])  # 2 + 5 tokens, and 5 cells left
    assert session.info().pending == 1
    session.push("a" * 4)
    rig.engine.run()
    assert session.info().tokens == 20
    with pytest.raises(CapacityExceeded):
        session.push("")
    future = session.submit("xyz")
    rig.engine.run()
    assert said(future) == "20:3 v3"


# --- back-pressure ------------------------------------------------------------------------------


def test_reject() -> None:
    rig = Rig(config=EngineConfig(queue_entries=2))
    session = rig.open(policy="reject")
    session.push(["a", "b"])
    with pytest.raises(QueueFull):
        session.push("c")
    rig.engine.run()
    assert rig.push_now(session, "c").first == 3
    rig.engine.run()
    assert rig.cells(session) == list(b"a\nb\nc\n")


def test_drop_oldest_tells_what_it_dropped() -> None:
    rig = Rig(config=EngineConfig(queue_entries=3))
    session = rig.open(policy="drop_oldest")
    session.push(["a", "b", "c"])
    receipt = session.push(["d", "e"])
    assert (receipt.first, receipt.last, receipt.pending) == (4, 5, 3)
    assert receipt.dropped == (Span(first=1, last=2),)
    rig.engine.run()
    assert rig.cells(session) == list(b"c\nd\ne\n")
    assert session.version == 5 and session.info().dropped == 2
    counts = rig.engine.metrics().counts
    assert (counts.entries_pushed, counts.entries_committed, counts.entries_dropped) == (5, 3, 2)


def test_drop_oldest_never_drops_half_an_entry() -> None:
    rig = Rig(config=EngineConfig(queue_entries=2))
    session = rig.open(policy="drop_oldest")
    session.push(["a" * 20, "b"])
    rig.turns(1)
    assert session.push("c").dropped == (Span(first=2, last=2),)
    rig.engine.run()
    assert rig.cells(session) == list(b"a" * 20 + b"\nc\n")


def test_coalesce_keeps_the_newest_of_each_key() -> None:
    rig = Rig()
    session = rig.open(policy=Coalesce(lambda text: text[0]))
    session.push(["a1", "b1"])
    assert session.push("a2").dropped == (Span(first=1, last=1),)
    rig.engine.run()
    assert rig.cells(session) == list(b"b1\na2\n")
    assert session.version == 3


def test_a_blocked_push_goes_on_when_there_is_room() -> None:
    rig = Rig(config=EngineConfig(queue_entries=2))
    session = rig.open()
    session.push(["a", "b"])
    entry = rig.entries_of([(np.full(1, ord("c"), np.int32), None)])
    waiting = session.push_prepared(entry)
    assert isinstance(waiting, Future) and not waiting.done()
    assert session.info().pending == 2  # nothing of it is in the queue
    rig.turns(1)
    assert waiting.done()
    outcome = session.push_prepared(entry)
    assert not isinstance(outcome, Future)
    assert outcome.receipt.first == 3
    rig.engine.run()
    assert session.version == 3


def test_a_blocked_push_that_is_given_up_leaves_nothing() -> None:
    rig = Rig(config=EngineConfig(queue_entries=1))
    session = rig.open()
    session.push("a")
    with pytest.raises(TimeoutError, match="the queue was full"):
        session.push("b", timeout=0)
    rig.engine.run()
    assert session.version == 1
    assert session.push("c").first == 2
