"""Sessions and questions in one pass: the same as reading, committing and asking."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxstate
from jaxstate.model.decoder import Decoder, forward, logits_of
from jaxstate.testing.tiny import tiny_config, tiny_model
from jaxstate.text import find_tokenizer, plain_template
from jaxstate.training.batches import make_batch
from jaxstate.training.config import Stage
from jaxstate.training.learning import packed_of

STAGE = Stage(steps=1, sequences=2, session_tokens=480, questions=8)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_packed_is_extend_and_query(vocabulary: Path, cap: float | None) -> None:
    """With grouped queries, a window that no row divides, and with and without a soft cap."""
    tokenizer = find_tokenizer(vocabulary.parent)
    assert tokenizer is not None
    template = plain_template(tokenizer.bos)
    config = tiny_config(vocab_size=640, attention_softcap=cap)
    steps = jaxstate.StepConfig(extend_tokens=(64,), question_tokens=(48,), tail_cells=(64,))
    model = dataclasses.replace(
        tiny_model(config, steps=steps), tokenizer=tokenizer, template=template
    )
    params = model.params
    batch = make_batch(tokenizer, template, STAGE, 48, "packed")
    rows = STAGE.session_tokens // 48
    assert packed_of(STAGE, 48).seen_rows == (6, 8, 10, 10)
    decoder = Decoder(config=config, dtype=jnp.dtype(jnp.float32))
    hidden, _ = forward(
        decoder,
        params,
        jnp.asarray(batch.tokens),
        jnp.asarray(batch.positions),
        packed_of(STAGE, 48),
    )
    logits = np.asarray(logits_of(decoder, params, hidden))
    assert logits.std() > 0.1
    for sequence in range(STAGE.sequences):
        session = batch.tokens[sequence, :rows].ravel()
        for row in range(rows, rows + STAGE.questions):
            at = int(batch.positions[sequence, row, 0])
            first = int(np.argmax(batch.in_answer[sequence, row]))
            state = jaxstate.extend(model, jaxstate.init_state(model, 512), session[:at])
            question = batch.tokens[sequence, row, : first + 1]
            found = jaxstate.query(model, state, question, max_tokens=1).logits
            np.testing.assert_allclose(logits[sequence, row, first], found, atol=2e-5)
