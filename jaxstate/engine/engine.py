"""Many sessions on one accelerator, kept up to date and answered by one thread.

Comes in: a model. Goes out: sessions. This is the front of the package: it starts the loop, opens
and finds sessions, and ends them all. Does not know: how steps are chosen or run.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from jaxstate.engine.asking import Asker
from jaxstate.engine.compiling import WarmUp
from jaxstate.engine.config import EngineConfig
from jaxstate.engine.desk import Desk
from jaxstate.engine.device import DeviceExecutor
from jaxstate.engine.durable import Durable, opened_keeper
from jaxstate.engine.executor import Executor
from jaxstate.engine.host import SessionHost
from jaxstate.engine.lifecycle import Lifecycle
from jaxstate.engine.loop import Loop
from jaxstate.engine.outcomes import Delivery
from jaxstate.engine.pool_size import pool_size
from jaxstate.errors import ClosedError, InvalidInput, JaxstateError
from jaxstate.model.bundle import Model
from jaxstate.records import Durability, checked_path, checked_type, shown

_log = logging.getLogger("jaxstate")


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
        cells: of the pool that all sessions share, in tokens; its memory is taken at once. None for
            as many as `memory` holds, or without that for 65,536.
        memory: instead of `cells`: the share of the device's memory that the pool may take, 0 to 1.
        session_cells: what each session may hold at most; None for all of the pool, or as many as
            the model was made for.
        sessions: how many may be on the device at once; others wait on the host. It bounds the
            memory of layers with a sliding window.
        config: bounds, and how classes of work share the device.
        warm_up: compile every step in the background, those that are needed first at the front; a
            step that is used before its turn is compiled at once (`wait_warm_up` waits for all).
            Without it a step is compiled when it is first used.
        progress: called with (compiled, all) during the warm-up, on the thread that compiles.
        journal: a directory in which everything that was acknowledged is kept: an engine that is
            started on it again has all its sessions. None for none: nothing outlives the engine.
        durability: what a push, an opened session, a registered question is to outlive before the
            call returns: "memory", "os" (the end of this process, however it ends), "fsync" (also
            a machine that loses its power). Without a journal there is only "memory".
        executor: something else than the model on the default device (for tests).
        clock: monotonic seconds (for tests).

    Raises:
        TextUnavailable: the model has no tokenizer.
        InvalidInput: an argument is out of range, or `session_cells` does not fit into `cells`.
        JournalError: the journal cannot be opened, is damaged, or another engine has it.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int | None = None,
        memory: float | None = None,
        session_cells: int | None = None,
        sessions: int = 64,
        config: EngineConfig | None = None,
        warm_up: bool = True,
        progress: Callable[[int, int], None] | None = None,
        journal: str | os.PathLike[str] | None = None,
        durability: Durability = "os",
        executor: Executor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        checked_type("model", model, Model, "what jaxstate.load gives")
        if config is not None:
            checked_type("config", config, EngineConfig, "a jaxstate.EngineConfig")
        if progress is not None and not callable(progress):
            raise InvalidInput(f"progress={shown(progress)} must be a function, or None")
        place = None if journal is None else checked_path("journal", journal)
        tokenizer, template = model.text, model.template
        self._name = model.source
        with opened_keeper(place, durability, tokenizer, template, model.source) as keeper:
            if executor is None:
                size = pool_size(model, cells, memory, session_cells, sessions)
                executor = DeviceExecutor(
                    model,
                    session_cells=size.session_cells,
                    cells=size.cells,
                    sessions=size.sessions,
                )
            desk = Desk(executor, config or EngineConfig(), clock, self._call_back, keeper)
            asker = Asker(
                tokenizer=tokenizer,
                template=template,
                limits=executor.limits,
                stop_ids=model.stop_ids,
                vocab_size=model.config.vocab_size,
                choice_temperature=model.choice_temperature,
            )
            lives = Lifecycle(desk, executor)
            super().__init__(desk, lives, asker, Durable(desk, lives, asker, executor))
        self._callback_room = threading.BoundedSemaphore(desk.config.events_limit)
        self._callbacks = ThreadPoolExecutor(1, thread_name_prefix="jaxstate-callbacks")
        self._loop = Loop(desk, executor, tokenizer)
        self._thread = threading.Thread(target=self._loop.run, name="jaxstate-loop", daemon=True)
        self._thread.start()
        self._durable.start()
        self._warm_up: WarmUp | None = None
        if warm_up and isinstance(executor, DeviceExecutor):
            self._warm_up = WarmUp(executor.warm_up, progress)
        _open.add(self)

    def wait_warm_up(self, timeout: float | None = None) -> None:
        """Waits until every step is compiled; from then on nothing compiles.

        Raises:
            TimeoutError: it takes longer than `timeout` seconds.
            JaxstateError: a step does not compile, the engine was closed meanwhile, or it was made
                with `warm_up=False`.
        """
        if self._warm_up is None:
            raise JaxstateError(
                "this engine compiles each step when it is first used; make it with warm_up=True"
            )
        self._desk.owner.check()
        self._warm_up.wait(timeout)

    def close(self) -> None:
        """Ends every session and the loop; a step under way finishes. May be called twice.

        Entries that wait are not read; with a journal, what was read goes into a last snapshot, and
        the next engine reads the rest. A callback that runs is waited for, those behind it do not
        run. Not to be called from a callback of the engine's own. A program that ends without it
        does it at its end; in a forked process there is nothing to close.
        """
        if not self._desk.owner.is_here:
            return
        _open.discard(self)
        if self._warm_up is not None:
            self._warm_up.stop()
        saving = self._durable.stop()
        if saving is not None and not self._ends(saving):
            _log.error("the last snapshot was given up: the device does not answer")
        self._loop.close(ClosedError("the engine was closed"))
        if not self._ends(self._thread):
            _log.error("the engine was closed around a step that does not end")
            self._loop.deliver()  # in its place: nobody is to wait for ever
        self._callbacks.shutdown(cancel_futures=True)
        self._desk.vault.close()
        self._durable.close()

    def _ends(self, thread: threading.Thread) -> bool:
        """Waits for a thread as long as anything goes on; False if nothing does."""
        while thread.is_alive():
            before = self._loop.turns, self._durable.pieces
            thread.join(self._desk.config.hang_s)
            if thread.is_alive() and before == (self._loop.turns, self._durable.pieces):
                return False
        return True

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._desk.ended is not None:
            return f"Engine({self._name!r}, closed)"
        gauges = self._desk.metrics().gauges
        return (
            f"Engine({self._name!r}, {gauges.sessions} sessions, {gauges.cells_held:,} of "
            f"{gauges.cells:,} cells in use)"
        )

    def _call_back(self, callback: Delivery) -> None:
        """Lets a callback run behind the others; none of them holds up the loop."""
        if self._callback_room.acquire(blocking=False):
            future = self._callbacks.submit(_logged, callback)
            future.add_done_callback(lambda _: self._callback_room.release())
            return
        _log.error("callbacks of flash queries are slower than their answers: one was dropped")
        with self._desk.lock:
            self._desk.recorder.count("callbacks_dropped")


# Engines whose program may end without closing them.
_open: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_open() -> None:
    """At the end of the program, before the threads of pools are joined, which a last snapshot
    needs."""
    for engine in tuple(_open):
        try:
            engine.close()
        except Exception:
            _log.exception("an engine could not be closed at the end of the program")


# `atexit` would come too late: by then no pool of threads takes work.
threading._register_atexit(_close_open)  # pyright: ignore


def _logged(callback: Delivery) -> None:
    try:
        callback()
    except Exception:
        _log.exception("a callback of a flash query failed")
