"""How the server and its engine are: health, metrics, and what the page plots.

Comes in: calls. Goes out: figures. Does not know: requests' contents.
"""

from __future__ import annotations

import time

from starlette.responses import Response

import jaxstate
from jaxstate.serve.calls import Call, replied
from jaxstate.serve.errors import ApiError


async def health(call: Call) -> Response:
    """Whether it answers: 200, or 503 while it loads or ends."""
    service = call.service
    body: dict[str, object] = {
        "status": "ok" if service.ready else "unavailable",
        "uptime_ms": int((time.monotonic() - service.started_s) * 1000),
        "version": jaxstate.__version__,
    }
    if service.failed is not None:
        body["error"] = service.failed
    if service.ready:
        body |= _figures(service.engine.metrics())
    return replied(body, 200 if service.ready else 503)


def _figures(metrics: jaxstate.EngineMetrics) -> dict[str, object]:
    gauges, counts = metrics.gauges, metrics.counts
    asks = {source: record.count for source, record in metrics.ask_latency_s.items()}
    return {
        "queued": gauges.asks_waiting,
        "running": gauges.asks_running,
        "kv_pages_total": gauges.cells,
        "kv_pages_free": gauges.cells_free,
        "steps": sum(record.count for record in metrics.step_s.values()),
        "graph_captures": gauges.compilations,
        "requests_ok": sum(asks.values()),
        "requests_failed": counts.asks_failed + counts.asks_timed_out,
        "requests_cancelled": counts.asks_cancelled,
        "sessions": gauges.sessions,
        "session_turns": asks.get("computed", 0),
        "prefix_cached_tokens": counts.prefix_tokens_shared,
        "session_ingested_tokens": counts.tokens_ingested,
        "session_flash_hits": asks.get("flash", 0),
        "session_ready_exits": asks.get("ready", 0),
    }


async def alive(call: Call) -> Response:
    """Whether the process answers at all."""
    return replied({"status": "ok"})


async def metrics(call: Call) -> Response:
    """Figures for Prometheus."""
    _check_operator(call)
    service = call.service
    engine = service.engine.metrics() if service.ready else None
    return Response(service.metrics.text(engine), media_type="text/plain; version=0.0.4")


def _check_operator(call: Call) -> None:
    if not call.tenant.operator:
        raise ApiError(403, "this is about all tenants: it takes an operator's key")


async def overview(call: Call) -> Response:
    """The engine's figures, for operators; and whether this key is one's."""
    body: dict[str, object] = {
        "model": call.service.model.name,
        "tenant": call.tenant.name,
        "operator": call.tenant.operator,
    }
    if call.tenant.operator:
        body["metrics"] = call.service.engine.metrics().as_dict()
    return replied(body)
