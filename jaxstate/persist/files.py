"""A saved session's files: written whole or not at all, read whole or refused.

    PATH/session.json     fingerprints, lengths, a checksum of every array, the caller's notes, and
                          which of the directories beside it holds the cells
    PATH/cells.XXXXXXXX/  keys and values of the cells in use and the ready vector (Orbax)

Comes in: host arrays and what is said of them, or a path. Goes out: the other, or one clear error.
New cells are written beside the old ones, and become current when session.json is replaced, in one
step of the file system: at every moment PATH holds one whole snapshot, the old one or the new one.
Does not know: models, devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxstate.errors import InvalidInput, SnapshotDamaged, SnapshotError

FORMAT = 1
RECORD_NAME = "session.json"
CELLS_PREFIX = "cells."
_CELLS = r"cells\.[0-9a-f]{8}"
# The record, cells, and what a save that was killed may have left of either.
_OURS = re.compile(rf"session\.json(\.{_CELLS})?|{_CELLS}(\.orbax-checkpoint-tmp.*)?")
# A failed save is cleared away once nothing of it was seen in so many looks, so far apart.
_QUIET_LOOKS = 10
_LOOK_S = 0.05
# Orbax tells the parts of a save by a number that the whole process has in common: two saves at the
# same time wait for each other's parts, and fail.
_SAVING = threading.Lock()

Note: TypeAlias = str | int | float | bool | None
Arrays: TypeAlias = dict[str, NDArray[np.generic]]


# What says nothing of the files: there is too little memory, too much is open, a disk stutters.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.ESTALE)


def is_passing(error: BaseException) -> bool:
    """Whether reading the same again may go well."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING:
        return True
    return error.__cause__ is not None and is_passing(error.__cause__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """What a snapshot says of itself.

    Attributes:
        length: committed cells.
        cells: capacity that it was saved from.
        cells_name: the directory, beside the record, that holds them.
        fingerprints: SHA-256 of the model, the tokenizer ("none" without one) and the cell layout.
        checksums: SHA-256 of the bytes of every array.
        notes: what the caller of `save_state` added.
        dtype: of parameters and cells; "" in files that are older than this field.
    """

    length: int
    cells: int
    cells_name: str
    fingerprints: Mapping[str, str]
    checksums: Mapping[str, str]
    notes: Mapping[str, Note]
    dtype: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A session on the host.

    Attributes:
        info: what it says of itself.
        arrays: "ready", and "keys_000", "values_000", … of each layer's kept cells [cells, K, H];
            and what else the saver keeps with them (an engine: "tokens", int32 [cells]).
    """

    info: SnapshotInfo
    arrays: Arrays


def inspect_snapshot(path: str | os.PathLike[str]) -> SnapshotInfo:
    """Reads what a snapshot says of itself, without its cells.

    Raises:
        SnapshotDamaged: there is none, or its record cannot be read.
    """
    record = Path(path) / RECORD_NAME
    if not record.exists():
        raise SnapshotDamaged(
            f"{path} is not a readable snapshot: there is no {RECORD_NAME} in it, as there is "
            "where a session was saved"
        )
    try:
        outer = json.loads(record.read_text(encoding="utf-8"))
        found, fields = outer["format"], outer["session"]
        intact = outer["checksum"] == _record_checksum(fields)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SnapshotDamaged(f"{path} is not a readable snapshot: {error!r}") from error
    if found != FORMAT:
        raise SnapshotDamaged(f"{record} has format {found!r}; this version reads format {FORMAT}")
    if not intact:
        raise SnapshotDamaged(f"{record} does not match its checksum: it was changed or damaged")
    return SnapshotInfo(**fields)


def check_snapshot_target(path: str | os.PathLike[str]) -> None:
    """Refuses a path that `save_state` would refuse, before the work is done.

    Raises:
        InvalidInput: `path` holds something that is not a snapshot.
    """
    target = Path(path).absolute()
    if not target.exists():
        return
    names = [one.name for one in target.iterdir()] if target.is_dir() else [target.name]
    if not all(_OURS.fullmatch(name) for name in names) or (target / RECORD_NAME).is_dir():
        raise InvalidInput(
            f"{target} exists and is not a snapshot; choose another path (nothing was written)"
        )


def write_snapshot(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Writes what was captured, once, to a directory; needs no device.

    Raises:
        InvalidInput, SnapshotError: as `save_state`.
    """
    target = Path(path).absolute()
    check_snapshot_target(target)
    _write(target, snapshot.info, snapshot.arrays)


def _write(target: Path, info: SnapshotInfo, arrays: Arrays) -> None:
    """Writes the cells, makes them current, then removes what is not; or leaves all as it was."""
    _check_room(target, sum(array.nbytes for array in arrays.values()))
    is_new = not target.exists()
    cells, record = target / info.cells_name, target / f"{RECORD_NAME}.{info.cells_name}"
    target.mkdir(parents=True, exist_ok=True)
    with _told_once():
        try:
            _write_cells(cells, arrays)
            sync_tree(cells)
            _write_record(record, info)
            record.replace(target / RECORD_NAME)
        except BaseException as error:
            _clear(target, info.cells_name, is_new=is_new)
            if not isinstance(error, Exception):
                raise  # Ctrl-C is no failure to save
            raise SnapshotError(
                f"the session could not be saved to {target}: {error}; what was there is unchanged"
            ) from error
    _sync_current(target)
    for other in target.iterdir():
        if other.name not in (RECORD_NAME, info.cells_name):
            _remove(other)


def _check_room(target: Path, size_bytes: int) -> None:
    """Refuses to begin what the disk has no room for.

    Raises:
        SnapshotError: how much there is.
    """
    there = target
    while not there.exists() and there != there.parent:
        there = there.parent
    free_bytes = shutil.disk_usage(there).free
    if size_bytes > free_bytes:
        raise SnapshotError(
            f"the session could not be saved to {target}: it takes {size_bytes / 1e9:.2f} GB, and "
            f"the disk has {free_bytes / 1e9:.2f} GB left; what was there is unchanged"
        )


@contextmanager
def _told_once() -> Iterator[None]:
    """A save that fails raises one error; Orbax would log that of each of its parts as well, with
    its traceback."""
    absl = logging.getLogger("absl")

    def is_news(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    absl.addFilter(is_news)
    try:
        yield
    finally:
        absl.removeFilter(is_news)


def _sync_current(target: Path) -> None:
    """From here on the new cells are current: whatever fails now, they stay, and the old ones too,
    which a machine that stops may find named again."""
    try:
        sync_tree(target, deep=False)
    except OSError as error:
        raise SnapshotError(
            f"the session is saved to {target}, but may not be on the disk yet: {error}"
        ) from error


def _clear(target: Path, cells_name: str, *, is_new: bool) -> None:
    """Removes what a failed save left, until nothing more comes.

    Orbax leaves directories of its own beside the one that it could not finish, and when one of its
    writers fails the others go on for a moment: they make again what was removed under them.
    """
    quiet_looks = 0
    while quiet_looks < _QUIET_LOOKS:
        found = list(target.glob(f"*{cells_name}*"))
        for leftover in found:
            _remove(leftover)
        if is_new and target.exists():
            with contextlib.suppress(OSError):  # not empty: a writer was faster, or it is not ours
                target.rmdir()
        quiet_looks = 0 if found else quiet_looks + 1
        time.sleep(_LOOK_S)


def _write_cells(place: Path, arrays: Arrays) -> None:
    from orbax import checkpoint  # 0.7 s to import: only those who save pay it

    # Orbax stores no empty arrays; an empty session has nothing but its record.
    present = {name: array for name, array in arrays.items() if array.size}
    with _SAVING, checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, present)


def sync_tree(folder: Path, *, deep: bool = True) -> None:
    """Makes sure that files and names are on the disk before anything says that they are.

    Args:
        folder: a directory.
        deep: whether all below it are meant, or only the names in it.
    """
    below = folder.rglob("*") if deep else ()
    for path in (*below, folder):
        place = os.open(path, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def _write_record(place: Path, info: SnapshotInfo) -> None:
    session = dataclasses.asdict(info)
    record = {"format": FORMAT, "checksum": _record_checksum(session), "session": session}
    with place.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _remove(leftover: Path) -> None:
    """Removes cells or a record that are no longer current; failing to is no failure to save."""
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


def _record_checksum(session: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(session, sort_keys=True).encode()).hexdigest()


def read_arrays(
    path: str | os.PathLike[str], info: SnapshotInfo, cell_shape: tuple[int, ...]
) -> Arrays:
    """Reads a snapshot's cells, and compares them with its checksums.

    Args:
        path: the directory.
        info: what it says of itself.
        cell_shape: of one cell in one layer [K, H]; arrays without cells are not stored.

    Raises:
        SnapshotDamaged: files are missing, truncated or changed.
    """
    from orbax import checkpoint  # 0.7 s to import: only those who restore pay it

    source = Path(path).absolute()
    try:
        with checkpoint.StandardCheckpointer() as checkpointer:
            arrays: Arrays = dict(checkpointer.restore(source / info.cells_name))
            ready = arrays["ready"]
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        raise SnapshotDamaged(f"the cells of {source} cannot be read: {error}") from error
    empty = np.zeros((0, *cell_shape), ready.dtype)
    whole = {name: arrays.get(name, empty) for name in info.checksums}
    wrong = [name for name, array in whole.items() if checksum(array) != info.checksums[name]]
    if wrong:
        raise SnapshotDamaged(f"{source}: {', '.join(wrong)} do not match their checksums")
    return whole


def checksum(array: NDArray[np.generic]) -> str:
    """SHA-256 over shape, dtype and bytes."""
    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
