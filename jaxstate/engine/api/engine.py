"""The engine, as its user holds it: a model, a loop on a thread of its own, and sessions.

Comes in: a model and bounds. Goes out: sessions, answers of many at once, metrics. Does not know:
how a step is chosen or computed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypedDict, Unpack

from jaxstate.engine.api.session import Session
from jaxstate.engine.core.asks import converse, submit
from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.loop import EngineLoop
from jaxstate.engine.core.metrics import EngineMetrics
from jaxstate.engine.core.results import Delivery
from jaxstate.engine.core.session_manager import SessionManager
from jaxstate.engine.durability.recovery import Recovery
from jaxstate.engine.durability.transfer import Durable, opened_journal
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.pool_size import PoolSize, pool_size
from jaxstate.engine.executor.protocol import Executor
from jaxstate.engine.requests.answer_stream import AnswerStream, Submit
from jaxstate.engine.requests.encoding import (
    PromptEncoder,
    Settings,
    SettingsOptions,
    settings_of,
)
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.sessions.residence import Residency, checked_residency
from jaxstate.engine.types.events import checked_timeout
from jaxstate.engine.types.options import EngineConfig, QueuePolicy, check_known, checked_policy
from jaxstate.engine.types.values import Answer
from jaxstate.engine.types.window import Window, checked_window
from jaxstate.errors import (
    ClosedError,
    InvalidInput,
    JaxstateError,
    SnapshotDamaged,
    UnknownSession,
)
from jaxstate.model.bundle import Model
from jaxstate.persist.journal import PendingWrite
from jaxstate.records import Durability, checked_path, checked_type, shown
from jaxstate.text import Messages

Progress = Callable[[int, int], None]


_log = logging.getLogger("jaxstate")


class WarmUp:
    """A thread that compiles in the background.

    Args:
        compile_steps: compiles all, calls the first argument with (compiled, all) after each, and
            stops early once the second returns True.
        progress: is called on that thread.
    """

    def __init__(
        self,
        compile_steps: Callable[[Progress, Callable[[], bool]], None],
        progress: Progress | None,
    ) -> None:
        self._compile, self._progress = compile_steps, progress
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="jaxstate-compiler", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None) -> None:
        """Waits until everything is compiled.

        Raises:
            TimeoutError: it takes longer.
            JaxstateError: a step does not compile, or the engine was closed meanwhile.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the engine's steps are not all compiled after {timeout} s")
        if self._error is not None:
            raise JaxstateError(f"a step does not compile: {self._error}") from self._error
        if self._stopped.is_set():
            raise JaxstateError("the engine was closed before all of its steps were compiled")

    def stop(self) -> None:
        """Ends it; a step that is being compiled is waited for."""
        if not self._ended.is_set():
            self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._compile(self._progress or _nothing, self._stopped.is_set)
        except Exception as error:
            _log.exception("a step does not compile; whoever uses it will see why")
            self._error = error
        finally:
            self._ended.set()


def _nothing(done: int, total: int) -> None:
    """Progress that nobody wants to see."""


class OpenOptions(TypedDict, total=False):
    """How a session is opened: as for `Engine.open`."""

    prefix: str
    tenant: str
    reserve: int | None
    residency: Residency
    policy: QueuePolicy | None
    window: Window | None


class EngineOptions(TypedDict, total=False):
    """How an engine is made: as for `Engine`."""

    cells: int | None
    memory: float | None
    session_cells: int | None
    sessions: int
    config: EngineConfig | None
    warm_up: bool
    progress: Callable[[int, int], None] | None
    journal: str | os.PathLike[str] | None
    durability: Durability


class SessionHost:
    """What engines have in common.

    Args:
        core: where sessions leave what they want.
        manager: brings them into its records.
        encoder: of the model.
        durable: the journal, if there is one.
    """

    def __init__(
        self, core: EngineCore, manager: SessionManager, encoder: PromptEncoder, durable: Durable
    ) -> None:
        self._core = core
        self._manager = manager
        self._encoder = encoder
        self._durable = durable

    def open(
        self,
        id: str | None = None,
        *,
        flash: Sequence[str] = (),
        **options: Unpack[OpenOptions],
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
            window: what of its entries stays in its context behind the prefix, for a stream that
                does not end; None for all, until the session is full.
            flash: questions to register.

        Raises:
            InvalidInput: the id is in use or malformed, a question cannot be asked, or the window
                is larger than the session.
            BudgetExceeded: the engine's cells, or the tenant's, are spoken for.
            CapacityExceeded: prefix or reserve do not fit into a session.
            JournalError: the journal could not be written.
            ClosedError: the engine is closed.
        """
        check_known("Engine.open", options, OpenOptions)
        questions = checked_questions(flash)
        self._core.check_may_note()
        session, noted = self.noting_open(id, **options)
        with session.or_closed(session.record):
            self._core.settled(noted)
            for question in questions:
                session.flash(question)
        return session

    def noting_open(
        self,
        id: str | None,
        *,
        prefix: str = "",
        tenant: str = "default",
        reserve: int | None = None,
        residency: Residency = "evictable",
        policy: QueuePolicy | None = None,
        window: Window | None = None,
    ) -> tuple[Session, PendingWrite | None]:
        """What `open` makes, and waits for."""
        chosen = self._core.config.queue_policy if policy is None else checked_policy(policy)
        record, noted = self._manager.open(
            id,
            prefix,
            self._encoder.opening(prefix),
            chosen,
            first_place=self._encoder.first_place(prefix),
            tenant=tenant,
            reserve=reserve,
            pinned=checked_residency(residency),
            window=checked_window(window),
        )
        return self._handle(record), noted

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
        chosen = self._core.config.queue_policy if policy is None else checked_policy(policy)
        place = checked_path("path", path)
        self._core.check_may_wait()
        saved = self._manager.load(place)
        version = saved_entries(place, saved.notes)
        record, noted = self._manager.restore(id, saved, version, chosen, tenant=tenant)
        with self._core.or_closed(record):
            self._core.settled(noted)
        return self._handle(record)

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
        self._core.check_may_wait()
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
        self._core.check_may_wait()
        return self._durable.erase(id)

    def publish_prefix(self, prefix: str) -> None:
        """Declares a prefix public: sessions of all tenants that open with it share its cells.

        For the operator to decide, since it tells every tenant whether others use it. Sessions that
        are open already are not changed.

        Raises:
            InvalidInput: the prefix is no text.
        """
        self._manager.publish(self._encoder.opening(prefix))

    def ask_many(
        self,
        question: str,
        sessions: Sequence[Session] | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[SettingsOptions],
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
        check_known("Engine.ask_many", options, SettingsOptions)
        asked = self.submit_many(question, sessions, **options)
        return self._core.outcomes_of(asked, timeout, "not every session answered")

    def submit_many(
        self,
        question: str,
        sessions: Sequence[Session] | None = None,
        **options: Unpack[SettingsOptions],
    ) -> list[AskFuture]:
        """Like `ask_many`, but returns a future for each session at once."""
        check_known("Engine.submit_many", options, SettingsOptions)
        settings = settings_of(**options)
        if sessions is not None:
            return self._submitted(sessions, question, settings)
        while True:
            try:
                return self._submitted(self.sessions(), question, settings)
            except ClosedError:  # one of them was closed while we looked
                if self._core.ended is not None or not self._core.owner.is_here:
                    raise

    def _submitted(
        self, sessions: Sequence[Session], question: str, settings: Settings
    ) -> list[AskFuture]:
        if isinstance(sessions, Session) or not isinstance(sessions, Sequence):
            raise InvalidInput(f"sessions={shown(sessions)} must be a list of sessions")
        wanted = "a session of this engine"
        records = [
            checked_type(f"sessions[{place}]", one, Session, wanted).record
            for place, one in enumerate(sessions)
        ]
        with self._core.lock:
            for record in records:
                if not record.closed and self._core.state.records.get(record.key) is not record:
                    raise InvalidInput(f"session {record.id!r} is not of this engine; ask its own")
        return submit(self._core, self._encoder, records, question, settings)

    def chat(
        self,
        messages: Messages,
        *,
        tenant: str = "default",
        timeout: float | None = None,
        **options: Unpack[SettingsOptions],
    ) -> Answer:
        """Answers a conversation that no session has read. Nothing of it is kept, but for cells of
        its beginning, which a later one of the tenant with the same beginning shares.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text}, a system message
                first if at all, then the user's and the assistant's in turn; the last is what is
                asked.
            tenant: who asks.
            timeout: seconds at most; None for ever.
            max_tokens: of the answer; None for as many as a tail holds (`StepConfig.tail_cells`).
            choices, stop, temperature, top_p, seed: as for `Session.ask`.

        Raises:
            InvalidInput, PromptTooLong, CapacityExceeded: it cannot be asked.
            BudgetExceeded: there are no cells for it.
            TimedOut, StepFailed, ClosedError: as `Session.ask`.
        """
        checked_timeout(timeout)
        check_known("Engine.chat", options, SettingsOptions)
        future = self.submit_chat(messages, tenant=tenant, **options)
        return self._core.outcome(future, timeout, "the conversation was not answered")

    def submit_chat(
        self, messages: Messages, *, tenant: str = "default", **options: Unpack[SettingsOptions]
    ) -> AskFuture:
        """Like `chat`, but returns a future at once; cancelling it ends it."""
        check_known("Engine.submit_chat", options, SettingsOptions)
        return self._converse(messages, tenant, settings_of(**options), None)

    def stream_chat(
        self,
        messages: Messages,
        *,
        tenant: str = "default",
        timeout: float | None = None,
        **options: Unpack[SettingsOptions],
    ) -> AnswerStream:
        """Like `chat`, but gives the text in pieces, as `Session.stream`."""
        checked_timeout(timeout)
        check_known("Engine.stream_chat", options, SettingsOptions)
        return AnswerStream(self.streaming_chat(messages, tenant, options), timeout)

    def streaming_chat(self, messages: Messages, tenant: str, options: SettingsOptions) -> Submit:
        """What `stream_chat` asks, once it is told who hears of the text."""
        settings = settings_of(**options)
        return lambda on_text: self._converse(messages, tenant, settings, on_text)

    def _converse(
        self,
        messages: Messages,
        tenant: str,
        settings: Settings,
        on_text: Callable[[str], None] | None,
    ) -> AskFuture:
        core, manager, encoder = self._core, self._manager, self._encoder
        return converse(core, manager, encoder, messages, settings, tenant, on_text)

    def count_tokens(self, messages: Messages) -> int:
        """The tokens of a conversation as `chat` reads it.

        Raises:
            InvalidInput, CapacityExceeded: as `chat`.
        """
        opening, asked = self._encoder.conversation(messages, Settings(max_tokens=1))
        return len(opening) + len(asked.tokens)

    def session(self, id: str) -> Session:
        """The open session of that name.

        Raises:
            UnknownSession: there is none.
        """
        with self._core.lock:
            usable = {record.id: record for record in self._core.state.usable()}
        if (record := usable.get(id)) is None:
            raise UnknownSession(f"no session {id!r} is open; there are {sorted(usable)}")
        return self._handle(record)

    def sessions(self) -> list[Session]:
        """All open sessions in the order of opening, those of a journal first, by last use."""
        with self._core.lock:
            records = self._core.state.usable()
        return [self._handle(record) for record in records]

    def _handle(self, record: SessionRecord) -> Session:
        return Session(self._core, self._manager, self._encoder, record, self._durable.export)

    def metrics(self) -> EngineMetrics:
        """What the engine did so far, and how things stand."""
        return self._core.metrics()


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


class Engine(SessionHost):
    """Sessions of one model on one device.

        with jaxstate.Engine(model) as engine:
            session = engine.open(prefix="Prices of today")
            session.flash("Is the price above 100?", choices=["yes", "no"])
            receipt = session.push("09:30 101.20")
            session.wait(receipt.last)
            print(session.ask("Is the price above 100?"))

    Args:
        model: with a tokenizer.
        cells: of the pool that all sessions share, in tokens; its memory is taken at once. None for
            as many as `memory` holds, or without that for 65,536.
        memory: instead of `cells`: the share of the device's memory that the pool may take, 0 to 1.
        session_cells: what each session may hold at most; None for all of the pool, or as many as
            the model was made for.
        sessions: how many may be on the device at once; others wait on the host. It bounds the
            memory of layers with a sliding window.
        config: bounds, and how classes of work share the device.
        warm_up: compile every step in the background, those that are needed first at the front; a
            step that is used before its turn is compiled at once (`wait_warm_up` waits for all).
            Without it a step is compiled when it is first used.
        progress: called with (compiled, all) during the warm-up, on the thread that compiles.
        journal: a directory in which everything that was acknowledged is kept: an engine that is
            started on it again has all its sessions. None for none: nothing outlives the engine.
        durability: what a push, an opened session, a registered question is to outlive before the
            call returns: "memory", "os" (the end of this process, however it ends), "fsync" (also
            a machine that loses its power). Without a journal there is only "memory".
        executor: something else than the model on the default device (for tests).
        clock: monotonic seconds (for tests).

    Raises:
        TextUnavailable: the model has no tokenizer.
        InvalidInput: an argument is out of range, or `session_cells` does not fit into `cells`.
        JournalError: the journal cannot be opened, is damaged, or another engine has it.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int | None = None,
        memory: float | None = None,
        session_cells: int | None = None,
        sessions: int = 64,
        config: EngineConfig | None = None,
        warm_up: bool = True,
        progress: Callable[[int, int], None] | None = None,
        journal: str | os.PathLike[str] | None = None,
        durability: Durability = "os",
        executor: Executor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        checked_type("model", model, Model, "what jaxstate.load gives")
        if config is not None:
            checked_type("config", config, EngineConfig, "a jaxstate.EngineConfig")
        if progress is not None and not callable(progress):
            raise InvalidInput(f"progress={shown(progress)} must be a function, or None")
        place = None if journal is None else checked_path("journal", journal)
        tokenizer, template = model.text, model.template
        self._name = model.source
        with opened_journal(place, durability, tokenizer, template, model.source) as journal_writer:
            if executor is None:
                executor = _device(model, pool_size(model, cells, memory, session_cells, sessions))
            core = EngineCore(
                executor, config or EngineConfig(), clock, self._call_back, journal_writer
            )
            encoder = PromptEncoder(
                tokenizer=tokenizer,
                template=template,
                limits=executor.limits,
                stop_ids=model.stop_ids,
                vocab_size=model.config.vocab_size,
                choice_temperature=model.choice_temperature,
            )
            manager = SessionManager(core, executor)
            super().__init__(core, manager, encoder, Durable(core, manager, encoder, executor))
        self._callback_room = threading.BoundedSemaphore(core.config.events_limit)
        self._callbacks = ThreadPoolExecutor(1, thread_name_prefix="jaxstate-callbacks")
        self._loop = EngineLoop(core, executor, tokenizer)
        self._thread = threading.Thread(target=self._loop.run, name="jaxstate-loop", daemon=True)
        self._thread.start()
        self._durable.start()
        self._warm_up: WarmUp | None = None
        if warm_up and isinstance(executor, DeviceExecutor):
            self._warm_up = WarmUp(executor.warm_up, progress)
        _open.add(self)

    def wait_warm_up(self, timeout: float | None = None) -> None:
        """Waits until every step is compiled; from then on nothing compiles.

        Raises:
            TimeoutError: it takes longer than `timeout` seconds.
            JaxstateError: a step does not compile, the engine was closed meanwhile, or it was made
                with `warm_up=False`.
        """
        if self._warm_up is None:
            raise JaxstateError(
                "this engine compiles each step when it is first used; make it with warm_up=True"
            )
        self._core.owner.check()
        self._warm_up.wait(timeout)

    def close(self) -> None:
        """Ends every session and the loop; a step under way finishes. May be called twice.

        Entries that wait are not read; with a journal, what was read goes into a last snapshot, and
        the next engine reads the rest. A callback that runs is waited for, those behind it do not
        run. Not to be called from a callback of the engine's own. A program that ends without it
        does it at its end; in a forked process there is nothing to close.
        """
        if not self._core.owner.is_here:
            return
        _open.discard(self)
        if self._warm_up is not None:
            self._warm_up.stop()
        saving = self._durable.stop()
        if saving is not None and not self._ends(saving):
            _log.error("the last snapshot was given up: the device does not answer")
        self._loop.close(ClosedError("the engine was closed"))
        if not self._ends(self._thread):
            _log.error("the engine was closed around a step that does not end")
            self._loop.deliver()  # in its place: nobody is to wait for ever
        self._callbacks.shutdown(cancel_futures=True)
        self._core.cell_store.close()
        self._durable.close()

    def _ends(self, thread: threading.Thread) -> bool:
        """Waits for a thread as long as anything goes on; False if nothing does."""
        while thread.is_alive():
            before = self._loop.turns, self._durable.pieces
            thread.join(self._core.config.hang_s)
            if thread.is_alive() and before == (self._loop.turns, self._durable.pieces):
                return False
        return True

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._core.ended is not None:
            return f"Engine({self._name!r}, closed)"
        gauges = self._core.metrics().gauges
        return (
            f"Engine({self._name!r}, {gauges.sessions} sessions, {gauges.cells_held:,} of "
            f"{gauges.cells:,} cells in use)"
        )

    def _call_back(self, callback: Delivery) -> None:
        """Lets a callback run behind the others; none of them holds up the loop."""
        if self._callback_room.acquire(blocking=False):
            future = self._callbacks.submit(_logged, callback)
            future.add_done_callback(lambda _: self._callback_room.release())
            return
        _log.error("callbacks of flash queries are slower than their answers: one was dropped")
        with self._core.lock:
            self._core.recorder.count("callbacks_dropped")


def _device(model: Model, size: PoolSize) -> DeviceExecutor:
    return DeviceExecutor(
        model, session_cells=size.session_cells, cells=size.cells, sessions=size.sessions
    )


# Engines whose program may end without closing them.
_open: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_open() -> None:
    """At the end of the program, before the threads of pools are joined, which a last snapshot
    needs."""
    for engine in tuple(_open):
        try:
            engine.close()
        except Exception:
            _log.exception("an engine could not be closed at the end of the program")


# `atexit` would come too late: by then no pool of threads takes work.
threading._register_atexit(_close_open)  # pyright: ignore


def _logged(callback: Delivery) -> None:
    try:
        callback()
    except Exception:
        _log.exception("a callback of a flash query failed")
