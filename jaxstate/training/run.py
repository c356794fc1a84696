"""A training run: from nothing, or from where it was left, to a model that `load` reads.

Comes in: a directory and a `TrainConfig`. Goes out: in that directory a Hugging Face model
(config.json, tokenizer.model, model.safetensors), checkpoints, and a log of JSON lines. A run that
is started again goes on with its last checkpoint and takes the same steps. Does not know: the
command line.

    config.json, tokenizer.model, tokenizer_config.json    written first
    run.json                                               what decides its steps, written first
    checkpoints/<step>                                     Orbax: parameters and optimizer, float32
    log.jsonl                                              what each step and evaluation measured
    model.safetensors                                      the parameters of the last checkpoint
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxstate.config import ModelConfig
from jaxstate.errors import InvalidInput
from jaxstate.training.batches import NOTHING, Batch, make_batch
from jaxstate.training.config import Stage, TrainConfig
from jaxstate.training.data import FAMILIES
from jaxstate.training.feeding import batches, text_of
from jaxstate.training.learning import (
    Examples,
    Learner,
    Measured,
    make_step,
    measure,
    new_learner,
    packed_of,
)
from jaxstate.training.vocabulary import train_vocabulary
from jaxstate.weights import Params, config_from_hf, save_weights

_LOG_STEPS = 20
_HELD_OUT_BATCHES = 8

Report = dict[str, float | int | str | dict[str, float]]


def prepare(directory: Path, config: TrainConfig, vocabulary: Path | None = None) -> ModelConfig:
    """Makes a run's directory, or checks that it is this run's.

    Args:
        directory: the run's.
        config: the run.
        vocabulary: the `tokenizer.model` that the parameters it begins with know; None to train one
            on the generator's text. A run that has one already keeps it.

    Raises:
        InvalidInput: it is another run's.
        UnsupportedModel: the config names a model that we cannot run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _check_same_run(directory / "run.json", config)
    (directory / "config.json").write_text(json.dumps(dict(config.model), indent=2) + "\n", "utf-8")
    model = config_from_hf(directory)
    if not (directory / "tokenizer.model").exists():
        pieces = (
            train_vocabulary(config.seed, pieces=model.vocab_size)
            if vocabulary is None
            else vocabulary.read_bytes()
        )
        (directory / "tokenizer.model").write_bytes(pieces)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return model


def _check_same_run(path: Path, config: TrainConfig) -> None:
    """Writes what decides a run's steps, or compares with what is written there.

    Raises:
        InvalidInput: another config; says what differs.
    """
    wanted = dataclasses.asdict(config)
    for name in ("evaluate_steps", "save_steps"):  # they change what is kept, not what is learnt
        del wanted[name]
    wanted = json.loads(json.dumps(wanted))
    if not path.exists():
        path.write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
        return
    there, here = _flat(json.loads(path.read_text("utf-8"))), _flat(wanted)
    differing = [name for name in there | here if there.get(name) != here.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here"
                          for name in differing[:4])  # fmt: skip
        raise InvalidInput(
            f"the run in {path.parent} is another one ({shown}{'; …' if differing[4:] else ''}): "
            "its steps would not be these. Train into another directory (--from begins with that "
            "one's parameters), give the config that it was begun with, or delete it"
        )


def _flat(value: object, name: str = "") -> dict[str, object]:
    """Nested tables and lists by dotted names: `stages.0.steps`."""
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return {name: value}
    found: dict[str, object] = {}
    for key, part in parts:
        found |= _flat(part, f"{name}.{key}" if name else str(key))
    return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is under way.

    Attributes:
        directory: where everything is.
        config: what it is.
        model: what learns.
        dtype: of matrix products.
        say: is told what was measured.
    """

    directory: Path
    config: TrainConfig
    model: ModelConfig
    dtype: jnp.dtype
    say: Callable[[Report], None]

    def go(
        self,
        *,
        start: Params | None = None,
        until_s: float | None = None,
        workers: int | None = None,
    ) -> bool:
        """Trains to the end, or until so many seconds have passed.

        Args:
            start: parameters to begin with, where there is no checkpoint; None for random ones.
            until_s: stops after it, with a checkpoint.
            workers: processes that make batches; None for all cores but one.

        Returns:
            Whether the run has ended.

        Raises:
            InvalidInput: the last checkpoint is damaged or another model's, or the devices cannot
                share the batches.
        """
        started_s = time.monotonic()
        self._check_devices()
        with self._manager() as manager:
            learner = self._first(manager, start)
            done = first = int(learner.step)
            self._forget_after(first)
            with contextlib.closing(batches(self.directory, self.config, first, workers)) as feed:
                for made in feed:
                    learner = self._step(learner, done, made)
                    done += 1
                    late = until_s is not None and time.monotonic() - started_s > until_s
                    if late or done == self.config.steps or not done % self.config.save_steps:
                        manager.save(done, args=ocp.args.StandardSave(learner))
                        self._write(learner.params)
                    if done == self.config.steps or not done % self.config.evaluate_steps:
                        self._evaluate(learner.params, done)
                    if late:
                        break
            manager.wait_until_finished()
        self._write(learner.params)
        return done == self.config.steps

    def measure(self, repeats: int = 10) -> list[float]:
        """Seconds that a step of each stage takes on these devices, once it is compiled; nothing is
        kept of what is learnt meanwhile.

        Args:
            repeats: steps that are timed.

        Raises:
            InvalidInput: the devices cannot share the batches.
        """
        self._check_devices()
        learner = jax.device_put(new_learner(self.model, self.config), self._everywhere)
        text = text_of(self.directory)
        taken_s: list[float] = []
        for number, stage in enumerate(self.config.stages):
            step = self._steps[stage]
            made = tuple(
                make_batch(*text, stage, self.config.row_tokens, f"measured/{number}/{part}")
                for part in range(stage.accumulate)
            )
            for timed in (False, True):  # the first one compiles
                started_s = time.perf_counter()
                for _ in range(repeats if timed else 1):
                    learner, _ = step(learner, tuple(map(self._examples, made)))
                jax.block_until_ready(learner)
                if timed:
                    taken_s.append((time.perf_counter() - started_s) / repeats)
        return taken_s

    def _check_devices(self) -> None:
        count = self._mesh.size
        uneven = [
            f"stages[{number}].sequences={stage.sequences}"
            for number, stage in enumerate(self.config.stages)
            if stage.sequences % count
        ]
        if uneven:
            raise InvalidInput(
                f"{', '.join(uneven)} must be a multiple of the {count} devices that share each "
                "batch; change the config, or show jax fewer devices (CUDA_VISIBLE_DEVICES)"
            )

    def _forget_after(self, step: int) -> None:
        """Takes out of the log what steps said that were taken after the last checkpoint, before
        the run was killed: they are taken, and say it, again."""
        path = self.directory / "log.jsonl"
        if not path.exists():
            return
        lines = path.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), "utf-8")

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        return ocp.CheckpointManager((self.directory / "checkpoints").absolute(), options=options)

    def _first(self, manager: ocp.CheckpointManager, start: Params | None) -> Learner:
        """The last checkpoint, on all devices; else the beginning.

        Raises:
            InvalidInput: there is a checkpoint, and it is damaged or another model's.
        """
        learner = new_learner(self.model, self.config)
        if start is not None:
            learner = dataclasses.replace(learner, params=start)
        learner = jax.device_put(learner, self._everywhere)
        step = manager.latest_step()
        if step is None:
            return learner
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, learner)
        try:
            return cast(Learner, manager.restore(step, args=ocp.args.StandardRestore(shapes)))
        except Exception as error:  # whatever the library finds wrong with its files
            raise InvalidInput(
                f"checkpoint {step} in {self.directory} cannot be gone on with ({error}); delete "
                "it to go on with the one before"
            ) from error

    @cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.asarray(jax.devices()), ("data",))

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec())

    def _examples(self, batch: Batch) -> Examples:
        """On the devices, a share of the sequences on each."""
        split = NamedSharding(self._mesh, PartitionSpec("data"))
        arrays = (batch.tokens, batch.positions, batch.targets, batch.in_session, batch.in_answer)
        return Examples(*(jax.device_put(array, split) for array in arrays))

    @cached_property
    def _steps(self) -> dict[Stage, Callable[..., tuple[Learner, Measured]]]:
        return {
            stage: make_step(
                self.model, self.config, self.dtype, packed_of(stage, self.config.row_tokens)
            )
            for stage in self.config.stages
        }

    def _step(self, learner: Learner, number: int, made: tuple[Batch, ...]) -> Learner:
        stage = self.config.stage_at(number)
        step = self._steps[stage]
        learner, found = step(learner, tuple(self._examples(batch) for batch in made))
        if not (number + 1) % _LOG_STEPS:
            self._log(_report(number + 1, found, stage))
        return learner

    def _evaluate(self, params: Params, step: int) -> None:
        """On held-out streams of the last stage's shape: right answers by family."""
        stage = self.config.stages[-1]
        packed = packed_of(stage, self.config.row_tokens)
        weight = self.config.optimizer.session_weight
        measured = jax.jit(functools.partial(measure, self.model, self.dtype, packed, weight))
        text = text_of(self.directory)
        right: list[NDArray[np.bool_]] = []
        families: list[NDArray[np.int32]] = []
        for number in range(_HELD_OUT_BATCHES):
            batch = make_batch(*text, stage, self.config.row_tokens, f"held out/{number}")
            found = measured(params, self._examples(batch))
            right.append(np.asarray(found.right).ravel())
            families.append(batch.families.ravel())
        self._log(
            {"step": step, "held_out": by_family(np.concatenate(right), np.concatenate(families))}
        )

    def _write(self, params: Params) -> None:
        """The model as `load` reads it, also of a run that is killed later."""
        save_weights(self.directory / "model.safetensors", self.model, params)

    def _log(self, report: Report) -> None:
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
        self.say(report)


def _report(step: int, found: Measured, stage: Stage) -> Report:
    return {
        "step": step,
        "session_tokens": stage.session_tokens,
        "loss": float(found.loss),
        "answer_loss": float(found.answer_loss),
        "session_loss": float(found.session_loss),
        "right": float(found.right_share),
    }


def by_family(right: NDArray[np.bool_], families: NDArray[np.int32]) -> dict[str, float]:
    """The share of right answers of each family that occurs, and of all."""
    found = {
        name: float(right[families == number].mean())
        for number, name in enumerate(FAMILIES)
        if (families == number).any()
    }
    return {**found, "all": float(right[families != NOTHING].mean())}
