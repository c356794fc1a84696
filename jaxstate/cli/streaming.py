"""One stream into one session, from its first line to the saved session.

Comes in: an input, a session, a plan of what to ask. Goes out: an exit code, and everything that is
told meanwhile. Does not know: other sessions, which stream beside it.

A thread takes lines and pushes them, and waits while the queue is full; a `LineReader` waits for
lines, the engine's thread reads them and keeps flash queries answered, a `Follower` tells what
happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxstate.cli.follow import Follower
from jaxstate.cli.inputs import Input, LineReader
from jaxstate.cli.runtime import Interrupt, wait_until_answered
from jaxstate.cli.show import Show
from jaxstate.cli.view import StreamView, flash_fields
from jaxstate.engine.engine import Engine
from jaxstate.engine.lines import InvalidBytes, Line
from jaxstate.engine.session import Session
from jaxstate.engine.values import Receipt, Span
from jaxstate.errors import CapacityExceeded, InvalidInput, JaxstateError
from jaxstate.model.bundle import Model

DONE, FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to every session.

    Attributes:
        questions: asked at the end, and after `every` so many lines.
        every: None for at the end only.
        max_tokens: of their answers.
        flash: questions that are kept answered.
        flash_max_tokens: of those answers.
        invalid: what to do with bytes that are no text.
    """

    questions: tuple[str, ...]
    every: int | None
    max_tokens: int
    flash: tuple[str, ...]
    flash_max_tokens: int
    invalid: InvalidBytes


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
        InvalidInput, PromptTooLong: a flash question cannot be asked.
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
        self._show = show.about(session.id, source.label)
        self._plan = plan
        self._source = source
        self._save = save
        self._model = model
        self._engine = engine
        self._session = session
        self._queries = [
            session.flash(question, max_tokens=plan.flash_max_tokens) for question in plan.flash
        ]
        self.view = StreamView(source, engine, session, self._queries)
        self._pushed = 0
        self._asked_version = -1

    def run(self, interrupt: Interrupt) -> int:
        """Reads, answers, saves; returns the exit code."""
        code = self._read_and_keep_answered(interrupt)
        self._show.note(self.view.summary())
        if code == DONE and self._asked_version != self._session.version:
            code = self._ask_at_the_end(interrupt)
        self._show_flash_answers()
        return self._finish(interrupt, code)

    def _read_and_keep_answered(self, interrupt: Interrupt) -> int:
        """All up to the end of the stream: everything read, every flash query fresh."""
        with Follower(self._show, self.view, self._session) as follower:
            try:
                self._push_all(interrupt, follower)
                code = self._answer_flash(interrupt, follower)
            except JaxstateError as error:
                self._show.error(str(error))
                self._read_what_was_taken()
                code = FAILED
        return INTERRUPTED if interrupt.pressed and code == DONE else code

    def _push_all(self, interrupt: Interrupt, follower: Follower) -> None:
        """Pushes until the stream ends or Ctrl-C, and waits until all of it is read."""
        every, before = self._plan.every, self._read_before()
        with LineReader(self._source, self._plan.invalid) as lines:
            for line in lines.until(lambda: _goes_on(interrupt, follower)):
                if line.number < before:
                    continue
                receipt = self._push(line)  # the last one again: is it the same file?
                self._pushed += 1
                if every and receipt.last % every == 0:
                    self._session.wait(receipt.last)
                    self._ask_all(interrupt)
        self._note_backlog(interrupt)
        self._session.wait()
        if before and self._pushed <= 1 and not interrupt.pressed:
            self._show.note(f"nothing new in {self._source.source}")
        if self._pushed == 0 and not interrupt.pressed:
            raise InvalidInput(self._nothing(before))

    def _nothing(self, before: int) -> str:
        """Why nothing was read."""
        if not before:
            return f"{self._source.source} is empty: nothing was read"
        return (
            f"{self._source.source} has fewer lines than the {before} of it that the session has "
            "read: it was cut or replaced, and nothing was read. Stream what is new under another "
            "path, or through a pipe (NAME=-)"
        )

    def _read_before(self) -> int:
        """Number of the last line of this file that the session has already; 0 for none."""
        if self._client is None:
            return 0
        return self._session.client_seq(self._client) or 0

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
        wait_until_answered(self._session, lambda: _goes_on(interrupt, follower))
        failed = [query for query in self._queries if query.error is not None]
        for query in failed:
            self._show.error(f"{query.question} was not answered: {query.error}")
        return FAILED if failed else DONE

    def _push(self, line: Line) -> Receipt:
        try:
            numbered = self._client is not None
            receipt = self._session.push(
                line.text, client=self._client, client_seq=line.number if numbered else None
            )
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
        for question in self._plan.questions:
            if interrupt.pressed:
                return
            answer = self._session.ask(question, max_tokens=self._plan.max_tokens)
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
        for query in self._queries:
            if (answer := query.answer) is not None:
                self._show.event("final", **flash_fields(query, answer))
        if not self._show.out.is_terminal:
            for line in self.view.last_lines():
                self._show.say(line)

    def _finish(self, interrupt: Interrupt, code: int) -> int:
        """Saves what was read, and says where it stands."""
        saved = None
        if interrupt.pressed:
            self._show.note(f"interrupted after version {self._session.version}")
            code = INTERRUPTED
        try:
            saved = self._saved()
        except JaxstateError as error:
            self._show.error(str(error))
            code = FAILED
        info = self._session.info()
        self._show.event(
            "done",
            version=info.version,
            cells=info.tokens,
            dropped=info.dropped,
            exit_code=code,
            saved=saved,
            metrics=self._engine.metrics().as_dict(),
        )
        return code

    def _saved(self) -> str | None:
        """Saves the session if it is to be; returns where."""
        if self._save is None:
            return None
        self._session.save(self._save, notes={"model": self._model.source})
        info = self._session.info()
        self._show.say(f"saved version {info.version} ({info.tokens:,} cells) to {self._save}")
        return str(self._save)


def _goes_on(interrupt: Interrupt, follower: Follower) -> bool:
    """Whether nobody wants it to end; raises what ended the telling early."""
    follower.check()
    return not interrupt.pressed
