"""Shared prefixes and shared steps, worked out on the fake device.

Blocks have 8 cells; an opening is its own bytes. Up to 8 sessions share a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.protocol import Pending, StepKind, StepOutput
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import ClosedError, InvalidInput, QueueFull, TimedOut
from jaxstate.steps.packing import Row
from jaxstate.testing import SHARED_LIMITS
from jaxstate.text import Template
from tests.engine.rig import Rig, said

# What a session opens with is its prefix, byte by byte.
PLAIN = Template(bare="", opening=("", ""), asking=("", ""))
PREFIX = "The prices of today, in order.."  # 31 bytes: three whole blocks, 7 cells, 1 to read


def shared_rig(config: EngineConfig | None = None) -> Rig:
    return Rig(limits=SHARED_LIMITS, template=PLAIN, config=config)


def opened(rig: Rig, *prefixes: str, **settings: object) -> list[Session]:
    """All at once, and then the loop runs."""
    sessions = [rig.engine.open(prefix=prefix, **settings) for prefix in prefixes]  # pyright: ignore
    rig.engine.run()
    return sessions


def held(rig: Rig) -> int:
    return rig.engine.metrics().gauges.cells_held


def test_fifty_sessions_that_open_with_one_prefix_compute_it_once() -> None:
    """The first reads 31 tokens in two steps; the others read the 7 beside the three blocks."""
    rig = shared_rig()
    sessions = opened(rig, *[PREFIX] * 50)
    news = rig.news()
    assert news[:2] == ["extend s1 16", "extend s1 15"]
    # 4 chunks of up to 16 tokens go into a step.
    assert len(news) == 2 + 13 and sum(line.count(" s") for line in news) == 2 + 49
    counts = rig.engine.metrics().counts
    assert counts.tokens_ingested == 31 + 49 * 7
    assert counts.prefix_tokens_shared == 49 * 24
    for session in sessions:
        assert session.version == 0 and rig.cells(session) == list(PREFIX.encode())
    assert held(rig) == 24 + 50 * 8
    rig.at_rest()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 24, 25])
def test_only_whole_blocks_are_shared_and_the_last_token_is_read(length: int) -> None:
    rig = shared_rig()
    prefix = PREFIX[:length]
    opened(rig, prefix)
    rig.news()
    (second,) = opened(rig, prefix)
    shared = (length - 1) // 8 * 8
    assert rig.news() == [f"extend s2 {length - shared}"]
    assert rig.cells(second) == list(prefix.encode())
    assert rig.engine.metrics().counts.prefix_tokens_shared == shared


def test_prefixes_that_begin_alike_share_what_is_alike() -> None:
    rig = shared_rig()
    one, other = opened(rig, "a" * 16 + "b" * 9, "a" * 16 + "c" * 9)
    assert rig.cells(one) == list(b"a" * 16 + b"b" * 9)
    assert rig.cells(other) == list(b"a" * 16 + b"c" * 9)
    assert rig.engine.metrics().counts.prefix_tokens_shared == 16
    third, *_ = opened(rig, "a" * 16 + "c" * 9)
    assert rig.engine.metrics().counts.prefix_tokens_shared == 16 + 24
    assert rig.cells(third) == rig.cells(other)


def test_who_waits_for_a_prefix_goes_on_when_its_session_is_closed() -> None:
    rig = shared_rig()
    first, second = (rig.engine.open(prefix=PREFIX) for _ in range(2))
    rig.turns(1)
    first.close()
    rig.engine.run()
    assert second.version == 0 and rig.cells(second) == list(PREFIX.encode())
    rig.at_rest()


def test_who_waits_for_a_prefix_goes_on_when_its_session_leaves() -> None:
    rig = shared_rig(EngineConfig())
    first, second = (rig.engine.open(prefix=PREFIX) for _ in range(2))
    rig.turns(1)
    first.suspending()
    rig.engine.run()
    assert (first.version, second.version) == (0, 0)
    assert rig.cells(second) == list(PREFIX.encode())


def test_a_device_that_fails_on_a_prefix_does_not_give_it_to_others() -> None:
    rig = shared_rig()
    first, second = (rig.engine.open(prefix=PREFIX) for _ in range(2))
    rig.executor.fail_next("extend")
    rig.engine.run()
    for session in (first, second):
        assert session.version == 0 and rig.cells(session) == list(PREFIX.encode())
    rig.at_rest()


def test_a_prefix_stays_for_the_next_session_until_its_room_is_needed() -> None:
    rig = Rig(limits=SHARED_LIMITS, template=PLAIN, cells=64 * 128)
    (first,) = opened(rig, PREFIX)
    first.close()
    (second,) = opened(rig, PREFIX)
    assert rig.engine.metrics().counts.prefix_tokens_shared == 24
    second.close()
    rig.engine.run()
    gauges = rig.engine.metrics().gauges
    assert (gauges.cells_held, gauges.prefix_cells, gauges.cells_free) == (0, 24, 64 * 128)
    for session in [rig.engine.open() for _ in range(8)]:
        session.push("x" * 1023)
    rig.engine.run()
    assert rig.engine.metrics().gauges.prefix_cells == 0
    rig.check_blocks()


def test_a_rebuilt_session_begins_with_its_prefix_too() -> None:
    rig = shared_rig(EngineConfig(host_bytes=0))
    session, _ = opened(rig, PREFIX, PREFIX)
    session.push("more")
    rig.engine.run()
    session.suspending()
    rig.engine.run()
    rig.news()
    session.resuming()
    rig.engine.run()
    assert rig.news() == ["extend s1 12"]
    assert rig.cells(session) == list(PREFIX.encode() + b"more\n")


def test_tenants_share_no_prefix_and_public_ones_are_for_all() -> None:
    rig = shared_rig()
    opened(rig, PREFIX, tenant="a")
    opened(rig, PREFIX, tenant="b")
    assert rig.engine.metrics().counts.prefix_tokens_shared == 0
    opened(rig, PREFIX, tenant="a")
    assert rig.engine.metrics().counts.prefix_tokens_shared == 24
    rig.engine.publish_prefix(PREFIX[:17])
    opened(rig, PREFIX, tenant="a")
    opened(rig, PREFIX, tenant="b")
    # Two whole blocks are public; what follows them is a tenant's again.
    assert rig.engine.metrics().counts.prefix_tokens_shared == 24 + 0 + 16
    assert held(rig) > 0
    rig.check_blocks()


def test_a_fork_shares_its_parents_cells_and_copies_what_it_writes() -> None:
    """12 cells are a block and a half; the half one is copied by whoever writes first."""
    rig = shared_rig()
    parent = rig.open("x" * 11)
    child = rig.engine.fork(parent, rig.engine.turn)
    assert held(rig) == 16
    rig.news()
    parent.push("y" * 3)
    rig.engine.run()
    assert rig.news() == ["copy", f"extend {parent.id} 4"] and held(rig) == 24
    child.push("z" * 3)
    rig.engine.run()
    assert rig.news() == [f"extend {child.id} 4"]
    assert rig.cells(parent) == list(b"x" * 11 + b"\nyyy\n")
    assert rig.cells(child) == list(b"x" * 11 + b"\nzzz\n")
    rig.at_rest()


def test_a_fork_of_a_full_pool_is_computed_when_there_is_room() -> None:
    rig = Rig(limits=SHARED_LIMITS, template=PLAIN, cells=1024)
    parent = rig.open("x" * 1019)  # 1020 cells: all 128 blocks, the last half full
    child = rig.engine.fork(parent, rig.engine.turn)
    assert child.version == 1 and child.info().residency == "log"
    future = child.submit("abc", max_tokens=1)
    rig.engine.run()
    assert said(future) == "1 v1"
    assert rig.cells(child) == list(b"x" * 1019 + b"\n")
    assert parent.info().residency != "device"


# --- steps that are shared ----------------------------------------------------------------------


def three(rig: Rig) -> list[Session]:
    sessions = [rig.open("abcd") for _ in range(3)]
    rig.news()
    return sessions


def test_one_question_to_many_sessions_is_one_batch() -> None:
    rig = shared_rig()
    sessions = three(rig)
    futures = rig.engine.submit_many("xyz", sessions)
    rig.engine.run()
    assert [said(one) for one in futures] == ["5:3 v1"] * 3
    assert rig.news() == ["start s1 s2 s3 x3", *["decode s1 s2 s3 x3"] * 3]
    everyone = rig.engine.submit_many("q", max_tokens=1)
    rig.engine.run()
    assert len(everyone) == 3 and rig.news() == ["start s1 s2 s3 x3"]


def test_asking_many_is_all_or_nothing() -> None:
    rig = shared_rig(EngineConfig(waiting_asks=1))
    sessions = three(rig)
    first = sessions[1].submit("xyz")
    with pytest.raises(QueueFull):
        rig.engine.submit_many("xyz", sessions)
    rig.engine.run()
    assert first.done() and rig.engine.metrics().gauges.asks_waiting == 0
    sessions[2].close()
    with pytest.raises(ClosedError):
        rig.engine.submit_many("xyz", sessions)
    assert rig.engine.metrics().gauges.asks_waiting == 0


def test_a_timeout_takes_all_questions_back() -> None:
    rig = shared_rig()
    sessions = three(rig)
    with pytest.raises(TimedOut):
        rig.engine.ask_many("xyz", sessions, timeout=0)
    rig.engine.run()
    assert rig.news() == []
    rig.at_rest()


def test_the_first_error_ends_the_others() -> None:
    """Though the first of them would have been answered in the end."""
    rig = shared_rig()
    sessions = three(rig)
    asked: list[AskFuture] = []
    submit = rig.engine.submit_many

    def submit_then_close(*args: object, **settings: object) -> list[AskFuture]:
        asked.extend(submit("xyz", sessions))
        sessions[2].close()
        rig.engine.turn()
        return asked

    rig.engine.submit_many = submit_then_close  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ClosedError):
        rig.engine.ask_many("xyz", sessions, timeout=10)
    assert [one.cancelled() for one in asked] == [True, True, False]
    rig.engine.run()
    rig.at_rest()


def test_sessions_of_another_engine_are_refused() -> None:
    rig, other = shared_rig(), shared_rig()
    mine, foreign = three(rig), three(other)
    with pytest.raises(InvalidInput, match="'s1' is not of this engine"):
        rig.engine.submit_many("xyz", [mine[0], foreign[0]])
    assert rig.engine.metrics().gauges.asks_waiting == 0


def test_a_session_that_closes_while_all_are_asked_is_left_out() -> None:
    rig = shared_rig()
    sessions = three(rig)
    listed = rig.engine.sessions

    def listed_then_closed() -> list[Session]:
        found = listed()
        sessions[1].close()
        return found

    rig.engine.sessions = listed_then_closed  # pyright: ignore[reportAttributeAccessIssue]
    futures = rig.engine.submit_many("xyz")
    rig.engine.run()
    assert [said(one) for one in futures] == ["5:3 v1"] * 2
    rig.engine.close()
    with pytest.raises(ClosedError):
        rig.engine.submit_many("xyz")


def test_a_question_to_many_is_tokenised_once() -> None:
    rig = shared_rig()
    sessions = three(rig)
    rig.engine.submit_many("xyz")
    asked = [ask.request.asked for one in sessions for ask in one.record.asks.values()]
    assert len(asked) == 3 and all(one is asked[0] for one in asked)


def test_a_session_whose_answer_is_there_needs_no_row() -> None:
    rig = shared_rig()
    sessions = three(rig)
    sessions[1].flash("xyz")
    rig.engine.run()
    rig.news()
    futures = rig.engine.submit_many("xyz", sessions)
    assert futures[1].done() and futures[1].result().source == "flash"
    rig.engine.run()
    assert rig.news()[0] == "start s1 s3 x2"


def test_chunks_of_many_sessions_are_read_together() -> None:
    """Up to eight chunks of 4 tokens, or four of 16, go into a step."""
    rig = shared_rig()
    sessions = three(rig)
    for session in sessions:
        session.push("abc")
    rig.engine.run()
    assert rig.news() == ["extend s1 s2 s3 12"]
    sessions[0].push("ab")
    sessions[1].push("x" * 20)
    rig.engine.run()
    # In the size of the first: 4 tokens of the long one go along, the rest alone.
    assert rig.news() == ["extend s1 s2 7", "extend s2 16", "extend s2 1"]
    rig.at_rest()


def test_registered_questions_of_many_sessions_are_answered_together() -> None:
    rig = shared_rig()
    sessions = three(rig)
    queries = [session.flash("fl") for session in sessions]
    choices = [session.flash("ch", choices=["a", "bb"]) for session in sessions]
    rig.engine.run()
    assert all(query.fresh for query in (*queries, *choices))
    news = rig.news()
    assert news[0] == "start s1 s2 s3 x6"
    assert sorted(news[1:]) == sorted([*["decode s1 s2 s3 x3"] * 3, "score s1 s2 s3 x6"])


def test_chunks_and_idle_questions_ride_along_where_that_costs_nothing() -> None:
    """A step costs as much as 100 tokens beside its rows, which are padded to 16 here."""
    sizes = dataclasses.replace(SHARED_LIMITS.row_sizes, overhead_tokens=100)
    rig = Rig(limits=dataclasses.replace(SHARED_LIMITS, row_sizes=sizes), template=PLAIN)
    one, two, three_ = three(rig)
    two.push("abc")
    three_.flash("fl", max_tokens=1)
    future = one.submit("xyz", max_tokens=1)
    rig.engine.run()
    assert said(future) == "5 v1"
    assert rig.news() == ["start s1 s3 x2 +s2"]
    assert two.version == 2 and rig.cells(two) == list(b"abcd\nabc\n")


def test_a_planned_chunk_is_not_cut_for_a_question_that_rides_along() -> None:
    sizes = dataclasses.replace(SHARED_LIMITS.row_sizes, overhead_tokens=100)
    starts = ((4, 8), *SHARED_LIMITS.start_rows)
    limits = dataclasses.replace(SHARED_LIMITS, row_sizes=sizes, start_rows=starts)
    rig = Rig(limits=limits, template=PLAIN)
    one, two, _ = three(rig)
    one.push("x" * 15)
    two.flash("fl", max_tokens=1)
    rig.engine.run()
    assert rig.news() == ["start s2 x1 +s1"] and one.version == 2


def test_steps_are_not_shared_where_nobody_compiled_them() -> None:
    rig = Rig(template=PLAIN)
    sessions = three(rig)
    for session in sessions:
        session.push("abc")
    futures = rig.engine.submit_many("xyz", sessions)
    rig.engine.run()
    assert all(future.done() for future in futures)
    assert all(line.count(" s") == 1 for line in rig.news())


def test_a_failing_step_of_many_sessions_is_done_again_for_all() -> None:
    rig = shared_rig()
    sessions = three(rig)
    for session in sessions:
        session.push("abc")
    rig.executor.fail_next("extend")
    rig.engine.run()
    assert [session.version for session in sessions] == [2] * 3
    assert [rig.cells(session) for session in sessions] == [list(b"abcd\nabc\n")] * 3


def test_a_session_closed_before_its_step_is_launched_writes_to_nobodys_cells() -> None:
    """The loop has let go of the lock when it launches: a client may close the session then."""
    rig = shared_rig()
    victim, closing = three(rig)[:2]
    executor, launch = rig.executor, rig.executor.run

    blocks: list[int] = []

    def closes_first(kind: StepKind, rows: Sequence[Row]) -> Pending[StepOutput]:
        closing.close()
        blocks.append(int(rows[0].seen.tables[0][0]))
        return launch(kind, rows)

    closing.push("abc")
    victim_cells = rig.cells(victim)
    executor.run = closes_first  # pyright: ignore[reportAttributeAccessIssue]
    rig.engine.run()
    executor.run = launch  # pyright: ignore[reportAttributeAccessIssue]
    assert rig.cells(victim) == victim_cells
    assert len(blocks) == 1 and blocks[0] >= 0, "the step lost sight of its block"
    later = rig.open("wxyz")
    assert rig.cells(later) == list(b"wxyz\n")
    rig.at_rest()
