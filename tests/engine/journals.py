"""Engines with a journal, turned by hand: what a kill leaves of them, and what they need to rest.

A copy of the directory, made while the first engine is alive, is what a killed process leaves.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig
from jaxstate.persist.logged import segment_names
from jaxstate.persist.places import DATABASE, read_only
from tests.engine.rig import Rig

SMALL = EngineConfig(snapshot_bytes=64)  # pieces of two blocks of 8 cells


def killed(rig: Rig) -> Path:
    """What is on the disk if the process dies now; the engine that is dead goes its own way."""
    journal = rig.core.journal_writer.journal
    assert journal is not None
    journal.write(lambda _: None, "os")  # what is in line would be lost, or not: here it is not
    for number in itertools.count():
        copy = journal.path.with_name(f"{journal.path.name}+{number}")
        if not copy.exists():
            shutil.copytree(journal.path, copy)
            rig.engine.close()
            return copy
    raise AssertionError


def read_all(rig: Rig) -> None:
    """Everything that waits is read, cells that come from the disk included."""
    for _ in range(200):
        did = rig.engine.run()
        rig.core.cell_store.rest()
        if not did and not rig.engine.turn():
            return
    raise AssertionError("it never ends")


def found(rig: Rig, name: str) -> tuple[int, bytes]:
    session = rig.engine.session(name)
    return session.version, bytes(rig.cells(session))


def fetched(rig: Rig) -> int:
    """Tokens that the device has computed so far."""
    return sum(step.tokens for step in rig.executor.steps if step.call in ("extend", "start"))


def started(path: Path, **settings: object) -> Rig:
    return Rig(**{"journal": path, "config": SMALL, **settings})  # pyright: ignore


def segments(path: Path) -> set[str]:
    with contextlib.closing(read_only(path)) as source:
        named = segment_names(source)
    assert named <= {one.name for one in (path / "segments").iterdir()}
    return named


def changed(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path / DATABASE)) as database:
        database.execute(sql)
        database.commit()


def export(rig: Rig, session: Session, file: Path) -> None:
    """While the loop turns."""
    turned(rig, lambda: session.export(file))


def erase(rig: Rig, session: Session) -> None:
    turned(rig, lambda: session.close(erase=True))


def turned(rig: Rig, call: object) -> None:
    with ThreadPoolExecutor(1) as thread:
        done: Future[None] = thread.submit(call)  # pyright: ignore
        while not done.done():
            rig.engine.turn()
            wait([done], 0.001)
        done.result()


def erased_of(rig: Rig, name: str) -> int:
    """`Engine.erase`, while the loop turns."""
    counts: list[int] = []
    turned(rig, lambda: counts.append(rig.engine.erase(name)))
    return counts[0]


def everything(folder: Path) -> bytes:
    return b"".join(one.read_bytes() for one in folder.rglob("*") if one.is_file())
