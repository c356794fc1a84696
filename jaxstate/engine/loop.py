"""The engine's loop: plan, execute, commit, deliver, on the one thread that owns the device.

Comes in: the desk, where clients leave what they want. Goes out: steps on the executor, results in
the books, deliveries to whoever waits. Does not know: text, how clients call.

A question's life:

1. A client's call notes it in the books, under the lock, and wakes the loop.
2. **Plan**: under the lock, the scheduler looks at a view of the books and names one step.
3. **Execute**: the step is launched, outside the lock; on an accelerator another may be launched
   before its result is fetched.
4. **Commit**: under the lock, the result goes into the books: cells and versions, answer tokens.
5. **Deliver**: futures, events and callbacks, outside the lock, in the order of the commits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from jaxstate.engine.desk import Desk
from jaxstate.engine.executor import Executor
from jaxstate.engine.jobs import Job
from jaxstate.engine.launching import Launch, Launcher
from jaxstate.engine.scheduler import plan
from jaxstate.engine.views import Work
from jaxstate.errors import ClosedError, EngineFailed, JaxstateError, StepFailed
from jaxstate.text import Tokenizer

_log = logging.getLogger("jaxstate")


@dataclass(slots=True, kw_only=True, eq=False)
class _InFlight:
    launch: Launch
    fetch: Callable[[], Callable[[float], None]]
    started_s: float


class Loop:
    """Drives one executor.

    Args:
        desk: shared with clients.
        executor: nobody else calls it.
        tokenizer: for the text of answers.
    """

    def __init__(self, desk: Desk, executor: Executor, tokenizer: Tokenizer | None) -> None:
        self._desk = desk
        self._executor = executor
        self._launcher = Launcher(desk.ledger, executor, desk.outcomes, tokenizer)
        self._in_flight: deque[_InFlight] = deque()
        self._until_s: float | None = None
        self._device_free_s = desk.clock()

    def run(self) -> None:
        """Turns until the desk is closed; an error of the loop's own closes it."""
        self._desk.loop_thread = threading.get_ident()
        try:
            while self._desk.ended is None:
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
        with self._desk.lock:
            self._desk.news = False  # what comes from here on is looked at in the next turn
        self._forget_gone()
        did = self._do_job() or self._step() or self._fetch_oldest()
        self._deliver()
        return did

    def close(self, error: ClosedError) -> None:
        """Ends everything; later calls of clients raise that error. From any thread."""
        desk = self._desk
        with desk.lock:
            desk.ended = desk.ended or error
            for book in tuple(desk.ledger.books.values()):
                desk.outcomes.close(book, str(error), error)
            for job in desk.jobs:
                desk.outcomes.reject(job.future, error)
            desk.jobs.clear()
            desk.tell_loop()

    @property
    def until_s(self) -> float | None:
        """When there will be something to do again without news; None if never."""
        return self._until_s

    def _rest(self) -> None:
        """Waits until something new may be done."""
        desk = self._desk
        with desk.lock:
            if desk.news or desk.ended is not None:
                return
            seconds = None if self._until_s is None else self._until_s - desk.clock()
            if seconds is None or seconds > 0:
                desk.wake.wait(seconds)

    def _wind_up(self) -> None:
        """Lets the device finish, and delivers what is left."""
        while self._in_flight:
            self._fetch_oldest()
        self._forget_gone()
        self._deliver()

    def _step(self) -> bool:
        desk = self._desk
        with desk.lock:
            now_s = desk.clock()
            planned = plan(desk.ledger.view(now_s), desk.config.scheduling)
            self._until_s = planned.until_s
            if planned.step is None:
                return False
            desk.ledger.steps += 1
            launch = self._launcher.prepare(planned.step, now_s)
            works = frozenset[Work]({planned.step.work}) if launch is None else launch.works
            desk.ledger.let_go_first(works, planned.runnable | planned.held_up)
        if launch is not None:
            self._launch(launch)
        return True

    def _launch(self, launch: Launch) -> None:
        started_s = self._desk.clock()
        try:
            fetch = launch.call()
        except Exception as error:
            self._failed(launch, error)
            return
        self._in_flight.append(_InFlight(launch=launch, fetch=fetch, started_s=started_s))
        # Idle work is never launched ahead: an ask that comes now waits for this step and no other.
        ahead = self._desk.limits.steps_ahead if launch.work in ("ask", "ingest") else 0
        while len(self._in_flight) > ahead:
            self._fetch_oldest()

    def _fetch_oldest(self) -> bool:
        """Waits for the step that was launched first, and books its result."""
        if not self._in_flight:
            return False
        flight = self._in_flight.popleft()
        try:
            commit = flight.fetch()
        except Exception as error:
            self._failed(flight.launch, error)
            return True
        desk = self._desk
        with desk.lock:
            now_s = desk.clock()
            began_s = max(flight.started_s, self._device_free_s)
            desk.recorder.step_done(flight.launch.work, now_s - began_s)
            self._device_free_s = now_s
            commit(now_s)
        self._deliver()
        return True

    def _failed(self, launch: Launch, error: Exception) -> None:
        """Books it; a device that lost its rows loses every question under way with them."""
        with self._desk.lock:
            launch.fail(error)
        if self._executor.recover():
            with self._desk.lock:
                self._desk.outcomes.rows_lost(error)

    def _do_job(self) -> bool:
        desk = self._desk
        with desk.lock:
            job = next((one for one in desk.jobs if one.may_run or one.ended), None)
            if job is None:
                return False
            desk.jobs.remove(job)
            if job.border is not None:
                job.border.border_jobs -= 1
        while self._in_flight:
            self._fetch_oldest()
        try:
            job.check_open()
            result = job.act()
        except Exception as error:
            self._job_failed(job, error)
            return True
        with desk.lock:
            job.booked(result)
            desk.outcomes.resolve(job.future, result)
        return True

    def _job_failed(self, job: Job[object], cause: Exception) -> None:
        error = cause if isinstance(cause, JaxstateError) else StepFailed(f"it failed: {cause}")
        if error is not cause:
            error.__cause__ = cause
        outcomes = self._desk.outcomes
        with self._desk.lock:
            if job.creates:
                outcomes.close(job.session, str(error), error)
            outcomes.reject(job.future, error)

    def _forget_gone(self) -> None:
        with self._desk.lock:
            gone = tuple(self._desk.gone)
            self._desk.gone.clear()
        for key in gone:
            try:
                self._executor.close(key)
            except Exception:
                _log.exception("the device failed to forget a session")

    def _deliver(self) -> None:
        with self._desk.lock:
            self._desk.outcomes.freshened()
            outbox = self._desk.outcomes.take_outbox()
        for delivery in outbox:
            try:
                delivery()
            except Exception:  # one client's trouble is not the others'
                _log.exception("a delivery failed")
