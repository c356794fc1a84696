"""Events on their way to a subscriber: order, the bound, the end, threads and event loops."""

from __future__ import annotations

import asyncio
import gc
import math
import threading

import pytest

from jaxstate.engine.types.events import FlashMode, Subscription
from jaxstate.engine.types.values import Answer, Closed, DataUpdated, Event, FlashReady, Usage
from jaxstate.errors import InvalidInput


def data(version: int) -> DataUpdated:
    return DataUpdated(version=version, pending=0)


def flash(fired: bool) -> FlashReady:
    answer = Answer(
        text="yes",
        token_ids=(),
        version=1,
        source="flash",
        confidence=1.0,
        logprob=0.0,
        finish_reason="stop",
        latency_s=0.0,
        usage=Usage(context_tokens=0, question_tokens=0, answer_tokens=0),
    )
    return FlashReady(id="f", question="?", answer=answer, fired=fired)


def everything(subscription: Subscription) -> list[Event]:
    events = []
    while (event := subscription.poll()) is not None:
        events.append(event)
    return events


def test_events_come_in_order_and_closed_is_last() -> None:
    subscription = Subscription(8, "changed")
    assert all(subscription.offer(data(version)) for version in (1, 2))
    subscription.close("the session was closed")
    subscription.close("twice")
    assert not subscription.offer(data(3))
    assert [subscription.next(0), subscription.next(None)] == [data(1), data(2)]
    assert not subscription.ended
    assert subscription.next(None) == Closed(reason="the session was closed")
    assert subscription.ended
    assert subscription.next(None) is None


def test_an_offered_closed_is_the_end() -> None:
    subscription = Subscription(1, "changed")
    assert not subscription.offer(Closed(reason="over"))
    assert everything(subscription) == [Closed(reason="over")]


@pytest.mark.parametrize(("mode", "passed"), [("changed", [True]), ("always", [True, False])])
def test_flash_answers_that_did_not_fire(mode: FlashMode, passed: list[bool]) -> None:
    subscription = Subscription(8, mode)
    assert subscription.offer(flash(True))
    assert subscription.offer(flash(False))
    assert everything(subscription) == [flash(fired) for fired in passed]


def test_a_subscriber_that_does_not_read_is_dropped() -> None:
    subscription = Subscription(2, "changed")
    assert subscription.offer(data(1))
    assert subscription.offer(data(2))
    assert subscription.offer(flash(False))  # filtered: needs no room
    assert not subscription.offer(data(3))
    assert not subscription.offer(data(4))
    subscription.close("later")
    reason = "dropped: 2 events were not read in time; subscribe again and read faster"
    assert everything(subscription) == [data(1), data(2), Closed(reason=reason)]
    assert subscription.ended


def test_reading_makes_room() -> None:
    subscription = Subscription(1, "changed")
    for version in range(5):
        assert subscription.offer(data(version))
        assert subscription.waiting == 1
        assert subscription.poll() == data(version)


def test_a_timeout_is_no_end() -> None:
    subscription = Subscription(1, "changed")
    assert subscription.next(0) is None
    assert subscription.next(0.001) is None
    assert not subscription.ended
    assert subscription.offer(data(1))


def test_a_waiting_thread_is_woken() -> None:
    subscription = Subscription(4, "changed")
    got: list[Event] = []
    reader = threading.Thread(target=lambda: got.extend(subscription.iterate(10.0)))
    reader.start()
    subscription.offer(data(1))
    subscription.close("done")
    reader.join(10.0)
    assert got == [data(1), Closed(reason="done")]


def test_cancel_wakes_whoever_waits() -> None:
    subscription = Subscription(4, "changed")
    got: list[Event | None] = []
    reader = threading.Thread(target=lambda: got.append(subscription.next(10.0)))
    reader.start()
    subscription.cancel()
    reader.join(10.0)
    assert got == [None]
    assert subscription.ended
    assert not subscription.offer(data(1))


def test_cancel_forgets_what_waits() -> None:
    subscription = Subscription(4, "changed")
    subscription.offer(data(1))
    subscription.cancel()
    subscription.close("late")
    assert everything(subscription) == []


def test_an_iteration_ends_when_nothing_came_in_time() -> None:
    subscription = Subscription(4, "changed")
    subscription.offer(data(1))
    assert list(subscription.iterate(0.001)) == [data(1)]
    assert not subscription.offer(data(2))


def test_leaving_an_iteration_cancels() -> None:
    subscription = Subscription(4, "changed")
    subscription.offer(data(1))
    for _ in subscription.iterate(None):
        break
    gc.collect()
    assert subscription.ended
    assert not subscription.offer(data(2))


def test_an_iterator_may_be_finalised_inside_the_lock() -> None:
    """Garbage collection strikes anywhere, also in the engine's thread inside `offer`."""
    subscription = Subscription(4, "changed")
    subscription.offer(data(1))
    iterator = subscription.iterate(None)
    next(iterator)

    def inside() -> None:
        with subscription._changed:
            iterator.close()  # pyright: ignore[reportAttributeAccessIssue]

    worker = threading.Thread(target=inside, daemon=True)
    worker.start()
    worker.join(10.0)
    assert not worker.is_alive()


def test_many_threads_lose_nothing() -> None:
    subscription = Subscription(10_000, "changed")
    got: list[Event] = []
    reader = threading.Thread(target=lambda: got.extend(subscription.iterate(10.0)))
    writers = [
        threading.Thread(
            target=lambda first=first: [
                subscription.offer(data(version)) for version in range(first, first + 500)
            ]
        )
        for first in (0, 500, 1000)
    ]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    subscription.close("done")
    reader.join(10.0)
    versions = [event.version for event in got if isinstance(event, DataUpdated)]
    assert sorted(versions) == list(range(1500))
    for first in (0, 500, 1000):
        mine = [version for version in versions if first <= version < first + 500]
        assert mine == sorted(mine)


def test_the_wake_up_is_called_outside_the_lock() -> None:
    subscription = Subscription(1, "changed")
    seen: list[Event | None] = []

    def read_elsewhere() -> None:
        reader = threading.Thread(target=lambda: seen.append(subscription.poll()))
        reader.start()
        reader.join(10.0)

    subscription.on_event(read_elsewhere)
    subscription.offer(data(1))
    subscription.offer(flash(False))  # nothing to read, no call
    subscription.close("done")
    assert seen == [data(1), Closed(reason="done")]
    subscription.on_event(None)


def test_a_wake_up_that_raises_means_gone() -> None:
    subscription = Subscription(4, "changed")

    def closed_loop() -> None:
        raise RuntimeError("Event loop is closed")

    subscription.on_event(closed_loop)
    assert not subscription.offer(data(1))
    assert subscription.ended


def test_an_event_loop_reads_without_waiting() -> None:
    subscription = Subscription(100, "changed")

    async def read() -> list[Event]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        subscription.on_event(lambda: loop.call_soon_threadsafe(ready.set))
        got: list[Event] = []
        while not subscription.ended:
            event = subscription.poll()
            if event is not None:
                got.append(event)
            elif not subscription.ended:
                await asyncio.wait_for(ready.wait(), 10.0)
                ready.clear()
        return got

    def write() -> None:
        for version in range(20):
            subscription.offer(data(version))
        subscription.close("done")

    writer = threading.Thread(target=write)
    writer.start()
    got = asyncio.run(read())
    writer.join()
    assert got == [*(data(version) for version in range(20)), Closed(reason="done")]


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, "1", True])
def test_timeouts_are_checked(timeout: object) -> None:
    subscription = Subscription(1, "changed")
    with pytest.raises(InvalidInput, match="timeout="):
        subscription.next(timeout)  # pyright: ignore
    with pytest.raises(InvalidInput, match="timeout="):
        subscription.iterate(timeout)  # pyright: ignore
    assert not subscription.ended


def test_wrong_arguments() -> None:
    for limit in (0, -1, True, 1.5):
        with pytest.raises(InvalidInput, match="limit="):
            Subscription(limit, "changed")  # pyright: ignore
    with pytest.raises(InvalidInput, match="'changed' or 'always'"):
        Subscription(1, "never")  # pyright: ignore
