"""Tenants: what each may take, and how much work it had, so that none is served more than its due.

Comes in: weights and quotas, and the work that steps did. Goes out: for each tenant a number that
grows with the work it had, divided by its weight; the scheduler serves the smallest first (start-
time fair queueing). A tenant that comes back after a pause does not make up for all of it: it has
a short start before the one that had least among those at work, enough for a few questions. Does
not know: sessions, steps, clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxstate.engine.types.options import Tenant

# Reading so many cells costs about as much as computing a token (Llama 8B shape on an H100: 65,536
# cells take as long as 16 tokens).
CELLS_PER_TOKEN = 4096


# Tokens that a tenant which comes back may have before the others: who asks now and then does not
# wait behind a flood.
START_TOKENS = 256


_USUAL = Tenant()


class FairShare:
    """The work of all tenants.

    Args:
        tenants: those with a share of their own; all others are as `Tenant()`.
    """

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = dict(tenants)
        self._work: dict[str, float] = {}
        self._active: set[str] = set()
        self._level = 0.0

    def of(self, tenant: str) -> Tenant:
        """What that tenant may take."""
        return self._tenants.get(tenant, _USUAL)

    def work(self, tenant: str) -> float:
        """What it had, by its weight."""
        return self._work.get(tenant, 0.0)

    def charge(self, tenant: str, tokens: int, seen_cells: int) -> None:
        """A step computed so many tokens for it, and read so many cells."""
        amount = (tokens + seen_cells / CELLS_PER_TOKEN) / self.of(tenant).weight
        self._work[tenant] = self.work(tenant) + amount

    def at_work(self, tenants: Iterable[str]) -> None:
        """Those that have something to do now: who comes anew starts near the others, or near where
        they stopped, if all of them made a pause."""
        now = set(tenants)
        staying = [self.work(one) for one in now & self._active]
        if staying:
            self._level = max(self._level, min(staying))
        elif self._active:
            self._level = max(self._level, *map(self.work, self._active))
        for one in now - self._active:
            start = self._level - START_TOKENS / self.of(one).weight
            self._work[one] = max(self.work(one), start)
        self._active = now
        if len(self._work) > 2 * len(now) + 1024:
            self._forget_level()

    def _forget_level(self) -> None:
        """Tenants that would start at the level again, whatever they had before."""
        for one in [one for one in self._work if one not in self._active]:
            if self._work[one] <= self._level - START_TOKENS / self.of(one).weight:
                del self._work[one]
