"""Opens sessions, finds them, and brings saved ones back.

Comes in: a model's text side, a desk. Goes out: sessions. `Engine` is a host whose loop runs on a
thread; `jaxstate.testing.SteppedEngine` one whose loop a test turns by hand. Does not know: which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from jaxstate.engine.asking import Asker
from jaxstate.engine.desk import Desk
from jaxstate.engine.ingest import QueuePolicy, checked_policy
from jaxstate.engine.metrics import EngineMetrics
from jaxstate.engine.session import Session
from jaxstate.errors import SnapshotDamaged, UnknownSession


class SessionHost:
    """What engines have in common.

    Args:
        desk: where sessions leave what they want.
        asker: of the model.
    """

    def __init__(self, desk: Desk, asker: Asker) -> None:
        self._desk = desk
        self._asker = asker

    def open(
        self,
        id: str | None = None,
        *,
        prefix: str = "",
        policy: QueuePolicy | None = None,
        flash: tuple[str, ...] | list[str] = (),
    ) -> Session:
        """A new session; returns at once, its prefix is read like an entry (version 0).

        Args:
            id: its name, 1 to 128 of A-Z a-z 0-9 _ . -; None for one of our own.
            prefix: what it starts with.
            policy: what a full queue does; None for the engine's.
            flash: questions to register.

        Raises:
            InvalidInput: the id is in use or malformed, or a question cannot be asked.
            BudgetExceeded: the engine's cells are spoken for.
            CapacityExceeded: the prefix does not fit into a session.
            ClosedError: the engine is closed.
        """
        chosen = self._desk.config.queue_policy if policy is None else checked_policy(policy)
        book = self._desk.open(id, self._asker.opening(prefix), chosen)
        session = Session(self._desk, self._asker, book)
        try:
            for question in flash:
                session.flash(question)
        except BaseException:
            session.close()
            raise
        return session

    def restore(
        self,
        path: str | os.PathLike[str],
        id: str | None = None,
        *,
        policy: QueuePolicy | None = None,
    ) -> Session:
        """Brings back a session that `Session.save` wrote, at its version; only the caller waits.

        Raises:
            SnapshotError, CapacityExceeded: as `jaxstate.restore_state`.
            BudgetExceeded, InvalidInput: as `open`.
        """
        chosen = self._desk.config.queue_policy if policy is None else checked_policy(policy)
        self._desk.check_may_wait()
        saved = self._desk.load(path)
        book, future = self._desk.restore(id, saved, saved_entries(path, saved.notes), chosen)
        self._desk.outcome(future, None, "the session was not restored")
        return Session(self._desk, self._asker, book)

    def session(self, id: str) -> Session:
        """The open session of that name.

        Raises:
            UnknownSession: there is none.
        """
        with self._desk.lock:
            usable = {book.id: book for book in self._desk.ledger.usable()}
        if (book := usable.get(id)) is None:
            raise UnknownSession(f"no session {id!r} is open; there are {sorted(usable)}")
        return Session(self._desk, self._asker, book)

    def sessions(self) -> list[Session]:
        """All open sessions, in the order of opening."""
        with self._desk.lock:
            books = self._desk.ledger.usable()
        return [Session(self._desk, self._asker, book) for book in books]

    def metrics(self) -> EngineMetrics:
        """What the engine did so far, and how things stand."""
        return self._desk.metrics()


def saved_entries(path: str | os.PathLike[str], notes: Mapping[str, object]) -> int:
    """The version of a saved session, as its notes say.

    Raises:
        SnapshotDamaged: it was not saved by a `Session`.
    """
    entries = notes.get("entries")
    if not isinstance(entries, int):
        raise SnapshotDamaged(f"{path} does not say how many entries it has read")
    return entries
