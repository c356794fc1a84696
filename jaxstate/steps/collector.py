"""An answer as it grows: chosen tokens in, tokens and text up to where it ends out.

Comes in: one chosen token at a time, in host values. Goes out: whether the answer ends with it, and
in the end what was said, cut before a stop string. Does not know: models, devices, who chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxstate.records import FinishReason
from jaxstate.text import IncrementalDecoder, StopText, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A whole answer.

    Attributes:
        tokens: without the token or the text that ended it.
        logprobs: one for each token.
        text: decoded, cut before a stop string; None without a tokenizer.
        finish_reason: "stop" if a stop token or stop string ended it, else "length".
        stopped_by: the stop string that ended it; None for none.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str | None
    finish_reason: FinishReason
    stopped_by: str | None = None


class AnswerCollector:
    """Collects chosen tokens until something ends the answer.

    Args:
        tokenizer: None for an answer without text.
        stop: strings that end the answer; they need a tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...]) -> None:
        assert tokenizer is not None or not stop, "stop strings need a tokenizer"
        self._text = None if tokenizer is None else _Text(tokenizer, stop)
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._finish: FinishReason = "length"

    def take(self, token: int, logprob: float, done: bool) -> bool:
        """Takes one step's token; True if the answer ends with it (or, when done, before it)."""
        if done:
            self._finish = "stop"
            return True
        self._tokens.append(token)
        self._logprobs.append(logprob)
        if self._text is not None and self._text.push(token):
            self._finish = "stop"
            return True
        return False

    @property
    def text(self) -> str:
        """What is certainly text of the answer so far; "" without a tokenizer."""
        return "" if self._text is None else self._text.kept

    def finish(self) -> Collected:
        """The answer, cut where a stop string says; nothing may be taken after it."""
        text, kept = None, len(self._tokens)
        if self._text is not None:
            text, kept, stopped = self._text.finish(self._tokens)
            self._finish = "stop" if stopped else self._finish
        return Collected(
            tokens=tuple(self._tokens[:kept]),
            logprobs=tuple(self._logprobs[:kept]),
            text=text,
            finish_reason=self._finish,
            stopped_by=None if self._text is None else self._text.stopped_by,
        )


class _Text:
    """The answer as text, and how many tokens it takes.

    Attributes:
        kept: what is certainly part of it so far.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = StopText(stop)
        self.kept = ""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has come."""
        return self._stop.found

    def push(self, token: int) -> bool:
        """Adds a token's text; True if a stop string is complete."""
        if self._has_text(token):
            self.kept += self._stop.push(self._decoder.push(token))
        return self._stop.stopped

    def finish(self, tokens: list[int]) -> tuple[str, int, bool]:
        """The text before any stop string, the tokens it takes, and whether it was stopped."""
        self.kept += self._stop.push(self._decoder.flush())
        if self._stop.stopped:
            return self.kept, self._tokens_of_kept(tokens), True
        return self.kept + self._stop.flush(), len(tokens), False

    def _tokens_of_kept(self, tokens: list[int]) -> int:
        """The shortest beginning of `tokens` whose text covers what was kept."""
        count = len(tokens)
        while count and self._decode(tokens[: count - 1]).startswith(self.kept):
            count -= 1
        return count

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode([token for token in tokens if self._has_text(token)])

    def _has_text(self, token: int) -> bool:
        """Logits may be wider than the vocabulary; a token past it has no text."""
        return token < self._tokenizer.vocab_size
