"""What people see of streams: tables that are drawn anew, a line now and then, the last answers.

Comes in: an engine's sessions and their flash queries. Goes out: tables and lines of text; all of
it is read off the engine when it is looked at. Does not know: terminals, events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from jaxstate.cli.inputs import Input
from jaxstate.cli.show import visible
from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import FlashQuery, Session
from jaxstate.engine.types.values import Answer, SessionInfo
from jaxstate.records import JsonValue

# Texts by the names of their columns; a column without any text is left out.
Row: TypeAlias = dict[str, str]
_LEFT = ("session", "question", "answer")
# What matters most comes first; what does not fit on the screen is left out.
_BY_IMPORTANCE = (
    *("question", "answer", "session", "lag", "state", "cells in use", "version"),
    *("sees", "dropped", "room", "not taken", "age", "confidence", "residency"),
)
# Columns that may be narrower than their texts: shares of the width that they have at least, the
# first to grow first.
_CUT = {"answer": 0.4, "question": 0.2, "session": 0.2}
_LEAST_CUT = 8
_GAP = 3
FRESH = "fresh"
# So many entries say how long an entry is.
_ENOUGH_ENTRIES = 8


def sees(info: SessionInfo) -> str:
    """What a session with a window sees, in words; nothing without one."""
    if not info.visible:
        return ""
    lines = sum(one.last - one.first + 1 for one in info.visible)
    return f"{lines:,} lines from {info.visible[0].first:,} on"


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
        self._read_before = max(0, session.version)
        self._tokens_before = session.info().tokens
        # What is behind in bytes, once something reads.
        self.behind_bytes: Callable[[], int | None] = lambda: None

    def reading(self) -> Row:
        """How far it is."""
        info = self._session.info()
        room, behind = self.lines_left(info), self.behind_bytes()
        return {
            "session": self._source.title,
            "version": "–" if info.version < 0 else str(info.version),  # its prefix is read first
            "lag": _lag(info),
            "not taken": _size(behind) if behind else "",
            "cells in use": f"{info.tokens:,} of {info.cells:,}",
            "room": "" if room is None else f"about {_rounded(room):,} lines",
            "sees": sees(info),
            "residency": info.residency,
            "dropped": f"{info.dropped} lines" if info.dropped else "",
        }

    def summary(self) -> str:
        """The same as one line."""
        info = self._session.info()
        behind = self.behind_bytes()
        waiting = f", {_lag(info)} behind" if info.pending else ""
        waiting += f", {_size(behind)} not taken yet" if behind else ""
        dropped = f", {info.dropped} lines dropped" if info.dropped else ""
        window = f" ({sees(info)})" if info.window is not None else ""
        return (
            f"version {info.version}{window}: {info.tokens:,} of {info.cells:,} cells, "
            f"{tokens_per_s(self._engine):,.0f} tokens/s{waiting}{dropped}"
        )

    def cells_per_line(self, info: SessionInfo) -> float | None:
        """Cells that a line has taken so far; None before enough were read to say."""
        lines = info.version - self._read_before
        if lines < _ENOUGH_ENTRIES:
            return None
        return max(1.0, (info.tokens - self._tokens_before) / lines)

    def lines_left(self, info: SessionInfo) -> int | None:
        """How many more lines like those so far fit; None before it can be said, and where a window
        makes room."""
        if info.window is not None:
            return None
        each = self.cells_per_line(info)
        return None if each is None else int((info.cells - info.tokens) / each)

    def answers(self, *, with_age: bool) -> Iterator[Row]:
        """The flash queries' newest answers."""
        version = self._session.version
        for query in self.queries:
            answer = query.answer
            yield {
                "session": self._source.name or "",
                "question": query.question,
                "answer": _newest(query),
                "version": "" if answer is None else str(answer.version),
                "state": standing(query, version) if query.error is None else "failed",
                "confidence": "" if answer is None else f"{answer.confidence:.1f}",
                "age": self._age(query.id, answer) if with_age else "",
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
        return f"{now_s - since_s:.0f} s"


def draw(engine: Engine, views: Sequence[StreamView], width: int) -> Group:
    """Where everything stands at this moment, for a screen of that width."""
    title = f"reading, {tokens_per_s(engine):,.0f} tokens/s"
    parts = [_table(title, [view.reading() for view in views], width)]
    return Group(*parts, *answers_table(views, width, with_age=True))


def answers_table(
    views: Sequence[StreamView], width: int, *, with_age: bool = False
) -> list[Table]:
    """The flash queries' newest answers, if there are flash queries."""
    rows = [row for view in views for row in view.answers(with_age=with_age)]
    return [_table("flash queries", rows, width)] if rows else []


def _table(title: str, rows: Sequence[Row], width: int) -> Table:
    """The answer has the room, the question is cut, and what matters least makes way."""
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    widths = _widths(rows, width)
    for name, size in widths.items():
        overflow: Literal["fold", "ellipsis"] = "fold" if name == "answer" else "ellipsis"
        side = "left" if name in _LEFT else "right"
        table.add_column(
            name, justify=side, width=size, no_wrap=overflow == "ellipsis", overflow=overflow
        )
    for row in rows:
        if row.get("state", FRESH) != FRESH and "state" not in widths:
            row = {**row, "answer": f"({row['state']}) {row['answer']}"}  # it must not look fresh
        table.add_row(*(escape(visible(row[name])) for name in widths))
    return table


def _widths(rows: Sequence[Row], width: int) -> dict[str, int]:
    """The columns that a screen has room for, in order, and how wide they are."""
    natural = {
        name: max(len(name), *(cell_len(visible(row[name])) for row in rows))
        for name in rows[0]
        if name in ("answer", "state") or any(row[name] for row in rows)
    }
    left, chosen = width + _GAP - 2, dict[str, int]()
    for name in sorted(natural, key=_BY_IMPORTANCE.index):
        least = max(_LEAST_CUT, int(width * _CUT[name])) if name in _CUT else natural[name]
        size = min(natural[name], least)
        if size + _GAP <= left:
            chosen[name] = size
            left -= size + _GAP
    for name in _CUT:
        if name in chosen:
            more = min(left, natural[name] - chosen[name])
            chosen[name] += more
            left -= more
    return {name: chosen[name] for name in natural if name in chosen}


def _lag(info: SessionInfo) -> str:
    """How far it is behind what was taken."""
    return f"{info.pending} lines, {info.lag_s:.1f} s"


def _size(count: int) -> str:
    """Bytes with a fitting unit."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _rounded(count: int) -> int:
    """To two digits: it is an estimate, and one that does not change all the time."""
    step = 10 ** max(0, len(str(count)) - 2)
    return count // step * step


def tokens_per_s(engine: Engine) -> float:
    """Tokens read in a second of the device's time."""
    metrics = engine.metrics()
    return metrics.counts.tokens_ingested / max(metrics.step_s["ingest"].total, 1e-9)


def standing(query: FlashQuery, version: int) -> str:
    """Fresh, how many versions it is behind, or why there is no answer."""
    answer, error = query.answer, query.error
    if error is not None:
        return f"failed: {error}"
    if answer is None:
        return "no answer yet"
    behind = max(0, version - answer.version)
    if behind == 0:
        return FRESH
    return f"{behind} behind"


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
        "fresh": query.fresh and query.answer is answer,
        **answer.as_dict(),
    }


def _newest(query: FlashQuery) -> str:
    """The newest answer; why there is none, if there is a reason."""
    if query.error is not None:
        return query.error
    return "" if query.answer is None else _text(query.answer)


def _text(answer: Answer) -> str:
    return answer.text or "(nothing)"
