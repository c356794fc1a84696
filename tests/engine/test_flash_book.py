"""Which registered questions are out of date, due, overdue: the record against a naive model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxstate.engine.flash.conditions import Watch
from jaxstate.engine.flash.registry import FlashRegistry, Registered
from jaxstate.engine.requests.request import Question
from jaxstate.engine.types.values import Answer, Usage
from jaxstate.errors import FlashLimit, InvalidInput
from jaxstate.records import Sampling

LIMIT = 4


def asked(question: str, choices: tuple[tuple[str, tuple[int, ...]], ...] = ()) -> Question:
    return Question(
        question=question,
        tokens=np.ones(3, np.int32),
        max_tokens=4,
        sampling=Sampling(),
        stop=(),
        choices=tuple(text for text, _ in choices) or None,
        choice_tokens=tuple(np.array(ids, np.int32) for _, ids in choices),
        answer_tokens=tuple(np.array(ids, np.int32) for _, ids in choices),
    )


def registered(question: str, **settings_: object) -> Registered:
    return Registered(asked=asked(question), watch=Watch(None), **settings_)


def answer(version: int, text: str = "") -> Answer:
    return Answer(
        text=text,
        token_ids=(),
        version=version,
        source="computed",
        confidence=0.0,
        logprob=0.0,
        finish_reason="stop",
        latency_s=0.0,
        usage=Usage(context_tokens=0, question_tokens=0, answer_tokens=0),
    )


@dataclass
class Model:
    """One question, with its whole history.

    `settled` is the newest version answered or refused; `began` the (time, version) under way.
    """

    one: Registered
    registered_s: float
    settled: int = -1
    answered: int | None = None
    error: str | None = None
    began: tuple[float, int] | None = None
    starts: list[float] = field(default_factory=list)


class FlashMachine(RuleBasedStateMachine):
    """The record against a model that keeps every commit and looks through all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.record = FlashRegistry(LIMIT)
        self.questions: list[Model] = []
        self.commits: dict[int, float] = {}  # version: when
        self.version = -1
        self.now_s = 0.0
        self.names: set[str] = set()

    # what the model thinks -------------------------------------------------------------------

    def stale(self, q: Model) -> bool:
        return self.version >= 0 and q.settled != self.version

    def stale_since_s(self, q: Model) -> float:
        """When the first version was committed that it is not settled at (or its registration)."""
        later = [at_s for version, at_s in self.commits.items() if version > q.settled]
        return max(q.registered_s, min(later))

    def may_start_s(self, q: Model) -> float:
        return q.starts[-1] + q.one.min_interval_s if q.starts else -math.inf

    def due(self) -> list[Model]:
        ready = [
            q
            for q in self.questions
            if self.stale(q) and q.began is None and self.may_start_s(q) <= self.now_s
        ]
        return ready

    def running(self) -> list[Model]:
        return [q for q in self.questions if q.began is not None]

    # what happens ----------------------------------------------------------------------------

    @rule(seconds=st.integers(0, 5))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(
        text=st.sampled_from("abcdef"),
        interval=st.sampled_from([0.0, 3.0]),
        deadline=st.sampled_from([None, 0.0, 4.0]),
    )
    def add(self, text: str, interval: float, deadline: float | None) -> None:
        one = registered(text, min_interval_s=interval, deadline_s=deadline)
        refusal: type[Exception] | None = None
        if len(self.questions) >= LIMIT:
            refusal = FlashLimit
        elif any(q.one.asked.question == text for q in self.questions):
            refusal = InvalidInput
        if refusal is not None:
            with pytest.raises(refusal):
                self.record.add(one, self.now_s)
            return
        self.record.add(one, self.now_s)
        assert one.id not in self.names, "an id names one question for ever"
        self.names.add(one.id)
        self.questions.append(Model(one, self.now_s))

    @precondition(lambda self: self.questions)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        q = data.draw(st.sampled_from(self.questions))
        self.record.check_there(q.one.id)
        self.record.discard(q.one.id)
        with pytest.raises(InvalidInput):
            self.record.check_there(q.one.id)
        self.questions.remove(q)

    @rule(by=st.integers(1, 3))
    def commit(self, by: int) -> None:
        self.version = max(self.version, 0) + by
        self.commits[self.version] = self.now_s
        self.record.committed(self.version, self.now_s)

    @rule(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        for one in self.record.at(self.now_s).due[:count]:
            q = next(q for q in self.questions if q.one is one)
            one.begin(self.now_s)
            q.began = (self.now_s, self.version)
            q.starts.append(self.now_s)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), fate=st.sampled_from(["answered", "refused", "dropped"]))
    def end(self, data: st.DataObject, fate: str) -> None:
        q = data.draw(st.sampled_from(self.running()))
        assert q.began is not None
        _, version = q.began
        q.began = None
        if fate == "dropped":
            q.one.give_up()
            q.starts.pop()
            return
        q.settled = version
        if fate == "answered":
            self.record.answered(q.one, answer(version))
            q.answered, q.error = version, None
        else:
            self.record.refused(q.one, version, "no")
            q.error = "no"

    # what must hold --------------------------------------------------------------------------

    @invariant()
    def the_list_is_right(self) -> None:
        assert list(self.record) == [q.one for q in self.questions]
        assert len(self.record) == len(self.questions)
        for q in self.questions:
            assert self.record.get(q.one.id) is q.one
            assert self.record.of_text(q.one.asked.question) is q.one
        assert self.record.of_text("never") is None

    @invariant()
    def what_is_fresh_is_fresh(self) -> None:
        for q in self.questions:
            fresh = q.answered is not None and q.answered == self.version
            assert self.record.is_fresh(q.one) == fresh
            assert q.one.error == q.error

    @invariant()
    def what_is_due_is_due(self) -> None:
        assert self.record.stale == sum(map(self.stale, self.questions))
        due = self.record.at(self.now_s).due
        assert {one.id for one in due} == {q.one.id for q in self.due()}
        settled = [next(q.settled for q in self.questions if q.one is one) for one in due]
        assert settled == sorted(settled), "the longest unanswered first"
        later = [
            self.may_start_s(q)
            for q in self.questions
            if self.stale(q) and q.began is None and self.may_start_s(q) > self.now_s
        ]
        assert self.record.at(self.now_s).next_due_s == min(later, default=math.inf)

    @invariant()
    def nothing_changes_by_itself_before_it_says_so(self) -> None:
        now = self.record.at(self.now_s)
        just_before = self.record.at(math.nextafter(min(now.until_s, self.now_s + 1e6), 0.0))
        assert dataclasses.replace(just_before, until_s=now.until_s) == now
        if now.until_s < math.inf:
            assert self.record.at(now.until_s) != now

    @invariant()
    def what_is_overdue_is_overdue(self) -> None:
        can_be_helped = [*self.due(), *filter(self.stale, self.running())]
        overdue = [
            q
            for q in can_be_helped
            if q.one.deadline_s is not None
            and self.stale_since_s(q) + q.one.deadline_s <= self.now_s
        ]
        assert self.record.at(self.now_s).overdue == bool(overdue)

    @invariant()
    def the_oldest_is_the_oldest(self) -> None:
        since = [self.stale_since_s(q) for q in self.questions if self.stale(q)]
        assert self.record.at(self.now_s).since_s == min(since, default=math.inf)


FlashMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestFlashMachine = FlashMachine.TestCase


def test_an_answer_at_an_old_version_leaves_it_stale() -> None:
    record = FlashRegistry(8)
    one = registered("a")
    record.add(one, 0.0)
    assert record.at(0.0).due == [] and record.stale == 0  # nothing is read yet
    record.committed(0, 1.0)
    one.begin(2.0)
    record.committed(3, 5.0)
    record.committed(4, 6.0)
    record.answered(one, answer(0))
    assert not record.is_fresh(one) and record.stale == 1
    assert one.stale_since_s == 5.0  # when version 3 was committed, the first that it has not seen
    assert record.at(6.0).due == [one]


def test_news_are_told_once() -> None:
    record = FlashRegistry(8)
    one = registered("a")
    record.add(one, 0.0)
    told = []
    for version, text in enumerate(["x", "x", "y", "y", "x"]):
        record.committed(version, float(version))
        told.append(record.answered(one, answer(version, text)))
    assert told == [True, False, True, False, True]


def test_a_refusal_keeps_the_answer_before() -> None:
    record = FlashRegistry(8)
    one = registered("a")
    record.add(one, 0.0)
    record.committed(1, 0.0)
    record.answered(one, answer(1))
    record.committed(2, 0.0)
    record.refused(one, 2, "too long")
    assert (one.answer, one.error) == (answer(1), "too long")
    assert record.stale == 0 and not record.is_fresh(one)
