"""Random clients, each on a thread of its own, on a real engine whose pool is always too small.

Comes in: a seed and a time. Goes out: a `SoakReport`: what was done, and whatever was broken. Every
answer is what `query` gives on a state built from the same entries; no wait takes for ever; at the
end everything pushed is read and every block is free. Threads make the order, so a seed does not
replay a soak (`Simulation` does that). Does not know: processes, crashes.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxstate.engine.asking import Asker, Settings
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.device import DeviceExecutor
from jaxstate.engine.engine import Engine
from jaxstate.engine.metrics import EngineMetrics
from jaxstate.engine.scheduler import Policy
from jaxstate.engine.tenants import Tenant
from jaxstate.engine.values import Answer
from jaxstate.errors import BudgetExceeded, CapacityExceeded, QueueFull
from jaxstate.model.bundle import Model
from jaxstate.testing.lives import Life
from jaxstate.testing.reference import Reference
from jaxstate.testing.simulation import PREFIXES, QUESTIONS, SESSION_CELLS, TEMPLATE
from jaxstate.testing.tiny import TINY_STEPS, tiny_model

_STUCK_S = 60.0
# Few shapes, so that the soak soon begins.
_STEPS = dataclasses.replace(
    TINY_STEPS,
    extend_tokens=(16,),
    question_tokens=(16,),
    tail_cells=(32,),
    choice_tokens=(8,),
)
_CHOICES = (None, ("y", "n"), ("a", "ab", "bcd"))
_REFUSALS = (BudgetExceeded, CapacityExceeded, QueueFull)


@dataclass
class SoakReport:
    """What a soak did.

    Attributes:
        operations: by name, refusals among them.
        checked: answers that were compared.
        broken: what must not happen, in words.
        metrics: of the engine at the end.
    """

    operations: Counter[str] = field(default_factory=Counter[str])
    checked: int = 0
    broken: list[str] = field(default_factory=list)
    metrics: EngineMetrics | None = None

    def lines(self) -> list[str]:
        """The report as text."""
        told = [", ".join(f"{name}: {n:,}" for name, n in sorted(self.operations.items()))]
        if self.metrics is not None:
            counts = self.metrics.counts
            told.append(
                f"{counts.entries_committed:,} entries read, {counts.flash_answers:,} flash "
                f"answers, {counts.sessions_suspended:,} moves off the device, "
                f"{counts.sessions_resumed:,} back, {counts.tokens_rebuilt:,} tokens rebuilt, "
                f"{counts.prefix_tokens_shared:,} of prefixes shared"
            )
        told.append(f"{self.checked:,} answers compared with the functional core")
        told += [f"BROKEN: {one}" for one in self.broken] or ["nothing broken"]
        return told


class Soak:
    """Clients on one engine.

    Args:
        seed: decides what clients want to do.
        clients: threads.
        model: with a byte tokenizer and small steps; None for the tiny one.
    """

    def __init__(self, *, seed: int = 0, clients: int = 8, model: Model | None = None) -> None:
        self._model = dataclasses.replace(model or tiny_model(steps=_STEPS), template=TEMPLATE)
        self._seed = seed
        self._clients = clients
        self._reference = Reference(self._model, SESSION_CELLS)
        self._lock = threading.Lock()
        self._asker: Asker | None = None
        self.report = SoakReport()

    def run(self, seconds: float, progress: Callable[[float], None] | None = None) -> SoakReport:
        """Soaks for that long, then lets everything end."""
        device = DeviceExecutor(
            self._model,
            session_cells=SESSION_CELLS,
            cells=3 * SESSION_CELLS,
            sessions=self._clients,
            poison=True,
        )
        self._asker = Asker(tokenizer=self._model.text, template=TEMPLATE, limits=device.limits)
        device.warm_up()
        with tempfile.TemporaryDirectory() as folder:
            config = EngineConfig(
                scheduling=Policy(room_patience=4),
                host_bytes=64 << 10,
                disk_path=folder,
                tenants={"t1": Tenant(weight=2.0)},
            )
            with Engine(self._model, executor=device, config=config) as engine:
                self._soak(engine, time.monotonic() + seconds, progress, seconds)
        return self.report

    def _soak(
        self,
        engine: Engine,
        ends_s: float,
        progress: Callable[[float], None] | None,
        seconds: float,
    ) -> None:
        threads = [
            threading.Thread(target=self._client, args=(engine, number, ends_s))
            for number in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            if progress is not None:
                progress(min(seconds, seconds - (ends_s - time.monotonic())))
        for session in engine.sessions():
            session.close()
        self.report.metrics = self._at_rest(engine)

    def _at_rest(self, engine: Engine) -> EngineMetrics:
        """Nothing is held once everything is closed."""
        gauges = engine.metrics().gauges
        for name in ("sessions", "cells_held", "asks_running", "asks_waiting", "host_bytes"):
            if getattr(gauges, name) != 0:
                self._broken(f"{name} is {getattr(gauges, name)} after everything was closed")
        if gauges.cells_free != gauges.cells:
            self._broken(f"{gauges.cells - gauges.cells_free} cells are not free at the end")
        return engine.metrics()

    def _client(self, engine: Engine, number: int, ends_s: float) -> None:
        client = _Client(self, engine, random.Random(self._seed * 1000 + number), number)
        try:
            while time.monotonic() < ends_s:
                client.act()
            client.end()
        except Exception as error:  # the soak goes on without this client, and says so
            self._broken(f"client {number}: {error!r}")

    def _broken(self, what: str) -> None:
        with self._lock:
            self.report.broken.append(what)

    def count(self, name: str) -> None:
        """One operation more."""
        with self._lock:
            self.report.operations[name] += 1

    def check(self, life: Life, answer: Answer, question: str, settings: Settings) -> None:
        """Compares an answer with the functional core."""
        assert self._asker is not None
        asked = self._asker.ask(question, settings)
        with self._lock:
            self.report.checked += 1
            self._reference.check(answer, life.read(answer.version), asked)

    def tokens(self, text: str) -> tuple[int, ...]:
        """One entry's."""
        return tuple(TEMPLATE.entry_tokens(self._model.text, text))

    def opening(self, prefix: str) -> tuple[int, ...]:
        """A session's."""
        return tuple(TEMPLATE.open_tokens(self._model.text, prefix))


class _Client:
    """One thread's sessions."""

    def __init__(self, soak: Soak, engine: Engine, rng: random.Random, number: int) -> None:
        self._soak = soak
        self._engine = engine
        self._random = rng
        self._tenant = f"t{number % 3}"
        self._lives: list[Life] = []

    def act(self) -> None:
        """One random thing; refusals are fine."""
        acts: list[tuple[Callable[[], None], int]] = [
            (self._open, 2),
            (self._push, 10),
            (self._ask, 6),
            (self._ask_many, 1),
            (self._flash, 2),
            (self._cancel, 2),
            (self._fork, 1),
            (self._suspend, 1),
            (self._wait, 2),
            (self._close, 1),
        ]
        (act,) = self._random.choices([one for one, _ in acts], [weight for _, weight in acts])
        self._soak.count(act.__name__.removeprefix("_"))
        try:
            act()
        except _REFUSALS as refusal:
            self._soak.count(type(refusal).__name__)

    def end(self) -> None:
        """Everything that was accepted is read, and answered."""
        for life in self._lives:
            life.session.wait_fresh(timeout=_STUCK_S)
            assert life.session.version == len(life.entries), "not everything was read"
            self._check_flashes(life)
            life.session.close()

    def _life(self) -> Life:
        if not self._lives:
            self._open()
        return self._random.choice(self._lives)

    def _open(self) -> None:
        if len(self._lives) >= 3:
            return
        prefix = self._random.choice(("", *PREFIXES))
        session = self._engine.open(
            prefix=prefix,
            tenant=self._tenant,
            policy="reject",
            reserve=self._random.choice((None, None, None, 16)),
        )
        self._lives.append(Life(session=session, opening=self._soak.opening(prefix)))

    def _push(self) -> None:
        life = self._life()
        texts = ["".join(self._random.choices("abc1 ", k=self._random.randrange(9)))]
        try:
            receipt = life.session.push(texts * self._random.choice((1, 1, 3)))
        except CapacityExceeded:
            self._check_flashes(life)
            life.session.close()
            self._lives.remove(life)
            raise
        for number in range(receipt.first, receipt.last + 1):
            life.entries[number] = self._soak.tokens(texts[0])

    def _ask(self) -> None:
        life = self._life()
        question, choices = self._random.choice(QUESTIONS), self._random.choice(_CHOICES)
        known = {query.question for query in life.flashes.values()}
        if question in known:
            return
        answer = life.session.ask(question, choices=choices, max_tokens=3, timeout=_STUCK_S)
        self._soak.check(life, answer, question, Settings(max_tokens=3, choices=choices))

    def _ask_many(self) -> None:
        question = "to all"
        lives = list(self._lives)
        sessions = [life.session for life in lives]
        answers = self._engine.ask_many(question, sessions, max_tokens=3, timeout=_STUCK_S)
        for life, answer in zip(lives, answers, strict=True):
            self._soak.check(life, answer, question, Settings(max_tokens=3))

    def _flash(self) -> None:
        life = self._life()
        question = self._random.choice(QUESTIONS)
        if any(query.question == question for query in life.flashes.values()):
            self._check_flashes(life)
            return
        query = life.session.flash(question, max_tokens=3)
        life.flashes[query.id] = query

    def _check_flashes(self, life: Life) -> None:
        for query in life.flashes.values():
            answer = query.answer
            if answer is not None:
                self._soak.check(life, answer, query.question, Settings(max_tokens=3))

    def _cancel(self) -> None:
        self._life().session.submit("never mind", max_tokens=8).cancel()

    def _fork(self) -> None:
        parent = self._life()
        if len(self._lives) >= 3:
            return
        session = parent.session.fork()
        version = session.version
        read = tuple(parent.read(version))
        self._lives.append(Life(session=session, opening=parent.opening, base=(version, read)))
        # Its own entries go on from there.
        self._lives[-1].entries.update({n: () for n in range(1, version + 1)})

    def _suspend(self) -> None:
        self._life().session.suspend(timeout=_STUCK_S)

    def _wait(self) -> None:
        life = self._life()
        life.session.wait(timeout=_STUCK_S)

    def _close(self) -> None:
        life = self._life()
        self._lives.remove(life)
        life.session.close()
