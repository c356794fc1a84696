"""The lives of sessions: opened, forked, restored, brought back, captured, closed, erased.

Comes in: calls of clients, what a journal or a file has of a session. Goes out: records that are
admitted, or one clear refusal and nothing changed; futures of what only the loop's thread can do.
Does not know: how anything is computed, how steps are planned.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from jaxstate.engine.core.engine_core import ControlTask, EngineCore, refusal
from jaxstate.engine.core.state import border_of, may_be_shared, shared_cells, unavailable
from jaxstate.engine.core.window_moves import window_change
from jaxstate.engine.core.window_settings import new_window
from jaxstate.engine.executor.protocol import Executor, HostCells, Saved, Tokens
from jaxstate.engine.requests.encoding import PromptEncoder
from jaxstate.engine.sessions.context_window import Noted
from jaxstate.engine.sessions.record import SavedCells, SessionRecord
from jaxstate.engine.sessions.residence import Residence, ResidencyState
from jaxstate.engine.sessions.token_log import TokenLog, VersionEnd
from jaxstate.engine.types.options import QueuePolicy, kept_name
from jaxstate.engine.types.window import Window
from jaxstate.errors import BudgetExceeded, CapacityExceeded, InvalidInput
from jaxstate.persist.changes import (
    SessionOpened,
    both,
    ended,
    erased,
    opened,
    reserve_given_up,
)
from jaxstate.persist.journal import PendingWrite
from jaxstate.records import checked_int
from jaxstate.text import Place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origins:
    """What a session is made of: a text, or a saved session, or another session.

    Attributes:
        prefix: the text.
        opening: the same in tokens, int32 [n], with what the template wrote that day.
        version: that it starts at.
        log: what the saved session had read.
        parent: the key of the session that it was forked from.
    """

    prefix: str | None = None
    opening: Tokens | None = None
    version: int = 0
    log: TokenLog | None = None
    parent: int | None = None


def opening_of(record: SessionRecord, origins: Origins, core: EngineCore) -> SessionOpened:
    """A new session as the journal keeps it.

    Raises:
        InvalidInput: its policy cannot be kept.
    """
    residence, log, read = record.residence, origins.log, origins.opening
    if log is not None:
        read = log.tokens(0, len(log))
    return SessionOpened(
        key=record.log_key,
        id=record.id,
        tenant=residence.tenant,
        reserve=residence.reserve_blocks * core.limits.layout.block_cells,
        pinned=residence.pinned,
        policy=kept_name(record.queue.policy, core.config.queue_policy),
        prefix=origins.prefix,
        base_version=origins.version,
        base_tokens=None if read is None else token_bytes(read),
        base_ends=None if log is None else ends_bytes(log.ends(0, len(log))),
        text_fingerprint=core.journal_writer.text_fingerprint,
        parent=origins.parent,
    )


def opening_tokens(root: SessionOpened, encoder: PromptEncoder, text_fingerprint: str) -> Tokens:
    """What a session with a prefix starts with: as it was opened, if these tokenizer and template
    did it. (A template may write the date.)"""
    if root.base_tokens is not None and root.text_fingerprint == text_fingerprint:
        return tokens_of(root.base_tokens)
    return encoder.opening(root.prefix or "")


def token_bytes(tokens: Tokens) -> bytes:
    """Int32 tokens as they are kept."""
    return tokens.astype("<i4").tobytes()


def tokens_of(kept: bytes) -> Tokens:
    """The tokens again."""
    return np.frombuffer(kept, "<i4").astype(np.int32)


def ends_bytes(ends: list[tuple[int, int]]) -> bytes:
    """Pairs (entry, tokens up to its end) as they are kept."""
    return np.array(ends, "<i8").tobytes()


def ends_of(kept: bytes) -> list[tuple[int, int]]:
    """The pairs again."""
    pairs = np.frombuffer(kept, "<i8").reshape(-1, 2).tolist()
    return [(entry, count) for entry, count in pairs]


T = TypeVar("T")


_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,128}")


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{what}={name!r} must be 1 to 128 of A-Z a-z 0-9 _ . - and not dots alone"
        )


def close_session(core: EngineCore, record: SessionRecord, reason: str) -> PendingWrite | None:
    """Ends a session; its asks, waiters and subscribers hear of it.

    Returns:
        What to wait for until it has ended; None if it has.

    Raises:
        ClosedError: the engine is closed, and the session is in its journal: it comes back.
    """
    with core.lock:
        if not record.log_key:  # no journal knows it
            core.results.close(record, reason)
            core.tell_loop()
            return None
        if record.has_ended:
            return None
        if core.ended is not None:
            raise refusal(core.ended)
        core.journal_writer.check()
        record.ending = True
        end = functools.partial(_end, core, record, reason)
        return core.journal_writer.append(ended(record.log_key), end)


def _end(core: EngineCore, record: SessionRecord, reason: str) -> None:
    record.has_ended = True
    core.results.close(record, reason)


def erase_session(
    core: EngineCore, record: SessionRecord
) -> tuple[PendingWrite | None, Future[None]]:
    """Ends a session of which nothing may stay.

    Returns:
        What to wait for until the journal has forgotten it, and until the device has.
    """
    wiped: Future[None] = Future()
    with core.changing():
        core.journal_writer.check()
        record.ending = True
        erase = functools.partial(_erase, core, record, wiped)
        # Always synced before it is said to be done, whatever the engine promises for the rest.
        level = "fsync" if record.log_key else None
        return core.journal_writer.append(erased(record.log_key), erase, level=level), wiped


def _erase(core: EngineCore, record: SessionRecord, wiped: Future[None]) -> None:
    _end(core, record, "it was erased by its user")
    core.state.prefixes.forget(record.residence.chain)
    if core.ended is None:
        core.wipes.append(wiped)
    else:  # no loop is there to do it, and no pool that would stay
        wiped.set_result(None)


# The array of a saved session, beside its cells, that holds the tokens they were made of.
TOKENS = "tokens"


class SessionManager:
    """Makes sessions, and ends them.

    Args:
        core: the records and their lock.
        executor: writes and reads saved sessions.
    """

    def __init__(self, core: EngineCore, executor: Executor) -> None:
        self._core = core
        self._executor = executor

    def open(
        self,
        session_id: str | None,
        prefix: str,
        opening: Tokens,
        policy: QueuePolicy,
        *,
        first_place: Place,
        tenant: str,
        reserve: int | None,
        pinned: bool,
        window: Window | None = None,
    ) -> tuple[SessionRecord, PendingWrite | None]:
        """A new session that will read its opening first.

        Args:
            session_id: not in use; None for one of our own.
            prefix: what it starts with.
            opening: the same in tokens, int32 [n], n >= 0.
            policy: of its queue.
            first_place: what its first entry follows.
            tenant: whose it is.
            reserve: cells that are always there for it; None for none.
            pinned: whether it never leaves the device.
            window: what of its entries stays in its context; None for all.

        Returns:
            Its records, and what to wait for until it counts.

        Raises:
            InvalidInput: the id is in use, an argument malformed, or the window too large.
            BudgetExceeded: the engine's cells, or the tenant's, are spoken for.
            CapacityExceeded: opening or reserve do not fit into a session.
        """
        limits, state = self._core.limits, self._core.state
        cells = _checked_cells(opening, reserve, limits.session_cells)
        self._check_policy(policy)
        chain = state.prefixes.chain(opening, tenant)  # hashes all of it, so without the lock
        with self._core.changing():
            self._core.journal_writer.check()
            context_window = new_window(self._core, window, tenant, len(opening))
            record = self._new_record(session_id, policy, tenant, pinned=pinned)
            record.residence.chain = chain
            self._admit(record, state.budget.blocks_of(cells), len(opening))
            record.window, record.frozen_cells = context_window, len(opening)
            record.queue.open_with(opening)
            record.opened = record.opens = True
            record.first_place = first_place
            if not state.budget.has_line and state.budget.has_room_for(record):
                state.budget.arrive(record, state.steps)
            return record, self._note(record, Origins(prefix=prefix, opening=opening))

    def open_passing(self, opening: Tokens, tenant: str) -> SessionRecord:
        """A session for one answer to a conversation: no user sees it, no journal hears of it.

        Args:
            opening: the conversation in tokens, int32 [n], but for what is asked.
            tenant: whose it is.

        Raises:
            InvalidInput: the tenant's name is malformed.
            BudgetExceeded, CapacityExceeded: as `open`.
        """
        _check_name("tenant", tenant)
        state = self._core.state
        _check_holds("the conversation", len(opening), self._core.limits.session_cells)
        chain = state.prefixes.chain(opening, tenant)
        with self._core.changing():
            # No user's session can have that name.
            record = self._add_record(f"~{state.new_key()}", "reject", tenant)
            state.by_id[record.id] = record
            record.passing, record.residence.chain = True, chain
            self._admit(record, 0, len(opening))
            record.queue.open_with(opening)
            record.opened = record.opens = True
            if not state.budget.has_line and state.budget.has_room_for(record):
                state.budget.arrive(record, state.steps)
            return record

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a saved session, on the caller's thread."""
        return self._executor.load(path)

    def restore(
        self,
        session_id: str | None,
        saved: Saved,
        version: int,
        policy: QueuePolicy,
        *,
        tenant: str,
    ) -> tuple[SessionRecord, PendingWrite | None]:
        """A session from a saved one; its cells come to the device as soon as there is room.

        Returns:
            Its records, and what to wait for until it counts.

        Raises:
            InvalidInput: it was saved without its tokens.
        """
        self._check_policy(policy)
        tokens = _tokens_of(saved)
        with self._core.changing():
            self._core.journal_writer.check()
            record = self._new_record(session_id, policy, tenant, pinned=False)
            residence = record.residence
            residence.log.append(tokens, [(version, len(tokens))])
            self._admit(record, 0, saved.cells.cells)
            self._core.keep_cells(record, saved.cells, wanted=True)
            residence.landed_cells, residence.coming = saved.cells.cells, True
            record.frozen_cells = saved.cells.cells
            record.number_from(version)
            record.commit(version, saved.cells.cells, self._core.clock())
            record.opened = True
            return record, self._note(record, Origins(version=version, log=residence.log))

    def come_back(self, opening: SessionOpened, recovered: RecoveredState) -> SessionRecord:
        """A session that a journal has; its cells come to the device as soon as there is room.

        Args:
            opening: how it came to be.
            recovered: what is known of it.

        Raises:
            BudgetExceeded, CapacityExceeded: this engine has no cells for all that it holds.
        """
        core, state, log = self._core, self._core.state, recovered.log
        cells = (
            len(log) + len(recovered.opening) + sum(len(tokens) for _, tokens in recovered.entries)
        )
        frozen_cells = log.first_end() or len(recovered.opening)
        context_window = new_window(core, recovered.window, opening.tenant, frozen_cells)
        if context_window is not None:
            cells = min(cells, max(len(log), context_window.most_cells))
        _check_holds(opening.id, cells, core.limits.session_cells)
        chain = state.prefixes.chain(recovered.prefix, opening.tenant)
        with core.changing():
            record = self._new_record(
                opening.id, recovered.policy, opening.tenant, pinned=opening.pinned
            )
            record.log_key = opening.key
            self._admit(record, state.budget.blocks_of(opening.reserve), cells)
            residence, now_s = record.residence, core.clock()
            residence.log, residence.landed_cells = log, len(log)
            residence.chain = chain
            record.window, record.frozen_cells = context_window, frozen_cells
            if context_window is not None:
                context_window.note_all(
                    (number, Noted(now_s - age_s, key)) for number, age_s, key in recovered.noted
                )
            # What it sees at versions before the move is not what they saw.
            newest = max((number for number, _ in recovered.entries), default=0)
            record.ahead = newest > log.base_version >= max(recovered.version, 0)
            if recovered.version >= 0:
                record.commit(recovered.version, len(log), now_s)
            else:
                record.queue.open_with(recovered.opening)
            record.queue.bring_back(recovered.entries, recovered.last, now_s)
            for name in ("entries_pushed", "entries_recovered"):
                core.recorder.count(name, len(recovered.entries))
            record.receipts = core.journal_writer.receipts(opening.key)
            try:
                recovered.prepare(record)
            except BaseException:
                core.results.close(record, "it could not be brought back")
                raise
            record.opened = record.opens = True
            record.first_place = recovered.first_place
            return record

    def come_in(self) -> None:
        """Sessions that came back are brought to the device, before anybody needs them, as far as
        there is room for all of them: in the order of the records."""
        with self._core.lock:
            room, blocks = self._core.state.budget, 0
            for record in tuple(self._core.state.records.values())[: self._core.limits.sessions]:
                blocks += max(record.residence.reserve_blocks, record.residence.ordered_blocks)
                if blocks > room.blocks:
                    return
                record.residence.coming = True
                room.update(record)

    def _check_policy(self, policy: QueuePolicy) -> None:
        if self._core.journal_writer.journal is not None:
            kept_name(policy, self._core.config.queue_policy)

    def capture(
        self, record: SessionRecord, notes: dict[str, str | int]
    ) -> Future[Callable[[str | os.PathLike[str]], None]]:
        """Copies a session to the host at a version's end, which the notes get as "entries"; the
        future's result writes it, on whatever thread."""
        with self._core.changing():
            record.check_open()
            _check_whole(record)
            future: Future[Callable[[str | os.PathLike[str]], None]] = Future()
            self.run_at_version_end(
                ControlTask(
                    act=lambda: self._captured(record, {**notes, "entries": record.version}),
                    booked=lambda _: None,
                    future=future,
                    session=record,
                    version_end=record,
                )
            )
            return future

    def _captured(
        self, record: SessionRecord, notes: dict[str, str | int]
    ) -> Callable[[str | os.PathLike[str]], None]:
        residence = record.residence
        with self._core.lock:
            record.check_open()
            _check_whole(record)
            count = residence.table.cells
            seen = residence.seen(count)
        cells = self._executor.fetch(seen, count)
        if cells.cells:
            tokens = residence.log.tokens(0, cells.cells)
            cells = HostCells(cells=cells.cells, arrays={**cells.arrays, TOKENS: tokens})
        return lambda path: self._executor.save(path, cells, notes)

    def erase(self, record: SessionRecord) -> None:
        """Ends a session of which nothing stays; waits for the journal, the device and the disk.

        Raises:
            JournalError: the journal could not be written, and the session is still open; or what
                was erased could not be removed from the journal's log.
            ClosedError: the engine is closed.
        """
        self._core.check_may_wait()
        noted, wiped = erase_session(self._core, record)
        self._core.settled(noted)
        wiped.result()
        self._core.cell_store.rest()
        self._core.journal_writer.purge()

    def suspend(self, record: SessionRecord) -> Future[None]:
        """Its cells leave the device, and it gives its reserve up."""
        core = self._core
        with core.changing() as state:
            record.check_open()
            if record.residence.pinned:
                raise InvalidInput(
                    f"session {record.id!r} is pinned, so it stays on the device; close it, or "
                    'open it with residency="evictable"'
                )
            residence = record.residence
            residence.coming = False
            if residence.reserve_blocks:
                core.journal_writer.append(reserve_given_up(record.log_key), level="memory")
            future: Future[None] = Future()
            if residence.on_device:
                residence.become(ResidencyState.LEAVING)
                record.leave_waiters = _wanted(record.leave_waiters, future)
            else:
                residence.reserve_blocks = 0
                future.set_result(None)
                core.results.moved(record)
            state.budget.update(record)
            return future

    def resume(self, record: SessionRecord) -> Future[None]:
        """Its cells come to the device as soon as there is room, before anybody needs them."""
        core = self._core
        with core.changing() as state:
            record.check_open()
            residence, future = record.residence, Future[None]()
            residence.used_s = core.clock()
            if residence.state is ResidencyState.LEAVING:
                residence.become(ResidencyState.DEVICE)
            if residence.whole:
                future.set_result(None)
            else:
                residence.coming = not residence.on_device
                record.come_waiters = _wanted(record.come_waiters, future)
            core.results.moved(record)
            state.budget.update(record)
            return future

    def publish(self, opening: Tokens) -> None:
        """An opening that sessions of all tenants share from now on."""
        with self._core.lock:
            self._core.state.prefixes.publish(opening)

    def fork(
        self,
        parent: SessionRecord,
        session_id: str | None,
        version: int | None = None,
    ) -> tuple[SessionRecord, Future[None]]:
        """A session that has read what another has, and goes its own way.

        Args:
            parent: the other one's.
            session_id: not in use; None for one of our own.
            version: what it has read; None for all that the other has at that moment.

        Returns:
            It, and when it can be used.

        Raises:
            InvalidInput: the other has no such version, or the id is in use or malformed.
            VersionUnavailable: it does not hold that version.
        """
        with self._core.changing() as state:
            parent.check_open()
            version_end = None if version is None else border_of(parent, "version", version)
            future: Future[None] = Future()
            if version_end is not None and not may_be_shared(state, parent, version_end):
                raise unavailable(state, parent, version_end, forks=True)
            tenant = parent.residence.tenant
            record = self._new_record(session_id, parent.queue.policy, tenant, pinned=False)
            self.run_at_version_end(
                ControlTask(
                    act=lambda: self._fork_now(parent, record, version_end),
                    booked=lambda _: None,
                    future=future,
                    session=record,
                    version_end=parent,
                    creates=True,
                    midway=version_end is not None,
                )
            )
            return record, future

    def _fork_now(
        self,
        parent: SessionRecord,
        record: SessionRecord,
        version_end: VersionEnd | None,
    ) -> None:
        """On the loop's thread: a table that shares its blocks, nothing for the device to do."""
        state = self._core.state
        with self._core.lock:
            parent.check_open()
            record.check_open()
            # More may have been read since it was asked for, and the window have moved.
            wanted = parent.version if version_end is None else version_end.version
            version_end = border_of(parent, "version", wanted)
            if not may_be_shared(state, parent, version_end):
                raise unavailable(state, parent, version_end, forks=True)
            self._has_read(record, parent, version_end)
            if self._share(record, parent):
                state.budget.update(parent)
            self._note_fork(record, parent)
            self._core.results.reached(record)

    def _has_read(
        self, record: SessionRecord, parent: SessionRecord, version_end: VersionEnd
    ) -> None:
        """A new session is at a version of another's; its cells are to be computed yet."""
        residence = record.residence
        residence.log = parent.residence.log.copy(version_end.cells)
        record.first_place, record.frozen_cells = parent.first_place, parent.frozen_cells
        residence.landed_cells = version_end.cells
        if parent.window is not None:
            record.window = parent.window.of(parent.window.window, self._core.clock())
        self._core.state.budget.admit(record, 0, version_end.cells)
        record.number_from(version_end.version)
        record.commit(version_end.version, version_end.cells, self._core.clock())
        record.opened = True

    def _note_fork(self, record: SessionRecord, parent: SessionRecord) -> None:
        """The pieces of its parent's snapshot are its own; the journal hears of it."""
        record.saved = SavedCells(segments=parent.saved.until(record.seen_cells))
        self._note(record, Origins(version=record.version, parent=parent.log_key))

    def _share(self, record: SessionRecord, parent: SessionRecord) -> bool:
        """Lets it have the cells of the other's table, if there is room for one session more."""
        state, residence, source = self._core.state, record.residence, parent.residence
        cells = shared_cells(parent, record.version_end)
        blocks = state.budget.blocks_of(record.seen_cells) - state.budget.blocks_of(cells)
        if not state.budget.has_room(state.tables.fork_blocks(cells) + blocks):
            return False
        residence.table = state.tables.fork(source.table, cells)
        state.budget.arrive(record, state.steps)
        residence.there_cells, residence.slid_cells = cells, source.slid_cells
        residence.oldest_cells = min(state.oldest_held(source), cells)
        return True

    def _admit(self, record: SessionRecord, reserve_blocks: int, cells: int) -> None:
        """Into the budget, or out of the records again."""
        try:
            self._core.state.budget.admit(record, reserve_blocks, cells)
        except BudgetExceeded:
            self._forget(record)
            raise

    def free_name(self, name: str) -> str:
        """A name that a session may have.

        Raises:
            InvalidInput: it is malformed, or in use.
        """
        _check_name("id", name)
        with self._core.lock:
            self._check_free(name)
        return name

    def _check_free(self, name: str) -> None:
        state = self._core.state
        if name in state.by_id:
            raise InvalidInput(
                f"session {name!r} is open already: engine.session({name!r}), or choose another id"
            )
        if name in state.lost:
            raise InvalidInput(
                f"session {name!r} is in the journal, but could not be brought back: "
                f"{state.lost[name]}. Choose another id, or remove it with engine.erase({name!r})"
            )

    def _forget(self, record: SessionRecord) -> None:
        """It never was."""
        self._core.state.records.pop(record.key)
        self._core.state.touch(record)
        self._core.state.by_id.pop(record.id, None)

    def _new_record(
        self, session_id: str | None, policy: QueuePolicy, tenant: str, *, pinned: bool
    ) -> SessionRecord:
        state = self._core.state
        name = self._free_id() if session_id is None else session_id
        _check_name("id", name)
        self._check_free(name)
        _check_name("tenant", tenant)
        record = state.by_id[name] = self._add_record(name, policy, tenant, pinned=pinned)
        return record

    def _add_record(
        self, name: str, policy: QueuePolicy, tenant: str, *, pinned: bool = False
    ) -> SessionRecord:
        """A session that has read nothing."""
        state = self._core.state
        key, table, used_s = state.new_key(), state.tables.new(), self._core.clock()
        residence = Residence(name=key, table=table, tenant=tenant, pinned=pinned, used_s=used_s)
        record = SessionRecord(key, name, policy, self._core.config, residence)
        state.records[record.key] = record
        state.touch(record)
        return record

    def _free_id(self) -> str:
        taken = {*self._core.state.by_id, *self._core.state.lost}
        return next(name for n in itertools.count(1) if (name := f"s{n}") not in taken)

    def run_at_version_end(self, job: ControlTask[T]) -> None:
        """A job that needs a session on the device, at the end of an entry; the caller holds the
        lock."""
        self._core.jobs.append(cast("ControlTask[object]", job))
        assert job.version_end is not None
        job.version_end.tasks_waiting += 1
        job.version_end.residence.used_s = self._core.clock()
        job.version_end.residence.coming = not job.version_end.residence.on_device
        self._core.state.budget.update(job.version_end)

    def _note(self, record: SessionRecord, origins: Origins) -> PendingWrite | None:
        """Tells the journal of a new session, which is closed if it cannot be kept."""
        core = self._core
        if core.journal_writer.journal is None:
            return None
        record.log_key = core.journal_writer.new_key()
        record.receipts = core.journal_writer.receipts(record.log_key)
        change, log = opened(opening_of(record, origins, core)), record.residence.log
        if record.window is not None or log.base_version >= 0:
            change = both(change, window_change(record.log_key, record.window, log))
        record.written = core.journal_writer.append(change)
        return record.written


def _check_whole(record: SessionRecord) -> None:
    """Refuses to keep cells that could not be gone on from: a file does not say that some are
    missing before them.

    Raises:
        InvalidInput: the session's window has slid.
    """
    if record.residence.slid_cells:
        raise InvalidInput(
            f"session {record.id!r} has slid: its cells cannot be saved. A journal keeps it, or "
            'give it a window with mode="exact", and save it once that has moved'
        )


def _wanted(waiters: list[Future[None]], future: Future[None]) -> list[Future[None]]:
    """One more; those that were given up would otherwise stay until the next move."""
    return [*(one for one in waiters if not one.cancelled()), future]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecoveredState:
    """What a journal knows of a session.

    Attributes:
        log: what its cells are made of; empty if it is to be read from its opening on.
        version: that the log ends at; -1 for none.
        prefix: what it starts with, in tokens, int32 [n], as far as others may share it.
        opening: the same, if it is still to be read.
        entries: number and tokens of those that are still to be read.
        last: number of the last entry.
        policy: of its queue.
        first_place: what its first entry follows.
        prepare: leaves in the records, under the lock, what else is known.
        window: what of its entries stays in its context; None for all.
        noted: of entries in its context, or that are still to be read: number, seconds since it was
            pushed, and key in the window.
    """

    log: TokenLog
    version: int
    prefix: Tokens
    opening: Tokens
    entries: Sequence[tuple[int, Tokens]]
    last: int
    policy: QueuePolicy
    first_place: Place
    prepare: Callable[[SessionRecord], None]
    window: Window | None = None
    noted: Sequence[tuple[int, float, str | None]] = ()


def _tokens_of(saved: Saved) -> Tokens:
    """What a saved session had read. Nothing is not missing: arrays without elements are not kept.

    Raises:
        InvalidInput: it was saved without it.
    """
    tokens = saved.cells.arrays.get(TOKENS)
    if tokens is not None:
        return tokens.astype(np.int32)
    if saved.cells.cells == 0:
        return np.zeros(0, np.int32)
    raise InvalidInput(
        "this session was saved without the tokens that it had read (by a version before 0.3), so "
        "nothing could be computed again; read its text into a new one"
    )


def _check_holds(session_id: str, cells: int, most: int) -> None:
    if cells > most:
        raise CapacityExceeded(
            f"session {session_id!r} holds {cells} cells; a session of this engine holds {most}: "
            "start it with more session_cells="
        )


def _checked_cells(opening: Tokens, reserve: int | None, session_cells: int) -> int:
    """The reserve, which is within what a session holds, as the opening is."""
    if len(opening) > session_cells:
        raise CapacityExceeded(
            f"the opening has {len(opening)} tokens; a session of this engine holds "
            f"{session_cells} (session_cells=)"
        )
    if reserve is None:
        return 0
    cells = checked_int("reserve", reserve)
    if cells < 0:
        raise InvalidInput(f"reserve={reserve} must not be negative")
    if cells > session_cells:
        raise CapacityExceeded(
            f"reserve={reserve}: a session of this engine holds {session_cells} cells at most "
            "(session_cells=)"
        )
    return cells
