"""Random clients at a full pool; `scripts/soak.py` does the same for as long as one likes."""

from __future__ import annotations

from tests.harness.soak import Soak

_OPERATIONS = (
    "open",
    "open pinned",
    "push",
    "ask",
    "ask_many",
    "flash",
    "cancel",
    "fork",
    "restore",
    "publish",
    "suspend",
    "resume",
)


def test_a_full_pool_breaks_nothing() -> None:
    """Eight threads, three tenants, a pool for three full sessions, the device, memory and disk."""
    report = Soak(seed=1, clients=8).run(40.0)
    assert not report.broken, report.broken
    assert report.counts["sessions_suspended"] > 20 and report.counts["sessions_resumed"] > 20
    assert report.counts["prefix_tokens_shared"] > 0
    assert report.checked > 100
    for place in ("device", "host", "disk", "log"):
        assert report.tiers[place] > 0, f"no session was seen in its place {place!r}"
    for operation in _OPERATIONS:
        assert report.operations[operation] > 0, f"no {operation}"
