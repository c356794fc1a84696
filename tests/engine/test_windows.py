"""Streams without end: what stays in a session's context, when it moves, and what hears of it.

Entries here are `n` letters and a line break, so `entry(5)` has 5 tokens; the fake device's cells
hold the tokens that they were made of, so `Rig.cells` says what a context really is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

import jaxstate
from jaxstate import Span, Window, WindowMoved
from jaxstate.engine.api.session import Session
from jaxstate.engine.core.session_manager import erase_session
from jaxstate.engine.executor.protocol import Limits, Lost
from jaxstate.engine.types.options import Coalesce, EngineConfig, Policy, Tenant
from jaxstate.errors import (
    CapacityExceeded,
    InvalidInput,
    QueueFull,
    StepFailed,
    VersionUnavailable,
)
from jaxstate.testing import FAKE_LIMITS, fake_layout
from tests.engine.rig import AHEAD, Rig, read, said


def small(cells: int) -> Limits:
    """Sessions of few cells."""
    return dataclasses.replace(FAKE_LIMITS, layout=fake_layout(cells))


def entry(tokens: int, letter: str = "e") -> str:
    """A text of so many tokens."""
    return letter * (tokens - 1)


def spans(*pairs: tuple[int, int]) -> tuple[Span, ...]:
    return tuple(Span(first=first, last=last) for first, last in pairs)


def numbered(rig: Rig, session: Session, count: int, tokens: int = 5, first: int = 1) -> None:
    """Pushes entries one by one, each read before the next: the nth has letter chr(96 + n % 26)."""
    for number in range(first, first + count):
        session.push(entry(tokens, chr(97 + number % 26)))
        rig.engine.run()


def expected_cells(session: Session, texts: dict[int, str]) -> list[int]:
    """The tokens of what a session says it sees."""
    visible = session.info().visible
    assert visible is not None
    numbers = [n for one in visible for n in range(one.first, one.last + 1)]
    return [byte for n in numbers for byte in (texts[n] + "\n").encode()]


class Stream:
    """A session with a window, and what was pushed to it."""

    def __init__(self, rig: Rig, window: Window, **settings: object) -> None:
        self.rig = rig
        self.session = rig.open(window=window, **settings)  # pyright: ignore
        self.texts: dict[int, str] = {}

    def push(self, *texts: str, run: bool = True) -> None:
        receipt = self.session.push(list(texts))
        self.texts.update(zip(range(receipt.first, receipt.last + 1), texts, strict=True))
        if run:
            self.rig.engine.run()

    def check(self) -> None:
        """Its cells are those of the entries that it says it sees, and no others."""
        info = self.session.info()
        assert self.rig.cells(self.session)[: info.tokens] == expected_cells(
            self.session, self.texts
        )
        self.rig.check_blocks()


# --- what stays ---------------------------------------------------------------------------------


def test_the_newest_tokens_stay() -> None:
    """20 stay, 30 at most: once 25 are there, 20 of them are read anew, and the next entry follows
    those."""
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(1, 6):
        stream.push(entry(5, chr(96 + number)))
    assert stream.session.info().visible == spans((1, 5))
    stream.push(entry(5, "f"))
    assert stream.session.info().visible == spans((2, 6))
    stream.check()
    counts = rig.engine.metrics().counts
    assert (counts.windows_moved, counts.windows_moved_in_place) == (1, 0)


@pytest.mark.parametrize("hop", [0.1, 0.25, 0.5, 1.0, None])
@pytest.mark.parametrize("tokens", [1, 3, 5, 7])
def test_a_context_stays_between_the_window_and_its_hop(tokens: int, hop: float | None) -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=40, hop=hop))
    most = 40 + max(1, int(40 * (1.0 if hop is None else hop)))
    for number in range(200):
        stream.push(entry(tokens, chr(97 + number % 26)))
        info = stream.session.info()
        assert info.version == number + 1
        if number * tokens > 40:
            assert 40 - tokens < info.tokens <= most
        blocks = rig.core.state.tables.primary.held  # never more than that and one rebuild
        assert blocks <= 2 * -(-most // rig.executor.limits.layout.block_cells)
        stream.check()
    assert rig.engine.metrics().counts.windows_moved > 3


def test_the_newest_entries_stay() -> None:
    rig = Rig()
    stream = Stream(rig, Window(entries=4, hop=0.5))
    for number in range(60):
        stream.push(entry(1 + number % 7, chr(97 + number % 26)))
        visible = stream.session.info().visible
        assert visible is not None and visible == spans((visible[0].first, number + 1))
        if number >= 6:
            assert 4 <= number + 2 - visible[0].first <= 6
        stream.check()


def test_the_newest_of_each_key_stay() -> None:
    """A state of three rooms: however often they are told, the newest of each stays."""
    rig = Rig()
    stream = Stream(rig, Window(key="^[a-z]", hop=0.5))
    for number in range(80):
        stream.push(f"{'kbh'[number % 3]}{number:02d}")
    visible = stream.session.info().visible
    assert visible is not None and visible[-1].last == 80
    seen = {stream.texts[n][0] for one in visible for n in range(one.first, one.last + 1)}
    assert seen == set("kbh")
    assert stream.session.info().tokens <= 3 * 4 * 1.5 + 4
    stream.check()


def test_what_has_no_key_stays_and_what_is_before_it_is_not_read_again() -> None:
    """By key: a context is read anew from the first entry that went."""
    rig = Rig()
    stream = Stream(rig, Window(key="^k", hop=0.5))
    stream.push(entry(32, "a"))
    for number in range(8):
        stream.push(f"k{number}")
    counts = rig.engine.metrics().counts
    assert counts.windows_moved >= 1
    # 32 tokens are shared: each time no more than the keyed ones behind them are read.
    assert counts.window_tokens_read <= 6 * counts.windows_moved
    visible = stream.session.info().visible
    assert visible is not None and visible[0] == Span(first=1, last=1)
    stream.check()


def test_what_is_too_old_leaves() -> None:
    """The clock of the fake device passes a second for each extend; 50 s are the window, 75 the
    most. In silence the next context is read already, and comes with the next entry."""
    rig = Rig()
    stream = Stream(rig, Window(age_s=50.0, hop=0.5))
    stream.push("aaaa")
    stream.push("bbbb")
    rig.clock.pass_s(40.0)
    stream.push("cccc")
    rig.engine.run()
    assert stream.session.info().visible == spans((1, 3))
    until_s = rig.engine.until_s
    assert until_s is not None and until_s <= rig.clock.now_s + 25.0
    rig.clock.pass_s(25.0)
    rig.news()
    rig.engine.run()
    assert any("extend" in one for one in rig.news()), "it is read while nothing comes"
    assert stream.session.info().visible == spans((1, 3)), "every version has one context"
    stream.push("dddd")
    assert stream.session.info().visible == spans((3, 4))
    stream.check()


def test_several_budgets_all_hold() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=40, entries=6, key="^[a-c]", hop=0.25))
    for number in range(120):
        stream.push(f"{'abcxyz'[number * 7 % 6]}{'.' * (number % 5)}")
        info = stream.session.info()
        assert info.visible is not None
        entries = sum(one.last - one.first + 1 for one in info.visible)
        assert entries <= 7 and info.tokens <= 50
        stream.check()


def test_the_prefix_always_stays() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5), prefix="prefix text")
    for number in range(40):
        stream.push(entry(4, chr(97 + number % 26)))
    cells = bytes(rig.cells(stream.session))
    assert cells.startswith(b"prefix text")
    assert cells.removeprefix(b"prefix text") == bytes(expected_cells(stream.session, stream.texts))


# --- how it moves -------------------------------------------------------------------------------


def test_a_rebuild_waits_for_asks_and_flash_queries() -> None:
    """40 tokens are to be read anew, 16 in a step: what is asked meanwhile comes first."""
    rig = Rig(config=EngineConfig(scheduling=Policy(rebuild_patience=1000)))
    stream = Stream(rig, Window(tokens=40, hop=1.0))
    session = stream.session
    query = session.flash("fl")
    for number in range(11):
        stream.push(entry(5, chr(97 + number)))
    stream.push(entry(5, "z"), run=False)
    while session.version < 12:
        rig.turns(1)
    rig.news()
    future = session.submit("xyz")
    rig.engine.run()
    calls = [one.split()[0] for one in rig.news()]
    assert query.fresh and said(future).startswith("60:3")
    last_answer = max(i for i, call in enumerate(calls) if call in ("start", "decode"))
    assert "extend" in calls[last_answer:], "what is read anew comes last"
    assert "extend" not in calls[: last_answer - 2]


def test_a_question_keeps_the_context_that_it_began_with() -> None:
    """It looks at 60 cells from its first token to its last, though the window moves meanwhile."""
    rig = Rig()
    stream = Stream(rig, Window(tokens=40, hop=1.0))
    for number in range(12):
        stream.push(entry(5, chr(97 + number)))
    future = stream.session.submit("xyz", max_tokens=6)
    rig.turns(1)
    before = stream.session.info().visible
    while not future.done():
        stream.push("late", run=False)
        rig.turns(2)
    answer = future.result(0)
    assert answer.text == "60:3" and answer.version == 12 and answer.visible == before
    rig.engine.run()
    stream.check()
    rig.at_rest()


def test_new_entries_wait_for_one_step_alone() -> None:
    """In a stream that leaves the device time, the next context is there before it is needed: no
    push is followed by more than its own step before it is committed."""
    rig = Rig()
    stream = Stream(rig, Window(tokens=60, hop=0.5))
    for number in range(100):
        stream.push(entry(5, chr(97 + number % 26)), run=False)
        rig.turns(1)
        assert stream.session.version == number + 1, rig.news()
        rig.engine.run()
    assert rig.engine.metrics().counts.windows_moved > 10


def test_a_stream_without_a_pause_still_moves_its_window() -> None:
    """All at once: whoever pushes faster than is read waits for the queue, and nothing is lost."""
    rig = Rig(limits=AHEAD)
    stream = Stream(rig, Window(tokens=40, hop=0.5))
    for first in range(0, 400, 40):
        stream.push(*(entry(5, chr(97 + n % 26)) for n in range(first, first + 40)))
    assert stream.session.version == 400
    assert rig.engine.metrics().counts.windows_moved_in_place == 0
    stream.check()


def test_ten_thousand_moves_do_not_drift() -> None:
    """Nothing is shifted: each context is read anew, whatever went before."""
    rig = Rig()
    stream = Stream(rig, Window(tokens=8, hop=0.25))
    for first in range(0, 20_000, 400):
        stream.push(*(f"{n % 997:03d}" for n in range(first, first + 400)))
        stream.texts = {n: t for n, t in stream.texts.items() if n > first - 10}
        rig.executor.steps.clear()
        rig.news()
        stream.check()
    assert rig.engine.metrics().counts.windows_moved >= 10_000


def test_without_room_for_both_a_context_is_read_in_place() -> None:
    """A pool of one session: it pauses, and its questions wait, but nothing is lost."""
    rig = Rig(limits=small(96), cells=96)
    stream = Stream(rig, Window(tokens=40, hop=0.25))
    for number in range(60):
        stream.push(entry(5, chr(97 + number % 26)), run=False)
        future = stream.session.submit("xyz", min_version=number + 1)
        rig.engine.run()
        answer = future.result(0)
        assert answer.version == number + 1
        assert answer.visible == stream.session.info().visible
        stream.check()
    counts = rig.engine.metrics().counts
    assert counts.windows_moved == 0 and counts.windows_moved_in_place > 5
    rig.at_rest()


def test_others_get_the_room_of_a_rebuild_that_waits() -> None:
    """It is read, and waits for the next entry; a session that needs its room gets it."""
    rig = Rig(limits=small(96), cells=192)
    stream = Stream(rig, Window(tokens=40, hop=0.5))
    for number in range(10):
        stream.push(entry(5, chr(97 + number)))
    other = rig.open()
    other.push([entry(15, "o")] * 4)
    rig.engine.run()
    assert other.version == 4
    stream.push("more")
    stream.check()


def test_hops_are_chosen_by_how_busy_the_device_is() -> None:
    hops = []
    for pause_s in (1000.0, 20.0, 0.0):
        rig = Rig()
        stream = Stream(rig, Window(tokens=900))
        for number in range(400):
            rig.clock.pass_s(pause_s)
            stream.push(entry(5, chr(97 + number % 26)))
        window = stream.session.record.window
        assert window is not None and rig.engine.metrics().counts.windows_moved
        hops.append(window.hop)
    assert hops[0] == pytest.approx(1 / 8)
    assert hops[0] < hops[1] < hops[2] == 1.0


# --- what hears of it ---------------------------------------------------------------------------


def test_answers_events_and_info_say_what_is_visible() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, key="^k", hop=0.5))
    events = stream.session.subscribe()
    for text in ("kaaa", "kbbb", "cccc", "dddd", "eeee", "ffff", "gggg"):
        stream.push(text)
    info = stream.session.info()
    moved = [one for one in read(events) if isinstance(one, WindowMoved)]
    assert moved and moved[0].replaced == spans((1, 1))
    left = [one for event in moved for one in (*event.left, *event.replaced)]
    gone = {n for one in left for n in range(one.first, one.last + 1)}
    assert info.visible is not None
    there = {n for one in info.visible for n in range(one.first, one.last + 1)}
    assert gone | there == set(range(1, 8)) and not gone & there
    future = stream.session.submit("xyz")
    rig.engine.run()
    assert future.result(0).visible == info.visible
    assert info.window == Window(tokens=20, key="^k", hop=0.5)
    assert info.as_dict()["window"] == {
        "tokens": 20,
        "entries": None,
        "age_s": None,
        "key": "^k",
        "hop": 0.5,
        "mode": "exact",
    }
    assert moved[0].as_dict()["event"] == "window_moved"
    assert rig.open("x").info().visible is None


def test_a_flash_answer_that_saw_what_has_left_is_out_of_date() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    query = stream.session.flash("fl")
    for number in range(30):
        stream.push(entry(5, chr(97 + number % 26)), run=False)
        while stream.session.version <= number:
            assert not (query.fresh and query.answer and query.answer.version > number)
            rig.turns(1)
        rig.engine.run()
        assert query.fresh and query.answer is not None
        assert query.answer.visible == stream.session.info().visible


def test_versions_before_a_move_are_gone() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(8):
        stream.push(entry(5, chr(97 + number)))
    base = stream.session.record.residence.log.base_version
    assert base >= 5
    with pytest.raises(VersionUnavailable, match=f"its window moved behind version {base}"):
        stream.session.submit("xyz", as_of=base)
    with pytest.raises(VersionUnavailable, match="its window moved"):
        rig.engine.fork(stream.session, rig.engine.turn, version=base)
    stream.push("iiii")
    base = stream.session.record.residence.log.base_version
    future = stream.session.submit("xyz", as_of=base + 1)
    rig.engine.run()
    assert future.result(0).visible is not None
    assert future.result(0).version == base + 1


def test_an_ask_about_a_version_fails_when_the_window_moves_first() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(5):
        stream.push(entry(5, chr(97 + number)))
    stream.session.suspending()
    rig.engine.run()
    future = stream.session.submit("xyz", as_of=5)
    waiting = stream.session.submit("xyz", min_version=9)
    stream.push("ffff", "gggg", "hhhh", "iiii")
    assert waiting.result(0).version == 9
    if (error := future.exception(0)) is None:  # it came first
        assert future.result(0).version == 5 and future.result(0).visible == spans((1, 5))
    else:
        assert isinstance(error, VersionUnavailable)


# --- what else a session does -------------------------------------------------------------------


def test_a_fork_has_the_window_and_goes_its_own_way() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(9):
        stream.push(entry(5, chr(97 + number)))
    twin = rig.engine.fork(stream.session, rig.engine.turn)
    assert twin.info().visible == stream.session.info().visible
    texts = dict(stream.texts)
    for number in range(10, 30):
        twin.push(entry(4, "f"))
        texts[number] = entry(4, "f")
        rig.engine.run()
        assert rig.cells(twin) == expected_cells(twin, texts)
    stream.check()
    rig.at_rest()


def test_a_session_that_was_away_moves_its_window_when_it_is_back() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(40):
        stream.push(entry(5, chr(97 + number % 26)))
        if number % 5 == 2:
            stream.session.suspending()
            rig.engine.run()
            assert stream.session.info().residency != "device"
            rig.check_blocks()
    stream.check()


@pytest.mark.parametrize("turns", range(8))
def test_closing_at_any_moment_frees_everything(turns: int) -> None:
    rig = Rig(limits=AHEAD)
    stream = Stream(rig, Window(tokens=40, hop=0.5))
    stream.session.flash("fl")
    stream.push(*(entry(5, chr(97 + n % 26)) for n in range(12)), run=False)
    while not stream.session.record.rebuild:
        rig.turns(1)
    rig.turns(turns)
    stream.session.close()
    rig.engine.run()
    rig.at_rest()
    assert not rig.core.state.records and rig.core.state.tables.primary.held == 0


def test_a_window_can_be_changed() -> None:
    rig = Rig()
    session = rig.open()
    texts = {}
    for number in range(1, 13):
        texts[number] = f"{'ab'[number % 2]}{number:03d}"
        session.push(texts[number])
        rig.engine.run()
    assert session.info().visible is None
    session.set_window(Window(tokens=20, hop=0.5))
    rig.engine.run()
    for number in range(13, 20):
        texts[number] = f"{'ab'[number % 2]}{number:03d}"
        session.push(texts[number])
        rig.engine.run()
    assert session.info().tokens <= 30
    assert rig.cells(session) == expected_cells(session, texts)
    session.set_window(Window(key="^(.)", hop=0.5))
    rig.engine.run()
    for number in range(20, 24):
        texts[number] = f"{'ab'[number % 2]}{number:03d}"
        session.push(texts[number])
        rig.engine.run()
    assert session.info().tokens <= 20, "entries from before have keys as well"
    assert rig.cells(session) == expected_cells(session, texts)
    session.set_window(None)
    for number in range(24, 60):
        session.push(f"{number:04d}")
    rig.engine.run()
    visible = session.info().visible
    assert visible is not None and visible[-1] == Span(first=visible[-1].first, last=59)
    assert session.info().window is None


def test_a_window_is_not_taken_from_a_session_that_could_not_read_on() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    stream.push(*(entry(10, "x") for _ in range(300)), run=False)
    with pytest.raises(CapacityExceeded, match="3000 tokens wait"):
        stream.session.set_window(None)
    with pytest.raises(InvalidInput, match="an entry of 10 tokens waits"):
        stream.session.set_window(Window(tokens=8))
    rig.engine.run()
    assert stream.session.version == 300


def test_queues_and_their_policies_are_as_without_a_window() -> None:
    config = EngineConfig(queue_entries=3)
    rig = Rig(config=config)
    rejects = rig.open(window=Window(tokens=20), policy="reject")
    rejects.push(["a", "b", "c"])
    with pytest.raises(QueueFull):
        rejects.push("d")
    drops = rig.open(window=Window(tokens=20), policy="drop_oldest")
    drops.push(["a", "b", "c"])
    assert drops.push("d").dropped == spans((1, 1))
    merges = rig.open(window=Window(tokens=20), policy=Coalesce(lambda text: text[0]))
    merges.push(["a1", "b1"])
    assert merges.push("a2").dropped == spans((1, 1))
    rig.engine.run()
    assert drops.info().visible == spans((2, 4)) and merges.info().visible == spans((2, 3))


# --- refusals -----------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20))
    with pytest.raises(CapacityExceeded, match="an entry has 21 tokens, and the session's window"):
        stream.session.push([entry(3), entry(21)])
    assert stream.session.info().pending == 0
    cells = rig.executor.limits.session_cells
    with pytest.raises(InvalidInput, match=f"a window of {cells} tokens"):
        rig.open(window=Window(tokens=cells))
    with pytest.raises(InvalidInput, match=r"must be a jaxstate\.Window"):
        rig.open(window="20t")
    with pytest.raises(InvalidInput, match="a window of 5000 tokens"):
        stream.session.set_window(Window(tokens=5000))
    assert stream.session.info().window == Window(tokens=20)


def test_without_a_window_a_full_session_says_how_to_go_on() -> None:
    rig = Rig()
    session = rig.open()
    with pytest.raises(CapacityExceeded, match=r"set_window\(jaxstate\.Window"):
        session.push([entry(32)] * 200)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"tokens": 0},
        {"entries": -1},
        {"tokens": 1.5},
        {"age_s": 0},
        {"age_s": float("inf")},
        {"age_s": "10m"},
        {"key": ""},
        {"key": "("},
        {"key": 3},
        {"tokens": 5, "hop": 0},
        {"tokens": 5, "hop": 1.5},
        {"tokens": 5, "hop": True},
    ],
)
def test_windows_that_mean_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Window(**wrong)  # pyright: ignore


def test_windows_as_they_are_written() -> None:
    assert Window.parse(["4096t"]) == Window(tokens=4096)
    assert Window.parse(["500e", "10m"]) == Window(entries=500, age_s=600.0)
    assert Window.parse(["key=^(\\w+)=", "1.5h"], hop=0.5) == Window(
        key="^(\\w+)=", age_s=5400.0, hop=0.5
    )
    for wrong in ("", "4096", "t", "10y", "-3t", "key="):
        with pytest.raises(InvalidInput):
            Window.parse([wrong])
    with pytest.raises(InvalidInput, match="given twice"):
        Window.parse(["3t", "4t"])


# --- devices that fail --------------------------------------------------------------------------


@pytest.mark.parametrize("skip", range(6))
@pytest.mark.parametrize("times", [1, 2])
def test_a_device_that_fails_while_a_context_is_read_anew(skip: int, times: int) -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=40, hop=0.5))
    for number in range(9):
        stream.push(entry(5, chr(97 + number)))
    for number in range(9, 9 + skip):
        stream.push(entry(5, chr(97 + number)))
    rig.executor._fail.extend(["extend"] * times)  # pyright: ignore
    for number in range(20, 36):
        if stream.session.record.closed:
            return  # two failures in a row of its own reading, as ever
        stream.push(entry(5, chr(97 + number % 26)))
    stream.check()
    rig.at_rest()


def test_a_device_that_loses_its_cells_in_the_middle() -> None:
    for turns in range(12):
        rig = Rig()
        stream = Stream(rig, Window(tokens=40, hop=0.5))
        stream.push(*(entry(5, chr(97 + n % 26)) for n in range(16)), run=False)
        rig.turns(turns)
        rig.executor.loses = Lost(rows=True, cells=True)
        rig.executor._fail.append("extend")
        rig.engine.run()
        rig.executor.loses = Lost(rows=False, cells=False)
        for number in range(20, 40):
            stream.push(entry(5, chr(97 + number % 26)))
        assert stream.session.version == 36
        stream.check()
        rig.at_rest()


def test_an_entry_that_cannot_be_read_stops_the_session_where_it_is() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(6):
        stream.push(entry(5, chr(97 + number)))
    rig.executor.spoils.add(ord("~"))
    stream.push(entry(5, "~"))
    info = stream.session.info()
    assert info.version == 6 and info.stopped is not None and "entry 7" in info.stopped
    future = stream.session.submit("xyz")
    rig.engine.run()
    assert future.result(0).version == 6
    stream.texts.pop(7)
    stream.check()
    with pytest.raises((jaxstate.NotFinite, StepFailed)):
        stream.session.push("more")


# --- what fresh eyes found ----------------------------------------------------------------------


def test_entries_that_come_with_the_opening_wait_for_it() -> None:
    """A step ahead: the opening is not there yet when the window is full."""
    rig = Rig(limits=AHEAD)
    session = rig.engine.open(window=Window(tokens=6, hop=0.5))
    texts = [entry(4, chr(97 + n)) for n in range(8)]
    session.push(texts)
    rig.engine.run()
    assert session.version == 8
    assert rig.cells(session) == expected_cells(session, dict(enumerate(texts, 1)))


@pytest.mark.parametrize("turns", range(6))
def test_leaving_while_the_next_context_takes_an_entry(turns: int) -> None:
    """Half of it is read behind the next context, and that is what leaves."""
    rig = Rig(limits=AHEAD)
    stream = Stream(rig, Window(tokens=60, hop=0.5))
    for number in range(40):
        stream.push(entry(5, chr(97 + number % 26)))
        rebuild = stream.session.record.rebuild
        if rebuild is not None and rebuild.takes:
            break
    stream.push(entry(40, "z"), run=False)
    future = stream.session.submit("xyz", min_version=stream.session.version + 1)
    rig.turns(turns)
    leaving = stream.session.suspending()
    rig.engine.run()
    assert leaving.done() and future.result(0).version == stream.session.version
    stream.check()
    rig.at_rest()


def test_a_fork_of_a_version_is_of_that_version_or_of_none() -> None:
    for turns in range(8):
        rig = Rig(limits=AHEAD)
        stream = Stream(rig, Window(tokens=20, hop=0.5))
        for number in range(5):
            stream.push(entry(5, chr(97 + number)))
        before = stream.session.info().visible
        stream.push("zzzz", run=False)
        rig.turns(turns)
        try:
            twin = rig.engine.fork(stream.session, rig.engine.turn, version=5)
        except VersionUnavailable:
            continue
        assert twin.version == 5 and twin.info().visible == before
        assert rig.cells(twin) == expected_cells(twin, stream.texts)


def test_what_cannot_be_read_anew_stops_its_session() -> None:
    """An entry that stays spoils every context that has it."""
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(4):
        stream.push(entry(5, chr(97 + number)))
    rig.executor.spoils.add(ord("d"))
    for number in range(5, 12):
        if stream.session.record.closed or stream.session.record.stopped:
            break
        stream.push(entry(5, chr(97 + number)))
    info = None if stream.session.record.closed else stream.session.info()
    assert info is None or info.stopped or info.pending == 0


def test_captures_in_line_do_not_keep_a_context_from_being_read_in_place(tmp_path: Path) -> None:
    rig = Rig(limits=small(96), cells=96)
    stream = Stream(rig, Window(tokens=40, hop=0.25))
    while stream.session.info().tokens <= 45:
        stream.push(entry(5, "e"))
    stream.push(entry(10, "f"), run=False)
    version = stream.session.version
    captured = [rig.manager.capture(stream.session.record, {}) for _ in range(3)]
    future = stream.session.submit("xyz", min_version=version + 1)
    rig.engine.run()
    assert all(one.done() for one in captured)
    assert future.result(0).version == version + 1
    assert rig.engine.metrics().counts.windows_moved_in_place
    stream.check()


def test_a_late_window_comes_back_with_all_that_there_is(tmp_path: Path) -> None:
    rig = Rig(limits=small(96), cells=96, journal=tmp_path / "j")
    session = rig.open(id="feed")
    session.push([entry(8, "e")] * 10)
    rig.engine.run()
    session.set_window(Window(tokens=20))
    assert rig.engine._durable.snapshots is not None
    written = rig.engine._core.journal_writer.last_in_line()
    assert written is not None
    written.settled.result(10)
    rig.engine._durable.close()
    rig = Rig(limits=small(96), cells=96, journal=tmp_path / "j")
    session = rig.engine.session("feed")
    rig.engine.run()
    assert session.version == 10
    session.push("more")
    rig.engine.run()
    assert session.version == 11 and session.info().tokens <= 40
    rig.check_blocks()


def test_an_erased_session_leaves_no_window(tmp_path: Path) -> None:
    rig = Rig(journal=tmp_path / "j")
    stream = Stream(rig, Window(tokens=20, hop=0.5), id="feed")
    for number in range(12):
        stream.push(entry(5, chr(97 + number)))
    record, journal_writer = stream.session.record, rig.engine._core.journal_writer
    wiped = erase_session(rig.core, record)[1]
    rig.core.note_window(record)  # of a move that was under way
    written = journal_writer.last_in_line()
    assert written is not None
    written.settled.result(10)
    rig.engine.run()
    assert wiped.done()
    assert journal_writer.journal is not None
    with contextlib.closing(journal_writer.journal.read()) as source:
        assert source.execute("SELECT count(*) FROM windows").fetchone()[0] == 0


def test_a_quota_counts_no_rebuilds() -> None:
    config = EngineConfig(tenants={"default": Tenant(quota_cells=72)})
    rig = Rig(config=config)
    stream = Stream(rig, Window(tokens=20, hop=1.0))
    for number in range(60):
        stream.push(entry(5, chr(97 + number % 26)), run=False)
        rig.turns(2)
    rig.open(window=Window(tokens=10))
    rig.engine.run()
    stream.check()
    assert rig.engine.metrics().counts.windows_moved > 3


def test_suspending_while_a_window_moves() -> None:
    for turns in range(1, 6):
        rig = Rig(limits=AHEAD)
        stream = Stream(rig, Window(tokens=20, hop=0.5), reserve=16)
        for number in range(5):
            stream.push(entry(5, chr(97 + number)))
        stream.push("zzzz", run=False)
        rig.turns(turns)
        leaving = stream.session.suspending()
        rig.engine.run()
        assert leaving.done() and stream.session.info().reserve == 0
        stream.push("yyyy")
        stream.check()
        rig.check_blocks()


def test_what_is_known_of_entries_is_known_of_those_in_the_context_alone() -> None:
    rig = Rig()
    stream = Stream(rig, Window(key="^[a-z]", hop=0.5))
    stream.push("a once and for all")
    for number in range(300):
        stream.push(f"b{number:04d}")
    window = stream.session.record.window
    assert window is not None and len(window.noted) < 20


def test_in_silence_what_is_too_old_leaves_with_the_next_entry() -> None:
    rig = Rig()
    stream = Stream(rig, Window(age_s=10.0, hop=0.5))
    stream.push("aaaa")
    rig.clock.pass_s(8.0)
    stream.push("bbbb")
    for _ in range(40):  # as the loop would wake up
        until_s = rig.engine.until_s
        rig.clock.pass_s(1.0 if until_s is None else max(0.0, until_s - rig.clock.now_s))
        rig.engine.run()
    rig.clock.pass_s(86_400.0)
    rig.engine.run()
    stream.push("cccc")
    assert stream.session.info().visible == spans((3, 3))
    stream.check()


def test_windows_in_a_journal_are_the_last_that_were_set(tmp_path: Path) -> None:
    """A fork's as well, whose base is its parent's."""
    rig = Rig(journal=tmp_path / "j")
    stream = Stream(rig, Window(tokens=20, hop=0.5), id="feed")
    for number in range(8):
        stream.push(entry(5, chr(97 + number)))
    twin = rig.engine.fork(stream.session, rig.engine.turn)
    before = twin.info().visible
    stream.session.set_window(Window(tokens=500))
    written = rig.engine._core.journal_writer.last_in_line()
    assert written is not None
    written.settled.result(10)
    name = twin.id
    rig.engine._durable.close()
    rig = Rig(journal=tmp_path / "j")
    assert rig.engine.session("feed").info().window == Window(tokens=500)
    rig.engine.run()
    twin = rig.engine.session(name)
    assert twin.info().visible == before and twin.version == 8
    assert rig.cells(twin) == expected_cells(twin, stream.texts)


def test_a_larger_window_gets_its_cells() -> None:
    """What waited under the smaller one is read under the larger."""
    rig = Rig()
    stream = Stream(rig, Window(tokens=20, hop=0.5))
    for number in range(8):
        stream.push(entry(5, chr(97 + number)))
    stream.push(*(entry(9, "w") for _ in range(6)), run=False)
    stream.session.set_window(Window(tokens=100, hop=0.5))
    rig.engine.run()
    assert stream.session.version == 14 and stream.session.info().tokens > 60
    stream.check()


def test_a_window_that_is_taken_while_it_moves() -> None:
    for turns in range(6):
        rig = Rig(limits=AHEAD)
        stream = Stream(rig, Window(tokens=20, hop=0.5))
        query = stream.session.flash("fl")
        for number in range(5):
            stream.push(entry(5, chr(97 + number)))
        stream.push("zzzz", run=False)
        rig.turns(turns)
        stream.session.set_window(None)
        rig.engine.run()
        assert stream.session.version == 6 and query.fresh
        if stream.session.info().visible is not None:  # it had moved
            stream.check()


# --- windows that slide -------------------------------------------------------------------------


def seen_tokens(stream: Stream) -> list[int]:
    """The tokens in its cells."""
    return stream.rig.cells(stream.session)[: stream.session.info().tokens]


@pytest.mark.parametrize("prefix", ["", "prefix", "a longer prefix", "p" * 16])
@pytest.mark.parametrize("tokens", [3, 5, 8])
def test_a_window_that_slides_drops_the_oldest_blocks(prefix: str, tokens: int) -> None:
    """Blocks of 8 cells: what is named is there, whole, behind the prefix; beside it at most a
    block of what is cut."""
    rig = Rig()
    stream = Stream(rig, Window(tokens=40, hop=0.5, mode="slide"), prefix=prefix)
    for number in range(150):
        stream.push(entry(tokens, chr(97 + number % 26)))
        info = stream.session.info()
        cells = seen_tokens(stream)
        named = expected_cells(stream.session, stream.texts)
        assert bytes(cells).startswith(prefix.encode())
        assert bytes(cells[len(prefix) :]).endswith(bytes(named[-32:]))
        assert 0 <= len(cells) - len(prefix) - len(named) < 16
        assert info.tokens <= len(prefix) + 60 + 8
        assert info.visible is not None and info.visible[-1].last == number + 1
        rig.check_blocks()
    counts = rig.engine.metrics().counts
    assert counts.windows_moved > 10
    assert counts.window_tokens_read == 0, "nothing is read again"


def test_questions_keep_their_context_while_a_window_slides() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=40, hop=0.5, mode="slide"))
    for number in range(11):
        stream.push(entry(5, chr(97 + number)))
    future = stream.session.submit("xyz", max_tokens=6)
    rig.turns(1)
    cells = stream.session.info().tokens
    while not future.done():
        stream.push("late", run=False)
        rig.turns(2)
    answer = future.result(0)
    assert answer.text == f"{cells}:3" and answer.window == "slide"
    rig.engine.run()
    rig.at_rest()


def test_at_the_last_position_a_window_is_read_anew() -> None:
    """Positions are kept, so they come to their end; then the context begins at the first again."""
    limits = dataclasses.replace(small(96), max_context=256, tail_cells=64)
    rig = Rig(limits=limits, cells=288)
    stream = Stream(rig, Window(tokens=40, hop=0.5, mode="slide"))
    slid = []
    for number in range(200):
        stream.push(entry(5, chr(97 + number % 26)))
        slid.append(stream.session.record.residence.slid_cells)
        future = stream.session.submit("xyz", max_tokens=6)
        rig.engine.run()
        assert future.result(0).version == number + 1, "any question can be asked"
    assert max(slid) < 256 and slid.count(0) > 10
    assert rig.engine.metrics().counts.window_tokens_read > 0


def test_ten_thousand_slides() -> None:
    rig = Rig()
    stream = Stream(rig, Window(tokens=16, hop=0.5, mode="slide"))
    for first in range(0, 24_000, 400):
        stream.push(*(f"{n % 9_999_999:07d}" for n in range(first, first + 400)))
        stream.texts = {n: t for n, t in stream.texts.items() if n > first - 10}
        rig.executor.steps.clear()
        rig.news()
        named = expected_cells(stream.session, stream.texts)
        assert bytes(seen_tokens(stream)).endswith(bytes(named[-8:]))
        rig.check_blocks()
    assert rig.engine.metrics().counts.windows_moved >= 10_000


def test_what_a_session_that_slid_can_do_else(tmp_path: Path) -> None:
    rig = Rig(journal=tmp_path / "j")
    stream = Stream(rig, Window(tokens=40, hop=0.5, mode="slide"), id="feed")
    for number in range(30):
        stream.push(entry(5, chr(97 + number)))
    assert stream.session.record.residence.slid_cells
    with pytest.raises(InvalidInput, match="has slid: its cells cannot be saved"):
        stream.session.save(tmp_path / "saved")
    twin = rig.engine.fork(stream.session, rig.engine.turn)
    for session in (stream.session, twin):
        session.suspending()
        rig.engine.run()
        assert session.info().residency == "host"
        session.push("more")
        rig.engine.run()
        future = session.submit("xyz")
        rig.engine.run()
        assert future.result(0).version == 31
    stream.texts[31] = "more"
    before = stream.session.info().visible
    rig.check_blocks()
    journal_writer = rig.engine._core.journal_writer
    written = journal_writer.last_in_line()
    assert written is not None
    written.settled.result(10)
    rig.engine._durable.close()
    rig = Rig(journal=tmp_path / "j")
    session = rig.engine.session("feed")
    rig.engine.run()
    assert session.info().visible == before
    assert rig.cells(session) == expected_cells(session, stream.texts), "and nothing beside it"


def test_what_cannot_slide() -> None:
    with pytest.raises(InvalidInput, match="give one of them up"):
        Window(key="x", mode="slide")
    with pytest.raises(InvalidInput, match='must be "exact" or "slide"'):
        Window(tokens=5, mode="fast")  # pyright: ignore
    ring = dataclasses.replace(FAKE_LIMITS.layout.groups[0], window=16)
    layout = dataclasses.replace(FAKE_LIMITS.layout, groups=(ring,))
    rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, layout=layout))
    with pytest.raises(InvalidInput, match="whose layers all see everything"):
        rig.open(window=Window(tokens=40, mode="slide"))
    rig.open(window=Window(tokens=40))


# --- across engines -----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [Window(tokens=20, hop=0.5), Window(key="^(.)", hop=0.5)])
def test_a_journal_brings_back_what_was_visible(tmp_path: Path, window: Window) -> None:
    path = tmp_path / "j"
    texts: dict[int, str] = {}
    visible = None
    for life in range(4):
        rig = Rig(journal=path)
        if life == 0:
            session = rig.open(id="feed", window=window)
        else:
            session = rig.engine.session("feed")
            rig.engine.run()
            assert session.info().visible == visible and session.info().window == window
            assert rig.cells(session) == expected_cells(session, texts)
        for number in range(life * 12 + 1, life * 12 + 13):
            texts[number] = f"{'abc'[number % 3]}{number:03d}"
            session.push(texts[number])
            rig.engine.run()
        visible = session.info().visible
        rig.engine._core.journal_writer.last_in_line().settled.result(10)  # pyright: ignore
        rig.engine._durable.close()  # as if it were killed: no snapshot, nobody is told
