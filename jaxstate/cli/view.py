"""What people see of streams: tables that are drawn anew, a line now and then, the last answers.

Comes in: an engine's sessions and their flash queries. Goes out: tables and lines of text; all of
it is read off the engine when it is looked at. Does not know: terminals, events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from jaxstate.cli.inputs import Input
from jaxstate.cli.show import visible
from jaxstate.engine.engine import Engine
from jaxstate.engine.hits import FlashQuery
from jaxstate.engine.metrics import JsonValue
from jaxstate.engine.session import Session
from jaxstate.engine.values import Answer

# Texts by the names of their columns; a column without any text is left out.
Row: TypeAlias = dict[str, str]
_LEFT = ("session", "question", "answer")


class StreamView:
    """How far one stream has been read, and what its flash queries say.

    Args:
        source: what is read.
        engine: of the session.
        session: that reads it.
        queries: the session's.
    """

    def __init__(
        self, source: Input, engine: Engine, session: Session, queries: Sequence[FlashQuery]
    ) -> None:
        self.queries = tuple(queries)
        self._source = source
        self._engine = engine
        self._session = session
        # Of each query: the version of its newest answer, and when that was first seen.
        self._seen: dict[str, tuple[int, float]] = {}

    def reading(self) -> Row:
        """How far it is."""
        info = self._session.info()
        return {
            "session": self._source.title,
            "version": str(info.version),
            "lag": f"{info.pending} lines, {info.lag_s:.1f} s",
            "cells in use": f"{info.tokens:,} of {info.cells:,}",
            "residency": info.residency,
            "dropped": f"{info.dropped} lines" if info.dropped else "",
        }

    def summary(self) -> str:
        """The same as one line."""
        info = self._session.info()
        waiting = f", {info.pending} lines wait ({info.lag_s:.1f} s)" if info.pending else ""
        dropped = f", {info.dropped} lines dropped" if info.dropped else ""
        return (
            f"version {info.version}: {info.tokens:,} of {info.cells:,} cells, "
            f"{tokens_per_s(self._engine):,.0f} tokens/s{waiting}{dropped}"
        )

    def answers(self, *, with_age: bool) -> Iterator[Row]:
        """The flash queries' newest answers."""
        version = self._session.version
        for query in self.queries:
            answer = query.answer
            yield {
                "session": self._source.name or "",
                "question": query.question,
                "answer": "" if answer is None else _text(answer),
                "version": "" if answer is None else str(answer.version),
                "state": standing(query, version),
                "confidence": "" if answer is None else f"{answer.confidence:.1f}",
                "age, s": self._age(query.id, answer) if with_age else "",
            }

    def last_lines(self) -> Iterator[str]:
        """The same as lines."""
        version = self._session.version
        for query in self.queries:
            state = standing(query, version)
            if (answer := query.answer) is None:
                yield f"at the end: {query.question} -> ({state})"
            else:
                yield f"at the end, {state}, {flash_line(query.question, answer)}"

    def _age(self, query_id: str, answer: Answer | None) -> str:
        if answer is None:
            return ""
        now_s = time.monotonic()
        version, since_s = self._seen.get(query_id, (-1, now_s))
        if version != answer.version:
            since_s = now_s
            self._seen[query_id] = (answer.version, since_s)
        return f"{now_s - since_s:.1f}"


def draw(engine: Engine, views: Sequence[StreamView]) -> Group:
    """Where everything stands at this moment."""
    title = f"reading, {tokens_per_s(engine):,.0f} tokens/s"
    parts = [_table(title, [view.reading() for view in views])]
    return Group(*parts, *answers_table(views, with_age=True))


def answers_table(views: Sequence[StreamView], *, with_age: bool = False) -> list[Table]:
    """The flash queries' newest answers, if there are flash queries."""
    rows = [row for view in views for row in view.answers(with_age=with_age)]
    return [_table("flash queries", rows)] if rows else []


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title)
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in names:
        table.add_column(name, justify="left" if name in _LEFT else "right")
    for row in rows:
        table.add_row(*(escape(visible(row[name])) for name in names))
    return table


def tokens_per_s(engine: Engine) -> float:
    """Tokens read in a second of the device's time."""
    metrics = engine.metrics()
    return metrics.counts.tokens_ingested / max(metrics.step_s["ingest"].total, 1e-9)


def standing(query: FlashQuery, version: int) -> str:
    """Fresh, how many versions behind, or why there is no answer."""
    answer, error = query.answer, query.error
    if error is not None:
        return f"failed: {error}"
    if answer is None:
        return "no answer yet"
    behind = max(0, version - answer.version)
    if behind == 0:
        return "fresh"
    return f"{behind} version{'s' if behind > 1 else ''} behind"


def flash_line(question: str, answer: Answer) -> str:
    """An answer and its version in one line."""
    return (
        f"version {answer.version}: {question} -> {_text(answer)} "
        f"(confidence {answer.confidence:.1f})"
    )


def flash_fields(query: FlashQuery, answer: Answer) -> dict[str, JsonValue]:
    """The same for programs; "fresh" as of now."""
    return {
        "id": query.id,
        "question": query.question,
        "text": answer.text,
        "version": answer.version,
        "fresh": query.fresh and query.answer is answer,
        "confidence": answer.confidence,
        "logprob": answer.logprob,
        "latency_s": answer.latency_s,
    }


def _text(answer: Answer) -> str:
    return answer.text or "(nothing)"
