"""Whether what a journal holds agrees with itself, and with a model that reads it again.

Comes in: a journal, and a model. Goes out: what was compared, or what is wrong. Nothing is changed.
Does not know: engines.

A snapshot's tokens must be those of the session's opening and entries (of a session whose window
has moved, of the entries that the snapshot names), and its cells those that the model computes of
them, up to float error: chunks of other sizes add up in another order.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxstate.errors import JaxstateError, SnapshotDamaged
from jaxstate.model.bundle import Model
from jaxstate.persist.changes import SegmentRow
from jaxstate.persist.files import Arrays
from jaxstate.persist.logged import (
    LoggedSession,
    LoggedSnapshot,
    entries_of,
    root_of,
    segment_of,
    snapshots_of,
    window_of,
)
from jaxstate.persist.segments import READY, SegmentStore, joined
from jaxstate.persist.snapshot import capture_arrays, read_snapshot
from jaxstate.steps.functional import extend, init_state, steps_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A snapshot that was computed again.

    Attributes:
        version: of it.
        cells: that were compared.
        difference: the largest between two cells, as a share of the largest cell of its layer.
        allowed: what is taken for float error, which grows from layer to layer: the cube root of
            the dtype's precision (0.5 % in float32, 20 % in bfloat16). Cells of other tokens
            differ by about as much as the largest is.
    """

    version: int
    cells: int
    difference: float
    allowed: float


def check_entries(source: sqlite3.Connection, session: LoggedSession) -> int:
    """Reads all entries of a session; returns how many there are.

    Raises:
        JournalDamaged: one is missing, or not as it was written.
    """
    root = root_of(source, session)
    return sum(1 for _ in entries_of(source, session, root.base_version))


def check_snapshots(
    source: sqlite3.Connection, segments: SegmentStore, session: LoggedSession, model: Model
) -> list[Compared | JaxstateError]:
    """Computes every snapshot of a session again; for each what was found, or what is wrong."""
    found: list[Compared | JaxstateError] = []
    for snapshot in snapshots_of(source, session.opening.key):
        if snapshot.set_aside is None:
            try:
                found.append(_check(source, segments, session, snapshot, model))
            except JaxstateError as error:
                found.append(error)
    return found


def _check(
    source: sqlite3.Connection,
    segments: SegmentStore,
    session: LoggedSession,
    snapshot: LoggedSnapshot,
    model: Model,
) -> Compared:
    pieces = [_piece(source, name) for name in snapshot.row.segments]
    kept = [np.frombuffer(one.tokens, "<i4") for one in pieces]
    ends = [np.frombuffer(one.ends, "<i8").reshape(-1, 2)[:, 0] for one in pieces]
    named = None
    if window_of(source, session.opening.key).version >= 0:
        named = set(np.concatenate(ends).tolist())
    tokens = _tokens(source, session, snapshot.row.version, model, named)
    if len(tokens) != snapshot.row.cells or tokens != np.concatenate(kept).tolist():
        raise SnapshotDamaged(
            f"the snapshot at version {snapshot.row.version} is not of the tokens of the session's "
            "entries"
        )
    state = init_state(model, len(tokens))
    parts = [
        read_snapshot(segments.path(name) / "cells", model, len(tokens)).arrays
        for name in snapshot.row.segments
    ]
    saved = joined(state.layout, parts)
    state = extend(model, state, np.array(tokens, np.int32))
    again = capture_arrays(steps_of(model, state), state, len(tokens))
    return Compared(
        version=snapshot.row.version,
        cells=len(tokens),
        difference=_difference(saved, again),
        allowed=float(jnp.finfo(model.dtype).eps) ** (1 / 3),
    )


def _tokens(
    source: sqlite3.Connection,
    session: LoggedSession,
    version: int,
    model: Model,
    named: set[int] | None,
) -> list[int]:
    """Of a session's opening and entries up to a version; of those named alone, if any are."""
    root, template, tokenizer = root_of(source, session), model.template, model.text
    if root.base_tokens is not None:
        tokens = np.frombuffer(root.base_tokens, "<i4").tolist()
    else:
        tokens = template.open_tokens(tokenizer, root.prefix or "")
    for entry in entries_of(source, session, root.base_version):
        if entry.sequence <= version and (named is None or entry.sequence in named):
            first = entry.sequence == 1 and root.prefix is not None
            place = template.first_entry_place(tokenizer, root.prefix or "") if first else "text"
            tokens += template.entry_tokens(tokenizer, entry.text, place)
    return tokens


def _piece(source: sqlite3.Connection, name: str) -> SegmentRow:
    row = segment_of(source, name)
    if row is None:
        raise SnapshotDamaged(
            f"what the journal says of the piece {name} is missing, or not as it was written"
        )
    return row


def _difference(saved: Arrays, again: Arrays) -> float:
    """The largest, as a share of the largest cell of its layer."""
    if saved.keys() != again.keys():
        raise SnapshotDamaged("the snapshot has other layers than the model")
    found = 0.0
    for name, array in again.items():
        if name == READY or not array.size:
            continue
        if array.shape != saved[name].shape:
            raise SnapshotDamaged(f"the snapshot's {name} has another shape")
        ours, theirs = array.astype(np.float32), saved[name].astype(np.float32)
        found = max(found, float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-30)))
    return found
