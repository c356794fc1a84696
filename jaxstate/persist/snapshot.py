"""A session on disk, with Orbax underneath.

    PATH/session.json     fingerprints, lengths, a checksum of every array, the caller's notes, and
                          which of the directories beside it holds the cells
    PATH/cells.XXXXXXXX/  keys and values of the cells in use and the ready vector (Orbax)

Comes in: a state, or a path. Goes out: the other, or one clear error. New cells are written beside
the old ones, and become current when session.json is replaced, in one step of the file system: at
every moment PATH holds one whole snapshot, the old one or the new one. A snapshot of another model,
tokenizer or layout is refused, and so is one whose arrays do not have their checksums. Does not
know: what the session is for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import PoolLayout
from jaxstate.cells.pool import KVPool
from jaxstate.cells.session import SessionState
from jaxstate.errors import (
    CapacityExceeded,
    FingerprintMismatch,
    InvalidInput,
    SnapshotDamaged,
    SnapshotError,
)
from jaxstate.model.bundle import Model
from jaxstate.persist.host_cells import kept_cells, read_layer, write_layer
from jaxstate.steps.compiled import SessionSteps
from jaxstate.steps.functional import init_state, steps_of

FORMAT = 1
RECORD_NAME = "session.json"
_CELLS_PREFIX = "cells."
_CELLS = r"cells\.[0-9a-f]{8}"
# The record, cells, and what a save that was killed may have left of either.
_OURS = re.compile(rf"session\.json(\.{_CELLS})?|{_CELLS}(\.orbax-checkpoint-tmp.*)?")
# A failed save is cleared away once nothing of it was seen in so many looks, so far apart.
_QUIET_LOOKS = 10
_LOOK_S = 0.05

Note: TypeAlias = str | int | float | bool | None
Arrays: TypeAlias = dict[str, NDArray[np.generic]]


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
    """

    length: int
    cells: int
    cells_name: str
    fingerprints: Mapping[str, str]
    checksums: Mapping[str, str]
    notes: Mapping[str, Note]


def save_state(
    path: str | os.PathLike[str],
    model: Model,
    state: SessionState,
    *,
    notes: Mapping[str, Note] | None = None,
) -> None:
    """Writes a session to a directory; the state stays usable.

    One process at a time may save to a path.

    Args:
        path: the directory; an earlier snapshot there is replaced once the new one is complete.
        model: the model that the session belongs to.
        state: only its cells in use are written.
        notes: numbers and strings to keep with it (`inspect_snapshot` returns them).

    Raises:
        InvalidInput: `path` holds something that is not a snapshot, `state` belongs to another
            model, or `notes` holds something else than numbers, strings, booleans and None.
        StaleState: `state` was taken over by `extend`.
        SnapshotError: the disk is full or fails; an earlier snapshot there is unchanged.
    """
    target = Path(path).absolute()
    check_snapshot_target(target)
    kept_notes = _check_notes(notes)
    steps = steps_of(model, state)
    length = int(state.length)
    arrays = _arrays(steps, state, length)
    info = SnapshotInfo(
        length=length,
        cells=state.layout.cells,
        cells_name=_CELLS_PREFIX + secrets.token_hex(4),
        fingerprints=_fingerprints(model),
        checksums={name: _checksum(array) for name, array in arrays.items()},
        notes=kept_notes,
    )
    _write(target, info, arrays)


def restore_state(
    path: str | os.PathLike[str], model: Model, cells: int | None = None
) -> SessionState:
    """Brings a saved session back, equal bit for bit in every cell in use.

    Args:
        path: what `save_state` wrote.
        model: must be the same model, tokenizer and dtype that saved it.
        cells: capacity of the restored session; None for the one that it was saved from.

    Raises:
        FingerprintMismatch: it was saved by another model, tokenizer or layout.
        SnapshotDamaged: files are missing, truncated or changed.
        CapacityExceeded: it holds more than `cells`.
    """
    saved_from = inspect_snapshot(path).cells
    capacity = saved_from if cells is None else cells
    _restorable(path, model, capacity)
    return restore_into(path, model, init_state(model, capacity))


def restore_into(path: str | os.PathLike[str], model: Model, empty: SessionState) -> SessionState:
    """`restore_state` into the capacity and slack of a session that has read nothing.

    Args:
        path: what `save_state` wrote.
        model: must be the same model, tokenizer and dtype that saved it.
        empty: taken over (donated) once the snapshot has been read and checked.

    Raises:
        FingerprintMismatch, SnapshotDamaged, CapacityExceeded: as `restore_state`.
        StaleState, InvalidInput: `empty` was taken over, or belongs to another model.
    """
    source = Path(path).absolute()
    steps = steps_of(model, empty)
    info = _restorable(path, model, empty.layout.cells)
    return _fill(steps, empty, info.length, _read(source, info, empty.layout))


def _restorable(path: str | os.PathLike[str], model: Model, cells: int) -> SnapshotInfo:
    """What a snapshot says of itself, if that model and capacity can take it."""
    info = inspect_snapshot(path)
    if info.length > cells:
        raise CapacityExceeded(
            f"the snapshot at {path} holds {info.length} cells; restore it with "
            f"cells={info.length} or more"
        )
    _check_fingerprints(path, info, _fingerprints(model))
    return info


def inspect_snapshot(path: str | os.PathLike[str]) -> SnapshotInfo:
    """Reads what a snapshot says of itself, without its cells.

    Raises:
        SnapshotDamaged: there is none, or its record cannot be read.
    """
    record = Path(path) / RECORD_NAME
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


def _arrays(steps: SessionSteps, state: SessionState, length: int) -> Arrays:
    arrays: Arrays = {"ready": np.asarray(state.ready)}
    for layer in range(steps.config.num_layers):
        keys, values = read_layer(steps, state, layer, length)
        arrays[f"keys_{layer:03d}"], arrays[f"values_{layer:03d}"] = keys, values
    return arrays


def _fill(steps: SessionSteps, state: SessionState, length: int, arrays: Arrays) -> SessionState:
    layout = state.layout
    tables = [np.asarray(table) for table in state.tables]

    def layers(name: str, pools: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        filled: list[jax.Array] = []
        for layer, pool in enumerate(pools):
            group = layout.layer_groups[layer]
            first, _ = kept_cells(layout.groups[group], length)
            cells = arrays[f"{name}_{layer:03d}"]
            filled.append(write_layer(steps, pool, tables[group], cells, first))
        return tuple(filled)

    pool = KVPool(keys=layers("keys", state.pool.keys), values=layers("values", state.pool.values))
    length_array, ready = jax.device_put((np.int32(length), arrays["ready"]))
    return dataclasses.replace(state, pool=pool, length=length_array, ready=ready)


def _fingerprints(model: Model) -> dict[str, str]:
    config = model.config
    windows = [layer.window for layer in config.layers]
    shape = (str(jnp.dtype(model.dtype)), windows, config.num_kv_heads, config.head_dim)
    return {
        "model": model.fingerprint,
        "tokenizer": "none" if model.tokenizer is None else model.tokenizer.fingerprint,
        "layout": hashlib.sha256(repr(shape).encode()).hexdigest(),
    }


def _check_fingerprints(
    path: str | os.PathLike[str], info: SnapshotInfo, own: Mapping[str, str]
) -> None:
    wrong = [name for name, value in own.items() if info.fingerprints.get(name) != value]
    if wrong:
        raise FingerprintMismatch(
            f"the snapshot at {path} was saved with another {' and another '.join(wrong)}; its "
            "cells would be wrong here. Load the model that saved it, with the same dtype, or read "
            "the text again"
        )


def _checksum(array: NDArray[np.generic]) -> str:
    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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


def _check_notes(notes: Mapping[str, Note] | None) -> dict[str, Note]:
    kept = dict(notes or {})
    wrong = [name for name, value in kept.items() if not _is_note(name, value)]
    if wrong:
        raise InvalidInput(
            f"the notes {wrong} cannot be kept: names are strings, values are strings, finite "
            "numbers, booleans or None"
        )
    return kept


def _is_note(name: object, value: object) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(name, str) and isinstance(value, str | int | float | None) and finite


def _write(target: Path, info: SnapshotInfo, arrays: Arrays) -> None:
    """Writes the cells, makes them current, then removes what is not; or leaves all as it was."""
    is_new = not target.exists()
    cells, record = target / info.cells_name, target / f"{RECORD_NAME}.{info.cells_name}"
    target.mkdir(parents=True, exist_ok=True)
    try:
        _write_cells(cells, arrays)
        _write_record(record, info)
        record.replace(target / RECORD_NAME)
    except BaseException as error:
        _clear(target, info.cells_name, is_new=is_new)
        if not isinstance(error, Exception):
            raise  # Ctrl-C is no failure to save
        raise SnapshotError(
            f"the session could not be saved to {target}: {error}; what was there is unchanged"
        ) from error
    for other in target.iterdir():
        if other.name not in (RECORD_NAME, info.cells_name):
            _remove(other)


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
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, present)


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


def _read(source: Path, info: SnapshotInfo, layout: PoolLayout) -> Arrays:
    from orbax import checkpoint  # 0.7 s to import: only those who restore pay it

    try:
        with checkpoint.StandardCheckpointer() as checkpointer:
            arrays: Arrays = dict(checkpointer.restore(source / info.cells_name))
            ready = arrays["ready"]
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        raise SnapshotDamaged(f"the cells of {source} cannot be read: {error}") from error
    empty = np.zeros((0, layout.num_kv_heads, layout.head_dim), ready.dtype)
    whole = {name: arrays.get(name, empty) for name in info.checksums}
    wrong = [name for name, array in whole.items() if _checksum(array) != info.checksums[name]]
    if wrong:
        raise SnapshotDamaged(f"{source}: {', '.join(wrong)} do not match their checksums")
    return whole
