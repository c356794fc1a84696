"""Where one session's cells live, what they are made of, and what they may take. Plain numbers.

Comes in: tokens that were read, moves. Goes out: a `Residence` that `Room` and the launcher look
at. The token log is the truth and the cells are a cache of it: whatever becomes of them, they can
be computed again. Does not know: other sessions, devices, text.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from jaxstate.cells.prefixes import Link
from jaxstate.cells.tables import CellTable, Seen
from jaxstate.engine.executor import Tokens
from jaxstate.engine.values import Place
from jaxstate.errors import InvalidInput

Residency: TypeAlias = Literal["evictable", "pinned"]


def checked_residency(value: object) -> bool:
    """Whether a session of that class is pinned.

    Raises:
        InvalidInput: there is no such class.
    """
    if value not in ("evictable", "pinned"):
        raise InvalidInput(f'residency={value!r} is neither "evictable" nor "pinned"')
    return value == "pinned"


@dataclass(frozen=True, slots=True)
class Border:
    """Where a version ends.

    Attributes:
        version: it saw the opening and entries 1 .. `version`, nothing else.
        cells: how many those are.
    """

    version: int
    cells: int


class TokenLog:
    """Every token that a session has read, in order, half-read entries included, and where entries
    end: that is what a version saw.

    Args:
        unknown: how many were read before, by whoever saved the session without its tokens.
    """

    def __init__(self, unknown: int = 0) -> None:
        self._unknown = unknown
        self._tokens = np.zeros(0, np.int32)
        self._count = 0
        # Ascending: entries that were read to their end, and how many tokens there were then.
        self._entries = array("q")
        self._ends = array("q")

    def __len__(self) -> int:
        return self._unknown + self._count

    @property
    def complete(self) -> bool:
        """Whether cells can be computed again from it."""
        return self._unknown == 0

    def append(self, tokens: Tokens, ends: Iterable[tuple[int, int]] = ()) -> None:
        """Tokens that were taken to be read.

        Args:
            tokens: int32 [n].
            ends: entries that end among them, each with the number of these tokens up to its end.
        """
        for entry, count in ends:
            self._entries.append(entry)
            self._ends.append(len(self) + count)
        end = self._count + len(tokens)
        if end > len(self._tokens):
            grown = np.zeros(max(end, 2 * len(self._tokens), 64), np.int32)
            grown[: self._count] = self._tokens[: self._count]
            self._tokens = grown
        self._tokens[self._count : end] = tokens
        self._count = end

    def tokens(self, start: int, count: int) -> Tokens:
        """int32 [n]: at most `count` from position `start` on, a copy."""
        assert self.complete, "this log does not know what was read first"
        return self._tokens[start : min(start + count, self._count)].copy()

    def border(self, version: int) -> int | None:
        """How many tokens that version saw: those of entries 1 .. `version` that were not displaced
        (0: of the opening alone). None for one that was not read, or not by this log."""
        known = bisect_right(self._entries, version)
        return self._ends[known - 1] if known else None

    def first_version(self, cells: int) -> int | None:
        """The first version that saw at least so many tokens; None if the log has none."""
        known = bisect_left(self._ends, cells)
        return self._entries[known] if known < len(self._entries) else None

    def ends(self, start: int, end: int) -> list[tuple[int, int]]:
        """Entries that end beyond token `start`, up to token `end`, as `append` takes them."""
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, end)
        first = 0 if start == 0 else first  # an opening without tokens ends at 0
        found = zip(self._entries[first:last], self._ends[first:last], strict=True)
        return [(entry, cells - start) for entry, cells in found]

    def cut(self, count: int) -> None:
        """Forgets all but the first `count` tokens."""
        assert count >= self._unknown, "it does not know what was read first"
        known = bisect_right(self._ends, count)
        del self._entries[known:], self._ends[known:]
        self._count = count - self._unknown

    def copy(self, count: int | None = None) -> TokenLog:
        """The same, or its first `count` tokens, going on by itself."""
        end = len(self) if count is None else count
        assert end >= self._unknown, "it does not know what was read first"
        twin = TokenLog(self._unknown)
        ends = [(entry, cells - self._unknown) for entry, cells in self.ends(0, end)]
        twin.append(self._tokens[: end - self._unknown], ends)
        return twin


@dataclass(slots=True, kw_only=True, eq=False)
class Residence:
    """One session's cells.

    Attributes:
        table: where they lie while they are on the device.
        log: what they are made of.
        tenant: whose they are.
        reserve_blocks: that are always there for it; none any more once its user suspended it.
        pinned: whether it never leaves the device.
        chain: names of the whole blocks of its opening.
        place: where they are.
        granted_blocks: that it may have while it is on the device.
        ordered_blocks: what the budgets count for it: the blocks of all that it has read and of
            what waits to be read.
        wants_since: number of the step since when it waits for room; None if it does not.
        waits_for_prefix: another session computes what it opens with.
        placed_at: number of the step at which it last came to the device, or was seen not to be all
            there yet.
        served: steps since then that did something for it, computing cells again not counted.
        used_s: when it was last pushed to, asked, or read for.
        draining: it is to leave, so nothing begins that would hold it.
        leaving: its user wants it to leave.
        coming: its user wants it on the device, though it has nothing to do there.
        fetching: it is on its way from the disk to the host.
        failures: steps and moves that failed for it, in a row.
        careful: what failed last came to no number, so the entries before it are read by
            themselves.
        attempt: how often it has gone back to read something again, and `attempt_cells`: from
            where on, the last time.
        sound_version: at which a question last had finite numbers, so that its cells are sound.
        doubted_version: at which its cells were last computed again, since a question had not.
        landed_cells: the most that were ever there: beyond them tokens are read for the first time.
        there_cells: that are there now, those of steps under way not counted.
        oldest_cells: who sees fewer of its cells does not find all of them, however short it is: a
            ring had turned before these cells were copied, or shared with it.
    """

    table: CellTable
    log: TokenLog = field(default_factory=TokenLog)
    tenant: str = "default"
    reserve_blocks: int = 0
    pinned: bool = False
    chain: tuple[Link, ...] = ()
    place: Place = "log"
    granted_blocks: int = 0
    ordered_blocks: int = 0
    wants_since: int | None = None
    waits_for_prefix: bool = False
    placed_at: int = 0
    served: int = 0
    used_s: float = 0.0
    draining: bool = False
    leaving: bool = False
    coming: bool = False
    fetching: bool = False
    failures: int = 0
    careful: bool = False
    attempt: int = 0
    attempt_cells: int = 0
    sound_version: int = -1
    doubted_version: int = -1
    landed_cells: int = 0
    there_cells: int = 0
    oldest_cells: int = 0

    @property
    def on_device(self) -> bool:
        """Whether steps can look at its cells."""
        return self.place == "device"

    @property
    def cells(self) -> int:
        """How many it has read, wherever they are, once all that was launched is done."""
        return len(self.log)

    @property
    def missing(self) -> int:
        """Cells that are to be computed again."""
        return len(self.log) - self.table.cells if self.on_device else 0

    @property
    def whole(self) -> bool:
        """Whether all cells that it ever had are on the device."""
        return self.on_device and self.there_cells >= self.landed_cells

    def is_sound(self, version: int) -> None:
        """A question had finite numbers at that version: its cells are not to blame for others."""
        self.sound_version = max(self.sound_version, version)

    def has_gone_back(self, attempt: int, end_cells: int) -> bool:
        """Whether what a step read up to there, launched in an earlier attempt, is read again."""
        if attempt == self.attempt:
            return False
        return attempt + 1 < self.attempt or end_cells > self.attempt_cells

    def seen(self, session: int, cells: int) -> Seen:
        """What a row or a chunk looks at; valid as long as the session stays on the device."""
        return Seen(session=session, tables=self.table.blocks, cells=cells)
