"""Opens sessions, finds them, and brings saved ones back.

Comes in: a model's text side, a desk. Goes out: sessions. `Engine` is a host whose loop runs on a
thread; `jaxstate.testing.SteppedEngine` one whose loop a test turns by hand. Does not know: which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from jaxstate.engine.asking import Asker, Settings, settings_of
from jaxstate.engine.books import Book
from jaxstate.engine.desk import Desk
from jaxstate.engine.durable import Durable
from jaxstate.engine.hits import submit
from jaxstate.engine.lifecycle import Lifecycle
from jaxstate.engine.metrics import EngineMetrics
from jaxstate.engine.policies import QueuePolicy, checked_policy
from jaxstate.engine.recovery import Recovery
from jaxstate.engine.residence import Residency, checked_residency
from jaxstate.engine.session import Session
from jaxstate.engine.subscription import checked_timeout
from jaxstate.engine.values import Answer
from jaxstate.engine.waiting import AskFuture
from jaxstate.errors import ClosedError, InvalidInput, SnapshotDamaged, UnknownSession
from jaxstate.persist.journal import Ticket
from jaxstate.records import checked_path, checked_type, shown


class SessionHost:
    """What engines have in common.

    Args:
        desk: where sessions leave what they want.
        lives: brings them into its books.
        asker: of the model.
        durable: the journal, if there is one.
    """

    def __init__(self, desk: Desk, lives: Lifecycle, asker: Asker, durable: Durable) -> None:
        self._desk = desk
        self._lives = lives
        self._asker = asker
        self._durable = durable

    def open(
        self,
        id: str | None = None,
        *,
        prefix: str = "",
        tenant: str = "default",
        reserve: int | None = None,
        residency: Residency = "evictable",
        policy: QueuePolicy | None = None,
        flash: Sequence[str] = (),
    ) -> Session:
        """A new session; returns at once, its prefix is read like an entry (version 0).

        Sessions of one tenant that open with the same prefix share its cells, and read it once.

        Args:
            id: its name, 1 to 128 of A-Z a-z 0-9 _ . - and not dots alone; None for one of our own.
            prefix: what it starts with.
            tenant: whose it is, as the caller knows it: never take it from a stream's text. Tenants
                share nothing, but for prefixes declared public, and work is shared out among them.
            reserve: cells that are always there for it; what it needs beyond comes from what is
                left over, for which idle sessions leave the device. None for none.
            residency: "pinned" for one whose cells never leave the device.
            policy: what a full queue does; None for the engine's.
            flash: questions to register.

        Raises:
            InvalidInput: the id is in use or malformed, or a question cannot be asked.
            BudgetExceeded: the engine's cells, or the tenant's, are spoken for.
            CapacityExceeded: prefix or reserve do not fit into a session.
            JournalError: the journal could not be written.
            ClosedError: the engine is closed.
        """
        questions = checked_questions(flash)
        self._desk.check_may_note()
        session, noted = self.noting_open(
            id,
            prefix=prefix,
            tenant=tenant,
            reserve=reserve,
            residency=residency,
            policy=policy,
        )
        with session.or_closed(session.book):
            self._desk.settled(noted)
            for question in questions:
                session.flash(question)
        return session

    def noting_open(
        self,
        id: str | None,
        *,
        prefix: str,
        tenant: str,
        reserve: int | None,
        residency: Residency,
        policy: QueuePolicy | None,
    ) -> tuple[Session, Ticket | None]:
        """What `open` makes, and waits for."""
        chosen = self._desk.config.queue_policy if policy is None else checked_policy(policy)
        book, noted = self._lives.open(
            id,
            prefix,
            self._asker.opening(prefix),
            chosen,
            first_place=self._asker.first_place(prefix),
            tenant=tenant,
            reserve=reserve,
            pinned=checked_residency(residency),
        )
        return self._handle(book), noted

    def restore(
        self,
        path: str | os.PathLike[str],
        id: str | None = None,
        *,
        tenant: str = "default",
        policy: QueuePolicy | None = None,
    ) -> Session:
        """Brings back a session that `Session.save` wrote, at its version.

        Only the caller waits for the disk; the cells come to the device as soon as there is room.

        Raises:
            SnapshotError, CapacityExceeded: as `jaxstate.restore_state`.
            BudgetExceeded, InvalidInput, JournalError: as `open`.
        """
        chosen = self._desk.config.queue_policy if policy is None else checked_policy(policy)
        place = checked_path("path", path)
        self._desk.check_may_wait()
        saved = self._lives.load(place)
        version = saved_entries(place, saved.notes)
        book, noted = self._lives.restore(id, saved, version, chosen, tenant=tenant)
        with self._desk.or_closed(book):
            self._desk.settled(noted)
        return self._handle(book)

    @property
    def recovery(self) -> Recovery:
        """What the engine found in its journal when it was started."""
        return self._durable.recovery

    def import_session(self, path: str | os.PathLike[str], id: str | None = None) -> Session:
        """Takes in a session that `Session.export` wrote; it goes on as a session of this engine.

        Args:
            path: the file.
            id: its name here; None for the one that it had.

        Raises:
            InvalidInput: the engine has no journal, or the name is in use.
            JournalError: the file is damaged, or the journal could not be written.
            BudgetExceeded, CapacityExceeded: there are no cells for it.
        """
        place = checked_path("path", path)
        self._desk.check_may_wait()
        return self._handle(self._durable.import_session(place, id))

    def erase(self, id: str) -> int:
        """Removes from the journal what it holds of sessions of that name that are not open: those
        that were closed, and those that could not be brought back.

        Returns:
            How many there were.

        Raises:
            InvalidInput: the engine has no journal, or a session of that name is open.
            JournalError: the journal could not be written.
        """
        self._desk.check_may_wait()
        return self._durable.erase(id)

    def publish_prefix(self, prefix: str) -> None:
        """Declares a prefix public: sessions of all tenants that open with it share its cells.

        For the operator to decide, since it tells every tenant whether others use it. Sessions that
        are open already are not changed.

        Raises:
            InvalidInput: the prefix is no text.
        """
        self._lives.publish(self._asker.opening(prefix))

    def ask_many(
        self,
        question: str,
        sessions: Sequence[Session] | None = None,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> list[Answer]:
        """One question to many sessions, answered together: their steps are shared.

        Args:
            question: its text.
            sessions: whom to ask; None for all that are open.
            max_tokens, choices, stop, temperature, top_p, seed: as for `Session.ask`.
            timeout: seconds for all of them; None for ever.

        Returns:
            Answers in the order of the sessions, each with its session's version.

        Raises:
            InvalidInput: a session of another engine, or the question cannot be asked.
            JaxstateError: the first error of any of them, as `Session.ask`; the others are
                cancelled then.
        """
        checked_timeout(timeout)
        asked = self.submit_many(
            question,
            sessions,
            max_tokens=max_tokens,
            choices=choices,
            stop=stop,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return self._desk.outcomes_of(asked, timeout, "not every session answered")

    def submit_many(
        self,
        question: str,
        sessions: Sequence[Session] | None = None,
        *,
        max_tokens: int | None = None,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> list[AskFuture]:
        """Like `ask_many`, but returns a future for each session at once."""
        settings = settings_of(max_tokens, choices, stop, temperature, top_p, seed)
        if sessions is not None:
            return self._submitted(sessions, question, settings)
        while True:
            try:
                return self._submitted(self.sessions(), question, settings)
            except ClosedError:  # one of them was closed while we looked
                if self._desk.ended is not None or not self._desk.owner.is_here:
                    raise

    def _submitted(
        self, sessions: Sequence[Session], question: str, settings: Settings
    ) -> list[AskFuture]:
        if isinstance(sessions, Session) or not isinstance(sessions, Sequence):
            raise InvalidInput(f"sessions={shown(sessions)} must be a list of sessions")
        wanted = "a session of this engine"
        books = [
            checked_type(f"sessions[{place}]", one, Session, wanted).book
            for place, one in enumerate(sessions)
        ]
        with self._desk.lock:
            for book in books:
                if not book.closed and self._desk.ledger.books.get(book.key) is not book:
                    raise InvalidInput(f"session {book.id!r} is not of this engine; ask its own")
        return submit(self._desk, self._asker, books, question, settings)

    def session(self, id: str) -> Session:
        """The open session of that name.

        Raises:
            UnknownSession: there is none.
        """
        with self._desk.lock:
            usable = {book.id: book for book in self._desk.ledger.usable()}
        if (book := usable.get(id)) is None:
            raise UnknownSession(f"no session {id!r} is open; there are {sorted(usable)}")
        return self._handle(book)

    def sessions(self) -> list[Session]:
        """All open sessions in the order of opening, those of a journal first, by last use."""
        with self._desk.lock:
            books = self._desk.ledger.usable()
        return [self._handle(book) for book in books]

    def _handle(self, book: Book) -> Session:
        return Session(self._desk, self._lives, self._asker, book, self._durable.export)

    def metrics(self) -> EngineMetrics:
        """What the engine did so far, and how things stand."""
        return self._desk.metrics()


def checked_questions(flash: Sequence[str]) -> tuple[str, ...]:
    """Questions to be registered, as a caller gave them.

    Raises:
        InvalidInput: they are no list.
    """
    if isinstance(flash, str) or not isinstance(flash, Sequence):
        raise InvalidInput(f"flash={flash!r} must be a list of questions, such as [{flash!r}]")
    return tuple(flash)


def saved_entries(path: str | os.PathLike[str], notes: Mapping[str, object]) -> int:
    """The version of a saved session, as its notes say.

    Raises:
        SnapshotDamaged: it was not saved by a `Session`.
    """
    entries = notes.get("entries")
    if not isinstance(entries, int):
        raise SnapshotDamaged(f"{path} does not say how many entries it has read")
    return entries
