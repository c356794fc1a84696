"""Values that cross the public surface: what they refuse, and that they are values."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from jaxstate.errors import InvalidInput
from jaxstate.records import QueryResult, Sampling


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": -math.inf},
        {"top_p": 0.0},
        {"top_p": -0.5},
        {"top_p": 1.0000001},
        {"top_p": math.nan},
        {"top_p": math.inf},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": math.nan},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidInput, match=name):
        Sampling(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "hot"},
        {"temperature": None},
        {"top_p": "0.9"},
        {"seed": 1.5},
        {"seed": "7"},
    ],
)
def test_a_setting_of_a_wrong_type_is_refused_by_name(wrong: dict[str, object]) -> None:
    """A seed of 1.5 would silently be a seed of 1."""
    (name,) = wrong
    with pytest.raises(InvalidInput, match=name):
        Sampling(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": np.float32(0.7)},
        {"temperature": 100.0, "top_p": 1e-9, "seed": 2**32 - 1},
        {"top_p": 1},
        {"seed": np.int64(5)},
        {"seed": 0},
    ],
)
def test_settings_within_range_are_taken(right: dict[str, float]) -> None:
    sampling = Sampling(**right)  # pyright: ignore[reportArgumentType]
    for name, value in right.items():
        assert getattr(sampling, name) == value


def test_greedy_is_the_default() -> None:
    assert (Sampling().temperature, Sampling().top_p, Sampling().seed) == (0.0, 1.0, 0)


def test_settings_are_values() -> None:
    assert Sampling(seed=3) == Sampling(seed=3) != Sampling(seed=4)
    assert len({Sampling(seed=3), Sampling(seed=3)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().seed = 4  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        Sampling(0.5)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InvalidInput):
        dataclasses.replace(Sampling(), top_p=2.0)


def test_a_result_is_frozen_and_compares_by_identity() -> None:
    """Two answers with equal arrays are two answers; comparing arrays in `==` would be an error."""
    numbers = np.zeros(2, np.float32)

    def result() -> QueryResult:
        return QueryResult(
            tokens=np.zeros(2, np.int32), logits=numbers, logprobs=numbers, finish_reason="stop"
        )

    one, other = result(), result()
    assert one == one
    assert one != other
    assert one.text is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.text = "x"  # pyright: ignore[reportAttributeAccessIssue]
