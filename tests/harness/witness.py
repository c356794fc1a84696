"""What the clients of a soak tell, and what it must be.

Comes in: operations, answers and sessions, from any thread. Goes out: a `SoakReport`, or an
`AssertionError` in the client whose answer is wrong. In float32 an answer must be the one of the
functional core. In lower precision the order in which numbers are added decides ties, and a session
that was computed again has cells that are a little different: there only that is checked which
precision does not change. Does not know: engines, threads, when a soak ends.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field

import jax.numpy as jnp

from jaxstate.engine.core.metrics import EngineMetrics
from jaxstate.engine.executor.protocol import Limits
from jaxstate.engine.requests.encoding import PromptEncoder, Settings
from jaxstate.engine.requests.request import Question
from jaxstate.engine.types.values import Answer
from jaxstate.model.bundle import Model
from jaxstate.testing.lives import Life
from jaxstate.testing.reference import Reference


@dataclass
class SoakReport:
    """What a soak did.

    Attributes:
        operations: by name, refusals among them.
        tiers: where clients saw the cells of their sessions (`Place`), looking after each
            operation.
        counts: `Counts` of all engines together.
        checked: answers that were checked.
        exact: whether they were compared with the functional core.
        broken: what must not happen, in words.
    """

    operations: Counter[str] = field(default_factory=Counter[str])
    tiers: Counter[str] = field(default_factory=Counter[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    checked: int = 0
    exact: bool = True
    broken: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text."""
        counts, how = self.counts, "compared with the functional core"
        told = [
            _told(self.operations),
            f"{counts['entries_committed']:,} entries read, {counts['flash_answers']:,} flash "
            f"answers, {counts['sessions_suspended']:,} moves off the device, "
            f"{counts['sessions_resumed']:,} back, {counts['tokens_rebuilt']:,} tokens rebuilt, "
            f"{counts['prefix_tokens_shared']:,} of prefixes shared",
            f"sessions were seen on {_told(self.tiers)}",
            f"{self.checked:,} answers {how if self.exact else 'checked as far as precision lets'}",
        ]
        return told + ([f"BROKEN: {one}" for one in self.broken] or ["nothing broken"])


class Witness:
    """Keeps the report, and knows what is right.

    Args:
        model: the engine's.
        limits: of its executor.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model = model
        self._encoder = PromptEncoder(tokenizer=model.text, template=model.template, limits=limits)
        self._reference = Reference(model, limits.session_cells)
        self._lock = threading.Lock()
        self.report = SoakReport(exact=model.dtype == jnp.float32)

    def broke(self, what: str) -> None:
        """Notes what must not happen."""
        with self._lock:
            self.report.broken.append(what)

    def did(self, name: str) -> None:
        """Counts one operation more."""
        with self._lock:
            self.report.operations[name] += 1

    def ended(self, metrics: EngineMetrics) -> None:
        """Adds what an engine counted."""
        with self._lock:
            self.report.counts.update(asdict(metrics.counts))

    def saw(self, life: Life) -> None:
        """Looks where a session is; a pinned one never leaves the device.

        Raises:
            AssertionError: it did.
        """
        info = life.session.info()
        away = info.residency in ("host", "disk")
        assert not (info.pinned and away), f"a pinned session was on {info.residency}"
        with self._lock:
            self.report.tiers[info.residency] += 1

    def check(
        self, life: Life, answer: Answer, question: str, settings: Settings, least_version: int = 0
    ) -> None:
        """Checks an answer.

        Args:
            life: the session that was asked.
            answer: the engine's.
            question: as it was asked.
            settings: likewise.
            least_version: what the session had read by then.

        Raises:
            AssertionError: it cannot be right.
        """
        assert least_version <= answer.version <= len(life.entries), "not of a version it had"
        asked, read = (
            self._encoder.ask(question, settings),
            life.read(answer.version, answer.visible),
        )
        _check_numbers(answer, len(read), asked)
        with self._lock:
            self.report.checked += 1
            if self.report.exact:
                self._reference.check(answer, read, asked)

    def tokens(self, text: str) -> tuple[int, ...]:
        """One entry's."""
        return tuple(self._encoder.entry(text).tolist())

    def opening(self, prefix: str) -> tuple[int, ...]:
        """A session's."""
        return tuple(self._encoder.opening(prefix).tolist())


def _check_numbers(answer: Answer, read_tokens: int, asked: Question) -> None:
    """What precision does not change. Freed blocks are full of NaN, and so is what was read there:
    comparing with the functional core would not be enough, since NaN may be compared with NaN."""
    assert answer.usage.context_tokens == read_tokens, "it saw another number of cells"
    totals = answer.choice_logprobs or ()
    assert all(map(math.isfinite, (answer.logprob, *totals))), f"not finite: {answer}"
    assert answer.confidence >= 0.0, f"not a gap between two logits: {answer}"
    if asked.choices is None:
        assert len(answer.token_ids) <= asked.max_tokens, "a longer answer than was asked for"
        return
    assert len(totals) == len(asked.choices), "a choice was not scored"
    assert totals[asked.choices.index(answer.text)] == max(totals), "not the best of the choices"


def _told(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counter.items()))
