"""`jaxstate ask`: questions about a saved session, which stays as it is.

Comes in: parsed options. Goes out: answers, and exit code 0 if every question was answered. Does
not know: the command line's syntax.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxstate.cli.runtime import (
    Needs,
    capacity,
    engine_for,
    model_name,
    open_model,
    read_steps,
)
from jaxstate.cli.show import Show
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.host import saved_entries
from jaxstate.model.loading import DTypeName
from jaxstate.persist.files import inspect_snapshot


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """Options of `jaxstate ask`; see `jaxstate ask --help`."""

    session: Path
    questions: tuple[str, ...]
    model: str | None
    max_tokens: int
    cells: int | None
    dtype: DTypeName | None
    steps: Path | None


def run_ask(show: Show, options: AskOptions) -> int:
    """Answers questions about a saved session; the files stay as they are."""
    saved_entries(options.session, inspect_snapshot(options.session).notes)
    cells = capacity(options.cells, [options.session])
    model = open_model(
        show,
        model_name(options.model, [options.session]),
        cells=cells,
        dtype=options.dtype,
        steps=read_steps(options.steps),
        needs=Needs(reads=False, asks=True, copies=True),
    )
    with engine_for(model, cells, EngineConfig()) as engine:
        session = engine.restore(options.session)
        info = session.info()
        show.note(f"restored version {info.version}, {info.tokens:,} cells")
        for question in options.questions:
            show.reply(question, session.ask(question, max_tokens=options.max_tokens))
    return 0
