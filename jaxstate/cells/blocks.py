"""The blocks of one group's pool: who owns which. Plain Python integers.

Comes in: requests for a block, for one owner more, for one owner less. Goes out: block numbers.
A block is *free*, or *held* by one owner or several (tables of sessions), or *kept* by nobody but
the prefix cache, or both held and kept. Does not know: sessions, cells, why.
"""

from __future__ import annotations


class BlockPool:
    """Free list and reference counts.

    Args:
        count: P.
    """

    def __init__(self, count: int) -> None:
        self._owners = [0] * count
        self._kept = [False] * count
        # The block that was freed last is taken first: its memory is the likeliest to be near.
        self._free = list(range(count - 1, -1, -1))
        self._held = 0

    @property
    def count(self) -> int:
        """P."""
        return len(self._owners)

    @property
    def free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    @property
    def free_blocks(self) -> tuple[int, ...]:
        """Which those are."""
        return tuple(self._free)

    @property
    def held(self) -> int:
        """Blocks that tables have."""
        return self._held

    def owners(self, block: int) -> int:
        """How many tables have it."""
        return self._owners[block]

    def is_shared(self, block: int) -> bool:
        """Whether somebody else would see what one owner writes into it."""
        return self._owners[block] > 1 or self._kept[block]

    def take(self) -> int:
        """A free block, with one owner from now on; the caller has looked that there is one."""
        block = self._free.pop()
        self._owners[block] = 1
        self._held += 1
        return block

    def share(self, block: int) -> None:
        """One owner more of a block that somebody has, or that is kept."""
        assert self._owners[block] > 0 or self._kept[block], f"block {block} is free"
        self._held += self._owners[block] == 0
        self._owners[block] += 1

    def release(self, block: int) -> bool:
        """One owner less; whether the block is free now."""
        assert self._owners[block] > 0, f"nobody holds block {block}"
        self._owners[block] -= 1
        if self._owners[block] > 0:
            return False
        self._held -= 1
        return self._freed(block)

    def keep(self, block: int) -> None:
        """It stays when its last owner goes."""
        assert self._owners[block] > 0 and not self._kept[block], f"block {block} cannot be kept"
        self._kept[block] = True

    def unkeep(self, block: int) -> bool:
        """It goes with its last owner; whether it is free now."""
        assert self._kept[block], f"block {block} is not kept"
        self._kept[block] = False
        return self._owners[block] == 0 and self._freed(block)

    def check(self) -> None:
        """What must always hold.

        Raises:
            AssertionError: it does not.
        """
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        used = {b for b in range(self.count) if self._owners[b] > 0 or self._kept[b]}
        assert free.isdisjoint(used), f"free and used: {sorted(free & used)}"
        assert len(free) + len(used) == self.count, "a block is lost"
        assert self._held == sum(owners > 0 for owners in self._owners), "the count is off"

    def _freed(self, block: int) -> bool:
        if self._kept[block]:
            return False
        self._free.append(block)
        return True
