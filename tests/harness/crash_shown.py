"""What a session that came back must show: that it has read what it acknowledged, and nothing else.

Comes in: what a process shows of a session, and what is known of it. Goes out: what is broken, in
words. On the fake device a session shows the tokens in its cells, on the tiny model the answer to a
question, which must be that of the functional core on a state that reads the same without
interruption. Does not know: processes, journals.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from jaxstate.model.bundle import Model
from jaxstate.records import QueryResult
from jaxstate.steps.functional import extend, init_state, query
from tests.harness.crash_devices import SESSION_CELLS, CrashDevice, model_of
from tests.harness.crash_known import Report, Stream

QUESTION = "What now?"
ANSWER_TOKENS = 3
_CLOSE = 1e-4


class Uninterrupted:
    """What would be there if nothing had ever been killed.

    Args:
        device: of the engine.
    """

    def __init__(self, device: CrashDevice) -> None:
        self._device: CrashDevice = device

    @cached_property
    def _model(self) -> Model:
        return model_of(self._device)

    def tokens(self, stream: Stream, visible: list[list[int]] | None = None) -> list[int]:
        """Of a session's opening and entries; with a window, of those that it says it sees."""
        model, numbered = self._model, stream.numbered()
        found = list(model.template.open_tokens(model.text, stream.root.prefix))
        for number, text in sorted(numbered.items()):
            if visible is None or any(first <= number <= last for first, last in visible):
                found += model.template.entry_tokens(model.text, text)
        return found

    def difference(self, stream: Stream, shown: Report) -> str | None:
        """What is wrong with what a session shows; None if nothing is."""
        read = self.tokens(stream, shown["visible"])
        if shown["version"] != stream.last:
            return f"it is at version {shown['version']}, and its last entry is {stream.last}"
        newest = max(stream.numbered(), default=None)
        visible = shown["visible"]
        if visible is not None and newest is not None and visible[-1][1] != newest:
            return f"it does not see its newest entry, {newest}: {visible}"
        if "tokens" in shown:
            return None if shown["tokens"] == read else f"{shown['tokens']} instead of {read}"
        if shown["cells"] != len(read):
            return f"it has {shown['cells']} cells for {len(read)} tokens"
        return _other_answer(shown, self.answer(read))

    def answer(self, read: list[int]) -> QueryResult:
        """What the functional core answers after these tokens."""
        model = self._model
        state = extend(model, init_state(model, SESSION_CELLS), read)
        question = model.template.question_tokens(model.text, QUESTION)
        return query(model, state, question, ANSWER_TOKENS, stop=model.template.stops(model.text))


def _other_answer(shown: Report, wanted: QueryResult) -> str | None:
    logprob = float(np.sum(wanted.logprobs))
    if shown["answer"] != wanted.tokens.tolist():
        return f"it answers {shown['answer']} instead of {wanted.tokens.tolist()}"
    if not abs(shown["logprob"] - logprob) <= _CLOSE:
        return f"its answer has the log-probability {shown['logprob']} instead of {logprob}"
    return None
