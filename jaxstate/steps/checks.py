"""Arguments from outside, checked before anything runs.

Comes in: whatever a caller passed. Goes out: the same in one form, or `InvalidInput` that says what
is allowed. Does not know: sessions, steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from jaxstate.config import MAX_STOP_IDS
from jaxstate.errors import InvalidInput

Tokens = Sequence[int] | NDArray[np.integer] | Array


def checked_tokens(vocab_size: int, tokens: Tokens) -> NDArray[np.int32]:
    """Token ids as int32 [T], T >= 1.

    Raises:
        InvalidInput: of a wrong dtype, shape or range, or none.
    """
    try:
        array = np.asarray(tokens)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"tokens must be a flat list of ids: {error}") from error
    if array.ndim != 1 or array.size == 0:
        raise InvalidInput(f"tokens must be a non-empty list of ids, got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise InvalidInput(f"tokens must be integers, got dtype {array.dtype}")
    bad = array[(array < 0) | (array >= vocab_size)]
    if bad.size:
        raise InvalidInput(
            f"{bad.size} token ids lie outside the vocabulary 0 .. {vocab_size - 1}, "
            f"the first is {bad[0]}"
        )
    return array.astype(np.int32)


def checked_stop(stop: Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings; none for None.

    Raises:
        InvalidInput: not a list of non-empty strings.
    """
    if isinstance(stop, str):
        raise InvalidInput(f"stop={stop!r} must be a list of strings, e.g. stop=[{stop!r}]")
    if stop is not None and not isinstance(stop, Sequence):
        raise InvalidInput(f"stop={stop!r} must be a list of strings")
    if not all(isinstance(one, str) and one for one in stop or ()):
        raise InvalidInput(f"stop={stop!r} must hold non-empty strings")
    return tuple(stop or ())


def padded_stop_ids(ids: tuple[int, ...]) -> NDArray[np.int32]:
    """A model's end tokens as int32 [`MAX_STOP_IDS`], padded with -1.

    Raises:
        InvalidInput: there are more.
    """
    if len(ids) > MAX_STOP_IDS:
        raise InvalidInput(f"{len(ids)} end tokens {ids}; at most {MAX_STOP_IDS} are supported")
    padded = np.full(MAX_STOP_IDS, -1, np.int32)
    padded[: len(ids)] = ids
    return padded
