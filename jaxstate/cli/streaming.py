"""One stream into one session, from its first line to the saved session.

Comes in: an input, a session, a plan of what to ask. Goes out: an exit code, and everything that is
told meanwhile. Does not know: other sessions, which stream beside it.

A thread takes lines and pushes them, and waits while the queue is full; a `LineReader` waits for
lines, the engine's thread reads them and keeps flash queries answered, a `Follower` tells what
happens.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxstate.cli.actions import Act
from jaxstate.cli.follow import Follower
from jaxstate.cli.inputs import Input, LineReader, Reading
from jaxstate.cli.lines import Line
from jaxstate.cli.runtime import wait_until_answered
from jaxstate.cli.saving import save_somewhere
from jaxstate.cli.show import Show
from jaxstate.cli.signals import Interrupt
from jaxstate.cli.tailing import entry_at
from jaxstate.cli.view import StreamView, flash_fields
from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import FlashQuery, Session
from jaxstate.engine.flash.conditions import Condition
from jaxstate.engine.types.values import Receipt, Span
from jaxstate.errors import CapacityExceeded, InvalidInput, JaxstateError
from jaxstate.model.bundle import Model
from jaxstate.persist.files import RECORD_NAME

DONE, FAILED = 0, 1
# At most one line about what was dropped in so many seconds.
_DROPPED_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to every session.

    Attributes:
        questions: asked at the end, and after `every` so many lines.
        every: None for at the end only.
        max_tokens: of their answers.
        flash: questions that are kept answered.
        flash_max_tokens: of those answers; nothing with `choices`.
        choices: the only answers of flash questions; None for any.
        when: which of their answers are news; None: those that differ from the one before.
        act: what is done with those; None for nothing.
        reading: how lines become entries.
    """

    questions: tuple[str, ...]
    every: int | None
    max_tokens: int
    flash: tuple[str, ...]
    flash_max_tokens: int
    reading: Reading
    choices: tuple[str, ...] | None = None
    when: Condition | None = None
    act: Act | None = None


class Streaming:
    """One input on its way into its session.

    Args:
        show: where all of it is told.
        plan: what to ask.
        source: what to read.
        save: where the session is saved at the end; None for nowhere.
        model: of the engine.
        engine: of the session.
        session: that reads.
        client: under which its lines are numbered, if each is to be read once whatever happens.

    Raises:
        InvalidInput, PromptTooLong: a question cannot be asked.
    """

    def __init__(
        self,
        show: Show,
        plan: Plan,
        source: Input,
        save: Path | None,
        model: Model,
        engine: Engine,
        session: Session,
        client: str | None = None,
    ) -> None:
        self._client = client
        # Files of that name that the session has read, and that are gone.
        self._turns = 0
        self._show = show.about(source.title, source.label)
        self._plan = plan
        self._source = source
        self._save = save
        self._model = model
        self._engine = engine
        self._session = session
        self._queries = [self._flash(question) for question in plan.flash]
        for question in plan.questions:
            session.check(question, max_tokens=plan.max_tokens)
        self.view = StreamView(source, engine, session, self._queries)
        self._dropped = _Dropped(self._show)
        self._pushed = self._skipped = 0
        self._asked_version = -1

    def _flash(self, question: str) -> FlashQuery:
        plan = self._plan
        return self._session.flash(
            question,
            max_tokens=None if plan.choices else plan.flash_max_tokens,
            choices=plan.choices,
            when=plan.when,
            on_fire=None if plan.act is None else functools.partial(plan.act, question),
        )

    def run(self, interrupt: Interrupt) -> int:
        """Reads, answers, saves, whatever ends it; returns the exit code."""
        try:
            code = self._read_and_keep_answered(interrupt)
            self._dropped.tell()
            self._show.note(self.view.summary())
            has_read = self._session.version > 0  # else there is nothing to ask about
            if has_read and self._asked_version != self._session.version and not interrupt.is_final:
                code = max(code, self._ask_at_the_end(interrupt))
            self._show_flash_answers()
        except Exception:
            # A pipe that nobody reads any more, a terminal that is gone: nothing can be told.
            with contextlib.suppress(Exception):
                self._saved()
            raise
        return self._finish(interrupt, code)

    def _read_and_keep_answered(self, interrupt: Interrupt) -> int:
        """All up to the end of the stream: everything read, every flash query fresh."""
        with Follower(self._show, self.view, self._session) as follower:
            try:
                self._push_all(interrupt, follower)
                code = self._answer_flash(interrupt, follower)
            except JaxstateError as error:
                self._show.error(str(error))
                code = self._answer_what_was_taken(interrupt, follower)
        return interrupt.exit_code if interrupt.pressed and code == DONE else code

    def _push_all(self, interrupt: Interrupt, follower: Follower) -> None:
        """Pushes until the stream ends or Ctrl-C, and waits until all of it is read."""
        self._turns = self._turns_before()
        every, before, unfinished = self._plan.every, self._read_before(), False
        turn, entry_of = 0, self._plan.reading.entries()
        with LineReader(self._source, self._plan.reading) as lines:
            self.view.behind_bytes = lines.behind_bytes
            for line in lines.until(lambda: _goes_on(interrupt, follower)):
                if line.turn > turn:
                    turn, before = line.turn, 0
                    entry_of = self._plan.reading.entries()
                    self._turns += 1
                    self._note_turn(line.turn)
                entry = self._entry(entry_of, line)
                if line.number < before:
                    continue
                if self._client is not None and not line.text.endswith("\n"):
                    self._show.note(
                        f"line {line.number} of {self._source.source} has no line break yet: it is "
                        "read once it has"
                    )
                    unfinished = True
                    break
                if entry is None:
                    self._skipped += 1
                    continue
                # The last one again: is it the same file?
                receipt = self._push(line, entry)
                self._pushed += 1
                if every and receipt.last % every == 0:
                    self._session.wait(receipt.last)
                    self._ask_all(lambda: not interrupt.pressed)
        self._note_backlog(interrupt)
        self._session.wait()
        if before and self._pushed <= 1 and not interrupt.pressed:
            self._show.note(f"nothing new in {self._source.source}")
        if self._skipped:
            self._show.note(
                f"{self._skipped:,} lines of {self._source.source} made no entry "
                "(blank, a table's header, or left out by --grep)"
            )
        if self._pushed == 0 and not interrupt.pressed and not unfinished:
            raise InvalidInput(self._nothing(before))

    def _entry(self, entry_of: Callable[[str], str | None], line: Line) -> str | None:
        try:
            return entry_of(line.text)
        except InvalidInput as error:
            raise InvalidInput(f"line {line.number}: {error}") from error

    def _nothing(self, before: int) -> str:
        """Why nothing was read."""
        if self._skipped and not before:
            return f"no line of {self._source.source} made an entry: nothing was read"
        if not before:
            return f"{self._source.source} is empty: nothing was read"
        return (
            f"{self._source.source} has fewer lines than the {before} of it that the session has "
            "read: it was cut or replaced, and nothing was read. Stream what is new under another "
            "path, or through a pipe (NAME=-)"
        )

    def _turns_before(self) -> int:
        """How many files of this name the session has read and is done with. With `follow` a file
        that is not the one whose lines it has is the next."""
        if self._client is None:
            return 0
        turns = 0
        while self._session.client_seq(_client_of(self._client, turns + 1)) is not None:
            turns += 1
        before = self._session.client_seq(_client_of(self._client, turns)) or 0
        if not self._plan.reading.follow or before == 0 or self._is_same(turns, before):
            return turns
        self._note_turn(turns + 1)
        return turns + 1

    def _is_same(self, turns: int, before: int) -> bool:
        """Whether a line is still what the session has read there."""
        text = entry_at(self._source.source, before, self._plan.reading.entries())
        if text is None:
            return False
        try:
            self._session.push(text, client=_client_of(str(self._client), turns), client_seq=before)
        except InvalidInput:
            return False
        return True

    def _note_turn(self, turn: int) -> None:
        self._show.event("rotated", source=self._source.source, turn=turn)
        self._show.note(
            f"{self._source.source} was rotated or cut: it is read from its beginning again"
        )

    def _read_before(self) -> int:
        """Number of the last line of this file that the session has already; 0 for none."""
        if self._client is None:
            return 0
        return self._session.client_seq(_client_of(self._client, self._turns)) or 0

    def _note_backlog(self, interrupt: Interrupt) -> None:
        pending = self._session.info().pending
        if interrupt.pressed and pending:
            self._show.note(
                f"interrupted: reading the {pending} lines that were taken already "
                "(Ctrl-C again stops at once, and saves nothing)"
            )

    def _answer_what_was_taken(self, interrupt: Interrupt, follower: Follower) -> int:
        """After an error: a session that is full can still be asked. If the session itself is
        broken, that has been said already."""
        with contextlib.suppress(JaxstateError):
            self._session.wait()
            self._answer_flash(interrupt, follower)
        return FAILED

    def _answer_flash(self, interrupt: Interrupt, follower: Follower) -> int:
        """Waits until every flash query is answered at the final version."""
        wait_until_answered(self._session, lambda: _goes_on(interrupt, follower))
        failed = [query for query in self._queries if query.error is not None]
        for query in failed:
            self._show.error(f"{query.question} was not answered: {query.error}")
        return FAILED if failed else DONE

    def _push(self, line: Line, entry: str) -> Receipt:
        try:
            if self._client is None:
                receipt = self._session.push(entry)
            else:
                client = _client_of(self._client, self._turns)
                receipt = self._session.push(entry, client=client, client_seq=line.number)
        except CapacityExceeded as error:
            raise CapacityExceeded(f"line {line.number}: {self._no_room(entry)}") from error
        except InvalidInput as error:
            if self._client is None or line.number > self._read_before():
                raise InvalidInput(f"line {line.number}: {error}") from error
            raise InvalidInput(
                f"line {line.number} of {self._source.source} is not the line that the session has "
                "read there: the file was changed or replaced, and nothing more of it was read. "
                "Stream it under another name (--session), or go on with --follow, which reads a "
                "rotated file from its beginning"
            ) from error
        except JaxstateError as error:
            raise type(error)(f"line {line.number}: {error}") from error
        self._dropped.add(receipt.dropped)
        return receipt

    def _no_room(self, entry: str) -> str:
        """Why the session's cells are not enough, once all before that line is read."""
        tokens = len(self._model.template.entry_tokens(self._model.text, entry))
        self._session.wait()
        info = self._session.info()
        if tokens > info.cells:
            return f"the entry has {tokens} tokens; the whole session holds {info.cells} cells"
        each = max(1.0, info.tokens / max(info.version, 1))
        return (
            f"the session is full: it holds {info.tokens:,} of {info.cells:,} cells, so the "
            f"{tokens} of this line do not fit, and neither it nor what follows was read. About "
            f"{int(info.cells / each):,} lines of this kind fit ({each:.0f} cells each); "
            f"{self._more_room(info.cells)}"
        )

    def _more_room(self, cells: int) -> str:
        most = self._model.config.max_context
        if cells >= most:
            return "the model was made for no more: begin another session"
        return (
            f"start again with larger --cells, up to {most:,} (a saved session goes on with --load "
            "and --cells)"
        )

    def _ask_all(self, go_on: Callable[[], bool]) -> None:
        for question in self._plan.questions:
            if not go_on():
                return
            answer = self._session.ask(question, max_tokens=self._plan.max_tokens)
            self._show.reply(question, answer)
        self._asked_version = self._session.version

    def _ask_at_the_end(self, interrupt: Interrupt) -> int:
        """Asks, after the first Ctrl-C too; a refusal must not keep us from saving."""
        if interrupt.pressed and self._plan.questions:
            self._show.note("interrupted: asking what was to be asked (Ctrl-C again stops at once)")
        try:
            self._ask_all(lambda: not interrupt.is_final)
        except JaxstateError as error:
            self._show.error(str(error))
            return FAILED
        return DONE

    def _show_flash_answers(self) -> None:
        for query in self._queries:
            if (answer := query.answer) is not None:
                self._show.event("final", **flash_fields(query, answer))
        if not self._show.out.is_terminal:
            for line in self.view.last_lines():
                self._show.say(line)

    def _finish(self, interrupt: Interrupt, code: int) -> int:
        """Saves what was read, and says where it stands."""
        if interrupt.pressed:
            self._show.note(f"interrupted after version {self._session.version}")
            code = interrupt.exit_code
        saved = self._saved()
        if saved != self._save:
            code = FAILED
        info = self._session.info()
        self._show.event(
            "done",
            version=info.version,
            cells=info.tokens,
            dropped=info.dropped,
            exit_code=code,
            saved=None if saved is None else str(saved),
            metrics=self._engine.metrics().as_dict(),
        )
        return code

    def _saved(self) -> Path | None:
        """Saves the session if it is to be; returns where it lies now."""
        if self._save is None:
            return None
        notes: dict[str, str | int] = {"model": self._model.source}
        replaced = (self._save / RECORD_NAME).exists()
        place = save_somewhere(self._show, lambda to: self._session.save(to, notes), self._save)
        if place is not None:
            info = self._session.info()
            also = ", in place of the session there" if replaced and place == self._save else ""
            self._show.say(f"saved version {info.version} ({info.tokens:,} cells) to {place}{also}")
        return place


class _Dropped:
    """Entries that were displaced from the queue, told now and then.

    Args:
        show: where.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._spans: list[Span] = []
        self._told_s = -math.inf

    def add(self, spans: Sequence[Span]) -> None:
        """Some more."""
        self._spans += spans
        if self._spans and time.monotonic() - self._told_s >= _DROPPED_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """All that was not told yet."""
        if not self._spans:
            return
        count = sum(span.last - span.first + 1 for span in self._spans)
        first, last = self._spans[0].first, self._spans[-1].last
        spans = [one.as_dict() for one in self._spans]
        self._show.event("dropped", lines=count, first=first, last=last, spans=spans)
        which = f"line {first}" if count == 1 else f"{count} lines between {first} and {last}"
        self._show.say(f"dropped, never to be read: {which}")
        self._spans.clear()
        self._told_s = time.monotonic()


def _client_of(client: str, turns: int) -> str:
    """Under which name the lines of a file are numbered, which so many of its name came before."""
    return client if turns == 0 else f"{client}:{turns}"


def _goes_on(interrupt: Interrupt, follower: Follower) -> bool:
    """Whether nobody wants it to end; raises what ended the telling early."""
    follower.check()
    return not interrupt.pressed
