"""What a server has: an engine that may still be loading, and its tenants' sessions by name.

Comes in: the engine once it is made, names as clients give them. Goes out: sessions with what the
server knows of them beyond the engine: when they were made and last used, and what is under way.
Does not know: HTTP, JSON.

A tenant's session `feed` is `tenant.feed` in the engine, where names are everybody's; the tenant
"default" has the bare names. So no tenant can name, or learn of, another's.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakSet

import jaxstate
from jaxstate import Subscription
from jaxstate.engine.requests.encoding import CONVERSATION_TAIL
from jaxstate.serve.errors import ApiError
from jaxstate.serve.keys import DEFAULT, KeyRing, ServedTenant
from jaxstate.serve.metrics import ServerMetrics
from jaxstate.serve.settings import ServeSettings
from jaxstate.serve.webhooks import Webhooks

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
# A longest name of a tenant's session, with the tenant's and a dot before it.
_MOST_CHARACTERS = 128


@dataclass(slots=True, eq=False)
class ServedSession:
    """A session, and what the server knows of it.

    Attributes:
        session: in the engine.
        name: for its tenant.
        tenant: whose it is.
        created_s, used_s: Unix seconds.
        turns: questions answered, flash answers not counted.
        under_way: questions that are being answered, but for those in pieces.
        streams: answers in pieces, ended or not.
    """

    session: jaxstate.AsyncSession
    name: str
    tenant: str
    created_s: float
    used_s: float
    turns: int = 0
    under_way: int = 0
    streams: WeakSet[jaxstate.AsyncAnswerStream] = field(default_factory=WeakSet)

    @property
    def busy(self) -> bool:
        """Whether a question of a client is being answered."""
        return self.under_way > 0 or not all(one.ended for one in self.streams)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While a question of a client is being answered."""
        self.under_way += 1
        try:
            yield
            self.turns += 1
        finally:
            self.under_way -= 1
            self.used_s = time.time()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What clients are told of the model.

    Attributes:
        name: that they call it.
        created_s: when it was loaded, Unix seconds.
        max_tokens: of a conversation with its answer.
        tail_cells: of a question with its answer.
        tokenizer: for the bytes of tokens.
        stops: strings that end an answer by the model's template.
    """

    name: str
    created_s: float
    max_tokens: int
    tail_cells: int
    tokenizer: jaxstate.Tokenizer
    stops: tuple[str, ...] = ()

    def with_own(self, stop: Sequence[str] | None) -> list[str] | None:
        """A client's stop strings and the model's own; None where it has none."""
        return [*dict.fromkeys((*stop, *self.stops))] if stop else None

    @property
    def answer_tokens(self) -> int:
        """Of a conversation's answer at most."""
        return self.tail_cells - CONVERSATION_TAIL + 1


class Service:
    """The engine's sessions by tenant.

    Args:
        settings: bounds.
        keys: who may use it.
    """

    def __init__(self, settings: ServeSettings, keys: KeyRing) -> None:
        self.settings = settings
        self.keys = keys
        self.metrics = ServerMetrics()
        self.webhooks = Webhooks(settings.webhook_hosts)
        self.started_s = time.monotonic()
        self.failed: str | None = None
        self.on_failure: Callable[[], None] | None = None
        self.stopping = False
        self.stopped = asyncio.Event()
        self._engine: jaxstate.AsyncEngine | None = None
        self._model: ServedModel | None = None
        self._sessions: dict[tuple[str, str], ServedSession] = {}
        self._requests: Counter[str] = Counter()
        self._watching: set[Subscription] = set()

    def begin(self, engine: jaxstate.AsyncEngine, model: ServedModel) -> None:
        """The engine is there, with the sessions of its journal."""
        now_s = time.time()
        for session in engine.sessions():
            tenant = session.info().tenant
            name = session.id.removeprefix(_prefix(tenant))
            self._sessions[tenant, name] = ServedSession(session, name, tenant, now_s, now_s)
        self._engine, self._model = engine, model

    def ask_s(self, wanted_s: float | None) -> float:
        """Seconds for an answer, as a client wants them, if it may have them."""
        return min(wanted_s or self.settings.ask_s, self.settings.ask_s)

    def fail(self, reason: str) -> None:
        """The engine cannot be made."""
        self.failed = reason
        if self.on_failure is not None:
            self.on_failure()

    def watch(self, served: ServedSession, mode: Literal["changed", "always"]) -> Subscription:
        """Events of a session, which end when the server is to stop."""
        subscription = served.session.session.subscribe(flash=mode)
        self._watching.add(subscription)
        if self.stopping:
            self.stop()
        return subscription

    def unwatch(self, subscription: Subscription) -> None:
        """Nobody reads them any more."""
        subscription.cancel()
        self._watching.discard(subscription)

    def stop(self) -> None:
        """From now on nothing new is begun, and streams of events end; answers go on."""
        self.stopping = True
        self.stopped.set()
        for one in tuple(self._watching):
            one.close("the server is being stopped")

    async def close(self) -> None:
        """Ends the engine, with its last snapshot."""
        self.stop()
        await self.webhooks.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self._engine is not None and not self.stopping

    @property
    def engine(self) -> jaxstate.AsyncEngine:
        """The engine.

        Raises:
            ApiError: it is not there, or not any more.
        """
        if self._engine is None or self.stopping:
            what = "is being stopped" if self.stopping else "is loading its model"
            if self.failed is not None:
                what = f"could not start: {self.failed}"
            raise ApiError(503, f"the server {what}", code="not_ready", retry_after_s=1)
        return self._engine

    @property
    def model(self) -> ServedModel:
        """The model.

        Raises:
            ApiError: it is not there yet.
        """
        if self._model is None:
            _ = self.engine
        assert self._model is not None
        return self._model

    @contextmanager
    def request(self, tenant: ServedTenant) -> Iterator[None]:
        """While a request of a tenant is under way.

        Raises:
            ApiError: it has as many as it may.
        """
        if tenant.requests is not None and self._requests[tenant.name] >= tenant.requests:
            raise ApiError(
                429,
                f"{tenant.requests} requests are under way, and more may not be; wait for some",
                code="too_many_requests",
                retry_after_s=1,
            )
        self._requests[tenant.name] += 1
        try:
            yield
        finally:
            self._requests[tenant.name] -= 1

    def sessions(self, tenant: ServedTenant) -> list[ServedSession]:
        """A tenant's sessions, by creation."""
        mine = [one for one in self._sessions.values() if one.tenant == tenant.name]
        return sorted(self._open(mine), key=lambda one: (one.created_s, one.name))

    def find(self, tenant: ServedTenant, name: str, *, uses: bool = True) -> ServedSession:
        """A tenant's session.

        Args:
            tenant: whose.
            name: for its tenant.
            uses: whether it is used with that.

        Raises:
            ApiError: there is none of that name, or the name cannot be one.
        """
        _ = self.engine
        if not _NAME.fullmatch(name):
            raise ApiError(400, "a session's id has 1 to 128 of A-Z a-z 0-9 _ -")
        found = self._sessions.get((tenant.name, name))
        if found is None or not self._open([found]):
            raise ApiError(404, f"no session {name!r} is open", code="session_not_found")
        if uses:
            found.used_s = time.time()
        return found

    def new_name(self, tenant: ServedTenant, name: str | None) -> tuple[str, str]:
        """What a new session may be called.

        Args:
            tenant: whose.
            name: for its tenant; None for one of our own.

        Returns:
            Its name for the tenant, and in the engine.

        Raises:
            ApiError: the name is in use, or the tenant has as many sessions as it may.
        """
        _ = self.engine
        mine = self.sessions(tenant)
        most = tenant.sessions or self.settings.sessions
        if len(mine) >= most:
            raise ApiError(
                409, f"{most} sessions are open, and more may not be; delete one", code="sessions"
            )
        name = self._free_name(tenant) if name is None else name
        prefix = _prefix(tenant.name)
        if len(prefix + name) > _MOST_CHARACTERS:
            room = _MOST_CHARACTERS - len(prefix)
            raise ApiError(400, f"id has {len(name)} characters, and at most {room}")
        if (tenant.name, name) in self._sessions:
            raise ApiError(409, f"a session {name!r} is open already", code="session_exists")
        return name, prefix + name

    def adopt(
        self, tenant: ServedTenant, name: str, session: jaxstate.AsyncSession
    ) -> ServedSession:
        """A new session, known from now on."""
        now_s = time.time()
        made = ServedSession(session, name, tenant.name, now_s, now_s)
        self._sessions[tenant.name, name] = made
        return made

    def forget(self, one: ServedSession) -> None:
        """A session is closed."""
        if self._sessions.get((one.tenant, one.name)) is one:
            del self._sessions[one.tenant, one.name]

    def _open(self, some: list[ServedSession]) -> list[ServedSession]:
        """Those that are; the engine may have closed others, whose cells it lost."""
        for one in some:
            if one.session.session.record.closed:
                self.forget(one)
        return [one for one in some if not one.session.session.record.closed]

    def _free_name(self, tenant: ServedTenant) -> str:
        number = len(self._sessions) + 1
        while (tenant.name, f"sess_{number}") in self._sessions:
            number += 1
        return f"sess_{number}"


def _prefix(tenant: str) -> str:
    return "" if tenant == DEFAULT else f"{tenant}."
