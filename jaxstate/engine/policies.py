"""What a push does that finds a session's queue full.

Comes in: a policy as a caller gave it. Goes out: the same, checked. Does not know: queues.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from jaxstate.errors import InvalidInput

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
