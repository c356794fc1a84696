"""`jaxstate stream`: a document or a pipe into a session, and what is asked about it meanwhile.

Comes in: parsed options. Goes out: an exit code: 0 when everything that was asked for was done, 1
when something could not be done (the message says what; what was read is kept if it was to be
saved), 130 after Ctrl-C. Does not know: the command line's syntax.

The main thread takes lines and pushes them, and waits while the queue is full. The engine's thread
reads them and keeps flash queries answered; a `Follower` tells what happens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jaxstate.cli.follow import Follower
from jaxstate.cli.runtime import (
    Interrupt,
    Needs,
    capacity,
    engine_of_one,
    interruptible,
    model_name,
    open_model,
    read_steps,
    wait_until_answered,
)
from jaxstate.cli.show import Show
from jaxstate.cli.view import StreamView, flash_fields
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.engine import Engine
from jaxstate.engine.ingest import NamedPolicy
from jaxstate.engine.lines import InvalidBytes, Line, read_lines
from jaxstate.engine.session import Session
from jaxstate.engine.values import Receipt, Span
from jaxstate.errors import CapacityExceeded, InvalidInput, JaxstateError
from jaxstate.model.bundle import Model
from jaxstate.model.loading import DTypeName
from jaxstate.persist.files import check_snapshot_target

DONE, FAILED, INTERRUPTED = 0, 1, 130
# A file this large has more tokens than a chunk of the smaller sizes.
_BULK_BYTES = 512


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Options of `jaxstate stream`; see `jaxstate stream --help`."""

    source: str
    model: str | None
    prefix: Path | None
    questions: tuple[str, ...]
    every: int | None
    max_tokens: int
    flash: tuple[str, ...]
    flash_max_tokens: int
    policy: NamedPolicy
    queue: int
    cells: int | None
    dtype: DTypeName | None
    steps: Path | None
    load: Path | None
    save: Path | None
    invalid: InvalidBytes


def run_stream(show: Show, options: StreamOptions) -> int:
    """Reads the stream, answers the questions, saves the session."""
    if options.every is not None and not options.questions:
        raise InvalidInput("--every says when to ask, but not what: add --ask, or drop --every")
    with _opened(options.source) as stream:
        if options.save is not None:
            check_snapshot_target(options.save)
        lines = read_lines(stream, invalid=options.invalid)
        prefix, cells = _prefix(options), capacity(options.cells, options.load)
        model = _load(show, options, cells)
        config = EngineConfig(queue_entries=options.queue, queue_policy=options.policy)
        with engine_of_one(model, cells, config) as engine, _session(engine, options, prefix) as s:
            running = _Stream(show, options, model, engine, s)
            with interruptible() as interrupt:
                return running.run(lines, interrupt)


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


def _load(show: Show, options: StreamOptions, cells: int | None) -> Model:
    needs = Needs(
        in_bulk=options.source != "-" and Path(options.source).stat().st_size > _BULK_BYTES,
        asks=bool(options.questions),
        flashes=len(options.flash),
        copies=options.load is not None or options.save is not None,
    )
    return open_model(
        show,
        model_name(options.model, options.load),
        cells=cells,
        dtype=options.dtype,
        steps=read_steps(options.steps),
        needs=needs,
    )


def _prefix(options: StreamOptions) -> str:
    if options.prefix is None:
        return ""
    if options.load is not None:
        raise InvalidInput("a saved session has its prefix already: drop --prefix or --load")
    try:
        return options.prefix.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the prefix {options.prefix} cannot be read: {error}") from error


def _session(engine: Engine, options: StreamOptions, prefix: str) -> Session:
    if options.load is not None:
        return engine.restore(options.load)
    return engine.open(prefix=prefix)


class _Stream:
    """One run of `jaxstate stream`."""

    def __init__(
        self, show: Show, options: StreamOptions, model: Model, engine: Engine, session: Session
    ) -> None:
        self._show = show
        self._options = options
        self._model = model
        self._engine = engine
        self._session = session
        self._queries = [
            session.flash(question, max_tokens=options.flash_max_tokens)
            for question in options.flash
        ]
        self._view = StreamView(options.source, engine, session, self._queries)
        self._pushed = 0
        self._asked_version = -1

    def run(self, lines: Iterator[Line], interrupt: Interrupt) -> int:
        """Reads, answers, saves; returns the exit code."""
        code = self._read_and_keep_answered(lines, interrupt)
        self._show.note(self._view.summary())
        if code == DONE and self._asked_version != self._session.version:
            code = self._ask_at_the_end(interrupt)
        self._show_flash_answers()
        return self._finish(interrupt, code)

    def _read_and_keep_answered(self, lines: Iterator[Line], interrupt: Interrupt) -> int:
        """All up to the end of the stream: everything read, every flash query fresh."""
        with self._show.live(self._view.draw) as is_live:
            follower = Follower(self._show, self._view, self._session, is_live=is_live)
            with follower:
                try:
                    self._push_all(lines, interrupt, follower)
                    code = self._answer_flash(interrupt, follower)
                except JaxstateError as error:
                    self._show.error(str(error))
                    self._read_what_was_taken()
                    code = FAILED
        return INTERRUPTED if interrupt.pressed and code == DONE else code

    def _push_all(self, lines: Iterator[Line], interrupt: Interrupt, follower: Follower) -> None:
        """Pushes until the stream ends or Ctrl-C, and waits until all of it is read."""
        every = self._options.every
        while not interrupt.pressed and (line := _next_line(lines, interrupt)) is not None:
            receipt = self._push(line)
            self._pushed += 1
            follower.check()
            if every and receipt.last % every == 0:
                self._session.wait(receipt.last)
                self._ask_all(interrupt)
        self._note_backlog(interrupt)
        self._session.wait()
        if self._pushed == 0 and not interrupt.pressed:
            raise InvalidInput(f"{self._options.source} is empty: nothing was read")

    def _note_backlog(self, interrupt: Interrupt) -> None:
        pending = self._session.info().pending
        if interrupt.pressed and pending:
            self._show.note(
                f"interrupted: reading the {pending} lines that were taken already "
                "(Ctrl-C again stops at once, and saves nothing)"
            )

    def _read_what_was_taken(self) -> None:
        """After an error; if the session itself is broken, that has been said already."""
        try:
            self._session.wait()
        except JaxstateError:
            return

    def _answer_flash(self, interrupt: Interrupt, follower: Follower) -> int:
        """Waits until every flash query is answered at the final version."""

        def go_on() -> bool:
            follower.check()
            return not interrupt.pressed

        wait_until_answered(self._session, go_on)
        failed = [query for query in self._queries if query.error is not None]
        for query in failed:
            self._show.error(f"{query.question} was not answered: {query.error}")
        return FAILED if failed else DONE

    def _push(self, line: Line) -> Receipt:
        try:
            receipt = self._session.push(line.text)
        except CapacityExceeded as error:
            raise CapacityExceeded(f"line {line.number}: {self._no_room(line)}") from error
        except JaxstateError as error:
            raise type(error)(f"line {line.number}: {error}") from error
        for span in receipt.dropped:
            self._show_dropped(span)
        return receipt

    def _no_room(self, line: Line) -> str:
        """Why the session's cells are not enough, once all before that line is read."""
        tokens = len(self._model.template.entry_tokens(self._model.text, line.text))
        self._session.wait()
        info = self._session.info()
        if tokens > info.cells:
            return f"the entry has {tokens} tokens; the whole session holds {info.cells} cells"
        return (
            f"the session holds {info.tokens} of {info.cells} cells, so {tokens} more do not fit; "
            "start again with larger --cells (a saved session goes on with --load and --cells)"
        )

    def _show_dropped(self, span: Span) -> None:
        self._show.event("dropped", first=span.first, last=span.last)
        which = str(span.first) if span.first == span.last else f"{span.first} to {span.last}"
        self._show.say(f"dropped, never to be read: {which}")

    def _ask_all(self, interrupt: Interrupt) -> None:
        for question in self._options.questions:
            if interrupt.pressed:
                return
            answer = self._session.ask(question, max_tokens=self._options.max_tokens)
            self._show.reply(question, answer)
        self._asked_version = self._session.version

    def _ask_at_the_end(self, interrupt: Interrupt) -> int:
        """Asks; a refusal must not keep us from saving."""
        try:
            self._ask_all(interrupt)
        except JaxstateError as error:
            self._show.error(str(error))
            return FAILED
        return DONE

    def _show_flash_answers(self) -> None:
        if not self._queries:
            return
        for query in self._queries:
            if (answer := query.answer) is not None:
                self._show.event("final", **flash_fields(query, answer))
        if self._show.out.is_terminal:
            self._show.table(self._view.answers())
        else:
            for line in self._view.last_lines():
                self._show.say(line)

    def _finish(self, interrupt: Interrupt, code: int) -> int:
        """Saves what was read, and says where it stands."""
        save, info = self._options.save, self._session.info()
        if save is not None:
            self._session.save(save, notes={"model": self._model.source})
            self._show.say(f"saved version {info.version} ({info.tokens:,} cells) to {save}")
        if interrupt.pressed:
            self._show.note(f"interrupted after version {info.version}")
            code = INTERRUPTED
        self._show.event(
            "done",
            version=info.version,
            cells=info.tokens,
            dropped=info.dropped,
            exit_code=code,
            saved=None if save is None else str(save),
            metrics=self._engine.metrics().as_dict(),
        )
        return code


def _next_line(lines: Iterator[Line], interrupt: Interrupt) -> Line | None:
    try:
        with interrupt.idle():
            return next(lines, None)
    except KeyboardInterrupt:
        return None
