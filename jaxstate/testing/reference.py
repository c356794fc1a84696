"""What the engine must answer, by the functional core alone.

Comes in: what a session has read and a question. Goes out: the answer that `query` gives on a state
built by one `extend` of the same tokens. Slow and plain on purpose. Does not know: engines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from jaxstate.engine.requests.request import Question
from jaxstate.engine.types.values import Answer
from jaxstate.model.bundle import Model
from jaxstate.records import QueryResult
from jaxstate.steps.functional import extend, init_state, query

# Logits of float32 that lie closer than this may change places with the shapes of steps.
_TIE = 1e-5

Key: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Reference:
    """Answers by `extend` and `query`.

    Attributes:
        model: the engine's.
        cells: capacity of its sessions.
    """

    model: Model
    cells: int
    _known: dict[Key, QueryResult] = field(default_factory=dict, repr=False)

    def check(self, answer: Answer, read: tuple[int, ...], asked: Question) -> None:
        """Compares an engine's answer with the reference.

        Args:
            answer: the engine's.
            read: every token that its version has read, opening included.
            asked: the question.

        Raises:
            AssertionError: they differ.
        """
        assert answer.usage.context_tokens == len(read), "it saw another number of cells"
        if asked.choices is None:
            self._check_free(answer, read, asked)
        else:
            self._check_chosen(answer, read, asked)

    def _check_free(self, answer: Answer, read: tuple[int, ...], asked: Question) -> None:
        question = tuple(int(token) for token in asked.tokens)
        result = self._query(read, question, asked.max_tokens, asked.stop)
        wanted = tuple(result.tokens.tolist())
        if answer.token_ids != wanted:
            self._check_tie(answer.token_ids, wanted, read, question)
            return
        assert answer.text == (result.text or "").strip()
        assert answer.finish_reason == result.finish_reason
        np.testing.assert_allclose(answer.logprob, result.logprobs.sum(), atol=1e-3)
        top = np.sort(result.logits)[-2:]
        np.testing.assert_allclose(answer.confidence, top[1] - top[0], atol=1e-4)

    def _check_tie(
        self,
        said: tuple[int, ...],
        wanted: tuple[int, ...],
        read: tuple[int, ...],
        question: tuple[int, ...],
    ) -> None:
        """Where two tokens are as likely as rounding can tell, steps of other shapes may choose the
        other; from there on answers have nothing in common."""
        pairs = enumerate(zip(said, wanted, strict=False))
        place = next((place for place, (one, other) in pairs if one != other), None)
        assert place is not None, "it is longer or shorter than query's"
        logits = self._query(read, question + wanted[:place], 1, ()).logits
        behind = float(logits.max() - logits[said[place]])
        assert behind <= _TIE, f"other tokens than query's: {behind} behind the likeliest"

    def _check_chosen(self, answer: Answer, read: tuple[int, ...], asked: Question) -> None:
        totals = [
            self._total(read, tuple(asked.tokens.tolist()), tuple(choice.tolist()))
            for choice in asked.choice_tokens
        ]
        assert answer.choice_logprobs is not None
        np.testing.assert_allclose(answer.choice_logprobs, totals, atol=1e-3)
        assert asked.choices is not None
        best = totals[asked.choices.index(answer.text)]
        assert best >= max(totals) - 1e-3, "not the best of the choices"

    def _total(
        self, read: tuple[int, ...], question: tuple[int, ...], choice: tuple[int, ...]
    ) -> float:
        total = 0.0
        for index, token in enumerate(choice):
            logits = self._query(read, question + choice[:index], 1, ()).logits.astype(np.float64)
            top = logits.max()
            total += float(logits[token] - top - np.log(np.exp(logits - top).sum()))
        return total

    def _query(
        self,
        read: tuple[int, ...],
        question: tuple[int, ...],
        max_tokens: int,
        stop: tuple[str, ...],
    ) -> QueryResult:
        key = (read, question, max_tokens, stop)
        if key not in self._known:
            state = extend(self.model, init_state(self.model, self.cells), read)
            self._known[key] = query(self.model, state, question, max_tokens, stop=stop)
        return self._known[key]
