"""Cells of snapshots, in pieces: each is written once, and stays what it is.

    PATH/segments/NAME/     what the writer made of one piece; NAME is SHA-256 over its content
    PATH/set-aside/NAME/    a piece that was found to be damaged

Comes in: a session's cells at one version, from a position on. Goes out: pieces with names, and the
cells again. A snapshot is a list of pieces. Cells are only ever added, so the next snapshot of a
session has all but the last of the pieces before, and sessions that read the same have the same
pieces: what is there is not written again. Does not know: what writes a piece to files and reads it
(an `Executor`), which snapshots there are (`changes`).

Layers with a sliding window keep only their last cells, which lie in the last piece, whole; so only
a whole snapshot can be used of such a model. Otherwise the beginning of a damaged one can be.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import PoolLayout
from jaxstate.errors import JournalDamaged
from jaxstate.persist.files import Arrays, checksum, sync_tree

# Arrays of a piece hold the cells of one layer ("keys_012"); "ready" is of the last cell alone.
_LAYER = re.compile(r"(?:keys|values)_(\d+)")
READY = "ready"
ASIDE = "set-aside"
_NEW = ".new"
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece that is on disk: cells first .. last - 1."""

    name: str
    first: int
    last: int


def cuts(prefix_cells: int, cells: int, size: int) -> list[tuple[int, int]]:
    """Where a session's cells are cut: at the end of what it shares with others, and every `size`
    cells on both sides of it.

    Returns:
        (first, last) of each piece, in order; together 0 .. `cells`.
    """
    shared = min(prefix_cells, cells)
    borders = [*range(0, shared, size), *range(shared, cells, size), cells]
    return list(itertools.pairwise(borders))


def part_of(layout: PoolLayout, arrays: Arrays, cells: int, first: int, last: int) -> Arrays:
    """The piece first .. last of a session's cells that are all on the host.

    Args:
        layout: of the cells.
        arrays: of all `cells`; of layers with a window what is kept of them.
        cells: how many.
        first, last: of the piece.
    """
    found: Arrays = {}
    for name, array in arrays.items():
        if name == READY:
            found[name] = array if last == cells else np.zeros_like(array)
        elif window_of(layout, name) is None:
            found[name] = array[first:last]
        else:
            found[name] = array if last == cells else array[:0]
    return found


def joined(layout: PoolLayout, parts: Sequence[Arrays]) -> Arrays:
    """A session's cells of pieces that follow each other from its first cell on."""
    found: Arrays = {}
    for name, array in parts[-1].items():
        whole = name != READY and window_of(layout, name) is None
        found[name] = np.concatenate([part[name] for part in parts]) if whole else array
    return found


def window_of(layout: PoolLayout, name: str) -> int | None:
    """How many cells the layer of an array sees; None for all."""
    layer = _LAYER.fullmatch(name)
    return None if layer is None else layout.groups[layout.layer_groups[int(layer[1])]].window


def has_windows(layout: PoolLayout) -> bool:
    """Whether some layer does not keep all cells."""
    return any(group.window is not None for group in layout.groups)


def segment_name(
    arrays: Arrays, first: int, tokens: NDArray[np.int32], ends: NDArray[np.int64]
) -> str:
    """SHA-256 over all that a piece is."""
    digest = hashlib.sha256(f"{first}".encode())
    for name, array in sorted([*arrays.items(), ("tokens", tokens), ("ends", ends)]):
        digest.update(f"{name} {checksum(array)}\n".encode())
    return digest.hexdigest()


class SegmentStore:
    """The directory of pieces.

    Args:
        folder: made by the journal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Nobody clears away what somebody else reads, or is about to name in a snapshot. It is
        # held for that alone: never while somebody waits for a device.
        self.lock = threading.Lock()
        self._claimed: Counter[str] = Counter()

    @contextlib.contextmanager
    def claiming(self) -> Iterator[Callable[[str], None]]:
        """What is claimed in it is not cleared away until it ends."""
        mine: list[str] = []

        def claim(name: str) -> None:
            with self.lock:
                self._claimed[name] += 1
            mine.append(name)

        try:
            yield claim
        finally:
            with self.lock:
                self._claimed.subtract(mine)
                self._claimed = +self._claimed

    def path(self, name: str) -> Path:
        """Where a piece lies, or would."""
        return self._folder / name

    def has(self, name: str) -> bool:
        """Whether it was written to its end."""
        return self.path(name).is_dir()

    def write(self, name: str, save: Callable[[Path], None]) -> None:
        """Makes a piece, unless it is there: beside the others, synced, then given its name.

        Args:
            name: of `segment_name`.
            save: writes it to a path within a directory of its own.

        Raises:
            Exception: whatever `save` raises; nothing stays.
        """
        if self.has(name):
            return
        new = self._folder / f"{name}{_NEW}{secrets.token_hex(4)}"
        try:
            new.mkdir()
            save(new / "cells")
            sync_tree(new)
            try:
                new.rename(self.path(name))
            except OSError:
                if not self.has(name):  # or somebody else wrote the same
                    raise
            sync_tree(self._folder, deep=False)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def write_files(self, name: str, files: Sequence[tuple[str, bytes]]) -> None:
        """Makes a piece of files that another store wrote.

        Args:
            name: of the piece.
            files: paths within its directory, and what is in them.

        Raises:
            JournalDamaged: a path, or the name, would lead elsewhere.
        """
        paths = [PurePosixPath(path) for path, _ in files]
        if not _NAME.fullmatch(name) or any(
            path.is_absolute() or ".." in path.parts for path in paths
        ):
            raise JournalDamaged(f"the piece {name!r} has files that would lie elsewhere")

        def save(cells: Path) -> None:
            for path, (_, content) in zip(paths, files, strict=True):
                target = cells.parent / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

        self.write(name, save)

    def set_aside(self, name: str) -> None:
        """Moves a damaged piece out of the way, for somebody to look at; a good one may come."""
        aside = self._folder.parent / ASIDE
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not there at all
            self.path(name).rename(aside / name)

    def forget_damaged(self) -> None:
        """Removes what was set aside."""
        shutil.rmtree(self._folder.parent / ASIDE, ignore_errors=True)

    def clear(self, wanted: set[str]) -> None:
        """Removes pieces that no snapshot has, and what a killed process left half written; the
        caller holds the lock."""
        for path in self._folder.iterdir():
            if path.name not in wanted and path.name.partition(_NEW)[0] not in self._claimed:
                shutil.rmtree(path, ignore_errors=True)
