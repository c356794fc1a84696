"""A session on disk, with Orbax underneath.

    PATH/session.json     what it is: fingerprints, lengths, a checksum of every array, the caller's
    notes PATH/cells/           keys and values of the cells in use and the ready vector (Orbax)

Comes in: a state, or a path. Goes out: the other, or one clear error. A snapshot is written beside
its place and renamed when it is complete; one of another model, tokenizer or layout is refused, and
so is one whose arrays do not have their checksums. Does not know: what the session is for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.layout import PoolLayout
from jaxstate.cells.pool import KVPool
from jaxstate.cells.session import SessionState, check_alive
from jaxstate.errors import (
    CapacityExceeded,
    FingerprintMismatch,
    InvalidInput,
    SnapshotDamaged,
)
from jaxstate.model.bundle import Model
from jaxstate.persist.host_cells import kept_cells, read_layer, write_layer
from jaxstate.steps.functional import init_state, session_steps

FORMAT = 1
RECORD_NAME = "session.json"
_CELLS = "cells"

Note: TypeAlias = str | int | float | bool | None
Arrays: TypeAlias = dict[str, NDArray[np.generic]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """What a snapshot says of itself.

    Attributes:
        length: committed cells.
        cells: capacity that it was saved from.
        fingerprints: SHA-256 of the model, the tokenizer ("none" without one) and the cell layout.
        checksums: SHA-256 of the bytes of every array.
        notes: what the caller of `save_state` added.
    """

    length: int
    cells: int
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

    Args:
        path: the directory; an earlier snapshot there is replaced once the new one is complete.
        model: the model that the session belongs to.
        state: only its cells in use are written.
        notes: numbers and strings to keep with it (`inspect_snapshot` returns them).

    Raises:
        InvalidInput: `path` holds something that is not a snapshot.
        StaleState: `state` was taken over by `extend`.
    """
    target = Path(path).absolute()
    check_snapshot_target(target)
    check_alive(state)
    length = int(state.length)
    arrays = _arrays(model, state, length)
    info = SnapshotInfo(
        length=length,
        cells=state.layout.cells,
        fingerprints=_fingerprints(model, state.layout),
        checksums={name: _checksum(array) for name, array in arrays.items()},
        notes=dict(notes or {}),
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.building-{os.getpid()}")
    try:
        _write(building, info, arrays)
        _swap_in(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


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
    source = Path(path).absolute()
    info = inspect_snapshot(source)
    capacity = info.cells if cells is None else cells
    if info.length > capacity:
        raise CapacityExceeded(
            f"the snapshot at {path} holds {info.length} cells; restore it with "
            f"cells={info.length} or more"
        )
    empty = init_state(model, capacity)
    _check_fingerprints(path, info, _fingerprints(model, empty.layout))
    return _fill(model, empty, info.length, _read(source, info, empty.layout))


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
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SnapshotDamaged(f"{path} is not a readable snapshot: {error!r}") from error
    if found != FORMAT:
        raise SnapshotDamaged(f"{record} has format {found!r}; this version reads format {FORMAT}")
    if not intact:
        raise SnapshotDamaged(f"{record} does not match its checksum: it was changed or damaged")
    return SnapshotInfo(**fields)


def _arrays(model: Model, state: SessionState, length: int) -> Arrays:
    steps = session_steps(model, state.layout.cells)
    arrays: Arrays = {"ready": np.asarray(state.ready)}
    for layer in range(model.config.num_layers):
        keys, values = read_layer(steps, state, layer, length)
        arrays[f"keys_{layer:03d}"], arrays[f"values_{layer:03d}"] = keys, values
    return arrays


def _fill(model: Model, state: SessionState, length: int, arrays: Arrays) -> SessionState:
    steps, layout = session_steps(model, state.layout.cells), state.layout
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


def _fingerprints(model: Model, layout: PoolLayout) -> dict[str, str]:
    windows = [group.window for group in layout.groups]
    shape = (
        str(jnp.dtype(model.dtype)),
        windows,
        layout.layer_groups,
        layout.num_kv_heads,
        layout.head_dim,
    )
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
    if target.exists() and not (target / RECORD_NAME).is_file():
        raise InvalidInput(
            f"{target} exists and is not a snapshot; choose another path (nothing was written)"
        )


def _write(place: Path, info: SnapshotInfo, arrays: Arrays) -> None:
    from orbax import checkpoint  # 0.7 s to import: only those who save pay it

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    # Orbax stores no empty arrays; an empty session has nothing but its record.
    present = {name: array for name, array in arrays.items() if array.size}
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(place / _CELLS, present)
    session = dataclasses.asdict(info)
    record = {"format": FORMAT, "checksum": _record_checksum(session), "session": session}
    (place / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _swap_in(building: Path, target: Path) -> None:
    if not target.exists():
        building.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    building.rename(target)
    shutil.rmtree(old)


def _record_checksum(session: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(session, sort_keys=True).encode()).hexdigest()


def _read(source: Path, info: SnapshotInfo, layout: PoolLayout) -> Arrays:
    from orbax import checkpoint  # 0.7 s to import: only those who restore pay it

    try:
        with checkpoint.StandardCheckpointer() as checkpointer:
            arrays: Arrays = dict(checkpointer.restore(source / _CELLS))
            ready = arrays["ready"]
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
        raise SnapshotDamaged(f"the cells of {source} cannot be read: {error}") from error
    empty = np.zeros((0, layout.num_kv_heads, layout.head_dim), ready.dtype)
    whole = {name: arrays.get(name, empty) for name in info.checksums}
    wrong = [name for name, array in whole.items() if _checksum(array) != info.checksums[name]]
    if wrong:
        raise SnapshotDamaged(f"{source}: {', '.join(wrong)} do not match their checksums")
    return whole
