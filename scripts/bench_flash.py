"""Answers before the question: what a flash query saves its asker, and what it costs the stream.

    python scripts/bench_flash.py [--model gemma3-270m] [--seconds 300] [--questions 8]

A stream of price ticks is pushed into a session at a fixed pace; meanwhile clients ask, at random
moments, either one of N registered questions or one that nobody registered. The same ticks, moments
and questions are then run with nothing registered. Latencies are those that an asker sees, from the
call to the answer in its hands, in one process; a slow answer does not delay the asks after it.

Flash hits are reported apart from computed answers. The table gives p50 and p99 (nearest rank; no
p99 of fewer than 100 asks) of:

  hit                         a registered question that was fresh when it was asked
  hits in a row               the same, asked 5,000 times without a pause, on an idle engine
  too early                   a registered question that was not fresh yet, and therefore computed
  registered, all             hits and those that came too early together
  computed                    a question that nobody registered, while flash queries are kept
  flash off, registered ones  the same questions with nothing registered
  flash off, the other        likewise

and then how much idle time was used, how far flash answers lag behind the stream, and whether both
runs gave the same answers to the same question at the same version. Device seconds are wall time of
steps as the host sees them. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import jax
from random_models import SHAPES, random_model
from rich.console import Console
from rich.table import Table
from tick_client import Heard, Question, Timed, Timetable, ask, live, ticks

import jaxstate
from jaxstate.model.compile_cache import use_compilation_cache
from jaxstate.records import JsonValue

# Every other one gives its choices.
QUESTIONS: tuple[Question, ...] = (
    ("What was the last price of ACME?", None),
    ("Is the price of ACME above 100?", ("yes", "no")),
    ("At what minute was the last trade?", None),
    ("Did the price rise in the last line?", ("yes", "no")),
    ("By how much did the price change?", None),
    ("Which way is ACME going?", ("up", "down", "sideways")),
    ("What is the name of the company?", None),
    ("Is the price below 90?", ("yes", "no")),
)
UNREGISTERED: Question = ("What was the price two lines ago?", None)
UNREGISTERED_SHARE = 0.3
BURST = 5000
TOKENS_PER_TICK = 17
Report: TypeAlias = dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the two runs.

    Attributes:
        heard: what its client saw.
        burst_s: latencies of hits in a row; none without registered questions.
        idle_share: of the time in which the device did nothing.
        idle_used_share: of the time left over by asks and ingest that flash work used.
        flash_answers: computed meanwhile.
        compilations: meanwhile.
    """

    heard: Heard
    burst_s: list[float]
    idle_share: float
    idle_used_share: float
    flash_answers: int
    compilations: int


def main() -> int:
    """Runs both, prints the table and the JSON."""
    options = _options()
    use_compilation_cache()
    model = _model(options)
    registered = _questions(options.questions)
    cells = _cells_needed(model, options)
    runs: list[Run] = []
    for what, flash in (("compiling", registered), ("starting again", [])):
        with _engine(model, cells, what) as engine:
            _settle(engine, options)
            runs.append(_run(engine, options, registered, flash))
    on, off = runs
    rows = _rows(on, off, registered)
    report = {**_setting(options, model), "rows": rows, **_facts(on, off, registered)}
    console = Console()
    console.print(_table(rows))
    console.print(_prose(report, rows), highlight=False)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--shape", choices=SHAPES, help="random weights, byte tokens")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each of the two runs")
    parser.add_argument("--every-s", type=float, default=10.0, help="seconds between two ticks")
    parser.add_argument("--ask-every-s", type=float, default=2.0, help="between asks, on average")
    parser.add_argument("--questions", type=int, default=8, help="registered, 1 to 64")
    parser.add_argument("--max-tokens", type=int, default=6)
    parser.add_argument("--context", type=int, default=1024, help="tokens read before the clock")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    return parser.parse_args()


def _model(options: argparse.Namespace) -> jaxstate.Model:
    if options.shape is None:
        return jaxstate.load(options.model, dtype=options.dtype)
    return random_model(options.shape, options.dtype or "bfloat16")


def _questions(count: int) -> list[Question]:
    """The first `count`, repeated with a number once they are used up."""
    asked: list[Question] = []
    for index in range(count):
        turn, which = divmod(index, len(QUESTIONS))
        text, choices = QUESTIONS[which]
        asked.append((text if turn == 0 else f"({turn}) {text}", choices))
    return asked


def _cells_needed(model: jaxstate.Model, options: argparse.Namespace) -> int:
    """For the context and every tick, in whole thousands."""
    lines = options.context // TOKENS_PER_TICK + math.ceil(options.seconds / options.every_s)
    tick = len(model.template.entry_tokens(model.text, ticks(1, first=1000)[0])) + 2
    return -(-(lines * tick + 64) // 1024) * 1024


def _engine(model: jaxstate.Model, cells: int, what: str) -> jaxstate.Engine:
    def progress(done: int, total: int) -> None:
        print(f"\r{what}: {done} of {total} steps", end="", file=sys.stderr, flush=True)

    engine = jaxstate.Engine(model, cells=cells, session_cells=cells, sessions=1, progress=progress)
    engine.wait_warm_up()
    print(file=sys.stderr)
    return engine


def _settle(engine: jaxstate.Engine, options: argparse.Namespace) -> None:
    """First runs of executables are slower than the later ones: not what is measured here."""
    with engine.open() as session:
        session.push(ticks(3))
        for question in QUESTIONS[:2]:
            ask(session, question, options.max_tokens)
        _register(session, QUESTIONS, options.max_tokens)
        session.wait_fresh()


def _register(session: jaxstate.Session, questions: Sequence[Question], max_tokens: int) -> None:
    for text, choices in questions:
        session.flash(text, choices=choices, max_tokens=max_tokens)


def _run(
    engine: jaxstate.Engine,
    options: argparse.Namespace,
    asked: Sequence[Question],
    flash: Sequence[Question],
) -> Run:
    """The same ticks, moments and questions, whether they are registered or not."""
    timetable = Timetable(
        seconds=options.seconds,
        every_s=options.every_s,
        ask_every_s=options.ask_every_s,
        unregistered_share=UNREGISTERED_SHARE,
        max_tokens=options.max_tokens,
    )
    with engine.open() as session:
        session.push(ticks(options.context // TOKENS_PER_TICK))
        session.wait()
        _register(session, flash, options.max_tokens)
        session.wait_fresh()
        before = engine.metrics()
        heard = live(session, timetable, asked, UNREGISTERED)
        after = engine.metrics()
        return Run(
            heard=heard,
            burst_s=_burst(session, flash, options.max_tokens),
            flash_answers=after.counts.flash_answers - before.counts.flash_answers,
            compilations=after.gauges.compilations - before.gauges.compilations,
            **_idleness(before, after),
        )


def _idleness(before: jaxstate.EngineMetrics, after: jaxstate.EngineMetrics) -> dict[str, float]:
    elapsed_s = after.elapsed_s - before.elapsed_s
    busy = {work: after.step_s[work].total - before.step_s[work].total for work in after.step_s}
    urgent_s, idle_work_s = busy["ask"] + busy["ingest"], busy["flash"]
    return {
        "idle_share": 1.0 - (urgent_s + idle_work_s) / elapsed_s,
        "idle_used_share": idle_work_s / (elapsed_s - urgent_s),
    }


def _burst(
    session: jaxstate.Session, questions: Sequence[Question], max_tokens: int
) -> list[float]:
    if not questions:
        return []
    session.wait_fresh()
    answers = [ask(session, questions[n % len(questions)], max_tokens) for n in range(BURST)]
    assert all(one.source == "flash" for one in answers), "a fresh answer was not used"
    return [one.latency_s for one in answers]


def _rows(on: Run, off: Run, registered: Sequence[Question]) -> list[Report]:
    known = {text for text, _ in registered}

    def chosen(run: Run, wanted: Callable[[Timed], bool]) -> list[float]:
        return [one.latency_s for one in run.heard.answers if wanted(one)]

    ways = {
        "hit": chosen(on, lambda one: one.source == "flash"),
        "hits in a row": on.burst_s,
        "too early": chosen(on, lambda one: one.question in known and one.source != "flash"),
        "registered, all": chosen(on, lambda one: one.question in known),
        "computed": chosen(on, lambda one: one.question not in known),
        "flash off, registered ones": chosen(off, lambda one: one.question in known),
        "flash off, the other": chosen(off, lambda one: one.question not in known),
    }
    return [{"way": name, **_quantiles(seconds, 1e3, "ms")} for name, seconds in ways.items()]


def _quantiles(values: Sequence[float], scale: float, unit: str) -> Report:
    """By nearest rank; None where there are no values."""
    ordered = sorted(values)

    def nearest(share: float) -> float | None:
        if len(ordered) < (100 if share == 0.99 else 1):
            return None
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * scale

    ranks = {"p50": 0.5, "p99": 0.99, "largest": 1.0}
    return {"count": len(ordered), **{f"{name}_{unit}": nearest(at) for name, at in ranks.items()}}


def _setting(options: argparse.Namespace, model: jaxstate.Model) -> Report:
    given: Report = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    return {
        "benchmark": "flash",
        "options": given,
        "device": jax.devices()[0].device_kind,
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "parameters": model.num_params,
        "dtype": str(model.dtype),
    }


def _facts(on: Run, off: Run, registered: Sequence[Question]) -> Report:
    """What is no latency of an ask."""
    return {
        "idle_share_on": on.idle_share,
        "idle_share_off": off.idle_share,
        "idle_used_share": on.idle_used_share,
        "flash_answers": on.flash_answers,
        "fresh_share": on.heard.fresh_share(registered),
        "refresh": _quantiles(on.heard.refreshes_s(), 1.0, "s"),
        "news": _quantiles(on.heard.news_s(), 1.0, "s"),
        **_agreement(on, off),
        "lag_on": _quantiles(on.heard.lags_s(), 1.0, "s"),
        "lag_off": _quantiles(off.heard.lags_s(), 1.0, "s"),
        "compilations": on.compilations + off.compilations,
    }


def _agreement(on: Run, off: Run) -> Report:
    """Answers to the same question at the same version, whatever way they came about."""
    known = {(one.question, one.version): one.text for one in off.heard.answers}
    pairs = [
        (one.text, known[one.question, one.version])
        for one in on.heard.answers
        if (one.question, one.version) in known
    ]
    return {"compared": len(pairs), "different": sum(a != b for a, b in pairs)}


def _table(rows: list[Report]) -> Table:
    table = Table(title="from the call to the answer, ms")
    table.add_column("")
    for name in ("asks", "p50", "p99", "slowest"):
        table.add_column(name, justify="right")
    for row in rows:
        times = (row["p50_ms"], row["p99_ms"], row["largest_ms"])
        shown = (f"{one:,.3f}" if isinstance(one, float) else "-" for one in times)
        table.add_row(str(row["way"]), str(row["count"]), *shown)
    return table


def _prose(report: Report, rows: list[Report]) -> str:
    hits, asked = rows[0]["count"], rows[3]["count"]

    def both(name: str) -> str:
        record = report[name]
        assert isinstance(record, dict)
        values = (record["p50_s"], record["p99_s"])
        shown = (f"{one:.2f} s" if isinstance(one, float) else "-" for one in values)
        return "p50 {}, p99 {}".format(*shown)

    return (
        f"registered questions that were fresh when asked: {hits} of {asked}\n"
        f"share of the time in which a flash answer was fresh: {report['fresh_share']:.0%}\n"
        f"idle time used for flash answers: {report['idle_used_share']:.0%}; the device did "
        f"nothing {report['idle_share_on']:.0%} of the time "
        f"({report['idle_share_off']:.0%} without flash queries)\n"
        f"from a commit to its flash answers: {both('refresh')}; from the push: {both('news')}\n"
        f"from a push to its commit: {both('lag_on')} (without flash queries {both('lag_off')})\n"
        f"answers that both runs gave at one version: {report['compared']}, different: "
        f"{report['different']}; compiled meanwhile: {report['compilations']}"
    )


if __name__ == "__main__":
    sys.exit(main())
