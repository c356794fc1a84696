"""What of a session's entries is in its context, and what is to leave it. Plain numbers.

Comes in: a `Window`, entries as they are pushed, the log of what was read. Goes out: by how much
the context exceeds the window, what of it would stay, whether the next entry still fits. Does not
know: cells, other sessions, when anything is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from jaxstate.engine.sessions.token_log import TokenLog
from jaxstate.engine.types.window import Window
from jaxstate.errors import CapacityExceeded, InvalidInput

# Of hops that are chosen: before anything is measured; at least so much, and so many tokens.
FIRST_HOP = 1 / 4
LEAST_HOP = 1 / 8
LEAST_HOP_TOKENS = 64
# Room for what comes while a context is read anew: so many times what would, were the device idle.
ARRIVALS = 4
# Of the device's time, what is computed anew is to take one part in so many.
DEVICE_SHARE = 10


@dataclass(frozen=True, slots=True)
class Noted:
    """What the window has to know of an entry.

    Attributes:
        pushed_s: when it was pushed, in monotonic seconds.
        key: that it shares with those that it replaces; None for none.
    """

    pushed_s: float
    key: str | None = None


class ContextWindow:
    """The window of one session.

    Args:
        window: as its user gave it.
        frozen_cells: of what the session begins with, which always stays.
        capacity_cells: that it may have at most, those included.
        reach_cells: positions that it may take.
        cut_cells: of entries that have left in part, at most, beside those bounds.
        now_s: the time, in monotonic seconds.

    Attributes:
        window: as its user gave it.
        hop: by how much of each budget the context may exceed it now.
        in_place: the session's cells are to be computed again where they are: there is no room for
            others beside them.
        failed_version: at which its context could not be read anew; -1 for none.
        reach_cells: positions that it may take.
        read_tokens: that the session has read since the window last moved, at `moved_s`.
    """

    def __init__(
        self,
        window: Window,
        frozen_cells: int,
        capacity_cells: int,
        reach_cells: int,
        cut_cells: int,
        now_s: float,
    ) -> None:
        self.window = window
        self._cut_cells = cut_cells
        self.reach_cells = reach_cells
        self.in_place = False
        self.failed_version = -1
        self.moved_s = now_s
        self.read_tokens = 0
        self._frozen_cells = frozen_cells
        self._capacity_cells = capacity_cells
        self._noted: dict[int, Noted] = {}
        # Of the entries that were read: the newest of each key, the others that have one, and the
        # tokens of these.
        self._newest: dict[str, int] = {}
        self._replaced: set[int] = set()
        self._replaced_tokens = 0
        self._looked_at = 0
        # Of the device's time that reading the stream takes; unknown before the first move.
        self._read_share = 1.0
        self.hop = self._hop(FIRST_HOP) if window.hop is None else window.hop

    # --- its bounds ---

    @property
    def room_tokens(self) -> int:
        """Tokens of entries that there could be."""
        return self._capacity_cells - self._frozen_cells

    @property
    def budget_tokens(self) -> int:
        """Tokens of the entries that stay: as given, or as leaves room for the hop."""
        if self.window.tokens is not None:
            return self.window.tokens
        return max(1, int(self.room_tokens / (1.0 + (self.window.hop or 1.0))))

    @property
    def most_tokens(self) -> int:
        """Tokens of entries that the context has at most, at this hop."""
        return self._most_tokens(self.hop)

    @property
    def most_cells(self) -> int:
        """Cells that the session has at most, at any hop."""
        most = self._most_tokens(self.window.hop or 1.0)
        return self._frozen_cells + most + self._cut_cells

    def _most_tokens(self, hop: float) -> int:
        budget = self.budget_tokens
        return min(self.room_tokens, budget + max(1, int(hop * budget)))

    def _hop(self, hop: float) -> float:
        """A hop that is not too small."""
        return min(1.0, max(hop, LEAST_HOP, LEAST_HOP_TOKENS / self.budget_tokens))

    @property
    def most_entries(self) -> int | None:
        """Entries that the context has at most; None for any number."""
        entries = self.window.entries
        return None if entries is None else entries + max(1, int(self.hop * entries))

    def check(self) -> None:
        """Refuses a window that its session has no cells for.

        Raises:
            InvalidInput: with the numbers.
        """
        tokens = self.window.tokens or 1
        hop = max(1, int((self.window.hop or 0.0) * tokens))
        if tokens + hop > self.room_tokens:
            raise InvalidInput(
                f"a window of {tokens} tokens and a hop of {hop} do not fit behind a prefix of "
                f"{self._frozen_cells} cells: there is room for {max(0, self.room_tokens)}, with a "
                "question and its answer allowed for. Give fewer tokens, a smaller hop, or an "
                "engine with more session_cells"
            )

    def _too_long(self, tokens: Iterable[int]) -> int | None:
        """Tokens of the longest entry, if it is larger than the window."""
        longest = max(tokens, default=0)
        return longest if longest > self.budget_tokens else None

    def check_waiting(self, tokens: Iterable[int]) -> None:
        """Refuses a window that is smaller than an entry which waits, by their tokens.

        Raises:
            InvalidInput: it is.
        """
        if (longest := self._too_long(tokens)) is not None:
            raise InvalidInput(
                f"an entry of {longest} tokens waits to be read, and this window keeps "
                f"{self.budget_tokens}: wait until it is read, or give a larger window"
            )

    def check_entries(self, tokens: Iterable[int]) -> None:
        """Refuses entries that are larger than the window, by their tokens.

        Raises:
            CapacityExceeded: one is.
        """
        if (longest := self._too_long(tokens)) is not None:
            raise CapacityExceeded(
                f"an entry has {longest} tokens, and the session's window keeps "
                f"{self.budget_tokens}; nothing was added. Push it in pieces, or give the session "
                "a larger window"
            )

    def tokens_left(self, log: TokenLog) -> int:
        """Tokens of entries that a context of that log can still take."""
        return max(0, self.most_tokens - (len(log) - log.first_end()))

    def entries_left(self, log: TokenLog) -> int | None:
        """Entries that it can still take; None for any number."""
        return None if self.most_entries is None else max(0, self.most_entries - log.count)

    def fits(self, log: TokenLog, tokens: int) -> bool:
        """Whether it can take one more entry, of so many tokens."""
        return self.entries_left(log) != 0 and tokens <= self.tokens_left(log)

    # --- what it is told ---

    def note(self, first: int, keys: Sequence[str | None], now_s: float) -> None:
        """Entries first, first + 1, … were pushed."""
        self._noted.update((number, Noted(now_s, key)) for number, key in enumerate(keys, first))

    @property
    def noted(self) -> list[tuple[int, Noted]]:
        """What is known of entries that are in the context, or wait."""
        return list(self._noted.items())

    def note_keys(self, keys: Iterable[tuple[int, str | None]]) -> None:
        """The keys of entries that were pushed before."""
        for number, key in keys:
            self._noted[number] = Noted(self._known(number).pushed_s, key)

    def note_all(self, noted: Iterable[tuple[int, Noted]]) -> None:
        """What is known of entries that were pushed before."""
        self._noted.update(noted)

    def _known(self, number: int) -> Noted:
        return self._noted.get(number) or Noted(self.moved_s)

    def read(self, log: TokenLog, tokens: int = 0) -> None:
        """Its session has read on, so many tokens: the log has more entries."""
        self.read_tokens += tokens
        for number, _ in log.behind(self._looked_at):
            self._looked_at = number
            if (key := self._known(number).key) is None:
                continue
            if (older := self._newest.get(key)) is not None:
                self._replaced.add(older)
                self._replaced_tokens += log.tokens_of(older)
            self._newest[key] = number

    def moved(self, log: TokenLog, now_s: float, token_s: float | None) -> None:
        """The context is that of another log.

        Args:
            log: it.
            now_s: the time.
            token_s: that reading one token takes; None if that was not measured.
        """
        self._choose_hop(now_s - self.moved_s, token_s)
        there = set(log.numbers)
        self._noted = {
            number: one
            for number, one in self._noted.items()
            if number in there or number > log.base_version
        }
        self._newest, self._replaced, self._replaced_tokens = {}, set(), 0
        self._looked_at, self.read_tokens = 0, 0
        self.moved_s, self.in_place = now_s, False
        self.read(log)

    def _choose_hop(self, passed_s: float, token_s: float | None) -> None:
        """A hop of h of the budget lets reading the context anew take 1/h of what reading the
        stream takes; it is to take a tenth of the device's time."""
        share = 1.0 if token_s is None or passed_s <= 0 else self.read_tokens * token_s / passed_s
        self._read_share = min(1.0, share)
        if self.window.hop is None:
            self.hop = self._hop(DEVICE_SHARE * share)

    # --- what is to leave ---

    @property
    def begins_at(self) -> float:
        """The excess at which the context is to be read anew: the later, the less often that is
        done; but what comes meanwhile needs room, and the less idle time there is, the more."""
        return self.hop * max(0.5, 1.0 - ARRIVALS * self._read_share)

    def excess(self, log: TokenLog, now_s: float) -> float:
        """By how much of it the context exceeds the budget that it exceeds most."""
        live, window = len(log) - log.first_end(), self.window
        found = [live / self.budget_tokens - 1.0]
        if window.entries is not None:
            found.append(log.count / window.entries - 1.0)
        if window.age_s is not None and log.oldest is not None:
            found.append((now_s - self._known(log.oldest).pushed_s) / window.age_s - 1.0)
        if window.key is not None:
            found.append(self._replaced_tokens / max(1, live - self._replaced_tokens))
        return max(found)

    def old_s(self, log: TokenLog) -> float | None:
        """When its oldest entry exceeds the age by that much; None without one, or an age."""
        if self.window.age_s is None or log.oldest is None:
            return None
        return self._known(log.oldest).pushed_s + self.window.age_s * (1.0 + self.begins_at)

    def stays(
        self, log: TokenLog, cells: int, now_s: float, next_tokens: int | None = None
    ) -> list[int]:
        """The entries that are within the window, ascending.

        Args:
            log: of them.
            cells: entries that end within so many are looked at.
            now_s: the time.
            next_tokens: of the entry that comes next, for which there is to be room; None if it is
                not known.
        """
        window, found = self.window, list[int]()
        left = min(self.budget_tokens, self.most_tokens - (next_tokens or 0))
        for number, tokens in log.newest_first(cells):
            age_s = now_s - self._known(number).pushed_s
            too_old = window.age_s is not None and age_s > window.age_s
            if too_old or len(found) == window.entries:
                break
            if number in self._replaced:
                continue
            left -= tokens
            if left < 0:
                break
            found.append(number)
        return found[::-1]

    @property
    def replaced(self) -> Collection[int]:
        """Entries of the context that are to leave since a newer one has their key."""
        return self._replaced

    def of(self, window: Window, now_s: float) -> ContextWindow:
        """Another window of the same session, or of one that goes its own way."""
        bounds = (self._frozen_cells, self._capacity_cells, self.reach_cells, self._cut_cells)
        twin = ContextWindow(window, *bounds, now_s)
        twin.note_all(self.noted)
        return twin
