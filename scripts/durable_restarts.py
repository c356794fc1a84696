"""An engine that ends, and the next one on its journal: what `bench_durable.py` measures.

Comes in: a device whose steps are compiled, a folder. Goes out: how long snapshots take, how long
it takes from `Engine(journal=...)` to the first answer, and how many tokens were read again for it.
A copy of the journal, made while its engine is alive, is what a killed process leaves; what the
kernel still has in its page cache stays there, as it does when a process is killed. Does not know:
tables, plots.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from tick_client import ticks

import jaxstate
from jaxstate.cells.tables import Seen
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.protocol import HostCells, Saved
from jaxstate.engine.types.options import EngineConfig
from jaxstate.persist.files import Note
from jaxstate.persist.places import DATABASE, SEGMENTS

QUESTION = "last price?"
NAME = "feed"
NEXT_ENTRIES = 16
NEXT_SNAPSHOTS = 3


class TimedDevice(DeviceExecutor):
    """A device that notes what its reading, writing and placing of saved cells took.

    Attributes:
        spent_s: seconds by what was done, since it was last cleared.
    """

    spent_s: dict[str, float]

    def load(self, path: str | os.PathLike[str]) -> Saved:
        """Reads a piece."""
        began_s = time.perf_counter()
        try:
            return super().load(path)
        finally:
            self._note("load", began_s)

    def save(
        self, path: str | os.PathLike[str], cells: HostCells, notes: Mapping[str, Note]
    ) -> None:
        """Writes a piece."""
        began_s = time.perf_counter()
        super().save(path, cells, notes)
        self._note("save", began_s)

    def place(self, seen: Seen, cells: HostCells) -> None:
        """Puts cells into the pool, and waits for it, so that it can be told from what follows."""
        began_s = time.perf_counter()
        super().place(seen, cells)
        jax.block_until_ready(self._pool)
        self._note("place", began_s)

    def _note(self, what: str, began_s: float) -> None:
        self.spent_s[what] = self.spent_s.get(what, 0.0) + time.perf_counter() - began_s


@dataclass(frozen=True, kw_only=True)
class Restart:
    """One way of coming back.

    Attributes:
        how: "closed", "killed", or "no snapshot".
        cells: that the session has when it is there again.
        after: of them, tokens that came after the last snapshot.
        reread: tokens that were computed before the answer.
        open_s: until the engine was there: the journal opened, its sessions in the books.
        load_s, place_s: reading cells from the disk, and writing them to the device.
        answer_s: from the start to the first answer, at the newest version.
        same: whether it was the answer of the engine before.
    """

    how: str
    cells: int
    after: int
    reread: int
    open_s: float
    load_s: float
    place_s: float
    answer_s: float
    same: bool

    @property
    def right(self) -> bool:
        """Whether just that was read again that no snapshot held."""
        return self.reread == (self.cells if self.how == "no snapshot" else self.after)


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """Of one session.

    Attributes:
        cells: that it had at the first.
        first_s, next_s: time to take the first, and others after `NEXT_ENTRIES` more entries each
            (median).
        save_s: of `next_s`, writing the pieces.
        bytes_first, bytes_next: on the disk; of pieces that the next did not share with it.
        ask_s: a question to the session while it is on the device.
    """

    cells: int
    first_s: float
    next_s: float
    save_s: float
    bytes_first: int
    bytes_next: int
    ask_s: float


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A device with compiled steps, and a folder on the disk in question."""

    model: jaxstate.Model
    device: TimedDevice
    folder: Path
    snapshot_bytes: int
    repeats: int

    def engine(self, journal: Path) -> jaxstate.Engine:
        """An engine that takes snapshots when it is told, and when it is closed."""
        config = EngineConfig(snapshot_s=None, snapshot_bytes=self.snapshot_bytes)
        self.device.spent_s = {}
        return jaxstate.Engine(self.model, executor=self.device, journal=journal, config=config)

    def new_path(self, name: str) -> Path:
        """Where nothing is yet."""
        paths = (self.folder / f"{name}-{number}" for number in itertools.count())
        return next(path for path in paths if not path.exists())


def by_cells(rig: Rig, cells: int) -> tuple[Snapshots, list[Restart]]:
    """Snapshots of a session of about so many cells, and ways of coming back with them."""
    journal = rig.new_path(f"cells-{cells}")
    with rig.engine(journal) as engine:
        session = engine.open(NAME)
        fill(rig, session, cells)
        before, held = _asked(session).text, session.info().tokens
        ask_s = statistics.median(_asked(session).latency_s for _ in range(3))
        bare = without_snapshots(rig, journal)
        first_s = take(engine)
    backs = [_restarted(rig, journal, "closed", held, 0, before) for _ in range(rig.repeats)]
    backs.append(_restarted(rig, bare, "no snapshot", held, held, before))
    snapshots = _next_snapshots(rig, journal, held, first_s, ask_s)
    shutil.rmtree(journal)
    shutil.rmtree(bare)
    return snapshots, [median(backs[:-1]), backs[-1]]


def by_rest(rig: Rig, cells: int, rests: Sequence[int]) -> list[Restart]:
    """Kills so many tokens after a snapshot of a session of about so many cells."""
    journal, found = rig.new_path("rest"), list[Restart]()
    with rig.engine(journal) as engine:
        session = engine.open(NAME)
        fill(rig, session, cells)
        take(engine)
        held = session.info().tokens
        for rest in rests:
            fill(rig, session, held + rest)
            now, before = session.info().tokens, _asked(session).text
            copies = [_copied(rig, journal) for _ in range(rig.repeats)]
            found.append(median([_killed(rig, one, now, now - held, before) for one in copies]))
    shutil.rmtree(journal)
    return found


def _killed(rig: Rig, copy: Path, cells: int, after: int, before: str) -> Restart:
    back = _restarted(rig, copy, "killed", cells, after, before)
    shutil.rmtree(copy)
    return back


def fill(rig: Rig, session: jaxstate.Session, cells: int) -> None:
    """Pushes ticks until the session has that many cells, or a few more."""
    model, more, number = rig.model, cells - session.info().tokens, session.version + 1
    lines: list[str] = []
    while more > 0:
        (line,) = ticks(1, first=number)
        lines.append(line)
        more, number = more - len(model.template.entry_tokens(model.text, line)), number + 1
    if lines:
        session.push(lines)
    session.wait()


def take(engine: jaxstate.Engine) -> float:
    """Takes a snapshot of every session that is due; how long it took."""
    # A program leaves this to the engine's own thread; here it has to happen at a given moment.
    snapshotter = engine._durable.snapshots
    assert snapshotter is not None
    began_s = time.perf_counter()
    assert snapshotter.take_all() == 1, "no snapshot was taken"
    return time.perf_counter() - began_s


def _next_snapshots(rig: Rig, journal: Path, cells: int, first_s: float, ask_s: float) -> Snapshots:
    """More entries, and a snapshot, several times."""
    next_s, save_s, sizes = list[float](), list[float](), [_on_disk(journal)]
    with rig.engine(journal) as engine:
        session = engine.session(NAME)
        for _ in range(NEXT_SNAPSHOTS):
            session.push(ticks(NEXT_ENTRIES, first=session.version + 1))
            session.wait()
            rig.device.spent_s = {}
            next_s.append(take(engine))
            save_s.append(rig.device.spent_s["save"])
            sizes.append(_on_disk(journal))
    return Snapshots(
        cells=cells,
        first_s=first_s,
        next_s=statistics.median(next_s),
        save_s=statistics.median(save_s),
        bytes_first=sizes[0],
        bytes_next=(sizes[-1] - sizes[0]) // NEXT_SNAPSHOTS,
        ask_s=ask_s,
    )


def _on_disk(journal: Path) -> int:
    """Bytes of all pieces; nothing clears them away while this engine lives."""
    return sum(one.stat().st_size for one in (journal / SEGMENTS).rglob("*") if one.is_file())


def _asked(session: jaxstate.Session) -> jaxstate.Answer:
    """An answer of one token, which is what a first answer waits for."""
    return session.ask(QUESTION, max_tokens=1)


def _restarted(rig: Rig, journal: Path, how: str, cells: int, after: int, before: str) -> Restart:
    """Comes back, asks at the newest version, and ends again."""
    began_s = time.perf_counter()
    with rig.engine(journal) as engine:
        open_s = time.perf_counter() - began_s
        (found,) = engine.recovery.sessions
        session = engine.session(found.id)
        answer = session.ask(QUESTION, max_tokens=1, min_version=found.last)
        answer_s = time.perf_counter() - began_s
        counts, spent_s = engine.metrics().counts, dict(rig.device.spent_s)
        assert session.info().tokens == cells, "it did not come back whole"
    return Restart(
        how=how,
        cells=cells,
        after=after,
        reread=counts.tokens_ingested + counts.tokens_rebuilt,
        open_s=open_s,
        load_s=spent_s.get("load", 0.0),
        place_s=spent_s.get("place", 0.0),
        answer_s=answer_s,
        same=answer.text == before,
    )


def median(some: Sequence[Restart]) -> Restart:
    """Of restarts of the same kind: the one whose answer came neither early nor late; the most
    that any of them read again."""
    middle = sorted(some, key=lambda one: one.answer_s)[len(some) // 2]
    return Restart(
        how=middle.how,
        cells=middle.cells,
        after=middle.after,
        reread=max(one.reread for one in some),
        open_s=middle.open_s,
        load_s=middle.load_s,
        place_s=middle.place_s,
        answer_s=middle.answer_s,
        same=all(one.same for one in some),
    )


def _copied(rig: Rig, journal: Path) -> Path:
    """What a process that is killed now leaves: its pushes have all been acknowledged."""
    copy = rig.new_path("copy")
    shutil.copytree(journal, copy)
    return copy


def without_snapshots(rig: Rig, journal: Path) -> Path:
    """A copy that has none, whether there are any or not."""
    copy = _copied(rig, journal)
    with contextlib.closing(sqlite3.connect(copy / DATABASE, isolation_level=None)) as found:
        found.execute("DELETE FROM snapshots")
        found.execute("DELETE FROM segments")
    shutil.rmtree(copy / SEGMENTS, ignore_errors=True)
    return copy
