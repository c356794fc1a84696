"""Clients that push into a journal as fast as they are answered: what `bench_durable.py` measures.

Comes in: a directory, and how many threads push what. Goes out: how many pushes a second were
acknowledged, and how long each waited. The engine's device computes nothing and its tokenizer makes
a token of 16 bytes, so that what is left is a push: the engine's books, the journal, the disk. Does
not know: models, snapshots, tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import jaxstate
from jaxstate.engine.executor.protocol import StepOutput
from jaxstate.engine.types.options import EngineConfig
from jaxstate.records import Durability
from jaxstate.steps.packing import Row
from jaxstate.testing import FAKE_LIMITS, ByteTokenizer, FakeClock, FakeExecutor, fake_layout
from jaxstate.testing import tiny_model as any_model
from jaxstate.text import Place

NO_JOURNAL, NORMAL, FULL = "no journal", "SQLite, NORMAL", "SQLite, FULL"
LEVELS: dict[str, Durability] = {"memory": "memory", "os": "os", "fsync": "fsync"}
BATCH = 64
ENTRY = "2026-11-28T09:31:07.250Z ACME traded 1,200 shares at 103.75 on venue XNAS, up 12"
BYTES_PER_TOKEN = 16
SESSION_CELLS = 1 << 17
# Of one run: p99 needs 100 values, and what waits for the journal must stay below its bound.
MOST = {1: 4000, BATCH: 200}

Push = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How is pushed.

    Attributes:
        keeper: a level of durability, `NO_JOURNAL`, or a plain SQLite loop.
        threads: that push at once, each into its own session.
        batch: entries of one push.
        numbered: whether each push has `client` and `client_seq`.
    """

    keeper: str
    threads: int = 1
    batch: int = 1
    numbered: bool = False


@dataclass(frozen=True, kw_only=True)
class Pushes:
    """What one way came to: medians over rounds.

    Attributes:
        per_s: acknowledged pushes a second, all threads together.
        written_per_s: the same, until everything acknowledged was in the journal.
        p50_ms, p99_ms: from the call to the acknowledgement; no p99 of fewer than 100 pushes.
        slowest_ms: of all rounds.
        count: pushes of all rounds.
        per_s_range: of the rounds' `per_s`.
    """

    way: Way
    per_s: float
    written_per_s: float
    p50_ms: float
    p99_ms: float | None
    slowest_ms: float
    count: int
    per_s_range: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Round:
    waits_s: list[float]
    took_s: float
    written_s: float


class _Sink(FakeExecutor):
    """Takes what it is given, and does nothing with it."""

    def _extend(self, chunks: Sequence[Row]) -> StepOutput:
        """Commits without looking: the fake's checks would compete with the clients."""
        return self._say([None] * len(chunks))


class _FewTokens(ByteTokenizer):
    """Every sixteenth byte: an entry of 80 bytes has about as many tokens as a short tick."""

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """Some of the bytes."""
        return super().encode(text, place)[::BYTES_PER_TOKEN]


def all_ways(threads: Sequence[int]) -> list[Way]:
    """Every level with every number of threads; batches, numbers and the peers with one."""
    keepers = (NO_JOURNAL, *LEVELS)
    ways = [Way(keeper=keeper, threads=count) for keeper in keepers for count in threads]
    ways += [Way(keeper=keeper, batch=BATCH) for keeper in (*keepers, NORMAL, FULL)]
    ways += [Way(keeper=keeper, numbered=True) for keeper in keepers]
    return ways + [Way(keeper=keeper) for keeper in (NORMAL, FULL)]


def measure(
    folder: Path, ways: Sequence[Way], rounds: int, seconds: float, tell: Callable[[int], None]
) -> list[Pushes]:
    """All ways in turn, and that several times, so that no moment decides about one of them.

    Args:
        folder: on the disk in question.
        ways: what to compare.
        rounds: how many times.
        seconds: of each way in each round, at most; the first round is preceded by one that does
            not count.
        tell: called with the number of each round.
    """
    found: dict[Way, list[_Round]] = {way: [] for way in ways}
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(_plain(folder))
        engines = {NO_JOURNAL: stack.enter_context(_engine(None))}
        for keeper, level in LEVELS.items():
            engines[keeper] = stack.enter_context(_engine(folder / keeper, level))
        for number in range(rounds + 1):
            tell(number)
            # Every other round runs backwards: nobody always follows the same neighbour.
            for way in ways if number % 2 else reversed(ways):
                if way.keeper in (NORMAL, FULL):
                    one = _sqlite_round(plain, way, seconds)
                else:
                    one = _round(engines[way.keeper], way, seconds)
                if number:
                    found[way].append(one)
    return [_median(way, some) for way, some in found.items()]


@contextlib.contextmanager
def _engine(journal: Path | None, level: Durability = "memory") -> Iterator[jaxstate.Engine]:
    """An engine whose device costs nothing, with room for every run."""
    limits = dataclasses.replace(
        FAKE_LIMITS,
        layout=fake_layout(SESSION_CELLS, 2 * SESSION_CELLS),
        max_context=SESSION_CELLS,
        extend_tokens=4096,
        chunk_rows=((4096, tuple(range(1, 9))),),
        step_sessions=8,
    )
    model = dataclasses.replace(any_model(), tokenizer=_FewTokens())
    config = EngineConfig(queue_entries=1 << 15, snapshot_s=None)
    executor = _Sink(FakeClock(), limits=limits)
    with jaxstate.Engine(
        model, config=config, executor=executor, journal=journal, durability=level
    ) as engine:
        yield engine
        for session in engine.sessions():
            session.close()  # so that nothing is left to take a snapshot of


def _round(engine: jaxstate.Engine, way: Way, seconds: float) -> _Round:
    """Clients with a session each, for some time."""
    sessions = [engine.open() for _ in range(way.threads)]
    pushes = [_push_to(session, way) for session in sessions]
    began_s, waits_s, ended_s = _all_at_once(pushes, MOST[way.batch] // way.threads, seconds)
    if way.keeper != NO_JOURNAL:
        written = sessions[0].noting_all()  # behind all before it
        assert written is not None, "there is a journal"
        written.settled.result()
    written_s = time.perf_counter()
    for session in sessions:
        session.wait()
        session.close()
    return _Round(waits_s=waits_s, took_s=ended_s - began_s, written_s=written_s - began_s)


def _push_to(session: jaxstate.Session, way: Way) -> Push:
    entries = ENTRY if way.batch == 1 else [ENTRY] * way.batch

    def push(number: int) -> None:
        if way.numbered:
            session.push(entries, client="feed", client_seq=number)
        else:
            session.push(entries)

    return push


def _all_at_once(
    pushes: Sequence[Push], most: int, seconds: float
) -> tuple[float, list[float], float]:
    """Every thread pushes until the time is over, or it did so `most` times.

    Returns:
        When they began, how long each push took, when the last of them ended.
    """
    start = threading.Barrier(len(pushes) + 1)
    waits_s: list[list[float]] = [[] for _ in pushes]
    errors: list[Exception] = []

    def client(push: Push, waited: list[float]) -> None:
        start.wait()
        try:
            _push_for(push, waited, most, seconds)
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=client, args=both) for both in zip(pushes, waits_s, strict=True)
    ]
    for thread in threads:
        thread.start()
    start.wait()
    began_s = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return began_s, [one for waited in waits_s for one in waited], time.perf_counter()


def _push_for(push: Push, waited: list[float], most: int, seconds: float) -> None:
    last_s = time.perf_counter()
    ends_s = last_s + seconds
    for number in range(1, most + 1):
        push(number)
        now_s = time.perf_counter()
        waited.append(now_s - last_s)
        if now_s >= ends_s:
            return
        last_s = now_s


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[sqlite3.Connection]:
    """What many would write themselves: one table in WAL mode."""
    path = folder / "plain.db"
    with contextlib.closing(
        sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    ) as found:
        found.execute("PRAGMA journal_mode=WAL")
        found.execute("CREATE TABLE entries (sequence INTEGER PRIMARY KEY, text BLOB NOT NULL)")
        yield found


def _sqlite_round(to: sqlite3.Connection, way: Way, seconds: float) -> _Round:
    """INSERT and COMMIT for every push, in one thread."""
    to.execute(f"PRAGMA synchronous={'FULL' if way.keeper == FULL else 'NORMAL'}")
    rows = [(ENTRY.encode(),)] * way.batch

    def push(_: int) -> None:
        to.execute("BEGIN")
        to.executemany("INSERT INTO entries (text) VALUES (?)", rows)
        to.execute("COMMIT")

    began_s, waits_s, ended_s = _all_at_once([push], MOST[way.batch], seconds)
    return _Round(waits_s=waits_s, took_s=ended_s - began_s, written_s=ended_s - began_s)


def _median(way: Way, rounds: Sequence[_Round]) -> Pushes:
    rates = [len(one.waits_s) / one.took_s for one in rounds]
    p99 = [_nearest(one.waits_s, 0.99) for one in rounds if len(one.waits_s) >= 100]
    return Pushes(
        way=way,
        per_s=statistics.median(rates),
        written_per_s=statistics.median(len(one.waits_s) / one.written_s for one in rounds),
        p50_ms=statistics.median(_nearest(one.waits_s, 0.5) for one in rounds) * 1e3,
        p99_ms=statistics.median(p99) * 1e3 if len(p99) == len(rounds) else None,
        slowest_ms=float(np.max([max(one.waits_s) for one in rounds])) * 1e3,
        count=sum(len(one.waits_s) for one in rounds),
        per_s_range=(min(rates), max(rates)),
    )


def _nearest(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]
