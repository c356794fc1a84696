"""A journal's sessions, brought into the records: what they had read, what is to be read yet, what
is asked of them.

Comes in: an open journal, and an engine whose loop does not turn yet. Goes out: sessions as they
were, and a `Recovery` that says what was found, what could not be used, and why. Does not know: how
cells of a snapshot are read (`checkpoint_loader`), how the loop turns.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.session_manager import (
    RecoveredState,
    SessionManager,
    ends_of,
    opening_tokens,
    tokens_of,
)
from jaxstate.engine.durability.checkpoint_loader import CheckpointLoader
from jaxstate.engine.durability.checkpointer import answers_of, cells_and_text
from jaxstate.engine.executor.protocol import Executor, Tokens
from jaxstate.engine.flash.registry import Registered, registered_of
from jaxstate.engine.requests.encoding import PromptEncoder
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.sessions.token_log import TokenLog, spans_of
from jaxstate.engine.types.options import policy_of
from jaxstate.engine.types.values import Answer, Span, Usage
from jaxstate.engine.types.window import Window
from jaxstate.errors import (
    InvalidInput,
    JaxstateError,
    JournalDamaged,
    JournalError,
)
from jaxstate.persist.changes import SegmentRow, SessionOpened
from jaxstate.persist.journal import Journal
from jaxstate.persist.logged import (
    LoggedEntry,
    LoggedSession,
    LoggedSnapshot,
    LoggedWindow,
    entries_of,
    flash_names_of,
    keys_of,
    largest_key,
    questions_of,
    root_of,
    segment_of,
    session_of,
    snapshots_of,
    window_of,
)
from jaxstate.records import Record
from jaxstate.text import Place

_log = logging.getLogger("jaxstate")
_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredSession(Record):
    """A session that a journal brought back.

    Attributes:
        id: its name.
        version: at which it is there again; -1 if it is read from its beginning.
        last: number of its last entry: it will have that version again.
        tokens_to_read: of its opening and entries that no snapshot holds.
    """

    id: str
    version: int
    last: int
    tokens_to_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery(Record):
    """What an engine found in its journal.

    Attributes:
        sessions: that are open again, the one that was used last first.
        failed: names of those that could not be brought back, and why; they are still in the
            journal.
        set_aside: snapshots that could not be used, and why.
        unasked: registered questions that cannot be asked here, and why; they are still in the
            journal as well.
    """

    sessions: tuple[RecoveredSession, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    set_aside: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """A snapshot that may be used."""

    snapshot: LoggedSnapshot
    rows: tuple[SegmentRow, ...]


class JournalRecovery:
    """Brings a journal's sessions into the records.

    Args:
        core: of the engine; its loop does not turn yet.
        manager: likewise.
        encoder: makes tokens of entries.
        executor: reads pieces.
        journal: open.
    """

    def __init__(
        self,
        core: EngineCore,
        manager: SessionManager,
        encoder: PromptEncoder,
        executor: Executor,
        journal: Journal,
    ) -> None:
        self._core = core
        self._manager = manager
        self._encoder = encoder
        self._segments = journal.segments
        self._fingerprint = cells_and_text(executor, core)
        self._reloader = CheckpointLoader(core, executor, journal)
        self._source = journal.read()
        self._set_aside: list[str] = []
        self._unasked: list[str] = []

    def recover(self) -> Recovery:
        """Brings back every session that was not closed."""
        with contextlib.closing(self._source):
            self._core.journal_writer.keys_from(largest_key(self._source))
            back: list[RecoveredSession] = []
            failed: list[tuple[str, str]] = []
            for key, name in keys_of(self._source):
                try:
                    back.append(self._bring_back(session_of(self._source, key)))
                except JaxstateError as error:
                    _log.error("session %r could not be brought back: %s", name, error)
                    failed.append((name, str(error)))
        self._core.state.lost = dict(failed)
        self._core.journal_writer.clear_segments()
        self._manager.come_in()
        return Recovery(
            sessions=tuple(back),
            failed=tuple(failed),
            set_aside=tuple(self._set_aside),
            unasked=tuple(self._unasked),
        )

    def bring_back(self, key: int) -> SessionRecord:
        """One session, whose rows are in the journal.

        Raises:
            JaxstateError: it cannot be brought back.
        """
        with contextlib.closing(self._source):
            session = session_of(self._source, key)
            self._bring_back(session)
        with self._core.changing() as state:
            record = state.by_id[session.opening.id]
            record.residence.coming = True
            state.budget.update(record)
        return record

    def _bring_back(self, session: LoggedSession) -> RecoveredSession:
        window = window_of(self._source, session.opening.key)
        found = self._usable(session, window)
        name = session.opening.id
        try:
            state = self._state(session, found, window)
        except ValueError as error:  # of JSON, or of an array
            if isinstance(error, JaxstateError):
                raise
            raise JournalDamaged(
                f"what the journal has of session {name!r} cannot be read: {error!r}"
            ) from error
        except JaxstateError:
            raise
        except Exception as error:
            raise _own_fault(name, error) from error
        try:
            record = self._manager.come_back(session.opening, state)
        except JaxstateError:
            raise
        except Exception as error:
            raise _own_fault(name, error) from error
        return RecoveredSession(
            id=session.opening.id,
            version=state.version,
            last=session.last,
            tokens_to_read=record.queue.unread_tokens,
        )

    def _state(
        self, session: LoggedSession, found: Sequence[_Found], logged: LoggedWindow
    ) -> RecoveredState:
        """What is known of a session, with its newest snapshot or without one."""
        root = root_of(self._source, session)
        opening = _NO_TOKENS
        if root.prefix is not None:
            fingerprint = self._core.journal_writer.text_fingerprint
            opening = opening_tokens(root, self._encoder, fingerprint)
        first_place = self._encoder.first_place(root.prefix)
        log, version = self._read_before(root, found)
        log.base_version = logged.version
        window = None if logged.settings is None else Window.of_json(logged.settings)
        entries = self._entries(session, max(version, 0), logged)
        known = [] if window is None else self._read_entries(session, log, entries)
        answers = _answers_of(found[0].snapshot.row.answers) if found else {}
        policy = policy_of(session.opening.policy, self._core.config.queue_policy)
        return RecoveredState(
            log=log,
            version=version,
            prefix=opening,
            opening=opening if version < 0 else _NO_TOKENS,
            entries=[(one.sequence, self._tokens(one, first_place)) for one in entries],
            first_place=first_place,
            window=window,
            noted=[] if window is None else _noted(known, window),
            last=session.last,
            policy=policy,
            prepare=functools.partial(
                self._prepare, found, self._questions(session.opening), answers
            ),
        )

    def _read_before(self, root: SessionOpened, found: Sequence[_Found]) -> tuple[TokenLog, int]:
        """The tokens of what need not be taken from entries, and the version that they end at."""
        log = TokenLog()
        if found:
            for row in found[0].rows:
                log.append(tokens_of(row.tokens), ends_of(row.ends))
            return log, found[0].snapshot.row.version
        if root.prefix is not None or root.base_tokens is None:
            return log, -1
        if root.text_fingerprint != self._core.journal_writer.text_fingerprint:
            raise JournalError(
                f"session {root.id!r} was made from a saved one, with another tokenizer or "
                "template, and the text of what it had read is not known; start the engine with "
                "the model that it was saved with"
            )
        log.append(tokens_of(root.base_tokens), ends_of(root.base_ends or b""))
        return log, root.base_version

    def _tokens(self, entry: LoggedEntry, first_place: Place) -> Tokens:
        return self._encoder.entry(entry.text, first_place if entry.sequence == 1 else "text")

    def _entries(
        self, session: LoggedSession, after: int, window: LoggedWindow
    ) -> list[LoggedEntry]:
        """Entries behind a version that are to be read: what has left the window is not."""
        spans = [*window.kept, (window.version + 1, session.last)]
        ranges = [(max(first, after + 1), last) for first, last in spans]
        return [
            one
            for first, last in ranges
            if first <= last
            for one in entries_of(self._source, session, first - 1, last)
        ]

    def _read_entries(
        self, session: LoggedSession, log: TokenLog, entries: Sequence[LoggedEntry]
    ) -> list[LoggedEntry]:
        """Those of a log, and those that are to be read."""
        read = [
            one
            for span in spans_of(log.numbers)
            for one in entries_of(self._source, session, span.first - 1, span.last)
        ]
        return [*read, *entries]

    def _usable(self, session: LoggedSession, window: LoggedWindow) -> list[_Found]:
        """Snapshots of a session that may be good, the newest first; the others are set aside."""
        found: list[_Found] = []
        for snapshot in snapshots_of(self._source, session.opening.key):
            if snapshot.set_aside is not None:
                continue
            rows = [segment_of(self._source, name) for name in snapshot.row.segments]
            whole = tuple(row for row in rows if row is not None)
            reason = self._reason(session, snapshot, rows, whole)
            if reason is None and not _is_behind(window, snapshot, whole):
                continue  # of the context that the session had before its window moved
            if reason is None:
                found.append(_Found(snapshot=snapshot, rows=whole))
            else:
                self._reloader.set_aside([snapshot.number], reason)
                self._set_aside.append(
                    f"snapshot of session {session.opening.id!r} at version "
                    f"{snapshot.row.version}: {reason}"
                )
        return found

    def _reason(
        self,
        session: LoggedSession,
        snapshot: LoggedSnapshot,
        rows: Sequence[SegmentRow | None],
        whole: Sequence[SegmentRow],
    ) -> str | None:
        """Why a snapshot cannot be used; None if nothing speaks against it yet."""
        row = snapshot.row
        if not snapshot.sound:
            return "what the journal says of it is damaged"
        if row.fingerprint != self._fingerprint:
            return "it was made with another model, tokenizer, template, dtype or cell layout"
        if len(whole) < len(rows) or not all(self._segments.has(one.name) for one in whole):
            return "pieces of it are missing, or what the journal says of them is damaged"
        version_ends = [0, *(one.last for one in whole)]
        firsts = [one.first for one in whole]
        if not whole or firsts != version_ends[:-1] or version_ends[-1] != row.cells:
            return "its pieces do not follow each other"
        if not all(len(one.tokens) == 4 * (one.last - one.first) for one in whole):
            return "its tokens are damaged"
        if row.version > session.last:
            return f"it is of version {row.version}, and the journal ends at {session.last}"
        return None

    def _questions(self, opening: SessionOpened) -> _Questions:
        """Flash queries that can be asked of this model; the others are logged,
        and stay in the journal."""
        key, session_id = opening.key, opening.id
        found = _Questions(names=flash_names_of(self._source, key))
        for name, settings in questions_of(self._source, key, "flash"):
            with self._logged(session_id, name):
                found.flash.append((name, registered_of(self._encoder, settings)))
        for question, _ in questions_of(self._source, key, "warm"):
            with self._logged(session_id, question):
                raise InvalidInput("warm questions are no more; session.flash registers it")
        return found

    def _prepare(
        self,
        found: Sequence[_Found],
        questions: _Questions,
        answers: Mapping[str, tuple[Answer, int]],
        record: SessionRecord,
    ) -> None:
        """Where its cells are, and what it is asked; the caller holds the lock."""
        if found:
            self._reloader.leave(record, [(one.snapshot, one.rows) for one in found])
        for name in questions.names:
            record.flash.names_from(name)
        for name, one in questions.flash:
            with self._logged(record.id, name):
                record.flash.bring_back(one, name, self._core.clock())
                if name in answers:
                    record.flash.answered(one, *answers[name])

    @contextlib.contextmanager
    def _logged(self, session_id: str, question: str) -> Iterator[None]:
        """A question that cannot be asked here keeps no session from coming back."""
        try:
            yield
        except (JaxstateError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.error("%r is not asked of session %r any more: %r", question, session_id, error)
            self._unasked.append(f"{question!r} of session {session_id!r}: {error}")


def _is_behind(window: LoggedWindow, snapshot: LoggedSnapshot, rows: Sequence[SegmentRow]) -> bool:
    """Whether a snapshot is of the context that a session has since its window last moved."""
    if window.version < 0:
        return True
    ends = [entry for row in rows for entry, _ in ends_of(row.ends)]
    kept = [entry for entry in ends[1:] if entry <= window.version]  # behind what it begins with
    wanted = [number for first, last in window.kept for number in range(first, last + 1)]
    return snapshot.row.version >= window.version and kept == wanted


def _noted(entries: Sequence[LoggedEntry], window: Window) -> list[tuple[int, float, str | None]]:
    """What a window has to know of entries: number, seconds since it was pushed, key."""
    now_s = time.time()
    return [
        (one.sequence, max(0.0, now_s - one.pushed_s), window.key_of(one.text)) for one in entries
    ]


def _own_fault(name: str, error: Exception) -> JournalError:
    """Not every error while reading a journal is the journal's."""
    _log.error("session %r could not be brought back", name, exc_info=error)
    return JournalError(
        f"session {name!r} could not be brought back, for a fault of jaxstate's own, not of the "
        f"journal, which keeps it: {error!r}. Please report it"
    )


@dataclass(slots=True, eq=False)
class _Questions:
    """What a session is asked: names that flash queries have or had, and flash queries."""

    names: list[str]
    flash: list[tuple[str, Registered]] = field(default_factory=list)


def _answers_of(kept: str) -> dict[str, tuple[Answer, int]]:
    """By the name of the flash query, with the steps that the answer took."""
    return {
        str(one["id"]): (_answer_of(one["answer"]), int(str(one["steps"])))
        for one in answers_of(kept)
    }


def _answer_of(kept: object) -> Answer:
    """An answer as `dataclasses.asdict` and JSON left it."""
    if not isinstance(kept, dict):
        raise ValueError("an answer is no record")
    fields = dict(kept)
    usage = fields.pop("usage")
    if fields.get("visible") is not None:
        fields["visible"] = tuple(Span(**one) for one in fields["visible"])
    tuples = ("token_ids", "choice_logprobs", "token_logprobs")
    shaped = {
        name: tuple(value) if name in tuples and isinstance(value, list) else value
        for name, value in fields.items()
    }
    return Answer(usage=Usage(**usage), **shaped)  # pyright: ignore[reportArgumentType]
