"""What a training run is, as TOML.

Comes in: a file's text. Goes out: a `TrainConfig`, or one error that says what is wrong with it.
Does not know: devices, data.

    seed = 0
    [model]                       # the fields of a Hugging Face config.json
    model_type = "llama"
    ...
    [optimizer]
    learning_rate = 2e-3
    [[stages]]                    # one after the other, mostly with ever longer sessions
    steps = 1000
    sequences = 64
    session_tokens = 768
    questions = 16
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from jaxstate.errors import InvalidInput

OptimizerKind = Literal["adamw", "muon"]
_RUNS = 4
_LATE_TOKENS = 128  # a question may be asked so long after its run's part of a session
Plain = TypeVar("Plain", "Optimizer", "Stage")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimizer with a warm-up, a cosine, and clipped gradients.

    Attributes:
        kind: "muon" or "adamw".
        learning_rate: at its peak.
        final_share: of the peak, at the end of the cosine.
        warmup_steps: from 0 to the peak.
        weight_decay: of matrices.
        clip_norm: of the gradient, over all parameters.
        beta1, beta2: AdamW's; Muon keeps its own 0.95.
        session_weight: of the loss on the session's own tokens, beside that on answers.
    """

    kind: OptimizerKind = "muon"
    learning_rate: float = 2e-3
    final_share: float = 0.05
    warmup_steps: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    session_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """So many steps with batches of one shape.

    Attributes:
        steps: of the optimizer.
        sequences: sessions of a batch.
        session_tokens: of each, at most; a multiple of the row's length.
        questions: to each.
        accumulate: batches of a step, whose gradients are averaged.
    """

    steps: int
    sequences: int
    session_tokens: int
    questions: int
    accumulate: int = 1

    @property
    def runs(self) -> int:
        """Equal runs of questions, each asked in its own part of a session."""
        return math.gcd(self.questions, _RUNS)

    def seen_rows(self, row_tokens: int) -> tuple[int, ...]:
        """For each run, the rows of a session that its questions may see: those up to the end of
        its part, and what the entry may take that is being read there."""
        rows = self.session_tokens // row_tokens
        late = -(-_LATE_TOKENS // row_tokens)
        return tuple(
            min(rows, -(-rows * (run + 1) // self.runs) + late) for run in range(self.runs)
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run.

    Attributes:
        model: the fields of its config.json.
        optimizer: how it learns.
        stages: what it learns from.
        seed: of parameters and data.
        row_tokens: tokens of a row of a batch; a question with its answer must fit into one.
        evaluate_steps: steps between two evaluations on held-out streams.
        save_steps: steps between two checkpoints.
    """

    model: Mapping[str, object]
    optimizer: Optimizer
    stages: tuple[Stage, ...]
    seed: int = 0
    row_tokens: int = 48
    evaluate_steps: int = 500
    save_steps: int = 500

    def __post_init__(self) -> None:
        """Refuses sizes that no batch can have."""
        wrong = [
            f"stages[{number}].session_tokens={stage.session_tokens} must be a multiple of "
            f"row_tokens={self.row_tokens}"
            for number, stage in enumerate(self.stages)
            if stage.session_tokens % self.row_tokens
        ]
        if not self.stages:
            wrong.append("there are no [[stages]]")
        if wrong:
            raise InvalidInput("; ".join(wrong))

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that step number `step`, from 0 on, belongs to.

        Raises:
            InvalidInput: the run has ended before it.
        """
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise InvalidInput(f"the run has only {self.steps} steps")


def train_config_from_toml(text: str) -> TrainConfig:
    """Reads a `TrainConfig`; what is left out keeps its default.

    Raises:
        InvalidInput: not TOML, an unknown key, or a value of the wrong kind.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"the training config is not TOML: {error}") from error
    simple = {"seed", "row_tokens", "evaluate_steps", "save_steps"}
    unknown = sorted(set(found) - simple - {"model", "optimizer", "stages"})
    if unknown:
        raise InvalidInput(
            f"unknown keys {unknown}; allowed are {sorted(simple)}, [model], [optimizer] and "
            "[[stages]]"
        )
    model, optimizer, stages = (
        found.get("model"),
        found.get("optimizer", {}),
        found.get("stages", []),
    )
    if not isinstance(model, dict) or not isinstance(stages, list):
        raise InvalidInput("[model] must be a table and [[stages]] tables")
    numbers = {key: _whole(key, found[key]) for key in simple & set(found)}
    return TrainConfig(
        model=model,
        optimizer=_plain(Optimizer, "[optimizer]", optimizer),
        stages=tuple(_plain(Stage, "[[stages]]", stage) for stage in stages),
        **numbers,
    )


def _plain(kind: type[Plain], where: str, found: object) -> Plain:
    if not isinstance(found, dict):
        raise InvalidInput(f"{where} must be a table")
    known = {one.name: one.type for one in fields(kind)}
    if unknown := sorted(set(found) - set(known)):
        raise InvalidInput(f"{where}: unknown keys {unknown}; allowed are {sorted(known)}")
    values: dict[str, Any] = {
        key: _setting(f"{where} {key}", value, str(known[key])) for key, value in found.items()
    }
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidInput(f"{where}: {error}") from error


def _setting(key: str, value: object, kind: str) -> int | float | str:
    if kind != "OptimizerKind":
        return _whole(key, value) if kind == "int" else _number(key, value)
    if value not in get_args(OptimizerKind):
        raise InvalidInput(f"{key}={value!r} must be one of {', '.join(get_args(OptimizerKind))}")
    return str(value)


def _whole(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput(f"{key}={value!r} must be a whole number, not negative")
    return value


def _number(key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise InvalidInput(f"{key}={value!r} must be a number, not negative")
    return float(value)
