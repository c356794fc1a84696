"""No question of the evaluation is one that the generator asks: with names and numbers masked, they
have none in common in many thousands."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from types import ModuleType

import pytest

from jaxstate.training.data import Stream
from tests.script_modules import script_module

STREAMS, QUESTIONS = 400, 40


def masked(text: str, names: Iterable[str]) -> str:
    """Without names, numbers, capitals and marks."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", text)
    text = re.sub(r"\d[\d:.,TZ/-]*", "#", text)
    return " ".join(re.sub(r"[^\w#]+", " ", text).lower().split())


def evaluation() -> ModuleType:
    return script_module("eval_streams")


def evaluated() -> set[str]:
    module = evaluation()
    bars = module._bars()
    names = {*bars, *module._ITEMS, "NVDA", "ORCL", "TSLA", "KO", "violin", "wheelbarrow"}
    names |= {"telescope"}
    found: set[str] = set()
    for case in module._cases(random.Random(0), 6):
        for seed in range(4):
            asked = case.ask(random.Random(seed), 120)
            found |= {masked(one.text, names) for one in asked}
    return found


def generated() -> set[str]:
    found: set[str] = set()
    for seed in range(STREAMS):
        stream = Stream(random.Random(f"leak/{seed}"))
        names: set[str] = set()
        for _ in range(QUESTIONS):
            stream.entry()
            question = stream.question()
            names |= {name for source in stream._sources for name in source.entities}
            if question is not None:
                found.add(masked(question.text, names))
    return found


def test_no_question_of_the_evaluation_comes_out_of_the_generator() -> None:
    pytest.importorskip("bokeh_sampledata")
    theirs, ours = evaluated(), generated()
    assert len(theirs) > 20 and len(ours) > 3000
    assert theirs & ours == set()
