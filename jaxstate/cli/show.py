"""What people and programs see: a live table, plain lines, or JSON lines.

Comes in: progress, events and answers, from any thread. Goes out: text on standard output and
error. Does not know: models, engines.

Answers and results go to standard output; progress and errors go to standard error, so that output
can be piped. With JSON every event is one line with an "event" key.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxstate.cli.words import in_options
from jaxstate.engine.types.values import Answer
from jaxstate.records import JsonValue

# A screen that changes more often than this is hard to read and costs time.
_REFRESH_HZ = 8


# Control characters but line breaks and tabs, and what turns the direction of text: a stream could
# write them, and a terminal would obey.
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]"
)


def visible(text: str) -> str:
    """Text with what a terminal would obey written out, such as \\x1b for an escape."""
    return _HIDDEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class Show:
    """Where events of one command go.

    Args:
        as_json: JSON lines on standard output, and nothing on standard error but errors.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False)
        self._live = threading.Event()
        self._muted = threading.Event()
        self._printing = threading.Lock()
        self._session: Mapping[str, JsonValue] = {}
        self._label = ""
        self._noted = ""

    def about(self, session: str, label: str) -> Show:
        """The same places, for what concerns one session.

        Args:
            session: named in every JSON line.
            label: what every line for people begins with.
        """
        one = copy.copy(self)
        one._session, one._label = {"session": session}, label
        return one

    def mute(self) -> None:
        """Nothing more is shown: the command was stopped, and its threads come to their ends."""
        self._muted.set()

    def event(self, name: str, **fields: JsonValue) -> None:
        """One JSON line; nothing for people."""
        if self.as_json and not self._muted.is_set():
            # When it was said, in seconds since 1970.
            line = json.dumps({"event": name, "time": time.time(), **self._session, **fields})
            with self._printing:
                print(line, flush=True)

    def say(self, *lines: str) -> None:
        """Lines for people on standard output, with none of another thread between them."""
        if not self.as_json and not self._muted.is_set():
            text = "\n".join(self._label + visible(line) for line in lines)
            self._page().print(escape(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line about what is going on, for people, on standard error."""
        if not self.as_json and not self._muted.is_set() and text != self._noted:
            self._noted = text  # once is enough
            self.err.print(f"[dim]{escape(self._label + visible(text))}[/dim]", soft_wrap=True)

    def error(self, text: str) -> None:
        """What went wrong, on standard error (and as an event), in the command line's words."""
        text = in_options(text)
        if not self._muted.is_set():
            self.event("error", message=text)
            said = escape(self._label + visible(text))
            self.err.print(f"[bold red]error:[/bold red] {said}", soft_wrap=True)

    def reply(self, question: str, answer: Answer) -> None:
        """A question that was asked, with its answer, version and cost."""
        context_tokens, answer_tokens = answer.usage.context_tokens, len(answer.token_ids)
        self.event(
            "answer",
            question=question,
            context_tokens=context_tokens,
            answer_tokens=answer_tokens,
            **answer.as_dict(),
        )
        self.say(
            f"Q: {question}",
            f"A: {answer.text or '(nothing)'}",
            f"   version {answer.version}, {context_tokens:,} tokens of context, "
            f"{answer_tokens} tokens {_how(answer)}",
        )

    def table(self, table: Table) -> None:
        """A table for people on standard output."""
        if not self.as_json:
            self._page().print(table)

    @property
    def is_live(self) -> bool:
        """Whether people have a table before them that is drawn again and again."""
        return self._live.is_set()

    @property
    def shows_changes(self) -> bool:
        """Whether it is on the screen that they read."""
        return self.is_live and self.out.is_terminal

    def _page(self) -> Console:
        """Where people read: above the live table where one is on the same screen."""
        return self.err if self.shows_changes else self.out

    @contextmanager
    def bar(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; yields what to call with (done, all)."""
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        quiet = self.as_json or not self.err.is_terminal or self.err.is_dumb_terminal
        with Progress(*columns, console=self.err, transient=True, disable=quiet) as progress:
            task = progress.add_task(title, total=None)

            def advance(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            yield advance

    @contextmanager
    def live(self, draw: Callable[[int], RenderableType]) -> Iterator[None]:
        """Draws again whenever something has changed, while the block runs, if there is a screen
        for it that can be drawn on.

        Args:
            draw: makes it for a screen of that width.
        """
        if self.as_json or not self.err.is_terminal or self.err.is_dumb_terminal:
            yield
            return
        ended = threading.Event()
        with Live(console=self.err, auto_refresh=False, transient=True) as live:
            painter = threading.Thread(
                target=_paint, args=(live, draw, ended), name="jaxstate-paint", daemon=True
            )
            self._live.set()
            painter.start()
            try:
                yield
            finally:
                ended.set()
                painter.join()
                self._live.clear()


def _paint(live: Live, draw: Callable[[int], RenderableType], ended: threading.Event) -> None:
    """Draws when something has changed, the width of the screen included."""
    before, last = None, False
    while True:
        drawn = draw(live.console.width)
        now = live.console.render_lines(drawn, pad=False)
        if now != before:
            before = now
            live.update(drawn, refresh=True)
        if last:
            return
        last = ended.wait(1 / _REFRESH_HZ)


def _how(answer: Answer) -> str:
    if answer.source == "computed":
        return f"answered in {answer.latency_s:.2f} s"
    return f"there already: {answer.latency_s * 1e6:.0f} µs"
