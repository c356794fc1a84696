"""Many sessions on one accelerator, kept up to date and answered by one thread.

Comes in: a model. Goes out: sessions. This is the front of the package: it starts the loop, opens
and finds sessions, and ends them all. Does not know: how steps are chosen or run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from jaxstate.engine.asking import Asker
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.desk import Desk
from jaxstate.engine.device import DeviceExecutor
from jaxstate.engine.executor import Executor
from jaxstate.engine.host import SessionHost
from jaxstate.engine.loop import Loop
from jaxstate.engine.outcomes import Delivery
from jaxstate.errors import BudgetExceeded, ClosedError
from jaxstate.model.bundle import Model
from jaxstate.records import checked_int

_log = logging.getLogger("jaxstate")
DEFAULT_SESSION_CELLS = 4096


class Engine(SessionHost):
    """Sessions of one model on one device.

        with jaxstate.Engine(model) as engine:
            session = engine.open(prefix="Prices of today")
            session.flash("Is the price above 100?", choices=["yes", "no"])
            receipt = session.push("09:30 101.20")
            session.wait(receipt.last)
            print(session.ask("Is the price above 100?"))

    Args:
        model: with a tokenizer.
        cells: capacity of all sessions together, in tokens.
        session_cells: capacity of each session; None for 4096, or less if the model or `cells` has
            less. Its memory is taken when a session is opened.
        config: bounds, and how classes of work share the device.
        warm_up: compile every step now, so that nothing compiles later; without it a step is
            compiled when it is first used.
        progress: called with (compiled, all) during the warm-up.
        executor: something else than the model on the default device (for tests).
        clock: monotonic seconds (for tests).

    Raises:
        TextUnavailable: the model has no tokenizer.
        InvalidInput: `cells` or `session_cells` out of range.
        BudgetExceeded: not one session of `session_cells` fits into `cells`.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int = 65_536,
        session_cells: int | None = None,
        config: EngineConfig | None = None,
        warm_up: bool = True,
        progress: Callable[[int, int], None] | None = None,
        executor: Executor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        tokenizer = model.text
        cells = checked_int("cells", cells)
        device = executor or _device(model, cells, session_cells, warm_up, progress)
        if device.limits.session_cells > cells:
            raise BudgetExceeded(
                f"cells={cells} is less than one session of {device.limits.session_cells} cells"
            )
        desk = Desk(device, cells, config or EngineConfig(), clock, self._call_back)
        asker = Asker(tokenizer=tokenizer, template=model.template, limits=device.limits)
        super().__init__(desk, asker)
        self._callback_room = threading.BoundedSemaphore(desk.config.events_limit)
        self._callbacks = ThreadPoolExecutor(1, thread_name_prefix="jaxstate-callbacks")
        self._loop = Loop(desk, device, tokenizer)
        self._thread = threading.Thread(target=self._loop.run, name="jaxstate-loop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends every session and the loop; a step under way finishes. May be called twice.

        Entries that wait are not read. A callback that runs is waited for, those behind it do not
        run. Not to be called from a callback of the engine's own.
        """
        self._loop.close(ClosedError("the engine was closed"))
        self._thread.join()
        self._callbacks.shutdown(cancel_futures=True)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call_back(self, callback: Delivery) -> None:
        """Lets a callback run behind the others; none of them holds up the loop."""
        if self._callback_room.acquire(blocking=False):
            future = self._callbacks.submit(_logged, callback)
            future.add_done_callback(lambda _: self._callback_room.release())
            return
        _log.error("callbacks of flash queries are slower than their answers: one was dropped")
        with self._desk.lock:
            self._desk.recorder.count("callbacks_dropped")


def _device(
    model: Model,
    cells: int,
    session_cells: int | None,
    warm_up: bool,
    progress: Callable[[int, int], None] | None,
) -> DeviceExecutor:
    if session_cells is None:
        session_cells = min(DEFAULT_SESSION_CELLS, cells, model.config.max_context)
    device = DeviceExecutor(model, session_cells=session_cells)
    if warm_up:
        device.warm_up(progress=progress)
    return device


def _logged(callback: Delivery) -> None:
    try:
        callback()
    except Exception:
        _log.exception("a callback of a flash query failed")
