"""A session's way to disk and back: which cells go, and whether they fit the model.

Comes in: a state, or a path. Goes out: the other, or one clear error. A snapshot of another model,
tokenizer or layout is refused. What needs the device (`capture_arrays`, `put_arrays`) and what
needs the disk (`write_snapshot`, `read_snapshot`) are apart, so that nobody waits for a disk who
must not. Does not know: files (`persist.files`), what the session is for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import secrets
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.cells.layout import layers_by_group
from jaxstate.cells.pool import KVPool
from jaxstate.cells.session import SessionState
from jaxstate.errors import CapacityExceeded, FingerprintMismatch, InvalidInput, NotFinite
from jaxstate.model.bundle import Model
from jaxstate.persist.files import (
    CELLS_PREFIX,
    Arrays,
    Note,
    Snapshot,
    SnapshotInfo,
    check_snapshot_target,
    checksum,
    inspect_snapshot,
    read_arrays,
    write_snapshot,
)
from jaxstate.persist.host_cells import kept_cells, read_groups, write_groups
from jaxstate.records import checked_int, checked_path, checked_type
from jaxstate.steps.compiled import SessionSteps
from jaxstate.steps.functional import init_state, steps_of


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
        NotFinite: the last token that was read came to NaN or infinity.
        StaleState: `state` was taken over by `extend`.
        SnapshotError: the disk is full or fails; an earlier snapshot there is unchanged.
    """
    place = checked_path("path", path)
    check_snapshot_target(place)
    write_snapshot(place, capture_state(model, state, notes=notes))


def capture_state(
    model: Model, state: SessionState, *, notes: Mapping[str, Note] | None = None
) -> Snapshot:
    """Copies a session to the host; the state stays usable.

    Raises:
        InvalidInput: `state` belongs to another model, or `notes` holds something that cannot be
            kept.
        NotFinite: the last token that was read came to NaN or infinity.
        StaleState: `state` was taken over by `extend`.
    """
    steps, length = steps_of(model, state), int(state.length)
    if not np.isfinite(np.asarray(state.ready, np.float32)).all():
        raise NotFinite
    with jax.default_device(model.device):
        arrays = capture_arrays(steps, state, length)
    return make_snapshot(model, arrays, length=length, cells=state.layout.cells, notes=notes)


def make_snapshot(
    model: Model,
    arrays: Arrays,
    *,
    length: int,
    cells: int,
    notes: Mapping[str, Note] | None = None,
) -> Snapshot:
    """What `write_snapshot` writes, of arrays that are on the host; needs no device.

    Args:
        model: whose cells they are.
        arrays: of `capture_arrays`, and whatever else is to be kept with them.
        length: cells in use.
        cells: capacity of the session.
        notes: as for `save_state`.

    Raises:
        InvalidInput: `notes` holds something that cannot be kept.
    """
    info = SnapshotInfo(
        length=length,
        cells=cells,
        cells_name=CELLS_PREFIX + secrets.token_hex(4),
        fingerprints=_fingerprints(model),
        checksums={name: checksum(array) for name, array in arrays.items()},
        notes=_check_notes(notes),
        dtype=model.dtype.name,
    )
    return Snapshot(info=info, arrays=arrays)


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
    checked_type("model", model, Model, "what jaxstate.load gives")
    place = checked_path("path", path)
    kept = inspect_snapshot(place).cells
    capacity = kept if cells is None else checked_int("cells", cells)
    snapshot = read_snapshot(place, model, capacity)
    state = init_state(model, capacity)
    with jax.default_device(model.device):
        return put_arrays(steps_of(model, state), state, snapshot.info.length, snapshot.arrays)


def read_snapshot(path: str | os.PathLike[str], model: Model, cells: int) -> Snapshot:
    """Reads and checks what `save_state` wrote; needs no device.

    Args:
        path: the directory.
        model: must be the same model, tokenizer and dtype that saved it.
        cells: capacity of the session that it is meant for.

    Raises:
        FingerprintMismatch, SnapshotDamaged, CapacityExceeded: as `restore_state`.
    """
    info = inspect_snapshot(path)
    if info.length > cells:
        raise CapacityExceeded(
            f"the snapshot at {path} holds {info.length} cells; restore it with "
            f"cells={info.length} or more"
        )
    _check_fingerprints(path, info, model)
    cell_shape = (model.config.num_kv_heads, model.config.head_dim)
    return Snapshot(info=info, arrays=read_arrays(path, info, cell_shape))


def capture_arrays(
    steps: SessionSteps, state: SessionState, length: int, readable: int | None = None
) -> Arrays:
    """A session's cells that are still needed, and its ready vector, copied to the host.

    Args:
        steps, state: the session.
        length: cells in use.
        readable: who sees only so many of them still finds all that it needs; None for `length`.
            The session must hold them (`PoolLayout.readable_until`).
    """
    seen = length if readable is None else readable
    firsts = [kept_cells(group, seen)[0] for group in state.layout.groups]
    return {"ready": np.asarray(state.ready), **_layers(steps, state, firsts, length)}


def capture_part(steps: SessionSteps, state: SessionState, first: int, last: int) -> Arrays:
    """Cells first .. last - 1 of a session, copied to the host: of layers with a sliding window
    nothing, unless `last` is the session's length, and then all that it still needs."""
    whole = last == int(state.length)
    firsts = []
    for group in state.layout.groups:
        windowed = kept_cells(group, last)[0] if whole else last
        firsts.append(first if group.window is None else windowed)
    ready = np.asarray(state.ready)
    return {
        "ready": ready if whole else np.zeros_like(ready),
        **_layers(steps, state, firsts, last),
    }


def _layers(steps: SessionSteps, state: SessionState, firsts: Sequence[int], last: int) -> Arrays:
    """Of each layer the cells from its group's first position on."""
    groups = read_groups(steps, state, firsts, last)
    arrays: Arrays = {}
    for layers, cells in zip(layers_by_group(state.layout.layer_groups), groups, strict=True):
        for layer, (keys, values) in zip(layers, cells, strict=True):
            arrays[f"keys_{layer:03d}"], arrays[f"values_{layer:03d}"] = keys, values
    return arrays


def put_arrays(
    steps: SessionSteps, state: SessionState, length: int, arrays: Arrays
) -> SessionState:
    """A session with those cells where its tables say; takes `state` over."""
    by_group = [
        [arrays[f"{name}_{layer:03d}"] for layer in layers for name in ("keys", "values")]
        for layers in layers_by_group(state.layout.layer_groups)
    ]
    pool = KVPool(groups=write_groups(steps, state, by_group, length))
    length_array, ready = jax.device_put((np.int32(length), arrays["ready"]))
    return dataclasses.replace(state, pool=pool, length=length_array, ready=ready)


def cells_fingerprint(model: Model) -> str:
    """Of everything that decides what cells mean: cells of another model mean nothing."""
    return " ".join(_fingerprints(model).values())


def _fingerprints(model: Model) -> dict[str, str]:
    config = model.config
    windows = [layer.window for layer in config.layers]
    shape = (str(jnp.dtype(model.dtype)), windows, config.num_kv_heads, config.head_dim)
    return {
        "model": model.fingerprint,
        "tokenizer": "none" if model.tokenizer is None else model.tokenizer.fingerprint,
        "layout": hashlib.sha256(repr(shape).encode()).hexdigest(),
    }


def _check_fingerprints(path: str | os.PathLike[str], info: SnapshotInfo, model: Model) -> None:
    if info.dtype and info.dtype != model.dtype.name:
        raise FingerprintMismatch(
            f"the session at {path} was saved in {info.dtype}, and the model is loaded in "
            f"{model.dtype.name}: cells of one dtype cannot be gone on with in another. Load it "
            f'with dtype="{info.dtype}", or read the text again'
        )
    own = _fingerprints(model)
    wrong = [name for name, value in own.items() if info.fingerprints.get(name) != value]
    if wrong:
        raise FingerprintMismatch(
            f"the session at {path} was saved with another {' and another '.join(wrong)}; its "
            "cells would be wrong here. Load the model that saved it, with the same dtype, or read "
            "the text again"
        )


def _check_notes(notes: Mapping[str, Note] | None) -> dict[str, Note]:
    kept = dict(checked_type("notes", notes or {}, Mapping, "a mapping of names and values"))
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
