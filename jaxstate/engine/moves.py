"""What the room says: which session is to move, as of which moment.

Comes in: nothing but values. Goes out: `Move`, `Now`. Does not know: why a session moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxstate.engine.books import Book


@dataclass(frozen=True, slots=True)
class Move:
    """A session that is to leave the device, to come to it, or to come from disk to the host."""

    book: Book
    to: Literal["away", "device", "host"]


@dataclass(frozen=True, slots=True)
class Now:
    """The number of the last step, and monotonic seconds."""

    step: int
    time_s: float
