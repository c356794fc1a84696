"""An engine without a thread: a test decides when its loop turns.

Comes in: an executor and a clock. Goes out: real sessions of a real engine; every step happens in a
call of `turn`. With a seeded order of calls the whole engine is deterministic. Does not know: what
is being tested.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from jaxstate.engine.api.engine import SessionHost
from jaxstate.engine.api.session import Session
from jaxstate.engine.core.engine_core import EngineCore
from jaxstate.engine.core.loop import EngineLoop
from jaxstate.engine.core.ready_sessions import ReadySessions
from jaxstate.engine.core.session_manager import SessionManager
from jaxstate.engine.durability.transfer import Durable, opened_journal
from jaxstate.engine.executor.protocol import Executor
from jaxstate.engine.requests.encoding import PromptEncoder
from jaxstate.engine.scheduler.scheduler import Scheduler, plan
from jaxstate.engine.scheduler.views import Plan, View
from jaxstate.engine.types.options import EngineConfig, Policy
from jaxstate.errors import ClosedError
from jaxstate.records import Durability
from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.text import Template, plain_template


class CheckedSessions(ReadySessions):
    """Compares at every look what it remembers of sessions with what they are."""

    def view(self, now_s: float) -> View:
        """What the scheduler is to see."""
        found = super().view(now_s)
        self.check(now_s)
        return found


class CheckedScheduler(Scheduler):
    """Compares each plan with one that remembers nothing."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._anew = policy

    def plan(self, view: View) -> Plan:
        """The next step."""
        planned = super().plan(view)
        assert planned == plan(view, self._anew), "what was remembered is not what there is"
        return planned


class SteppedEngine(SessionHost):
    """Like `Engine`, turned by hand; calls that wait for the loop (`ask`, `wait`, `fork`, `save`)
    would wait for ever: use `submit` and futures.

    Callbacks (`on_fire`) run within `turn`.

    Args:
        executor: what runs the steps.
        clock: monotonic seconds.
        config: bounds and shares.
        template: of questions; the plain one with bytes as tokens if None.
        journal: as for `Engine`; snapshots are taken when `snapshot` is called.
        durability: as for `Engine`.
        checked: whether each turn compares what is remembered of sessions with what they are.
    """

    def __init__(
        self,
        executor: Executor,
        clock: Callable[[], float],
        *,
        config: EngineConfig | None = None,
        template: Template | None = None,
        journal: str | os.PathLike[str] | None = None,
        durability: Durability = "os",
        checked: bool = True,
    ) -> None:
        tokenizer = ByteTokenizer()
        shape = plain_template(tokenizer.bos) if template is None else template
        with opened_journal(journal, durability, tokenizer, shape) as journal_writer:
            core = EngineCore(
                executor, config or EngineConfig(), clock, lambda call: call(), journal_writer
            )
            encoder = PromptEncoder(tokenizer=tokenizer, template=shape, limits=executor.limits)
            manager = SessionManager(core, executor)
            super().__init__(core, manager, encoder, Durable(core, manager, encoder, executor))
        if checked:
            core.ready = CheckedSessions(core.state)
            core.scheduler = CheckedScheduler(core.config.scheduling)
        self._loop = EngineLoop(core, executor, tokenizer)

    def turn(self) -> bool:
        """One turn of the loop; False if there was nothing to do."""
        return self._loop.turn()

    def run(self, turns: int = 10_000) -> int:
        """Turns until there is nothing to do; returns how many turns did something.

        Raises:
            AssertionError: it never ended.
        """
        for done in range(turns):
            if not self.turn():
                return done
        raise AssertionError(f"the engine is still busy after {turns} turns")

    def fork(
        self,
        session: Session,
        turn: Callable[[], bool],
        *,
        version: int | None = None,
    ) -> Session:
        """`Session.fork`, for which `turn` is called until it is there.

        Raises:
            AssertionError: nothing is left to do, and it is not there.
        """
        record, future = self._manager.fork(session.record, None, version)
        while not future.done():
            assert turn() or future.done(), "the fork never came to be"
        future.result()
        return self._handle(record)

    def snapshot(self) -> int:
        """A snapshot of every session that has read something since its last, for which the loop
        turns; returns how many."""
        assert self._durable.snapshots is not None, "there is no journal"
        with ThreadPoolExecutor(1) as thread:
            taken = thread.submit(self._durable.snapshots.take_all)
            while not taken.done():
                self.turn()
                wait([taken], 0.001)
        return taken.result()

    @property
    def free_tail_blocks(self) -> int:
        """Tail blocks that no question holds."""
        return len(self._core.state.blocks)

    def check_blocks(self) -> None:
        """Every block of the pool is free, kept, or has the owners that it should have.

        Raises:
            AssertionError: it has not.
        """
        state = self._core.state
        tables = [record.residence.table for record in state.records.values()]
        state.tables.check(tables, state.prefixes.blocks)
        promised = state.budget.blocks - state.budget.free - state.tables.primary.held
        assert promised >= 0, "blocks were promised that are not there"
        away = sum(
            record.residence.reserve_blocks
            for record in state.records.values()
            if not record.residence.on_device
        )
        assert state.budget.free + away >= 0, "more blocks were granted than there are"

    @property
    def until_s(self) -> float | None:
        """When there will be something to do again without news; None if never."""
        return self._loop.until_s

    def close(self) -> None:
        """Ends every session."""
        self._loop.close(ClosedError("the engine was closed"))
        self._loop.turn()
        self._core.cell_store.close()
        self._durable.close()
