"""Time that passes only when somebody says so.

Comes in: seconds to let pass. Goes out: the time. Does not know: the real one.
"""

from __future__ import annotations


class FakeClock:
    """Monotonic seconds, from 0.

    Attributes:
        now_s: the time.
    """

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time, as an engine's `clock`."""
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        """Lets time pass."""
        assert seconds >= 0, "time does not run backwards"
        self.now_s += seconds
