"""What people and programs see: a live table, plain lines, or JSON lines.

Comes in: progress, events and answers, from any thread. Goes out: text on standard output and
error. Does not know: models, engines.

Answers and results go to standard output; progress and errors go to standard error, so that output
can be piped. With JSON every event is one line with an "event" key.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxstate.engine.metrics import JsonValue
from jaxstate.engine.values import Answer

# A screen that changes more often than this is hard to read and costs time.
_REFRESH_HZ = 8


class Show:
    """Where events of one command go.

    Args:
        as_json: JSON lines on standard output, and nothing on standard error but errors.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False)
        self._live = False
        self._printing = threading.Lock()

    def event(self, name: str, **fields: JsonValue) -> None:
        """One JSON line; nothing for people."""
        if self.as_json:
            line = json.dumps({"event": name, **fields})
            with self._printing:
                print(line, flush=True)

    def say(self, text: str) -> None:
        """A line for people on standard output."""
        if not self.as_json:
            self._page().print(escape(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line about what is going on, for people, on standard error."""
        if not self.as_json:
            self.err.print(f"[dim]{escape(text)}[/dim]")

    def error(self, text: str) -> None:
        """What went wrong, on standard error (and as an event)."""
        self.event("error", message=text)
        self.err.print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True)

    def reply(self, question: str, answer: Answer) -> None:
        """A question that was asked, with its answer, version and cost."""
        context_tokens, answer_tokens = answer.usage.context_tokens, len(answer.token_ids)
        self.event(
            "answer",
            question=question,
            text=answer.text,
            version=answer.version,
            source=answer.source,
            confidence=answer.confidence,
            logprob=answer.logprob,
            context_tokens=context_tokens,
            answer_tokens=answer_tokens,
            latency_s=answer.latency_s,
            finish_reason=answer.finish_reason,
        )
        self.say(f"Q: {question}")
        self.say(f"A: {answer.text or '(nothing)'}")
        self.say(
            f"   version {answer.version}, {context_tokens:,} tokens of context, "
            f"{answer_tokens} tokens {_how(answer)}"
        )

    def table(self, table: Table) -> None:
        """A table for people on standard output."""
        if not self.as_json:
            self._page().print(table)

    @property
    def shows_changes(self) -> bool:
        """Whether people see on their screen, all the time, what changes."""
        return self._live and self.out.is_terminal

    def _page(self) -> Console:
        """Where people read: above the live table where one is on the same screen."""
        return self.err if self.shows_changes else self.out

    @contextmanager
    def bar(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; yields what to call with (done, all)."""
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        quiet = self.as_json or not self.err.is_terminal
        with Progress(*columns, console=self.err, transient=True, disable=quiet) as progress:
            task = progress.add_task(title, total=None)

            def advance(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            yield advance

    @contextmanager
    def live(self, draw: Callable[[], RenderableType]) -> Iterator[bool]:
        """Draws again and again, while the block runs; yields whether there is a screen for it."""
        if self.as_json or not self.err.is_terminal:
            yield False
            return
        with Live(
            get_renderable=draw,
            console=self.err,
            refresh_per_second=_REFRESH_HZ,
            transient=True,
        ):
            self._live = True
            try:
                yield True
            finally:
                self._live = False


def _how(answer: Answer) -> str:
    if answer.source == "computed":
        return f"answered in {answer.latency_s:.2f} s"
    return f"there already: {answer.latency_s * 1e6:.0f} µs"
