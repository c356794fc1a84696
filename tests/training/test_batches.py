"""Streams as arrays: what is where, and what is learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxstate.text import Template, Tokenizer, find_tokenizer, plain_template
from jaxstate.training.batches import Batch, make_batch
from jaxstate.training.config import Stage
from jaxstate.training.data import FAMILIES

STAGE = Stage(steps=1, sequences=3, session_tokens=144, questions=5)
ROWS = 3


@pytest.fixture(scope="module")
def text(vocabulary: Path) -> tuple[Tokenizer, Template]:
    tokenizer = find_tokenizer(vocabulary.parent)
    assert tokenizer is not None
    return tokenizer, plain_template(tokenizer.bos)


@pytest.fixture(scope="module")
def batch(text: tuple[Tokenizer, Template]) -> Batch:
    return make_batch(*text, STAGE, 48, "seed")


def test_shapes(batch: Batch) -> None:
    shape = (3, ROWS + 5, 48)
    for array in (batch.tokens, batch.positions, batch.targets, batch.in_session, batch.in_answer):
        assert array.shape == shape
    assert batch.families.shape == (3, 5) and batch.families.max() < len(FAMILIES)


def test_sessions_are_read_from_the_start(batch: Batch, text: tuple[Tokenizer, Template]) -> None:
    tokenizer, _ = text
    for sequence in range(3):
        session = batch.tokens[sequence, :ROWS].ravel()
        assert session[0] == tokenizer.bos_id
        assert batch.positions[sequence, :ROWS].ravel().tolist() == list(range(144))
        learnt = batch.in_session[sequence, :ROWS].ravel()
        length = int(learnt.sum()) + 1
        assert learnt[: length - 1].all() and not learnt[length - 1 :].any()
        targets = batch.targets[sequence, :ROWS].ravel()
        assert targets[: length - 1].tolist() == session[1:length].tolist()
        assert tokenizer.decode(session[:length].tolist()).endswith("\n")
    assert not batch.in_answer[:, :ROWS].any() and not batch.in_session[:, ROWS:].any()


def test_questions_stand_where_they_were_asked(
    batch: Batch, text: tuple[Tokenizer, Template]
) -> None:
    tokenizer, _ = text
    for sequence in range(3):
        session = batch.tokens[sequence, :ROWS].ravel()
        for row in range(ROWS, ROWS + 5):
            positions, answer = batch.positions[sequence, row], batch.in_answer[sequence, row]
            at = int(positions[0])
            assert positions.tolist() == list(range(at, at + 48))
            # An entry has just ended there: a question never stands in the middle of one.
            assert tokenizer.decode(session[at - 1 : at].tolist()) == "\n"
            first = int(np.argmax(answer))
            asked = tokenizer.decode(batch.tokens[sequence, row, : first + 1].tolist())
            assert asked.startswith("\nQuestion: ") and asked.endswith("\nAnswer:")
            said = tokenizer.decode(batch.targets[sequence, row][answer].tolist())
            assert said.startswith(" ") and said.endswith("\n") and said.strip()


def test_a_batch_depends_on_its_seed_alone(text: tuple[Tokenizer, Template], batch: Batch) -> None:
    again, other = make_batch(*text, STAGE, 48, "seed"), make_batch(*text, STAGE, 48, "other")
    np.testing.assert_array_equal(batch.tokens, again.tokens)
    assert (batch.tokens != other.tokens).any()


def test_each_run_of_questions_sees_all_that_was_read(text: tuple[Tokenizer, Template]) -> None:
    stage = Stage(steps=1, sequences=4, session_tokens=1200, questions=12)
    batch = make_batch(*text, stage, 48, "runs")
    seen_tokens = np.repeat(np.array(stage.seen_rows(48)) * 48, stage.questions // stage.runs)
    asked = batch.families >= 0
    places = batch.positions[:, 1200 // 48 :, 0]
    assert asked.mean() > 0.9
    assert (places <= seen_tokens)[asked].all()
    assert (places[:, -1] > 900).all(), "the last run is asked in the last part"
