"""`jaxstate inspect` of a journal or an exported session: what is there, and whether it is sound.

Comes in: a path. Goes out: a table of sessions, one JSON line each, and an exit code: 1 if
something is wrong. Nothing is changed, and an engine may have the journal meanwhile. Does not
know: engines.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.table import Table

from jaxstate.cli.show import Show
from jaxstate.errors import InvalidInput, JaxstateError
from jaxstate.model.bundle import Model
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.model.loading import DTypeName, load
from jaxstate.persist import archive, logged
from jaxstate.persist.audit import Compared, check_entries, check_snapshots
from jaxstate.persist.places import DATABASE, SEGMENTS, read_only
from jaxstate.persist.segments import SegmentStore
from jaxstate.records import JsonValue


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is to be checked, and with which model.

    Attributes:
        model: None for the one that the journal names.
        dtype: None for the default of the device.
    """

    model: str | None
    dtype: DTypeName | None


def is_journal(path: str) -> bool:
    """Whether there is a journal at a path."""
    return (Path(path) / DATABASE).exists()


def is_export(path: str) -> bool:
    """Whether there is an exported session at a path."""
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as start:
        return start.read(15) == b"SQLite format 3"


def run_inspect_journal(show: Show, path: str, audit: Audit | None) -> int:
    """Shows every session; with `audit`, reads all of it and computes its cells again."""
    with contextlib.closing(_opened(path)) as source:
        model = None if audit is None else _model(show, source, audit)
        segments = SegmentStore(Path(path) / SEGMENTS)
        verified = [] if model is None else ["verified"]
        table = Table(
            "session", "state", "version", "snapshot", *verified, "flash", "used", title=path
        )
        sound = model is None or _check_pages(show, source)
        problems: list[str] = []
        for key, name in logged.keys_of(source, ended=True):
            facts, wrong = _facts(source, key, name, segments, model)
            problems += [f"{name}: {one}" for one in wrong]
            show.event("session", **facts, problems=wrong)
            table.add_row(*_row(facts, audited=model is not None))
        show.table(table)
        for one in problems:
            show.error(one)
    return 0 if sound and not problems else 1


def _opened(path: str) -> sqlite3.Connection:
    return read_only(Path(path)) if is_journal(path) else archive.read(path)


def _model(show: Show, source: sqlite3.Connection, audit: Audit) -> Model:
    name = audit.model or logged.model_of(source)
    if name is None:
        raise InvalidInput("which model? Pass --model: the journal does not name one")
    use_compilation_cache()
    show.note(f"loading {name}, to compute cells again")
    return load(name, dtype=audit.dtype)


def _check_pages(show: Show, source: sqlite3.Connection) -> bool:
    found = [str(row[0]) for row in source.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        show.error(f"the database is damaged: {'; '.join(found)}")
    return found == ["ok"]


def _facts(
    source: sqlite3.Connection, key: int, name: str, segments: SegmentStore, model: Model | None
) -> tuple[dict[str, JsonValue], list[str]]:
    """What is known of one session, and what is wrong with it."""
    facts: dict[str, JsonValue] = {"id": name}
    problems: list[str] = []
    try:
        session = logged.session_of(source, key)
        snapshots = logged.snapshots_of(source, key)
        newest = next((one for one in snapshots if one.set_aside is None), None)
        facts |= {
            "tenant": session.opening.tenant,
            "open": session.ended_s is None,
            "version": session.last,
            "used": datetime.fromtimestamp(session.used_s).isoformat(" ", "minutes"),
            "flash_queries": len(logged.questions_of(source, key, "flash")),
            "snapshot_version": None if newest is None else newest.row.version,
            "snapshot_cells": None if newest is None else newest.row.cells,
            "snapshot_bytes": None if newest is None else newest.row.bytes,
            "forked_from": session.opening.parent,
        }
        problems += [
            f"snapshot at version {one.row.version} was set aside: {one.set_aside}"
            for one in snapshots
            if one.set_aside is not None
        ]
        if model is not None:
            facts["entries"] = check_entries(source, session)
            facts["differences"], wrong = _compared(source, segments, session, model)
            problems += wrong
    except JaxstateError as error:
        problems.append(str(error))
    return facts, problems


def _compared(
    source: sqlite3.Connection,
    segments: SegmentStore,
    session: logged.LoggedSession,
    model: Model,
) -> tuple[list[JsonValue], list[str]]:
    """Each snapshot's difference, and those that are too large."""
    differences: list[JsonValue] = []
    wrong: list[str] = []
    for one in check_snapshots(source, segments, session, model):
        if not isinstance(one, Compared):
            wrong.append(str(one))
            continue
        differences.append(one.difference)
        if one.difference > one.allowed:
            wrong.append(
                f"the cells of version {one.version} differ from what the model computes by "
                f"{one.difference:.1e} of the largest; {one.allowed:.1e} would be float error"
            )
    return differences, wrong


def _row(facts: dict[str, JsonValue], *, audited: bool) -> list[str]:
    version, cells = facts.get("snapshot_version"), facts.get("snapshot_cells")
    found = facts.get("differences")
    shares = ", ".join(f"{one:.0e}" for one in found) if isinstance(found, list) else ""
    verified = f"{facts.get('entries', '?')} entries, cells within {shares or '-'}"
    return [
        str(facts["id"]),
        "open" if facts.get("open") else "closed",
        str(facts.get("version", "?")),
        "none" if version is None else f"{version}, {cells:,} cells",
        *([verified] if audited else []),
        str(facts.get("flash_queries", "?")),
        str(facts.get("used", "?")),
    ]
