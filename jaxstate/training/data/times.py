"""Clocks as people write them.

Comes in: a random number generator. Goes out: one time after the other, all in one style. Does not
know: what happens at those times.
"""

from __future__ import annotations

import datetime as dt
import random

_DAYS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%d %b %Y",
    "%b %d %Y",
    "%B %d, %Y",
    "%Y%m%d",
    "%a %Y-%m-%d",
)
_MOMENTS = (
    "%H:%M",
    "%H:%M",
    "%H:%M:%S",
    "[%H:%M:%S]",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%b %d %H:%M:%S",
    "%d/%m/%Y %H:%M",
)
_COUNTERS = ("{n}", "#{n}", "bar {n}", "t={n}", "step {n}", "day {n}", "T+{n}", "no. {n}")


class Clock:
    """Gives times that only go forward, mostly in even steps.

    Args:
        rng: decides about the style.
        daily: whether a step is a day (weekends are skipped) or a shorter time.
    """

    def __init__(self, rng: random.Random, *, daily: bool) -> None:
        self._rng = rng
        self.kind = "day" if daily else "moment"
        self._now = dt.datetime(1990, 1, 1) + dt.timedelta(
            days=rng.randrange(16_000), seconds=60 * rng.randrange(1440)
        )
        self._style = rng.choice(_DAYS if daily else _MOMENTS)
        self._step_s = rng.choice((1, 5, 10, 15, 30, 60, 60, 60, 120, 300, 300, 900, 3600))
        if "%S" not in self._style:
            self._step_s = max(60, self._step_s)
        self._jitter = rng.random() < 0.25
        self._when: dict[str, dt.datetime] = {}
        self._moments: dict[str, int] = {}
        if rng.random() < 0.12:
            self.kind, self._style = "number", rng.choice(_COUNTERS)
        self._n = rng.choice((0, 1, 1, rng.randrange(1000), 1_400_000_000 + rng.randrange(10**8)))

    def tick(self) -> str:
        """The next time, as it is written."""
        if self.kind == "number":
            self._n += 1 if self._n < 10**6 else self._step_s
            return self._style.format(n=self._n)
        if self.kind == "day":
            self._now += dt.timedelta(days=3 if self._now.weekday() == 4 else 1)
        else:
            steps = self._rng.randint(1, 4) if self._jitter else 1
            self._now += dt.timedelta(seconds=self._step_s * steps)
        shown = self._now.strftime(self._style)
        self._when[shown] = self._now
        moment = self._now.strftime("%H:%M")
        self._moments[moment] = self._moments.get(moment, 0) + 1
        return shown

    def absent(self) -> str:
        """A time that no entry has: long before the first one."""
        if self.kind == "number":
            return self._style.format(n=self._n + 1000 + self._rng.randrange(1000))
        then = self._now + dt.timedelta(days=400 + self._rng.randrange(3000))
        return then.strftime(self._style)

    def asked(self, time: str) -> str:
        """The time as a question may put it: mostly as it stands there, sometimes a day in other
        words, or only the part of the day where that says it all."""
        when = self._when.get(time)
        if when is None or self._rng.random() < 0.8:
            return time.strip("[]")
        if self.kind == "day":
            return when.strftime(self._rng.choice(_DAYS[:1] + _DAYS[4:7]))
        moment = when.strftime("%H:%M")
        return moment if self._moments[moment] == 1 else time.strip("[]")

    def on(self, asked: str) -> str:
        """The time with what stands before it in a question."""
        if self.kind == "number" and not asked[0].isdigit() and not asked.startswith("#"):
            return f"at {asked}"
        return f"{'on' if self.kind == 'day' else 'at'} {asked}"
