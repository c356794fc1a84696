"""A training config that takes so many minutes on the devices that there are.

    python scripts/fit_training.py configs/train/streams-20m.toml --minutes 25 > fitted.toml

A step of each stage is measured, and the steps of all stages are multiplied by one factor, so that
the learning rate comes to its end when the time does. (`jaxstate train --minutes` stops a longer
run instead, to be gone on with.) What it takes to start, to compile and to evaluate is not counted.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxstate.model.loading import resolve_dtype
from jaxstate.training.config import Stage, train_config_from_toml
from jaxstate.training.run import Run, prepare


def fitted_steps(stages: Sequence[Stage], taken_s: Sequence[float], budget_s: float) -> list[int]:
    """Steps of each stage, at least one, in the proportions of the config."""
    whole_s = sum(stage.steps * one for stage, one in zip(stages, taken_s, strict=True))
    return [max(1, round(stage.steps * budget_s / whole_s)) for stage in stages]


def with_steps(text: str, steps: Sequence[int]) -> str:
    """A config's text with other steps in its stages, in their order."""
    head, *stages = text.split("[[stages]]")
    changed = [
        re.sub(r"(?m)^steps = .*$", f"steps = {count}", stage, count=1)
        for stage, count in zip(stages, steps, strict=True)
    ]
    return "[[stages]]".join([head, *changed])


def main() -> int:
    """Prints the config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--vocabulary", type=Path, help="a tokenizer.model, else one is trained")
    options = parser.parse_args()
    text = options.config.read_text(encoding="utf-8")
    config = train_config_from_toml(text)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        run = Run(
            directory=directory,
            config=config,
            model=prepare(directory, config, options.vocabulary),
            dtype=jnp.dtype(resolve_dtype(None)),
            say=lambda report: None,
        )
        taken_s = run.measure()
    for stage, one in zip(config.stages, taken_s, strict=True):
        print(f"{stage.session_tokens} tokens: {1000 * one:.1f} ms a step", file=sys.stderr)
    print(with_steps(text, fitted_steps(config.stages, taken_s, 60 * options.minutes)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
