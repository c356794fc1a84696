"""What it costs that nothing acknowledged is lost, and what a restart costs after that.

    python scripts/bench_durable.py [--path DIRECTORY] [--quick] [--plot FILE.png]

Three things are measured, on one disk:

- **Pushes**: how many a second are acknowledged, and how long each waits, at the levels "memory",
  "os" and "fsync", from 1, 4 and 16 threads, beside an engine without a journal (the floor) and
  beside a loop of INSERT and COMMIT in plain SQLite (WAL, synchronous=NORMAL, which is "os", and
  FULL, which is "fsync"). Entries have 80 bytes. The device is a fake that computes nothing. All
  ways take turns in several rounds; figures are medians over rounds. `written/s` counts until all
  that was acknowledged is in the journal.
- **Snapshots**: how long the first of a session takes, and the next after 16 more entries, against
  the session's cells; and from `Engine(journal=...)` to the first answer, beside an engine on the
  same journal that has to read everything again.
- **Restarts**: from there to the first answer, against the tokens that came after the last
  snapshot.

Restarts happen within this process: the model is loaded, its steps are compiled, and files are in
the page cache. If more is read again than no snapshot holds, the exit code is 1. The last line of
the output is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from durable_pushes import NO_JOURNAL, Pushes, all_ways, measure
from durable_restarts import Restart, Rig, Snapshots, TimedDevice, by_cells, by_rest
from random_models import SHAPES, random_model
from rich.console import Console
from rich.table import Table

import jaxstate
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.records import JsonValue
from jaxstate.steps.compiled import compilations
from jaxstate.testing import tiny_config, tiny_model

TINY = "tiny"
# What comes on top of the largest session: next snapshots, and the session's own ends.
SLACK_CELLS = 2048


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured, where nobody says otherwise."""

    model: str
    threads: tuple[int, ...]
    rounds: int
    seconds: float
    cells: tuple[int, ...]
    rest_cells: int
    rests: tuple[int, ...]
    repeats: int


FULL = Sizes(
    model="gemma3-270m",
    threads=(1, 4, 16),
    rounds=7,
    seconds=0.5,
    cells=(256, 1024, 4096, 16_384),
    rest_cells=1024,
    rests=(0, 64, 512, 4096),
    repeats=3,
)
QUICK = Sizes(
    model=TINY,
    threads=(1, 4),
    rounds=1,
    seconds=0.05,
    cells=(64, 256),
    rest_cells=64,
    rests=(0, 64, 256),
    repeats=1,
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was measured."""

    pushes: list[Pushes]
    snapshots: list[Snapshots]
    comebacks: list[Restart]
    rests: list[Restart]
    compiled: int

    @property
    def wrong(self) -> list[Restart]:
        """Restarts that read again what a snapshot held, or not all of what none did."""
        return [one for one in (*self.comebacks, *self.rests) if not one.right]


def main() -> int:
    """Measures, prints the tables and the JSON; 1 if a restart read too much."""
    options = _options()
    use_compilation_cache()
    console = Console(width=None if sys.stdout.isatty() else 150)
    sizes = QUICK if options.quick else FULL
    folder = Path(tempfile.mkdtemp(prefix="bench-durable-", dir=options.path))
    try:
        setting = _setting(options, folder)
        console.print("device {device}, disk {disk}, {cores} cores".format(**setting))
        found = _measured(options, sizes, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for table in (_pushes(found), _snapshots(found), _restarts(found)):
        console.print(table)
    _print_verdict(console, found)
    if options.plot:
        _plot(found, options.plot)
    report = json.dumps(_report(setting, found))
    if options.json:
        options.json.write_text(report + "\n", encoding="utf-8")
    print(report)
    return 1 if found.wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, help="a directory on the disk that is measured")
    parser.add_argument("--quick", action="store_true", help="whether it works: the tiny model")
    parser.add_argument("--model", help=f'"{TINY}", or as for jaxstate.load; gemma3-270m')
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None)
    parser.add_argument("--cells", type=_counts, metavar="N,N...", help="of sessions")
    parser.add_argument(
        "--snapshot-bytes",
        type=int,
        default=jaxstate.EngineConfig().snapshot_bytes,
        help="of one piece",
    )
    parser.add_argument("--json", type=Path, help="also write the JSON there")
    parser.add_argument("--plot", type=Path, help="a PNG of restarts")
    return parser.parse_args()


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


def _measured(options: argparse.Namespace, sizes: Sizes, folder: Path) -> Found:
    pushes = measure(
        folder,
        all_ways(sizes.threads),
        sizes.rounds,
        sizes.seconds,
        lambda number: _say(f"pushes, round {number} of {sizes.rounds}"),
    )
    counts = options.cells or sizes.cells
    rig = _rig(options, sizes, counts, folder)
    _say("compiling")
    # What runs for the first time is slower than later: not what is measured here.
    by_rest(rig, min(counts), (0, max(sizes.rests)))
    by_cells(rig, min(counts))
    before, snapshots, comebacks = compilations(), list[Snapshots](), list[Restart]()
    for cells in counts:
        _say(f"{cells} cells")
        taken, backs = by_cells(rig, cells)
        snapshots.append(taken)
        comebacks += backs
    _say("tokens after a snapshot")
    return Found(
        pushes=pushes,
        snapshots=snapshots,
        comebacks=comebacks,
        rests=by_rest(rig, sizes.rest_cells, sizes.rests),
        compiled=compilations() - before,
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _rig(options: argparse.Namespace, sizes: Sizes, counts: Sequence[int], folder: Path) -> Rig:
    model = _model(options, sizes)
    most = max(*counts, sizes.rest_cells + max(sizes.rests)) + SLACK_CELLS
    device = TimedDevice(model, session_cells=most, cells=most, sessions=1)
    return Rig(
        model=model,
        device=device,
        folder=folder,
        snapshot_bytes=options.snapshot_bytes,
        repeats=sizes.repeats,
    )


def _model(options: argparse.Namespace, sizes: Sizes) -> jaxstate.Model:
    if options.shape is not None:
        return random_model(options.shape, options.dtype or "bfloat16")
    name = options.model or sizes.model
    if name == TINY:
        return tiny_model(tiny_config(max_context=32_768), dtype=options.dtype or "float32")
    return jaxstate.load(name, dtype=options.dtype)


def _setting(options: argparse.Namespace, folder: Path) -> dict[str, JsonValue]:
    shown = {name: str(one) for name, one in sorted(vars(options).items()) if name != "path"}
    return {
        "bench": "durable",
        "device": jax.devices()[0].device_kind,
        "disk": file_system(folder),
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "options": shown,
    }


def file_system(path: Path) -> str:
    """Kind and device of what a path lies on; "unknown" where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    under = [one for one in mounts if path.resolve().is_relative_to(one[1])]
    device, _, kind, *_ = max(under, key=lambda one: len(one[1]))
    return f"{kind} on {device}"


def _report(setting: dict[str, JsonValue], found: Found) -> dict[str, JsonValue]:
    fields = ("pushes", "snapshots", "comebacks", "rests")
    rows = {name: [dataclasses.asdict(one) for one in getattr(found, name)] for name in fields}
    return {**setting, **rows, "compiled": found.compiled, "wrong": len(found.wrong)}


def _pushes(found: Found) -> Table:
    table = Table(title="pushes of 80-byte entries: acknowledged a second, and the wait for it, ms")
    table.add_column("")
    for name in ("threads", "entries", "numbered", "pushes/s", "written/s", "p50", "p99"):
        table.add_column(name, justify="right")
    table.add_column("slowest", justify="right")
    for one in found.pushes:
        way = one.way
        table.add_row(
            way.keeper,
            f"{way.threads}",
            f"{way.batch}",
            "yes" if way.numbered else "",
            f"{one.per_s:,.0f}",
            "" if way.keeper == NO_JOURNAL else f"{one.written_per_s:,.0f}",
            f"{one.p50_ms:,.3f}",
            "-" if one.p99_ms is None else f"{one.p99_ms:,.3f}",
            f"{one.slowest_ms:,.1f}",
        )
    return table


def _snapshots(found: Found) -> Table:
    table = Table(title="snapshots, and from Engine(journal=...) to the first answer, seconds")
    for name in ("cells", "first", "next", "writing", "MB first", "MB next", "question alone"):
        table.add_column(name, justify="right")
    for name in ("closed", "opening", "reading", "placing", "no snapshot"):
        table.add_column(name, justify="right")
    for one, back, bare in zip(
        found.snapshots, found.comebacks[::2], found.comebacks[1::2], strict=True
    ):
        sizes = (f"{size / 1e6:,.1f}" for size in (one.bytes_first, one.bytes_next))
        times = (one.ask_s, back.answer_s, back.open_s, back.load_s, back.place_s, bare.answer_s)
        table.add_row(
            f"{one.cells:,}",
            *(f"{seconds:.3f}" for seconds in (one.first_s, one.next_s, one.save_s)),
            *sizes,
            *(f"{seconds:.3f}" for seconds in times),
        )
    return table


def _restarts(found: Found) -> Table:
    table = Table(title="restarts: tokens read again, and seconds to the first answer")
    table.add_column("")
    for name in ("cells", "not in a snapshot", "read again", "opening", "reading", "placing"):
        table.add_column(name, justify="right")
    table.add_column("first answer", justify="right")
    for one in (*found.comebacks, *found.rests):
        times = (one.open_s, one.load_s, one.place_s, one.answer_s)
        table.add_row(
            one.how,
            f"{one.cells:,}",
            f"{one.after:,}",
            f"{one.reread:,}",
            *(f"{seconds:.3f}" for seconds in times),
        )
    return table


def _print_verdict(console: Console, found: Found) -> None:
    backs = (*found.comebacks, *found.rests)
    console.print(
        f"the same answer as before: {sum(one.same for one in backs)} of {len(backs)}; compiled "
        f"meanwhile: {found.compiled}"
    )
    for one in found.wrong:
        console.print(
            f"FAILED: {one.how} at {one.cells} cells: {one.reread} tokens were read again, and "
            f"{one.after} were in no snapshot"
        )


def _plot(found: Found, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    for way, style in (("closed", "o-"), ("no snapshot", "s--")):
        backs = [one for one in found.comebacks if one.how == way]
        left.plot([one.cells for one in backs], [one.answer_s for one in backs], style, label=way)
    cells = [one.cells for one in found.snapshots]
    left.plot(cells, [one.next_s for one in found.snapshots], "^:", label="taking a snapshot")
    left.set(xscale="log", yscale="log", xlabel="cells", ylabel="seconds")
    left.set(title="from Engine(journal=...) to the first answer")
    left.legend()
    right.plot([one.reread for one in found.rests], [one.answer_s for one in found.rests], "o-")
    right.set(xlabel="tokens after the last snapshot", title="the same, after a kill")
    right.set_ylim(bottom=0)
    for plot in (left, right):
        plot.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
