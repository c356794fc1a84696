"""`jaxstate train`: a model for streams, from a config file to a directory that `load` reads.

Comes in: a TOML file and a directory. Goes out: progress, and in the directory the model, its log
and a plot of it. Does not know: how training works.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp

from jaxstate.cli.show import Show
from jaxstate.errors import InvalidInput
from jaxstate.model.loading import DTypeName, load, resolve_dtype
from jaxstate.textfiles import read_text_file
from jaxstate.training.config import train_config_from_toml
from jaxstate.training.run import Report, Run, prepare
from jaxstate.weights import known_model_path, known_names


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What the command line says.

    Attributes:
        config: the TOML file.
        into: the run's directory.
        start: a model to begin with, instead of random parameters.
        minutes: stop after so many, with a checkpoint.
        dtype: of matrix products.
        workers: processes that make batches.
    """

    config: Path
    into: Path
    start: str | None
    minutes: float | None
    dtype: DTypeName | None
    workers: int | None


def run_train(show: Show, options: TrainOptions) -> int:
    """Trains, or goes on training, and says what it came to."""
    config = train_config_from_toml(read_text_file(options.config, "the training config"))
    vocabulary = None if options.start is None else _vocabulary_of(options.start)
    model = prepare(options.into, config, vocabulary)
    start = None
    if options.start is not None:
        loaded = load(options.start, dtype="float32")
        if loaded.config != model:
            raise InvalidInput(
                f"{options.start} is not a model of this config: its parameters do not fit"
            )
        start = loaded.params
    with show.bar("training") as advance:

        def say(report: Report) -> None:
            advance(int(str(report["step"])), config.steps)
            _say(show, report)

        run = Run(
            directory=options.into,
            config=config,
            model=model,
            dtype=jnp.dtype(resolve_dtype(options.dtype)),
            say=say,
        )
        until_s = None if options.minutes is None else 60 * options.minutes
        ended = run.go(start=start, until_s=until_s, workers=options.workers)
    plotted = plot_log(options.into)
    show.say(
        f"{'trained' if ended else 'stopped; the same command goes on'}: the model is in "
        f"{options.into}" + (f", its curves in {plotted}" if plotted else "")
    )
    show.event("trained", ended=ended, directory=str(options.into))
    return 0


def _vocabulary_of(start: str) -> Path:
    """The vocabulary of a model that a run begins with.

    Raises:
        InvalidInput: it is none that a run can use.
    """
    directory = known_model_path(start) if start in known_names() else Path(start).expanduser()
    path = directory / "tokenizer.model"
    if not path.is_file():
        raise InvalidInput(
            f"{start} has no tokenizer.model: a run begins with a directory that `jaxstate train` "
            "made, or with streams-20m"
        )
    return path


def _say(show: Show, report: Report) -> None:
    shares = report.get("held_out")
    if isinstance(shares, dict):
        show.say(
            f"step {report['step']}: right answers on held-out streams, %: "
            + ", ".join(f"{family} {100 * share:.0f}" for family, share in shares.items())
        )
        show.event("held_out", step=int(str(report["step"])), right=dict(shares))
        return
    show.note(
        f"step {report['step']}: {report['answer_loss']:.3f} nats a token of an answer, "
        f"{100 * float(str(report['right'])):.0f} % of the batch's answers right"
    )
    show.event("step", **{name: value for name, value in report.items() if name != "held_out"})


def plot_log(directory: Path) -> Path | None:
    """Curves of a run's log as `log.png`; None without matplotlib (the extra 'train')."""
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return None
    lines = (directory / "log.jsonl").read_text("utf-8").splitlines()
    _draw(pyplot, [json.loads(line) for line in lines], directory / "log.png")
    return directory / "log.png"


def _draw(pyplot: ModuleType, reports: Sequence[Report], path: Path) -> None:
    figure, (losses, shares) = pyplot.subplots(2, 1, figsize=(9, 9), sharex=True)
    steps = [one for one in reports if "answer_loss" in one]
    for name, label in (("answer_loss", "answers"), ("session_loss", "sessions")):
        losses.plot([one["step"] for one in steps], [one[name] for one in steps], label=label)
    losses.set(ylabel="nats a token", ylim=(0, None))
    losses.legend()
    held_out = [one for one in reports if "held_out" in one]
    families: set[str] = set()
    for one in held_out:
        found = one["held_out"]
        families |= set(found) if isinstance(found, dict) else set()
    for family in sorted(families):
        points = [(one["step"], one["held_out"]) for one in held_out]
        known = [(step, of[family]) for step, of in points if isinstance(of, dict) and family in of]
        shares.plot(*zip(*known, strict=True), label=family, lw=3 if family == "all" else 1)
    shares.set(xlabel="step", ylabel="right answers on held-out streams", ylim=(0, 1))
    shares.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
