"""A session read by hand: versions, answers, and what a refusal leaves behind."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxstate
from jaxstate.engine.reader import StreamReader
from jaxstate.errors import CapacityExceeded, InvalidInput, SnapshotDamaged, TextUnavailable
from jaxstate.model.bundle import Model
from jaxstate.testing import tiny_model

CELLS = 64
ENTRIES = ["the price is 101", "the price is 99", "the price is 7"]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def read(model: Model, entries: list[str]) -> StreamReader:
    reader = StreamReader.open(model, cells=CELLS)
    for entry in entries:
        reader.push(entry)
    return reader


def leaves(reader: StreamReader) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(reader.state)]


def test_versions_count_entries(model: Model) -> None:
    reader = StreamReader.open(model, cells=CELLS)
    assert reader.version == 0
    assert [reader.push(entry) for entry in ENTRIES] == [1, 2, 3]
    assert reader.length_tokens == int(reader.state.length)


def test_an_answer_equals_query_on_a_state_built_by_extend(model: Model) -> None:
    reader = read(model, ENTRIES)
    tokenizer, template = model.text, model.template
    tokens = template.open_tokens(tokenizer, "")
    for entry in ENTRIES:
        tokens += template.entry_tokens(tokenizer, entry)
    state = jaxstate.extend(model, jaxstate.init_state(model, CELLS), tokens)
    question = template.question_tokens(tokenizer, "up?")
    expected = jaxstate.query(model, state, question, max_tokens=8, stop=template.stop)
    reply = reader.ask("up?", max_tokens=8)
    assert reply.text == (expected.text or "").strip()
    assert (reply.version, reply.context_tokens) == (3, len(tokens))
    assert reply.answer_tokens == len(expected.tokens)


def test_the_prefix_comes_first(model: Model) -> None:
    reader = StreamReader.open(model, cells=CELLS, prefix="prices")
    assert reader.version == 0
    assert reader.length_tokens == len(model.template.open_tokens(model.text, "prices"))


def test_an_entry_that_does_not_fit_changes_nothing(model: Model) -> None:
    reader = read(model, ENTRIES)
    before = leaves(reader)
    with pytest.raises(CapacityExceeded):
        reader.push("x" * (CELLS - reader.length_tokens))  # the line break is one token more
    assert reader.version == 3
    for old, new in zip(before, leaves(reader), strict=True):
        np.testing.assert_array_equal(old, new)
    reader.push("x" * (CELLS - reader.length_tokens - 1))
    assert reader.length_tokens == CELLS


def test_an_entry_longer_than_the_session_says_so(model: Model) -> None:
    with pytest.raises(CapacityExceeded, match="the whole session holds 64 cells"):
        StreamReader.open(model, cells=CELLS).push("x" * 100)


def test_save_and_restore_keep_the_version(model: Model, tmp_path: Path) -> None:
    reader = read(model, ENTRIES)
    reader.save(tmp_path / "s")
    restored = StreamReader.restore(tmp_path / "s", model)
    assert (restored.version, restored.length_tokens) == (3, reader.length_tokens)
    assert restored.ask("up?", max_tokens=8).text == reader.ask("up?", max_tokens=8).text
    assert restored.push("more") == 4


def test_a_snapshot_without_entries_is_refused(model: Model, tmp_path: Path) -> None:
    jaxstate.save_state(tmp_path / "s", model, read(model, ENTRIES).state)
    with pytest.raises(SnapshotDamaged, match="how many entries"):
        StreamReader.restore(tmp_path / "s", model)


def test_text_needs_a_tokenizer(model: Model) -> None:
    mute = Model(config=model.config, params=model.params, tokenizer=None, template=model.template)
    with pytest.raises(TextUnavailable, match="no tokenizer files"):
        StreamReader.open(mute, cells=CELLS)


def test_an_empty_entry_is_a_line_break(model: Model) -> None:
    reader = StreamReader.open(model, cells=CELLS)
    length = reader.length_tokens
    assert reader.push("") == 1
    assert reader.length_tokens == length + 1


def test_a_question_that_is_no_text_is_refused(model: Model) -> None:
    with pytest.raises(InvalidInput):
        read(model, ENTRIES).ask("\ud800", max_tokens=4)
