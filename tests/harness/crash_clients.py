"""Clients of an engine that will be killed: they say what they will do, and what came of it.

Comes in: an engine, a way to tell. Goes out: random calls, each told before it and after it. Does
not know: processes, when the engine is killed, what is checked.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxstate.engine.api.engine import Engine
from jaxstate.engine.api.session import Session
from jaxstate.engine.sessions.dedup import receipt_json
from jaxstate.engine.types.options import QueuePolicy
from jaxstate.engine.types.window import Window
from jaxstate.errors import (
    BudgetExceeded,
    CapacityExceeded,
    ClosedError,
    FlashLimit,
    QueueFull,
    UnknownSession,
)

Tell: TypeAlias = Callable[[dict[str, object]], None]

PREFIXES = ("", "A log of trades.", "A diary that goes on.")
_POLICIES: tuple[QueuePolicy, ...] = ("block", "drop_oldest", "reject")
# Of 384 cells most sessions need less than half; these go on with far fewer.
_WINDOWS = (
    None,
    None,
    Window(tokens=60),
    Window(entries=4, hop=0.5),
    Window(age_s=0.2),
    Window(key=r"^(\w+)\.", tokens=90),
)
# Refusals that anybody may get who shares a full engine.
_REFUSALS = (
    BudgetExceeded,
    CapacityExceeded,
    ClosedError,
    FlashLimit,
    QueueFull,
    UnknownSession,
)
_MOST_SESSIONS = 5
_MOST_TEXTS = 4
_MOST_FLASHES = 2
_REST_S = 0.02
# Of those that are closed.
_ERASED = 0.3
# Far longer than anything takes.
STUCK_S = 30.0
_NUMBERS = itertools.count(1)


class Client:
    """One client, which numbers its pushes.

    Args:
        engine: that it calls.
        tell: takes reports.
        name: its own.
        seq: the number of its last push.
        life: how many engines there were; names of new sessions have it.
        seed: decides what it wants.
    """

    def __init__(
        self, engine: Engine, tell: Tell, name: str, seq: int, life: int, seed: str
    ) -> None:
        self._engine = engine
        self._tell = tell
        self._name = name
        self._seq = seq
        self._life = life
        self._random = random.Random(seed)
        self._opened = itertools.count(1)
        self._ended = False

    def run(self) -> None:
        """Acts until the engine is closed."""
        while not self._ended:
            self.act()

    def act(self) -> None:
        """One random thing."""
        sessions = self._engine.sessions()
        acts: list[tuple[Callable[[Session], None], int]] = [
            (self._push, 16),
            (self._rest, 8),
            (self._look, 6),
            (self._flash, 1),
            (self._unflash, 1),
            (self._suspend, 1),
            (self._close, 1),
        ]
        if len(sessions) < _MOST_SESSIONS:
            acts.append((self._fork, 3))
        if not sessions or (len(sessions) < _MOST_SESSIONS and self._random.random() < 0.1):
            self._open()
            return
        (act,) = self._random.choices([one for one, _ in acts], [weight for _, weight in acts])
        act(self._random.choice(sessions))

    def repeat(self, session: Session, seq: int, texts: Sequence[str]) -> None:
        """A push that it sent before."""

        def call() -> dict[str, object]:
            receipt = session.push(texts, client=self._name, client_seq=seq, timeout=STUCK_S)
            return {"receipt": receipt_json(receipt)}

        sent = {"session": session.id, "client": self._name, "seq": seq, "texts": list(texts)}
        if self._did("push", sent, call) == "CapacityExceeded":
            self._close(session)

    def _did(
        self, what: str, sent: dict[str, object], call: Callable[[], dict[str, object]]
    ) -> str | None:
        """Tells of a call, makes it, tells what came of it; returns the refusal, if it was one."""
        number = next(_NUMBERS)
        self._tell({"op": number, "do": what, **sent})
        try:
            result = call()
        except _REFUSALS as refusal:
            why = type(refusal).__name__
            self._tell({"no": number, "why": why})
            return why
        self._tell({"ok": number, **result})
        return None

    def _push(self, session: Session) -> None:
        self._seq += 1
        texts = [
            f"{self._name}.{self._seq}.{index} {'x' * self._random.randrange(8)}"
            for index in range(self._random.randint(1, _MOST_TEXTS))
        ]
        self.repeat(session, self._seq, texts)

    def _rest(self, _: Session) -> None:
        time.sleep(self._random.random() * _REST_S)

    def _look(self, session: Session) -> None:
        """What somebody has seen must not be undone."""
        self._tell({"saw": session.id, "version": session.version})

    def _new_name(self) -> str:
        return f"{self._name}-{self._life}-{next(self._opened)}"

    def _open(self) -> None:
        name, prefix = self._new_name(), self._random.choice(PREFIXES)
        policy, window = self._random.choice(_POLICIES), self._random.choice(_WINDOWS)

        def call() -> dict[str, object]:
            self._engine.open(name, prefix=prefix, policy=policy, window=window)
            return {}

        if self._did("open", {"session": name, "prefix": prefix}, call) == "ClosedError":
            self._ended = True

    def _fork(self, session: Session) -> None:
        name = self._new_name()

        def call() -> dict[str, object]:
            least = session.version
            session.fork(name)
            return {"least": least, "most": session.version}

        self._did("fork", {"session": name, "parent": session.id}, call)

    def _close(self, session: Session) -> None:
        erase = self._random.random() < _ERASED

        def call() -> dict[str, object]:
            session.close(erase=erase)
            return {}

        self._did("erase" if erase else "close", {"session": session.id}, call)

    def _flash(self, session: Session) -> None:
        """A question that nobody else registers, and that is not registered yet."""
        own = self._own_flashes(session)
        question = f"{self._name}?{next(n for n in itertools.count(1) if n not in own)}"
        if len(own) >= _MOST_FLASHES:
            return

        def call() -> dict[str, object]:
            session.flash(question, max_tokens=2)
            return {}

        self._did("flash", {"session": session.id, "question": question}, call)

    def _own_flashes(self, session: Session) -> dict[int, str]:
        """Ids of those that it has registered, by their numbers."""
        split = [(one.id, *one.question.split("?")) for one in session.flashes()]
        return {int(number): id for id, client, number in split if client == self._name}

    def _unflash(self, session: Session) -> None:
        if not (own := self._own_flashes(session)):
            return
        number, flash_id = self._random.choice(list(own.items()))

        def call() -> dict[str, object]:
            session.unflash(flash_id)
            return {}

        sent: dict[str, object] = {"session": session.id, "question": f"{self._name}?{number}"}
        self._did("unflash", sent, call)

    def _suspend(self, session: Session) -> None:
        """Changes nothing that is acknowledged."""
        with contextlib.suppress(*_REFUSALS):
            session.suspend(timeout=STUCK_S)
