"""A minute of random clients at a full pool; `scripts/soak.py` does the same for as long as one
likes."""

from __future__ import annotations

from jaxstate.testing import Soak


def test_a_minute_at_a_full_pool_breaks_nothing() -> None:
    """Eight threads, three tenants, a pool for three full sessions, the device, memory and disk."""
    report = Soak(seed=1, clients=8).run(60.0)
    assert not report.broken, report.broken
    assert report.metrics is not None
    counts = report.metrics.counts
    assert counts.sessions_suspended > 20 and counts.sessions_resumed > 20
    assert counts.prefix_tokens_shared > 0
    assert report.checked > 100
    for operation in ("open", "push", "ask", "ask_many", "flash", "cancel", "fork", "suspend"):
        assert report.operations[operation] > 0, f"no {operation}"
