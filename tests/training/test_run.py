"""Runs: learnt from, stopped and gone on with, refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstate
from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.training.config import TrainConfig, train_config_from_toml
from jaxstate.training.run import Report, Run, prepare

from .conftest import TOML


def run_in(directory: Path, config: TrainConfig, reports: list[Report]) -> Run:
    return Run(
        directory=directory,
        config=config,
        model=prepare(directory, config),
        dtype=jnp.dtype(jnp.float32),
        say=reports.append,
    )


def losses(directory: Path) -> list[tuple[int, float]]:
    lines = (directory / "log.jsonl").read_text().splitlines()
    return [(one["step"], one["loss"]) for one in map(json.loads, lines) if "loss" in one]


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxstate.training.run._LOG_STEPS", 1)


def test_a_run_that_is_stopped_takes_the_same_steps(
    directory: Path, config: TrainConfig, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    reports: list[Report] = []
    assert run_in(directory, config, reports).go(workers=1)
    whole = losses(directory)
    assert [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
    assert sum("held_out" in report for report in reports) == 2
    for _ in range(6):  # a step at a time
        ended = run_in(other, config, []).go(until_s=0, workers=1)
    assert ended and losses(other) == whole
    one, same = (jaxstate.load(path, dtype="float32") for path in (directory, other))
    assert one.fingerprint == same.fingerprint
    assert run_in(other, config, []).go(workers=1)  # nothing is left to do
    # What is saved is what was learnt, and it answers.
    state = jaxstate.extend(one, jaxstate.init_state(one, 128), one.text.encode("a 1\n"))
    assert jaxstate.query(one, state, [5, 6], max_tokens=3).logits.shape == (640,)


def test_a_run_that_is_killed_leaves_the_model_of_its_last_checkpoint(
    directory: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    often = dataclasses.replace(config, save_steps=2, evaluate_steps=100)
    steps = iter(range(3))
    take = Run._step

    def killed(self: Run, *given: object) -> object:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return take(self, *given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Run, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_in(directory, often, []).go(workers=1)
    monkeypatch.setattr(Run, "_step", take)
    for _ in range(2):
        run_in(other, often, []).go(until_s=0, workers=1)
    one, same = (jaxstate.load(path, dtype="float32") for path in (directory, other))
    assert one.fingerprint == same.fingerprint


def test_learning(directory: Path, config: TrainConfig) -> None:
    longer = dataclasses.replace(
        config, stages=(dataclasses.replace(config.stages[0], steps=30),), evaluate_steps=100
    )
    run_in(directory, longer, []).go(workers=1)
    seen = [loss for _, loss in losses(directory)]
    assert np.mean(seen[-5:]) < 0.8 * seen[0]


def test_it_begins_with_what_it_is_given(directory: Path, config: TrainConfig) -> None:
    run = run_in(directory, config, [])
    run.go(until_s=0, workers=1)
    given = jaxstate.load(directory, dtype="float32").params
    shutil.rmtree(directory / "checkpoints")
    (directory / "log.jsonl").unlink()
    run.go(start=given, until_s=0, workers=1)
    random_start = losses(directory)
    run_again = run_in(directory, config, [])
    shutil.rmtree(directory / "checkpoints")
    run_again.go(until_s=0, workers=1)
    assert losses(directory)[-1] != random_start[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed: 0 there, 1 here"),
        ({"row_tokens": 24}, r"row_tokens: 48 there, 24 here"),
    ],
)
def test_another_run_in_the_same_directory_is_refused(
    directory: Path, config: TrainConfig, change: dict[str, object], message: str
) -> None:
    prepare(directory, config)
    with pytest.raises(InvalidInput, match=message):
        prepare(directory, dataclasses.replace(config, **change))
    prepare(directory, dataclasses.replace(config, save_steps=1, evaluate_steps=1))


def test_another_model_optimizer_or_stages_are_another_run(
    directory: Path, config: TrainConfig
) -> None:
    prepare(directory, config)
    for other in (
        dataclasses.replace(config, model={**config.model, "hidden_size": 64}),
        dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, beta1=0.5)),
        dataclasses.replace(config, stages=config.stages[1:]),
    ):
        with pytest.raises(InvalidInput, match=r"another one \((model|optimizer|stages)\.\S+: "):
            prepare(directory, other)


def test_steps_that_are_taken_again_stand_in_the_log_once(
    directory: Path, config: TrainConfig
) -> None:
    assert run_in(directory, config, []).go(workers=1)
    whole = (directory / "log.jsonl").read_text()
    shutil.rmtree(directory / "checkpoints" / "6")  # as if killed before it was there
    with (directory / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # and in the middle of a line
    assert run_in(directory, config, []).go(workers=1)
    again = (directory / "log.jsonl").read_text()
    assert [step for step, _ in losses(directory)] == [1, 2, 3, 4, 5, 6]
    assert again == whole


def test_devices_that_cannot_share_a_batch_are_refused(
    directory: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(directory, config, [])
    monkeypatch.setattr("jax.devices", lambda: [jax.local_devices()[0]] * 3)
    with pytest.raises(
        InvalidInput, match=r"stages\[0\].sequences=2, .* multiple of the 3 devices"
    ):
        run.go(workers=1)


# In a process of its own: the library leaves coroutines behind when it fails.
@pytest.mark.parametrize("damage", ["shrunk", "gone"])
def test_a_damaged_checkpoint_is_refused(directory: Path, config: TrainConfig, damage: str) -> None:
    run_in(directory, config, []).go(until_s=0, workers=1)
    files = [file for file in (directory / "checkpoints" / "1").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    if damage == "gone":
        for file in files:
            if "metadata" not in file.name.lower():
                file.unlink()
    else:
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    (directory / "run.toml").write_text(TOML)
    command = ["train", directory / "run.toml", "--into", directory, "--workers", "1"]
    ended = subprocess.run(
        [sys.executable, "-c", "from jaxstate.cli import main; main()", *command],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 1
    assert re.search(r"error: checkpoint 1 in .* cannot be gone on with", ended.stderr)


def test_a_model_that_we_cannot_run_is_not_trained(directory: Path, config: TrainConfig) -> None:
    other = dataclasses.replace(config, model={**config.model, "hidden_act": "relu"})
    with pytest.raises(UnsupportedModel, match="relu"):
        prepare(directory, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = 0", "sead = 0"), "unknown keys .*sead"),
        (("warmup_steps = 2", "warmup = 2"), r"\[optimizer\]: unknown keys \['warmup'\]"),
        (("steps = 4", "steps = 4.5"), "must be a whole number"),
        (("steps = 4", "steps = -4"), "not negative"),
        (("session_tokens = 96", "session_tokens = 97"), "multiple of row_tokens=48"),
        (("questions = 3", ""), r"\[\[stages\]\]: .*questions"),
        (("learning_rate = 1e-2", 'kind = "sgd"'), "must be one of adamw, muon"),
        (("[model]", "[model"), "not TOML"),
    ],
)
def test_configs_that_say_something_else(change: tuple[str, str], message: str) -> None:
    text = "seed = 0\n" + TOML
    assert change[0] in text
    with pytest.raises(InvalidInput, match=message):
        train_config_from_toml(text.replace(*change))


def test_the_vocabulary_of_the_parameters_that_it_begins_with(
    tmp_path: Path, config: TrainConfig
) -> None:
    """Not one of today's generator, which those parameters do not know."""
    known = tmp_path / "tokenizer.model"
    known.write_bytes(b"as it was")
    prepare(tmp_path / "run", config, known)
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == b"as it was"
    known.write_bytes(b"another")
    prepare(tmp_path / "run", config, known)  # a run keeps what it has
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == b"as it was"
