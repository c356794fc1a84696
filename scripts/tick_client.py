"""A feed of price ticks and a client that asks about it: what `bench_flash.py` measures.

Comes in: a session and a timetable. Goes out: every answer with the time that its asker waited, and
what a listener heard when. Everything that happens is decided by seeds, so that two runs push the
same ticks and ask the same questions at the same moments. Does not know: what is compared.

The timetable is kept whatever the engine does: asks run on threads of their own, so a slow answer
delays none of those after it and hides none of their waiting.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import jaxstate

Question = tuple[str, tuple[str, ...] | None]

_ASKERS = 64


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """What happens when.

    Attributes:
        seconds: how long ticks and asks go on.
        every_s: between two ticks.
        ask_every_s: between two asks, on average (a Poisson process).
        unregistered_share: of asks that are about a question that nobody registered.
        max_tokens: of every answer.
    """

    seconds: float
    every_s: float
    ask_every_s: float
    unregistered_share: float
    max_tokens: int

    def plan(
        self, registered: Sequence[Question], unregistered: Question
    ) -> list[tuple[float, str | Question]]:
        """Moments, in seconds from the start, and what is pushed or asked at them, in order."""
        draw, at_s, acts = random.Random(11), 0.3, list[tuple[float, str | Question]]()
        while at_s < self.seconds:
            other = draw.random() < self.unregistered_share
            acts.append((at_s, unregistered if other else draw.choice(registered)))
            at_s += draw.expovariate(1.0 / self.ask_every_s)
        lines = ticks(math.ceil(self.seconds / self.every_s), first=1000)
        acts += [(number * self.every_s, line) for number, line in enumerate(lines)]
        return sorted(acts, key=lambda act: act[0])


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One answer, as its asker saw it.

    Attributes:
        question: which.
        source: "flash", "computed" or "ready".
        latency_s: from the call to the answer in the asker's hands.
        version: that the answer saw.
        text: of the answer.
    """

    question: str
    source: str
    latency_s: float
    version: int
    text: str


@dataclass(kw_only=True)
class Heard:
    """What a run let its client know, all in seconds from the start.

    Attributes:
        answers: to its asks.
        pushed_s: when each entry was pushed, by sequence number.
        committed_s: when each version was heard of.
        fresh_s: when each (question, version) was answered by a flash query.
        ended_s: when the last event was waited for.
    """

    answers: list[Timed] = field(default_factory=list)
    pushed_s: dict[int, float] = field(default_factory=dict)
    committed_s: dict[int, float] = field(default_factory=dict)
    fresh_s: dict[tuple[str, int], float] = field(default_factory=dict)
    ended_s: float = 0.0

    def lags_s(self) -> list[float]:
        """Of every entry: from its push to the commit that it is part of."""
        versions = sorted(self.committed_s)
        lags: list[float] = []
        for entry, pushed_s in self.pushed_s.items():
            version = next((one for one in versions if one >= entry), None)
            if version is not None:
                lags.append(self.committed_s[version] - pushed_s)
        return lags

    def refreshes_s(self) -> list[float]:
        """Of every flash answer: from the commit of its version."""
        return [
            at_s - self.committed_s[version]
            for (_, version), at_s in self.fresh_s.items()
            if version in self.committed_s
        ]

    def news_s(self) -> list[float]:
        """Of every flash answer to a version whose entry was pushed meanwhile: from that push."""
        return [
            at_s - self.pushed_s[version]
            for (_, version), at_s in self.fresh_s.items()
            if version in self.pushed_s
        ]

    def fresh_share(self, questions: Sequence[Question]) -> float:
        """Share of the time, over all questions, in which the answer was that of the newest
        version."""
        begins = [*sorted(self.committed_s.items(), key=lambda one: one[1])]
        if not begins or not questions:
            return 0.0
        fresh_s, whole_s = 0.0, self.ended_s - begins[0][1]
        ends_s = [at_s for _, at_s in begins[1:]] + [self.ended_s]
        for (version, _), end_s in zip(begins, ends_s, strict=True):
            for question, _ in questions:
                fresh_s += max(0.0, end_s - self.fresh_s.get((question, version), end_s))
        return fresh_s / (whole_s * len(questions))


def ticks(count: int, *, first: int = 0) -> list[str]:
    """Prices of a seeded random walk, the same in every run."""
    draw, price, lines = random.Random(7), 100.0, list[str]()
    for minute in range(first + count):
        change = draw.gauss(0.0, 1.0)
        price += change
        clock = f"{9 + minute // 60 % 24:02d}:{minute % 60:02d}"
        lines.append(f"{clock} ACME {price:.2f} {change:+.2f}\n")
    return lines[first:]


def live(
    session: jaxstate.Session,
    timetable: Timetable,
    registered: Sequence[Question],
    unregistered: Question,
) -> Heard:
    """Keeps to the timetable, and listens."""
    heard, begun_s = Heard(), time.perf_counter()
    subscription = session.subscribe(flash="always")
    listening = threading.Thread(target=_listen, args=(subscription, heard, begun_s))
    listening.start()
    pending: list[Future[Timed]] = []
    with ThreadPoolExecutor(_ASKERS) as askers:
        for at_s, act in timetable.plan(registered, unregistered):
            time.sleep(max(0.0, begun_s + at_s - time.perf_counter()))
            if isinstance(act, str):
                pushed_s = time.perf_counter() - begun_s
                heard.pushed_s[session.push(act).first] = pushed_s
            else:
                pending.append(askers.submit(ask, session, act, timetable.max_tokens))
        heard.answers = [one.result() for one in pending]
    session.wait()
    subscription.close("the run is over")
    listening.join()
    heard.ended_s = time.perf_counter() - begun_s
    return heard


def ask(session: jaxstate.Session, question: Question, max_tokens: int) -> Timed:
    """Asks, and times it."""
    text, choices = question
    began_s = time.perf_counter()
    answer = session.ask(text, choices=choices, max_tokens=max_tokens)
    latency_s = time.perf_counter() - began_s
    return Timed(
        question=text,
        source=answer.source,
        latency_s=latency_s,
        version=answer.version,
        text=answer.text,
    )


def _listen(subscription: jaxstate.Subscription, heard: Heard, begun_s: float) -> None:
    for event in subscription.iterate(None):
        now_s = time.perf_counter() - begun_s
        if isinstance(event, jaxstate.DataUpdated):
            heard.committed_s[event.version] = now_s
        elif isinstance(event, jaxstate.FlashReady):
            heard.fresh_s[event.question, event.answer.version] = now_s
