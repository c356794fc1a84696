"""`jaxstate stream` and `jaxstate ask`: a document or a pipe into a session, questions about it.

Comes in: parsed options. Goes out: an exit code: 0 when everything that was asked for was done, 1
when something could not be done (the message says what; what was read is kept if it was to be
saved), 130 after Ctrl-C. Does not know: the command line's syntax.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jaxstate.cli.runtime import Interrupt, interruptible, open_model, read_steps
from jaxstate.cli.show import Show
from jaxstate.engine.lines import InvalidBytes, Line, read_lines
from jaxstate.engine.reader import StreamReader, saved_entries
from jaxstate.errors import InvalidInput, JaxstateError
from jaxstate.model.loading import DTypeName
from jaxstate.persist.snapshot import check_snapshot_target, inspect_snapshot

DONE, FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Options of `jaxstate stream`; see `jaxstate stream --help`."""

    source: str
    model: str | None
    prefix: Path | None
    questions: tuple[str, ...]
    every: int | None
    max_tokens: int
    cells: int | None
    dtype: DTypeName | None
    steps: Path | None
    load: Path | None
    save: Path | None
    invalid: InvalidBytes


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


def run_stream(show: Show, options: StreamOptions) -> int:
    """Reads the stream, asks the questions, saves the session."""
    with _opened(options.source) as stream:
        if options.save is not None:
            check_snapshot_target(options.save)
        reader = _open_reader(show, options)
        lines = read_lines(stream, invalid=options.invalid)
        with interruptible() as interrupt:
            code = _read_all(show, options, reader, lines, interrupt)
            return _finish(show, options, reader, interrupt, code)


def run_ask(show: Show, options: AskOptions) -> int:
    """Answers questions about a saved session; the files stay as they are."""
    info = inspect_snapshot(options.session)
    saved_entries(options.session, info)
    cells = info.cells if options.cells is None else options.cells
    name = _model_name(options.model, options.session)
    steps = read_steps(options.steps)
    model = open_model(show, name, cells=cells, dtype=options.dtype, steps=steps, reads=False)
    reader = StreamReader.restore(options.session, model, cells=cells)
    show.note(f"restored version {reader.version}, {reader.length_tokens:,} cells")
    for question in options.questions:
        show.reply(reader.ask(question, max_tokens=options.max_tokens))
    return DONE


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        with open(source, "rb") as stream:
            yield stream
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}") from error


def _open_reader(show: Show, options: StreamOptions) -> StreamReader:
    cells, name = options.cells, options.model
    prefix = "" if options.prefix is None else _read_prefix(options.prefix)
    if options.load is not None:
        if prefix:
            raise InvalidInput("a saved session has its prefix already: drop --prefix or --load")
        info = inspect_snapshot(options.load)
        cells = info.cells if cells is None else cells
    name = _model_name(name, options.load)
    cells = 4096 if cells is None else cells
    steps = read_steps(options.steps)
    model = open_model(show, name, cells=cells, dtype=options.dtype, steps=steps, reads=True)
    if options.load is not None:
        return StreamReader.restore(options.load, model, cells=cells)
    return StreamReader.open(model, cells=cells, prefix=prefix)


def _read_prefix(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the prefix {path} cannot be read: {error}") from error


def _model_name(given: str | None, session: Path | None) -> str:
    if given is not None:
        return given
    noted = None if session is None else inspect_snapshot(session).notes.get("model")
    if not isinstance(noted, str) or not noted:
        raise InvalidInput("which model? Pass --model (a path, or a name such as gemma3-270m)")
    return noted


def _read_all(
    show: Show,
    options: StreamOptions,
    reader: StreamReader,
    lines: Iterator[Line],
    interrupt: Interrupt,
) -> int:
    """Reads until the stream ends, fails or is interrupted; says which."""
    before = reader.version
    with show.reading(options.source, reader.cells) as view:
        try:
            while not interrupt.pressed and (line := _next_line(lines, interrupt)) is not None:
                length = reader.length_tokens
                _push(reader, line)
                view.read(reader.version, reader.length_tokens, reader.length_tokens - length)
                if options.every and reader.version % options.every == 0:
                    with view.rate.paused():
                        _ask_all(show, options, reader)
        except JaxstateError as error:
            show.error(str(error))
            return FAILED
        reader.wait()
    show.note(view.summary())
    if reader.version == before and not interrupt.pressed:
        show.error(f"{options.source} is empty: nothing was read")
        return FAILED
    return INTERRUPTED if interrupt.pressed else DONE


def _next_line(lines: Iterator[Line], interrupt: Interrupt) -> Line | None:
    try:
        with interrupt.idle():
            return next(lines, None)
    except KeyboardInterrupt:
        return None


def _push(reader: StreamReader, line: Line) -> None:
    try:
        reader.push(line.text)
    except JaxstateError as error:
        raise type(error)(f"line {line.number}: {error}") from error


def _ask_all(show: Show, options: StreamOptions, reader: StreamReader) -> None:
    for question in options.questions:
        show.reply(reader.ask(question, max_tokens=options.max_tokens))


def _ask_at_the_end(show: Show, options: StreamOptions, reader: StreamReader) -> int:
    """Asks, unless this version was asked already; a refusal must not keep us from saving."""
    if options.every and reader.version % options.every == 0:
        return DONE
    try:
        _ask_all(show, options, reader)
    except JaxstateError as error:
        show.error(str(error))
        return FAILED
    return DONE


def _finish(
    show: Show, options: StreamOptions, reader: StreamReader, interrupt: Interrupt, code: int
) -> int:
    """Answers at the end, saves what was read, and says where it stands."""
    if code == DONE:
        code = _ask_at_the_end(show, options, reader)
    if options.save is not None:
        reader.save(options.save)
        show.say(
            f"saved version {reader.version} ({reader.length_tokens:,} cells) to {options.save}"
        )
    if interrupt.pressed:
        show.note(f"interrupted after version {reader.version}")
        code = INTERRUPTED
    show.event(
        "done",
        version=reader.version,
        cells=reader.length_tokens,
        exit_code=code,
        saved=None if options.save is None else str(options.save),
    )
    return code
