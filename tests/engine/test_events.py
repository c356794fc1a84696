"""What subscribers hear, and in which order.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

from jaxstate.engine.types.events import Subscription
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import Closed, Connected, DataUpdated, Event
from tests.engine.rig import Rig, read, short


def test_the_order_of_events() -> None:
    rig = Rig()
    session = rig.engine.open()
    early = session.subscribe()
    session.flash("fl")
    rig.engine.run()
    session.push("abcd")
    rig.engine.run()
    late = session.subscribe()
    session.push("e")
    rig.engine.run()
    session.close()
    rig.engine.run()
    assert short(read(early)) == ["C-1", "D0", "F0=0:2", "D1", "F1=5:2", "D2", "F2=7:2", "X"]
    assert short(read(late)) == ["C1", "D2", "F2=7:2", "X"]


def test_events_tell_how_much_waits() -> None:
    rig = Rig()
    session = rig.open()
    session.push(["a" * 9] * 4)  # 10 tokens each: 1, 3 and 4 after each chunk of 16
    events = session.subscribe()
    rig.engine.run()
    assert read(events) == [
        Connected(session="s1", version=0, pending=4),
        DataUpdated(version=1, pending=3),
        DataUpdated(version=3, pending=1),
        DataUpdated(version=4, pending=0),
    ]


def test_a_slow_subscriber_is_dropped_and_nobody_else() -> None:
    rig = Rig(config=EngineConfig(events_limit=3))
    session = rig.open()
    slow, quick = session.subscribe(), session.subscribe()
    heard: list[Event] = []
    for _ in range(6):
        session.push("a")
        rig.engine.run()
        heard += read(quick)
    assert short(heard) == ["C0", "D1", "D2", "D3", "D4", "D5", "D6"]
    events = read(slow)
    assert short(events) == ["C0", "D1", "D2", "X"]
    assert isinstance(events[-1], Closed) and "3 events were not read" in events[-1].reason
    assert rig.engine.metrics().counts.subscribers_dropped == 1


def test_no_event_is_lost_when_a_callback_closes_the_session() -> None:
    """Two answers of one batch: the first one's callback closes the session; both are told."""
    rig = Rig()
    session = rig.open("abcd")
    session.flash("f1", on_fire=lambda _: session.close())
    session.flash("f2")
    events = session.subscribe()
    rig.engine.run()
    assert short(read(events)) == ["C1", "F1=5:2", "F1=5:2", "X"]


def test_a_new_subscriber_does_not_hear_what_it_knows_already() -> None:
    """It subscribes between a commit and its delivery: its `Connected` has that version."""
    rig = Rig()
    session = rig.open("abcd")
    early = session.subscribe()
    late: list[Subscription] = []
    rig.core.wait(session._record, 2).add_done_callback(lambda _: late.append(session.subscribe()))
    session.push("e")
    rig.engine.run()
    session.push("f")
    rig.engine.run()
    assert short(read(early)) == ["C1", "D2", "D3"]
    assert short(read(late[0])) == ["C2", "D3"]


def test_the_answers_of_one_batch_are_told_in_the_order_of_registration() -> None:
    """And before them, the commit that they belong to."""
    rig = Rig()
    session = rig.open("abcd")
    for n in range(3):
        session.flash("q" * (n + 1), max_tokens=4)
    fired: list[str] = []
    session.flash("last", max_tokens=4, on_fire=lambda answer: fired.append(answer.text))
    rig.engine.run()
    events = session.subscribe(flash="always")
    session.push("e")
    rig.engine.run()
    told = ["C1", "D2", "F2=7:1", "F2=7:2", "F2=7:3", "F2=7:4"]
    assert short(read(events)) == told
    assert fired == ["5:4", "7:4"]
