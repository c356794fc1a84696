"""What the embedded model knows of real files: a small form of `scripts/eval_streams.py`, with
floors a little below what its card says; and the same answers however a stream comes in."""

from __future__ import annotations

import random
from types import ModuleType

import pytest

import jaxstate
from tests.script_modules import script_module

pytestmark = pytest.mark.parity

STREAMS = 2
FLOORS = {
    "last value": 0.95,
    "value at a time": 0.9,
    "previous value": 0.95,
    "highest or lowest of the last 3": 0.9,
    "threshold": 0.95,
    "up or down": 0.9,
    "updated key": 0.85,
    "which one": 0.75,
    "unknown": 0.95,
    "all": 0.95,
}


@pytest.fixture(scope="module")
def evaluation() -> ModuleType:
    pytest.importorskip("bokeh_sampledata")
    return script_module("eval_streams")


@pytest.fixture(scope="module")
def model() -> jaxstate.Model:
    return jaxstate.load()


@pytest.mark.parametrize("tokens", [512, 2048])
def test_right_answers(evaluation: ModuleType, model: jaxstate.Model, tokens: int) -> None:
    cases = evaluation._cases(random.Random(0), STREAMS)
    wrong: list[str] = []
    shares = evaluation._shares(evaluation.evaluate(model, tokens, cases, wrong))
    low = {name: shares[name] for name, floor in FLOORS.items() if shares[name] < floor}
    assert not low, "\n".join(wrong)


def test_ticks_and_a_whole_document_are_answered_alike(
    evaluation: ModuleType, model: jaxstate.Model
) -> None:
    for number, case in enumerate(evaluation._cases(random.Random(1), 1)):
        entries = case.entries[:16]
        asked = case.ask(random.Random(number), len(entries))
        with jaxstate.Engine(model, cells=4096, session_cells=2048) as engine:
            ticks, whole = engine.open("ticks"), engine.open("whole")
            whole.push(entries)
            for entry in entries:
                ticks.push(entry)
                ticks.wait()
            for one in asked:
                choices = one.choices or None
                answers = [
                    session.ask(one.text, max_tokens=16, choices=choices)
                    for session in (ticks, whole)
                ]
                assert answers[0].text == answers[1].text, one.text


def test_it_is_what_is_loaded_where_none_is_named(model: jaxstate.Model) -> None:
    assert model.source == "streams-20m"
    assert model.config.max_context == 8192
