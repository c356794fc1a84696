"""Strict reading of foreign key-value descriptions: every key is used, allowed, or reported.

Comes in: a mapping of unknown content and a list for problems. Goes out: checked values; after
`finish`, the list names every wrong value and every key that nobody asked for. A wrong value never
stops the reading: its default stands in, so that one pass finds everything, and the caller
raises once.
Does not know: what a key means.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeGuard

from jaxstate.errors import UnsupportedModel

_SHOWN_CHARACTERS = 80
_UNKNOWN = "unknown field "


class Fields:
    """One mapping that is being read.

    Args:
        values: the keys and values.
        problems: where to report; shared by all mappings of one model.
        where: prefix of keys in reports, such as "text_config.".
        ignored: unknown keys, with their prefix, that the caller says are without influence; those
            that are found leave the set.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        problems: list[str],
        where: str = "",
        ignored: set[str] | None = None,
    ) -> None:
        self._values = values
        self._ignored = set() if ignored is None else ignored
        self._read: set[str] = set()
        self.problems = problems
        self.where = where

    def problem(self, text: str) -> None:
        """Reports something that is wrong."""
        self.problems.append(text)

    def has(self, name: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(name) is not None

    def given(self, name: str) -> bool:
        """Whether the key is there, be it null."""
        return name in self._values

    def take(self, name: str) -> object:
        """The raw value, or None when it is absent or null."""
        self._read.add(name)
        return self._values.get(name)

    def integer(self, name: str, default: int | None, minimum: int = 1) -> int:
        """A whole number; a default of None makes it required."""
        value = self.take(name)
        if value is None and default is not None and name not in self._values:
            return default
        if _is_integer(value) and value >= minimum:
            return value
        self._wrong(name, value, f"a whole number >= {minimum}")
        return default if default is not None else max(minimum, 1)

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """A positive whole number; null is None, absence is the default."""
        if name in self._values and self.take(name) is None:
            return None
        return None if not self.has(name) and default is None else self.integer(name, default)

    def positive(self, name: str, default: float | None) -> float:
        """A finite number above zero; a default of None makes it required."""
        value = self.take(name)
        if value is None and default is not None and name not in self._values:
            return default
        if _is_number(value) and value > 0:
            return float(value)
        self._wrong(name, value, "a finite number > 0")
        return default if default is not None else 1.0

    def optional_positive(self, name: str) -> float | None:
        """A finite number above zero, or None when it is absent or null."""
        return self.positive(name, None) if self.take(name) is not None else None

    def boolean(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name)
        if isinstance(value, bool):
            return value
        if name in self._values:
            self._wrong(name, value, "true or false")
        return default

    def text(self, name: str) -> str | None:
        """A string, or None when it is absent or null."""
        value = self.take(name)
        if value is None or isinstance(value, str):
            return value
        self._wrong(name, value, "a string")
        return None

    def texts(self, name: str) -> list[str] | None:
        """A list of strings, or None when it is absent or null."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, list):
            found = [item for item in value if isinstance(item, str)]
            if len(found) == len(value):
                return found
        self._wrong(name, value, "a list of strings")
        return None

    def token_ids(self, name: str) -> tuple[int, ...] | None:
        """One token id or a list of them, without repetitions; None when it is absent or null."""
        value = self.take(name)
        if value is None:
            return None
        items: Sequence[object] = value if isinstance(value, list) else [value]
        found = [item for item in items if _is_integer(item) and item >= 0]
        if len(found) != len(items):
            self._wrong(name, value, "a token id or a list of token ids")
        return tuple(dict.fromkeys(found))

    def group(self, name: str) -> Fields | None:
        """A nested mapping, or None when it is absent, null or empty."""
        value = self.take(name)
        if value is None or value == {}:
            return None
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return Fields(value, self.problems, f"{self.where}{name}.", self._ignored)
        self._wrong(name, value, "a mapping")
        return None

    def require(self, name: str, allowed: Sequence[object], meaning: str) -> None:
        """Reports a value other than the ones that this version computes; absence is fine."""
        value = self.take(name)
        if name in self._values and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed
        ):
            self._wrong(name, value, meaning)

    def ignore(self, names: Iterable[str]) -> None:
        """Keys that have no influence on what is computed."""
        self._read.update(names)

    def ignore_rest(self) -> None:
        """Everything else is beside the point, because of a problem that is already reported."""
        self._read.update(self._values)

    def unread(self) -> list[str]:
        """Keys that nobody asked for yet."""
        return [name for name in self._values if name not in self._read]

    def finish(self) -> None:
        """Reports all keys that nobody asked for, but those to be ignored."""
        for name in self.unread():
            key = f"{self.where}{name}"
            if key in self._ignored:
                self._ignored.remove(key)
            else:
                self.problem(f"{_UNKNOWN}{key} = {_shown(self._values[name])}")

    def _wrong(self, name: str, value: object, wanted: str) -> None:
        key = f"{self.where}{name}"
        if name in self._values:
            self.problem(f"{key} = {_shown(value)} is not supported; it must be {wanted}")
        else:
            self.problem(f"{key} is missing; it must be {wanted}")


def check_ignored(left: Collection[str], problems: list[str]) -> None:
    """Reports names that were to be ignored, and that no unknown field has."""
    problems += [f"ignore: {name} is no unknown field here" for name in sorted(left)]


def raise_problems(source: str, problems: Sequence[str]) -> None:
    """One error with everything that is wrong, or nothing.

    Raises:
        UnsupportedModel: there are problems.
    """
    if not problems:
        return
    lines = "".join(f"\n  - {problem}" for problem in problems)
    unknown = [
        problem.removeprefix(_UNKNOWN).split(" = ", 1)[0]
        for problem in problems
        if problem.startswith(_UNKNOWN)
    ]
    way_out = ""
    if len(unknown) == len(problems):
        way_out = (
            "\nIf you know that this changes nothing of what is computed, load it all the same "
            f"with ignore={unknown}"
        )
    raise UnsupportedModel(
        f"{source} describes a model that cannot be run exactly:{lines}{way_out}"
    )


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
