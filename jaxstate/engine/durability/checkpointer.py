"""Snapshots in the background: a session's cells on disk, so that a restart need not read it again.

Comes in: sessions that have read something since their last snapshot. Goes out: pieces on disk, and
a row of the journal that makes them the newest snapshot, in one transaction. Cells come from the
device between two steps, one piece at a time, so that nobody waits for more than a piece; files are
written on this thread alone. A snapshot that fails is logged, and tried again with the next round.
Does not know: how sessions come back (`recovery`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass

import numpy as np

from jaxstate.engine.core.engine_core import ControlTask, EngineCore
from jaxstate.engine.core.session_manager import SessionManager, ends_bytes, token_bytes
from jaxstate.engine.durability.checkpoint_loader import CheckpointLoader
from jaxstate.engine.executor.protocol import Executor, HostCells, Tokens
from jaxstate.engine.sessions.record import SavedCells, SessionRecord
from jaxstate.engine.sessions.token_log import TokenLog
from jaxstate.errors import ClosedError
from jaxstate.persist.changes import SegmentRow, SnapshotRow, snapshot_taken
from jaxstate.persist.files import Arrays
from jaxstate.persist.journal import Journal
from jaxstate.persist.schema import checksum_of
from jaxstate.persist.segments import Segment, cuts, part_of, segment_name

_log = logging.getLogger("jaxstate")


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Cells first .. last - 1 of a session, on the host, and the version that ends with them."""

    first: int
    last: int
    version: int
    arrays: Arrays


class _WindowMoved(Exception):
    """Pieces of a snapshot were taken before and after."""


class Checkpointer:
    """Takes snapshots, on a thread of its own once it is started.

    Args:
        core: of the engine.
        manager: likewise.
        executor: writes pieces to files.
        journal: names the snapshots, and has their pieces.
    """

    def __init__(
        self,
        core: EngineCore,
        manager: SessionManager,
        executor: Executor,
        journal: Journal,
    ) -> None:
        self._core = core
        self._manager = manager
        self._executor = executor
        self._journal = journal
        self._segments = journal.segments
        self._loader = CheckpointLoader(core, executor, journal)
        layout = core.limits.layout
        cell_bytes = max(1, layout.bytes_of(layout.cells, core.limits.itemsize) // layout.cells)
        self._size = max(layout.block_cells, core.config.snapshot_bytes // cell_bytes)
        self.pieces = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxstate-snapshots", daemon=True)

    def start(self) -> None:
        """From now on, every `snapshot_s` seconds."""
        self._thread.start()

    def stop(self) -> threading.Thread:
        """A last round, then no more; returns the thread that does it."""
        self._stopping.set()
        return self._thread

    def take_all(self) -> int:
        """A snapshot of every session that has read something since its last; returns how many."""
        with self._core.lock:
            records = list(self._core.state.records.values())
        taken = 0
        for record in records:
            with contextlib.suppress(ClosedError):
                taken += self.take(record)
        return taken

    def take(self, record: SessionRecord) -> bool:
        """A snapshot of one session, if there is something new, and its cells are at hand.

        Raises:
            ClosedError: the session or the engine was closed meanwhile.
        """
        if not self._is_due(record):
            return False
        try:
            log = record.residence.log
            with self._segments.claiming() as claim:
                parts = self._parts(record, claim)
                pieces = [self._kept(log, part, claim) for part in parts]
                self._publish(record, log, pieces)
            return True
        except (ClosedError, _WindowMoved) as error:
            if isinstance(error, ClosedError):
                raise
            return False  # the next round has what is there now
        except Exception:
            _log.exception("no snapshot of session %r could be taken", record.id)
            with self._core.lock:
                self._core.recorder.count("snapshots_failed")
            return False

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(self._core.config.snapshot_s)
            try:
                self.take_all()
                if not stopping:
                    self._core.journal_writer.clear_segments()
            except Exception:  # the next round comes all the same
                _log.exception("snapshots could not be taken")

    def _is_due(self, record: SessionRecord) -> bool:
        with self._core.lock:
            there = record.log_key > 0 and record.opened and not record.closed
            at_hand = record.residence.place in ("device", "host")
            return (
                there
                and at_hand
                and record.seen_cells > 0
                and not record.residence.slid_cells  # it comes back by reading what stays
                and record.version > record.saved.version
            )

    def _parts(
        self, record: SessionRecord, claim: Callable[[str], None]
    ) -> Iterator[_Part | Segment]:
        """A session's cells in pieces: those that are on disk, then the others."""
        with self._core.lock:
            cells, residence = record.seen_cells, record.residence
            shared = len(residence.chain) * self._core.limits.layout.block_cells
            kept = {(one.first, one.last): one for one in record.saved.segments}
        version_ends = cuts(shared, cells, self._size)
        for first, last in version_ends[:-1]:
            one = kept.get((first, last))
            if one is not None:
                claim(one.name)
            there = one is not None and self._segments.has(one.name)
            yield one if one is not None and there else self._fetched(record, first, last)
        yield self._fetched(record, version_ends[-1][0], None)

    def _fetched(self, record: SessionRecord, first: int, last: int | None) -> _Part:
        """A piece from the host's memory or the device; None for `last` is where the session is."""
        with self._core.lock:
            there, version = self._core.cell_store.peek(record.key), record.version
            if there is not None and there.cells == record.seen_cells:
                return self._sliced(there, first, last, version)
        future: Future[_Part] = Future()
        job = ControlTask(
            act=lambda: self._from_device(record, first, last),
            booked=lambda _: None,
            future=future,
            session=record,
            version_end=record,
        )
        with self._core.changing():
            record.check_open()
            self._manager.run_at_version_end(job)
        return future.result()

    def _sliced(self, there: HostCells, first: int, last: int | None, version: int) -> _Part:
        end = there.cells if last is None else last
        layout = self._core.limits.layout
        arrays = part_of(layout, there.arrays, there.cells, first, end)
        return _Part(first, end, version, arrays)

    def _from_device(self, record: SessionRecord, first: int, last: int | None) -> _Part:
        """On the loop's thread, at a version's end."""
        with self._core.lock:
            record.check_open()
            seen, version = record.residence.seen(record.seen_cells), record.version
        end = seen.cells if last is None else last
        part = self._executor.fetch_part(seen, first, end)
        return _Part(first, end, version, part.arrays)

    def _kept(
        self, log: TokenLog, part: _Part | Segment, claim: Callable[[str], None]
    ) -> tuple[SegmentRow, Segment, int | None]:
        """A piece that is on disk from now on, and the version that it was fetched at; None for one
        that was on disk before."""
        with self._core.lock:
            tokens = log.tokens(part.first, part.last - part.first)
            ends = log.ends(part.first, part.last)
        if isinstance(part, Segment):
            return _row(part.name, part, tokens, ends), part, None
        row = _row(_name(part, tokens, ends), part, tokens, ends)
        cells = HostCells(cells=part.last, arrays=part.arrays)
        claim(row.name)
        self.pieces += 1
        self._segments.write(
            row.name, lambda path: self._executor.save(path, cells, {"first": part.first})
        )
        return row, Segment(row.name, part.first, part.last), part.version

    def _publish(
        self,
        record: SessionRecord,
        log: TokenLog,
        pieces: list[tuple[SegmentRow, Segment, int | None]],
    ) -> None:
        """Makes them the newest snapshot, if they are all of that log: the session's window may
        have moved between two of them.

        Raises:
            _WindowMoved: it has.
        """
        core, segments = self._core, tuple(segment for _, segment, _ in pieces)
        version, cells = pieces[-1][2], segments[-1].last
        assert version is not None, "the last piece is always fetched"
        layout = core.limits.layout
        with core.lock:
            record.check_open()
            if record.residence.log is not log:
                raise _WindowMoved
            snapshot = SnapshotRow(
                session=record.log_key,
                version=version,
                cells=cells,
                bytes=layout.bytes_of(cells, core.limits.itemsize),
                fingerprint=cells_and_text(self._executor, core),
                segments=tuple(one.name for one in segments),
                answers=_answers(record, version),
            )
        new = [row for row, _, at in pieces if at is not None]
        kept = [row for row, _, at in pieces if at is None]
        self._journal.write(snapshot_taken(snapshot, new, kept, core.config.snapshot_keep))
        with core.lock:
            if record.residence.log is log:
                record.saved = SavedCells(version, segments)
            if not record.closed:
                self._loader.keep(record, snapshot.bytes)
            core.recorder.count("snapshots_taken")


def _name(part: _Part, tokens: Tokens, ends: list[tuple[int, int]]) -> str:
    pairs = np.array(ends, np.int64).reshape(-1, 2)
    return segment_name(part.arrays, part.first, tokens, pairs)


def _row(
    name: str, part: _Part | Segment, tokens: Tokens, ends: list[tuple[int, int]]
) -> SegmentRow:
    """What the journal keeps of a piece."""
    return SegmentRow(
        name=name,
        first=part.first,
        last=part.last,
        tokens=token_bytes(tokens),
        ends=ends_bytes(ends),
    )


def cells_and_text(executor: Executor, core: EngineCore) -> str:
    """Fingerprint of all that makes cells of entries."""
    return f"{executor.fingerprint} {core.journal_writer.text_fingerprint}"


def _answers(record: SessionRecord, version: int) -> str:
    """Answers of flash queries that saw no more than the snapshot."""
    found = [
        {"id": one.id, "steps": one.answer_steps, "answer": asdict(one.answer)}
        for one in record.flash
        if one.answer is not None and one.answer.version <= version
    ]
    text = json.dumps(found)
    return f"{checksum_of(text)} {text}"


def answers_of(kept: str) -> list[dict[str, object]]:
    """The answers again; none if they are not as they were written."""
    checksum, _, text = kept.partition(" ")
    if not text or checksum != str(checksum_of(text)):
        return []
    return json.loads(text)
