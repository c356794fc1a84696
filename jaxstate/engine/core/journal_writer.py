"""What the engine tells its journal, and what becomes of it.

Comes in: changes, under the engine's lock, so that the journal has them in the order in which they
happened. Goes out: futures of those that are to outlive something, and their effect: what was noted
ahead of the journal counts once it is written, or is taken back. Without a journal everything
counts at once. Does not know: what is noted, files.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jaxstate.engine.sessions.dedup import IdempotencyTable
from jaxstate.errors import InvalidInput
from jaxstate.persist.changes import Push, model_noted, segments_forgotten
from jaxstate.persist.journal import Change, Journal, PendingWrite, could_not_write
from jaxstate.persist.logged import last_seq, push_of, segment_names
from jaxstate.records import Durability, checked_durability

_log = logging.getLogger("jaxstate")


# Changes that nobody waits for may stand in line up to here; then those who make them wait.
MOST_WAITING = 10_000


class JournalWriter:
    """The engine's side of its journal.

    Args:
        journal: None for none.
        level: what changes are to outlive, unless whoever makes them says otherwise.
        text_fingerprint: of the tokenizer and template that make tokens of texts.
        model: where the engine's model comes from.

    Attributes:
        journal: None for none.
        text_fingerprint: of the model's tokenizer and template.
    """

    def __init__(
        self,
        journal: Journal | None,
        level: Durability = "memory",
        text_fingerprint: str = "",
        model: str = "",
    ) -> None:
        self.journal = journal
        self.text_fingerprint = text_fingerprint
        self._level: Durability = level if journal is not None else "memory"
        self._model = model
        self._keys = 0

    def attach(self, lock: AbstractContextManager[object], tell_loop: Callable[[], None]) -> None:
        """Begins to write; the lock is the engine's."""
        if self.journal is not None:
            self.journal.settle = lambda tickets, error: self._settle(
                lock, tell_loop, tickets, error
            )
            self.journal.start()

    def note_model(self) -> None:
        """Notes in the journal which model the engine has."""
        self.note(model_noted(self._model), "memory")

    def keys_from(self, key: int) -> None:
        """Sessions up to that key are in the journal."""
        self._keys = max(self._keys, key)

    def new_key(self) -> int:
        """A key for a session that the journal does not have."""
        self._keys += 1
        return self._keys

    @property
    def waits(self) -> bool:
        """Whether who notes something waits until it is written."""
        return self._level != "memory"

    def level(self, wanted: Durability | None) -> Durability:
        """What something is to outlive.

        Raises:
            InvalidInput: there is no journal that could do that.
        """
        if wanted is None:
            return self._level
        if checked_durability(wanted) != "memory" and self.journal is None:
            raise InvalidInput(
                f'durability={wanted!r} needs a journal: start the engine with journal="…", a '
                "directory"
            )
        return wanted

    def receipts(self, session: int) -> IdempotencyTable:
        """Those of a session of that key."""
        return IdempotencyTable(None if self.journal is None else _Kept(self.journal, session))

    def counts_at_once(self, level: Durability) -> bool:
        """Whether a change of that level counts before it is written."""
        if self.journal is None:
            return True
        return level == "memory" and self.journal.waiting < MOST_WAITING

    def note(
        self,
        change: Change,
        level: Durability | None = None,
        *,
        undo: Callable[[], None] = lambda: None,
        apply: Callable[[], None] = lambda: None,
        at_once: bool | None = None,
    ) -> PendingWrite | None:
        """Puts a change in line; the caller holds the lock.

        Args:
            change: for the journal.
            level: what it is to outlive; None for what the engine was told.
            undo: takes back what was noted, under the lock, if it cannot be written.
            apply: takes effect, under the lock, once it is written.
            at_once: whether it counts before it is written; None: as the level says.

        Returns:
            What tells when it is written, and whether it is to be waited for (not if it
            `stays`); None without a journal.

        Raises:
            JournalError: the journal is closed.
        """
        if self.journal is None:
            apply()
            return None
        chosen = self.level(level)
        if self.counts_at_once(chosen) if at_once is None else at_once:
            ticket = PendingWrite(change, "memory")
            self.journal.submit(ticket)
            apply()
            return ticket
        ticket = PendingWrite(change, "os" if chosen == "memory" else chosen, undo, apply)
        self.journal.submit(ticket)
        return ticket

    def purge(self) -> None:
        """Leaves nothing on the disk of what was erased, of snapshots that are gone, or of pieces
        that were damaged.

        Raises:
            JournalError: somebody reads the journal for too long: what was erased is no longer to
                be found in it, but for its log.
        """
        if self.journal is None:
            return
        self.clear_segments()
        self.journal.segments.forget_damaged()
        self.journal.compact()

    def clear_segments(self) -> None:
        """Removes the cells of snapshots that are gone."""
        assert self.journal is not None
        self.journal.write(segments_forgotten())
        segments = self.journal.segments
        with segments.lock, contextlib.closing(self.journal.read()) as source:
            segments.clear(segment_names(source))

    def _settle(
        self,
        lock: AbstractContextManager[object],
        tell_loop: Callable[[], None],
        tickets: Sequence[PendingWrite],
        error: Exception | None,
    ) -> None:
        """On the journal's thread: a batch was written, or could not be."""
        assert self.journal is not None
        with lock:
            if error is None:
                _each([ticket.apply for ticket in tickets])
            else:
                # What came meanwhile builds on what is taken back now.
                tickets = [*tickets, *self.journal.drain()]
                _each([ticket.undo for ticket in reversed(tickets)])
                self.journal.put_back([one for one in tickets if one.stays])
        for ticket in tickets:
            if error is None:
                ticket.settled.set_result(None)
            elif not ticket.stays:
                ticket.settled.set_exception(could_not_write(error))
        # Whoever waits comes first: the loop would take the interpreter for a whole turn.
        with lock:
            tell_loop()


def _each(calls: Sequence[Callable[[], None]]) -> None:
    """All of them: an error of one must not keep the others from counting."""
    for call in calls:
        try:
            call()
        except Exception:
            _log.exception("what the journal has could not be booked")


@dataclass(frozen=True, slots=True)
class _Kept:
    """Receipts of one session in its journal, which are rarely looked for."""

    journal: Journal
    session: int

    def push_of(self, client: str, seq: int) -> Push | None:
        with self._reading() as source:
            return push_of(source, self.session, client, seq)

    def last_seq(self, client: str) -> int | None:
        with self._reading() as source:
            return last_seq(source, self.session, client)

    def _reading(self) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(self.journal.read())
