"""What operators are given: every metric that the dashboard and the page name is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "configs" / "deploy" / "grafana.json"


def test_metrics_are_those_of_the_dashboard_and_the_page(http: httpx.Client) -> None:
    http.post("/v1/sessions", json={"id": "feed"})
    http.post("/v1/sessions/feed/push", json={"data": "one"})
    http.post("/v1/sessions/feed/generate", json={"prompt": "?", "max_tokens": 2})
    text = http.get("/metrics").text
    there = set(re.findall(r"^(jaxstate_\w+)", text, re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    named = {
        metric
        for panel in panels
        for target in panel["targets"]
        for metric in re.findall(r"jaxstate_\w+", target["expr"])
    }
    assert len(panels) == 10 and named <= there, named - there
    page = (ROOT / "docs" / "operations.md").read_text()
    said = set(re.findall(r"`(jaxstate_\w+)", page))
    families = {re.sub(r"_(bucket|count|sum)$", "", one) for one in there}
    assert len(said) > 15 and said <= families, said - families
    assert float(re.search(r"^jaxstate_entries_pushed_total (\S+)", text, re.M)[1]) >= 1  # pyright: ignore


def test_histograms_are_as_prometheus_reads_them(http: httpx.Client) -> None:
    text = http.get("/metrics").text
    buckets = re.findall(r'^jaxstate_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text, re.MULTILINE)
    counts = [float(count) for _, count in buckets]
    assert buckets[-1][0] == "+Inf" and counts == sorted(counts)
    assert float(re.search(r"^jaxstate_lag_seconds_count (\S+)", text, re.M)[1]) == counts[-1]  # pyright: ignore
