"""The engine's bounds and shares, declared in one place.

Comes in: numbers. Goes out: a frozen `EngineConfig`, checked. Does not know: models, devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias, get_args

from jaxstate.engine.policies import QueuePolicy
from jaxstate.engine.scheduler import Policy
from jaxstate.engine.tenants import Tenant
from jaxstate.errors import InvalidInput
from jaxstate.records import checked_int

Resume: TypeAlias = Literal["auto", "copy", "rebuild"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Bounds of every session, and how classes of work share the device.

    Attributes:
        queue_entries: entries that may wait in a session's queue.
        queue_policy: of sessions that are opened without one.
        flash_limit: flash queries of a session.
        flash_staleness_s: how old the answers of flash queries may become while their session goes
            on reading: under load they get the share of the device that keeps them so, as long as
            reading keeps half of it. `EngineMetrics.flash_missed_s` says by how much it was missed.
        warm_limit: warm questions of a session.
        waiting_asks: asks of a session that may wait or be under way; one more is `QueueFull`.
        events_limit: events that may wait for one subscriber before it is dropped, and calls of
            `on_fire` that may wait for their thread before one is left out (it is logged and
            counted).
        scheduling: patience of each class of work (`Policy`).
        tenants: those with a weight or a quota of their own; all others are as `Tenant()`.
        idle_s: an idle session leaves the device after so many seconds; None: only when others need
            its room.
        resume: how a session that left comes back: "copy" (its cells are kept, and are then the
            same bit for bit), "rebuild" (they are computed again from its tokens), or "auto":
            whichever was measured to be cheaper.
        host_bytes: cells of such sessions in the host's memory; more go to disk or, without one
            (and unless `resume` is "copy"), are computed again.
        disk_path: where they go then; None for no disk.
        snapshot_s: with a journal, each session that has read something is written to disk every so
            many seconds, and when the engine is closed; None: only then.
        snapshot_keep: snapshots of a session that are kept.
        snapshot_bytes: of one piece of a snapshot; what is in whole pieces is written once.
        hang_s: how long closing the engine waits for a device that does not answer; a step that
            takes longer is left behind, and the last snapshot is given up.
    """

    queue_entries: int = 4096
    queue_policy: QueuePolicy = "block"
    flash_limit: int = 64
    flash_staleness_s: float = 5.0
    warm_limit: int = 16
    waiting_asks: int = 1024
    events_limit: int = 1024
    scheduling: Policy = field(default_factory=Policy)
    tenants: Mapping[str, Tenant] = field(default_factory=dict[str, Tenant])
    idle_s: float | None = None
    resume: Resume = "auto"
    host_bytes: int = 4 << 30
    disk_path: str | None = None
    snapshot_s: float | None = 60.0
    snapshot_keep: int = 2
    snapshot_bytes: int = 256 << 20
    hang_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuses bounds that would let nothing through."""
        for one in fields(self):
            if one.name in _NO_COUNTS:
                continue
            if checked_int(one.name, getattr(self, one.name)) < 1:
                raise InvalidInput(f"{one.name}={getattr(self, one.name)} must be at least 1")
        if not isinstance(self.scheduling, Policy):
            raise InvalidInput(f"scheduling={self.scheduling!r} must be a jaxstate.Policy")
        if not all(isinstance(one, Tenant) for one in self.tenants.values()):
            raise InvalidInput(f"tenants={self.tenants!r} must map names to jaxstate.Tenant")
        if self.resume not in get_args(Resume):
            raise InvalidInput(f"resume={self.resume!r} is none of {get_args(Resume)}")
        for name in ("idle_s", "snapshot_s", "hang_s", "flash_staleness_s"):
            _check_seconds(name, getattr(self, name))
        for name in ("hang_s", "flash_staleness_s"):
            if getattr(self, name) is None:
                raise InvalidInput(f"{name}=None must be seconds, 0 or more")
        if self.snapshot_s == 0:
            raise InvalidInput("snapshot_s=0 would do nothing else; give seconds, or None")


_NO_COUNTS = (
    "queue_policy",
    "scheduling",
    "tenants",
    "idle_s",
    "resume",
    "disk_path",
    "snapshot_s",
    "hang_s",
    "flash_staleness_s",
)


def _check_seconds(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidInput(f"{name}={value!r} must be seconds, 0 or more, or None")
