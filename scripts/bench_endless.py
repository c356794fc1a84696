"""A stream that does not end, in a session with a window: is the last hour like the first minute?

    python scripts/bench_endless.py [--tokens 1000000] [--window 4096t] [--plot FILE.png]
    python scripts/bench_endless.py --shape 1b --dtype bfloat16 --every-s 0.1 --seconds 120

Ticks of `--tick-tokens` tokens are pushed: one every `--every-s` seconds, or, without that, the
next as soon as the last is read. `--flash` questions are kept answered, and a question that nobody
registered is asked after every `--ask-every` ticks. Every tenth of the stream gives a row:

  push      from the call of `push` to the commit of the tick, p50 / p99
  ask       from the call of `ask` to the answer, p50 / p99; never one of the registered questions
  age       how long a flash answer has been out of date when it is looked at, every 20 ms, p99 and
            worst; 0 for one that is fresh
  cells     of the session, and of the pool with what is read anew beside it, at most
  again     tokens that were read again for the window, for each token of the stream
  moves     of the window (in place: with a pause, for want of room)

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from random_models import SHAPES, random_model
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxstate
from jaxstate.engine.core.metrics import EngineMetrics
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.testing import tiny_config, tiny_model

PARTS = 10
LOOK_S = 0.02
PREFIX = "Prices of one instrument, a line each: time, price, and where it went. "
ASKED = "which way?"
STEPS = jaxstate.StepConfig(
    block_cells=16,
    extend_tokens=(32, 512),
    step_sessions=(1, 4),
    question_tokens=(32,),
    tail_cells=(64,),
    question_rows=(1, 8),
    step_tokens=1024,
    choice_tokens=(8,),
    tail_block_cells=16,
    tail_blocks=128,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A tenth of the stream; times in milliseconds."""

    ticks: int
    push_ms: tuple[float, float]
    ask_ms: tuple[float, float]
    age_ms: tuple[float, float]
    session_cells: int
    pool_cells: int
    read_again: float
    moved: int
    moved_in_place: int
    idle_share: float


@dataclass
class Seen:
    """What was timed in a tenth."""

    push_s: list[float] = field(default_factory=list)
    ask_s: list[float] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    session_cells: int = 0
    pool_cells: int = 0


class Watcher:
    """Looks at flash answers, on a thread: how long each has been out of date.

    Args:
        session: whose.
    """

    def __init__(self, session: jaxstate.Session) -> None:
        self.seen = Seen()
        self._session = session
        self._events = session.subscribe(flash="always")
        self._committed_s: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            now_s = time.perf_counter()
            while (event := self._events.poll()) is not None:
                if isinstance(event, jaxstate.DataUpdated):
                    self._committed_s[event.version] = now_s
            answers = [one.answer for one in self._session.flashes()]
            oldest = min((one.version for one in answers if one is not None), default=0)
            self._committed_s = {v: s for v, s in self._committed_s.items() if v > oldest}
            for one in answers:
                if one is not None:
                    newer = (s for v, s in self._committed_s.items() if v > one.version)
                    self.seen.age_s.append(now_s - min(newer, default=now_s))


def main() -> int:
    """Measures, prints the table and JSON."""
    options = _options()
    use_compilation_cache()
    model = _model(options)
    window = jaxstate.Window.parse(options.window or ["4096t"], options.hop)
    config = jaxstate.EngineConfig(flash_staleness_s=options.staleness_s)
    with jaxstate.Engine(model, cells=options.cells, config=config, sessions=4) as engine:
        _wait_compiled(engine)
        session = engine.open(prefix=PREFIX, window=window)
        for number in range(options.flash):
            session.flash(f"{number}: up?", max_tokens=options.max_tokens)
        session.ask(ASKED, max_tokens=4)
        parts = list(_parts(options, engine, session))
    _show(parts)
    report = {
        "bench": "endless",
        "device": f"{jax.devices()[0].device_kind}",
        "machine": platform.machine(),
        "jax": jax.__version__,
        "window": window.as_dict(),
        "options": {name: str(value) for name, value in vars(options).items()},
        "parts": [dataclasses.asdict(one) for one in parts],
    }
    if options.plot:
        _plot(parts, options)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a real one; random weights, or the tiny model, else")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of that shape")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--window", action="append", help='as `jaxstate stream --window`: "4096t"')
    parser.add_argument("--hop", type=float)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of the stream")
    parser.add_argument("--seconds", type=float, help="with --every-s: instead of --tokens")
    parser.add_argument("--every-s", type=float, help="a tick each; None: as they are read")
    parser.add_argument("--tick-tokens", type=int, default=17)
    parser.add_argument("--flash", type=int, default=8, help="registered questions")
    parser.add_argument("--max-tokens", type=int, default=4, help="of their answers")
    parser.add_argument("--staleness-s", type=float, default=0.5)
    parser.add_argument("--ask-every", type=int, default=10, help="ticks")
    parser.add_argument("--cells", type=int, default=32_768, help="of the pool")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--plot", type=Path, help="a PNG of latency, cells and work")
    return parser.parse_args()


def _model(options: argparse.Namespace) -> jaxstate.Model:
    if options.model:
        return jaxstate.load(options.model, dtype=options.dtype)
    if options.shape:
        return random_model(options.shape, options.dtype)
    config = dataclasses.replace(tiny_config(), max_context=32_768)
    return tiny_model(config, steps=STEPS)


def _wait_compiled(engine: jaxstate.Engine) -> None:
    console = Console(stderr=True)
    with console.status("compiling"):
        engine.wait_warm_up()


def _parts(
    options: argparse.Namespace, engine: jaxstate.Engine, session: jaxstate.Session
) -> Iterator[Part]:
    count = options.tokens // options.tick_tokens
    if options.seconds is not None and options.every_s:
        count = int(options.seconds / options.every_s)
    watcher = Watcher(session)
    ticks = range(1, count + 1)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("ticks", total=count)
        began_s, before = time.perf_counter(), engine.metrics()
        for some in _tenths(ticks):
            watcher.seen = seen = Seen()
            for number in some:
                if options.every_s:
                    time.sleep(max(0.0, began_s + number * options.every_s - time.perf_counter()))
                _tick(options, session, number, seen)
                progress.advance(task)
                if number % 50 == 0:
                    seen.pool_cells = max(seen.pool_cells, engine.metrics().gauges.cells_held)
            after = engine.metrics()
            yield _part(seen, before, after, len(some), options.tick_tokens)
            before = after
    watcher.stop()


def _tenths(ticks: range) -> Iterator[Sequence[int]]:
    """Ten parts, or as many as there are."""
    size = -(-len(ticks) // PARTS)
    return (ticks[first : first + size] for first in range(0, len(ticks), size))


def _tick(options: argparse.Namespace, session: jaxstate.Session, number: int, seen: Seen) -> None:
    text = f"{number:08d} {number * 7919 % 100_000:05d}"
    text = (text + "." * options.tick_tokens)[: options.tick_tokens - 1]
    began_s = time.perf_counter()
    receipt = session.push(text)
    session.wait(receipt.last)
    seen.push_s.append(time.perf_counter() - began_s)
    seen.session_cells = max(seen.session_cells, session.info().tokens)
    if number % options.ask_every == 0:
        began_s = time.perf_counter()
        answer = session.ask(ASKED, max_tokens=4)
        seen.ask_s.append(time.perf_counter() - began_s)
        assert answer.source == "computed" and answer.visible is not None


def _part(
    seen: Seen, before: EngineMetrics, after: EngineMetrics, ticks: int, tick_tokens: int
) -> Part:
    counts = {
        name: value - getattr(before.counts, name)
        for name, value in dataclasses.asdict(after.counts).items()
    }
    busy_s = after.busy_s - before.busy_s
    return Part(
        ticks=ticks,
        push_ms=_ms(seen.push_s, 0.5, 0.99),
        ask_ms=_ms(seen.ask_s, 0.5, 0.99),
        age_ms=_ms(seen.age_s, 0.99, 1.0),
        session_cells=seen.session_cells,
        pool_cells=seen.pool_cells,
        read_again=counts["window_tokens_read"] / (ticks * tick_tokens),
        moved=counts["windows_moved"],
        moved_in_place=counts["windows_moved_in_place"],
        idle_share=1.0 - min(1.0, busy_s / max(1e-9, after.elapsed_s - before.elapsed_s)),
    )


def _ms(values_s: Sequence[float], low: float, high: float) -> tuple[float, float]:
    if not values_s:
        return 0.0, 0.0
    found = np.quantile(values_s, (low, high)) * 1e3
    return float(found[0]), float(found[1])


def _show(parts: Sequence[Part]) -> None:
    table = Table(title="A stream without end, by tenths")
    names = ("ticks", "push ms", "ask ms", "age ms p99 / worst", "cells", "pool")
    for name in (*names, "again", "moves", "in place", "idle"):
        table.add_column(name, justify="right")
    for one in parts:
        table.add_row(
            f"{one.ticks:,}",
            *(f"{p50:.3g} / {p99:.3g}" for p50, p99 in (one.push_ms, one.ask_ms, one.age_ms)),
            f"{one.session_cells:,}",
            f"{one.pool_cells:,}",
            f"{one.read_again:.2f}",
            str(one.moved),
            str(one.moved_in_place),
            f"{one.idle_share:.0%}",
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def _plot(parts: Sequence[Part], options: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ends = list(itertools.accumulate(one.ticks * options.tick_tokens for one in parts))
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
    for name, what in (("push_ms", "push to commit"), ("ask_ms", "ask to answer")):
        for index, (label, style) in enumerate((("p50", "o-"), ("p99", "s--"))):
            values = [getattr(one, name)[index] for one in parts]
            axes[0].plot(ends, values, style, label=f"{what}, {label}")
    axes[0].set(title="latency, milliseconds", ylim=(0, None))
    axes[1].plot(ends, [one.session_cells for one in parts], "o-", label="of the session")
    axes[1].plot(ends, [one.pool_cells for one in parts], "s--", label="with what is read anew")
    axes[1].set(title="cells held, at most", ylim=(0, None))
    axes[2].plot(ends, [one.read_again for one in parts], "o-")
    axes[2].set(
        title="read again, for each token", ylim=(0, 1.3 * max(one.read_again for one in parts))
    )
    for plot in axes:
        plot.set_xlabel("tokens of the stream")
        plot.grid(alpha=0.3)
    for plot in axes[:2]:
        plot.legend()
    figure.tight_layout()
    figure.savefig(options.plot, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
