"""Where tensors come from, whatever the file format.

Comes in: a tensor's name and a range of its rows. Goes out: those rows as a fresh numpy array, in
the type they are stored in or, when they are quantised, in float32. `read_exact` is the one place
that reads tensor data.
Does not know: parameter names, transposition, jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxstate.errors import UnsupportedModel


class TensorSource(Protocol):
    """A set of named tensors that are read by rows; safe to read from several threads at once."""

    def names(self) -> Sequence[str]:
        """All tensor names, each once."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the torch convention: a linear layer is [out, in].

        Raises:
            KeyError: there is no such tensor.
        """
        ...

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the first axis.

        Returns:
            [stop - start, ...] of float32, float16 or bfloat16, owned by the caller.

        Raises:
            KeyError: there is no such tensor.
            UnsupportedModel: the file ends before the rows do.
        """
        ...


def read_exact(path: Path, offset: int, size: int) -> np.ndarray:
    """Reads `size` bytes at `offset`.

    Not a memory map: mapped pages would count as this process's memory (a file as large as its
    parameters doubles the peak), and a file that shrinks under a map kills the process. Opening
    costs microseconds, a block is ~1 MB.

    Returns:
        uint8 [size].

    Raises:
        UnsupportedModel: the file is gone or ends early.
    """
    data = np.empty(size, np.uint8)
    view = data.data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
    except OSError as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from error
    if done < size:
        raise UnsupportedModel(
            f"{path} is truncated: {size} bytes at {offset} were expected, {done} are there"
        )
    return data


def check_rows(name: str, length: int, start: int, stop: int) -> None:
    """Refuses rows that are not within the tensor; a numpy slice would silently shorten them."""
    if not 0 <= start <= stop <= length:
        raise IndexError(f"rows {start}:{stop} of {name!r}, which has {length}")
