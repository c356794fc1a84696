"""The host side of one question: prefill, decode step by step, stop.

Comes in: a session state and a question's tokens. Goes out: a `QueryResult`. On an accelerator the
next step is launched before the last one's token is fetched, so the device never waits for the
host. Does not know: other questions, sessions by name.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from math import isfinite

import jax
import numpy as np
from numpy.typing import NDArray

from jaxstate.cells.session import SessionState
from jaxstate.errors import NotFinite
from jaxstate.model.bundle import Model
from jaxstate.model.decoder import Tail
from jaxstate.model.devices import Device
from jaxstate.records import QueryResult, Sampling
from jaxstate.steps.buckets import Chunk, chunks, question_sizes, tail_size
from jaxstate.steps.checks import padded_stop_ids
from jaxstate.steps.collector import AnswerCollector, Collected
from jaxstate.steps.compiled import SessionSteps
from jaxstate.steps.query import Chosen
from jaxstate.steps.sampling import sampling_rows


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
        constants = _constants(self.model.stop_ids, self.model.device)
        tail, first = self._prefill(state, tail_cells, ids, constants)
        first.logits.copy_to_host_async()
        in_flight, newest, launched = deque([first]), first, 1
        ahead = 0 if self.model.device.platform == "cpu" else 1
        for taken in range(max_tokens):
            while launched < min(max_tokens, taken + 1 + ahead):
                tail, newest = self._decode(state, tail, newest, constants)
                in_flight.append(newest)
                launched += 1
            if _take(answer, in_flight.popleft()):
                break
        return _result(answer.finish(), np.asarray(first.logits)[0, 0])

    def _new_answer(self) -> AnswerCollector:
        tokenizer = self.model.text if self.stop else self.model.tokenizer
        return AnswerCollector(tokenizer, self.stop)

    def _prefill(
        self, state: SessionState, tail_cells: int, ids: NDArray[np.int32], constants: _Constants
    ) -> tuple[Tail, Chosen]:
        params, running, stop_ids = self.model.params, constants.running, constants.stop_ids
        first, *rest = chunks(len(ids), question_sizes(tail_cells, self.model.steps))
        tail, chosen = self.steps.ask(params, state, tail_cells, *_padded(ids, first), stop_ids)
        for chunk in rest:
            tail, chosen = self.steps.query(
                params, state, tail, *_padded(ids, chunk), running, stop_ids
            )
        return tail, self._drawn(tail, chosen, running, stop_ids)

    def _decode(
        self, state: SessionState, tail: Tail, last: Chosen, constants: _Constants
    ) -> tuple[Tail, Chosen]:
        stop_ids = constants.stop_ids
        tail, chosen = self.steps.query(
            self.model.params, state, tail, last.token, constants.one, last.done, stop_ids
        )
        return tail, self._drawn(tail, chosen, last.done, stop_ids)

    def _drawn(self, tail: Tail, chosen: Chosen, done: jax.Array, stop_ids: jax.Array) -> Chosen:
        """What the sampling chooses instead of the likeliest token, on its way to the host."""
        if self.sampling.temperature > 0:
            rows = sampling_rows([[self.sampling]])
            chosen = self.steps.draw(chosen, tail.lengths, done, rows, stop_ids)
        chosen.told.copy_to_host_async()
        return chosen


@dataclass(frozen=True)
class _Constants:
    """What is the same for every question to a model, on the device."""

    stop_ids: jax.Array
    one: jax.Array
    running: jax.Array


@functools.cache
def _constants(stop_ids: tuple[int, ...], device: Device) -> _Constants:
    values = (padded_stop_ids(stop_ids), np.ones((1, 1), np.int32), np.zeros((1, 1), np.bool_))
    return _Constants(*jax.device_put(values, device))


def _padded(ids: NDArray[np.int32], chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """A chunk's tokens [1, 1, T] and their count [1, 1] on the device."""
    padded = np.zeros((1, 1, chunk.size), np.int32)
    padded[0, 0, : chunk.count] = ids[chunk.start : chunk.start + chunk.count]
    return jax.device_put((padded, np.full((1, 1), chunk.count, np.int32)))


def _take(answer: AnswerCollector, chosen: Chosen) -> bool:
    """Waits for one step's choice and hands it on; True if the answer ends with it.

    Raises:
        NotFinite: its log-probability is no number.
    """
    token, bits, done = np.asarray(chosen.told)[:, 0, 0]
    logprob = float(bits.view(np.float32))
    if not isfinite(logprob):
        raise NotFinite
    return answer.take(int(token), logprob, bool(done))


def _result(collected: Collected, logits: NDArray[np.float32]) -> QueryResult:
    return QueryResult(
        tokens=np.array(collected.tokens, np.int32),
        logits=logits,
        logprobs=np.array(collected.logprobs, np.float32),
        finish_reason=collected.finish_reason,
        text=collected.text,
    )
