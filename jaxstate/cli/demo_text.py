"""`jaxstate demo --text`: a real document into a real model, and what a question costs as it grows.

Comes in: a model's name. Goes out: answers, and the table that this project is about: the time of
the same answer when everything is read again, when a session has read it, and when a session has
answered it ahead of time.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from jaxstate.cli.comparison import Comparison, compare, comparison_table, stateless_specs
from jaxstate.cli.runtime import Needs, engine_for, open_model
from jaxstate.cli.show import Show
from jaxstate.cli.view import flash_line, tokens_per_s
from jaxstate.config import StepConfig
from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig
from jaxstate.model.bundle import Model

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
# Kept answered from the first line to the last.
STANDING = (QUESTIONS[0][1], QUESTIONS[1][1])


def run_demo(show: Show, name: str) -> int:
    """Streams the document, asks as it grows, saves and restores."""
    document = resources.files("jaxstate").joinpath("data/constitution.txt").read_text("utf-8")
    entries = document.splitlines(keepends=True)
    needs = Needs(in_bulk=True, asks=True, flashes=len(STANDING) + 1, copies=True)
    model = open_model(
        show,
        name,
        cells=CELLS,
        dtype=None,
        steps=StepConfig(),
        needs=needs,
        also=functools.partial(stateless_specs, cells=CELLS),
    )
    show.say(f"streaming {len(entries)} lines, {len(document.split()):,} words, into {name}")
    with engine_for(model, CELLS, EngineConfig()) as engine:
        session = engine.open(flash=STANDING)
        rows = list(_stream(show, model, engine, session, entries))
        show.table(comparison_table(rows))
        restored_same = _save_and_restore(show, engine, session)
        same = all(row.same for row in rows)
        show.event("done", version=session.version, same_answers=same, restored_same=restored_same)
    if not (same and restored_same):
        show.error("answers differ where they must not: please report this")
        return 1
    return 0


def _stream(
    show: Show, model: Model, engine: Engine, session: Session, entries: list[str]
) -> Iterator[Comparison]:
    """Pushes the document up to where each question is asked, and compares there."""
    for version, question in QUESTIONS:
        session.push(entries[max(session.version, 0) : version])
        session.wait(version)
        show.say(f"\nversion {version}: {tokens_per_s(engine):,.0f} tokens/s read so far")
        row = compare(model, session, entries[:version], question, MAX_TOKENS, cells=CELLS)
        show.reply(question, row.computed)
        _show_comparison(show, row)
        _show_standing(show, session, question)
        yield row


def _show_comparison(show: Show, row: Comparison) -> None:
    tokens = row.computed.usage.context_tokens
    show.say(
        f"   {row.flash.latency_s * 1e6:.0f} µs as a flash query, answered before it was asked; "
        f"{row.again_s:.1f} s when all {tokens:,} tokens are read again"
    )
    show.event(
        "comparison",
        question=row.question,
        version=row.computed.version,
        context_tokens=tokens,
        answer_tokens=len(row.computed.token_ids),
        session_s=row.computed.latency_s,
        flash_s=row.flash.latency_s,
        flash_source=row.flash.source,
        again_s=row.again_s,
        same_answer=row.same,
    )


def _show_standing(show: Show, session: Session, question: str) -> None:
    """What the other flash queries say at this version; the next one starts with fewer of them."""
    for one in session.flashes():
        if one.question not in STANDING:
            session.unflash(one.id)
        elif one.question != question and one.answer is not None:
            show.say(f"   kept answered: {flash_line(one.question, one.answer)}")


def _save_and_restore(show: Show, engine: Engine, session: Session) -> bool:
    """Asks, saves the session, ends it, brings it back, and asks the same again."""
    question = QUESTIONS[-1][1]
    live, cells = session.ask(question, max_tokens=MAX_TOKENS), session.info().tokens
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session"
        started_s = time.perf_counter()
        session.save(path)
        saved_s = time.perf_counter() - started_s
        session.close()
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        started_s = time.perf_counter()
        restored = engine.restore(path)
        restored_s = time.perf_counter() - started_s
    back = restored.ask(question, max_tokens=MAX_TOKENS)
    show.say(
        f"saved {cells:,} cells ({size / 1e6:.0f} MB) in {saved_s:.1f} s, restored in "
        f"{restored_s:.1f} s; it still answers {back.text!r}"
    )
    return (live.token_ids, live.version) == (back.token_ids, back.version)
