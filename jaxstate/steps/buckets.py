"""Which compiled shape serves which input. Plain Python.

Comes in: a number of tokens and the declared sizes of `StepConfig`. Goes out: chunks that fit them.
An input past the last bucket is cut (`extend`, question prefill) or refused (a tail); it never
becomes a new shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxstate.config import StepConfig
from jaxstate.errors import PromptTooLong


@dataclass(frozen=True)
class Chunk:
    """Tokens start .. start + count of an input, padded to `size`."""

    start: int
    count: int
    size: int


def smallest_fitting(count: int, sizes: tuple[int, ...]) -> int | None:
    """The smallest of ascending `sizes` that holds `count`, or None."""
    return next((size for size in sizes if size >= count), None)


def chunks(count: int, sizes: tuple[int, ...]) -> Iterator[Chunk]:
    """Cuts `count` tokens into chunks of the largest size and one that just fits the rest."""
    start = 0
    while start < count:
        left = min(count - start, sizes[-1])
        size = smallest_fitting(left, sizes)
        assert size is not None  # left is at most the largest size
        yield Chunk(start=start, count=left, size=size)
        start += left


def tail_size(question_tokens: int, max_tokens: int, steps: StepConfig) -> int:
    """The tail bucket for a question of that many tokens and its answer.

    Raises:
        PromptTooLong: no declared bucket is large enough.
    """
    # The last answer token is never read back, so it needs no cell.
    needed = question_tokens + max_tokens - 1
    size = smallest_fitting(needed, steps.tail_cells)
    if size is None:
        raise PromptTooLong(
            f"a question of {question_tokens} tokens with max_tokens={max_tokens} needs {needed} "
            f"cells beside the session; the largest declared tail holds {steps.tail_cells[-1]}. "
            "Shorten the question, lower max_tokens, or load the model with "
            "steps=StepConfig(tail_cells=(…, larger))"
        )
    return size


def question_sizes(tail_cells: int, steps: StepConfig) -> tuple[int, ...]:
    """Prefill sizes that occur with a tail of that size: those up to the first that covers it."""
    covering = smallest_fitting(tail_cells, steps.question_tokens)
    return tuple(size for size in steps.question_tokens if covering is None or size <= covering)
