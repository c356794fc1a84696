"""A session as its users hold it: where it stands, where it is, how it ends.

Comes in: calls from any thread. Goes out: facts, events, files. Does not know: what is pushed and
asked (`Session`), devices, the loop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from jaxstate.engine.asking import Asker
from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.endings import close_session
from jaxstate.engine.going import resume, suspend
from jaxstate.engine.lifecycle import Lifecycle
from jaxstate.engine.subscription import FlashMode, Subscription, checked_timeout
from jaxstate.engine.values import Event, SessionInfo
from jaxstate.errors import ClosedError
from jaxstate.persist.journal import Ticket
from jaxstate.records import checked_int, checked_path, checked_type


class Handle:
    """What a user has of a session; made by its engine.

    Args:
        desk: of its engine.
        lives: of its engine.
        asker: of its model.
        book: its own.
        export: writes a session to a file.
    """

    def __init__(
        self,
        desk: Desk,
        lives: Lifecycle,
        asker: Asker,
        book: Book,
        export: Callable[[Book, str | os.PathLike[str]], None],
    ) -> None:
        self._desk = desk
        self._lives = lives
        self._asker = asker
        self._book = book
        self._export = export

    @property
    def book(self) -> Book:
        """Its bookkeeping, for the engine's own."""
        return self._book

    @property
    def id(self) -> str:
        """Its name."""
        return self._book.id

    @property
    def version(self) -> int:
        """Sequence number of the last entry in the cells; -1 before the prefix is read."""
        return self._book.version

    def wait(self, version: int | None = None, timeout: float | None = None) -> int:
        """Waits until the entries up to `version` are in the cells; returns the version then.

        Args:
            version: a sequence number; None for everything pushed so far.
            timeout: seconds at most; None for ever.

        Raises:
            TimedOut: it took longer.
            ClosedError: the session or the engine was closed.
        """
        self._desk.outcome(self.waiting(version), timeout, "the entries were not read")
        return self._book.version

    def wait_fresh(self, timeout: float | None = None) -> int:
        """Waits until everything pushed is read and every flash query is answered there (or could
        not be: `FlashQuery.error`); returns the version then.

        Args:
            timeout: seconds at most; None for ever.

        Raises:
            TimedOut: it took longer.
            ClosedError: the session or the engine was closed.
        """
        self._desk.outcome(self.waiting_fresh(), timeout, "the flash queries were not answered")
        return self._book.version

    def events(
        self, timeout: float | None = None, *, flash: FlashMode = "changed"
    ) -> Iterator[Event]:
        """What happens from now on: `Connected`, `DataUpdated`, `FlashReady` …, `Closed`.

        A subscriber that does not read in time is dropped: its last event is `Closed`, and says so.

        Args:
            timeout: the iteration ends when nothing happened for so many seconds; None never.
            flash: "changed" for answers that are news, "always" for all of them.
        """
        checked_timeout(timeout)
        return self.subscribe(flash=flash).iterate(timeout)

    def subscribe(self, *, flash: FlashMode = "changed") -> Subscription:
        """The same as an object that can be polled."""
        return self._desk.subscribe(self._book, flash)

    def info(self) -> SessionInfo:
        """Facts about this session at this moment."""
        return self._desk.info(self._book)

    def suspend(self, timeout: float | None = None) -> None:
        """Moves its cells off the device; waits for it. It gives its reserve up.

        What waits in its queue, and whatever is asked of it, brings it back as soon as there is
        room; what is under way is finished first.

        Raises:
            InvalidInput: it is pinned.
            TimedOut: it took longer; it leaves all the same.
            ClosedError: the session or the engine is closed.
        """
        self._desk.outcome(self.suspending(), timeout, "the session did not leave")

    def resume(self, timeout: float | None = None) -> None:
        """Brings its cells to the device ahead of their use; waits for it.

        Raises:
            TimedOut: it took longer; it comes all the same.
            ClosedError: the session or the engine is closed.
        """
        self._desk.outcome(self.resuming(), timeout, "the session did not come back")

    def save(self, path: str | os.PathLike[str], notes: dict[str, str | int] | None = None) -> None:
        """Writes the session, as of its version, to a directory; only the caller waits for it.

        `Engine.restore` brings it back. What waits in the queue, and flash queries, are not in it.

        Args:
            path: as for `jaxstate.save_state`.
            notes: kept with it.

        Raises:
            SnapshotError, InvalidInput: as `jaxstate.save_state`.
        """
        path = checked_path("path", path)
        captured = self.capturing(notes)
        write = self._desk.outcome(captured, None, "the session was not captured")
        write(path)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the session to a single file: its entries, its registered questions, what its
        clients have pushed, and a snapshot of its cells. `Engine.import_session` takes it in.

        Args:
            path: where nothing is yet.

        Raises:
            InvalidInput: the engine has no journal, or something is at `path`.
            JournalError: it could not be written.
            ClosedError: the session or the engine is closed.
        """
        place = checked_path("path", path)
        self._desk.check_may_wait()
        self._export(self._book, place)

    def close(self, *, erase: bool = False) -> None:
        """Ends the session: asks, waits and subscriptions end with `ClosedError` or `Closed`.

        A journal brings it back no more; it keeps its entries, unless they are erased.

        Args:
            erase: remove its text and its cells from the device, the journal and the snapshots.
                What forks have read of it is theirs.

        Raises:
            JournalError: the journal could not be written, and the session is still open; or, with
                `erase`, what was erased could not be removed from the journal's log, since somebody
                reads it.
            ClosedError: the engine is closed, and the session is in its journal, or to be erased.
        """
        if erase:
            self._lives.erase(self._book)
        elif not self._book.has_ended:
            self._desk.check_may_note()
            self._desk.settled(self.noting_close())

    def noting_close(self) -> Ticket | None:
        """What `close` waits for."""
        return close_session(self._desk, self._book, "it was closed by its user")

    def noting_all(self) -> Ticket | None:
        """What to wait for until the journal has all that this session's calls noted so far: it is
        written in order."""
        with self._desk.changing():
            return self._desk.keeper.note(lambda _: None, at_once=False)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ClosedError):  # the engine was closed first
            self.close()

    def __repr__(self) -> str:
        return f"Session({self.id!r}, version={self.version})"

    def capturing(
        self, notes: dict[str, str | int] | None
    ) -> Future[Callable[[str | os.PathLike[str]], None]]:
        """What `save` waits for: it writes the session."""
        kept = checked_type("notes", notes or {}, dict, "a dict of names and values")
        return self._lives.capture(self._book, dict(kept))

    def suspending(self) -> Future[None]:
        """What `suspend` waits for."""
        return suspend(self._desk, self._book)

    def resuming(self) -> Future[None]:
        """What `resume` waits for."""
        return resume(self._desk, self._book)

    def waiting_fresh(self) -> Future[None]:
        """What `wait_fresh` waits for."""
        return self._desk.wait_fresh(self._book)

    def waiting(self, version: int | None) -> Future[None]:
        """What `wait` waits for."""
        wanted = self._book.queue.last if version is None else checked_int("version", version)
        return self._desk.wait(self._book, wanted)
