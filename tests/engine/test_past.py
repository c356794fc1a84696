"""Questions about earlier versions, and forks at them, on the fake device and on a real one.

`tests.engine.rig` says how the numbers come about: an answer says how many cells it saw. A session
of these tests opens with nothing and reads entries of 5, 3 and 4 cells: versions 0 to 3 end at 0,
5, 8 and 12 cells.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxstate.engine.api.aio import AsyncSession
from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.protocol import HostCells
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import (
    ClosedError,
    InvalidInput,
    VersionUnavailable,
)
from jaxstate.testing import SHARED_LIMITS
from tests.engine.rig import AHEAD, Rig, said

ENDS = (0, 5, 8, 12)


def filled(rig: Rig, **settings: object) -> Session:
    session = rig.open(**settings)
    for text in ("abcd", "ef", "ghi"):
        session.push(text)
        rig.engine.run()
    rig.news()
    return session


def rung(ring_cells: int = 4, **settings: object) -> tuple[Rig, Session]:
    """Sees back so many cells: of 12, versions that ended at 8 or later with 4."""
    rig = Rig(ring_cells=ring_cells, **settings)  # pyright: ignore[reportArgumentType]
    return rig, filled(rig)


def refused(future: AskFuture) -> str:
    assert future.done()
    error = future.exception(timeout=0)
    assert isinstance(error, VersionUnavailable)
    return str(error)


def only(rig: Rig, *sessions: Session) -> None:
    """These sessions are there, and no others; nothing is held for nobody."""
    state = rig.core.state
    assert [record.id for record in state.records.values()] == [one.id for one in sessions]
    rig.at_rest()


# --- asks of versions that are held -------------------------------------------------------------


@pytest.mark.parametrize("version", range(4))
def test_an_ask_about_an_earlier_version_sees_its_cells_and_no_others(version: int) -> None:
    rig = Rig()
    session = filled(rig)
    future = session.submit("xyz", as_of=version)
    rig.engine.run()
    answer = future.result(timeout=0)
    assert answer.text == f"{ENDS[version]}:3" and answer.version == version
    assert answer.usage.context_tokens == ENDS[version] and answer.source == "computed"
    assert {line.split()[0] for line in rig.news()} == {"start", "decode"}, "nothing is read again"
    assert session.version == 3
    only(rig, session)


def test_choices_and_long_questions_look_at_the_earlier_version() -> None:
    """At 8 cells a choice of 8 tokens wins; 40 tokens are read in two steps."""
    rig = Rig()
    session = filled(rig)
    best = session.submit("xyz", choices=["a" * 8, "a" * 2], as_of=2)
    long = session.submit("q" * 40, as_of=1, max_tokens=4)
    rig.engine.run()
    assert best.result(timeout=0).text == "a" * 8 and best.result(timeout=0).version == 2
    assert said(long) == "5:40 v1"


def test_what_was_displaced_is_in_no_version() -> None:
    rig = Rig(config=EngineConfig(queue_entries=2))
    session = rig.open(policy="drop_oldest")
    receipts = [session.push(text) for text in ("aa", "bbb", "cccc")]
    assert [len(one.dropped) for one in receipts] == [0, 0, 1]
    rig.engine.run()
    asked = [session.submit("xyz", as_of=version) for version in range(4)]
    rig.engine.run()
    assert [said(one) for one in asked] == ["0:3 v0", "0:3 v1", "4:3 v2", "9:3 v3"]


def test_asks_that_look_at_the_same_version_share_steps_with_each_other() -> None:
    rig = Rig()
    session = filled(rig)
    asked = [session.submit("xyz", as_of=version) for version in (1, 3, 1)]
    asked.append(session.submit("xyz"))
    rig.engine.run()
    assert [said(one) for one in asked] == ["5:3 v1", "12:3 v3", "5:3 v1", "12:3 v3"]
    news = rig.news()
    assert news.count("start s1 x2") == 2 and "start s1 x1" not in news


def test_asks_share_steps_with_other_sessions() -> None:
    rig = Rig(limits=SHARED_LIMITS)
    one, other = filled(rig), filled(rig)
    asked = [one.submit("xyz", as_of=1), other.submit("xyz"), other.submit("xyz")]
    rig.engine.run()
    assert [said(future) for future in asked] == ["5:3 v1", "12:3 v3", "12:3 v3"]
    assert rig.news()[0] == "start s1 s2 x3"


def test_a_version_may_be_asked_about_that_the_session_has_left_since() -> None:
    rig = Rig()
    session = filled(rig)
    future = session.submit("xyz", as_of=3)
    session.push("more")
    rig.engine.run()
    assert said(future) == "12:3 v3" and session.version == 4


def test_an_ask_under_way_stays_at_its_version_while_more_is_read() -> None:
    rig = Rig(limits=AHEAD)
    session = filled(rig)
    future = session.submit("xyz", as_of=2)
    rig.turns(1)
    session.push("y" * 40)
    rig.engine.run()
    assert said(future) == "8:3 v2" and session.version == 4
    only(rig, session)


# --- answers that are there already -------------------------------------------------------------


def test_a_fresh_flash_answer_is_given_for_its_own_version_only() -> None:
    rig = Rig()
    session = filled(rig)
    session.flash("xyz")
    rig.engine.run()
    own = session.submit("xyz", as_of=3)
    assert own.done() and own.result().source == "flash" and own.result().version == 3
    earlier = session.submit("xyz", as_of=2)
    assert not earlier.done()
    rig.engine.run()
    assert said(earlier) == "8:3 v2" and earlier.result(timeout=0).source == "computed"
    session.push("more")
    later = session.submit("xyz", as_of=3)
    assert later.done(), "the flash answer is fresh until the entry is read"
    rig.engine.run()
    later = session.submit("xyz", as_of=3)
    assert not later.done()
    rig.engine.run()
    assert said(later) == "12:3 v3"


# --- what cannot be asked -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"as_of": -1}, "as_of=-1 must be 0"),
        ({"as_of": 1.0}, "as_of=1.0 must be an integer"),
        ({"as_of": True}, "as_of=True must be an integer"),
        ({"as_of": 4}, "versions 0 to 3; min_version="),
        ({"as_of": 1, "min_version": 1}, "give one of them"),
    ],
)
def test_versions_that_make_no_sense(given: dict[str, object], message: str) -> None:
    rig = Rig()
    session = filled(rig)
    with pytest.raises(InvalidInput, match=message):
        session.submit("xyz", **given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match=message):
        session.ask("xyz", **given)  # pyright: ignore[reportArgumentType]
    only(rig, session)


@pytest.mark.parametrize("version", [-1, 4, 1.0, "1"])
def test_forks_at_versions_that_make_no_sense(version: object) -> None:
    rig = Rig()
    session = filled(rig)
    with pytest.raises(InvalidInput, match="version="):
        session.fork(version=version)  # pyright: ignore[reportArgumentType]
    only(rig, session)


def test_before_the_opening_is_read_there_is_no_version() -> None:
    rig = Rig()
    session = rig.engine.open(prefix="abc")
    with pytest.raises(InvalidInput, match=r"wait\(0\)"):
        session.submit("xyz", as_of=0)
    rig.engine.run()
    future = session.submit("xyz", as_of=0)
    rig.engine.run()
    assert said(future) == "3:3 v0"


def test_a_closed_session_answers_nothing() -> None:
    rig = Rig()
    session = filled(rig)
    session.close()
    with pytest.raises(ClosedError):
        session.submit("xyz", as_of=1)


# --- sliding windows: versions that are gone ----------------------------------------------------


def test_with_a_ring_the_versions_that_it_still_has_are_held() -> None:
    rig, session = rung()
    asked = [session.submit("xyz", as_of=version) for version in (2, 3)]
    rig.engine.run()
    assert [said(one) for one in asked] == ["8:3 v2", "12:3 v3"]
    with pytest.raises(VersionUnavailable) as error:
        session.submit("xyz", as_of=1)
    assert str(error.value) == (
        "session 's1' no longer holds version 1 (5 cells); it can be asked about versions 2 to 3 "
        "now. A fork that is made while a version is held keeps it; what is gone can be read "
        "again, by a new session that is given the same entries"
    )
    only(rig, session)


# --- between asking and beginning ---------------------------------------------------------------


def test_a_version_that_is_overwritten_before_the_ask_begins_fails_it() -> None:
    """Tail blocks are all taken, so that it waits while more is read."""
    rig, session = rung(limits=dataclasses.replace(AHEAD, tail_blocks=8))
    other = rig.open("abcd")
    busy = other.submit("q" * 60, choices=[f"{n:03}" for n in range(160)])
    rig.turns(1)
    future = session.submit("xyz", as_of=2)
    newest = session.submit("xyz")
    session.push("y" * 3)
    for _ in range(200):
        rig.engine.turn()
        if session.version == 4:
            break
    assert not busy.done()
    message = refused(future)
    assert "no longer holds version 2 (8 cells)" in message and "version 3 alone" in message
    rig.engine.run()
    assert said(newest) == "16:3 v4" and busy.done()
    assert rig.engine.metrics().counts.asks_failed == 1
    only(rig, session, other)


def test_asks_about_an_earlier_version_do_not_keep_a_session_from_reading() -> None:
    """At version 2 the ring has nothing to spare. A new ask comes before the last one ends: one
    batch of them goes first, then something is read, and what they are about is gone."""
    rig, session = rung()
    session.push("y" * 3)
    asked = [session.submit("xyz", as_of=2)]
    for _ in range(100):
        rig.engine.turn()
        if session.version == 4:
            break
        asked.append(session.submit("xyz", as_of=2))
    assert session.version == 4, "it never got to read"
    rig.engine.run()
    ends = ["answer" if one.exception(timeout=0) is None else "refused" for one in asked]
    assert {*ends} == {"answer", "refused"} and ends == sorted(ends)
    only(rig, session)


def test_an_ask_waits_for_nothing_of_an_entry_that_is_half_read() -> None:
    rig = Rig()
    session = filled(rig)
    session.push("y" * 40)
    rig.turns(1)
    assert session.record.queue.partly_read
    asked = [session.submit("xyz", as_of=version) for version in (2, 3)]
    rig.engine.run()
    assert [said(one) for one in asked] == ["8:3 v2", "12:3 v3"]
    assert session.version == 4


def test_a_half_read_entry_may_have_overwritten_even_the_newest_version() -> None:
    rig, session = rung()
    session.push("y" * 40)
    rig.turns(1)
    assert session.version == 3 and session.record.queue.partly_read
    with pytest.raises(VersionUnavailable, match="asked about none but its newest now"):
        session.submit("xyz", as_of=3)
    rig.engine.run()
    only(rig, session)


# --- away from the device -----------------------------------------------------------------------


@pytest.mark.parametrize("host_bytes", [1 << 30, 0])
def test_a_suspended_session_comes_back_for_an_earlier_version(host_bytes: int) -> None:
    rig = Rig(config=EngineConfig(host_bytes=host_bytes))
    session = filled(rig)
    session.suspending()
    rig.engine.run()
    assert session.info().residency == ("host" if host_bytes else "log")
    asked = [session.submit("xyz", as_of=version) for version in (1, 3)]
    rig.engine.run()
    assert [said(one) for one in asked] == ["5:3 v1", "12:3 v3"]
    only(rig, session)


@pytest.mark.parametrize("turns", range(1, 5))
def test_an_ask_waits_for_cells_that_are_computed_again(turns: int) -> None:
    rig = Rig(config=EngineConfig(host_bytes=0))
    session = filled(rig)
    session.push("y" * 40)
    rig.engine.run()
    session.suspending()
    rig.engine.run()
    session.resuming()
    rig.turns(turns)
    assert session.record.residence.missing
    future = session.submit("xyz", as_of=2)
    child = rig.engine.fork(session, rig.engine.turn, version=1)
    rig.engine.run()
    assert said(future) == "8:3 v2" and rig.cells(child) == list(b"abcd\n")
    only(rig, session, child)


def test_a_copy_on_the_host_holds_what_the_newest_version_needs() -> None:
    """Of a ring; computed again from the log, it holds as much as it ever did."""
    rig, session = rung(ring_cells=6, config=EngineConfig())
    waiting = session.submit("xyz", as_of=2)
    waiting.cancel()
    session.suspending()
    rig.engine.run()
    with pytest.raises(VersionUnavailable, match="version 3 alone"):
        session.submit("xyz", as_of=2)
    session.resuming()
    rig.engine.run()
    with pytest.raises(VersionUnavailable, match="version 3 alone"):
        session.submit("xyz", as_of=2)
    newest = session.submit("xyz", as_of=3)
    session.push("y")
    rig.engine.run()
    again = session.submit("xyz", as_of=3)
    rig.engine.run()
    assert said(newest) == said(again) == "12:3 v3"


def test_a_ring_that_is_computed_again_holds_what_it_did() -> None:
    rig, session = rung(ring_cells=6, config=EngineConfig(host_bytes=0))
    session.suspending()
    rig.engine.run()
    with pytest.raises(VersionUnavailable, match="versions 2 to 3"):
        session.submit("xyz", as_of=1)
    future = session.submit("xyz", as_of=2)
    rig.engine.run()
    assert said(future) == "8:3 v2"


def test_a_ring_whose_copy_was_lost_is_computed_and_holds_what_it_did() -> None:
    rig, session = rung(ring_cells=6, config=EngineConfig())
    session.suspending()
    rig.engine.run()
    rig.core.cell_store.drop(session.record.key)
    session.resuming()
    rig.engine.run()
    future = session.submit("xyz", as_of=2)
    rig.engine.run()
    assert said(future) == "8:3 v2"
    only(rig, session)


def test_an_ask_fails_if_its_session_leaves_without_what_it_is_about() -> None:
    """It waits for tail blocks; its session is sent away and copied meanwhile."""
    limits = dataclasses.replace(AHEAD, tail_blocks=8)
    rig, session = rung(ring_cells=6, limits=limits, config=EngineConfig())
    other = rig.open("abcd")
    busy = other.submit("q" * 40, max_tokens=24)
    rig.turns(1)
    future = session.submit("xyz", as_of=2)
    session.suspending()
    for _ in range(3):
        rig.engine.turn()
    assert not busy.done() and "version 3 alone" in refused(future)
    rig.engine.run()
    only(rig, session, other)


# --- forks at an earlier version ----------------------------------------------------------------


@pytest.mark.parametrize("version", range(4))
def test_a_fork_at_a_version_goes_on_from_there(version: int) -> None:
    rig = Rig()
    session = filled(rig)
    child = rig.engine.fork(session, rig.engine.turn, version=version)
    assert child.version == version and child.info().residency == "device"
    receipt = child.push("zz")
    assert receipt.first == version + 1
    asked = [child.submit("xyz", as_of=version), session.submit("xyz")]
    rig.engine.run()
    end = ENDS[version]
    assert [said(one) for one in asked] == [f"{end}:3 v{version}", "12:3 v3"]
    assert rig.cells(child) == [*b"abcd\nef\nghi\n"[:end], *b"zz\n"]
    assert rig.cells(session) == list(b"abcd\nef\nghi\n")
    session.push("w")
    rig.engine.run()
    earlier = [child.submit("xyz", as_of=before) for before in range(version + 1)]
    rig.engine.run()
    assert [said(one) for one in earlier] == [f"{ENDS[v]}:3 v{v}" for v in range(version + 1)]
    only(rig, session, child)


def test_a_fork_at_an_earlier_version_reads_its_last_token_again() -> None:
    """12 cells in blocks of 8: what it shares is the first block, half of which it then copies."""
    rig = Rig()
    session = filled(rig)
    child = rig.engine.fork(session, rig.engine.turn, version=1)
    rig.engine.run()
    assert rig.news() == ["copy", "extend s2 1"]
    assert rig.engine.metrics().counts.tokens_rebuilt == 1
    whole = rig.engine.fork(session, rig.engine.turn, version=3)
    rig.engine.run()
    assert rig.news() == [] and whole.version == 3
    only(rig, session, child, whole)


def test_a_fork_at_a_version_does_not_wait_for_an_entry_that_is_half_read() -> None:
    rig = Rig()
    session = filled(rig)
    session.push("y" * 100)
    rig.turns(1)
    record, future = rig.manager.fork(session.record, None, 3)
    rig.turns(1)
    assert future.done() and session.record.queue.partly_read and record.version == 3
    rig.engine.run()
    child = rig.engine.session(record.id)
    assert rig.cells(child) == list(b"abcd\nef\nghi\n") and session.version == 4
    only(rig, session, child)


def test_a_fork_brings_its_parent_back_first() -> None:
    rig = Rig(config=EngineConfig())
    session = filled(rig)
    session.suspending()
    rig.engine.run()
    child = rig.engine.fork(session, rig.engine.turn, version=2)
    rig.engine.run()
    assert rig.cells(child) == list(b"abcd\nef\n") and session.info().residency == "device"
    only(rig, session, child)


def test_a_fork_at_a_version_that_is_gone() -> None:
    rig, session = rung()
    with pytest.raises(VersionUnavailable, match="can be forked at version 3 alone now"):
        session.fork(version=1)
    with pytest.raises(VersionUnavailable, match="version 3 alone now"):
        session.fork(version=2)  # its last token sees one cell more
    only(rig, session)


def test_a_shorter_fork_does_not_hold_what_its_parent_had_overwritten() -> None:
    """By its own length it could look back 4 cells, to version 1."""
    rig, session = rung(ring_cells=5)
    child = rig.engine.fork(session, rig.engine.turn, version=2)
    rig.engine.run()
    assert rig.news() == ["copy", "extend s2 1"]
    with pytest.raises(VersionUnavailable, match="version 2 alone"):
        child.submit("xyz", as_of=1)
    grandchild = rig.engine.fork(child, rig.engine.turn)
    with pytest.raises(VersionUnavailable, match="version 2 alone"):
        grandchild.submit("xyz", as_of=1)
    asked = [one.submit("xyz", as_of=2) for one in (child, grandchild)]
    rig.engine.run()
    assert [said(one) for one in asked] == ["8:3 v2"] * 2
    only(rig, session, child, grandchild)


def test_a_version_that_is_overwritten_before_the_fork_is_made() -> None:
    """Another job came first, and more was read after it."""
    rig, session = rung(ring_cells=5)
    record, future = rig.manager.fork(session.record, "late", 2)
    job = rig.core.jobs.pop()
    session.push("yy")
    rig.engine.run()
    rig.core.jobs.append(job)
    rig.engine.run()
    with pytest.raises(VersionUnavailable, match="no longer holds version 2"):
        future.result(timeout=0)
    assert record.closed
    only(rig, session)


def test_a_fork_of_a_full_pool_is_computed_when_there_is_room() -> None:
    rig = Rig(cells=1024)
    session = filled(rig)
    session.push("x" * 1007)
    rig.engine.run()
    child = rig.engine.fork(session, rig.engine.turn, version=2)
    assert child.version == 2 and child.info().residency == "log"
    future = child.submit("xyz")
    rig.engine.run()
    assert said(future) == "8:3 v2"
    only(rig, session, child)


# --- sessions that were saved -------------------------------------------------------------------


def test_a_restored_session_knows_its_own_versions(tmp_path: Path) -> None:
    rig = Rig()
    session = filled(rig)
    rig.executor.save(tmp_path / "with", captured(rig, session), {"entries": 3})
    restored = rig.engine.restore(tmp_path / "with")
    rig.engine.run()
    with pytest.raises(VersionUnavailable, match=r"restored from a later one\. .* knows is 3"):
        restored.submit("xyz", as_of=2)
    restored.push("more")
    rig.engine.run()
    asked = [restored.submit("xyz", as_of=version) for version in (3, 4)]
    rig.engine.run()
    assert [said(one) for one in asked] == ["12:3 v3", "17:3 v4"]
    child = rig.engine.fork(restored, rig.engine.turn, version=3)
    rig.engine.run()
    assert rig.cells(child) == list(b"abcd\nef\nghi\n")


def test_a_session_saved_without_its_tokens_is_refused(tmp_path: Path) -> None:
    rig = Rig()
    session = filled(rig)
    cells = captured(rig, session)
    bare = dataclasses.replace(cells, arrays={"cells": cells.arrays["cells"]})
    rig.executor.save(tmp_path / "bare", bare, {"entries": 3})
    with pytest.raises(InvalidInput, match="read its text into a new one"):
        rig.engine.restore(tmp_path / "bare")
    only(rig, session)


def captured(rig: Rig, session: Session) -> HostCells:
    """As `Session.save` has it written."""
    tokens = np.array(rig.cells(session), np.int32)
    return HostCells(cells=len(tokens), arrays={"cells": tokens, "tokens": tokens})


# --- asyncio ------------------------------------------------------------------------------------


def test_the_same_for_asyncio() -> None:
    rig, session = rung()

    async def turned() -> None:
        alone = AsyncSession(session)
        asked = [
            asyncio.ensure_future(alone.ask("xyz", as_of=2)),
            asyncio.ensure_future(alone.ask("xyz", as_of=3)),
        ]
        forked = asyncio.ensure_future(alone.fork("child", version=3))
        while not (forked.done() and all(one.done() for one in asked)):
            await asyncio.sleep(0)
            rig.engine.turn()
        assert [one.result().version for one in asked] == [2, 3]
        assert forked.result().version == 3

    asyncio.run(turned())
    only(rig, session, rig.engine.session("child"))
