"""Host-side values that cross the public surface: how to sample, and what a question returned.

Plain frozen dataclasses over numbers, strings and numpy arrays; no jax.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from jaxstate.errors import InvalidInput

T = TypeVar("T")

JsonValue: TypeAlias = (
    "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)
FinishReason = Literal["stop", "length"]
# What outlives what, ascending: nothing; a process that is killed; a machine that loses its power.
Durability = Literal["memory", "os", "fsync"]
LEVELS: tuple[Durability, ...] = get_args(Durability)


def checked_durability(value: object) -> Durability:
    """A level of durability, as given.

    Raises:
        InvalidInput: there is no such level.
    """
    for level in LEVELS:
        if value == level:
            return level
    raise InvalidInput(f"durability={value!r} is none of {', '.join(map(repr, LEVELS))}")


def checked_int(name: str, value: object) -> int:
    """An integer argument (numpy's integers too, booleans not) as an int.

    Raises:
        InvalidInput: it is something else.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise InvalidInput(f"{name}={value!r} must be an integer, not {type(value).__name__}")


def checked_type(name: str, value: object, kind: type[T], wanted: str) -> T:
    """A value of that type.

    Args:
        name: what the caller calls it.
        value: as given.
        kind: that it must be of.
        wanted: the same in words.

    Raises:
        InvalidInput: it is of another.
    """
    if isinstance(value, kind):
        return value
    raise InvalidInput(f"{name}={shown(value)} is {type(value).__name__}, and must be {wanted}")


def checked_path(name: str, value: object) -> Path:
    """A path as given, absolute from now on: where the process goes later does not change it.

    Raises:
        InvalidInput: it is no path, or empty.
    """
    if isinstance(value, str | os.PathLike) and os.fspath(value):
        return Path(value).absolute()
    raise InvalidInput(
        f"{name}={shown(value)} is {type(value).__name__}, and must be a path"
        if value != ""
        else f"{name} is empty, and must be a path"
    )


def shown(value: object) -> str:
    """A value in an error, short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Record:
    """A value that callers get back, and that JSON can carry: a dataclass."""

    __slots__ = ()

    def as_dict(self) -> dict[str, JsonValue]:
        """Its fields as JSON takes them: records as objects, sequences and arrays as lists, numbers
        that are not finite as null."""
        names = [one.name for one in fields(self)]  # pyright: ignore[reportArgumentType]
        return {name: _json(getattr(self, name)) for name in names}


class EventRecord(Record):
    """Something that happened.

    Attributes:
        event: what, by its name among all events.
    """

    __slots__ = ()
    event: ClassVar[str]

    def as_dict(self) -> dict[str, JsonValue]:
        """As `Record`, with the event's name as "event"."""
        return {"event": self.event, **super().as_dict()}


def _json(value: object) -> JsonValue:
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, np.ndarray | np.generic):
        return _json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answer tokens are chosen.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it; any finite number.
        top_p: after temperature, tokens are drawn from the smallest set whose probabilities sum to
            at least this, 0 < top_p <= 1.
        seed: the same seed, session and question give the same answer, alone or in a batch; 0 to
            2**32 - 1.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values of another type or outside their range."""
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise InvalidInput(f"{name}={value!r} must be a number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise InvalidInput(f"temperature={self.temperature} must be finite and not negative")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInput(f"top_p={self.top_p} must lie in 0 < top_p <= 1")
        if not 0 <= checked_int("seed", self.seed) < 2**32:
            raise InvalidInput(f"seed={self.seed} must lie in 0 .. 2**32 - 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryResult(Record):
    """What a question returned.

    Attributes:
        tokens: int32 [n], the answer, without the token or the text that ended it; n may be 0.
        logits: float32 [V], of the first answer token.
        logprobs: float32 [n], log-probability of each answer token under the model (temperature and
            top_p not applied).
        finish_reason: "stop" if a stop token or stop string ended it, "length" if max_tokens did.
        text: the answer decoded, cut before a stop string; None if the model has no tokenizer.
    """

    tokens: NDArray[np.int32]
    logits: NDArray[np.float32]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    text: str | None = None
