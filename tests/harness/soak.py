"""Random clients, each on a thread of its own, on a real engine whose pool is always too small.

Comes in: a seed and a time. Goes out: a `SoakReport`: what was done, and whatever was broken. Every
answer is what `query` gives on a state built from the same entries (in float32; `Witness` says what
is checked otherwise); no wait takes for ever; at the end everything pushed is read and every block
is free. Two engines have half of the time each, so that sessions come back both ways: by copies of
their cells, which soon fill the host's memory, and from snapshots; and by reading all again.
Threads make the order, so a seed does not replay a soak
(`Simulation` does that). Does not know: processes, crashes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.requests.encoding import Settings
from jaxstate.engine.sessions.residence import Residency
from jaxstate.engine.types.options import EngineConfig, Policy, Tenant
from jaxstate.engine.types.values import Place
from jaxstate.engine.types.window import Window
from jaxstate.errors import BudgetExceeded, CapacityExceeded, InvalidInput, QueueFull
from jaxstate.model.bundle import Model
from jaxstate.testing.lives import Life
from jaxstate.testing.simulation import PREFIXES, QUESTIONS, SESSION_CELLS, TEMPLATE
from jaxstate.testing.tiny import TINY_STEPS, tiny_model
from tests.harness.witness import SoakReport, Witness

_STUCK_S = 60.0
# In so long every place must have been seen.
_LONG_S = 60.0
# Less than most sessions have: those that stay away come back from their snapshots, or are computed
# again; and then none at all, without snapshots.
_WAYS = (8 << 10, 0)
_MOST_LIVES = 3
_PAUSE_S = 0.5
# Few shapes, so that the soak soon begins.
_STEPS = dataclasses.replace(
    TINY_STEPS,
    extend_tokens=(16,),
    question_tokens=(16,),
    tail_cells=(32,),
    choice_tokens=(8,),
)
# A session of 96 cells reads far more than that in them.
_WINDOWS = (
    None,
    None,
    Window(tokens=20),
    Window(entries=3, hop=0.5),
    Window(age_s=0.5),
    Window(key="^(.)", tokens=30),
)
_CHOICES = (None, ("y", "n"), ("a", "ab", "bcd"))
_REFUSALS = (BudgetExceeded, CapacityExceeded, QueueFull)


class Soak:
    """Clients on one engine, and then on another.

    Args:
        seed: decides what clients want to do.
        clients: threads.
        model: with a byte tokenizer and small steps; None for the tiny one.
        dtype: of the tiny one's weights; answers are compared with the functional core in float32.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        clients: int = 8,
        model: Model | None = None,
        dtype: str = "float32",
    ) -> None:
        model = model or tiny_model(steps=_STEPS, dtype=dtype)
        self._model = dataclasses.replace(model, template=TEMPLATE)
        self._seed = seed
        self._clients = clients

    def run(self, seconds: float, progress: Callable[[float], None] | None = None) -> SoakReport:
        """Soaks for that long, then lets everything end."""
        device = DeviceExecutor(
            self._model,
            session_cells=SESSION_CELLS,
            cells=3 * SESSION_CELLS,
            sessions=self._clients,
            poison=True,
        )
        device.warm_up()
        witness, began_s = Witness(self._model, device.limits), time.monotonic()

        def tell() -> None:
            if progress is not None:
                progress(min(seconds, time.monotonic() - began_s))

        for host_bytes in _WAYS:
            self._soak(device, host_bytes, witness, seconds / len(_WAYS), tell)
        if seconds >= _LONG_S:
            _check_tiers(witness)
        return witness.report

    def _soak(
        self,
        device: DeviceExecutor,
        host_bytes: int,
        witness: Witness,
        seconds: float,
        tell: Callable[[], None],
    ) -> None:
        """One engine's time."""
        with tempfile.TemporaryDirectory() as folder:
            config = EngineConfig(
                scheduling=Policy(room_patience=4),
                host_bytes=host_bytes,
                snapshot_s=_PAUSE_S,
                tenants={"t1": Tenant(weight=2.0)},
            )
            journal = f"{folder}/journal" if host_bytes else None
            with Engine(self._model, executor=device, config=config, journal=journal) as engine:
                self._live(engine, f"{self._seed} {host_bytes}", witness, seconds, tell)
                for session in engine.sessions():
                    session.close()
                _check_rest(engine, witness)
                witness.ended(engine.metrics())

    def _live(
        self,
        engine: Engine,
        seed: str,
        witness: Witness,
        seconds: float,
        tell: Callable[[], None],
    ) -> None:
        """Clients come, and go when the time is over."""
        ends_s = time.monotonic() + seconds
        clients = [
            _Client(witness, engine, random.Random(f"{seed} {number}"), number)
            for number in range(self._clients)
        ]
        threads = [threading.Thread(target=_act_until, args=(client, ends_s)) for client in clients]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            tell()


def _check_tiers(witness: Witness) -> None:
    """Sessions were moved, and seen in every place."""
    if not witness.report.counts["sessions_suspended"]:
        witness.broke("no session left the device")
    for place in get_args(Place):
        if not witness.report.tiers[place]:
            witness.broke(f"no session was ever seen in its place {place!r}")


def _check_rest(engine: Engine, witness: Witness) -> None:
    """Nothing is held once everything is closed."""
    gauges = engine.metrics().gauges
    for name in ("sessions", "cells_held", "asks_running", "asks_waiting", "host_bytes"):
        if getattr(gauges, name) != 0:
            witness.broke(f"{name} is {getattr(gauges, name)} after everything was closed")
    if gauges.cells_free != gauges.cells:
        witness.broke(f"{gauges.cells - gauges.cells_free} cells are not free at the end")


def _act_until(client: _Client, ends_s: float) -> None:
    """One thread; the soak goes on without a client that finds something broken, and says so."""
    try:
        while time.monotonic() < ends_s:
            client.act()
        client.end()
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        client.witness.broke(f"client {client.number}: {error!r}\n{told}")


class _Client:
    """One thread's sessions."""

    def __init__(self, witness: Witness, engine: Engine, rng: random.Random, number: int) -> None:
        self.witness = witness
        self.number = number
        self._engine = engine
        self._random = rng
        self._tenant = f"t{number % 3}"
        self._lives: list[Life] = []

    def act(self) -> None:
        """One random thing; refusals are fine."""
        acts: list[tuple[Callable[[], None], int]] = [
            (self._push, 10),
            (self._ask, 6),
            (self._ask_many, 1),
            (self._flash, 2),
            (self._cancel, 2),
            (self._suspend, 2),
            (self._resume, 1),
            (self._pause, 1),
            (self._publish, 1),
            (self._wait, 2),
            (self._close, 1),
        ]
        if len(self._lives) < _MOST_LIVES:
            acts += [(self._open, 4), (self._fork, 2), (self._restore, 2)]
        (act,) = self._random.choices([one for one, _ in acts], [weight for _, weight in acts])
        self.witness.did(act.__name__.removeprefix("_"))
        try:
            act()
        except _REFUSALS as refusal:
            self.witness.did(type(refusal).__name__)
        for life in self._lives:
            self.witness.saw(life)

    def end(self) -> None:
        """Everything that was accepted is read, and answered."""
        for life in self._lives:
            life.session.wait_fresh(timeout=_STUCK_S)
            info = life.session.info()
            assert info.version == len(life.entries), "not everything was read"
            read = life.read(info.version, info.visible)
            assert info.tokens == len(read), "not as many cells as tokens"
            self._leave(life)

    def _life(self) -> Life:
        if not self._lives:
            self._open()
        return self._random.choice(self._lives)

    def _leave(self, life: Life) -> None:
        self._check_flashes(life)
        life.session.close()

    def _open(self) -> None:
        prefix = self._random.choice(("", *PREFIXES))
        session = self._engine.open(
            prefix=prefix,
            tenant=self._tenant,
            policy="reject",
            reserve=self._random.choice((None, None, None, 16)),
            residency=self._residency(),
            window=self._random.choice(_WINDOWS),
        )
        self._lives.append(Life(session=session, opening=self.witness.opening(prefix)))

    def _residency(self) -> Residency:
        """Seldom pinned: a few full ones, and nobody else could read anything."""
        if self.number % 4 or self._random.random() > 0.2:
            return "evictable"
        if any(life.session.info().pinned for life in self._lives):
            return "evictable"
        self.witness.did("open pinned")
        return "pinned"

    def _push(self) -> None:
        life = self._life()
        texts = ["".join(self._random.choices("abc1 ", k=self._random.randrange(9)))]
        try:
            receipt = life.session.push(texts * self._random.choice((1, 1, 3)))
        except CapacityExceeded:
            self._leave(life)
            self._lives.remove(life)
            raise
        for number in range(receipt.first, receipt.last + 1):
            life.entries[number] = self.witness.tokens(texts[0])

    def _ask(self) -> None:
        self._ask_about(self._life())

    def _ask_about(self, life: Life) -> None:
        """A question that may be registered: that makes no difference to the answer."""
        question, choices = self._random.choice(QUESTIONS), self._random.choice(_CHOICES)
        version = life.session.version
        settings = Settings(max_tokens=3 if choices is None else None, choices=choices)
        answer = life.session.ask(
            question, choices=choices, max_tokens=settings.max_tokens, timeout=_STUCK_S
        )
        self.witness.did(f"answer, {answer.source}")
        self.witness.check(life, answer, question, settings, version)

    def _ask_many(self) -> None:
        question = "to all"
        lives = list(self._lives)
        versions = [life.session.version for life in lives]
        sessions = [life.session for life in lives]
        answers = self._engine.ask_many(question, sessions, max_tokens=3, timeout=_STUCK_S)
        for life, version, answer in zip(lives, versions, answers, strict=True):
            self.witness.check(life, answer, question, Settings(max_tokens=3), version)

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
                self.witness.check(life, answer, query.question, Settings(max_tokens=3))

    def _cancel(self) -> None:
        self._life().session.submit("never mind", max_tokens=8).cancel()

    def _fork(self) -> None:
        parent = self._life()
        self._follow(parent, parent.session.fork())

    def _restore(self) -> None:
        """A session that goes on where a file ends, whatever became of the saved one since."""
        parent = self._life()
        if parent.session.info().visible is not None:
            return  # a file does not say which entries its cells are of
        with tempfile.TemporaryDirectory() as folder:
            parent.session.save(Path(folder) / "saved")
            session = self._engine.restore(
                Path(folder) / "saved", tenant=self._tenant, policy="reject"
            )
        self._ask_about(self._follow(parent, session))

    def _follow(self, parent: Life, session: Session) -> Life:
        """The life of a session that has read what its parent had at that version."""
        life = parent.fork(session)
        self._lives.append(life)
        return life

    def _suspend(self) -> None:
        session = self._life().session
        if not session.info().pinned:
            session.suspend(timeout=_STUCK_S)
            return
        with contextlib.suppress(InvalidInput):
            session.suspend(timeout=_STUCK_S)
            raise AssertionError("a pinned session was sent away")

    def _resume(self) -> None:
        """One that is away, before anything needs it."""
        places = [(life, life.session.info().residency) for life in self._lives]
        if away := [(life, place) for life, place in places if place != "device"]:
            life, place = self._random.choice(away)
            life.session.resume(timeout=_STUCK_S)
            self.witness.did(f"resume from {place}")

    def _pause(self) -> None:
        """Nobody uses its sessions for a while, so that their cells get as far as the disk."""
        for life in self._lives:
            if not life.session.info().pinned:
                life.session.suspend(timeout=_STUCK_S)
        time.sleep(self._random.random() * _PAUSE_S)

    def _publish(self) -> None:
        """The other prefix stays each tenant's own."""
        self._engine.publish_prefix(PREFIXES[0])

    def _wait(self) -> None:
        life = self._life()
        life.session.wait(timeout=_STUCK_S)

    def _close(self) -> None:
        life = self._life()
        self._lives.remove(life)
        self._leave(life)
