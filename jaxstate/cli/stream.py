"""`jaxstate stream`: documents and pipes into sessions, and what is asked about them meanwhile.

Comes in: parsed options. Goes out: an exit code: 0 when everything that was asked for was done, 1
when something could not be done (the message says what; what was read is kept if it was to be
saved), 130 after Ctrl-C. Does not know: the command line's syntax, how one session is streamed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jaxstate.cli.inputs import Input, check_targets, check_text, inputs_of
from jaxstate.cli.runtime import (
    Needs,
    capacity,
    check_lengths,
    check_questions,
    engine_for,
    in_thread,
    model_name,
    noted_model,
    open_model,
    read_steps,
    read_template,
    results,
    saved_dtype,
)
from jaxstate.cli.show import Show
from jaxstate.cli.signals import interruptible
from jaxstate.cli.streaming import Plan, Streaming
from jaxstate.cli.view import answers_table, draw
from jaxstate.config import StepConfig
from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig, NamedPolicy
from jaxstate.engine.types.window import Window
from jaxstate.errors import InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.model.loading import DTypeName
from jaxstate.persist import logged
from jaxstate.persist.places import DATABASE, locked, read_only
from jaxstate.records import Durability
from jaxstate.textfiles import read_text_file
from jaxstate.weights import EMBEDDED


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Options of `jaxstate stream`; see `jaxstate stream --help`."""

    source: str | None
    sessions: tuple[str, ...]
    model: str | None
    prefix: Path | None
    policy: NamedPolicy
    queue: int
    window: Window | None
    cells: int | None
    dtype: DTypeName | None
    ignore: tuple[str, ...]
    template: str | None
    steps: Path | None
    load: Path | None
    save: Path | None
    journal: Path | None
    durability: Durability
    plan: Plan


def run_stream(show: Show, options: StreamOptions) -> int:
    """Reads the streams, answers the questions, saves the sessions."""
    if options.plan.every is not None and not options.plan.questions:
        raise InvalidInput("--every says when to ask, but not what: add --ask, or drop --every")
    inputs = inputs_of(options.source, options.sessions)
    check_text(inputs, options.plan.reading)
    check_targets(inputs, options.save)
    _check_journal(options)
    steps = read_steps(options.steps)
    plan = options.plan
    asked = [("--max-tokens", plan.max_tokens)] if plan.questions else []
    flash = [("--flash-max-tokens", plan.flash_max_tokens)] if plan.flash else []
    check_lengths(steps, asked + flash)
    check_questions("--ask", plan.questions)
    check_questions("--flash", plan.flash)
    prefix = _prefix(options)
    saved = [place for one in inputs if (place := one.place(options.load)) is not None]
    cells = capacity(options.cells, saved)
    model = _load(show, options, inputs, saved, cells, steps)
    config = EngineConfig(queue_entries=options.queue, queue_policy=options.policy)
    with engine_for(
        model,
        cells,
        config,
        # What is read anew while a window moves is beside its session for a while.
        sessions=len(inputs) * (2 if _has_windows(options) else 1),
        journal=options.journal,
        durability=options.durability,
    ) as engine:
        _note_recovery(show, engine)
        sessions = [_session(engine, one, options, prefix) for one in inputs]
        numbered = options.journal is not None
        streams = [
            Streaming(
                show,
                options.plan,
                one,
                one.place(options.save),
                model,
                engine,
                session,
                client=one.client if numbered else None,
            )
            for one, session in zip(inputs, sessions, strict=True)
        ]
        return _run(show, engine, streams)


def _load(
    show: Show,
    options: StreamOptions,
    inputs: Sequence[Input],
    saved: Sequence[Path],
    cells: int | None,
    steps: StepConfig,
) -> Model:
    needs = Needs(
        in_bulk=any(one.is_bulk for one in inputs),
        asks=bool(options.plan.questions),
        flashes=len(options.plan.flash),
        copies=any(place is not None for place in (options.load, options.save, options.journal)),
        sessions=len(inputs),
    )
    begins = not saved and not _has_journal(options)
    return open_model(
        show,
        model_name(
            _journal_model(options) or options.model, saved, otherwise=EMBEDDED if begins else None
        ),
        cells=cells,
        dtype=saved_dtype(options.dtype, saved),
        steps=steps,
        needs=needs,
        ignore=options.ignore,
        template=read_template(options.template),
    )


def _has_journal(options: StreamOptions) -> bool:
    return options.journal is not None and (options.journal / DATABASE).is_file()


def _has_windows(options: StreamOptions) -> bool:
    """Whether sessions get a window, or some in the journal have one."""
    if options.window is not None or options.journal is None or not _has_journal(options):
        return options.window is not None
    with contextlib.closing(read_only(options.journal)) as found:
        return logged.has_windows(found)


def _journal_model(options: StreamOptions) -> str | None:
    """The model that the sessions of the journal were read with; None for a new journal."""
    place = options.journal
    if place is None or not _has_journal(options):
        return None
    with contextlib.closing(read_only(place)) as found:
        noted = logged.model_of(found) if logged.keys_of(found) else None
    return None if noted is None else noted_model(options.model, noted, f"the journal {place}")


def _prefix(options: StreamOptions) -> str:
    if options.prefix is None:
        return ""
    if options.load is not None:
        raise InvalidInput("a saved session has its prefix already: drop --prefix or --load")
    return read_text_file(options.prefix, "the prefix")


def _session(engine: Engine, one: Input, options: StreamOptions, prefix: str) -> Session:
    place = one.place(options.load)
    if options.journal is not None and one.name in {there.id for there in engine.sessions()}:
        session = engine.session(str(one.name))
    elif place is not None:
        session = engine.restore(place, one.name)
    else:
        return engine.open(one.name, prefix=prefix, window=options.window)
    if options.window is not None and session.info().window != options.window:
        session.set_window(options.window)
    return session


def _check_journal(options: StreamOptions) -> None:
    """In a journal a session needs a name that it can be found by."""
    if options.journal is not None and not options.sessions:
        raise InvalidInput(
            "--journal keeps sessions by their names: give the input as --session NAME=FILE"
        )
    if options.journal is not None and options.load is not None:
        raise InvalidInput("--journal brings sessions back by itself: drop --load or --journal")
    if options.journal is not None:
        locked(options.journal.absolute()).release()  # or it says who has it, or what is wrong


def _note_recovery(show: Show, engine: Engine) -> None:
    """What the journal brought back, and what it could not."""
    for one in engine.recovery.sessions:
        show.event("recovered", session=one.id, version=one.version, last=one.last)
        there = "no snapshot" if one.version < 0 else f"a snapshot of version {one.version}"
        show.note(
            f"{one.id}: goes on after entry {one.last} ({there}, {one.tokens_to_read:,} tokens to "
            "read)"
        )
    for reason in engine.recovery.set_aside:
        show.note(f"set aside: {reason}")
    for reason in engine.recovery.unasked:
        show.note(f"not asked any more: {reason}")
    for name, reason in engine.recovery.failed:
        show.error(f"{name} could not be brought back: {reason}")


def _run(show: Show, engine: Engine, streams: Sequence[Streaming]) -> int:
    """All of them at once, each on a thread; returns the exit code."""
    views = [one.view for one in streams]
    with show.live(lambda width: draw(engine, views, width)), interruptible() as interrupt:
        try:
            running = [in_thread(partial(one.run, interrupt), "jaxstate-stream") for one in streams]
            codes = results(running)
        except BaseException:
            show.mute()
            raise
    if show.out.is_terminal:
        for table in answers_table(views, show.out.width):
            show.table(table)
    return max(codes)
