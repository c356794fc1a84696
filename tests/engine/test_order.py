"""Which class of work comes first, and that none starves.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig, Policy
from jaxstate.engine.types.values import Answer
from tests.engine.rig import Rig, said

# --- order of the classes -----------------------------------------------------------------------


def test_the_classes_in_order() -> None:
    """Everything waits at once: ask, then ingest, then flash."""
    rig = Rig()
    session = rig.open("abcd")
    session.flash("fl")
    session.push("efg")  # 4 tokens
    future = session.submit("xyz", max_tokens=2)
    rig.engine.run()
    assert rig.news(times=True) == [
        "1 start s1 x1",
        "1.5 decode s1 x1",
        "1.6 extend s1 4",
        "2.6 start s1 x1",
        "3.1 decode s1 x1",
        "3.2 decode s1 x1",
        "3.3 decode s1 x1",
    ]
    assert said(future) == "5: v1"
    (flash,) = session.flashes()
    assert flash.fresh and flash.answer is not None
    assert (flash.answer.text, flash.answer.version) == ("9:2", 2)
    assert flash.answer.latency_s == pytest.approx(3.4 - 2.6)  # from the commit of its version


def test_an_ask_in_the_middle_of_a_flash_batch_waits_for_one_step() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.flash("fl")
    rig.turns(2)  # start 1.0 .. 1.5, decode 1.5 .. 1.6
    future = session.submit("xyz", max_tokens=1)
    rig.engine.run()
    assert rig.news(times=True) == [
        "1 start s1 x1",
        "1.5 decode s1 x1",
        "1.6 start s1 x1",  # the ask
        "2.1 decode s1 x1",
        "2.2 decode s1 x1",
    ]
    assert future.result(timeout=0).latency_s == pytest.approx(0.5)


@pytest.mark.parametrize("work", ["flash", "ingest"])
def test_an_ask_that_arrives_during_a_step_is_next(work: str) -> None:
    """It arrives while the device works (from a callback of another thread, in effect)."""
    rig = Rig()
    session, other = rig.open("abcd"), rig.open("efgh")
    if work == "flash":
        for text in ("f1", "f2"):
            session.flash(text)
    else:
        session.push("q" * 40)
    futures: list[Future[Answer]] = []
    original = rig.clock.pass_s

    def pass_s(seconds: float) -> None:
        if not futures:
            futures.append(other.submit("xyz", max_tokens=1))
        original(seconds)

    rig.clock.pass_s = pass_s  # pyright: ignore
    rig.engine.run()
    steps = rig.news()
    assert steps[0].split()[1] == "s1" and steps[1] == "start s2 x1"


def test_flash_rows_ride_along_in_an_asks_decode() -> None:
    """An ask at the same version decodes together with registered questions under way."""
    rig = Rig()
    session = rig.open("abcd")
    session.flash("f1")
    session.flash("f2")
    rig.turns(1)
    future = session.submit("xyz")
    rig.engine.run()
    assert rig.news() == ["start s1 x2", "start s1 x1"] + ["decode s1 x3"] * 3
    assert said(future) == "5:3 v1"
    assert [one.answer and one.answer.text for one in session.flashes()] == ["5:2", "5:2"]
    rig.at_rest()


def test_no_riding_at_another_version() -> None:
    """Flash rows at version 1 cannot join an ask at version 2; they never mix."""
    rig = Rig()
    session = rig.open("abcd")
    session.flash("fl")
    rig.turns(1)
    session.push("efg")
    rig.turns(1)
    future = session.submit("xyz", max_tokens=2)
    rig.engine.run()
    # flash v1 began, ingest, ask v2 (start, decode), flash v1 ends, flash v2 from the start
    assert rig.news() == [
        "start s1 x1",
        "extend s1 4",
        "start s1 x1",
        "decode s1 x1",
        *["decode s1 x1"] * 3,
        "start s1 x1",
        *["decode s1 x1"] * 3,
    ]
    assert said(future) == "9: v2"


@pytest.mark.parametrize(("ride_rows", "decodes"), [(2, [2]), (1, [1]), (0, [1]), (8, [4])])
def test_only_so_many_ride_along(ride_rows: int, decodes: list[int]) -> None:
    rig = Rig(config=EngineConfig(scheduling=Policy(ride_rows=ride_rows)))
    session = rig.open("abcd")
    for text in ("f1", "f2", "f3"):
        session.flash(text)
    rig.turns(1)
    future = session.submit("xyz", max_tokens=2)
    rig.turns(2)
    assert future.done()
    assert rig.news() == ["start s1 x3", "start s1 x1", *[f"decode s1 x{n}" for n in decodes]]
    rig.engine.run()
    assert {one.answer and one.answer.text for one in session.flashes()} == {"5:2"}


def test_asks_never_give_up_a_row_to_riders() -> None:
    """8 rows: 8 asks leave no room."""
    rig = Rig()
    session = rig.open("abcd")
    session.flash("fl")
    rig.turns(1)
    futures = [session.submit(f"a{n}", max_tokens=2) for n in range(8)]
    rig.turns(2)
    assert all(one.done() for one in futures)
    assert rig.news() == ["start s1 x1", "start s1 x8", "decode s1 x8"]


# --- fairness -----------------------------------------------------------------------------------


def flood(rig: Rig, session: Session, turns: int) -> list[str]:
    """So many turns in which an ask always waits; one word a step."""
    for n in range(turns):
        session.submit(f"a{n}", max_tokens=1)
        rig.turns(1)
    return [step.split()[0] for step in rig.news()]


def test_a_flood_of_asks_leaves_ingest_its_share() -> None:
    """Patience 3: one step in four."""
    rig = Rig(config=EngineConfig(scheduling=Policy(ingest_patience=3)))
    session, busy = rig.open("abcd"), rig.open("efgh")
    session.push("e" * 200)
    steps = flood(rig, busy, 12)
    assert steps == ["start", "start", "start", "extend"] * 3


def test_a_flood_of_asks_leaves_flash_its_share() -> None:
    """Every 4th step, while nothing is to be read."""
    rig = Rig(config=EngineConfig(scheduling=Policy(flash_patience=3)))
    session, busy = rig.open("abcd"), rig.open("efgh")
    session.flash("fl", max_tokens=16)
    steps = flood(rig, busy, 12)
    assert steps == [*["start"] * 4, *["start"] * 3, "decode", *["start"] * 3, "decode"]


def test_a_flood_of_pushes_leaves_flash_its_share() -> None:
    rig = Rig(config=EngineConfig(scheduling=Policy(flash_patience=2)))
    session, busy = rig.open("abcd"), rig.open()
    session.flash("fl", max_tokens=3)
    busy.push("e" * 300)
    rig.turns(9)
    assert rig.news() == [
        "extend s2 16",
        "extend s2 16",
        "start s1 x1",
        "extend s2 16",
        "extend s2 16",
        "decode s1 x1",
        "extend s2 16",
        "extend s2 16",
        "decode s1 x1",
    ]


def test_the_default_shares() -> None:
    """One step in 9 for ingest, in 33 for flash, as documented."""
    rig = Rig()
    session, busy = rig.open("abcd"), rig.open("efgh")
    session.push("e" * 900)
    steps = flood(rig, busy, 27)
    assert [i for i, step in enumerate(steps) if step == "extend"] == [8, 17, 26]


def test_asks_that_begin_and_asks_that_go_on_take_turns() -> None:
    rig = Rig()
    one, two = rig.open("abcd"), rig.open("efgh")
    first = one.submit("first", max_tokens=4)
    rig.turns(1)
    turns = 0
    while not first.done():
        two.submit(f"a{turns}", max_tokens=1)
        rig.turns(1)
        turns += 1
    assert rig.news() == ["start s1 x1"] + ["decode s1 x1", "start s2 x2"] * 2 + ["decode s1 x1"]


def test_sessions_take_turns_at_ingest() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    one.push("e" * 63)  # 4 chunks
    rig.turns(1)
    two.push("f" * 31)  # 2 chunks
    rig.engine.run()
    assert [step.split()[1] for step in rig.news()] == ["s1", "s2", "s1", "s2", "s1", "s1"]


def test_asks_with_min_version_cannot_starve_another_sessions_ingest() -> None:
    """push, ask at that version, over and over: the other session still gets its share."""
    rig = Rig(config=EngineConfig(scheduling=Policy(ingest_patience=4)))
    victim, greedy = rig.open("abcd"), rig.open("efgh")
    receipt = victim.push("e" * 20)
    for n in range(80):
        last = greedy.push("x").last
        greedy.submit(f"a{n}", min_version=last, max_tokens=1)
        rig.turns(1)
    assert victim.version >= receipt.last


def test_an_overdue_session_cannot_starve_anothers_flash_queries() -> None:
    """One session's questions are always past their deadline; another's still get their share."""
    policy = Policy(ingest_patience=4, flash_patience=6)
    rig = Rig(config=EngineConfig(scheduling=policy))
    victim, greedy, busy = rig.open("abcd"), rig.open("efgh"), rig.open("ijkl")
    query = victim.flash("fl", max_tokens=2)
    greedy.flash("gr", max_tokens=1, deadline_s=0.0)
    for n in range(120):
        greedy.push("x")
        busy.submit(f"a{n}", max_tokens=1)
        rig.turns(1)
    assert query.answer is not None
