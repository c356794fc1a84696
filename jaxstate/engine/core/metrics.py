"""What the engine has done so far, counted and timed.

Comes in: what happened, one call for each, under the engine's lock. Goes out: `EngineMetrics`, a
frozen record that is also plain JSON. Does not know: clocks (times come in), sessions, who looks.

Names carry their unit: `_s` is seconds, `_tokens` and `_entries` count. A histogram keeps counts
between fixed bounds, so its size does not grow and two of the same bounds can be added.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from jaxstate.engine.types.values import Source, Work
from jaxstate.errors import InvalidInput
from jaxstate.records import JsonValue

CountName = Literal[
    "tokens_ingested",
    "asks_cancelled",
    "asks_timed_out",
    "asks_failed",
    "flash_answers",
    "flash_answers_stale",
    "flash_rows_dropped",
    "flash_refused",
    "subscribers_dropped",
    "callbacks_dropped",
    "entries_pushed",
    "entries_committed",
    "entries_dropped",
    "tokens_rebuilt",
    "prefix_tokens_shared",
    "sessions_suspended",
    "sessions_resumed",
    "entries_recovered",
    "snapshots_taken",
    "snapshots_failed",
    "windows_moved",
    "windows_moved_in_place",
    "window_tokens_read",
]


BUCKETS_PER_DECADE = 4


# 1 microsecond to 1000 seconds, each bound 1.78 times the one before.
SECONDS_BOUNDS = tuple(
    10.0 ** (step / BUCKETS_PER_DECADE) for step in range(-6 * BUCKETS_PER_DECADE, 13)
)


# 0, 1, 2, 4, ... 1048576.
ENTRIES_BOUNDS = (0.0, *(float(2**power) for power in range(21)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramRecord:
    """A histogram at one moment.

    Attributes:
        bounds: ascending; bucket i holds values above bounds[i - 1] up to and including bounds[i].
        counts: of each bucket, and one more for values above the last bound.
        total: sum of the values.
        count: how many there were.
        largest: of the values; 0 if there were none.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    count: int
    largest: float

    @property
    def mean(self) -> float:
        """Of the values; 0 if there were none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """A value that a share `q` of all values does not exceed, at most one bucket too large.

        Raises:
            InvalidInput: not 0 <= q <= 1.
        """
        if not 0.0 <= q <= 1.0:
            raise InvalidInput(f"q={q} must lie in 0 .. 1")
        needed, seen = max(1, math.ceil(q * self.count)), 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= needed:
                return min(bound, self.largest)
        return self.largest

    def as_dict(self) -> dict[str, JsonValue]:
        """Summary and the buckets that are not empty, [upper bound or None, count] each."""
        uppers = (*self.bounds, None)
        buckets = [[upper, n] for upper, n in zip(uppers, self.counts, strict=True) if n]
        return {
            "count": self.count,
            "total": self.total,
            "mean": self.mean,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "largest": self.largest,
            "buckets": buckets,
        }


class Histogram:
    """Counts values between fixed bounds.

    Args:
        bounds: ascending and finite, at least one.

    Raises:
        InvalidInput: they are not.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS_BOUNDS) -> None:
        self._bounds = tuple(bounds)
        rising = all(low < high for low, high in zip(self._bounds, self._bounds[1:], strict=False))
        if not self._bounds or not rising or not all(map(math.isfinite, self._bounds)):
            raise InvalidInput(f"bounds={self._bounds} must be finite and ascending")
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0
        self._count = 0
        self._largest = 0.0

    def record(self, value: float) -> None:
        """Counts one value; a negative one (two threads' clocks) counts as 0.

        Raises:
            InvalidInput: it is infinite or not a number.
        """
        if not math.isfinite(value):
            raise InvalidInput(f"a histogram counts finite values, not {value}")
        value = max(0.0, float(value))
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value
        self._count += 1
        self._largest = max(self._largest, value)

    def snapshot(self) -> HistogramRecord:
        """The values so far."""
        return HistogramRecord(
            bounds=self._bounds,
            counts=tuple(self._counts),
            total=self._total,
            count=self._count,
            largest=self._largest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What happened since the engine started, counted.

    Attributes:
        tokens_ingested: read into cells, openings and prefixes included.
        asks_cancelled, asks_timed_out, asks_failed: asks that got no answer, and why.
        flash_answers: computed for registered questions.
        flash_answers_stale: those whose session had gone on when they were delivered.
        flash_rows_dropped: given up before they were answered.
        flash_refused: registered questions for which there was no room.
        subscribers_dropped: subscriptions closed because nobody read them.
        callbacks_dropped: calls of `on_fire` that were left out because too many waited.
        entries_pushed, entries_committed, entries_dropped: a pushed entry waits, or is one of the
            other two.
        tokens_rebuilt: read again, of sessions whose cells had been given up or lost.
        prefix_tokens_shared: of openings that need not be read, because another session had.
        sessions_suspended, sessions_resumed: moves off the device, and to it.
        entries_recovered: that a journal brought back to be read; they count as pushed as well.
        snapshots_taken, snapshots_failed: of sessions, to disk.
        windows_moved: with the next context read beside the one before, and
            windows_moved_in_place: with a pause, since there was no room for that.
        window_tokens_read: read again in the background, for windows that were to move.
    """

    tokens_ingested: int = 0
    asks_cancelled: int = 0
    asks_timed_out: int = 0
    asks_failed: int = 0
    flash_answers: int = 0
    flash_answers_stale: int = 0
    flash_rows_dropped: int = 0
    flash_refused: int = 0
    subscribers_dropped: int = 0
    callbacks_dropped: int = 0
    entries_pushed: int = 0
    entries_committed: int = 0
    entries_dropped: int = 0
    tokens_rebuilt: int = 0
    prefix_tokens_shared: int = 0
    sessions_suspended: int = 0
    sessions_resumed: int = 0
    entries_recovered: int = 0
    snapshots_taken: int = 0
    snapshots_failed: int = 0
    windows_moved: int = 0
    windows_moved_in_place: int = 0
    window_tokens_read: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """How things stand at one moment.

    Attributes:
        sessions: open.
        pending_entries, pending_tokens: waiting to be read, of all sessions.
        asks_waiting, asks_running: not begun, and on the device.
        flash_queries: registered.
        flash_stale: those of them whose answer is not of their session's version.
        oldest_lag_s: how long the oldest entry that waits has waited; 0 if none does.
        compilations: steps compiled since the engine started.
        on_device: sessions whose cells are there.
        cells: of the pool; `cells_held` are in tables (shared ones count once), `cells_free` are
            neither held nor promised, `cells_firm` are reserved or pinned.
        prefix_cells: of kept prefixes, whether sessions have them or not.
        host_bytes: of suspended sessions' cells in the host's memory.
    """

    sessions: int
    pending_entries: int
    pending_tokens: int
    asks_waiting: int
    asks_running: int
    flash_queries: int
    flash_stale: int
    oldest_lag_s: float
    compilations: int
    on_device: int
    cells: int
    cells_held: int
    cells_free: int
    cells_firm: int
    prefix_cells: int
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """What the engine did since it started, and how things stand.

    Attributes:
        elapsed_s: since the start.
        counts: what happened.
        gauges: how things stand.
        step_s: device seconds of each step, by class of work.
        ask_latency_s: from each answered ask to its answer, by source.
        lag_s: of each committed entry, from push to commit.
        flash_behind_entries: how many entries each flash answer had not seen when it was delivered.
        flash_behind_s: how long the oldest of those had been committed then; 0 if it was fresh.
        flash_refresh_s: from a commit to the fresh answer of a flash query.
        flash_missed_s: of answers that came later than the target (`flash_staleness_s`), by how
            much.
    """

    elapsed_s: float
    counts: Counts
    gauges: Gauges
    step_s: Mapping[Work, HistogramRecord]
    ask_latency_s: Mapping[Source, HistogramRecord]
    lag_s: HistogramRecord
    flash_behind_entries: HistogramRecord
    flash_behind_s: HistogramRecord
    flash_refresh_s: HistogramRecord
    flash_missed_s: HistogramRecord

    @property
    def busy_s(self) -> float:
        """Device seconds of all steps."""
        return sum(record.total for record in self.step_s.values())

    @property
    def idle_share(self) -> float:
        """Share of the time in which the device did nothing, 0 .. 1; 1 before any time passed."""
        return 1.0 - _share(self.busy_s, self.elapsed_s)

    @property
    def idle_used_share(self) -> float:
        """Share of the time left over by asks and ingest that flash queries used, 0 .. 1."""
        urgent = self.step_s["ask"].total + self.step_s["ingest"].total
        used = self.step_s["flash"].total
        return _share(used, self.elapsed_s - urgent)

    def __repr__(self) -> str:
        """The figures that people look for; `as_dict` has all of them."""
        counts, gauges = self.counts, self.gauges
        asks = {source: record.count for source, record in self.ask_latency_s.items()}
        return (
            f"EngineMetrics({self.elapsed_s:.1f} s, {self.idle_share:.0%} idle; {gauges.sessions} "
            f"sessions, {gauges.pending_entries} entries wait; {counts.tokens_ingested:,} tokens "
            f"read; asks answered: {asks}; {gauges.cells_held:,} of {gauges.cells:,} cells in use)"
        )

    def as_dict(self) -> dict[str, JsonValue]:
        """All of it as plain JSON values, every number finite."""
        return {
            "elapsed_s": self.elapsed_s,
            "busy_s": self.busy_s,
            "idle_share": self.idle_share,
            "idle_used_share": self.idle_used_share,
            "counts": asdict(self.counts),
            "gauges": asdict(self.gauges),
            "step_s": {work: record.as_dict() for work, record in self.step_s.items()},
            "ask_latency_s": {kind: one.as_dict() for kind, one in self.ask_latency_s.items()},
            "lag_s": self.lag_s.as_dict(),
            "flash_behind_entries": self.flash_behind_entries.as_dict(),
            "flash_behind_s": self.flash_behind_s.as_dict(),
            "flash_refresh_s": self.flash_refresh_s.as_dict(),
            "flash_missed_s": self.flash_missed_s.as_dict(),
        }


# Answers that were there already and are not counted yet, at most about.
_MOST_GIVEN = 1024


class MetricsRecorder:
    """Counts what the engine does; the caller holds the engine's lock, but for `given`.

    Args:
        started_s: when the engine started, in monotonic seconds.
    """

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._counts: dict[CountName, int] = dict.fromkeys(get_args(CountName), 0)
        self._step_s: dict[Work, Histogram] = {work: Histogram() for work in get_args(Work)}
        self._ask_s: dict[Source, Histogram] = {kind: Histogram() for kind in get_args(Source)}
        self._given: deque[tuple[Source, float]] = deque()
        self._lag_s = Histogram()
        self._flash_behind_entries = Histogram(ENTRIES_BOUNDS)
        self._flash_behind_s = Histogram()
        self._flash_refresh_s = Histogram()
        self._flash_missed_s = Histogram()
        self._moved_bytes, self._moved_s = 0, 0.0
        self._read_tokens, self._read_s = 0, 0.0

    def count(self, name: CountName, by: int = 1) -> None:
        """Adds to one of `Counts`; those that the methods below keep are left to them."""
        self._counts[name] += by

    def step_done(self, work: Work, device_s: float, read_tokens: int = 0) -> None:
        """A step of this class took so many seconds of the device; it did nothing but read, if
        there are `read_tokens`."""
        self._step_s[work].record(device_s)
        if read_tokens:
            self._read_tokens += read_tokens
            self._read_s += device_s

    def moved(self, size_bytes: int, took_s: float) -> None:
        """So many bytes of cells were copied between device and host."""
        self._moved_bytes += size_bytes
        self._moved_s += took_s

    def copy_s(self, size_bytes: int) -> float | None:
        """How long copying so much would take, by what was measured; None if nothing was."""
        return self._moved_s / self._moved_bytes * size_bytes if self._moved_bytes else None

    def read_s(self, tokens: int) -> float | None:
        """How long reading so many tokens would take, by what was measured; None if nothing was."""
        return self._read_s / self._read_tokens * tokens if self._read_tokens else None

    def ask_answered(self, source: Source, latency_s: float) -> None:
        """An ask got its answer, so many seconds after the call."""
        self._ask_s[source].record(latency_s)

    def given(self, source: Source, latency_s: float) -> bool:
        """An ask got an answer that was there; needs no lock. True if `count_given` is due."""
        self._given.append((source, latency_s))
        return len(self._given) >= _MOST_GIVEN

    def count_given(self) -> None:
        """Counts what `given` noted."""
        while self._given:
            self.ask_answered(*self._given.popleft())

    def entries_committed(self, pushed_s: Iterable[float], now_s: float) -> None:
        """Entries that were pushed at these times are in the cells (`entries_committed`)."""
        for at_s in pushed_s:
            self._lag_s.record(now_s - at_s)
            self._counts["entries_committed"] += 1

    def flash_answered(
        self, *, behind_entries: int, behind_s: float, refresh_s: float, missed_s: float = 0.0
    ) -> None:
        """A flash answer was delivered (`flash_answers`, `flash_answers_stale`).

        Args:
            behind_entries: the session's version minus the answer's.
            behind_s: since the commit of the first entry that it did not see; 0 if it is fresh.
            refresh_s: since the commit of the version that it saw; timed only if it is fresh.
            missed_s: by how much the answer before became older than it may; not above 0 if it did
                not.
        """
        if missed_s > 0:
            self._flash_missed_s.record(missed_s)
        self._counts["flash_answers"] += 1
        self._flash_behind_entries.record(behind_entries)
        self._flash_behind_s.record(behind_s)
        if behind_entries > 0:
            self._counts["flash_answers_stale"] += 1
        else:
            self._flash_refresh_s.record(refresh_s)

    def snapshot(self, now_s: float, gauges: Gauges) -> EngineMetrics:
        """Everything so far, with how things stand at `now_s` (monotonic seconds)."""
        self.count_given()
        return EngineMetrics(
            elapsed_s=max(0.0, now_s - self._started_s),
            counts=Counts(**self._counts),
            gauges=gauges,
            step_s={work: one.snapshot() for work, one in self._step_s.items()},
            ask_latency_s={source: one.snapshot() for source, one in self._ask_s.items()},
            lag_s=self._lag_s.snapshot(),
            flash_behind_entries=self._flash_behind_entries.snapshot(),
            flash_behind_s=self._flash_behind_s.snapshot(),
            flash_refresh_s=self._flash_refresh_s.snapshot(),
            flash_missed_s=self._flash_missed_s.snapshot(),
        )


def _share(part: float, whole: float) -> float:
    """`part` of `whole` within 0 .. 1 (steps may overlap); 0 of nothing."""
    return min(1.0, part / whole) if whole > 0.0 else 0.0
