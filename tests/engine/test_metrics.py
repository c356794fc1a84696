"""Counters and histograms: what is counted is what is told, and JSON takes it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.engine.core.metrics import (
    ENTRIES_BOUNDS,
    SECONDS_BOUNDS,
    CountName,
    Counts,
    EngineMetrics,
    Gauges,
    Histogram,
    HistogramRecord,
    MetricsRecorder,
)
from jaxstate.errors import InvalidInput
from tests.engine.rig import Rig

GAUGES = Gauges(
    sessions=2,
    pending_entries=3,
    pending_tokens=40,
    asks_waiting=1,
    asks_running=2,
    flash_queries=5,
    flash_stale=1,
    oldest_lag_s=0.25,
    compilations=0,
    on_device=2,
    cells=640,
    cells_held=80,
    cells_free=400,
    cells_firm=160,
    prefix_cells=16,
    host_bytes=1024,
)


def histogram_of(values: list[float], bounds: tuple[float, ...] = SECONDS_BOUNDS) -> Histogram:
    histogram = Histogram(bounds)
    for value in values:
        histogram.record(value)
    return histogram


def record_of(values: list[float], bounds: tuple[float, ...] = SECONDS_BOUNDS) -> HistogramRecord:
    return histogram_of(values, bounds).snapshot()


def metrics_of(recorder: MetricsRecorder, now_s: float = 10.0) -> EngineMetrics:
    return recorder.snapshot(now_s, GAUGES)


def test_the_bounds_of_seconds() -> None:
    assert len(SECONDS_BOUNDS) == 37
    assert SECONDS_BOUNDS[0] == pytest.approx(1e-6)
    assert SECONDS_BOUNDS[-1] == pytest.approx(1e3)
    assert list(SECONDS_BOUNDS) == sorted(SECONDS_BOUNDS)


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    record = record_of([0, 1, 2, 3, 4, 5, 9], (0.0, 1.0, 2.0, 4.0))
    assert record.counts == (1, 1, 1, 2, 2)
    assert (record.count, record.total, record.largest) == (7, 24.0, 9.0)


def test_an_empty_histogram() -> None:
    record = record_of([])
    assert (record.mean, record.quantile(0.5), record.quantile(1.0), record.largest) == (0,) * 4
    assert record.as_dict()["buckets"] == []


@given(
    st.lists(st.floats(0.0, 5000.0), min_size=1, max_size=50),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_quantiles_are_at_most_one_bucket_too_large(values: list[float], q: float) -> None:
    record = record_of(values)
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    got = record.quantile(q)
    assert exact <= got <= record.largest == max(values)
    if exact <= SECONDS_BOUNDS[-1]:
        bucket = next(bound for bound in SECONDS_BOUNDS if exact <= bound)
        assert got == min(bucket, record.largest)
    assert sum(record.counts) == record.count == len(values)
    assert record.mean == pytest.approx(sum(values) / len(values))


def test_versions_behind_are_whole_numbers() -> None:
    record = record_of([0, 0, 0, 1, 2], ENTRIES_BOUNDS)
    assert [record.quantile(q) for q in (0.5, 0.75, 1.0)] == [0.0, 1.0, 2.0]


def test_values_that_are_no_times() -> None:
    histogram = histogram_of([-1e-9])
    assert (histogram.snapshot().count, histogram.snapshot().total) == (1, 0.0)
    for value in (math.nan, math.inf):
        with pytest.raises(InvalidInput, match="finite"):
            histogram.record(value)
    assert histogram.snapshot().count == 1


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0), (math.nan,), (0.0, math.inf)])
def test_wrong_bounds(bounds: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="bounds="):
        Histogram(bounds)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_wrong_quantiles(q: float) -> None:
    with pytest.raises(InvalidInput, match="q="):
        record_of([1.0]).quantile(q)


def test_a_snapshot_does_not_change() -> None:
    recorder = MetricsRecorder(0.0)
    before = metrics_of(recorder)
    recorder.step_done("ask", 1.0)
    recorder.count("asks_failed")
    assert before.busy_s == 0.0
    assert before.counts == Counts()
    assert metrics_of(recorder).counts.asks_failed == 1


def test_every_count_has_a_field() -> None:
    fields = [field.name for field in dataclasses.fields(Counts)]
    assert fields == list(get_args(CountName))
    recorder = MetricsRecorder(0.0)
    for by, name in enumerate(fields, 1):
        recorder.count(name, by)  # pyright: ignore[reportArgumentType]
    assert list(dataclasses.asdict(metrics_of(recorder).counts).values()) == list(
        range(1, len(fields) + 1)
    )


def test_shares_of_the_device() -> None:
    recorder = MetricsRecorder(100.0)
    recorder.step_done("ask", 1.0)
    recorder.step_done("ingest", 1.0)
    recorder.step_done("ingest", 2.0)
    recorder.step_done("flash", 2.5)
    recorder.step_done("flash", 0.5)
    metrics = metrics_of(recorder, 110.0)
    assert metrics.elapsed_s == 10.0
    assert metrics.busy_s == 7.0
    assert metrics.idle_share == pytest.approx(0.3)
    assert metrics.idle_used_share == pytest.approx(0.5)
    assert metrics.step_s["ingest"].count == 2


@pytest.mark.parametrize(("now_s", "idle"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_shares_stay_in_range(now_s: float, idle: float) -> None:
    recorder = MetricsRecorder(0.0)
    recorder.step_done("ask", 2.0)
    recorder.step_done("flash", 2.0)
    metrics = metrics_of(recorder, now_s)
    assert (metrics.idle_share, metrics.idle_used_share) == (idle, 0.0)


def test_asks_and_entries() -> None:
    recorder = MetricsRecorder(0.0)
    recorder.ask_answered("flash", 0.001)
    recorder.ask_answered("computed", 0.1)
    recorder.count("entries_pushed", 3)
    recorder.entries_committed([1.0, 2.0], 4.0)
    metrics = metrics_of(recorder)
    assert {k: v.count for k, v in metrics.ask_latency_s.items()} == {
        "computed": 1,
        "flash": 1,
        "ready": 0,
    }
    assert (metrics.counts.entries_pushed, metrics.counts.entries_committed) == (3, 2)
    assert (metrics.lag_s.total, metrics.lag_s.largest) == (5.0, 3.0)


def test_flash_answers_fresh_and_stale() -> None:
    recorder = MetricsRecorder(0.0)
    recorder.flash_answered(behind_entries=0, behind_s=0.0, refresh_s=0.25)
    recorder.flash_answered(behind_entries=3, behind_s=0.5, refresh_s=9.0)
    metrics = metrics_of(recorder)
    assert (metrics.counts.flash_answers, metrics.counts.flash_answers_stale) == (2, 1)
    assert metrics.flash_behind_entries.total == 3.0
    assert metrics.flash_behind_s.largest == 0.5
    assert (metrics.flash_refresh_s.count, metrics.flash_refresh_s.total) == (1, 0.25)


def test_it_is_plain_json() -> None:
    recorder = MetricsRecorder(0.0)
    recorder.step_done("ask", 5000.0)  # above the last bound
    recorder.ask_answered("ready", 0.0)
    shown = metrics_of(recorder).as_dict()
    again = json.loads(json.dumps(shown, allow_nan=False))
    assert again == shown
    assert again["gauges"]["pending_tokens"] == 40
    assert again["step_s"]["ask"]["buckets"] == [[None, 1]]
    assert again["ask_latency_s"]["ready"]["count"] == 1
    assert set(again) >= {field.name for field in dataclasses.fields(EngineMetrics)}


# --- the whole engine's, worked out on paper ----------------------------------------------------


def test_what_an_engine_counts_and_times() -> None:
    """The fake device: 1 s an extend, 0.5 s a start, 0.1 s a decode, 0.3 s a score.

    0.0 push, extend; 1.0 version 1; flash registered: start, two decodes; 1.7 its answer
    1.7 ask of two tokens: start, decode; 2.3 answered; the flash query's question asked: a hit
    2.3 push: extend; 3.3 version 2; flash: start; 3.8 push, and nobody looks for 0.25 s
    4.05 extend; 5.05 version 3; two decodes; 5.25 the answer of version 2, one entry behind for
    0.2 s; start, two decodes; 5.95 that of version 3, 0.9 s after its commit
    """
    rig = Rig()
    session = rig.engine.open()
    rig.engine.run()
    session.push("abcd")  # 5 tokens
    rig.engine.run()
    session.flash("fl", max_tokens=3)
    rig.engine.run()
    assert rig.clock.now_s == pytest.approx(1.7)
    ask = session.submit("xyz", max_tokens=2)
    rig.engine.run()
    assert ask.result(0).latency_s == pytest.approx(0.6)
    assert session.submit("fl").result(0).source == "flash"
    session.push("e")
    rig.turns(2)
    session.push("gh")
    waiting = session.submit("q", min_version=9)
    gauges = rig.engine.metrics().gauges
    assert (gauges.pending_entries, gauges.pending_tokens) == (1, 3)
    assert (gauges.asks_waiting, gauges.asks_running, gauges.flash_queries) == (1, 0, 1)
    assert (gauges.flash_stale, gauges.sessions) == (1, 1)
    rig.clock.pass_s(0.25)
    assert rig.engine.metrics().gauges.oldest_lag_s == pytest.approx(0.25)
    waiting.cancel()
    rig.engine.run()
    assert rig.clock.now_s == pytest.approx(5.95)
    seen = rig.engine.metrics()
    assert seen.elapsed_s == pytest.approx(5.95)
    counts = seen.counts
    assert (counts.tokens_ingested, counts.entries_pushed, counts.entries_committed) == (10, 3, 3)
    assert (counts.flash_answers, counts.flash_answers_stale) == (3, 1)
    assert (counts.asks_cancelled, counts.asks_failed) == (1, 0)
    busy = {work: (one.count, one.total) for work, one in seen.step_s.items()}
    assert busy == {
        "ask": (2, pytest.approx(0.6)),
        "ingest": (4, pytest.approx(3.0)),  # one for the opening, which has no tokens
        "flash": (9, pytest.approx(3 * 0.7)),
        "rebuild": (0, 0.0),
    }
    assert seen.idle_share == pytest.approx(0.25 / 5.95)
    assert seen.idle_used_share == pytest.approx(2.1 / (5.95 - 3.6))
    latency = {source: (one.count, one.total) for source, one in seen.ask_latency_s.items()}
    assert latency == {"computed": (1, pytest.approx(0.6)), "flash": (1, 0.0), "ready": (0, 0.0)}
    assert (seen.lag_s.count, seen.lag_s.total) == (3, pytest.approx(3.25))
    behind = seen.flash_behind_entries
    assert (behind.count, behind.total, behind.largest) == (3, 1.0, 1.0)
    assert seen.flash_behind_s.total == pytest.approx(0.2)
    assert (seen.flash_refresh_s.count, seen.flash_refresh_s.total) == (2, pytest.approx(0.7 + 0.9))
    # The session has 10 cells in two blocks of 8.
    gauges = seen.gauges
    assert (gauges.on_device, gauges.cells, gauges.cells_held) == (1, 65_536, 16)
    assert (gauges.cells_free, gauges.cells_firm) == (65_536 - 16, 0)
    assert (gauges.prefix_cells, gauges.host_bytes) == (0, 0)
    rig.clock.pass_s(5.7 - 0.25)
    assert rig.engine.metrics().idle_share == pytest.approx(0.5)
    assert rig.engine.metrics().gauges.flash_stale == 0


def test_what_rides_along_counts_for_its_class() -> None:
    """A decode of asks that serves a flash query as well leaves flash with no waiting to its
    credit."""
    rig = Rig()
    session = rig.open("abcd")
    session.flash("fl")
    rig.turns(1)
    session.submit("xyz")
    rig.turns(2)  # the ask's start, then a decode of both
    assert rig.news()[-1] == "decode s1 x2"
    assert rig.core.state.waited["flash"] == 0
    steps = rig.engine.metrics().step_s
    assert (steps["ask"].count, steps["flash"].count) == (2, 1)
