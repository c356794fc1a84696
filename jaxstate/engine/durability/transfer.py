"""All that goes with an engine's journal: open it, bring its sessions back, take snapshots.

Comes in: a path, the engine's parts. Goes out: a journal writer for the engine's core; then
recovered sessions, and snapshots in the background. Without a path there is nothing of all this.
Does not know: what is in a journal, how the loop turns.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.journal_writer import JournalWriter
from jaxstate.engine.core.session_manager import SessionManager, opening_tokens
from jaxstate.engine.durability.checkpointer import Checkpointer
from jaxstate.engine.durability.recovery import JournalRecovery, Recovery
from jaxstate.engine.executor.protocol import Executor
from jaxstate.engine.requests.encoding import PromptEncoder
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.errors import InvalidInput, JournalDamaged
from jaxstate.persist import archive
from jaxstate.persist.changes import SessionOpened, erased
from jaxstate.persist.journal import Journal
from jaxstate.persist.logged import keys_of, root_of, session_of
from jaxstate.records import Durability, checked_durability
from jaxstate.text import Template, Tokenizer


@contextmanager
def opened_journal(
    path: str | os.PathLike[str] | None,
    durability: Durability,
    tokenizer: Tokenizer,
    template: Template,
    model: str = "",
) -> Iterator[JournalWriter]:
    """A writer of the journal at a path; if what is made with it fails, the journal is let go.

    Raises:
        JournalError: it cannot be opened, is damaged, or in use.
        InvalidInput: there is no such level of durability.
    """
    level = checked_durability(durability)
    journal = None if path is None else Journal(path)
    try:
        yield JournalWriter(journal, level, text_fingerprint(tokenizer, template), model)
    except BaseException:
        if journal is not None:
            journal.close()
        raise


def text_fingerprint(tokenizer: Tokenizer, template: Template) -> str:
    """SHA-256 over the sources of all that makes tokens of texts."""
    return hashlib.sha256(f"{tokenizer.fingerprint} {template.identity}".encode()).hexdigest()


class Durable:
    """The journal of an engine that has one.

    Args:
        core: of the engine; its journal writer has the journal.
        manager: likewise.
        encoder: likewise.
        executor: likewise.

    Attributes:
        recovery: what was found in the journal.
        snapshots: takes them; None without a journal.
    """

    def __init__(
        self, core: EngineCore, manager: SessionManager, encoder: PromptEncoder, executor: Executor
    ) -> None:
        self._parts = (core, manager, encoder, executor)
        self._core = core
        self.recovery = Recovery()
        self.snapshots: Checkpointer | None = None
        if (journal := core.journal_writer.journal) is not None:
            self.recovery = JournalRecovery(core, manager, encoder, executor, journal).recover()
            self.snapshots = Checkpointer(core, manager, executor, journal)
            core.journal_writer.note_model()

    def start(self) -> None:
        """Begins to take snapshots in the background."""
        if self.snapshots is not None:
            self.snapshots.start()

    def stop(self) -> threading.Thread | None:
        """Takes the last snapshots; the loop still turns. The thread that does it, if any."""
        return None if self.snapshots is None else self.snapshots.stop()

    @property
    def pieces(self) -> int:
        """Of snapshots, written so far."""
        return 0 if self.snapshots is None else self.snapshots.pieces

    def close(self) -> None:
        """Lets the journal go; nothing turns any more."""
        if self._core.journal_writer.journal is not None:
            self._core.journal_writer.journal.close()

    def export(self, record: SessionRecord, path: str | os.PathLike[str]) -> None:
        """Writes one session to a file, with a snapshot of its cells.

        Raises:
            InvalidInput: there is no journal, or something is at the path.
            JournalError: it could not be written.
            ClosedError: the session or the engine is closed.
        """
        journal = self._journal("export")
        assert self.snapshots is not None
        record.check_open()
        self.snapshots.take(record)
        with journal.segments.lock, contextlib.closing(journal.read()) as source:
            archive.write(source, journal.segments, record.log_key, path)

    def import_session(self, path: str | os.PathLike[str], session_id: str | None) -> SessionRecord:
        """Takes a session from such a file into the journal, and brings it back.

        Raises:
            InvalidInput: there is no journal, or the name is in use.
            JournalError: the file is damaged, or the journal could not be written.
            BudgetExceeded, CapacityExceeded: there are no cells for it.
        """
        journal = self._journal("import")
        with self._core.changing():
            pass  # not of an engine that is closed
        core, manager, encoder, executor = self._parts
        with journal.segments.lock, contextlib.closing(archive.read(path)) as source:
            name = manager.free_name(archive.name_of(source) if session_id is None else session_id)
            key = core.journal_writer.new_key()
            archive.take_segments(source, journal.segments)
            journal.write(archive.taken(source, key, name))
        try:
            return JournalRecovery(core, manager, encoder, executor, journal).bring_back(key)
        except BaseException:
            journal.write(erased(key))
            raise

    def erase(self, session_id: str) -> int:
        """Erases from the journal all sessions of that name that are not open.

        Returns:
            How many there were.

        Raises:
            InvalidInput: there is no journal, or a session of that name is open.
            JournalError: the journal could not be written, or its log not be emptied.
            ClosedError: the engine is closed.
        """
        journal = self._journal("erase")
        with self._core.changing() as state:
            there = state.by_id.get(session_id)
            is_ending = there is not None and there.ending
            noted = self._core.journal_writer.last_in_line() if is_ending else None
        self._core.settled(noted)  # behind its end
        with self._core.changing() as state:
            if session_id in state.by_id:
                raise InvalidInput(
                    f"session {session_id!r} is open: session.close(erase=True) erases it"
                )
        with contextlib.closing(journal.read()) as source:
            keys = archive.closed_keys(source, session_id)
            # The name of one that could not be brought back is nobody else's.
            if session_id in self._core.state.lost:
                keys += [key for key, name in keys_of(source) if name == session_id]
            openings = [one for key in keys if (one := _opening(source, key)) is not None]
        for key in keys:
            journal.write(erased(key))
        self._forget(session_id, openings)
        self._core.journal_writer.purge()
        return len(keys)

    def _forget(self, session_id: str, openings: Sequence[SessionOpened]) -> None:
        """Cells that such sessions have left on the device, and in what begins others."""
        encoder, wiped = self._parts[2], Future[None]()
        fingerprint, prefixes = (
            self._core.journal_writer.text_fingerprint,
            self._core.state.prefixes,
        )
        tokens = [(opening_tokens(one, encoder, fingerprint), one.tenant) for one in openings]
        chains = [prefixes.chain(opening, tenant) for opening, tenant in tokens]
        with self._core.changing() as state:
            state.lost.pop(session_id, None)
            for chain in chains:
                prefixes.forget(chain)
            self._core.wipes.append(wiped)
        wiped.result()

    def _journal(self, what: str) -> Journal:
        journal = self._core.journal_writer.journal
        if journal is None:
            raise InvalidInput(
                f"to {what} a session the engine needs a journal: Engine(journal=...); without one "
                "there are session.save(path) and engine.restore(path)"
            )
        return journal


def _opening(source: sqlite3.Connection, key: int) -> SessionOpened | None:
    """What a session began with; None if that cannot be read."""
    try:
        return root_of(source, session_of(source, key))
    except JournalDamaged:
        return None
