"""When an answer is news: each condition over a sequence of answers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.engine.flash.conditions import (
    Changed,
    Condition,
    ConfidenceAbove,
    Crosses,
    Equals,
    Watch,
    checked_condition,
    first_number,
)
from jaxstate.engine.types.values import Answer, Usage
from jaxstate.errors import InvalidInput


def answer(text: str, confidence: float = 1.0) -> Answer:
    return Answer(
        text=text,
        token_ids=(),
        version=1,
        source="flash",
        confidence=confidence,
        logprob=0.0,
        finish_reason="stop",
        latency_s=0.0,
        usage=Usage(context_tokens=0, question_tokens=0, answer_tokens=0),
    )


def fired(condition: Condition | None, texts: list[str]) -> list[int]:
    """Which of the answers fire, by index."""
    watch = Watch(condition)
    return [i for i, text in enumerate(texts) if watch.observe(answer(text))]


@pytest.mark.parametrize(
    ("condition", "texts", "expected"),
    [
        (None, ["a", "a", "b", "b", "a"], [0, 2, 4]),
        (None, ["", "", "a"], [0, 2]),
        (Changed(), ["a", "a", "b", "a"], [2, 3]),
        (Changed(), ["", "a"], [1]),
        (Equals("yes"), ["yes", "yes", "no", "yes"], [0, 3]),
        (Equals("yes"), ["no", "Yes", "yes!", "yes"], [3]),
        (Crosses(100), ["101", "102", "99", "98", "100", "99.9"], [2, 4, 5]),
        (Crosses(100, "up"), ["101", "99", "100", "99"], [2]),
        (Crosses(100, "down"), ["101", "99", "100", "99"], [1, 3]),
        (Crosses(100), ["none", "101", "unknown", "nan", "102", "", "99"], [6]),
        (Crosses(0), ["-1", "0", "-0.5"], [1, 2]),
        (Crosses(1000), ["$999.99", "about $1,000 now", "5%"], [1, 2]),
    ],
)
def test_which_answers_fire(
    condition: Condition | None, texts: list[str], expected: list[int]
) -> None:
    assert fired(condition, texts) == expected


def test_confidence_fires_when_it_reaches_the_threshold() -> None:
    watch = Watch(ConfidenceAbove(2.0))
    values = [2.0, 3.0, 1.9, math.nan, math.inf, math.inf]
    assert [watch.observe(answer("a", value)) for value in values] == [
        *(True, False, False),
        *(False, True, False),
    ]


@given(st.lists(st.floats(-5, 5).map(lambda value: round(value, 2)), min_size=1))
def test_ups_and_downs_are_the_crossings_and_alternate(values: list[float]) -> None:
    texts = [f"it is {value}" for value in values]
    both = fired(Crosses(1.0), texts)
    ups, downs = fired(Crosses(1.0, "up"), texts), fired(Crosses(1.0, "down"), texts)
    assert sorted(ups + downs) == both
    assert all((i in ups) != (j in ups) for i, j in pairwise(both))
    assert all(values[i] >= 1.0 > values[i - 1] for i in ups)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7.0),
        ("It rose to 1,234,567.5 today", 1234567.5),
        ("-$1,234.5", -1234.5),
        ("$-3", -3.0),
        ("\u22124.5 %", -4.5),
        ("+2", 2.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("1e3 units", 1000.0),
        ("2.5E-2", 0.025),
        ("12euros", 12.0),
        ("1,5", 1.0),
        ("1,2345", 1.0),
        ("12345,678", 12345.0),
        ("BTC-100", 100.0),
        ("5-10", 5.0),
        ("(101)", 101.0),
        ("1e999", math.inf),
        ("nan", None),
        ("inf", None),
        ("none, or - maybe", None),
        ("", None),
    ],
)
def test_the_first_number(text: str, number: float | None) -> None:
    assert first_number(text) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_as_python_writes_them(value: float) -> None:
    assert first_number(f"now {value}") == value
    assert first_number(f"now {value:,.3f}") == float(f"{value:.3f}")


@given(st.text("0123456789.,-+\u2212$%()eE nai\u0663"))
def test_any_text_has_a_number_or_none(text: str) -> None:
    number = first_number(text)
    assert number is None or not math.isnan(number)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf, "1", None, True, 10**400])
def test_thresholds_are_finite_numbers(threshold: object) -> None:
    for make in (ConfidenceAbove, Crosses):
        with pytest.raises(InvalidInput, match="threshold="):
            make(threshold)  # pyright: ignore


@pytest.mark.parametrize("threshold", [3, 3.0, np.float32(3), np.int64(3)])
def test_kinds_of_numbers(threshold: float) -> None:
    assert fired(Crosses(threshold), ["2", "3"]) == [1]


@pytest.mark.parametrize("choice", ["", "  ", None, 3])
def test_choices_are_texts(choice: object) -> None:
    with pytest.raises(InvalidInput, match="choice="):
        Equals(choice)  # pyright: ignore


def test_directions() -> None:
    with pytest.raises(InvalidInput, match="'up', 'down', 'either'"):
        Crosses(1.0, "sideways")  # pyright: ignore


@pytest.mark.parametrize("value", [None, Changed(), Equals("a"), ConfidenceAbove(1), Crosses(1)])
def test_conditions_pass(value: object) -> None:
    assert checked_condition(value) is value


@pytest.mark.parametrize("value", ["changed", 3, Changed, lambda answer: True])
def test_other_things_are_no_conditions(value: object) -> None:
    with pytest.raises(InvalidInput, match="must be one of None, Changed"):
        checked_condition(value)
    with pytest.raises(InvalidInput):
        Watch(value)  # pyright: ignore
