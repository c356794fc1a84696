"""What the loop's thread does for a session between two steps: fork, save.

Comes in: something to do and what it changes in the books. Goes out: a future. Does not know: what
is done, when.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxstate.engine.books import Book

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Job(Generic[T]):
    """Something the loop's thread does between steps.

    Attributes:
        act: it, without the lock.
        booked: what its result changes in the books.
        future: its result.
        session: which session it is for; if that is closed meanwhile, the job is not done.
        border: it waits until this session is on the device, at a version's border: no entry half
            read.
        creates: whether it makes `session`, which is closed if it fails.
        midway: an entry may be half read: it is about a version before that.
    """

    act: Callable[[], T]
    booked: Callable[[T], None]
    future: Future[T]
    session: Book
    border: Book | None = None
    creates: bool = False
    midway: bool = False

    @property
    def may_run(self) -> bool:
        """Whether what it needs is at a version's border."""
        border = self.border
        if border is None:
            return True
        residence = border.residence
        there = residence.on_device and not residence.missing and border.version >= 0
        return there and (self.midway or not (border.landing or border.queue.partly_read))

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()

    @property
    def ended(self) -> bool:
        """Whether a session that it needs was closed meanwhile."""
        return self.session.closed or (self.border is not None and self.border.closed)

    def check_open(self) -> None:
        """Refuses it if so.

        Raises:
            ClosedError: with the reason.
        """
        self.session.check_open()
        if self.border is not None:
            self.border.check_open()
