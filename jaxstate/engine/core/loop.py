"""The engine's loop: plan, execute, commit, deliver, on the one thread that owns the device.

Comes in: the engine's core, where clients leave what they want. Goes out: steps on the executor,
results in the records, deliveries to whoever waits. Does not know: text, how clients call.

A question's life:

1. A client's call notes it in the records, under the lock, and wakes the loop.
2. **Plan**: under the lock, the scheduler looks at a view of the records and names one step.
3. **Execute**: the step is launched, outside the lock; on an accelerator another may be launched
   before its result is fetched.
4. **Commit**: under the lock, the result goes into the records: cells and versions, answer tokens.
5. **Deliver**: futures, events and callbacks, outside the lock, in the order of the commits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from jaxstate.engine.core.batching import BatchBuilder
from jaxstate.engine.core.engine_core import ControlTask, EngineCore
from jaxstate.engine.core.scheduled_step import ScheduledStep
from jaxstate.engine.core.swapper import Swapper
from jaxstate.engine.core.window_keeper import WindowKeeper
from jaxstate.engine.executor.protocol import Executor, Pending, StepOutput
from jaxstate.engine.memory.swap_policy import Move
from jaxstate.engine.sessions.record import SessionRecord
from jaxstate.engine.types.values import Work
from jaxstate.errors import ClosedError, EngineFailed, JaxstateError, StepFailed
from jaxstate.text import Tokenizer

_log = logging.getLogger("jaxstate")


@dataclass(slots=True, kw_only=True, eq=False)
class _InFlight:
    """A launched step; `output` is None if it has no rows, and only those before it are awaited."""

    step: ScheduledStep
    output: Pending[StepOutput] | None
    started_s: float


class EngineLoop:
    """Drives one executor.

    Args:
        core: shared with clients.
        executor: its steps are run, and its cells moved, by this alone.
        tokenizer: for the text of answers.

    Attributes:
        turns: so far: they stand still while the device does not answer.
    """

    def __init__(self, core: EngineCore, executor: Executor, tokenizer: Tokenizer | None) -> None:
        self._core = core
        self._executor = executor
        self._mover = Swapper(core, executor)
        self._windows = WindowKeeper(core.state, core.results)
        self._batches = BatchBuilder(core.state, core.ready, core.results, tokenizer)
        self._in_flight: deque[_InFlight] = deque()
        self._until_s: float | None = None
        self._device_free_s = core.clock()
        # When sessions that have rested for too long are looked for again.
        self._look_s = 0.0
        self.turns = 0

    def run(self) -> None:
        """Turns until the engine's core is closed; an error of the loop's own closes it."""
        self._core.loop_thread = threading.get_ident()
        try:
            while self._core.ended is None:
                if not self.turn():
                    self._rest()
        except BaseException as error:
            failed = EngineFailed(f"the engine's loop died: {error!r}")
            failed.__cause__ = error
            self._in_flight.clear()
            self.close(failed)
        self._wind_up()

    def turn(self) -> bool:
        """Plans, executes, commits, delivers; False if there was nothing to do."""
        self.turns += 1
        with self._core.lock:
            self._core.news = False  # what comes from here on is looked at in the next turn
        self._tell_freed()
        # One job at most between two steps: however many forks are wanted, asks go on.
        job_done = self._do_job()
        did = self._move() or self._step() or self._fetch_oldest() or job_done
        did = did or self._move(idle=True)
        self.deliver()
        return did

    def close(self, error: ClosedError) -> None:
        """Ends everything; later calls of clients raise that error. From any thread."""
        core = self._core
        with core.lock:
            core.ended = core.ended or error
            for record in tuple(core.state.records.values()):
                core.results.close(record, str(error), error)
            for job in core.jobs:
                core.results.reject(job.future, error)
            core.jobs.clear()
            for future in core.wipes:
                core.results.reject(future, error)
            core.wipes.clear()
            core.tell_loop()

    @property
    def until_s(self) -> float | None:
        """When there will be something to do again without news; None if never."""
        return self._until_s

    def _rest(self) -> None:
        """Waits until something new may be done."""
        core = self._core
        with core.lock:
            if core.news or core.ended is not None:
                return
            seconds = None if self._until_s is None else self._until_s - core.clock()
            if seconds is None or seconds > 0:
                core.wake.wait(seconds)

    def _wind_up(self) -> None:
        """Lets the device finish, delivers what is left, and gives the device's memory back."""
        try:
            while self._in_flight:
                self._fetch_oldest()
        except Exception:
            _log.exception("the device did not recover; what was under way is lost")
        self.deliver()
        self._executor.release()

    def _step(self) -> bool:
        core = self._core
        with core.lock:
            now_s = core.clock()
            self._windows.look(now_s)
            core.recorder.count("prefix_tokens_shared", core.state.begin_openings())
            planned = core.scheduler.plan(core.ready.view(now_s))
            if planned.step is None:
                times_s = (planned.until_s, self._next_idle_s(), self._windows.until_s)
                self._until_s = _earliest(*times_s)
                return False
            self._until_s = None
            core.state.steps += 1
            step = self._batches.build(planned, now_s)
            works = frozenset[Work]({planned.step.work}) if step is None else step.works
            core.state.let_go_first(works, planned.runnable | planned.held_up)
        if step is not None:
            self._launch(step)
        return True

    def _launch(self, step: ScheduledStep) -> None:
        started_s, rows = self._core.clock(), step.rows
        try:
            if step.copies:
                self._executor.copy(step.copies)
            output = self._executor.run(step.kind, rows) if rows else None
        except Exception as error:
            self._failed(step, error)
            return
        self._in_flight.append(_InFlight(step=step, output=output, started_s=started_s))
        # Idle work is never launched ahead: an ask that comes now waits for this step and no other.
        ahead = self._core.limits.steps_ahead if step.work in ("ask", "ingest") else 0
        while len(self._in_flight) > ahead:
            self._fetch_oldest()

    def _fetch_oldest(self) -> bool:
        """Waits for the step that was launched first, and records its result."""
        if not self._in_flight:
            return False
        flight = self._in_flight.popleft()
        core, step = self._core, flight.step
        try:
            output = None if flight.output is None else flight.output.get()
        except Exception as error:
            self._failed(step, error)
            return True
        with core.lock:
            now_s = core.clock()
            device_s = now_s - max(flight.started_s, self._device_free_s)
            self._device_free_s = now_s
            core.recorder.step_done(step.work, device_s, read_tokens=step.read_tokens)
            core.state.step_done(step.works, device_s, lent=step.lent)
            core.results.apply(step, output, now_s)
        self.deliver()
        return True

    def _failed(self, step: ScheduledStep, error: Exception) -> None:
        """Notes it, and what the device lost with it."""
        with self._core.lock:
            self._core.results.fail(step, error)
        self._recover(error)

    def _recover(self, error: Exception) -> None:
        """A device that lost its rows loses every question under way with them; one that lost its
        cells computes them again."""
        lost = self._executor.recover()
        with self._core.lock:
            if lost.rows:
                self._core.results.rows_lost(error)
            if lost.cells:
                self._core.results.cells_lost(error)

    def _do_job(self) -> bool:
        core = self._core
        with core.lock:
            if self._next_job() is None:
                return False
        while self._in_flight:
            self._fetch_oldest()
        with core.lock:
            job = self._next_job()  # a step that was in flight may have failed
            if job is None:
                return True
            core.jobs.remove(job)
            if job.version_end is not None:
                job.version_end.tasks_waiting -= 1
                core.state.touch(job.version_end)
            if job.unwanted:
                if job.creates:
                    core.unwanted(job.session)
                return True
        try:
            job.check_open()
            result = job.act()
        except Exception as error:
            self._job_failed(job, error)
            return True
        with core.lock:
            job.booked(result)
            core.results.resolve(job.future, result)
        return True

    def _next_job(self) -> ControlTask[object] | None:
        ready = (one for one in self._core.jobs if one.may_run or one.ended or one.unwanted)
        return next(ready, None)

    def _job_failed(self, job: ControlTask[object], cause: Exception) -> None:
        error = cause if isinstance(cause, JaxstateError) else StepFailed(f"it failed: {cause}")
        if error is not cause:
            error.__cause__ = cause
        results = self._core.results
        with self._core.lock:
            if job.creates:
                results.close(job.session, str(error), error)
            results.reject(job.future, error)

    def _move(self, *, idle: bool = False) -> bool:
        """Sends one session away, or brings one back, if the swap policy says so."""
        core = self._core
        with core.lock:
            state = core.state
            now = state.now(core.clock())
            move = state.swapper.settle(state.records.values(), now, idle=idle)
            if move is None and now.time_s >= self._look_s:
                move = self._rests_too_long(now.time_s)
        if move is None:
            return False
        while self._in_flight and move.to != "host":  # the disk needs no device
            self._fetch_oldest()
        if (error := self._mover.make(move)) is not None:
            self._recover(error)
        return True

    def _rests_too_long(self, now_s: float) -> Move | None:
        """The first session that has been idle for as long as one may be; where there is none, it
        need not be looked for before the next could be."""
        idle_s = self._core.config.idle_s
        if idle_s is None:
            return None
        resting = list(self._resting(now_s))
        if late := next((one for one in resting if one.residence.used_s + idle_s <= now_s), None):
            return Move(late, "away")
        ends_s = min((one.residence.used_s + idle_s for one in resting), default=now_s + idle_s)
        self._look_s = min(ends_s, now_s + idle_s)
        return None

    def _resting(self, now_s: float) -> Iterator[SessionRecord]:
        """Sessions that could leave the device, since they have nothing to do."""
        for record in self._core.state.records.values():
            residence = record.residence
            could = residence.on_device and not residence.pinned and residence.table.cells > 0
            could = could and record.rebuilds is None
            if could and not record.tasks_waiting and not record.has_work(now_s):
                yield record

    def _next_idle_s(self) -> float | None:
        """When the next session will have been idle for too long."""
        idle_s = self._core.config.idle_s
        if idle_s is None:
            return None
        resting = self._resting(self._core.clock())
        ends_s = min((record.residence.used_s + idle_s for record in resting), default=None)
        return None if ends_s is None else max(ends_s, self._look_s)

    def _tell_freed(self) -> None:
        """The executor may do what it likes with blocks that nobody has any more."""
        tables = self._core.state.tables
        with self._core.lock:
            freed = [one for one in dict.fromkeys(tables.take_freed()) if tables.is_free(one)]
        if freed:
            self._executor.freed(freed)
        if self._core.wipes:
            self._wipe()

    def _wipe(self) -> None:
        """Overwrites all cells that nobody has: whatever was erased may have lain in any."""
        core = self._core
        while self._in_flight:
            self._fetch_oldest()
        with core.lock:
            waiting = tuple(core.wipes)
            blocks = core.state.tables.free_blocks()
        try:
            self._executor.wipe(blocks)
        except Exception as error:
            self._recover(error)  # a pool that is lost holds nothing either
        with core.lock:
            del core.wipes[: len(waiting)]
            for future in waiting:
                core.results.resolve(future, None)

    def deliver(self) -> None:
        """Makes the deliveries that are due, without the lock."""
        with self._core.lock:
            self._core.results.freshened()
            outbox = self._core.results.take_outbox()
        for delivery in outbox:
            try:
                delivery()
            except Exception:  # one client's trouble is not the others'
                _log.exception("a delivery failed")


def _earliest(*times_s: float | None) -> float | None:
    return min((one for one in times_s if one is not None), default=None)
