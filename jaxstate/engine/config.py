"""The engine's bounds and shares, declared in one place.

Comes in: numbers. Goes out: a frozen `EngineConfig`, checked. Does not know: models, devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from jaxstate.engine.ingest import QueuePolicy
from jaxstate.engine.scheduler import Policy
from jaxstate.errors import InvalidInput
from jaxstate.records import checked_int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Bounds of every session, and how classes of work share the device.

    Attributes:
        queue_entries: entries that may wait in a session's queue.
        queue_policy: of sessions that are opened without one.
        flash_limit: flash queries of a session.
        warm_limit: warm questions of a session.
        waiting_asks: asks of a session that may wait or be under way; one more is `QueueFull`.
        events_limit: events that may wait for one subscriber before it is dropped, and calls of
            `on_fire` that may wait for their thread before one is left out (it is logged and
            counted).
        scheduling: patience of each class of work (`Policy`).
    """

    queue_entries: int = 4096
    queue_policy: QueuePolicy = "block"
    flash_limit: int = 64
    warm_limit: int = 16
    waiting_asks: int = 1024
    events_limit: int = 1024
    scheduling: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        """Refuses bounds that would let nothing through."""
        for one in fields(self):
            if one.name in ("queue_policy", "scheduling"):
                continue
            if checked_int(one.name, getattr(self, one.name)) < 1:
                raise InvalidInput(f"{one.name}={getattr(self, one.name)} must be at least 1")
        if not isinstance(self.scheduling, Policy):
            raise InvalidInput(f"scheduling={self.scheduling!r} must be a jaxstate.Policy")
