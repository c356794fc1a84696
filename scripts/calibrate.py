"""Whether the shares of choices mean what they say, and at which temperature they do.

    python scripts/calibrate.py [-m MODEL] [--tokens 768 3072] [--streams 200] [--write]
        [--plot reliability.png]

Streams of the generator that no training saw (their seeds begin with "held out") are pushed into
sessions, and questions with given choices asked. An answer's probability is calibrated if, of the
answers given with 80 %, 80 % are right. One temperature, which divides the log-probabilities of
whole answers, is fitted on one half of the questions (least negative log-likelihood of the truth)
and judged on the other: expected calibration error in ten bins of equal width (Guo et al., arXiv
1706.04599). `--write` keeps it as calibration.json in the model's directory, where `jaxstate.load`
finds it. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxstate
from jaxstate.model.loading import CALIBRATION
from jaxstate.training.data import Stream
from jaxstate.weights import known_model_path

BINS = 10
_ERR = Console(stderr=True)
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Given:
    """An answer that was given.

    Attributes:
        logprobs: of the choices.
        truth: which of them is right.
    """

    logprobs: tuple[float, ...]
    truth: int


def given_answers(
    model: jaxstate.Model, streams: int, tokens: Sequence[int], questions: int
) -> Iterator[Given]:
    """Answers to questions with choices about held-out streams, of each length in turn."""
    cells = max(tokens) + 512
    with jaxstate.Engine(model, cells=cells, session_cells=cells, warm_up=False) as engine:
        for number in track(range(streams), "streams", console=_ERR):
            rng = random.Random(f"held out/calibration/{number}")
            stream, session = Stream(rng), engine.open()
            length = tokens[number % len(tokens)]
            places = sorted(rng.uniform(0.1, 1.0) * length for _ in range(questions))
            used = session.info().tokens
            for place in places:
                while used < place:
                    entry = stream.entry()
                    used += len(model.template.entry_tokens(model.text, entry))
                    session.push(entry)
                session.wait()
                yield from _ask(session, stream)
            session.close()


def _ask(session: jaxstate.Session, stream: Stream) -> Iterator[Given]:
    for _ in range(8):  # not every question has choices
        question = stream.question()
        if question is None or len(question.choices) < 2:
            continue
        answer = session.ask(question.text, choices=question.choices)
        assert answer.choice_logprobs is not None
        yield Given(answer.choice_logprobs, question.choices.index(question.answer))
        return


def shares(one: Given, temperature: float) -> Floats:
    """Of the choices, at that temperature."""
    scaled = np.asarray(one.logprobs) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def nats(answers: Sequence[Given], temperature: float) -> float:
    """Mean negative log-likelihood of the truth."""
    told = [shares(one, temperature)[one.truth] for one in answers]
    return float(np.mean(-np.log(np.asarray(told) + 1e-12)))


def fitted(answers: Sequence[Given]) -> float:
    """The temperature at which the truth is likeliest."""
    grid = np.geomspace(0.2, 20.0, 200)
    return float(grid[np.argmin([nats(answers, one) for one in grid])])


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Of answers in bins of their probability.

    Attributes:
        stated: mean probability of each bin; nan without answers.
        right: share of right answers.
        count: answers.
    """

    stated: Floats
    right: Floats
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error."""
        there = self.count > 0
        gap = np.abs(self.stated[there] - self.right[there])
        return float((gap * self.count[there]).sum() / self.count.sum())


def reliability(answers: Sequence[Given], temperature: float) -> Reliability:
    """How often answers are right, by how likely they say they are."""
    found = [shares(one, temperature) for one in answers]
    stated = np.asarray([one.max() for one in found])
    truth = np.asarray([one.truth for one in answers])
    right = np.asarray([one.argmax() for one in found]) == truth
    bins = np.minimum((stated * BINS).astype(np.int64), BINS - 1)
    chosen = [bins == number for number in range(BINS)]
    return Reliability(
        stated=np.asarray([stated[one].mean() if one.any() else np.nan for one in chosen]),
        right=np.asarray([right[one].mean() if one.any() else np.nan for one in chosen]),
        count=np.asarray([one.sum() for one in chosen]),
    )


def plot(path: Path, before: Reliability, after: Reliability, temperature: float) -> None:
    """Stated against right, before and after."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(5, 5))
    axes.plot([0, 1], [0, 1], color="grey", lw=1)
    for label, one in (("as it is", before), (f"at temperature {temperature:.2f}", after)):
        axes.plot(one.stated, one.right, marker="o", label=f"{label}: error {one.error:.3f}")
    axes.set(xlabel="probability of the answer", ylabel="right answers", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="streams-20m", help="as jaxstate.load takes it")
    parser.add_argument("--tokens", type=int, nargs="+", default=[768, 3072], help="of streams")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--questions", type=int, default=6, help="to each stream")
    parser.add_argument("--write", action="store_true", help="keep it in the model's directory")
    parser.add_argument("--plot", type=Path, help="of reliability; needs the extra 'bench'")
    options = parser.parse_args()
    model = jaxstate.load(options.model)
    answers = list(given_answers(model, options.streams, options.tokens, options.questions))
    half = len(answers) // 2
    temperature = fitted(answers[:half])
    before = reliability(answers[half:], 1.0)
    after = reliability(answers[half:], temperature)
    table = Table("probability", "answers", "stated", "right, as it is", "stated ", "right, at T")
    for number in range(BINS):
        table.add_row(
            f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}",
            f"{before.count[number]} / {after.count[number]}",
            *(
                f"{one[number]:.2f}"
                for kind in (before, after)
                for one in (kind.stated, kind.right)
            ),
        )
    Console().print(table)
    if options.plot:
        plot(options.plot, before, after, temperature)
    if options.write:
        there = Path(options.model)
        directory = there if there.is_dir() else known_model_path(options.model)
        place = directory / CALIBRATION
        place.write_text(json.dumps({"choice_temperature": round(temperature, 3)}) + "\n", "utf-8")
    print(
        json.dumps(
            {
                "model": model.source,
                "questions": len(answers),
                "temperature": temperature,
                "error_before": before.error,
                "error_after": after.error,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
