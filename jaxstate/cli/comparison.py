"""One question answered in three ways, and what each costs.

Comes in: a model, a session, the entries that it has read and a question. Goes out: the answers and
their times: with everything read again, as a stateless server does for each question; from the
session; and as a flash query that was answered ahead of time. Does not know: what the entries are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from rich.table import Table

from jaxstate.config import ModelConfig, StepConfig
from jaxstate.engine.api.session import Session
from jaxstate.engine.types.values import Answer
from jaxstate.model.bundle import Model
from jaxstate.steps.compiled import plan_steps
from jaxstate.steps.functional import extend, init_state, query
from jaxstate.steps.spec import StepSpec


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One question, answered in three ways about the same text."""

    question: str
    computed: Answer
    flash: Answer
    again_text: str
    again_s: float

    @property
    def same(self) -> bool:
        """Whether all three answers are, and the flash answer was there when it was asked for."""
        texts = {self.computed.text, self.flash.text, self.again_text}
        return len(texts) == 1 and self.flash.source == "flash"


def compare(
    model: Model,
    session: Session,
    entries: Sequence[str],
    question: str,
    max_tokens: int,
    *,
    cells: int = 8192,
) -> Comparison:
    """Asks in all three ways; a flash query of that question is registered anew.

    Args:
        model: the session's.
        session: has read exactly `entries`.
        entries: are read again.
        question: is asked.
        max_tokens: of the answer.
        cells: capacity of the session that reads again.
    """
    registered = {one.question: one for one in session.flashes()}
    if (kept := registered.get(question)) is not None:
        session.unflash(kept.id)  # or it would be answered from there at once
    session.wait_fresh()
    computed = session.ask(question, max_tokens=max_tokens)
    session.flash(question, max_tokens=max_tokens)
    session.wait_fresh()
    flash = session.ask(question, max_tokens=max_tokens)
    again_text, again_s = _read_again(model, entries, question, max_tokens, cells)
    return Comparison(
        question=question,
        computed=computed,
        flash=flash,
        again_text=again_text,
        again_s=again_s,
    )


def _read_again(
    model: Model, entries: Sequence[str], question: str, max_tokens: int, cells: int
) -> tuple[str, float]:
    """What a stateless server does for each question; the entries are read in large chunks."""
    template, tokenizer = model.template, model.text
    tokens = template.open_tokens(tokenizer, "")
    place = template.first_entry_place(tokenizer, "")
    for entry in entries:
        tokens += template.entry_tokens(tokenizer, entry, place)
        place = "text"
    asked = template.question_tokens(tokenizer, question)
    started_s = time.perf_counter()
    state = extend(model, init_state(model, cells), tokens)
    result = query(model, state, asked, max_tokens=max_tokens, stop=template.stops(tokenizer))
    return (result.text or "").strip(), time.perf_counter() - started_s


def stateless_specs(config: ModelConfig, dtype: jnp.dtype, cells: int = 8192) -> Sequence[StepSpec]:
    """What reading everything again needs: compiled ahead, too, so that the times compare."""
    steps = StepConfig()
    planned = plan_steps(config, dtype, steps, cells)
    asking = [spec for spec in planned.asking_specs(steps.tail_cells[0]) if spec.tokens <= 64]
    return [*planned.reading_specs(), *asking]


def comparison_table(rows: Sequence[Comparison]) -> Table:
    """A row for each."""
    table = Table(title="the same answer, three ways")
    for name in ("tokens of context", "tokens answered", "read again, s", "session, s"):
        table.add_column(name, justify="right")
    table.add_column("flash hit, µs", justify="right")
    for row in rows:
        table.add_row(
            f"{row.computed.usage.context_tokens:,}",
            str(len(row.computed.token_ids)),
            f"{row.again_s:.1f}",
            f"{row.computed.latency_s:.2f}",
            f"{row.flash.latency_s * 1e6:.0f}",
        )
    return table
