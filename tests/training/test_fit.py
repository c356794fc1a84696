"""A config that is fitted to a time: the same proportions, and a file that can be read again."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import pytest

from jaxstate.training.config import TrainConfig, train_config_from_toml
from jaxstate.training.run import Run, prepare
from tests.script_modules import script_module

from .conftest import TOML


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    return script_module("fit_training")


def test_steps_fill_the_time(fit: ModuleType, config: TrainConfig) -> None:
    steps = fit.fitted_steps(config.stages, [0.5, 2.0], 600.0)
    assert steps == [400, 200]  # 4 : 2, and 0.5 * 400 + 2 * 200 = 600
    assert fit.fitted_steps(config.stages, [0.5, 2.0], 0.1) == [1, 1]


def test_only_the_steps_change(fit: ModuleType, config: TrainConfig) -> None:
    fitted = train_config_from_toml(fit.with_steps(TOML, [7, 9]))
    assert [stage.steps for stage in fitted.stages] == [7, 9]
    assert (fitted.model, fitted.optimizer) == (config.model, config.optimizer)
    assert [stage.session_tokens for stage in fitted.stages] == [96, 144]


def test_each_stage_is_measured(directory: Path, config: TrainConfig) -> None:
    run = Run(
        directory=directory,
        config=config,
        model=prepare(directory, config),
        dtype=jnp.dtype(jnp.float32),
        say=lambda report: None,
    )
    taken_s = run.measure(repeats=1)
    assert len(taken_s) == 2 and all(one > 0 for one in taken_s)
    assert not (directory / "checkpoints").exists() and not (directory / "log.jsonl").exists()
