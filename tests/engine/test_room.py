"""What questions under way hold: cells of a ring, tail blocks, steps ahead.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxstate.engine.types.options import EngineConfig, Policy
from jaxstate.testing import FAKE_LIMITS
from tests.engine.rig import AHEAD, Rig, read, said, short

# --- the ring -----------------------------------------------------------------------------------


def test_an_ask_under_way_pins_its_cells() -> None:
    """10 cells to spare: ingest reads 10 of 31 tokens, then waits for the ask."""
    rig = Rig(ring_cells=10, config=EngineConfig(scheduling=Policy(ingest_patience=1)))
    session = rig.open("abcd")
    session.push("e" * 30)
    future = session.submit("xyz")
    rig.engine.run()
    assert said(future) == "5:3 v1"
    assert rig.news() == [
        "start s1 x1",
        "extend s1 10",
        *["decode s1 x1"] * 3,
        "extend s1 16",
        "extend s1 5",
    ]
    assert session.version == 2


def test_an_ask_that_cannot_look_back_waits_for_the_entrys_end() -> None:
    """16 of 32 tokens are read, the ring spares 10: the old version is gone, so the ask waits for
    the new one, and lends its urgency to reading it."""
    rig = Rig(ring_cells=10)
    session, other = rig.open("abcd"), rig.open("efgh")
    session.push("e" * 31)
    rig.turns(1)
    future = session.submit("xyz", max_tokens=1)
    other.push("f" * 40)
    rig.engine.run()
    assert said(future) == "3 v2"  # 37 cells
    assert rig.news()[:3] == ["extend s1 16", "extend s1 16", "start s1 x1"]


def test_flash_rows_that_lose_their_cells_begin_again() -> None:
    rig = Rig(ring_cells=3)
    session = rig.open("abcd")
    query = session.flash("fl")
    events = session.subscribe(flash="always")
    rig.turns(2)
    session.push("efgh")
    rig.engine.run()
    assert rig.news() == [
        "start s1 x1",
        "decode s1 x1",
        "extend s1 5",
        "start s1 x1",
        *["decode s1 x1"] * 4,  # "10:2" <eos>
    ]
    assert query.answer is not None and (query.answer.text, query.answer.version) == ("10:2", 2)
    assert short(read(events)) == ["C1", "D2", "F2=10:2"]
    assert rig.engine.metrics().counts.flash_rows_dropped == 1
    rig.at_rest()


def test_dropped_flash_rows_do_not_wait_for_their_interval_again() -> None:
    """The interval is between answers; one that was thrown away is none."""
    rig = Rig(ring_cells=3)
    session = rig.open("abcd")
    query = session.flash("fl", min_interval_s=100.0)
    rig.turns(2)
    session.push("efgh")
    rig.engine.run()
    assert query.fresh


# --- tail blocks --------------------------------------------------------------------------------


TIGHT = dataclasses.replace(FAKE_LIMITS, tail_cells=32, tail_blocks=4)  # 4 blocks of 8 cells


def test_asks_take_the_blocks_of_flash_rows() -> None:
    """Two flash rows hold 2 blocks each; the ask needs 3, so they begin again afterwards."""
    rig = Rig(limits=TIGHT)
    session = rig.open("abcd")
    for text in ("f1", "f2"):
        session.flash(text, max_tokens=9)  # 2 + 8 cells: 2 blocks
    rig.turns(1)
    future = session.submit("q" * 12, max_tokens=8)  # 12 + 7 cells: 3 blocks
    rig.engine.run()
    assert said(future) == "5:12 v1"
    assert rig.news() == [
        "start s1 x2",
        "start s1 x1",
        *["decode s1 x1"] * 4,
        "start s1 x2",
        *["decode s1 x2"] * 3,
    ]
    assert all(query.fresh for query in session.flashes())
    assert rig.engine.metrics().counts.flash_rows_dropped == 2
    rig.at_rest()


def test_asks_wait_for_each_others_blocks() -> None:
    rig = Rig(limits=TIGHT)
    session = rig.open("abcd")
    futures = [session.submit(f"a{n}" + "q" * 12, max_tokens=8) for n in range(3)]  # 3 blocks each
    rig.engine.run()
    assert [said(one) for one in futures] == ["5:14 v1"] * 3
    assert rig.news() == (["start s1 x1"] + ["decode s1 x1"] * 4) * 3
    rig.at_rest()


def test_flash_waits_for_the_blocks_of_asks() -> None:
    rig = Rig(limits=TIGHT)
    session = rig.open("abcd")
    future = session.submit("q" * 12, max_tokens=16)  # 4 blocks
    rig.turns(1)
    query = session.flash("fl")
    rig.engine.run()
    assert future.done() and query.fresh
    assert rig.news() == (
        ["start s1 x1"] + ["decode s1 x1"] * 4 + ["start s1 x1"] + ["decode s1 x1"] * 3
    )


def test_nothing_deadlocks_when_blocks_are_short() -> None:
    """Two sessions, flash queries and asks that need 1 to 4 of 4 blocks: all are answered."""
    rig = Rig(limits=TIGHT)
    sessions = [rig.open("abcd"), rig.open("efgh")]
    for session in sessions:
        for n in range(5):
            session.flash("f" * (n + 1), max_tokens=4 * n + 1)
    futures = []
    for n in range(12):
        session = sessions[n % 2]
        futures.append(session.submit("a" * (n + 1), max_tokens=n + 8))
        if n % 3 == 0:
            session.push("e" * n)
        rig.turns(n % 4)
    rig.engine.run()
    assert all(one.done() and one.exception() is None for one in futures)
    assert all(query.fresh for session in sessions for query in session.flashes())
    rig.at_rest()


# --- one step ahead -----------------------------------------------------------------------------


def test_one_step_ahead_says_the_same() -> None:
    """The same work with results fetched a step late: the same answers and versions."""
    told = []
    for limits in (FAKE_LIMITS, AHEAD):
        rig = Rig(limits=limits)
        session = rig.open("abcd")
        query = session.flash("fl")
        futures = [session.submit("xyz"), session.submit("q" * 40, choices=["a", "bbbbb"])]
        rig.turns(2)
        receipt = session.push("e" * 30)
        futures.append(session.submit("xyz", min_version=receipt.last))
        rig.engine.run()
        rig.at_rest()
        assert query.answer is not None
        told.append([*map(said, futures), query.answer.text, query.answer.version])
    assert told[0] == told[1] == ["5:3 v1", "bbbbb v1", "36:3 v2", "36:2", 2]


def test_one_step_too_many_is_harmless() -> None:
    """<eos> is known a step late: one decode more, whose result nobody gets."""
    rig = Rig(limits=AHEAD)
    session = rig.open("abcd")
    future = session.submit("xyz", max_tokens=16)
    rig.engine.run()
    assert said(future) == "5:3 v1"
    assert rig.news() == ["start s1 x1"] + ["decode s1 x1"] * 4
    exact = session.submit("xyz", max_tokens=2)  # its end is known beforehand
    rig.engine.run()
    assert said(exact) == "5: v1"
    assert rig.news() == ["start s1 x1", "decode s1 x1"]
    rig.at_rest()


def test_idle_work_is_never_launched_ahead() -> None:
    """With a step ahead, a flash step's result is in the records when its turn ends."""
    rig = Rig(limits=AHEAD)
    session = rig.open("abcd")
    session.flash("fl")
    for _ in range(4):
        rig.turns(1)
        assert not rig.engine._loop._in_flight


def test_entries_without_tokens_wait_for_the_step_before() -> None:
    """With a step ahead, entry 2 (nothing to read) must not overtake entry 1: versions rise."""
    rig = Rig(limits=AHEAD)
    session = rig.open()
    versions = []
    rig.push_tokens(session, [(np.full(5, 7, np.int32), None)])
    rig.turns(1)
    rig.push_tokens(session, [(np.zeros(0, np.int32), None)])
    for _ in range(4):
        versions.append(session.version)
        rig.turns(1)
    rig.engine.run()
    versions.append(session.version)
    assert versions == sorted(versions) and versions[-1] == 2
    assert session.info().tokens == 5


def test_flash_rows_all_in_flight_do_not_stop_the_loop() -> None:
    """Eight flash rows, seven of them riding in an ask's last step, a ninth question due: the loop
    must fetch, not plan for ever a step that has no row left."""
    rig = Rig(limits=AHEAD)
    session = rig.open("abcd")
    queries = [session.flash(f"f{n}", max_tokens=2) for n in range(9)]
    rig.turns(1)
    future = session.submit("xyz", max_tokens=2)
    rig.engine.run(1000)
    assert future.done() and all(query.fresh for query in queries)


def test_a_session_is_there_while_its_opening_is_read() -> None:
    rig = Rig(limits=AHEAD)
    session = rig.engine.open("mine", prefix="abcd")
    for _ in range(4):
        assert rig.engine.session("mine").version == session.version
        assert [one.id for one in rig.engine.sessions()] == ["mine"]
        rig.turns(1)
