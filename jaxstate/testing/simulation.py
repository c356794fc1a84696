"""A whole engine under a random life that a seed replays exactly.

Comes in: a seed. Goes out: nothing, or an `AssertionError` that names the seed. Pushes, questions,
registrations, cancellations, forks and closings come in an order, and at times, that the seed
decides; sessions share a pool that is too small for all of them, leave it and come back; the steps
are real ones, and freed blocks are full of NaN. After every step it is checked that

- a step which is no `extend` leaves every session's cells as they were, bit for bit, and an
  `extend` those of all other sessions (design §7.2);
- whatever way a question was answered (alone, in a batch, as a flash query, from its scores), the
  answer is what `query` gives on a state built by `extend` from the same entries (§7.3);
- an answer names the version that it saw, at least what was demanded, and a flash query is fresh
  only at its session's version (§7.4);

and at the end that every entry was read once, in order, or reported dropped, and that nothing is
held that nobody uses. Does not know: threads, real time.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from concurrent.futures import Future

from jaxstate.engine.flash.conditions import Changed, ConfidenceAbove
from jaxstate.engine.requests.encoding import PromptEncoder, Settings
from jaxstate.engine.requests.request import Question
from jaxstate.engine.types.options import Coalesce, QueuePolicy
from jaxstate.engine.types.values import Answer
from jaxstate.engine.types.window import Window
from jaxstate.errors import (
    BudgetExceeded,
    CapacityExceeded,
    ClosedError,
    InvalidInput,
    QueueFull,
    VersionUnavailable,
)
from jaxstate.model.bundle import Model
from jaxstate.testing.clock import FakeClock
from jaxstate.testing.lives import Life, Tally, Waiting, some_config
from jaxstate.testing.reference import Reference
from jaxstate.testing.stepped import SteppedEngine
from jaxstate.testing.watched import WatchedExecutor
from jaxstate.text import Template

SESSION_CELLS = 96
# The pool is too small for all sessions that there may be: they have to leave it for each other.
POOL_SESSIONS = 2
# No life takes a tenth of that.
MOST_TURNS = 5000
# What clients may be told, and no fault.
REFUSALS = (QueueFull, CapacityExceeded, BudgetExceeded, VersionUnavailable)
# Sessions of one tenant that open with the same one share its cells.
PREFIXES = ("shared by some", "shared by others, and longer")
# Short, so that a choice may be one token and a question fits into one step; the last one does not.
TEMPLATE = Template(bare="<bos>", opening=("<bos>", ""), asking=("?", "="), stop=("\n", "Y"))
QUESTIONS = ("a", "up", "q", "is it up", "is it up or is it down")
CHOICES = (None, None, ("y", "n"), ("y", "no"), ("a", "ab", "bcd"), ("only",))
POLICIES: tuple[QueuePolicy, ...] = (
    "block",
    "reject",
    "drop_oldest",
    Coalesce(lambda text: text[:1]),
)


class Simulation:
    """One random life of an engine.

    Args:
        model: with a byte tokenizer and small steps.
        seed: decides everything.
        operations: how many things clients do.
        session_cells: capacity of every session.
        reference: knows what must come out; shared between simulations, it need not compute it
            again.
    """

    def __init__(
        self,
        model: Model,
        seed: int,
        *,
        operations: int = 40,
        session_cells: int = SESSION_CELLS,
        executor: WatchedExecutor | None = None,
        reference: Reference | None = None,
    ) -> None:
        self._random = random.Random(seed)
        self._operations = operations
        self._clock = FakeClock()
        self._model = model = dataclasses.replace(model, template=TEMPLATE)
        self._executor = executor or watched_executor(model, seed, session_cells)
        self._reference = reference or Reference(model, session_cells)
        self._engine = SteppedEngine(
            self._executor,
            self._clock,
            config=some_config(self._random),
            template=TEMPLATE,
        )
        limits = self._executor.limits
        self._encoder = PromptEncoder(tokenizer=model.text, template=model.template, limits=limits)
        self._seen: dict[int, Answer] = {}
        self._lives: list[Life] = []
        self._waiting: list[Waiting] = []
        self._counts: dict[str, int] = {}
        self._sources: dict[str, int] = {}
        self._turns = 0

    def run(self) -> Tally:
        """Lives the life, and checks it.

        Raises:
            AssertionError: something that must hold did not.
        """
        self._open()
        for _ in range(self._operations):
            self._act()
            for _ in range(self._random.choice((0, 0, 1, 1, 2, 5, 30))):
                self._turn()
        while self._turn():
            pass
        self._settle_time()
        self._check_end()
        self._engine.close()
        return Tally(self._counts, self._sources, self._turns)

    def _act(self) -> None:
        acts: list[tuple[Callable[[], None], int]] = [
            (self._push, 10),
            (self._ask, 12),
            (self._flash, 3),
            (self._unflash, 1),
            (self._cancel, 3),
            (self._open, 1),
            (self._close, 1),
            (self._fork, 1),
            (self._suspend, 1),
            (self._resume, 1),
            (self._ask_many, 1),
            (self._ask_past, 2),
            (self._fork_past, 1),
            (self._pass_time, 2),
            (self._set_window, 1),
        ]
        (act,) = self._random.choices([one for one, _ in acts], [weight for _, weight in acts])
        name = act.__name__.removeprefix("_")
        self._counts[name] = self._counts.get(name, 0) + 1
        try:
            act()
        except REFUSALS as refusal:
            name = type(refusal).__name__
            self._counts[name] = self._counts.get(name, 0) + 1

    def _turn(self) -> bool:
        did = self._engine.turn()
        self._turns += 1
        assert self._turns < MOST_TURNS, "the engine is busy for ever"
        self._clock.pass_s(self._random.random())
        self._executor.check_cells()
        self._check_asks()
        self._check_flashes()
        return did

    def _some_life(self) -> Life:
        if not self._lives:
            self._open()
        return self._random.choice(self._lives)

    def _open(self) -> None:
        prefix = self._random.choice(("", *PREFIXES, "p" * self._random.randint(1, 30)))
        session = self._engine.open(
            prefix=prefix,
            policy=self._random.choice(POLICIES),
            tenant=self._random.choice(("a", "a", "b")),
            reserve=self._random.choice((None, None, None, 20)),
            residency=self._random.choice(("evictable", "evictable", "evictable", "pinned")),
            window=self._some_window(),
        )
        opening = self._model.template.open_tokens(self._model.text, prefix)
        self._lives.append(Life(session=session, opening=tuple(opening)))

    def _some_window(self) -> Window | None:
        """Often none; the clock of a life passes half a second in a turn."""
        budgets: list[dict[str, int | float | str]] = [
            {"tokens": 12},
            {"tokens": 25},
            {"entries": 1},
            {"entries": 4},
            {"age_s": 4.0},
            {"key": "^(.)"},
            {"key": "[abc]", "tokens": 20},
            {"entries": 3, "age_s": 20.0},
        ]
        if self._random.random() < 0.5:
            return None
        hop = self._random.choice((None, None, 0.1, 0.5, 1.0))
        return Window(**self._random.choice(budgets), hop=hop)  # pyright: ignore

    def _set_window(self) -> None:
        session, window = self._some_life().session, self._some_window()
        try:
            session.set_window(window)
        except InvalidInput as refusal:
            assert "waits to be read" in str(refusal), "an entry is longer than the window"

    def _push(self) -> None:
        life = self._some_life()
        texts = [
            "".join(self._random.choices("abc1 ", k=self._random.choice((0, 1, 2, 5, 9, 23))))
            for _ in range(self._random.choice((1, 1, 2, 3)))
        ]
        outcome = life.session.push_prepared(life.session.prepare(texts))
        if isinstance(outcome, Future):
            outcome.cancel()  # a full queue that blocks: this client goes away
            return
        receipt, template, tokenizer = outcome.receipt, self._model.template, self._model.text
        for number, text in enumerate(texts, receipt.first):
            life.entries[number] = tuple(template.entry_tokens(tokenizer, text))
        life.drop(receipt.dropped)

    def _ask(self) -> None:
        life = self._some_life()
        question, choices = self._some_question(life)
        registered = next((one for one in life.flashes.values() if one.question == question), None)
        most = self._random.choice((1, 2, 5, 5 if registered is None else None))
        max_tokens = most if choices is None else None
        ahead = self._random.choice((None, None, None, -1, 0, 1))
        min_version = None if ahead is None else max(0, life.session.version + ahead)
        version = life.session.version
        future = life.session.submit(
            question, choices=choices, max_tokens=max_tokens, min_version=min_version
        )
        settings = Settings(max_tokens=max_tokens, choices=choices)
        if registered is not None and choices is None:
            settings = self._adopted(life.asked[registered.id], max_tokens)
        asked = self._encoder.ask(question, settings)
        waiting = Waiting(life, future, asked, max(min_version or 0, version))
        if future.done():
            answer = future.result()
            assert answer.version == version, "a stale answer was given as fresh"
            assert answer.source != "computed"
        self._waiting.append(waiting)

    def _some_question(self, life: Life) -> tuple[str, tuple[str, ...] | None]:
        """Often one that may be answered already."""
        if life.flashes and self._random.random() < 0.6:
            name = self._random.choice(list(life.flashes))
            choices = life.asked[name].choices
            if choices is not None and self._random.random() < 0.3:
                some = self._random.sample(choices, self._random.randint(1, len(choices)))
                return life.flashes[name].question, tuple(some)
            return life.flashes[name].question, self._random.choice(CHOICES)
        return self._random.choice(QUESTIONS), self._random.choice(CHOICES)

    def _adopted(self, asked: Question, max_tokens: int | None) -> Settings:
        """What an ask without choices means where that question is registered."""
        if asked.choices is None:
            return Settings(max_tokens=max_tokens or asked.max_tokens)
        if max_tokens is not None and max(map(len, asked.answer_tokens)) > max_tokens:
            return Settings(max_tokens=max_tokens)
        return Settings(choices=asked.choices)

    def _flash(self) -> None:
        life = self._some_life()
        question = self._random.choice(QUESTIONS)
        if any(one.question == question for one in life.flashes.values()):
            return
        choices = self._random.choice(CHOICES)
        most = self._random.choice((1, 3, 5))
        max_tokens = most if choices is None else None
        query = life.session.flash(
            question,
            choices=choices,
            max_tokens=max_tokens,
            when=self._random.choice((None, Changed(), ConfidenceAbove(0.5))),
            min_interval_s=self._random.choice((0.0, 0.0, 3.0)),
            deadline_s=self._random.choice((None, 1.0)),
        )
        life.flashes[query.id] = query
        settings = Settings(max_tokens=max_tokens, choices=choices)
        life.asked[query.id] = self._encoder.ask(question, settings)

    def _unflash(self) -> None:
        life = self._some_life()
        if life.flashes:
            name = self._random.choice(list(life.flashes))
            life.session.unflash(name)
            del life.flashes[name]

    def _cancel(self) -> None:
        if self._waiting:
            self._random.choice(self._waiting).future.cancel()

    def _close(self) -> None:
        life = self._some_life()
        life.session.close()
        self._lives.remove(life)

    def _fork(self) -> None:
        parent = self._some_life()
        session = self._engine.fork(parent.session, self._turn)
        self._lives.append(parent.fork(session))

    def _ask_past(self) -> None:
        """About an earlier version; what is registered is left to `_ask`."""
        life, question = self._some_life(), self._random.choice(QUESTIONS)
        version = life.some_version(self._random)
        known = {one.question for one in life.flashes.values()}
        if version is None or question in known:
            return
        choices = self._random.choice(CHOICES)
        max_tokens = 3 if choices is None else None
        future = life.session.submit(
            question, choices=choices, max_tokens=max_tokens, as_of=version
        )
        asked = self._encoder.ask(question, Settings(max_tokens=max_tokens, choices=choices))
        self._waiting.append(Waiting(life, future, asked, version, version))

    def _fork_past(self) -> None:
        parent = self._some_life()
        version = parent.some_version(self._random)
        if version is None:
            return
        session = self._engine.fork(parent.session, self._turn, version=version)
        assert session.version == version, "it is a fork at another version"
        self._lives.append(parent.fork(session))

    def _suspend(self) -> None:
        session = self._some_life().session
        if not session.info().pinned:
            session.suspending().cancel()  # it leaves all the same; nobody waits

    def _resume(self) -> None:
        self._some_life().session.resuming().cancel()

    def _ask_many(self) -> None:
        """One question to all; what is registered somewhere is left to `_ask`."""
        question = QUESTIONS[1]
        known = {q.question for life in self._lives for q in life.flashes.values()}
        if question in known:
            return
        choices = self._random.choice(CHOICES)
        lives = list(self._lives)
        max_tokens = 3 if choices is None else None
        settings = Settings(max_tokens=max_tokens, choices=choices)
        futures = self._engine.submit_many(
            question, [life.session for life in lives], max_tokens=max_tokens, choices=choices
        )
        for life, future in zip(lives, futures, strict=True):
            asked = self._encoder.ask(question, settings)
            self._waiting.append(Waiting(life, future, asked, max(life.session.version, 0)))

    def _pass_time(self) -> None:
        self._clock.pass_s(self._random.random() * 5)

    def _settle_time(self) -> None:
        """Lets minimum intervals pass, and what waits for them be done."""
        for _ in range(4):
            self._clock.pass_s(5.0)
            while self._turn():
                pass

    def _check_asks(self) -> None:
        for waiting in [one for one in self._waiting if one.future.done()]:
            self._waiting.remove(waiting)
            if waiting.future.cancelled():
                continue
            error = waiting.future.exception()
            if error is not None:
                if waiting.as_of is not None and isinstance(error, VersionUnavailable):
                    continue
                assert isinstance(error, ClosedError), f"an ask failed: {error!r}"
                assert waiting.life not in self._lives, "an ask of an open session was refused"
                continue
            self._check_answer(waiting.life, waiting.future.result(), waiting.asked)
            version = waiting.future.result().version
            assert version >= waiting.least_version and waiting.as_of in (None, version)

    def _check_flashes(self) -> None:
        for life in self._lives:
            for name, query in life.flashes.items():
                assert query.error is None, query.error
                answer = query.answer
                assert query.fresh == (
                    answer is not None and answer.version == life.session.version
                ), "fresh does not say whether it is"
                if answer is not None and self._seen.get(id(query)) is not answer:
                    self._seen[id(query)] = answer
                    self._check_answer(life, answer, life.asked[name])

    def _check_answer(self, life: Life, answer: Answer, asked: Question) -> None:
        self._sources[answer.source] = self._sources.get(answer.source, 0) + 1
        read = life.read(answer.version, answer.visible)
        assert answer.usage.context_tokens == len(read)
        self._reference.check(answer, read, asked)

    def _check_end(self) -> None:
        for waiting in self._waiting:
            wanted = waiting.least_version
            assert wanted > waiting.life.session.version, "an ask was forgotten"
        for life in self._lives:
            info = life.session.info()
            kept = [number for number in life.entries if number not in life.dropped]
            assert info.version == max([*kept, life.first]), "not everything was read"
            assert info.pending == 0 and info.pending_tokens == 0
            assert info.tokens == len(life.read(info.version, info.visible))
            assert all(query.fresh for query in life.flashes.values()), "an answer is out of date"
        self._engine.check_blocks()
        gauges = self._engine.metrics().gauges
        assert gauges.asks_running == 0
        assert gauges.asks_waiting == len(self._waiting)
        assert self._engine.free_tail_blocks == self._executor.limits.tail_blocks


def watched_executor(model: Model, seed: int, session_cells: int) -> WatchedExecutor:
    """The device of a life: every other one launches a step ahead, as an accelerator does."""
    cells = POOL_SESSIONS * session_cells
    return WatchedExecutor(
        model, session_cells=session_cells, cells=cells, sessions=3, steps_ahead=seed % 2
    )
