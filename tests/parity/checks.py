"""The comparison itself: one stream and its questions, here and in transformers.

Everything here is written against the functional core's contract: after `extend` in any cuts,
`ready_logits` are a plain forward pass's at the last position; `query`'s are those after context
and question; its tokens are `generate`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

import jaxstate
from jaxstate.records import QueryResult

from .cases import VOCAB
from .reference import Logits, Reference, Tokens, all_logits, greedy, log_softmax

_DRAWN = np.random.default_rng(7)
STREAM: Tokens = _DRAWN.integers(0, VOCAB, 90).astype(np.int32)
QUESTION: Tokens = _DRAWN.integers(0, VOCAB, 21).astype(np.int32)
# Cut ends around blocks of 4, chunks of 4 and 16 and windows of 6, 7 and 8, then far beyond. The
# last one fills the session, whose capacity no block size divides.
CUT_ENDS = (1, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 41, 42, 59, 90)
CELLS = 90
ANSWER = 16  # tokens
LOGITS_BOUND = 1e-4


def extended(
    model: jaxstate.Model, tokens: Tokens, ends: Sequence[int], cells: int
) -> Iterator[tuple[int, jaxstate.SessionState]]:
    """(tokens read, state) after each cut; each state is gone when the next one is asked for."""
    state, start = jaxstate.init_state(model, cells=cells), 0
    for end in ends:
        state = jaxstate.extend(model, state, tokens[start:end])
        start = end
        assert int(state.length) == end
        yield end, state


def difference(ours: Logits, theirs: Logits) -> float:
    """Largest absolute difference; infinite if anything is not a number."""
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    apart = np.abs(ours.astype(np.float64) - theirs)
    return float(apart.max()) if np.isfinite(apart).all() else float("inf")


def ready_difference(
    model: jaxstate.Model, reference: Reference, ends: Sequence[int] = CUT_ENDS
) -> float:
    """Of `ready_logits` after each cut of the stream, from one plain forward pass over it."""
    theirs = all_logits(reference, STREAM)
    return max(
        difference(jaxstate.ready_logits(model, state), theirs[end - 1])
        for end, state in extended(model, STREAM, ends, CELLS)
    )


def query_difference(
    model: jaxstate.Model,
    reference: Reference,
    *,
    ends: Sequence[int] = CUT_ENDS,
    questions: Sequence[int] = (1, 5, 21),
) -> float:
    """Of a question's first logits after each cut, from a forward pass over both."""
    return max(
        difference(
            jaxstate.query(model, state, QUESTION[:length], max_tokens=1).logits,
            all_logits(reference, np.concatenate([STREAM[:end], QUESTION[:length]]), keep=1)[0],
        )
        for end, state in extended(model, STREAM, ends, CELLS)
        for length in questions
    )


def check_answer(
    result: QueryResult,
    reference: Reference,
    prompt: Tokens,
    *,
    count: int = ANSWER,
    bound: float = LOGITS_BOUND,
) -> float:
    """The answer is `generate`'s, token for token, and its numbers a plain forward pass's.

    `prompt` is the context and the question. No token may be such a close call in transformers that
    rounding could decide it. Returns the largest difference of first logits and log-probabilities.
    """
    theirs = greedy(reference, prompt, count)
    assert result.tokens.dtype == np.int32
    assert result.tokens.tolist() == theirs
    assert result.finish_reason == "length"
    sequence = np.concatenate([prompt, result.tokens])
    logits = all_logits(reference, sequence, keep=count + 1)[:-1]
    margins = np.diff(np.sort(logits, axis=-1)[:, -2:])
    assert margins.min() > 2 * bound, "a tie: choose other tokens or another seed"
    logprobs = np.take_along_axis(log_softmax(logits), result.tokens[:, None], axis=-1)[:, 0]
    return max(
        difference(result.logits, logits[0]),
        difference(result.logprobs, logprobs.astype(np.float32)),
    )
