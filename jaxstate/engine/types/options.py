"""What an engine can be told: bounds, policies, shares.

Comes in: numbers and names. Goes out: frozen, checked values. Does not know: sessions, devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias, get_args

from jaxstate.engine.types.values import Work
from jaxstate.errors import InvalidInput
from jaxstate.records import checked_int


def check_known(call: str, options: Mapping[str, object], known: type) -> None:
    """Refuses options that a call does not have, in that call's name.

    Args:
        call: what was called, as its caller writes it.
        options: as given.
        known: the `TypedDict` of those that there are.

    Raises:
        TypeError: which one is unknown.
    """
    there: frozenset[str] = getattr(known, "__optional_keys__")  # noqa: B009
    for name in options:
        if name not in there:
            raise TypeError(
                f"{call}() got an unexpected keyword argument {name!r}; it takes "
                f"{', '.join(sorted(there))}"
            )


NamedPolicy = Literal["block", "reject", "drop_oldest"]


NAMED_POLICIES: tuple[NamedPolicy, ...] = get_args(NamedPolicy)


@dataclass(frozen=True, slots=True)
class Coalesce:
    """Only the newest entry of each key waits; a queue that is still full refuses.

    Attributes:
        key: of an entry's text; anything hashable. Entries with key None are all kept.
    """

    key: Callable[[str], Hashable]

    def __post_init__(self) -> None:
        """Refuses what cannot be called."""
        if not callable(self.key):
            raise InvalidInput(f"key={self.key!r} must be a function from an entry's text to a key")


QueuePolicy: TypeAlias = NamedPolicy | Coalesce


# In a journal: the policy that the engine has, whatever that is.
OF_ENGINE = "engine"


def checked_policy(value: object) -> QueuePolicy:
    """What a full queue does, as given.

    Raises:
        InvalidInput: it is none of the policies.
    """
    if isinstance(value, Coalesce):
        return value
    for name in NAMED_POLICIES:
        if isinstance(value, str) and value == name:
            return name
    allowed = ", ".join(map(repr, NAMED_POLICIES))
    raise InvalidInput(f"policy={value!r} is none of {allowed}, Coalesce(key)")


def key_of(policy: QueuePolicy, text: str) -> Hashable | None:
    """The key of an entry; None if the policy has none."""
    return policy.key(text) if isinstance(policy, Coalesce) else None


def kept_name(policy: QueuePolicy, of_engine: QueuePolicy) -> str:
    """A policy as a journal keeps it.

    Raises:
        InvalidInput: it has a function, which no journal can keep.
    """
    if not isinstance(policy, Coalesce):
        return policy
    if policy == of_engine:
        return OF_ENGINE
    raise InvalidInput(
        "a journal cannot keep the function of Coalesce(key): give that policy to the engine, "
        "EngineConfig(queue_policy=Coalesce(key)), and open the session without one"
    )


def policy_of(name: str, of_engine: QueuePolicy) -> QueuePolicy:
    """The policy of that name."""
    return of_engine if name == OF_ENGINE else checked_policy(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What a tenant may take.

    Attributes:
        weight: its share of the work, beside the other tenants' weights.
        quota_cells: cells of all its sessions together, those that wait to be read included; None
            for no bound of its own.

    Raises:
        InvalidInput: a weight or quota that is not positive.
    """

    weight: float = 1.0
    quota_cells: int | None = None

    def __post_init__(self) -> None:
        """Refuses shares of nothing."""
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            raise InvalidInput(f"weight={self.weight!r} must be a number")
        if not 0 < self.weight < 1e9:
            raise InvalidInput(f"weight={self.weight} must be positive")
        quota = self.quota_cells
        if quota is not None and (isinstance(quota, bool) or not isinstance(quota, int)):
            raise InvalidInput(f"quota_cells={quota!r} must be an integer or None")
        if quota is not None and quota < 1:
            raise InvalidInput(f"quota_cells={quota} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How much the urgent may keep the others waiting, in steps.

    Attributes:
        ingest_patience: steps that ingest lets others go first while it could run.
        flash_patience: the same of registered questions.
        rebuild_patience: the same of contexts that are read anew since a window is to move.
        flash_drops: a registered question that was given up so many times in a row (an ask needed
            its blocks, or more was read than a sliding window can spare) is answered the next time
            whatever comes: it keeps what it holds and is as urgent as an ask.
        ride_rows: registered questions under way may join a decode step of asks up to so many rows
            in all.
        room_patience: steps that serve a session which works before it may have to leave the device
            for others that wait for its room.

    Raises:
        InvalidInput: a patience below 1 (asks would starve), or another number below 0.
    """

    ingest_patience: int = 8
    flash_patience: int = 32
    rebuild_patience: int = 32
    flash_drops: int = 4
    ride_rows: int = 8
    room_patience: int = 32

    def __post_init__(self) -> None:
        """Refuses shares with which somebody would starve."""
        for one in fields(self):
            least = 1 if one.name.endswith("_patience") else 0
            if checked_int(one.name, getattr(self, one.name)) < least:
                raise InvalidInput(f"{one.name}={getattr(self, one.name)} must be {least} or more")

    def patience(self, work: Work) -> int:
        """Steps that a class lets others go first; asks never do."""
        by_work = {
            "ask": 0,
            "ingest": self.ingest_patience,
            "flash": self.flash_patience,
            "rebuild": self.rebuild_patience,
        }
        return by_work[work]


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
        waiting_asks: asks of a session that may wait or be under way; one more is `QueueFull`.
        events_limit: events that may wait for one subscriber before it is dropped, and calls of
            `on_fire` that may wait for their thread before one is left out (it is logged and
            counted).
        scheduling: patience of each class of work (`Policy`).
        tenants: those with a weight or a quota of their own; all others are as `Tenant()`.
        idle_s: an idle session leaves the device after so many seconds; None: only when others need
            its room.
        host_bytes: of cells of sessions that left the device, kept in the host's memory: those come
            back the same bit for bit. Beyond it, the longest unused are given up: they come back
            from the session's snapshot in the journal and, what came after it or without one, are
            computed again from its tokens. 0: none is kept.
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
    waiting_asks: int = 1024
    events_limit: int = 1024
    scheduling: Policy = field(default_factory=Policy)
    tenants: Mapping[str, Tenant] = field(default_factory=dict[str, Tenant])
    idle_s: float | None = None
    host_bytes: int = 4 << 30
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
        if checked_int("host_bytes", self.host_bytes) < 0:
            raise InvalidInput(f"host_bytes={self.host_bytes} must be 0 or more")
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
    "host_bytes",
    "snapshot_s",
    "hang_s",
    "flash_staleness_s",
)


def _check_seconds(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidInput(f"{name}={value!r} must be seconds, 0 or more, or None")
