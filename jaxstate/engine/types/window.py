"""What a session keeps of a stream that does not end, as its user says it.

Comes in: budgets in tokens, entries, seconds, or by key. Goes out: a frozen, checked `Window`, also
from the command line and as JSON. Does not know: sessions, what is kept (`context_window`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args

from jaxstate.errors import InvalidInput
from jaxstate.records import Record, checked_int, checked_type, shown

WindowMode: TypeAlias = Literal["exact", "slide"]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Record):
    """What stays in a session's context behind its prefix, which always does.

    The newest entries that are within all budgets given. Whole entries leave, some at a time: the
    context may exceed each budget by `hop` of it before it is computed anew without what has left.

    Attributes:
        tokens: of the entries that stay.
        entries: how many stay.
        age_s: seconds since they were pushed.
        key: a regular expression; of entries in which it finds the same (its first group, or all of
            it without one) only the newest stays. Entries in which it finds nothing have no key.
        hop: by how much of each budget the context may exceed it, above 0, at most 1; None to
            choose it by how busy the device is: what is computed anew is to take a tenth of its
            time.
        mode: "exact": every context is what a fresh prefill of just these entries would give.
            "slide": the cells of the oldest are dropped, in blocks, and all others stay as they
            are and where they are: next to free, and approximate, since they have seen what was
            dropped. For models whose layers all see everything, and without `key`.

    Raises:
        InvalidInput: no budget, one that is not positive, no regular expression, or no such mode.
    """

    tokens: int | None = None
    entries: int | None = None
    age_s: float | None = None
    key: str | None = None
    hop: float | None = None
    mode: WindowMode = "exact"

    def __post_init__(self) -> None:
        """Refuses windows that would keep nothing, or everything."""
        if all(one is None for one in (self.tokens, self.entries, self.age_s, self.key)):
            raise InvalidInput("a window needs a budget: tokens=, entries=, age_s= or key=")
        for name in ("tokens", "entries"):
            value = getattr(self, name)
            if value is not None and checked_int(name, value) < 1:
                raise InvalidInput(f"{name}={value} of a window must be at least 1")
        _check_number("age_s", self.age_s, math.inf)
        _check_number("hop", self.hop, 1.0)
        if self.key is not None:
            self._check_key()
        if self.mode not in get_args(WindowMode):
            raise InvalidInput(f'mode={shown(self.mode)} of a window must be "exact" or "slide"')
        if self.mode == "slide" and self.key is not None:
            raise InvalidInput(
                'mode="slide" drops the oldest entries, and key= others: give one of them up'
            )

    def _check_key(self) -> None:
        if not isinstance(self.key, str) or not self.key:
            raise InvalidInput(f"key={shown(self.key)} of a window must be a regular expression")
        try:
            re.compile(self.key)
        except re.error as error:
            raise InvalidInput(
                f"key={self.key!r} of a window is no regular expression: {error}"
            ) from error

    def key_of(self, text: str) -> str | None:
        """The key of an entry; None if it has none."""
        found = None if self.key is None else re.search(self.key, text)
        if found is None:
            return None
        return found[1] if found.re.groups else found[0]

    def as_json(self) -> str:
        """As a journal keeps it."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_json(kept: str) -> Window:
        """The window again."""
        return Window(**json.loads(kept))

    @staticmethod
    def parse(specs: Sequence[str], hop: float | None = None, mode: WindowMode = "exact") -> Window:
        """A window as it is written on a command line: one budget each, all of which hold.

        Args:
            specs: "4096t" (tokens), "500e" (entries), "90s", "10m", "2h", "1d" (age), "key=REGEX".
            hop, mode: as the attributes.

        Raises:
            InvalidInput: one is something else, or there are two of a kind.
        """
        found: dict[str, int | float | str] = {}
        for spec in specs:
            name, value = _budget(spec)
            if name in found:
                raise InvalidInput(f"window {spec!r}: {name} is given twice")
            found[name] = value
        return Window(**found, hop=hop, mode=mode)  # pyright: ignore[reportArgumentType]


def checked_window(value: object) -> Window | None:
    """A window, as given.

    Raises:
        InvalidInput: it is something else.
    """
    if value is None:
        return None
    return checked_type("window", value, Window, "a jaxstate.Window, or None for all entries")


def _budget(spec: str) -> tuple[str, int | float | str]:
    """The field of a window that one part of it sets."""
    if spec.startswith("key="):
        return "key", spec.removeprefix("key=")
    if counted := re.fullmatch(r"([0-9]+)([te])", spec):
        return {"t": "tokens", "e": "entries"}[counted[2]], int(counted[1])
    if timed := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", spec):
        return "age_s", float(timed[1]) * _UNITS_S[timed[2]]
    raise InvalidInput(
        f"window {spec!r} is none of: 4096t (tokens), 500e (entries), 90s, 10m, 2h, 1d (age), "
        "key=REGEX"
    )


def _check_number(name: str, value: object, most: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{name}={value!r} of a window must be a number")
    if not 0 < value <= most or math.isinf(value):
        bound = "" if math.isinf(most) else f", at most {most:g}"
        raise InvalidInput(f"{name}={value!r} of a window must be a number above 0{bound}")
