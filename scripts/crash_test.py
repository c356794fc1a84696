"""Kills engines at random moments: scripts/crash_test.py [--kills 300] [--level fsync] [--seed 0].

Clients push with their own numbers, open, fork and close sessions, register and forget questions,
on an engine with a journal, in a process that is killed (SIGKILL) while it works, while it writes
snapshots, while it is closed, and while it comes back. After each kill the journal must hold every
acknowledged entry once, in order, and none that was never sent; and what comes back must have read
exactly that: on the fake device the tokens in its cells are compared, on the tiny model answers,
with those of an uninterrupted run. At the level "memory" the newest entries may be lost. Exit code
1 if anything is broken. Threads make the order: the same seed kills at the same moments, and its
clients want the same, but what they get may differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

from rich.progress import Progress

from jaxstate.records import LEVELS
from tests.harness.crash import CrashReport, CrashTest
from tests.harness.crash_devices import CrashDevice


def main() -> int:
    """Kills; 1 if a promise was broken."""
    options = _options()
    test = CrashTest(
        kills=options.kills,
        seed=options.seed,
        device=options.device,
        level=options.level,
        path=options.path,
    )
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("killing", total=options.kills)
        report = test.run(lambda kills: progress.update(task, completed=kills))
    _print(report)
    if report.broken:
        print(f"BROKEN; to try again: {_again(options)}")
    print(json.dumps(_facts(options, report)))
    return 1 if report.broken else 0


def _print(report: CrashReport) -> None:
    rows = {f"kills, {moment}": count for moment, count in report.kills.items()}
    rows = {"kills": report.kills.total(), **rows, **dict(sorted(report.counts.items()))}
    for name, count in rows.items():
        print(f"{name:<40}{count:>10,}")
    print(f"{'seconds':<40}{report.seconds:>10,.1f}")
    for one in report.broken:
        print(f"broken: {one}")


def _facts(options: argparse.Namespace, report: CrashReport) -> dict[str, object]:
    asked = {name: getattr(options, name) for name in ("kills", "seed", "device", "level")}
    return {"asked": asked, **vars(report)}


def _again(options: argparse.Namespace) -> str:
    return (
        f"scripts/crash_test.py --kills {options.kills} --seed {options.seed} "
        f"--device {options.device} --level {options.level}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=get_args(CrashDevice), default="fake")
    parser.add_argument("--level", choices=LEVELS, default="os")
    parser.add_argument("--path", type=Path, help="of the journal, which stays; else it is removed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
