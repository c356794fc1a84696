"""The host side of one question: prefill, decode step by step, stop.

Comes in: a session state and a question's tokens. Goes out: a `QueryResult`. On an accelerator the
next step is launched before the last one's token is fetched, so the device never waits for the
host. Does not know: other questions, sessions by name.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.session import SessionState
from jaxstate.errors import InvalidInput
from jaxstate.model.bundle import Model
from jaxstate.model.decoder import Tail
from jaxstate.records import FinishReason, QueryResult, Sampling
from jaxstate.steps.buckets import Chunk, chunks, question_sizes, tail_size
from jaxstate.steps.compiled import MAX_STOP_IDS, SessionSteps
from jaxstate.steps.query import Chosen
from jaxstate.steps.sampling import SamplingRows, sampling_rows
from jaxstate.text import IncrementalDecoder, StopText, Tokenizer


@dataclass(frozen=True)
class Answering:
    """How one question is answered."""

    model: Model
    steps: SessionSteps
    sampling: Sampling
    stop: tuple[str, ...]

    def run(self, state: SessionState, ids: NDArray[np.int32], max_tokens: int) -> QueryResult:
        """Reads the question, then decodes until something ends the answer."""
        answer = self._new_answer()
        tail_cells = tail_size(len(ids), max_tokens, self.model.steps)
        shared = self._shared()
        tail, first = self._prefill(state, tail_cells, ids, shared)
        in_flight, newest, launched = deque([first]), first, 1
        ahead = 0 if jax.default_backend() == "cpu" else 1
        for taken in range(max_tokens):
            while launched < min(max_tokens, taken + 1 + ahead):
                tail, newest = self._decode(state, tail, newest, shared)
                in_flight.append(newest)
                launched += 1
            if answer.take(in_flight.popleft()):
                break
        return answer.result(np.asarray(first.logits)[0, 0])

    def _new_answer(self) -> _Answer:
        needed = bool(self.stop)
        tokenizer = self.model.text if needed else self.model.tokenizer
        text = None if tokenizer is None else _Text(tokenizer, self.stop)
        return _Answer(text)

    def _shared(self) -> _Shared:
        ids = self.model.stop_ids
        if len(ids) > MAX_STOP_IDS:
            raise InvalidInput(f"{len(ids)} end tokens {ids}; at most {MAX_STOP_IDS} are supported")
        padded = np.full(MAX_STOP_IDS, -1, np.int32)
        padded[: len(ids)] = ids
        return _Shared(
            *jax.device_put(
                (
                    sampling_rows([[self.sampling]]),
                    padded,
                    np.ones((1, 1), np.int32),
                    np.zeros((1, 1), np.bool_),
                )
            )
        )

    def _prefill(
        self, state: SessionState, tail_cells: int, ids: NDArray[np.int32], shared: _Shared
    ) -> tuple[Tail, Chosen]:
        params, choosing = self.model.params, (shared.rows, shared.stop_ids)
        first, *rest = chunks(len(ids), question_sizes(tail_cells, self.model.steps))
        tokens, count = _padded(ids, first)
        tail, chosen = self.steps.ask(params, state, tail_cells, tokens, count, *choosing)
        for chunk in rest:
            tokens, count = _padded(ids, chunk)
            tail, chosen = self.steps.query(
                params, state, tail, tokens, count, shared.running, *choosing
            )
        return tail, chosen

    def _decode(
        self, state: SessionState, tail: Tail, last: Chosen, shared: _Shared
    ) -> tuple[Tail, Chosen]:
        tail, chosen = self.steps.query(
            self.model.params,
            state,
            tail,
            last.token,
            shared.one,
            last.done,
            shared.rows,
            shared.stop_ids,
        )
        for array in (chosen.token, chosen.logprob, chosen.done):
            array.copy_to_host_async()
        return tail, chosen


def _padded(ids: NDArray[np.int32], chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """A chunk's tokens [1, 1, T] and their count [1, 1] on the device."""
    padded = np.zeros((1, 1, chunk.size), np.int32)
    padded[0, 0, : chunk.count] = ids[chunk.start : chunk.start + chunk.count]
    return jax.device_put((padded, np.full((1, 1), chunk.count, np.int32)))


@dataclass(frozen=True)
class _Shared:
    """Device values that are the same for every step of a question."""

    rows: SamplingRows
    stop_ids: jax.Array
    one: jax.Array
    running: jax.Array


class _Text:
    """The answer as text, and how many tokens it takes."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = StopText(stop)
        self._kept = ""

    def push(self, token: int) -> bool:
        """Adds a token's text; True if a stop string is complete."""
        if self._has_text(token):
            self._kept += self._stop.push(self._decoder.push(token))
        return self._stop.stopped

    def finish(self, tokens: list[int]) -> tuple[str, int, bool]:
        """The text before any stop string, the tokens it takes, and whether it was stopped."""
        self._kept += self._stop.push(self._decoder.flush())
        if self._stop.stopped:
            return self._kept, self._tokens_of_kept(tokens), True
        return self._kept + self._stop.flush(), len(tokens), False

    def _tokens_of_kept(self, tokens: list[int]) -> int:
        """The shortest beginning of `tokens` whose text covers what was kept."""
        count = len(tokens)
        while count and self._decode(tokens[: count - 1]).startswith(self._kept):
            count -= 1
        return count

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode([token for token in tokens if self._has_text(token)])

    def _has_text(self, token: int) -> bool:
        """Logits may be wider than the vocabulary; a token past it has no text."""
        return token < self._tokenizer.vocab_size


class _Answer:
    """Collects chosen tokens until something ends the answer."""

    def __init__(self, text: _Text | None) -> None:
        self._text = text
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._finish: FinishReason = "length"

    def take(self, chosen: Chosen) -> bool:
        """Takes one step's token; True if the answer ends with it."""
        if bool(np.asarray(chosen.done)[0, 0]):
            self._finish = "stop"
            return True
        token = int(np.asarray(chosen.token)[0, 0, 0])
        self._tokens.append(token)
        self._logprobs.append(float(np.asarray(chosen.logprob)[0, 0]))
        if self._text is not None and self._text.push(token):
            self._finish = "stop"
            return True
        return False

    def result(self, logits: NDArray[np.float32]) -> QueryResult:
        """The answer, cut where a stop string says."""
        text, kept = None, len(self._tokens)
        if self._text is not None:
            text, kept, stopped = self._text.finish(self._tokens)
            self._finish = "stop" if stopped else self._finish
        return QueryResult(
            tokens=np.array(self._tokens[:kept], np.int32),
            logits=logits,
            logprobs=np.array(self._logprobs[:kept], np.float32),
            finish_reason=self._finish,
            text=text,
        )
