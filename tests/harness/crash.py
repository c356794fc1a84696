"""An engine that is killed again and again: what it acknowledged is there, once, and in order.

Comes in: how many kills, a seed. Goes out: a `CrashReport`: what was done, and whatever is broken.
Each life of the engine is a process; its clients say what they are about to do and what came of it
(`crash_clients`), so that after the kill it is known what was sent and what was acknowledged
(`crash_known`). Then the journal is looked at (`crash_check`), and the next life has to show that
its sessions have read exactly that (`crash_shown`). Threads make the order, so a seed replays what
clients want and when they are killed, not more. Does not know: machines that lose their power.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from jaxstate.records import Durability
from tests.harness.crash_check import JournalCheck
from tests.harness.crash_devices import CrashDevice
from tests.harness.crash_known import Known, Report, Stream
from tests.harness.crash_nursery import Nursery
from tests.harness.crash_shown import Uninterrupted

# When a life is to end: some time after it began ("start": mostly while it comes back), after its
# clients began ("work"), after some piece of a snapshot began to be written ("save"), or after it
# began to be closed ("close"); "none": it is closed, and ends by itself.
Moment: TypeAlias = Literal["start", "work", "save", "close", "none"]

_MOMENTS: dict[Moment, int] = {"work": 9, "start": 4, "save": 4, "close": 3}
_SIGN: dict[Moment, str] = {"start": "born", "work": "ready", "save": "saving", "close": "closing"}
# The tiny model's clients wait until a process has loaded what others compiled.
_WORK_S: dict[CrashDevice, float] = {"fake": 0.3, "tiny": 1.0}
_SAVE_S, _CLOSE_S = 0.004, 0.02
_MOST_SAVES = 20
# A life that does not save as often as was wanted is killed so long after its clients began.
_PATIENCE_S = 2.0
_STUCK_S = 90.0
_CLIENTS_TELL = {"op", "ok", "no", "saw"}
_FOREVER_S = 200.0
# Acknowledged pushes that are repeated after each start.
_AGAIN = 6
_CHECKED_WHOLE = 25


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How a life is to end.

    Attributes:
        moment: after what.
        delay_s: how long after it.
        saves: after how many pieces.
        act_s: how long clients act before the engine is closed.
        hold_up: whether the disk is slow now and then.
    """

    moment: Moment
    delay_s: float = 0.0
    saves: int = 1
    act_s: float = _FOREVER_S
    hold_up: bool = False


@dataclass
class CrashReport:
    """What a crash test did.

    Attributes:
        kills: by moment.
        counts: everything that was counted.
        seconds: that it took.
        broken: what must not happen, in words.
    """

    kills: Counter[str] = field(default_factory=Counter[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


class CrashTest:
    """Kills engines on one journal.

    Args:
        kills: how many.
        seed: decides what clients want, and when they are killed.
        device: "fake", or "tiny" for a model with random weights.
        level: of all that is acknowledged; at "memory" the newest may be lost.
        path: of the journal; None for a directory that is removed.
    """

    def __init__(
        self,
        *,
        kills: int,
        seed: int = 0,
        device: CrashDevice = "fake",
        level: Durability = "os",
        path: Path | None = None,
    ) -> None:
        self._kills = kills
        self._random = random.Random(seed)
        self._seed = seed
        self._device: CrashDevice = device
        self._level: Durability = level
        self._path = path
        self._report = CrashReport()
        self._known = Known(self._broke)
        self._expected = Uninterrupted(device)
        self._lives = 0
        # How long a life takes until its clients begin, as far as is known.
        self._start_s = 0.2

    def run(self, progress: Callable[[int], None] | None = None) -> CrashReport:
        """Kills, and looks; two lives at the end are not killed. Ends early if something breaks.

        Args:
            progress: called with the number of kills so far.
        """
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, Nursery(Path(folder)) as nursery:
            journal = self._path or Path(folder) / "journal"
            if self._device == "tiny":
                # Compiles all steps for those that come after.
                self._live(nursery, Path(folder) / "other", Fate(moment="none", act_s=0.0))
            while self._report.kills.total() < self._kills and not self._report.broken:
                self._live(nursery, journal, self._fate())
                if progress is not None:
                    progress(self._report.kills.total())
            for _ in range(2):
                self._live(nursery, journal, Fate(moment="none", act_s=0.0))
            self._look(journal, everything=True)
            if self._report.broken:
                self._broke(nursery.errors())
        self._report.seconds = time.monotonic() - began_s
        return self._sum_up()

    def _sum_up(self) -> CrashReport:
        report, counts = self._report, self._known.counts
        report.counts.update(counts)
        if not report.counts["sessions back from a snapshot"]:
            self._broke("no session ever came back from a snapshot: this has tested nothing")
        if not counts["entries acknowledged"]:
            self._broke("no entry was ever acknowledged: this has tested nothing")
        report.broken = list(filter(None, report.broken))
        return report

    def _broke(self, what: str) -> None:
        self._report.broken.append(what)

    def _fate(self) -> Fate:
        (moment,) = self._random.choices(list(_MOMENTS), list(_MOMENTS.values()))
        spans: dict[Moment, float] = {
            "start": 1.2 * self._start_s,
            "work": _WORK_S[self._device],
            "save": _SAVE_S,
            "close": _CLOSE_S,
        }
        share, closes = self._random.random(), moment == "close"
        return Fate(
            moment=moment,
            delay_s=share * spans[moment],
            saves=self._random.randint(1, _MOST_SAVES),
            act_s=self._random.random() * spans["work"] if closes else _FOREVER_S,
            hold_up=self._random.random() < 0.5,
        )

    def _live(self, nursery: Nursery, journal: Path, fate: Fate) -> None:
        """One life, and a look at what it left."""
        self._lives += 1
        nursery.order(self._order(journal, fate))
        killed, ended = self._watch(nursery, fate)
        self._known.killed()
        if ended["by_itself"] and ended["status"] == 0:
            self._report.counts["ended by themselves"] += 1
        elif killed:
            self._report.kills[fate.moment] += 1
        else:
            self._broke(f"life {self._lives} ended by itself, with status {ended['status']}")
        self._look(journal, everything=self._lives % _CHECKED_WHOLE == 0)

    def _look(self, journal: Path, *, everything: bool) -> None:
        JournalCheck(journal, self._known, self._level, self._broke).run(everything=everything)

    def _order(self, journal: Path, fate: Fate) -> dict[str, object]:
        return {
            "path": str(journal),
            "device": self._device,
            "level": self._level,
            "seed": self._seed,
            "life": self._lives,
            "seqs": self._known.seqs,
            "repeat": self._repeats(),
            "show": True,
            "act_s": fate.act_s,
            "hold_up": fate.hold_up,
            "warm_up": self._lives == 1,
        }

    def _repeats(self) -> list[tuple[str, str, int, tuple[str, ...]]]:
        """Pushes that nobody knows to be there, in the order of each client, and a few others."""
        sent = [
            (stream.name, *push, one.texts, one.missed)
            for stream in self._known.open
            for push, one in sorted(stream.pushes.items())
        ]
        missed = [one[:4] for one in sent if one[4]]
        there = [one[:4] for one in sent if not one[4]]
        newest = there[-_AGAIN // 2 :]
        return missed + self._random.sample(there, min(len(there), _AGAIN)) + newest

    def _watch(self, nursery: Nursery, fate: Fate) -> tuple[bool, Report]:
        """Takes reports until the process has ended; whether it was killed, and its end."""
        due_s, saves, killed = math.inf, 0, False
        born_s, stuck_s = time.monotonic(), time.monotonic() + _STUCK_S
        while True:
            report = nursery.read(min(due_s, stuck_s))
            now_s = time.monotonic()
            if report is None:
                if now_s >= stuck_s:
                    self._broke(f"life {self._lives} is stuck ({fate})")
                    stuck_s = math.inf
                killed, due_s = nursery.kill() or killed, math.inf
                continue
            if "ended" in report:
                return killed, report
            self._told(report)
            saves += "saving" in report
            if "ready" in report:
                self._start_s = 0.9 * self._start_s + 0.1 * (now_s - born_s)
                if fate.moment == "save":
                    due_s = min(due_s, now_s + _PATIENCE_S)
            if _SIGN.get(fate.moment) in report and (fate.moment != "save" or saves == fate.saves):
                due_s = min(due_s, now_s + fate.delay_s)

    def _told(self, report: Report) -> None:
        if not _CLIENTS_TELL.isdisjoint(report):
            self._known.told(report)
        elif "broken" in report:
            self._broke(f"life {self._lives}: {report['broken']}")
        elif "up" in report:
            self._came_back(report)
        elif "shown" in report:
            self._shown(report)
        elif "saving" in report:
            self._report.counts["pieces of snapshots"] += 1

    def _came_back(self, report: Report) -> None:
        """What the engine says of its recovery."""
        recovery = report["up"]
        self._report.counts["recoveries"] += 1
        for what in (*recovery["failed"], *recovery["set_aside"]):
            self._broke(f"recovery: {what}")
        wanted = {stream.name: stream for stream in self._known.open}
        back = {one["id"]: one for one in recovery["sessions"]}
        if back.keys() != wanted.keys() or report["flashes"].keys() != wanted.keys():
            self._broke(f"sessions {sorted(back)} came back instead of {sorted(wanted)}")
            return
        for name, stream in wanted.items():
            self._session_back(stream, back[name])
            registered = {question for question, there in stream.flashes.items() if there}
            if set(report["flashes"][name]) != registered:
                self._broke(f"session {name} asks {report['flashes'][name]}, not {registered}")

    def _session_back(self, stream: Stream, back: Report) -> None:
        counts, tokens = self._report.counts, len(self._expected.tokens(stream))
        to_read = back["tokens_to_read"]
        if back["last"] != stream.last or not 0 <= to_read <= tokens:
            self._broke(f"session {stream.name} came back as {back}; its last is {stream.last}")
        counts["sessions back"] += 1
        counts["sessions back from a snapshot"] += back["version"] >= 0
        counts["tokens held in snapshots"] += tokens - to_read
        counts["tokens to read again"] += to_read

    def _shown(self, report: Report) -> None:
        self._report.counts["sessions shown"] += 1
        difference = self._expected.difference(self._known.streams[report["shown"]], report)
        if difference is not None:
            self._broke(f"session {report['shown']}: {difference}")
