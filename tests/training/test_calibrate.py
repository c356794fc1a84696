"""Calibration: the temperature that answers were drawn at is found again, and judged by how many
of them are right."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.script_modules import script_module


@pytest.fixture(scope="module")
def calibrate() -> ModuleType:
    return script_module("calibrate")


def drawn(calibrate: ModuleType, temperature: float, count: int) -> list[object]:
    """Answers of a model whose log-probabilities are that many times too large."""
    rng = np.random.default_rng(0)
    answers: list[object] = []
    for _ in range(count):
        honest = rng.normal(0.0, 1.5, rng.integers(2, 5))
        shares = np.exp(honest) / np.exp(honest).sum()
        truth = int(rng.choice(len(shares), p=shares))
        answers.append(calibrate.Given(tuple(honest * temperature), truth))
    return answers


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_is_found(calibrate: ModuleType, temperature: float) -> None:
    answers = drawn(calibrate, temperature, 4000)
    fitted = calibrate.fitted(answers)
    assert fitted == pytest.approx(temperature, rel=0.1)
    assert calibrate.reliability(answers, fitted).error < 0.03


def test_overconfidence_shows(calibrate: ModuleType) -> None:
    answers = drawn(calibrate, 6.0, 4000)
    assert calibrate.reliability(answers, 1.0).error > 0.1
    assert calibrate.reliability(answers, 1.0).count.sum() == len(answers)
