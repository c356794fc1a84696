"""One question under way: what was asked, how far it is, and what comes out.

Comes in: a question in tokens, and step by step what the device chose. Goes out: an `Answer` that
names the version it saw. It looks at a fixed number of cells from its first step to its last, so
what is read meanwhile cannot reach it. Does not know: devices, queues, other questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jaxstate.cells.tables import Seen
from jaxstate.engine.executor.protocol import Limits, StepOutput, Tokens
from jaxstate.engine.types.values import Answer, Span, Stage, Usage, Work
from jaxstate.engine.types.window import WindowMode
from jaxstate.errors import CapacityExceeded, InvalidInput, PromptTooLong
from jaxstate.records import Sampling
from jaxstate.steps.collector import AnswerCollector
from jaxstate.steps.packing import Row
from jaxstate.text import Tokenizer

_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """A question, ready for the device.

    Attributes:
        question: its text.
        tokens: int32 [n], with the template.
        max_tokens: of the answer.
        sampling: how answer tokens are chosen.
        stop: strings that end the answer.
        choices: the only answers allowed, or None.
        choice_tokens: int32 [n] of each as a whole answer: with what ends it, so that one that
            begins another is no likelier for that.
        answer_tokens: int32 [n] of each, without what ends it.
        choice_temperature: divides their log-probabilities in the best one's share.
    """

    question: str
    tokens: Tokens
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    choice_tokens: tuple[Tokens, ...] = ()
    answer_tokens: tuple[Tokens, ...] = ()
    choice_temperature: float = 1.0

    @property
    def tail_cells(self) -> int:
        """Private cells that it needs; the last token of an answer or a choice is never read."""
        if self.choices is None:
            return len(self.tokens) + self.max_tokens - 1
        return max(len(self.tokens) - 1, 1)

    @property
    def reach_tokens(self) -> int:
        """Positions that it takes behind what the session has read."""
        if self.choices is None:
            return self.tail_cells
        return len(self.tokens) - 1 + max(map(len, self.choice_tokens))

    def blocks(self, limits: Limits) -> int:
        """Tail blocks that it needs."""
        return -(-self.tail_cells // limits.tail_block_cells)

    def check(self, limits: Limits) -> None:
        """Refuses what no tail can hold, or no step can score.

        Raises:
            PromptTooLong: question and answer exceed the largest declared tail.
            InvalidInput: a choice has more tokens than the largest declared size.
        """
        if self.tail_cells > limits.tail_cells:
            raise PromptTooLong(
                f"a question of {len(self.tokens)} tokens with max_tokens={self.max_tokens} needs "
                f"{self.tail_cells} cells beside the session; the largest declared tail holds "
                f"{limits.tail_cells}. Shorten the question, lower max_tokens, or load the model "
                "with steps=StepConfig(tail_cells=(…, larger))"
            )
        long = [len(tokens) for tokens in self.choice_tokens if len(tokens) > limits.choice_tokens]
        if long:
            raise InvalidInput(
                f"a choice of {long[0]} tokens with what ends it; at most {limits.choice_tokens} "
                "can be scored (load the model with steps=StepConfig(choice_tokens=(…, larger)))"
            )

    def check_reach(self, seen_cells: int, limits: Limits) -> None:
        """Refuses to go past the positions that the model was made for.

        Raises:
            CapacityExceeded: with the numbers.
        """
        end = seen_cells + self.reach_tokens
        if end > limits.max_context:
            raise CapacityExceeded(
                f"the question and its answer would reach position {end}; this model was made for "
                f"{limits.max_context}. Lower max_tokens or start a new session"
            )


class Request:
    """A question on its way through the device.

    Args:
        key: its name in the scheduler.
        work: its class.
        asked: the question.
        arrived_s: when it was asked, or when the version that it answers was committed (or the
            question registered, if that came later).
        holds: a registered question that may not lose what it has: tail blocks, and sight of its
            cells. Asks never may.
    """

    def __init__(
        self, key: int, work: Work, asked: Question, arrived_s: float, *, holds: bool = True
    ) -> None:
        self.key = key
        self.work: Work = work
        self.asked = asked
        self.arrived_s = arrived_s
        self.holds = holds
        self.served = 0
        self.version = -1
        self.blocks: tuple[int, ...] = ()
        self.finished = False
        self._seen: Seen | None = None
        self._cached_tokens = 0
        self._visible: tuple[Span, ...] | None = None
        self._window: WindowMode | None = None
        self._read_tokens = 0
        self._launched_tokens = 0
        self._scored = 0
        self._totals: list[float] = []
        self._gap = 0.0
        self._collector: AnswerCollector | None = None

    def begin(
        self,
        version: int,
        seen: Seen,
        blocks: tuple[int, ...],
        tokenizer: Tokenizer | None,
        *,
        cached_tokens: int,
        visible: tuple[Span, ...] | None = None,
        window: WindowMode | None = None,
    ) -> None:
        """Pins what it looks at."""
        self._cached_tokens = cached_tokens
        self._visible, self._window = visible, window
        self.version, self._seen, self.blocks = version, seen, blocks
        self._collector = AnswerCollector(tokenizer, self.asked.stop)

    @property
    def begun(self) -> bool:
        """Whether it has taken its first step."""
        return self._seen is not None

    @property
    def seen(self) -> Seen:
        """What it looks at, once it has begun."""
        assert self._seen is not None, "it has not begun"
        return self._seen

    @property
    def seen_cells(self) -> int:
        """How much of its session it looks at; 0 before it has begun."""
        return 0 if self._seen is None else self._seen.cells

    @property
    def stage(self) -> Stage:
        """What its next step does."""
        if not self.begun:
            return "waiting"
        if self._read_tokens < self._reading_tokens:
            return "reading"
        return "decoding" if self.asked.choices is None else "scoring"

    @property
    def wants_step(self) -> bool:
        """Whether another step can be launched before the last one's result is known."""
        if self.finished:
            return False
        if self.stage == "decoding":
            return self._launched_tokens < self.asked.max_tokens
        if self.stage == "scoring":
            return self._scored < len(self.asked.choice_tokens)
        return True

    def next_tokens(self, limits: Limits) -> int:
        """Tokens that its next reading step takes."""
        left = max(self._reading_tokens - self._read_tokens, 1)
        return min(left, limits.question_tokens)

    def read(self, limits: Limits) -> Row | None:
        """Its next tokens to read; None for a question of one token whose choices are scored."""
        count = min(self._reading_tokens - self._read_tokens, limits.question_tokens)
        if count == 0:
            return None
        start = self._read_tokens
        self._read_tokens += count
        if self.asked.choices is None and self._read_tokens == len(self.asked.tokens):
            self._launched_tokens = 1
        return Row(
            seen=self.seen,
            blocks=self.blocks,
            used_cells=start,
            tokens=self.asked.tokens[start : start + count],
            sampling=self.asked.sampling,
        )

    def decode(self) -> Row:
        """Its next answer token."""
        used = len(self.asked.tokens) + self._launched_tokens - 1
        self._launched_tokens += 1
        return Row(
            seen=self.seen,
            tokens=_NO_TOKENS,
            blocks=self.blocks,
            used_cells=used,
            sampling=self.asked.sampling,
        )

    @property
    def choices_left(self) -> tuple[Tokens, ...]:
        """Tokens of the choices that no step was launched for."""
        return self.asked.choice_tokens[self._scored :]

    def score(self, room: int) -> list[Row]:
        """Its next choices, at most `room`."""
        chosen = self.asked.choice_tokens[self._scored : self._scored + room]
        self._scored += len(chosen)
        last = self.asked.tokens[-1:]
        return [
            Row(
                seen=self.seen,
                tokens=np.concatenate([last, tokens]),
                blocks=self.blocks,
                used_cells=len(self.asked.tokens) - 1,
            )
            for tokens in chosen
        ]

    def take(self, output: StepOutput, first: int, count: int) -> None:
        """What the device said of its rows `first` .. `first` + `count` - 1; ends the request if
        that ends the answer."""
        if self.asked.choices is not None:
            self._totals += output.logprobs[first : first + count].tolist()
            self.finished = len(self._totals) == len(self.asked.choice_tokens)
            return
        assert self._collector is not None
        if self._taken == 0:
            self._gap = float(output.gaps[first])
        self._taken += 1
        ended = self._collector.take(
            int(output.tokens[first]), float(output.logprobs[first]), bool(output.done[first])
        )
        self.finished = ended or self._taken == self.asked.max_tokens

    _taken = 0

    @property
    def taken_tokens(self) -> int:
        """Tokens chosen so far, the one that ended the answer included."""
        return self._taken

    @property
    def text(self) -> str:
        """What the answer's text certainly begins with; "" where choices are scored."""
        return "" if self._collector is None else self._collector.text.strip()

    def answer(self, latency_s: float) -> Answer:
        """What came out."""
        if self.asked.choices is not None:
            return chosen_answer(
                self.asked,
                self._totals,
                version=self.version,
                context_tokens=self.seen_cells,
                cached_tokens=self._cached_tokens,
                latency_s=latency_s,
                visible=self._visible,
                window=self._window,
            )
        assert self._collector is not None
        collected = self._collector.finish()
        return Answer(
            text=(collected.text or "").strip(),
            token_ids=collected.tokens,
            version=self.version,
            source="computed",
            confidence=self._gap,
            logprob=math.fsum(collected.logprobs),
            finish_reason=collected.finish_reason,
            latency_s=latency_s,
            usage=Usage(
                context_tokens=self.seen_cells,
                question_tokens=len(self.asked.tokens),
                answer_tokens=len(collected.tokens),
                cached_tokens=self._cached_tokens,
            ),
            token_logprobs=collected.logprobs,
            stopped_by=collected.stopped_by,
            seed=self.asked.sampling.seed if self.asked.sampling.temperature > 0 else None,
            visible=self._visible,
            window=self._window,
        )

    @property
    def _reading_tokens(self) -> int:
        """The whole question; with choices its last token is read with each of them."""
        return len(self.asked.tokens) - (self.asked.choices is not None)


def chosen_answer(
    asked: Question,
    totals: list[float],
    *,
    version: int,
    context_tokens: int,
    cached_tokens: int,
    latency_s: float,
    visible: tuple[Span, ...] | None = None,
    window: WindowMode | None = None,
) -> Answer:
    """The best of some choices by their total log-probabilities; the first one if several are."""
    choices = asked.choices or ()
    order = sorted(range(len(totals)), key=lambda index: -totals[index])
    best = order[0]
    margin = totals[best] - totals[order[1]] if len(order) > 1 else math.inf
    shares = np.exp((np.asarray(totals) - totals[best]) / asked.choice_temperature)
    return Answer(
        text=choices[best],
        token_ids=tuple(int(token) for token in asked.answer_tokens[best]),
        version=version,
        source="computed",
        confidence=margin,
        logprob=totals[best],
        finish_reason="stop",
        latency_s=latency_s,
        usage=Usage(
            context_tokens=context_tokens,
            question_tokens=len(asked.tokens),
            answer_tokens=sum(map(len, asked.choice_tokens)),
            cached_tokens=cached_tokens,
        ),
        probability=float(1.0 / shares.sum()),
        choice_logprobs=tuple(totals),
        visible=visible,
        window=window,
    )
