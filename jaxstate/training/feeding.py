"""Batches, made ahead by other processes.

Comes in: a tokenizer's file, a `TrainConfig`. Goes out: the batch of each step, in order. A batch
depends on its number alone, so a run that is started again sees what it would have seen. Does not
know: models, devices.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from jaxstate.text import Template, Tokenizer, find_tokenizer, plain_template
from jaxstate.training.batches import Batch, make_batch
from jaxstate.training.config import Stage, TrainConfig


def text_of(directory: Path) -> tuple[Tokenizer, Template]:
    """The tokenizer and template of a run's directory."""
    tokenizer = find_tokenizer(directory)
    if tokenizer is None:
        raise FileNotFoundError(f"{directory} has no tokenizer")
    return tokenizer, plain_template(tokenizer.bos)


class _Maker:
    """What a worker process keeps: made once in it, used for every batch."""

    text: tuple[Tokenizer, Template] | None = None


def _prepare(directory: Path) -> None:
    _Maker.text = text_of(directory)


def _make(stage: Stage, row_tokens: int, seed: str) -> Batch:
    if _Maker.text is None:
        raise RuntimeError("the worker is not prepared")
    return make_batch(*_Maker.text, stage, row_tokens, seed)


def batches(
    directory: Path, config: TrainConfig, first_step: int, workers: int | None = None
) -> Generator[tuple[Batch, ...]]:
    """The batches of steps `first_step`, `first_step` + 1, … to the end of the run.

    Args:
        directory: with the tokenizer.
        config: the run.
        first_step: from 0 on.
        workers: processes that make them; None for all cores but one.
    """
    workers = workers or max(1, (os.cpu_count() or 2) - 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_prepare, initargs=(directory,)
    ) as pool:
        waiting: deque[list[Future[Batch]]] = deque()
        for step in range(first_step, config.steps):
            stage = config.stage_at(step)
            waiting.append(
                [
                    pool.submit(
                        _make, stage, config.row_tokens, f"train/{config.seed}/{step}/{part}"
                    )
                    for part in range(stage.accumulate)
                ]
            )
            if len(waiting) > 2 * workers:
                yield tuple(one.result() for one in waiting.popleft())
        while waiting:
            yield tuple(one.result() for one in waiting.popleft())
