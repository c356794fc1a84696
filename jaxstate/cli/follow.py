"""Tells what happens in a session while it happens, on a thread of its own.

Comes in: a session's events. Goes out: JSON lines, or a line whenever an answer changes and a
summary now and then. Does not know: where entries come from.

Events that were missed (a reader of our output that stops reading) are made up for: what is told
last is always how things stand at the end.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from jaxstate.cli.show import Show
from jaxstate.cli.view import StreamView, flash_fields, flash_line
from jaxstate.engine.api.session import FlashQuery, Session
from jaxstate.engine.types.events import Subscription
from jaxstate.engine.types.values import (
    Answer,
    Closed,
    DataUpdated,
    Event,
    FlashReady,
    WindowMoved,
)
from jaxstate.errors import ClosedError

_QUIET_S = 5.0
_LOOK_S = 0.25


class Follower:
    """Follows a session for as long as a `with` block runs.

    Args:
        show: where it tells.
        view: of the session; with its flash queries.
        session: whose events.
    """

    def __init__(self, show: Show, view: StreamView, session: Session) -> None:
        self._show = show
        self._view = view
        self._session = session
        self._queries = {query.id: query for query in view.queries}
        self._told_version = max(session.version, 0)
        self._told: dict[str, Answer] = {}
        self._told_errors: dict[str, str | None] = {}
        self._spoke_s, self._spoke_version = time.monotonic(), session.version
        self._told_room = False
        self._ending = False
        self._failure: BaseException | None = None
        self._subscription = self._subscribed()
        self._thread = threading.Thread(target=self._run, name="jaxstate-follow", daemon=True)

    def check(self) -> None:
        """Raises what ended the telling early, such as a closed pipe."""
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tells what is left to tell, and ends."""
        self._ending = True
        self._subscription.close("the end")
        self._thread.join()
        if error is None:
            self.check()

    def _subscribed(self) -> Subscription:
        return self._session.subscribe(flash="always")

    def _run(self) -> None:
        try:
            self._catch_up()  # what was answered before we listened
            while self._follow():
                pass
            self._catch_up()
        except BaseException as error:  # raised again by check(), in the thread that cares
            self._failure = error

    def _follow(self) -> bool:
        """Tells events until there are no more; returns whether to listen anew."""
        while True:
            event = self._subscription.next(_LOOK_S)
            if self._ending and event is None:
                return False
            if isinstance(event, Closed):
                return not self._ending and self._listens_anew(event)
            self._tell(event)

    def _listens_anew(self, closed: Closed) -> bool:
        """After events were lost because our output was not read in time."""
        try:
            self._subscription = self._subscribed()
        except ClosedError:
            return False
        self._show.event("missed", message=closed.reason)
        return True

    def _tell(self, event: Event | None) -> None:
        if isinstance(event, DataUpdated):
            self._tell_read()
        elif isinstance(event, FlashReady):
            told = self._told.get(event.id)
            if told is None or told.version < event.answer.version:
                self._tell_flash(self._queries[event.id], event.answer, fired=event.fired)
        elif isinstance(event, WindowMoved):
            self._tell_moved(event)
        self._tell_errors()
        self._summarize()

    def _tell_moved(self, event: WindowMoved) -> None:
        """What has left the context; people see it in the table, or in a summary."""
        fields = event.as_dict()
        del fields["event"]
        self._show.event("window", **fields)

    def _summarize(self) -> None:
        """A line now and then, for people without a table, while something happens."""
        now_s, version = time.monotonic(), self._session.version
        is_quiet = now_s - self._spoke_s >= _QUIET_S
        if self._show.is_live or version == self._spoke_version or not is_quiet:
            return
        self._spoke_s, self._spoke_version = now_s, version
        self._show.note(self._view.summary())

    def _tell_read(self) -> None:
        """Where the session stands now, which may be further on than the event says."""
        info = self._session.info()
        if info.version <= self._told_version:
            return
        self._told_version = info.version
        lines_left = self._view.lines_left(info)
        if lines_left is not None and not self._told_room:
            self._told_room = True
            each = self._view.cells_per_line(info)
            self._show.note(
                f"{each:.0f} cells a line so far: about {lines_left:,} more of this kind fit "
                f"({info.tokens:,} of {info.cells:,} cells in use)"
            )
        self._show.event(
            "read",
            version=info.version,
            pending=info.pending,
            cells=info.tokens,
            lag_s=info.lag_s,
            behind_bytes=self._view.behind_bytes(),
            lines_left=lines_left,
        )

    def _tell_flash(self, query: FlashQuery, answer: Answer, *, fired: bool) -> None:
        self._told[query.id] = answer
        self._show.event("flash", **flash_fields(query, answer), fired=fired)
        if fired and not self._show.shows_changes:
            self._show.say(flash_line(query.question, answer))

    def _tell_errors(self) -> None:
        for query in self._view.queries:
            error = query.error
            if error == self._told_errors.get(query.id):
                continue
            self._told_errors[query.id] = error
            if error is not None:
                self._show.event("flash_error", id=query.id, question=query.question, message=error)
                self._show.note(f"{query.question} cannot be answered: {error}")

    def _catch_up(self) -> None:
        """What no event told, so that the last thing told is how it ended."""
        self._tell_read()
        for query in self._view.queries:
            answer, told = query.answer, self._told.get(query.id)
            if answer is not None and answer is not told:
                fired = told is None or told.text != answer.text
                self._tell_flash(query, answer, fired=fired)
        self._tell_errors()
