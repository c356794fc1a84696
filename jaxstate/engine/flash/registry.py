"""Registered questions: which are due, what was answered, and their form in a journal.

Comes in: a question with its settings, versions, answers. Goes out: which question is due, whether
one fired, and the answers that are there. Does not know: cells, sessions, threads.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypedDict, Unpack

from jaxstate.engine.flash.conditions import (
    Changed,
    Condition,
    ConfidenceAbove,
    Crosses,
    Equals,
    Watch,
)
from jaxstate.engine.requests.encoding import (
    GREEDY,
    PromptEncoder,
    Settings,
    checked_settings,
    settings_of,
)
from jaxstate.engine.requests.request import Question, chosen_answer
from jaxstate.engine.types.values import Answer, Source, Usage
from jaxstate.errors import FlashLimit, InvalidInput
from jaxstate.records import shown


@dataclass(slots=True, kw_only=True, eq=False)
class Registered:
    """A flash question and where it stands.

    Attributes:
        asked: the question.
        watch: decides which answers are news.
        id: its name within the session, given when it is added.
        min_interval_s: it is computed no more often than that.
        deadline_s: once its answer has been out of date for so long, it is as urgent as an ask.
        staleness_s: how old its answer may become while the session reads on; None for the
            engine's.
        on_fire: called with each answer that is news, on a thread of the engine's own.
        answer: the newest one.
        given: the same as whoever asks that question gets it, and `answer_steps`: one reference, so
            that it can be read without the engine's lock.
        answer_steps: tokens that were chosen for it, the one that ended it and what a stop string
            cut off included.
        error: why it could not be computed at the newest version, if so.
        answered_version: the newest version that was answered or refused.
        answered_s: when `answer` came; None for one that was brought back.
        running: whether it is under way.
        started_s: when it was last begun, but for those beginnings that were given up.
        stale_since_s: since when its answer is out of date (or missing).
        outdated_s: when the session first went past what is under way; None if it did not.
        registered_s: when it was registered.
        drops: how many times in a row it was given up.
        brought_back: it comes from a journal, and nobody has registered it since.
    """

    asked: Question
    watch: Watch
    id: str = ""
    min_interval_s: float = 0.0
    deadline_s: float | None = None
    staleness_s: float | None = None
    on_fire: Callable[[Answer], None] | None = None
    answer: Answer | None = None
    given: tuple[Answer, int] | None = None
    answer_steps: int = 0
    error: str | None = None
    answered_version: int = -1
    answered_s: float | None = None
    running: bool = False
    started_s: float | None = None
    stale_since_s: float = 0.0
    outdated_s: float | None = None
    registered_s: float = 0.0
    drops: int = 0
    brought_back: bool = False
    _started_before_s: float | None = None

    @property
    def settings(self) -> tuple[object, ...]:
        """All that it was registered with, but the callback."""
        asked = self.asked
        how = (asked.max_tokens, asked.choices, asked.stop, asked.sampling)
        when = (self.min_interval_s, self.deadline_s, self.staleness_s)
        return asked.question, how, self.watch.condition, *when

    def begin(self, now_s: float) -> None:
        """It is under way."""
        self.running, self.outdated_s = True, None
        self._started_before_s, self.started_s = self.started_s, now_s

    def give_up(self) -> None:
        """What was under way is thrown away, as if it had not begun."""
        self.running, self.started_s = False, self._started_before_s
        self.drops += 1

    def ready(self, settings: Settings, answer: Answer) -> Answer | None:
        """The answer among some of its choices, from the scores that `answer` has: exactly what
        scoring them anew gives, since the score of a choice does not depend on the others. None
        where they are not all among them."""
        asked = self.asked
        if answer.choice_logprobs is None or settings.choices is None:
            return None
        if asked.choices is None or not set(settings.choices) <= set(asked.choices):
            return None
        places = [asked.choices.index(choice) for choice in settings.choices]
        some = dataclasses.replace(
            asked,
            choices=settings.choices,
            choice_tokens=tuple(asked.choice_tokens[place] for place in places),
            answer_tokens=tuple(asked.answer_tokens[place] for place in places),
        )
        if not settings.same_length(some):
            return None
        totals = [answer.choice_logprobs[place] for place in places]
        chosen = chosen_answer(
            some,
            totals,
            version=answer.version,
            context_tokens=answer.usage.context_tokens,
            cached_tokens=answer.usage.cached_tokens,
            latency_s=0.0,
            visible=answer.visible,
            window=answer.window,
        )
        return as_given(chosen, "ready")

    def may_start_s(self) -> float:
        """The earliest time at which it may be begun again."""
        return -math.inf if self.started_s is None else self.started_s + self.min_interval_s


@dataclass(slots=True)
class FlashMoment:
    """The flash questions of a session that are out of date, at one moment.

    Attributes:
        due: those that may be begun now, the longest unanswered first.
        since_s: since when the longest unanswered one is; infinite if none is.
        next_due_s: when one that may not be begun now may be; infinite if there is none.
        overdue: whether one that is under way, or due, has been out of date for its deadline.
        old: whether one that is under way, or due, has used half of the time that its answer may be
            out of date.
        until_s: when time alone changes any of this; infinite if never.
    """

    due: list[Registered] = field(default_factory=list)
    since_s: float = math.inf
    next_due_s: float = math.inf
    overdue: bool = False
    old: bool = False
    until_s: float = math.inf


class FlashRegistry:
    """The flash questions of one session.

    Args:
        limit: how many there may be.
        staleness_s: how old an answer may become while the session reads on, where its question
            does not say.
    """

    def __init__(self, limit: int, staleness_s: float = 5.0) -> None:
        self._limit = limit
        self._staleness_s = staleness_s
        self._by_id: dict[str, Registered] = {}
        self._by_text: dict[str, Registered] = {}
        self._arriving: dict[str, Registered] = {}
        self._stale: dict[str, Registered] = {}
        self._given = 0
        self.version = -1
        self.served = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Registered]:
        return iter(tuple(self._by_id.values()))

    @property
    def stale(self) -> int:
        """How many are not answered at the session's version."""
        return len(self._stale)

    def add(self, one: Registered, now_s: float, flash_id: str | None = None) -> None:
        """Registers a question, under a name of our own if it has none; it is due at once.

        Raises:
            FlashLimit, InvalidInput: as `expect`.
        """
        self.expect(one, flash_id)
        self.accept(one, now_s)

    def expect(self, one: Registered, flash_id: str | None = None) -> None:
        """A question gets its name, and its place among those that there may be; it is registered
        with `accept`.

        Raises:
            FlashLimit: there are as many as there may be.
            InvalidInput: the same text is registered already.
        """
        if len(self._by_id) + len(self._arriving) >= self._limit:
            raise FlashLimit(
                f"this session has {self._limit} registered questions, as many as it may; remove "
                "one with unflash(id), or raise flash_limit in EngineConfig"
            )
        text = one.asked.question
        if (same := self._by_text.get(text) or self._arriving.get(text)) is not None:
            raise InvalidInput(
                f"{text!r} is registered already, as {same.id!r}; remove that one "
                "first to register it with other settings"
            )
        if flash_id is None:
            self._given += 1
        one.id = flash_id or f"q{self._given}"
        self._arriving[text] = one

    def abandon(self) -> None:
        """None of those that are expected come."""
        self._arriving.clear()

    def accept(self, one: Registered, now_s: float) -> None:
        """A question that was expected is registered."""
        self._arriving.pop(one.asked.question, None)
        self._by_id[one.id] = self._by_text[one.asked.question] = one
        one.stale_since_s = one.registered_s = now_s
        if self.version >= 0:
            self._stale[one.id] = one

    def names_from(self, flash_id: str) -> None:
        """Names up to that one were given."""
        self._given = max(self._given, int(flash_id.removeprefix("q")))

    def bring_back(self, one: Registered, flash_id: str, now_s: float) -> None:
        """A question that a journal has, under the name that it had.

        Raises:
            FlashLimit, InvalidInput: as `add`.
        """
        self.add(one, now_s, flash_id)
        one.brought_back = True

    def taken_up(self, one: Registered) -> Registered | None:
        """The question that was brought back, if it is just that one: it gets the callback, which
        no journal can keep."""
        same = self._by_text.get(one.asked.question)
        if same is None or not (same.brought_back and same.settings == one.settings):
            return None
        same.brought_back, same.on_fire = False, one.on_fire
        return same

    def check_there(self, flash_id: str) -> None:
        """Refuses a name that no question has.

        Raises:
            InvalidInput: there is none of that name.
        """
        there = {*self._by_id, *(one.id for one in self._arriving.values())}
        if flash_id not in there:
            raise InvalidInput(f"no flash query {flash_id!r}; there are {sorted(there)}")

    def discard(self, flash_id: str) -> None:
        """Forgets a question, if it is there."""
        one = self._by_id.pop(flash_id, None)
        if one is not None:
            del self._by_text[one.asked.question]
            self._stale.pop(flash_id, None)

    def get(self, flash_id: str) -> Registered | None:
        """The question of that name, if it is still registered."""
        return self._by_id.get(flash_id)

    def of_text(self, question: str) -> Registered | None:
        """The question with that text."""
        return self._by_text.get(question)

    def committed(self, version: int, now_s: float) -> None:
        """The session has a new version: everything is out of date."""
        for one in self._by_id.values():
            if one.id not in self._stale:
                one.stale_since_s = now_s
            elif one.running and one.outdated_s is None:
                one.outdated_s = now_s
        self.version = version
        self._stale = dict(self._by_id)

    def is_fresh(self, one: Registered) -> bool:
        """Whether its answer is that of the session's version."""
        return one.answer is not None and self.is_current(one.answer)

    def is_current(self, answer: Answer) -> bool:
        """Whether an answer is that of the session's version; needs no lock."""
        return answer.version == self.version

    def at(self, now_s: float) -> FlashMoment:
        """What there is to do at that moment."""
        moment = FlashMoment()
        for one in self._stale.values():
            may_start_s, since_s = one.may_start_s(), one.stale_since_s
            overdue_s = math.inf if one.deadline_s is None else since_s + one.deadline_s
            # The other half of its time is for computing it.
            old_s = since_s + self.target_s(one) / 2
            can_be_helped = one.running or may_start_s <= now_s
            moment.since_s = min(moment.since_s, since_s)
            moment.overdue = moment.overdue or (can_be_helped and overdue_s <= now_s)
            moment.old = moment.old or (can_be_helped and old_s <= now_s)
            later = (time_s for time_s in (may_start_s, overdue_s, old_s) if time_s > now_s)
            moment.until_s = min(moment.until_s, min(later, default=math.inf))
            if one.running:
                continue
            if may_start_s <= now_s:
                moment.due.append(one)
            else:
                moment.next_due_s = min(moment.next_due_s, may_start_s)
        moment.due.sort(key=lambda one: one.answered_version)
        return moment

    def target_s(self, one: Registered) -> float:
        """How old its answer may become."""
        return self._staleness_s if one.staleness_s is None else one.staleness_s

    def missed_s(self, one: Registered, now_s: float) -> float:
        """By how much its answer has become older than it may, if it is replaced now."""
        return now_s - one.stale_since_s - self.target_s(one)

    def answered(self, one: Registered, answer: Answer, steps: int = 0) -> bool:
        """Keeps an answer that took so many chosen tokens; returns whether it is news."""
        one.answer, one.answer_steps, one.error = answer, steps, None
        one.given = as_given(answer, "flash"), steps
        self._settle(one, answer.version)
        return one.watch.observe(answer)

    def refused(self, one: Registered, version: int, reason: str) -> None:
        """It cannot be computed at that version; it is tried again at the next."""
        one.error = reason
        self._settle(one, version)

    def _settle(self, one: Registered, version: int) -> None:
        one.running, one.answered_version, one.drops = False, version, 0
        if version == self.version:
            self._stale.pop(one.id, None)
        elif one.outdated_s is not None:
            one.stale_since_s = one.outdated_s


def as_given(answer: Answer, source: Source) -> Answer:
    """An answer as whoever asks gets it that did not have to be computed for it."""
    seen = answer.usage.context_tokens
    usage = Usage(context_tokens=seen, question_tokens=0, answer_tokens=0, cached_tokens=seen)
    return dataclasses.replace(answer, source=source, usage=usage)


OnFire: TypeAlias = Callable[[Answer], None]


class WatchOptions(TypedDict, total=False):
    """When a flash query is answered, and what is made of it: as for `Session.flash`."""

    when: Condition | None
    on_fire: OnFire | None
    min_interval_s: float
    deadline_s: float | None
    staleness_s: float | None


class FlashOptions(WatchOptions, total=False):
    """The same, and what is asked."""

    max_tokens: int | None
    choices: Sequence[str] | None
    stop: Sequence[str] | None


def new_registered(
    encoder: PromptEncoder,
    question: str,
    *,
    max_tokens: int | None = None,
    choices: Sequence[str] | None = None,
    stop: Sequence[str] | None = None,
    **watch: Unpack[WatchOptions],
) -> Registered:
    """A question to be registered; the arguments as for `Session.flash`.

    Raises:
        InvalidInput, PromptTooLong: it cannot be asked, or its condition can never hold.
    """
    settings = settings_of(max_tokens=max_tokens, choices=choices, stop=stop)
    return _registered(encoder, question, settings, **watch)


def _registered(
    encoder: PromptEncoder,
    question: str,
    settings: Settings,
    *,
    when: Condition | None = None,
    on_fire: OnFire | None = None,
    min_interval_s: float = 0.0,
    deadline_s: float | None = None,
    staleness_s: float | None = None,
) -> Registered:
    watch = Watch(when)
    if on_fire is not None and not callable(on_fire):
        raise InvalidInput(f"on_fire={shown(on_fire)} must be a function of an answer, or None")
    asked = encoder.ask(question, settings)
    if isinstance(when, Equals) and asked.choices and when.choice not in asked.choices:
        raise InvalidInput(f"when={when!r} can never hold: the choices are {asked.choices}")
    return Registered(
        asked=asked,
        watch=watch,
        on_fire=on_fire,
        min_interval_s=_checked_seconds("min_interval_s", min_interval_s),
        deadline_s=None if deadline_s is None else _checked_seconds("deadline_s", deadline_s),
        staleness_s=None if staleness_s is None else _checked_seconds("staleness_s", staleness_s),
    )


_CONDITIONS: dict[str, type[Condition]] = {
    kind.__name__: kind for kind in (Changed, ConfidenceAbove, Crosses, Equals)
}


def flash_json(one: Registered) -> str:
    """A registered question as a journal keeps it; its callback cannot be kept."""
    asked, when = one.asked, one.watch.condition
    condition = None if when is None else [type(when).__name__, dataclasses.asdict(when)]
    return json.dumps(
        {
            "question": asked.question,
            "max_tokens": asked.max_tokens,
            "choices": asked.choices,
            "stop": asked.stop,
            "when": condition,
            "min_interval_s": one.min_interval_s,
            "deadline_s": one.deadline_s,
            "staleness_s": one.staleness_s,
        }
    )


def registered_of(encoder: PromptEncoder, kept: str) -> Registered:
    """The question again, without its callback.

    Raises:
        InvalidInput, PromptTooLong: it cannot be asked of this model.
    """
    given = json.loads(kept)
    when, choices = given.pop("when"), given.pop("choices")
    max_tokens, stop = given.pop("max_tokens"), given.pop("stop")
    settings = checked_settings(
        # Beside choices they are what goes without saying, and bind nothing.
        max_tokens=max_tokens if choices is None else None,
        choices=choices,
        stop=stop if choices is None else None,
        sampling=GREEDY,
    )
    condition = None if when is None else _CONDITIONS[when[0]](**when[1])
    return _registered(encoder, given.pop("question"), settings, when=condition, **given)


def _checked_seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InvalidInput(f"{name}={value!r} must be seconds, 0 or more")
    return float(value)
