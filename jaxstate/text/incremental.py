"""Answers as they grow: tokens to text that is final, and text up to a stop string.

Comes in: one token, or one piece of text, at a time. Goes out: text that will not change any more.
Does not know: models, sessions, how tokens are made.

Both classes hold back as little as possible, and their cost per call does not depend on how much
came before.
"""

from __future__ import annotations

import codecs

from jaxstate.errors import InvalidInput
from jaxstate.text.tokenizer import Tokenizer


class IncrementalDecoder:
    """`tokenizer.decode`, one token at a time.

    All that `push` and one last `flush` return, put together, equals `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.drops_first_space

    def push(self, token: int) -> str:
        """The text that is final now and was not before; never half a character.

        Raises:
            InvalidInput: the id is outside the vocabulary; the decoder is unchanged and still
            usable.
        """
        data = self._tokenizer.token_bytes(token)
        if data and self._drop_space:
            data = data.removeprefix(b" ")
            self._drop_space = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left: U+FFFD if the tokens ended inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)


class StopText:
    """Cuts growing text before the first stop string.

    The text stops where some stop string is first complete, and ends before it (before the longest
    one, if several are complete there). How the text is cut into pieces makes no difference.

    Args:
        stops: the stop strings; none at all lets everything through.

    Attributes:
        found: the one that has come.

    Raises:
        InvalidInput: a stop string is empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        if "" in stops:
            raise InvalidInput("a stop string is empty; it would stop every answer at once")
        self._stops = stops
        self._held = ""
        self._stopped = False
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; from then on everything is ignored."""
        return self._stopped

    def push(self, text: str) -> str:
        """The text that is certainly part of the answer now and was not before."""
        if self._stopped:
            return ""
        self._held += text
        # The first to end, and of those the first to begin.
        found = min(
            (
                (start + len(stop), start, stop)
                for stop in self._stops
                if (start := self._held.find(stop)) >= 0
            ),
            default=None,
        )
        if found is not None:
            self._stopped, self.found = True, found[2]
            return self._release(found[1], keep=False)
        return self._release(len(self._held) - self._undecided(), keep=True)

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        return self._release(len(self._held), keep=False)

    def _undecided(self) -> int:
        """The length of the longest end of the text that could begin a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        return next(
            (
                size
                for size in range(min(longest, len(self._held)), 0, -1)
                if any(stop.startswith(self._held[-size:]) for stop in self._stops)
            ),
            0,
        )

    def _release(self, size: int, *, keep: bool) -> str:
        released = self._held[:size]
        self._held = self._held[size:] if keep else ""
        return released
