"""Metrics as Prometheus reads them: what the engine counts, and what the server does.

Comes in: `EngineMetrics`, requests as they end. Goes out: the text of `/metrics`, and the counters
of `/health`. Does not know: requests' contents, tenants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from jaxstate import EngineMetrics, HistogramRecord
from jaxstate.engine.types.values import Source, Work

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class ServerMetrics:
    """What is counted of one server, in a registry of its own.

    Attributes:
        requests: that ended, by route, method and status.
        request_s: from the first byte to the last of the response; of a stream, to its beginning.
        under_way: those that have not ended, streams and sockets included.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "jaxstate_http_requests",
            "Requests that ended.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self.request_s = Histogram(
            "jaxstate_http_request_seconds",
            "Seconds from a request to the beginning of its response.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.under_way = Gauge(
            "jaxstate_http_under_way", "Requests under way.", registry=self._registry
        )

    def text(self, engine: EngineMetrics | None) -> bytes:
        """All of it in the text format of Prometheus."""
        if engine is None:
            return generate_latest(self._registry)
        both = CollectorRegistry()
        both.register(_Engine(engine))
        return generate_latest(both) + generate_latest(self._registry)


class _Engine(Collector):
    """The engine's figures at one moment."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Counters, gauges and histograms, with their units."""
        metrics = self._metrics
        for name, value in asdict(metrics.counts).items():
            yield CounterMetricFamily(f"jaxstate_{name}", _words(name), value=value)
        for name, value in asdict(metrics.gauges).items():
            yield GaugeMetricFamily(f"jaxstate_{_unit(name)}", _words(name), value=value)
        yield GaugeMetricFamily(
            "jaxstate_idle_share", "Share of the time that the device was idle.", metrics.idle_share
        )
        yield _by("jaxstate_step_seconds", "Device seconds of steps.", "work", metrics.step_s)
        yield _by("jaxstate_ask_seconds", "Seconds to an answer.", "source", metrics.ask_latency_s)
        for name in ("lag_s", "flash_behind_s", "flash_refresh_s", "flash_missed_s"):
            family = HistogramMetricFamily(f"jaxstate_{_unit(name)}", _words(name))
            _add(family, [], getattr(metrics, name))
            yield family


def _by(
    name: str,
    what: str,
    label: str,
    records: Mapping[Work, HistogramRecord] | Mapping[Source, HistogramRecord],
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, what, labels=[label])
    for value, record in records.items():
        _add(family, [str(value)], record)
    return family


def _add(family: HistogramMetricFamily, labels: list[str], record: HistogramRecord) -> None:
    total, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip(record.bounds, record.counts, strict=False):
        total += count
        buckets.append((f"{bound:.6g}", total))
    buckets.append(("+Inf", record.count))
    family.add_metric(labels, buckets, record.total)


def _unit(name: str) -> str:
    return f"{name.removesuffix('_s')}_seconds" if name.endswith("_s") else name


def _words(name: str) -> str:
    return f"{name.removesuffix('_s').replace('_', ' ').capitalize()}."
