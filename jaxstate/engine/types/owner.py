"""The process that an engine belongs to.

Comes in: calls of any process. Goes out: a lock that only the process that made it can take; others
get an error at once. A fork has a copy of the engine, but none of its threads: what it left there
nobody would ever do, and locks that the threads held at that moment stay held for ever. Does not
know: what the lock guards.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

from jaxstate.errors import ClosedError


class Owner:
    """The process in which it is made."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Refuses another process.

        Raises:
            ClosedError: this is a fork.
        """
        if os.getpid() != self._pid:
            raise ClosedError(
                f"this engine belongs to process {self._pid}, and this is process {os.getpid()}, "
                "forked from it: its threads, and its device, are not here. Make an engine in each "
                "worker, after the fork"
            )


class OwnedLock:
    """A lock for one process; as `threading.Lock`, also under a `Condition`."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Takes it.

        Raises:
            ClosedError: this is another process.
        """
        self._owner.check()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Lets it go."""
        self._lock.release()

    def locked(self) -> bool:
        """Whether somebody has it."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        self._owner.check()
        return self._lock.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()
