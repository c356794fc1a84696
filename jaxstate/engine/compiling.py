"""An engine's steps, compiled while the engine works.

Comes in: something that compiles steps one after the other, those that are needed first at the
front. Goes out: nothing; a step that is used before its turn is compiled by whoever uses it. Does
not know: which steps there are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from jaxstate.errors import JaxstateError

Progress = Callable[[int, int], None]

_log = logging.getLogger("jaxstate")


class WarmUp:
    """A thread that compiles in the background.

    Args:
        compile_steps: compiles all, calls the first argument with (compiled, all) after each, and
            stops early once the second returns True.
        progress: is called on that thread.
    """

    def __init__(
        self,
        compile_steps: Callable[[Progress, Callable[[], bool]], None],
        progress: Progress | None,
    ) -> None:
        self._compile, self._progress = compile_steps, progress
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="jaxstate-compiler", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None) -> None:
        """Waits until everything is compiled.

        Raises:
            TimeoutError: it takes longer.
            JaxstateError: a step does not compile, or the engine was closed meanwhile.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the engine's steps are not all compiled after {timeout} s")
        if self._error is not None:
            raise JaxstateError(f"a step does not compile: {self._error}") from self._error
        if self._stopped.is_set():
            raise JaxstateError("the engine was closed before all of its steps were compiled")

    def stop(self) -> None:
        """Ends it; a step that is being compiled is waited for."""
        if not self._ended.is_set():
            self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._compile(self._progress or _nothing, self._stopped.is_set)
        except Exception as error:
            _log.exception("a step does not compile; whoever uses it will see why")
            self._error = error
        finally:
            self._ended.set()


def _nothing(done: int, total: int) -> None:
    """Progress that nobody wants to see."""
