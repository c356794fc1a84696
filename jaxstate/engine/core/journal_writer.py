"""What the engine tells its journal, and what becomes of it.

Comes in: changes, under the engine's lock, so that the journal has them in the order in which they
happened. Goes out: their effect, once they are written (append, then apply), and word of it to
whoever waits. At "memory", and without a journal, they take effect at once. If one cannot be
written, nothing that stands in line behind it takes effect either: it may build on it. Does not
know: what is noted, files.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jaxstate.engine.sessions.dedup import IdempotencyTable
from jaxstate.errors import JournalError
from jaxstate.persist.changes import Push, model_noted, segments_forgotten
from jaxstate.persist.journal import Change, Journal, PendingWrite
from jaxstate.persist.logged import last_seq, push_of, segment_names
from jaxstate.records import Durability

_log = logging.getLogger("jaxstate")


# Changes that took effect at once may stand in line up to here; then those who make them wait.
MOST_WAITING = 10_000


class JournalWriter:
    """The engine's side of its journal.

    Args:
        journal: None for none.
        level: what changes are to outlive.
        text_fingerprint: of the tokenizer and template that make tokens of texts.
        model: where the engine's model comes from.

    Attributes:
        journal: None for none.
        level: what changes are to outlive; "memory" without a journal.
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
        self.level: Durability = level if journal is not None else "memory"
        self._model = model
        self._keys = 0

    def attach(
        self,
        lock: AbstractContextManager[object],
        tell_loop: Callable[[], None],
        abandon: Callable[[], None],
    ) -> None:
        """Begins to write.

        Args:
            lock: the engine's.
            tell_loop: there is something to look at.
            abandon: called under the lock: nothing that is on its way will take effect.
        """
        if self.journal is not None:
            self.journal.settle = functools.partial(self._settle, lock, tell_loop, abandon)
            self.journal.start()

    def note_model(self) -> None:
        """Notes in the journal which model the engine has."""
        self.append(model_noted(self._model), level="memory")

    def keys_from(self, key: int) -> None:
        """Sessions up to that key are in the journal."""
        self._keys = max(self._keys, key)

    def new_key(self) -> int:
        """A key for a session that the journal does not have."""
        self._keys += 1
        return self._keys

    @property
    def waits(self) -> bool:
        """Whether who makes a change waits until it is written."""
        return self.level != "memory" or self._crowded

    @property
    def _crowded(self) -> bool:
        return self.journal is not None and self.journal.waiting >= MOST_WAITING

    def receipts(self, session: int) -> IdempotencyTable:
        """Those of a session of that key."""
        return IdempotencyTable(None if self.journal is None else _Kept(self.journal, session))

    def check(self) -> None:
        """Refuses changes that could never be written.

        Raises:
            JournalError: the journal is closed, or its disk has failed.
        """
        if self.journal is not None:
            self.journal.check()

    def append(
        self,
        change: Change,
        apply: Callable[[], None] = lambda: None,
        *,
        level: Durability | None = None,
    ) -> PendingWrite | None:
        """Puts a change in line; the caller holds the lock, and has called `check`.

        Args:
            change: for the journal.
            apply: takes effect, under the lock, once it is written; at "memory" at once.
            level: what it is to outlive; None for the engine's.

        Returns:
            What tells when it is written, and whether that is awaited; None without a journal.

        Raises:
            JournalError: as `check`.
        """
        if self.journal is None:
            apply()
            return None
        if (level or self.level) == "memory":
            written = PendingWrite(change, "memory", awaited=self._crowded)
            self.journal.submit(written)
            apply()
            return written
        written = PendingWrite(change, level or self.level, apply)
        self.journal.submit(written)
        return written

    def last_in_line(self) -> PendingWrite | None:
        """What to wait for until all that was noted so far is written; None without a journal."""
        if self.journal is None:
            return None
        written = PendingWrite(lambda _: None, "os")
        self.journal.submit(written)
        return written

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
        abandon: Callable[[], None],
        tickets: Sequence[PendingWrite],
        error: JournalError | None,
    ) -> None:
        """On the journal's thread: a batch was written, or could not be."""
        assert self.journal is not None
        with lock:
            if error is None:
                _each([ticket.apply for ticket in tickets])
            else:
                # What came meanwhile builds on what is not there now.
                tickets = [*tickets, *self.journal.drain()]
                _each([abandon])
                self.journal.put_back([one for one in tickets if one.stays])
        for ticket in tickets:
            if error is None:
                ticket.settled.set_result(None)
            elif not ticket.stays:
                ticket.settled.set_exception(error)
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
