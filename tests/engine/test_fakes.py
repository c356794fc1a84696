"""The fake device's arithmetic, as its documentation says it, worked out by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jaxstate.cells.tables import CellTable, Seen, TableBook
from jaxstate.engine.executor.protocol import (
    HostCells,
    Limits,
    Lost,
    StepOutput,
    Tokens,
)
from jaxstate.records import Sampling
from jaxstate.steps.packing import Row
from jaxstate.testing import (
    FAKE_LIMITS,
    SHARED_LIMITS,
    FakeClock,
    FakeExecutor,
    FakeStep,
    SteppedEngine,
    fake_layout,
)

EOS = 257


def tokens(count: int, value: int = 7) -> Tokens:
    return np.full(count, value, np.int32)


class Device(FakeExecutor):
    """The fake, and the tables of sessions by hand.

    Args:
        cells: of each session that there is, named 1, 2, …, read 16 at a time.
        settings: of the fake.
    """

    def __init__(self, *cells: int, **settings: object) -> None:
        super().__init__(FakeClock(), **settings)  # pyright: ignore
        self.tables = TableBook(self.limits.layout)
        self.of: dict[int, CellTable] = {}
        for session, count in enumerate(cells or (0,), 1):
            self.of[session] = self.tables.new()
            while left := count - self.of[session].cells:
                self.run("extend", [self.chunk(min(16, left), session)])

    def seen(self, cells: int | None = None, session: int = 1) -> Seen:
        """What a row sees that looks at so many cells, or all."""
        table = self.of[session]
        count = table.cells if cells is None else cells
        return Seen(session=session, tables=table.blocks, cells=count)

    def chunk(self, read: int | Tokens, session: int = 1) -> Row:
        """Grows the table; the chunk must be launched next."""
        new, start = tokens(read) if isinstance(read, int) else read, self.of[session].cells
        if copies := self.tables.grow(self.of[session], start + len(new)):
            self.copy(copies)
        return Row(seen=self.seen(start, session), tokens=new, commits=True)

    def fork(self, session: int, into: int) -> None:
        """As the engine does it: the device has nothing to do."""
        self.of[into] = self.tables.fork(self.of[session])

    def drop(self, session: int) -> None:
        """As well, but for what it is told of the blocks."""
        self.tables.drop(self.of[session])
        self.freed([one for one in self.tables.take_freed() if self.tables.is_free(one)])

    def row(
        self,
        blocks: Sequence[int],
        count: int,
        used: int = 0,
        seen: int | None = None,
        session: int = 1,
    ) -> Row:
        return Row(
            seen=self.seen(seen, session),
            blocks=tuple(blocks),
            used_cells=used,
            tokens=tokens(count),
            sampling=Sampling(),
        )

    def step(
        self, blocks: Sequence[int], used: int, seen: int | None = None, session: int = 1
    ) -> Row:
        return Row(
            seen=self.seen(seen, session),
            tokens=tokens(0),
            blocks=tuple(blocks),
            used_cells=used,
            sampling=Sampling(),
        )

    def candidate(self, blocks: Sequence[int], used: int, count: int) -> Row:
        return Row(
            seen=self.seen(),
            blocks=tuple(blocks),
            used_cells=used,
            tokens=np.array([1, *tokens(count)], np.int32),
        )


def chosen(choices: StepOutput) -> list[int]:
    return choices.tokens.tolist()


def test_a_clock_that_is_told() -> None:
    clock = FakeClock()
    assert clock() == clock.now_s == 0.0
    clock.pass_s(1.5)
    clock.pass_s(0.0)
    assert clock() == 1.5
    with pytest.raises(AssertionError, match="backwards"):
        clock.pass_s(-0.1)


def test_an_answer_says_what_was_seen_and_asked() -> None:
    """A question of 5 tokens at 120 cells: "120:5", then <eos> for ever."""
    fake = Device(120)
    first = fake.run("start", [fake.row([0, 1], 5)]).get()
    said = chosen(first)
    assert first.gaps.tolist() == [pytest.approx(1.2)]  # 120 / 100
    assert first.logprobs.tolist() == [-1.0] and first.done.tolist() == [False]
    for used in range(5, 9):
        choices = fake.run("decode", [fake.step([0, 1], used)]).get()
        assert choices.done.tolist() == [False]
        said += chosen(choices)
    assert bytes(said) == b"120:5"
    for _ in range(2):
        end = fake.run("decode", [fake.step([0, 1], 9)]).get()
        assert chosen(end) == [EOS] and end.done.tolist() == [True]
    assert first.tokens.dtype == np.int32 and first.logprobs.dtype == np.float32


def test_a_question_in_two_parts() -> None:
    """What is chosen before its end does not count: 32 + 6 tokens at 3 cells say "3:38"."""
    fake = Device(3)
    blocks = [5, 2, 9, 0, 1]
    fake.run("start", [fake.row(blocks, 32)])
    said = chosen(fake.run("more", [fake.row(blocks, 6, used=32)]).get())
    for used in range(38, 41):
        said += chosen(fake.run("decode", [fake.step(blocks, used)]).get())
    assert bytes(said) == b"3:38"


def test_rows_are_their_own() -> None:
    """Two rows that began at 4 and 9 cells: "4:1" and "9:2"."""
    fake = Device(9)
    one = chosen(fake.run("start", [fake.row([0], 1, seen=4)]).get())
    two = chosen(fake.run("start", [fake.row([1], 2, seen=9)]).get())
    for n in range(2):
        one += chosen(fake.run("decode", [fake.step([0], 1 + n, seen=4)]).get())
        two += chosen(fake.run("decode", [fake.step([1], 2 + n, seen=9)]).get())
    assert (bytes(one), bytes(two)) == (b"4:1", b"9:2")


def test_rows_of_several_sessions_share_a_step() -> None:
    """Two of a session with 4 cells and one of a session with 9: "4:1", "4:3" and "9:2"; and while
    they begin, a third session and the first of them read."""
    fake = Device(4, 9, 0, limits=SHARED_LIMITS)
    rows = [fake.row([0], 1), fake.row([1], 3), fake.row([2], 2, session=2)]
    done = len(fake.steps)
    said = [chosen(fake.run("start", [*rows, fake.chunk(6, 3), fake.chunk(2, 1)]).get())[:3]]
    assert [fake.of[session].cells for session in (1, 2, 3)] == [6, 9, 6]
    for n in range(2):
        steps = [
            fake.step([0], 1 + n, seen=4),
            fake.step([2], 2 + n, session=2),
            fake.step([1], 3 + n, seen=4),
        ]
        said.append([*np.array(chosen(fake.run("decode", steps).get()))[[0, 2, 1]].tolist()])
    assert [bytes(column) for column in zip(*said, strict=True)] == [b"4:1", b"4:3", b"9:2"]
    assert [(one.call, one.sessions, one.rows, one.tokens, one.chunks) for one in fake.steps][
        done:
    ] == [
        ("start", (1, 2), 3, 6 + 8, (3, 1)),
        *[("decode", (1, 2), 3, 3, ())] * 2,
    ]


def test_choices_are_scored_by_their_length() -> None:
    """-|n - seen % 10|: at 123 cells a choice of 3 tokens wins."""
    fake = Device(123)
    fake.run("start", [fake.row([0], 4)])
    totals = fake.run("score", [fake.candidate([0], 4, n) for n in range(1, 6)]).get().logprobs
    assert totals.tolist() == [-2.0, -1.0, 0.0, -1.0, -2.0]
    shorter = dataclasses.replace(fake.candidate([], 0, 2), seen=fake.seen(120))
    assert fake.run("score", [shorter]).get().logprobs.tolist() == [-2.0]


def test_what_each_call_costs() -> None:
    """1 s an extend; 0.5 s a start, more; 0.1 s a decode; 0.3 s a score; 2 s a fetch, 1.5 s
    a place; else nothing."""
    fake = Device()
    clock = fake._clock
    fake.run("extend", [fake.chunk(4)])
    fake.fork(1, into=2)
    cells = fake.fetch(fake.seen(), fake.of[1].cells)
    fake.run("extend", [fake.chunk(1, session=2)])  # a copy of the block first
    fake.run("start", [fake.row([0, 1, 2, 3, 4], 32)])
    fake.run("more", [fake.row([0, 1, 2, 3, 4], 2, used=32)])
    fake.run("decode", [fake.step([0, 1, 2, 3, 4], 34)])
    fake.run("score", [fake.candidate([], 0, 2), fake.candidate([], 0, 3)])
    fake.drop(2)
    fake.place(fake.seen(), cells)
    assert fake.steps == [
        FakeStep("extend", (1,), 0, 4, 0.0),
        FakeStep("fetch", (1,), 0, 0, 1.0),
        FakeStep("copy", (), 0, 0, 3.0),
        FakeStep("extend", (2,), 0, 1, 3.0),
        FakeStep("start", (1,), 1, 32, 4.0),
        FakeStep("more", (1,), 1, 2, 4.5),
        FakeStep("decode", (1,), 1, 1, 5.0),
        FakeStep("score", (1,), 2, 5, pytest.approx(5.1)),  # pyright: ignore
        FakeStep("place", (1,), 0, 0, pytest.approx(5.4)),  # pyright: ignore
    ]
    assert clock.now_s == pytest.approx(6.9)


def test_sessions_are_copies_of_what_they_read(tmp_path: object) -> None:
    fake = Device()
    fake.run("extend", [fake.chunk(np.array([4, 5], np.int32))])
    fake.fork(1, into=2)
    fake.run("extend", [fake.chunk(np.array([6], np.int32))])
    assert (fake.cells(fake.seen()), fake.cells(fake.seen(session=2))) == ([4, 5, 6], [4, 5])
    fetched = fake.fetch(fake.seen(), fake.of[1].cells)
    fake.run("extend", [fake.chunk(np.array([7], np.int32))])
    fake.save(f"{tmp_path}/one", fetched, {"entries": 7})
    saved = fake.load(f"{tmp_path}/one")
    assert saved.notes == {"entries": 7} and saved.cells.cells == 3
    fake.of[3] = fake.tables.new()
    fake.tables.grow(fake.of[3], 3)
    fake.place(fake.seen(session=3), saved.cells)
    assert fake.cells(fake.seen(session=3)) == [4, 5, 6]
    old = fake.seen(session=3)
    blocks = [table.copy() for table in old.tables]
    fake.drop(3)
    for tables in (old.tables, tuple(blocks)):  # as they are now, and as they were
        with pytest.raises(AssertionError):
            fake.cells(dataclasses.replace(old, tables=tables))
    assert fake.cells(fake.seen()) == [4, 5, 6, 7]
    assert (fetched.bytes, fake.compilations()) == (3 * 4, 0)
    assert fake.limits is FAKE_LIMITS


def test_a_session_of_nothing_comes_and_goes() -> None:
    fake = Device()
    cells = fake.fetch(fake.seen(), fake.of[1].cells)
    assert (cells.cells, cells.bytes) == (0, 0)
    fake.place(fake.seen(), cells)
    fake.run("extend", [fake.chunk(1)])


@pytest.mark.parametrize(
    "call", ["copy", "fetch", "place", "extend", "start", "more", "decode", "score"]
)
def test_a_call_that_fails_fails_once(call: str) -> None:
    """Nothing is noted of it, no time passes, and the next one of its kind goes well."""
    fake = Device(4)
    fake.fork(1, into=2)
    fake.run("start", [fake.row([0, 1], 3)])
    copies, chunk = (
        fake.tables.grow(fake.of[2], 5),
        Row(seen=fake.seen(), tokens=tokens(1), commits=True),
    )
    home = HostCells(cells=4, arrays={"cells": tokens(4)})
    acts: dict[str, Callable[[], object]] = {
        "copy": lambda: fake.copy(copies),
        "fetch": lambda: fake.fetch(fake.seen(), fake.of[1].cells),
        "place": lambda: fake.place(fake.seen(), home),
        "extend": lambda: fake.run("extend", [chunk]),
        "start": lambda: fake.run("start", [fake.row([3], 3)]),
        "more": lambda: fake.run("more", [fake.row([0, 1], 3, used=3)]),
        "decode": lambda: fake.run("decode", [fake.step([0, 1], 3)]),
        "score": lambda: fake.run("score", [fake.candidate([0, 1], 3, 2)]),
    }
    steps, now_s, cells = list(fake.steps), fake._clock.now_s, fake.cells(fake.seen())
    fake.fail_next(call)  # pyright: ignore
    with pytest.raises(RuntimeError, match=f"fails in {call}"):
        acts[call]()
    assert (fake.steps, fake._clock.now_s, fake.cells(fake.seen())) == (steps, now_s, cells)
    assert fake.recover() == Lost(rows=False, cells=False)
    acts[call]()
    assert fake.steps[-1].call == call


def test_calls_that_fail_from_the_start() -> None:
    fake = Device(fail=["extend"])
    chunk = fake.chunk(1)
    with pytest.raises(RuntimeError, match="fails in extend"):
        fake.run("extend", [chunk])
    fake.run("extend", [chunk])


@pytest.mark.parametrize("cells", [False, True], ids=["rows", "cells"])
def test_what_a_failure_takes_with_it(cells: bool) -> None:
    fake = Device(4)
    fake.run("start", [fake.row([0, 1], 3)])
    fake.loses = Lost(rows=not cells, cells=cells)
    assert fake.recover() == fake.loses
    with pytest.raises(AssertionError, match="not its session's" if cells else "not there any"):
        fake.run("decode", [fake.step([0, 1], 3)])
    if not cells:
        assert len(fake.cells(fake.seen())) == 4


def test_a_ring() -> None:
    """With 3 cells to spare, a row that began at 4 is readable up to 7 cells."""
    assert Device().readable_until(4) > 10**6
    fake = Device(4, ring_cells=3)
    assert fake.readable_until(4) == 7
    fake.run("start", [fake.row([0], 3)])
    fake.run("extend", [fake.chunk(3)])
    fake.run("decode", [fake.step([0], 3, seen=4)])
    assert fake.fetch(fake.seen(), readable_cells=4).cells == 7
    fake.run("extend", [fake.chunk(1)])
    with pytest.raises(AssertionError, match="overwritten"):
        fake.run("decode", [fake.step([0], 4, seen=4)])
    with pytest.raises(AssertionError):
        fake.fetch(fake.seen(), readable_cells=4)


BESIDE = dataclasses.replace(SHARED_LIMITS, session_rows=2)


def broken_rules() -> dict[str, Callable[[Device], object]]:
    """Two sessions of 20 cells, a row of the first in block 60 that has read 3 tokens."""
    return {
        "committed": lambda fake: fake.run("start", [fake.row([0], 3, seen=21)]),
        "no cells": lambda fake: fake.run("start", [fake.row([0], 3, seen=25)]),
        "too many rows": lambda fake: fake.run("start", [fake.row([n], 3) for n in range(9)]),
        "too many": lambda fake: fake.run(
            "start", [fake.row([n, 9, 10, 11], 17) for n in range(5)]
        ),
        "does not fit": lambda fake: fake.run("start", [fake.row([0], 9)]),
        "lost count": lambda fake: fake.run("decode", [fake.step([60], 4)]),
        "row twice": lambda fake: fake.run("decode", [fake.step([60], 3), fake.step([60], 3)]),
        "not there": lambda fake: fake.run("decode", [fake.step([50], 3)]),
        "other cells": lambda fake: fake.run("decode", [fake.step([60], 3, seen=19)]),
        "another's cells": lambda fake: fake.run("decode", [fake.step([60], 3, session=2)]),
        "was not read": lambda fake: fake.run("score", [fake.candidate([60], 2, 1)]),
        "tokens": lambda fake: fake.run("extend", [fake.chunk(17)]),
        "no tokens": lambda fake: fake.run("extend", [fake.chunk(0)]),
        "no rows": lambda fake: fake.run("decode", []),
        "long choice": lambda fake: fake.run("score", [fake.candidate([], 0, 9)]),
        "no block": lambda fake: fake.run("start", [fake.row([64], 3)]),
        "a chunk without blocks": lambda fake: fake.run(
            "extend", [Row(seen=fake.seen(), tokens=tokens(9), commits=True)]
        ),
        "a chunk past what is there": lambda fake: fake.run(
            "extend", [Row(seen=fake.seen(21), tokens=tokens(1), commits=True)]
        ),
        "two chunks of one session": lambda fake: fake.run(
            "extend", [fake.chunk(1), fake.chunk(1)]
        ),
        "too many chunks": lambda fake: fake.run(
            "extend", [fake.chunk(5, 1 + n % 2) for n in range(5)]
        ),
        "too many of one session": lambda fake: fake.run(
            "start", [fake.row([0], 3, session=2), *[fake.row([n], 3) for n in (1, 2, 3)]]
        ),
        "other cells than its own": lambda fake: fake.place(
            fake.seen(), HostCells(cells=3, arrays={"cells": tokens(3)})
        ),
    }


@pytest.mark.parametrize("rule", broken_rules())
def test_every_rule_is_asserted(rule: str) -> None:
    fake = Device(20, 20, limits=BESIDE)
    fake.run("start", [fake.row([60], 3)])
    act = broken_rules()[rule]
    with pytest.raises(AssertionError):
        act(fake)


def test_sessions_that_may_not_share_a_step() -> None:
    fake = Device(4, 4)
    with pytest.raises(AssertionError):
        fake.run("start", [fake.row([0], 3), fake.row([1], 3, session=2)])
    with pytest.raises(AssertionError):
        fake.run("start", [fake.row([0], 3), fake.chunk(1, session=2)])
    with pytest.raises(AssertionError, match="too many chunks"):
        fake.run("extend", [fake.chunk(1), fake.chunk(1, session=2)])


def test_whoever_had_a_block_is_gone() -> None:
    fake = Device(4)
    fake.run("start", [fake.row([0, 1], 9)])
    fake.run("start", [fake.row([1], 3)])
    with pytest.raises(AssertionError, match="blocks went to another"):
        fake.run("decode", [fake.step([0, 1], 9)])


def test_whoever_has_the_blocks_of_another_session_is_found_out() -> None:
    """Two sessions of one block that is written over at its second cell."""
    fake = Device(4)
    fake.of[2] = CellTable(fake.of[1].blocks, cells=1)
    fake.run("extend", [Row(seen=fake.seen(session=2), tokens=tokens(1, value=9), commits=True)])
    assert fake.cells(fake.seen()) == [7, 9, 7, 7]
    fake.drop(1)
    with pytest.raises(AssertionError):
        fake.run("extend", [Row(seen=fake.seen(2, session=2), tokens=tokens(1), commits=True)])


def test_a_full_session() -> None:
    fake = Device(20, limits=dataclasses.replace(FAKE_LIMITS, layout=fake_layout(20)))
    with pytest.raises(AssertionError):
        fake.run("extend", [fake.chunk(1)])  # its last block has room for 4 more


def test_a_stepped_engine_ends() -> None:
    """`run` counts the turns that did something, and gives up on what never ends."""
    clock = FakeClock()
    engine = SteppedEngine(FakeExecutor(clock), clock)
    session = engine.open()
    assert engine.run() == 1  # the opening: <bos>
    assert (session.version, session.info().tokens) == (0, 1)
    assert (engine.turn(), engine.run(), engine.until_s) == (False, 0, None)
    future = session.submit("Why?")
    assert engine.run() == 5  # "1:23" and <eos>: a start and four decodes
    assert future.result(timeout=0).text == "1:23"  # 4 bytes in a template of 19
    session.submit("Why?")
    with pytest.raises(AssertionError, match="still busy after 2 turns"):
        engine.run(turns=2)


@pytest.mark.parametrize("limits", [FAKE_LIMITS, SHARED_LIMITS], ids=["alone", "shared"])
def test_limits_hang_together(limits: Limits) -> None:
    """What the rows of a step need is there."""
    assert limits.tail_blocks * limits.tail_block_cells >= limits.tail_cells
    assert limits.start_rows[-1][0] == limits.question_tokens
    assert limits.chunk_rows[-1][0] == limits.extend_tokens
    assert limits.layout.group_blocks[0] * limits.layout.block_cells >= limits.session_cells
