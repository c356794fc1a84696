"""Signals that end a program, as one question or one exception.

Comes in: SIGINT, SIGTERM, SIGHUP. Goes out: `Ended`, which ends whatever runs as Ctrl-C does; or,
where something is to be finished first, an `Interrupt` that is asked when it is safe to stop. Does
not know: what is ended.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object]

# A service manager, and a terminal that goes away, end a program by these.
_ENDING = tuple(
    found for name in ("SIGTERM", "SIGHUP") if (found := getattr(signal, name, None)) is not None
)


class Ended(KeyboardInterrupt):
    """A signal has come that ends the program.

    Attributes:
        exit_code: 128 and its number, as a shell tells it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs in the block as Ctrl-C does."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(number)

    with _handled(_ENDING, end):
        yield


class Interrupt:
    """The end as a question that is asked between entries, so that none is half read.

    Attributes:
        exit_code: of the signal that came; 0 before.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    @property
    def pressed(self) -> bool:
        """Whether the program is to end."""
        return self.exit_code > 0

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to be begun: a service manager, or a terminal that is gone, waits
        for the end. Who pressed Ctrl-C still wants the answers, and may press it again."""
        return self.pressed and self.exit_code != 128 + signal.SIGINT

    def press(self, number: int, _frame: FrameType | None) -> None:
        """Notes the first Ctrl-C or other such signal; a second one stops at once."""
        if self.pressed:
            raise Ended(number)
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a question that the caller asks when it is safe to
    stop."""
    interrupt = Interrupt()
    with _handled((signal.SIGINT, *_ENDING), interrupt.press):
        yield interrupt


@contextmanager
def _handled(signals: tuple[int, ...], handler: Handler) -> Iterator[None]:
    """Handles signals in the block, but not those that are to be ignored (`nohup`)."""
    with ExitStack() as stack:
        for number in signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, handler))
        yield
