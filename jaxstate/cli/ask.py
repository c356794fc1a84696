"""`jaxstate ask`: questions about a saved session, or about the sessions of a journal.

Comes in: parsed options. Goes out: answers, and exit code 0 if every question was answered. A saved
session stays as it is; a journal's sessions read what they had not read yet. Does not know: the
command line's syntax.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxstate.cli.runtime import (
    Needs,
    capacity,
    check_lengths,
    check_questions,
    engine_for,
    model_name,
    noted_model,
    open_model,
    read_steps,
    read_template,
    saved_dtype,
)
from jaxstate.cli.show import Show
from jaxstate.engine.api.engine import Engine, saved_entries
from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import InvalidInput, SnapshotDamaged
from jaxstate.model.loading import DTypeName
from jaxstate.persist import logged
from jaxstate.persist.files import RECORD_NAME, inspect_snapshot
from jaxstate.persist.places import DATABASE, locked, read_only


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """Options of `jaxstate ask`; see `jaxstate ask --help`."""

    source: Path
    sessions: tuple[str, ...]
    questions: tuple[str, ...]
    model: str | None
    max_tokens: int
    cells: int | None
    dtype: DTypeName | None
    ignore: tuple[str, ...]
    template: str | None
    steps: Path | None


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is asked.

    Attributes:
        model: its name.
        saved: a saved session; nothing for a journal.
        journal: None for a saved session.
        count: sessions there.
    """

    model: str
    saved: tuple[Path, ...] = ()
    journal: Path | None = None
    count: int = 1


def run_ask(show: Show, options: AskOptions) -> int:
    """Answers questions about what was saved."""
    steps = read_steps(options.steps)
    check_questions("QUESTION", options.questions)
    check_lengths(steps, [("--max-tokens", options.max_tokens)])
    source = _source(options)
    cells = capacity(options.cells, source.saved)
    model = open_model(
        show,
        source.model,
        cells=cells,
        dtype=saved_dtype(options.dtype, source.saved),
        steps=steps,
        needs=Needs(reads=False, asks=True, copies=True, sessions=source.count),
        ignore=options.ignore,
        template=read_template(options.template),
    )
    with engine_for(
        model, cells, EngineConfig(), sessions=source.count, journal=source.journal
    ) as engine:
        for session in _sessions(engine, source, options.sessions):
            _ask(show, session, options, named=source.journal is not None)
    return 0


def _ask(show: Show, session: Session, options: AskOptions, *, named: bool) -> None:
    version = session.wait()
    about = show.about(session.id, f"{session.id}: ") if named else show
    about.note(f"at version {version}, {session.info().tokens:,} cells")
    for question in options.questions:
        about.reply(question, session.ask(question, max_tokens=options.max_tokens))


def _source(options: AskOptions) -> _Source:
    """What lies there, looked at before a model is loaded.

    Raises:
        SnapshotDamaged, InvalidInput, JournalError: nothing that could be asked.
    """
    place = options.source
    if (place / DATABASE).is_file():
        return _journal(options)
    if not (place / RECORD_NAME).is_file():
        raise SnapshotDamaged(
            f"{place} is neither a saved session nor a journal: give what `jaxstate stream --save` "
            "wrote, or the directory of `--journal`"
        )
    if options.sessions:
        raise InvalidInput(f"--session is for a journal, and {place} is one saved session: drop it")
    saved_entries(place, inspect_snapshot(place).notes)
    return _Source(model=model_name(options.model, [place]), saved=(place,))


def _journal(options: AskOptions) -> _Source:
    place = options.source.absolute()
    locked(place).release()  # or it says who has it
    with contextlib.closing(read_only(place)) as found:
        names = [name for _, name in logged.keys_of(found)]
        noted = logged.model_of(found)
    if not names:
        raise InvalidInput(f"the journal {options.source} holds no open session")
    if unknown := sorted(set(options.sessions) - set(names)):
        raise InvalidInput(
            f"--session {unknown[0]}: the journal {options.source} has no open session of that "
            f"name; it has {', '.join(names)}"
        )
    model = options.model
    if noted is not None:
        model = noted_model(model, noted, f"the journal {options.source}")
    return _Source(model=model_name(model, []), journal=place, count=len(names))


def _sessions(engine: Engine, source: _Source, names: Sequence[str]) -> Iterator[Session]:
    if source.journal is None:
        yield engine.restore(source.saved[0])
    for session in engine.sessions() if source.journal is not None else ():
        if not names or session.id in names:
            yield session
