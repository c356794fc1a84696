"""`jaxstate serve`: sessions, OpenAI's and Anthropic's dialects over HTTP.

Comes in: options. Goes out: a server that runs until it is told to stop. Does not know: routes.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from jaxstate.cli.runtime import model_name, noted_model, read_steps, read_template
from jaxstate.cli.show import Show
from jaxstate.engine.api.aio import AsyncEngine, on_a_thread
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.model.loading import DTypeName, load
from jaxstate.persist import logged
from jaxstate.persist.places import DATABASE, read_only
from jaxstate.records import Durability
from jaxstate.serve.access import LogForm, write_log
from jaxstate.serve.keys import key_ring
from jaxstate.serve.run import check_public, serve
from jaxstate.serve.service import ServedModel
from jaxstate.serve.settings import ServeSettings
from jaxstate.weights.known import EMBEDDED


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What the command line said.

    Attributes:
        model, dtype, ignore, template, steps: what is served.
        cells, memory, session_cells, sessions: how much of the device it takes.
        journal, durability, snapshot_s: what outlives it.
        api_key, keys: who may use it.
        settings: bounds, and where it listens.
        insecure: everybody may, from everywhere.
        log: what is written of requests.
    """

    model: str | None
    dtype: DTypeName | None
    ignore: tuple[str, ...]
    template: str | None
    steps: Path | None
    cells: int | None
    memory: float | None
    session_cells: int | None
    sessions: int
    journal: Path | None
    durability: Durability
    api_key: str | None
    keys: Path | None
    settings: ServeSettings
    insecure: bool
    log: LogForm


def run_serve(show: Show, options: ServeOptions) -> int:
    """Serves until it is told to stop."""
    if options.durability != "os" and options.journal is None:
        raise InvalidInput(
            f"--durability {options.durability} is of a --journal, and none is given"
        )
    keys = key_ring(options.api_key, options.keys)
    check_public(options.settings, keys, insecure=options.insecure)
    steps = read_steps(options.steps)
    template = read_template(options.template)
    source = _source(options)
    write_log(options.log)
    config = EngineConfig(tenants=keys.shares())

    def loaded() -> Model:
        use_compilation_cache()
        return load(
            source, dtype=options.dtype, steps=steps, ignore=options.ignore, template=template
        )

    async def make() -> tuple[AsyncEngine, ServedModel]:
        model = await on_a_thread(loaded)
        engine = AsyncEngine(
            model,
            cells=options.cells,
            memory=options.memory,
            session_cells=options.session_cells,
            sessions=options.sessions,
            config=config,
            journal=options.journal,
            durability=options.durability,
        )
        await engine.__aenter__()
        show.note(f"ready: {source}, {engine.engine!r}")
        return engine, _described(source, model)

    def started(address: str) -> None:
        show.note(f"listening at {address} (the page, the API, /openapi.json); loading {source}")

    return serve(make, options.settings, keys, started)


def _source(options: ServeOptions) -> str:
    """The model, which a journal may name.

    Raises:
        InvalidInput: the journal is of another.
    """
    place = options.journal
    if place is None or not (place / DATABASE).is_file():
        return model_name(options.model, [], EMBEDDED)
    with contextlib.closing(read_only(place.absolute())) as found:
        noted = logged.model_of(found)
    model = options.model
    if noted is not None:
        model = noted_model(model, noted, f"the journal {place}")
    return model_name(model, [], EMBEDDED)


def _described(source: str, model: Model) -> ServedModel:
    return ServedModel(
        name=Path(source).name,
        created_s=time.time(),
        max_tokens=model.config.max_context,
        tail_cells=model.steps.tail_cells[-1],
        tokenizer=model.text,
        stops=model.template.stops(model.text),
    )
