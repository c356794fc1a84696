"""A session, as its user holds it: push, ask, flash, wait, fork, save, close.

Comes in: texts and settings. Goes out: receipts, answers, futures. All state is in the
record and the engine; a `Session` is a handle on it. Does not know: devices, when steps run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Unpack

from jaxstate.engine.core.asks import given_or_submitted
from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.ingest import (
    NewEntries,
    leave_line,
    new_entries,
    push,
    read_receipts,
    reads_first,
)
from jaxstate.engine.core.session_manager import SessionManager, close_session
from jaxstate.engine.core.window_settings import set_window
from jaxstate.engine.flash.registry import FlashOptions, Registered, flash_json, new_registered
from jaxstate.engine.requests.answer_stream import AnswerStream, Submit
from jaxstate.engine.requests.encoding import (
    AskOptions,
    PromptEncoder,
    SettingsOptions,
    settings_of,
    wanted_of,
)
from jaxstate.engine.requests.futures import AskFuture, countdown
from jaxstate.engine.sessions.dedup import Pushed
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.types.events import FlashMode, Subscription, checked_timeout
from jaxstate.engine.types.options import check_known
from jaxstate.engine.types.values import Answer, Event, Receipt, SessionInfo
from jaxstate.engine.types.window import Window, checked_window
from jaxstate.errors import ClosedError, InvalidInput, JournalError
from jaxstate.persist.changes import asked_from_now_on, no_longer_asked
from jaxstate.persist.journal import PendingWrite
from jaxstate.records import checked_int, checked_path, checked_type
from jaxstate.text import Messages


class FlashQuery:
    """A registered question: a handle that shows where it stands when it is looked at.

    Attributes:
        id: its name within the session.
        question: its text.
    """

    def __init__(self, core: EngineCore, record: SessionRecord, registered: Registered) -> None:
        self.id = registered.id
        self.question = registered.asked.question
        self._core = core
        self._record = record
        self._registered = registered

    @property
    def answer(self) -> Answer | None:
        """The newest answer, with the version that it saw; None before the first."""
        return self._registered.answer

    @property
    def fresh(self) -> bool:
        """Whether the answer is that of the session's version."""
        with self._core.lock:
            return self._record.flash.is_fresh(self._registered)

    @property
    def max_tokens(self) -> int:
        """Of an answer at most."""
        return self._registered.asked.max_tokens

    @property
    def tokens(self) -> int:
        """Of the question, with its template."""
        return len(self._registered.asked.tokens)

    @property
    def age_s(self) -> float | None:
        """Seconds since the newest answer was computed; None before the first, and for one that a
        journal brought back."""
        answered_s = self._registered.answered_s
        return None if answered_s is None else self._core.clock() - answered_s

    @property
    def error(self) -> str | None:
        """Why it could not be answered at the newest version; None if it could."""
        return self._registered.error

    def __repr__(self) -> str:
        return f"FlashQuery({self.id!r}, {self.question!r}, fresh={self.fresh})"


class Session:
    """A stream that is read once, and asked about. `Engine.open` makes it.

    Args:
        core, manager, encoder: of its engine.
        record: its own.
        export: writes a session to a file.
    """

    def __init__(
        self,
        core: EngineCore,
        manager: SessionManager,
        encoder: PromptEncoder,
        record: SessionRecord,
        export: Callable[[SessionRecord, str | os.PathLike[str]], None],
    ) -> None:
        self._core = core
        self._manager = manager
        self._encoder = encoder
        self._record = record
        self._export = export

    @property
    def record(self) -> SessionRecord:
        """Its bookkeeping, for the engine's own."""
        return self._record

    @property
    def id(self) -> str:
        """Its name."""
        return self._record.id

    @property
    def version(self) -> int:
        """Sequence number of the last entry in the cells; -1 before the prefix is read."""
        return self._record.version

    def wait(self, version: int | None = None, timeout: float | None = None) -> int:
        """Waits until the entries up to `version` are in the cells; returns the version then.

        Args:
            version: a sequence number; None for everything whose push has returned.
            timeout: seconds at most; None for ever.

        Raises:
            TimedOut: it took longer.
            ClosedError: the session or the engine was closed.
        """
        self._core.outcome(self.waiting(version), timeout, "the entries were not read")
        return self._record.version

    def wait_fresh(self, timeout: float | None = None) -> int:
        """Waits until everything pushed is read and every flash query is answered there (or could
        not be: `FlashQuery.error`); returns the version then.

        Args:
            timeout: seconds at most; None for ever.

        Raises:
            TimedOut: it took longer.
            ClosedError: the session or the engine was closed.
        """
        self._core.outcome(self.waiting_fresh(), timeout, "the flash queries were not answered")
        return self._record.version

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
        return self._core.subscribe(self._record, flash)

    def info(self) -> SessionInfo:
        """Facts about this session at this moment."""
        return self._core.info(self._record)

    def newest_entries(self, count: int = 20) -> list[tuple[int, str]]:
        """The newest entries that its version sees, ascending: their numbers and texts, made of
        their tokens, without the line break at their end.

        Args:
            count: at most.

        Raises:
            InvalidInput: `count` is below 1.
        """
        if checked_int("count", count) < 1:
            raise InvalidInput(f"count={count} must be at least 1")
        with self._core.lock:
            log, cells = self._record.residence.log, self._record.seen_cells
            newest = itertools.islice(log.newest_first(cells), count)
            read = [(number, log.tokens(log.start_of(number), size)) for number, size in newest]
        decode = self._encoder.tokenizer.decode
        return [(number, decode(one.tolist()).rstrip("\n")) for number, one in reversed(read)]

    def suspend(self, timeout: float | None = None) -> None:
        """Moves its cells off the device; waits for it. It gives its reserve up.

        What waits in its queue, and whatever is asked of it, brings it back as soon as there is
        room; what is under way is finished first.

        Raises:
            InvalidInput: it is pinned.
            TimedOut: it took longer; it leaves all the same.
            ClosedError: the session or the engine is closed.
        """
        self._core.outcome(self.suspending(), timeout, "the session did not leave")

    def resume(self, timeout: float | None = None) -> None:
        """Brings its cells to the device ahead of their use; waits for it.

        Raises:
            TimedOut: it took longer; it comes all the same.
            ClosedError: the session or the engine is closed.
        """
        self._core.outcome(self.resuming(), timeout, "the session did not come back")

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
        write = self._core.outcome(captured, None, "the session was not captured")
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
        self._core.check_may_wait()
        self._export(self._record, place)

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
            self._manager.erase(self._record)
        elif not self._record.has_ended:
            self._core.check_may_note()
            self._core.settled(self.noting_close())

    def noting_close(self) -> PendingWrite | None:
        """What `close` waits for."""
        return close_session(self._core, self._record, "it was closed by its user")

    def noting_all(self) -> PendingWrite | None:
        """What to wait for until the journal has all that this session's calls noted so far: it is
        written in order."""
        with self._core.changing():
            return self._core.journal_writer.last_in_line()

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
        return self._manager.capture(self._record, dict(kept))

    def suspending(self) -> Future[None]:
        """What `suspend` waits for."""
        return self._manager.suspend(self._record)

    def resuming(self) -> Future[None]:
        """What `resume` waits for."""
        return self._manager.resume(self._record)

    def waiting_fresh(self) -> Future[None]:
        """What `wait_fresh` waits for."""
        return self._core.wait_fresh(self._record)

    def waiting(self, version: int | None) -> Future[None]:
        """What `wait` waits for."""
        # Not for what is on its way to the journal: it may never come.
        newest = self._record.queue.accepted
        wanted = newest if version is None else checked_int("version", version)
        return self._core.wait(self._record, wanted)

    def push(
        self,
        entries: str | Sequence[str],
        *,
        client: str | None = None,
        client_seq: int | None = None,
        strict: bool = False,
        timeout: float | None = None,
    ) -> Receipt:
        """Takes one entry or several, all or none, to be read in order.

        Returns once they are as durable as the engine's `durability` says; with the policy "block"
        it waits while the queue is full.

        Args:
            entries: texts; each is tokenised on its own.
            client, client_seq: who pushes, and its own number of this push: a repeat gets the
                receipt of the first, and adds nothing.
            strict: refuse a number that does not follow the client's last.
            timeout: seconds to wait for room at most: in the queue, and at "memory" in the line for
                the journal, behind which it was taken all the same.

        Raises:
            InvalidInput: no entries, something that is no text, or more than the queue holds.
            CapacityExceeded: the session will have no cells for them.
            BudgetExceeded: the engine, or the tenant, will have none.
            QueueFull: the queue is full (policies "reject" and, where nothing may be displaced,
                "drop_oldest" and `Coalesce`).
            TimedOut: no room within `timeout`.
            InvalidInput: `client_seq` was used for other entries before.
            SequenceGap: under strict order, numbers of the client are missing.
            JournalError: the journal could not be written, and nothing was added (but for a disk
                that fails: then the next engine finds out).
            ClosedError: the session or the engine is closed.
        """
        left_s = countdown(timeout)
        new = self.prepare(entries, client, client_seq, strict)
        self._core.check_may_note()
        try:
            while isinstance(outcome := self.push_prepared(new), Future):
                self._core.outcome(outcome, left_s(), "the queue was full")
        except BaseException:
            self.give_up(new)
            raise
        self._core.settled(outcome.written, left_s())
        return outcome.receipt

    def client_seq(self, client: str) -> int | None:
        """The largest number that a client has given a push of this session: where it goes on from
        after a restart. None if it has given none. Waits for those on their way to the journal.

        Raises:
            ClosedError: the session or the engine is closed.
        """
        while True:
            with self._core.changing():
                self._record.check_open()
                written = self._record.receipts.on_its_way(client)
                read = self._record.receipts.unread(client)
                if written is None and read is None:
                    return self._record.receipts.last_of(client)
            if read is not None:
                read_receipts(self._core, read)
            if written is not None:
                with contextlib.suppress(JournalError):  # then it was never there
                    self._core.check_may_wait()
                    written.settled.result()

    def ask(
        self,
        question: str | Messages,
        *,
        timeout: float | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """Answers a question at the newest committed version, or an earlier one; waits for it.

        The text of a flash query is answered from there if that is fresh and computing would give
        the same; what is left at None is then what the flash query has.

        Args:
            question: its text; or messages ({"role", "content"}) that end with it, as a chat goes
                on: they are asked of what the session has read, and it does not keep them.
            max_tokens: of the answer; None for 16.
            choices: score these, each as a whole answer with what ends it, and answer with the
                best. With them nothing is drawn and nothing stops early: `stop`, `temperature`,
                `top_p` and `seed` are refused, and `max_tokens` bounds each choice.
            min_version: wait until the session has that version.
            as_of: a version that the session has: the opening and entries 1 .. `as_of`, nothing
                else. None for the newest.
            stop: strings that end the answer, instead of the template's own.
            temperature, top_p: as in `Sampling`.
            seed: likewise; None draws one, which the answer names (`Answer.seed`).
            timeout: seconds at most; None for ever.

        Raises:
            InvalidInput, PromptTooLong: the question cannot be asked, or the version not be had.
            VersionUnavailable: its cells are gone.
            CapacityExceeded: it would reach past the positions that the model was made for.
            TimedOut: it took longer; the question is taken off the device.
            StepFailed: the device failed.
            ClosedError: the session or the engine was closed.
        """
        checked_timeout(timeout)
        outcome = self._given_or_submitted("Session.ask", question, options)
        if isinstance(outcome, Answer):
            return outcome
        return self._core.outcome(outcome, timeout, "the question was not answered")

    def check(self, question: str | Messages, **options: Unpack[SettingsOptions]) -> int:
        """Refuses what `ask` would refuse of the question itself, without asking it.

        Args:
            question, options: as for `ask`.

        Returns:
            Its tokens, the template's included.

        Raises:
            InvalidInput, PromptTooLong: it cannot be asked.
        """
        check_known("Session.check", options, SettingsOptions)
        return len(self._encoder.ask(question, settings_of(**options)).tokens)

    def submit(self, question: str | Messages, **options: Unpack[AskOptions]) -> AskFuture:
        """Like `ask`, but returns a future at once; cancelling it ends the question."""
        outcome = self._given_or_submitted("Session.submit", question, options)
        return AskFuture.of(outcome) if isinstance(outcome, Answer) else outcome

    def _given_or_submitted(
        self, call: str, question: str | Messages, options: AskOptions
    ) -> Answer | AskFuture:
        check_known(call, options, AskOptions)
        settings, wanted = wanted_of(options)
        return given_or_submitted(
            self._core, self._encoder, self._record, question, settings, wanted
        )

    def stream(
        self,
        question: str | Messages,
        *,
        timeout: float | None = None,
        **options: Unpack[AskOptions],
    ) -> AnswerStream:
        """Answers a question like `ask`, and gives the text in pieces while it is being chosen.

            for piece in session.stream("What happened?"):
                print(piece, end="", flush=True)

        Args:
            question, options: as for `ask`.
            timeout: seconds for the whole answer; None for ever.

        Returns:
            An iterator over pieces of text, none of which ends within a character; its `.answer` is
            the `Answer`, once it has ended.

        Raises:
            InvalidInput, PromptTooLong, VersionUnavailable, ClosedError: as `ask`; what happens
                later is raised by the iterator.
        """
        checked_timeout(timeout)
        return AnswerStream(self.streaming("Session.stream", question, options), timeout)

    def streaming(self, call: str, question: str | Messages, options: AskOptions) -> Submit:
        """What `stream` asks, once it is told who hears of the text."""
        check_known(call, options, AskOptions)
        settings, wanted = wanted_of(options)
        core, encoder, record = self._core, self._encoder, self._record
        return lambda on_text: given_or_submitted(
            core, encoder, record, question, settings, wanted, on_text
        )

    def flash(self, question: str, **options: Unpack[FlashOptions]) -> FlashQuery:
        """Registers a question: from now on it is answered, in idle time, at every new version.

        Args:
            question: its text; each text once.
            max_tokens: of the answer; None for 16.
            choices: score these and answer with the best; not together with `stop`.
            stop: strings that end the answer, instead of the template's own.
            when: which answers are news; None: those whose text differs from the one before.
            on_fire: called with each answer that is news, on a thread for callbacks; an exception
                in it is logged.
            min_interval_s: answer it no more often than that.
            deadline_s: once its answer has been out of date for so long, it is as urgent as an ask.
            staleness_s: how old its answer may become while the session goes on reading, as far as
                that leaves half of the device to reading; None for the engine's
                (`EngineConfig.flash_staleness_s`).

        Raises:
            FlashLimit: the session has as many as it may.
            InvalidInput, PromptTooLong: the question cannot be asked, or is registered already.
        """
        self._core.check_may_note()
        query, noted = self.noting_flash(question, **options)
        self._core.settled(noted)
        return query

    def noting_flash(
        self, question: str, **options: Unpack[FlashOptions]
    ) -> tuple[FlashQuery, PendingWrite | None]:
        """What `flash` registers, and waits for; one that a journal brought back is the same if all
        is equal."""
        check_known("Session.flash", options, FlashOptions)
        core, record = self._core, self._record
        one, written = new_registered(self._encoder, question, **options), None
        with core.changing(record):
            core.journal_writer.check()
            record.check_open()
            if (same := record.flash.taken_up(one)) is not None:
                one = same
            else:
                record.flash.expect(one)
                kept = asked_from_now_on(record.log_key, "flash", one.id, flash_json(one))
                written = core.journal_writer.append(kept, lambda: self._registered(one))
        return FlashQuery(core, record, one), written

    def _registered(self, one: Registered) -> None:
        self._record.flash.accept(one, self._core.clock())
        self._core.state.touch(self._record)

    def flashes(self) -> list[FlashQuery]:
        """The registered questions, in the order of registration."""
        with self._core.lock:
            registered = list(self._record.flash)
        return [FlashQuery(self._core, self._record, one) for one in registered]

    def flash_of(self, question: str) -> FlashQuery | None:
        """The registered question of that text; None if there is none. Does not wait for the
        engine's lock, however busy it is."""
        registered = self._record.flash.of_text(question)
        return None if registered is None else FlashQuery(self._core, self._record, registered)

    def unflash(self, flash_id: str) -> None:
        """Forgets a registered question.

        Raises:
            InvalidInput: there is none of that name.
        """
        self._core.check_may_note()
        self._core.settled(self.noting_unflash(flash_id))

    def noting_unflash(self, flash_id: str) -> PendingWrite | None:
        """What `unflash` waits for; an answer under way is forgotten."""
        core, record = self._core, self._record
        with core.changing(record):
            core.journal_writer.check()
            record.check_open()
            record.flash.check_there(flash_id)
            return core.journal_writer.append(
                no_longer_asked(record.log_key, "flash", flash_id),
                lambda: self._unregistered(flash_id),
            )

    def _unregistered(self, flash_id: str) -> None:
        self._record.flash.discard(flash_id)
        self._core.state.touch(self._record)

    def set_window(self, window: Window | None) -> None:
        """Another window for this session, from now on; None to keep all that is there.

        What has left does not come back. The age of entries that were read before it had any counts
        from now on.

        Raises:
            InvalidInput: it is larger than the session, or smaller than an entry that waits.
            CapacityExceeded: None, and what waits does not fit behind what is there.
            JournalError, ClosedError: as `push`.
        """
        self._core.check_may_note()
        self._core.settled(self.noting_window(window))

    def noting_window(self, window: Window | None) -> PendingWrite | None:
        """What `set_window` waits for."""
        decode = self._encoder.tokenizer.decode
        return set_window(
            self._core, self._record, checked_window(window), lambda one: decode(one.tolist())
        )

    def fork(self, id: str | None = None, *, version: int | None = None) -> Session:
        """A session that has read what this one has, and from then on goes its own way; waits for
        the end of an entry that is half read. The two share their cells, and a copy is made of what
        one of them goes on to write. Flash queries and what waits in the queue stay here.

        Args:
            id: its name; None for one of our own.
            version: an earlier one that it is to have read, and goes on from; None for the newest.

        Raises:
            InvalidInput: this session has no such version, or the id is in use or malformed.
            VersionUnavailable: its cells are gone.
            BudgetExceeded: there are no cells for one more session.
            ClosedError: this session or the engine is closed.
        """
        self._core.check_may_wait()
        record, future = self.forking(id, version)
        with self.or_closed(record):
            self._core.outcome(future, None, "the session was not forked")
            self._core.settled(record.written)
        return self.of(record)

    def forking(self, id: str | None, version: int | None) -> tuple[SessionRecord, Future[None]]:
        """What `fork` makes, and waits for."""
        return self._manager.fork(self._record, id, version)

    def of(self, record: SessionRecord) -> Session:
        """Another session of the same engine."""
        return Session(self._core, self._manager, self._encoder, record, self._export)

    def or_closed(self, record: SessionRecord) -> AbstractContextManager[None]:
        """Closes a new session if whoever made it does not get it after all."""
        return self._core.or_closed(record)

    def __enter__(self) -> Session:
        return self

    def prepare(
        self,
        entries: str | Sequence[str],
        client: str | None = None,
        client_seq: int | None = None,
        strict: bool = False,
    ) -> NewEntries:
        """The first half of `push`: tokens, and keys where the policy wants them."""
        return new_entries(self._encoder, self._record, entries, client, client_seq, strict)

    def reads_first(self, new: NewEntries) -> Callable[[], None] | None:
        """What of the journal the second half of `push` would read, while its caller waits; None
        for nothing."""
        return reads_first(self._core, self._record, new)

    def push_prepared(self, new: NewEntries) -> Pushed | Future[None]:
        """The second half of `push`; a future to wait for, if there is no room now."""
        return push(self._core, self._record, new)

    def give_up(self, new: NewEntries) -> None:
        """Nobody waits any more for room for a push."""
        leave_line(self._core, self._record, new)
