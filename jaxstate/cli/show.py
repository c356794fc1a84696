"""What people and programs see: a live table, plain lines, or JSON lines.

Comes in: progress and replies. Goes out: text on standard output and error. Does not know: models.

Answers and results go to standard output; progress and errors go to standard error, so that output
can be piped. With JSON every event is one line with an "event" key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxstate.engine.reader import Reply

JsonValue = str | int | float | bool | None
# A screen that changes more often than this is hard to read and costs time.
_REFRESH_HZ = 8
_QUIET_S = 5.0


@dataclass
class ReadRate:
    """Counts tokens against the clock."""

    started_s: float
    tokens: int = 0

    def per_second(self, now_s: float) -> float:
        """Tokens per second since the start."""
        return self.tokens / max(now_s - self.started_s, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock, while something else than reading is done."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.started_s += time.perf_counter() - began_s


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

    def event(self, name: str, **fields: JsonValue) -> None:
        """One JSON line; nothing for people."""
        if self.as_json:
            print(json.dumps({"event": name, **fields}), flush=True)

    def say(self, text: str) -> None:
        """A line for people on standard output."""
        if not self.as_json:
            self._page().print(escape(text))

    def note(self, text: str) -> None:
        """A line about what is going on, for people, on standard error."""
        if not self.as_json:
            self.err.print(f"[dim]{escape(text)}[/dim]")

    def error(self, text: str) -> None:
        """What went wrong, on standard error (and as an event)."""
        self.event("error", message=text)
        self.err.print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True)

    def reply(self, reply: Reply) -> None:
        """A question with its answer, version and cost."""
        self.event("answer", **asdict(reply))
        self.say(f"Q: {reply.question}")
        self.say(f"A: {reply.text or '(nothing)'}")
        self.say(
            f"   version {reply.version}, {reply.context_tokens:,} tokens of context, "
            f"{reply.answer_tokens} tokens answered in {reply.latency_s:.2f} s"
        )

    def table(self, table: Table) -> None:
        """A table for people on standard output."""
        if not self.as_json:
            self._page().print(table)

    def _page(self) -> Console:
        """Where people read: above the live table where one is on the same screen."""
        return self.err if self._live and self.out.is_terminal else self.out

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
    def reading(self, source: str, cells: int) -> Iterator[Reading]:
        """The live view of a stream that is being read."""
        view = Reading(self, source, cells)
        if self.as_json or not self.err.is_terminal:
            yield view
            return
        with Live(view.table(), console=self.err, refresh_per_second=_REFRESH_HZ) as live:
            view.live, self._live = live, True
            try:
                yield view
            finally:
                self._live = False


class Reading:
    """How far a stream has been read; updated after every entry."""

    def __init__(self, show: Show, source: str, cells: int) -> None:
        self.live: Live | None = None
        self.rate = ReadRate(time.perf_counter())
        self._show = show
        self._source = source
        self._cells = cells
        self._version = 0
        self._length = 0
        self._spoke_s = time.perf_counter()

    def read(self, version: int, length_tokens: int, new_tokens: int) -> None:
        """One more entry is in the cells."""
        self._version, self._length = version, length_tokens
        self.rate.tokens += new_tokens
        self._show.event("read", version=version, cells=length_tokens, tokens=new_tokens)
        now = time.perf_counter()
        if self.live is not None:
            self.live.update(self.table())
        elif now - self._spoke_s > _QUIET_S:
            self._spoke_s = now
            self._show.note(self.summary())

    def summary(self) -> str:
        """One line: version, cells in use, rate."""
        rate = self.rate.per_second(time.perf_counter())
        return (
            f"version {self._version}: {self._length:,} of {self._cells:,} cells, "
            f"{rate:,.0f} tokens/s"
        )

    def table(self) -> Table:
        """The same as a table."""
        table = Table(title=f"reading {escape(self._source)}")
        for name in ("version", "cells in use", "capacity", "tokens/s", "seconds"):
            table.add_column(name, justify="right")
        now = time.perf_counter()
        table.add_row(
            str(self._version),
            f"{self._length:,}",
            f"{self._cells:,}",
            f"{self.rate.per_second(now):,.0f}",
            f"{now - self.rate.started_s:.1f}",
        )
        return table
