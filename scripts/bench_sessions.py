"""Many sessions on one device: what steps that serve several of them at once are worth.

    python scripts/bench_sessions.py [--sessions 1,4,16,64,256] [--seconds 20] [--plot FILE.png]

Every session opens with the same prefix, has two registered questions (one free, one with choices),
and gets ticks. For each number of sessions two things are measured, once with steps that serve
several sessions (`grouped`) and once with steps that serve one each (`one by one`), on the same
device, with equal pools and equal work:

- **Throughput**: every session gets a tick; when all are read and all registered questions are
  answered again, everybody is asked a question that nobody registered. That is one round; there is
  always work for all.
- **Latency**: every session gets a tick each `--every-s` seconds, spread evenly, and somebody asks
  a random session `--asks-per-s` times a second: half of the time a registered question. Times run
  from the call to the answer. A device that cannot keep up shows as growing times.

Flash hits are reported apart from computed answers. `stale` is the time from a commit to the flash
answers of that version. p99 needs 100 values, otherwise there is a dash. The last line of the
output is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
from random_models import SHAPES, random_model
from rich.console import Console
from rich.table import Table

import jaxstate
from jaxstate.config import StepConfig
from jaxstate.engine.core.metrics import HistogramRecord
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.records import JsonValue
from jaxstate.testing import tiny_config, tiny_model

WAYS = ("grouped", "one by one")
FREE, CHOICES, OTHER = "last price?", "is it up?", "first price?"
PREFIX = "Prices of one instrument, a line each: time, price, and where it went. " * 2
STEPS = StepConfig(
    block_cells=16,
    extend_tokens=(16, 512),
    step_sessions=(1, 8, 64),
    question_tokens=(16, 32),
    tail_cells=(32, 64),
    question_rows=(1, 8, 32),
    step_tokens=1024,
    choice_tokens=(8,),
    tail_block_cells=16,
    tail_blocks=512,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of sessions, one way."""

    sessions: int
    way: str
    ticks_per_s: float
    tokens_per_s: float
    answers_per_s: float
    steps_per_s: float
    cells_held: int
    hit_ms: tuple[float | None, float | None]
    computed_ms: tuple[float | None, float | None]
    stale_ms: tuple[float | None, float | None]
    lag_ms: tuple[float | None, float | None]
    behind: int


@dataclass
class Heard:
    """Latencies of answers, by where they came from, and asks that were not answered in time."""

    hits_s: list[float] = field(default_factory=list)
    computed_s: list[float] = field(default_factory=list)
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A device whose steps are compiled, and the model that they are of."""

    device: DeviceExecutor
    model: jaxstate.Model

    def engine(self) -> jaxstate.Engine:
        """A new engine on that device."""
        return jaxstate.Engine(self.model, executor=self.device)


def main() -> int:
    """Measures, prints the table, the gain, and JSON."""
    options = _options()
    use_compilation_cache()
    console, rows = Console(width=None if sys.stdout.isatty() else 150), list[Row]()
    for way in WAYS:
        rows += _runs(options, way, console)
    console.print(_table(rows))
    gains = _gains(rows)
    for count, gain in gains.items():
        console.print(f"{count} sessions: {gain:.1f} x the throughput of one by one")
    report = _report(options, rows, gains)
    if options.plot:
        _plot(rows, options.plot)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0


def _runs(options: argparse.Namespace, way: str, console: Console) -> list[Row]:
    """All numbers of sessions, one way; its pool is gone afterwards."""
    most = options.most_alone if way == "one by one" else max(options.sessions)
    counts = [count for count in options.sessions if count <= most]
    rows = list[Row]()
    if not counts:
        return rows
    rig = _rig(options, way, console)
    for count in counts:
        rows.append(_measure(options, rig, way, count))
        console.print(_line(rows[-1]), highlight=False)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sessions", type=_counts, default=(1, 4, 16, 64, 256), metavar="N,N...", help="how many"
    )
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of tiny")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights; float32 for the tiny model, bfloat16 for others",
    )
    parser.add_argument("--session-cells", type=int, default=512)
    parser.add_argument("--rounds-s", type=float, default=5.0, help="of throughput, at least")
    parser.add_argument("--seconds", type=float, default=20.0, help="of latency")
    parser.add_argument("--every-s", type=float, default=5.0, help="between ticks of a session")
    parser.add_argument("--asks-per-s", type=float, default=20.0)
    parser.add_argument("--most-alone", type=int, default=256, help="sessions one by one, at most")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--plot", type=Path, help="a PNG of latency against sessions")
    return parser.parse_args()


def _counts(text: str) -> tuple[int, ...]:
    """Numbers of sessions, each once, in the order given."""
    try:
        counts = tuple(dict.fromkeys(int(one) for one in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1,4,16") from None
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: each number must be at least 1")
    return counts


def _rig(options: argparse.Namespace, way: str, console: Console) -> Rig:
    """One pool for all runs of one way, with every step compiled."""
    model, most = _model(options, way), max(options.sessions)
    device = DeviceExecutor(
        model,
        session_cells=options.session_cells,
        cells=most * options.session_cells,
        sessions=most,
    )
    began_s = time.perf_counter()
    device.warm_up()
    console.print(f"{way}: {len(device.specs())} steps in {time.perf_counter() - began_s:.0f} s")
    return Rig(device=device, model=model)


def _model(options: argparse.Namespace, way: str) -> jaxstate.Model:
    steps = STEPS if way == "grouped" else dataclasses.replace(STEPS, step_sessions=(1,))
    if options.shape is None:
        config = tiny_config(max_context=8192)
        return tiny_model(config, steps=steps, dtype=options.dtype or "float32")
    model = random_model(options.shape, options.dtype or "bfloat16")
    return dataclasses.replace(model, steps=steps)


def _measure(options: argparse.Namespace, rig: Rig, way: str, count: int) -> Row:
    with rig.engine() as engine:
        sessions = _opened(engine, count)
        began = engine.metrics()
        ticks, took_s = _rounds(engine, sessions, options.rounds_s)
        ended = engine.metrics()
    with rig.engine() as engine:
        sessions = _opened(engine, count)
        heard = _paced(options, sessions)
        paced = engine.metrics()
        behind = sum(session.info().pending for session in sessions)
    answers = ended.counts.flash_answers - began.counts.flash_answers + ticks
    steps = sum(ended.step_s[w].count - began.step_s[w].count for w in ended.step_s)
    tokens = ended.counts.tokens_ingested - began.counts.tokens_ingested
    return Row(
        sessions=count,
        way=way,
        ticks_per_s=ticks / took_s,
        tokens_per_s=tokens / took_s,
        answers_per_s=answers / took_s,
        steps_per_s=steps / took_s,
        cells_held=ended.gauges.cells_held,
        hit_ms=_of_values(heard.hits_s),
        computed_ms=_of_values(heard.computed_s),
        stale_ms=_of_record(paced.flash_refresh_s),
        lag_ms=_of_record(paced.lag_s),
        behind=behind + heard.missing,
    )


def _opened(engine: jaxstate.Engine, count: int) -> list[jaxstate.Session]:
    """Sessions that have read their prefix and answered their questions once."""
    sessions = [engine.open(prefix=PREFIX) for _ in range(count)]
    for session in sessions:
        session.flash(FREE, max_tokens=4)
        session.flash(CHOICES, choices=["yes", "no"])
    for session in sessions:
        session.wait_fresh()
    return sessions


def _rounds(
    engine: jaxstate.Engine, sessions: Sequence[jaxstate.Session], least_s: float
) -> tuple[int, float]:
    """Ticks that were read, answered and asked about; seconds."""
    ticks, began_s, number = 0, time.perf_counter(), 0
    room = sessions[0].info().cells - sessions[0].info().tokens
    most = room // (len(_tick(0)) + 1) - 1
    while time.perf_counter() - began_s < least_s and number < most:
        for session in sessions:
            session.push(_tick(number))
        for session in sessions:
            session.wait_fresh()
        engine.ask_many(OTHER, sessions, max_tokens=4)
        ticks, number = ticks + len(sessions), number + 1
    return ticks, time.perf_counter() - began_s


def _paced(options: argparse.Namespace, sessions: Sequence[jaxstate.Session]) -> Heard:
    """Ticks and asks at their times; waits at the end for what is still under way, but not long."""
    heard, asked = Heard(), list[tuple[str, AskFuture]]()
    rng, began_s = random.Random(1), time.perf_counter()
    for at_s, session, question in _timetable(options, len(sessions), rng):
        time.sleep(max(0.0, began_s + at_s - time.perf_counter()))
        if question is None:
            sessions[session].push(_tick(int(at_s * 100)))
        else:
            asked.append((question, sessions[session].submit(question, max_tokens=4)))
    ends_s = time.perf_counter() + 10.0
    for _, future in asked:
        try:
            answer = future.result(timeout=max(0.0, ends_s - time.perf_counter()))
        except TimeoutError:
            heard.missing += 1
            continue
        kept = heard.hits_s if answer.source == "flash" else heard.computed_s
        kept.append(answer.latency_s)
    return heard


def _timetable(
    options: argparse.Namespace, count: int, rng: random.Random
) -> list[tuple[float, int, str | None]]:
    """(seconds, session, question or None for a tick), in order."""
    events: list[tuple[float, int, str | None]] = []
    for session in range(count):
        at_s = options.every_s * session / count
        while at_s < options.seconds:
            events.append((at_s, session, None))
            at_s += options.every_s
    for _ in range(int(options.asks_per_s * options.seconds)):
        question = FREE if rng.random() < 0.5 else OTHER
        events.append((rng.random() * options.seconds, rng.randrange(count), question))
    return sorted(events, key=lambda event: event[0])


def _tick(number: int) -> str:
    return f"{number % 10000:04d} 101.2 up"


def _of_values(values_s: Sequence[float]) -> tuple[float | None, float | None]:
    """p50 and p99 in milliseconds."""
    if not values_s:
        return None, None
    ordered = sorted(values_s)
    p99 = ordered[-(-99 * len(ordered) // 100) - 1] if len(ordered) >= 100 else None
    return statistics.median(ordered) * 1e3, None if p99 is None else p99 * 1e3


def _of_record(record: HistogramRecord) -> tuple[float | None, float | None]:
    """The same of a histogram, up to a bucket's width."""
    if record.count == 0:
        return None, None
    p99 = record.quantile(0.99) * 1e3 if record.count >= 100 else None
    return record.quantile(0.5) * 1e3, p99


def _gains(rows: Sequence[Row]) -> dict[int, float]:
    """Ticks a second, grouped, over one by one."""
    rate = {(row.sessions, row.way): row.ticks_per_s for row in rows}
    counts = sorted({row.sessions for row in rows if row.way == WAYS[1]})
    return {count: rate[count, WAYS[0]] / rate[count, WAYS[1]] for count in counts}


def _line(row: Row) -> str:
    return f"  {row.sessions} sessions {row.way}: {row.ticks_per_s:,.0f} ticks/s"


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="Many sessions: throughput, and p50 / p99 at a steady pace")
    for name in ("sessions", "steps", "ticks/s", "ingest tok/s", "answers/s", "steps/s", "cells"):
        table.add_column(name, justify="right")
    for name in ("hit ms", "computed ms", "stale ms", "lag ms", "left"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.sessions}",
            row.way,
            f"{row.ticks_per_s:,.0f}",
            f"{row.tokens_per_s:,.0f}",
            f"{row.answers_per_s:,.0f}",
            f"{row.steps_per_s:,.0f}",
            f"{row.cells_held:,}",
            *(_pair(one) for one in (row.hit_ms, row.computed_ms, row.stale_ms, row.lag_ms)),
            f"{row.behind}",
        )
    return table


def _pair(values: tuple[float | None, float | None]) -> str:
    return " / ".join("-" if one is None else f"{one:,.3g}" for one in values)


def _report(
    options: argparse.Namespace, rows: Sequence[Row], gains: dict[int, float]
) -> dict[str, JsonValue]:
    shown = {name: str(value) for name, value in sorted(vars(options).items())}
    shown["sessions"] = ",".join(map(str, options.sessions))
    memory = jax.devices()[0].memory_stats() or {}  # a CPU has none
    return {
        "bench": "sessions",
        "device": str(jax.devices()[0]),
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "limit_bytes": memory.get("bytes_limit"),
        "pool_cells": max(options.sessions) * options.session_cells,
        "options": shown,
        "rows": [dataclasses.asdict(row) for row in rows],
        "gain_ticks_per_s": {str(count): gain for count, gain in gains.items()},
    }


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharex=True, sharey=True)
    titles = (("computed_ms", "an ask that is computed"), ("stale_ms", "commit to flash answers"))
    for plot, (name, title) in zip(axes, titles, strict=True):
        for way, style in zip(WAYS, ("o-", "s--"), strict=True):
            for index, what in enumerate(("p50", "p99")):
                counts, values_ms = _series(rows, way, name, index)
                if counts:  # p99 of few values is not known
                    shade = 1.0 if index == 0 else 0.45
                    plot.plot(counts, values_ms, style, alpha=shade, label=f"{way}, {what}")
        ticks = sorted({row.sessions for row in rows})
        plot.set(xscale="log", yscale="log", xlabel="sessions", title=title)
        plot.set_xticks(ticks, [str(count) for count in ticks])
        plot.minorticks_off()
        plot.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _series(rows: Sequence[Row], way: str, name: str, index: int) -> tuple[list[int], list[float]]:
    """Numbers of sessions for which a percentile is known, and what it is."""
    known = [(row.sessions, getattr(row, name)[index]) for row in rows if row.way == way]
    known = [(count, value_ms) for count, value_ms in known if value_ms is not None]
    return [count for count, _ in known], [value_ms for _, value_ms in known]


if __name__ == "__main__":
    sys.exit(main())
