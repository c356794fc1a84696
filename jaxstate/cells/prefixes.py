"""Prefixes that were read once and can begin other sessions: a cache of whole blocks.

Comes in: what a session opens with, and who its tenant is. Goes out: blocks that hold the cells of
the longest beginning that is kept. A block is named by a chain of SHA-256: over the model's
fingerprint, then, block by block, over the name before it, the namespace and the block's tokens; so
a name stands for everything that is read up to there, and for whoever may share it. The tokens are
compared as well: not even a collision would give one tenant another's cells. Does not know:
sessions, queues, devices.

The namespace of a block is its tenant, or "public" while the opening is the beginning of one that
the operator declared public. Tenants never find each other's blocks, not even by the time it takes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.tables import CellTable, TableBook

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Link:
    """One whole block of an opening.

    Attributes:
        name: SHA-256 over all that leads to it and itself.
        tokens: the block's, as bytes.
    """

    name: bytes
    tokens: bytes


@dataclass(slots=True, eq=False)
class _Kept:
    """A block that is kept, one of each group; leaves are given up first, the longest unused.

    `writer` is the table whose step computes its cells, None once they are there: the step may
    fail, so nobody finds it before.
    """

    tokens: bytes
    blocks: tuple[int, ...]
    parent: bytes | None
    writer: CellTable | None
    used: int = 0
    children: int = 0


class PrefixCache:
    """Blocks of prefixes, kept until their room is needed.

    Args:
        tables: whose blocks they are; the cache frees blocks when those have none left.
        fingerprint: of the model, its tokenizer and the cells' layout.
    """

    def __init__(self, tables: TableBook, fingerprint: str) -> None:
        self._tables = tables
        self._root = hashlib.sha256(fingerprint.encode()).digest()
        self._kept: dict[bytes, _Kept] = {}
        # Leaves by their last use; what has changed since is passed over.
        self._leaves: list[tuple[int, bytes]] = []
        self._public: list[Tokens] = []
        self._uses = 0
        tables.reclaim = self.reclaim

    def __len__(self) -> int:
        return len(self._kept)

    def publish(self, opening: Tokens) -> None:
        """Declares an opening that all tenants share."""
        if not any(np.array_equal(opening, one) for one in self._public):
            self._public.append(opening)

    def chain(self, opening: Tokens, tenant: str) -> tuple[Link, ...]:
        """The names of an opening's whole blocks.

        The last token is always left to the session itself: its hidden vector is not kept.
        """
        size = self._tables.layout.block_cells
        published = tuple(self._public)  # may be added to meanwhile
        public_tokens = max((_common(opening, one) for one in published), default=0)
        links: list[Link] = []
        name = self._root
        for start in range(0, len(opening) - size, size):
            tokens = np.ascontiguousarray(opening[start : start + size], np.int32).tobytes()
            public = start + size <= public_tokens
            namespace = b"public" if public else b"tenant:" + tenant.encode()
            digest = hashlib.sha256(name)
            digest.update(len(namespace).to_bytes(4, "little") + namespace + tokens)
            name = digest.digest()
            links.append(Link(name=name, tokens=tokens))
        return tuple(links)

    def has(self, link: Link) -> bool:
        """Whether that block is kept, and its cells are there."""
        return self._find(link) is not None

    def _find(self, link: Link) -> _Kept | None:
        kept = self._of(link)
        return kept if kept is not None and kept.writer is None else None

    def _of(self, link: Link) -> _Kept | None:
        kept = self._kept.get(link.name)
        return kept if kept is not None and kept.tokens == link.tokens else None

    def adopt(self, table: CellTable, chain: Sequence[Link]) -> int:
        """Begins an empty table with the longest beginning of a chain that is kept.

        Returns:
            The cells that need not be read.
        """
        found: list[tuple[int, ...]] = []
        for link in chain:
            kept = self._find(link)
            if kept is None:
                break
            found.append(kept.blocks)
            self._use(link.name, kept)
        self._tables.adopt(table, found)
        return table.cells

    def keep(self, chain: Sequence[Link], index: int, table: CellTable) -> None:
        """Keeps the block of a link that the table has just completed, unless one is kept; `ready`
        says when its cells are there."""
        link = chain[index]
        parent = self._of(chain[index - 1]) if index else None
        if link.name in self._kept or (index and parent is None):
            return
        blocks = self._tables.block_of(table, index)
        self._tables.keep(blocks)
        parent_name = chain[index - 1].name if index else None
        kept = self._kept[link.name] = _Kept(link.tokens, blocks, parent_name, table)
        if parent is not None:
            parent.children += 1
        self._use(link.name, kept)

    def ready(self, link: Link, table: CellTable) -> None:
        """The cells of a link's block in that table are there; the block may not be kept."""
        kept = self._kept.get(link.name)
        if kept is not None and kept.writer is table:
            kept.writer = None

    def reclaim(self) -> bool:
        """Gives up the leaf that was used longest ago, rather one that no session has; False if
        nothing is kept."""
        held: list[tuple[int, bytes]] = []
        found: tuple[int, bytes] | None = None
        while self._leaves and found is None:
            leaf = heapq.heappop(self._leaves)
            if self._is_leaf(leaf):
                if self._tables.is_held(self._kept[leaf[1]].blocks):
                    held.append(leaf)
                else:
                    found = leaf
        if found is None and held:
            found = held.pop(0)
        for leaf in held:
            heapq.heappush(self._leaves, leaf)
        if found is not None:
            self._give_up(found[1])
        return found is not None

    def forget(self, chain: Sequence[Link]) -> None:
        """Gives up the blocks of a chain that no session has, and on which nothing builds."""
        for link in reversed(chain):
            kept = self._of(link)
            if kept is None or kept.children or self._tables.is_held(kept.blocks):
                return
            self._give_up(link.name)

    def clear(self) -> None:
        """Gives everything up: the cells are gone."""
        for kept in self._kept.values():
            self._tables.unkeep(kept.blocks)
        self._kept, self._leaves = {}, []

    def _is_leaf(self, leaf: tuple[int, bytes]) -> bool:
        used, name = leaf
        kept = self._kept.get(name)
        return kept is not None and kept.children == 0 and kept.used == used

    def _give_up(self, name: bytes) -> None:
        kept = self._kept.pop(name)
        self._tables.unkeep(kept.blocks)
        if kept.parent is not None:
            parent = self._kept[kept.parent]
            parent.children -= 1
            if parent.children == 0:
                heapq.heappush(self._leaves, (parent.used, kept.parent))

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """All kept blocks, one of each group."""
        return [one.blocks for one in self._kept.values()]

    def _use(self, name: bytes, kept: _Kept) -> None:
        self._uses += 1
        kept.used = self._uses
        if kept.children == 0:
            heapq.heappush(self._leaves, (kept.used, name))
        if len(self._leaves) > 2 * len(self._kept) + 64:
            self._leaves = [(one.used, n) for n, one in self._kept.items() if one.children == 0]
            heapq.heapify(self._leaves)


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two openings begin with in common."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
