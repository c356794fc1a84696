"""`jaxstate demo`: a real document into a real model, and what a question costs as it grows.

Comes in: a model's name. Goes out: answers, and the table that this project is about: the time of
an answer with the session, beside the time of the same answer when everything is read again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from rich.table import Table

from jaxstate.cli.runtime import open_model
from jaxstate.cli.show import Show
from jaxstate.config import StepConfig
from jaxstate.engine.reader import Reply, StreamReader

CELLS = 12_288
MAX_TOKENS = 16
# Asked after that many lines. A base model of 270 million parameters answers many questions
# wrongly; these are among those that it gets right.
QUESTIONS = (
    (36, "When was the Declaration of Independence adopted?"),
    (104, "What two Houses does the Congress consist of?"),
    (151, "Who is Commander in Chief of the Army and Navy?"),
    (201, "Who has power to declare war?"),
    (242, "Which amendment gave women the right to vote?"),
    (280, "What is the voting age?"),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One question with the session, and with its whole context read again."""

    session: Reply
    stateless_s: float
    same_answer: bool


def run_demo(show: Show, model_name: str) -> int:
    """Streams the document, asks as it grows, saves and restores."""
    document = resources.files("jaxstate").joinpath("data/constitution.txt").read_text("utf-8")
    entries = document.splitlines(keepends=True)
    model = open_model(show, model_name, cells=CELLS, dtype=None, steps=StepConfig(), reads=True)
    reader = StreamReader.open(model, cells=CELLS)
    show.say(f"streaming {len(entries)} lines, {len(document.split()):,} words, into {model_name}")
    rows = list(_stream(show, reader, entries))
    show.table(_table(rows))
    restored_equal = _save_and_restore(show, reader)
    same = all(row.same_answer for row in rows)
    show.event("done", version=reader.version, same_answers=same, restored_equal=restored_equal)
    if not (same and restored_equal):
        show.error("answers differ where they must not: please report this")
        return 1
    return 0


def _stream(show: Show, reader: StreamReader, entries: list[str]) -> Iterator[Comparison]:
    questions = dict(QUESTIONS)
    read_s, read_tokens = 0.0, 0
    for entry in entries:
        started, before = time.perf_counter(), reader.length_tokens
        reader.push(entry)
        reader.wait()
        read_s += time.perf_counter() - started
        read_tokens += reader.length_tokens - before
        question = questions.get(reader.version)
        if question is not None:
            show.say(
                f"\nversion {reader.version}: {read_tokens / read_s:,.0f} tokens/s read so far"
            )
            yield _compare(show, reader, entries[: reader.version], question)


def _compare(show: Show, reader: StreamReader, entries: list[str], question: str) -> Comparison:
    reply = reader.ask(question, max_tokens=MAX_TOKENS)
    show.reply(reply)
    started = time.perf_counter()
    again = _read_again(reader, entries).ask(question, max_tokens=MAX_TOKENS)
    stateless_s = time.perf_counter() - started
    show.say(f"   {stateless_s:.1f} s when all {reply.context_tokens:,} tokens are read again")
    row = Comparison(session=reply, stateless_s=stateless_s, same_answer=again.text == reply.text)
    show.event("comparison", **asdict(reply), stateless_s=stateless_s, same_answer=row.same_answer)
    return row


def _read_again(reader: StreamReader, entries: list[str]) -> StreamReader:
    """What a stateless server does for each question; the entries are read in large chunks."""
    from jaxstate.steps.functional import extend

    fresh = StreamReader.open(reader.model, cells=reader.cells)
    template, tokenizer = reader.model.template, reader.model.text
    tokens = [token for entry in entries for token in template.entry_tokens(tokenizer, entry)]
    state = extend(reader.model, fresh.state, tokens)
    return StreamReader(reader.model, state, len(entries))


def _table(rows: list[Comparison]) -> Table:
    table = Table(title="time of an answer, seconds")
    for name in ("tokens of context", "tokens answered", "session", "read again", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.session.context_tokens:,}",
            str(row.session.answer_tokens),
            f"{row.session.latency_s:.2f}",
            f"{row.stateless_s:.1f}",
            f"{row.stateless_s / row.session.latency_s:.0f} x",
        )
    return table


def _save_and_restore(show: Show, reader: StreamReader) -> bool:
    """Saves the session, brings it back, and asks both the same."""
    question = QUESTIONS[-1][1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session"
        started = time.perf_counter()
        reader.save(path)
        saved_s = time.perf_counter() - started
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        started = time.perf_counter()
        restored = StreamReader.restore(path, reader.model)
        restored.wait()
        restored_s = time.perf_counter() - started
    answers = [one.ask(question, max_tokens=MAX_TOKENS).text for one in (reader, restored)]
    show.say(
        f"saved {reader.length_tokens:,} cells ({size / 1e6:.0f} MB) in {saved_s:.1f} s, restored "
        f"in {restored_s:.1f} s; both answer {answers[1]!r}"
    )
    live, back = (np.asarray(one.state.ready) for one in (reader, restored))
    return answers[0] == answers[1] and bool(np.array_equal(live, back))
