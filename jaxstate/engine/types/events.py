"""The events of one session on their way to one subscriber.

Comes in: events, from the engine's loop, which never waits here. Goes out: the same events in
order, to a thread that waits or to an event loop that polls, and last of all a `Closed` that says
why. Does not know: sessions, the engine's lock, asyncio.

Thread-safe by itself. A subscriber that does not read is dropped, so that it costs bounded memory
and nobody else's time; what it has not read yet stays readable.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np

from jaxstate.engine.types.owner import Owner
from jaxstate.engine.types.values import Closed, Event, FlashReady
from jaxstate.errors import InvalidInput
from jaxstate.records import checked_int

FlashMode = Literal["changed", "always"]


def checked_timeout(value: object) -> float | None:
    """Seconds to wait, or None for ever.

    Raises:
        InvalidInput: negative, not a number, or more than a thread can wait.
    """
    if value is None:
        return None
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not 0 <= value <= threading.TIMEOUT_MAX:
        raise InvalidInput(f"timeout={value!r} must be seconds, 0 or more; None waits for ever")
    return float(value)


class Subscription:
    """A bounded queue between the engine's loop and one subscriber.

    Args:
        limit: events that may wait to be read, >= 1; the last `Closed` is not counted.
        flash: "changed" passes only flash answers whose condition fired, "always" all of them.

    Raises:
        InvalidInput: one of them is something else.
    """

    def __init__(self, limit: int, flash: FlashMode) -> None:
        self._limit = checked_int("limit", limit)
        if self._limit < 1:
            raise InvalidInput(f"limit={limit}: at least one event must be able to wait")
        if flash not in get_args(FlashMode):
            allowed = " or ".join(repr(name) for name in get_args(FlashMode))
            raise InvalidInput(f"flash={flash!r} must be {allowed}")
        self._all_flash = flash == "always"
        # Re-entrant (the default): an abandoned iterator may be finalised, and so cancel, in a
        # thread that is inside one of these methods.
        self._changed = threading.Condition()
        self._owner = Owner()
        self._events: deque[Event] = deque()
        self._accepts = True
        self._ended = False
        self._wake: Callable[[], object] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: `Closed` was read, or the subscriber cancelled."""
        return self._ended

    @property
    def waiting(self) -> int:
        """Events that are not read yet."""
        return len(self._events)

    def offer(self, event: Event) -> bool:
        """Passes an event on, without waiting; False once there is no use in offering more.

        If `limit` events wait already, this one is lost and the subscription is closed.
        """
        if isinstance(event, Closed):
            self.close(event.reason)
            return False
        with self._changed:
            if not self._accepts:
                return False
            if isinstance(event, FlashReady) and not (event.fired or self._all_flash):
                return True
            if len(self._events) < self._limit:
                self._events.append(event)
                self._changed.notify_all()
            else:
                self._finish(self._dropped_reason())
        self._call_wake()
        return self._accepts

    def close(self, reason: str) -> None:
        """Lets `Closed(reason)` be the last event; does nothing if there is a last one already."""
        with self._changed:
            if not self._accepts:
                return
            self._finish(reason)
        self._call_wake()

    def cancel(self) -> None:
        """The subscriber goes away: what waits is forgotten, and nothing more is taken."""
        with self._changed:
            self._accepts = False
            self._ended = True
            self._events.clear()
            self._changed.notify_all()

    def next(self, timeout: float | None) -> Event | None:
        """The next event; waits for it, at most `timeout` seconds (None: for ever).

        Returns:
            None if the time passed, or if the subscription has ended (see `ended`).

        Raises:
            InvalidInput: `timeout` is negative or not a number.
            ClosedError: this is a fork of the process that it belongs to.
        """
        seconds = checked_timeout(timeout)
        self._owner.check()
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._ended, seconds)
            return self.poll()

    def poll(self) -> Event | None:
        """The next event, or None if there is none now."""
        with self._changed:
            if not self._events:
                return None
            event = self._events.popleft()
            self._ended = self._ended or isinstance(event, Closed)
            if self._ended:
                self._changed.notify_all()
            return event

    def iterate(self, timeout: float | None) -> Iterator[Event]:
        """Events up to and including `Closed`, or until none came within `timeout` seconds.

        The subscription is over with the iteration, however that ends.

        Raises:
            InvalidInput: `timeout` is negative or not a number.
        """
        return self._iterate(checked_timeout(timeout))

    def on_event(self, callback: Callable[[], object] | None) -> None:
        """Sets what is called whenever there is something to `poll`, in the engine's thread.

        It must not wait. It is not called for what waits already: poll once after setting it. If
        it raises, the subscriber is taken to be gone.
        """
        self._wake = callback

    def _iterate(self, timeout: float | None) -> Iterator[Event]:
        try:
            while (event := self.next(timeout)) is not None:
                yield event
        finally:
            self.cancel()

    def _finish(self, reason: str) -> None:
        self._accepts = False
        self._events.append(Closed(reason=reason))
        self._changed.notify_all()

    def _dropped_reason(self) -> str:
        return (
            f"dropped: {self._limit} events were not read in time; subscribe again and read faster"
        )

    def _call_wake(self) -> None:
        """Wakes an event loop; one that is closed says so by raising, and is gone."""
        wake = self._wake
        if wake is None:
            return
        try:
            wake()
        except Exception:
            self.cancel()
