"""The model that comes with jaxstate: transformers reads its directory and says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import jaxstate
from jaxstate.weights import known_model_path

from .checks import check_answer, difference, extended
from .conftest import Measured
from .reference import all_logits, reloaded

pytestmark = pytest.mark.parity

STEPS = jaxstate.StepConfig(extend_tokens=(64,), question_tokens=(32,), tail_cells=(64,))
ENTRIES = [
    f"2024-03-{day:02d} ACME open {day}.10 high {day}.95 low {day}.02" for day in range(1, 29)
]
QUESTION = "What was the high of ACME on 2024-03-17?"
BOUND = 1e-3


def test_same_logits_and_answer(measured: Measured) -> None:
    model = jaxstate.load("streams-20m", dtype="float32", steps=STEPS)
    directory = known_model_path("streams-20m")
    theirs = reloaded(directory, "float32")
    template, tokenizer = model.template, model.text
    tokens = template.open_tokens(tokenizer, "")
    for entry in ENTRIES:
        tokens += template.entry_tokens(tokenizer, entry)
    question = np.array(template.question_tokens(tokenizer, QUESTION), np.int32)
    context = np.array(tokens, np.int32)
    ((_, state),) = extended(model, context, (len(context),), 1200)
    prompt = np.concatenate([context, question])
    ready = difference(
        jaxstate.ready_logits(model, state),
        all_logits(theirs, prompt, keep=len(question) + 1)[0],
    )
    result = jaxstate.query(model, state, question, max_tokens=6)
    answer = check_answer(result, theirs, prompt, count=6, bound=BOUND)
    measured("ready logits", ready)
    measured("first logits, logprobs", answer)
    assert max(ready, answer) < BOUND
    assert result.text is not None and result.text.strip() == "17.95"


def test_same_tokens() -> None:
    """Those of the library's own processor, which knows nothing of templates and places."""
    model = jaxstate.load("streams-20m", steps=STEPS)
    path: Path = known_model_path("streams-20m") / "tokenizer.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in [*ENTRIES, "  two  spaces\n", "VZMZ,VZMZ VZMZ", "日本語 🙂 \t1,234.50"]:
        assert model.text.encode(text) == theirs.encode(text)
        assert model.text.decode(model.text.encode(text)) == text
