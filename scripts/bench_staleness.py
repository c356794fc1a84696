"""How old flash answers become under a steady overload, and what that costs reading.

    python scripts/bench_staleness.py [--model gemma3-270m] [--seconds 60]

One session has more to read than the device can, all the time, with and without flash queries. The
age of an answer is looked at every 20 ms: how long ago the first version that it did not see was
committed. Prints a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence

import numpy as np

import jaxstate
from jaxstate.engine.types.options import EngineConfig
from jaxstate.engine.types.values import DataUpdated

LINE = "{n:05} ACME traded at {price:.2f}, volume {volume}"
QUESTIONS = ("What was the last price of ACME?", "Is ACME above 100?")
LOOK_S = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One run.

    Attributes:
        target_s: how old an answer might become; None without flash queries.
        tokens_per_s: read.
        reading_share: of the device's time.
        p50_s, p99_s, worst_s: ages of the answers.
        answers: that were made.
    """

    target_s: float | None
    tokens_per_s: float
    reading_share: float
    p50_s: float | None = None
    p99_s: float | None = None
    worst_s: float | None = None
    answers: int = 0


def measure(model: jaxstate.Model, target_s: float | None, seconds: float) -> Result:
    """One session under overload.

    Args:
        model: that reads.
        target_s: of its flash queries; None for no flash queries.
        seconds: that are measured, after the first answers.
    """
    config = EngineConfig(queue_entries=64, flash_staleness_s=target_s or 5.0)
    with jaxstate.Engine(model, cells=32_768, sessions=1, config=config, warm_up=False) as engine:
        session = engine.open(prefix="Trades of today")
        if target_s is not None:
            for question in QUESTIONS:
                session.flash(question, max_tokens=8)
        _push(session, 0, 64)
        session.wait_fresh()  # everything that is used is compiled now
        before, began_s = engine.metrics(), time.monotonic()
        ages, committed, number = list[float](), dict[int, float](), 64
        events = session.subscribe()
        while (now_s := time.monotonic()) < began_s + seconds:
            while (event := events.poll()) is not None:
                if isinstance(event, DataUpdated):
                    committed[event.version] = now_s
            while session.info().pending < 32:
                number = _push(session, number, 8)
            ages += [
                now_s - min((at for v, at in committed.items() if v > one.version), default=now_s)
                for query in session.flashes()
                if (one := query.answer) is not None
            ]
            time.sleep(LOOK_S)
        after, took_s = engine.metrics(), time.monotonic() - began_s
    tokens = after.counts.tokens_ingested - before.counts.tokens_ingested
    busy_s = {work: after.step_s[work].total - before.step_s[work].total for work in after.step_s}
    found = Result(
        target_s=target_s,
        tokens_per_s=tokens / took_s,
        reading_share=busy_s["ingest"] / sum(busy_s.values()),
    )
    if not ages:
        return found
    p50_s, p99_s = np.quantile(ages, (0.5, 0.99)).tolist()
    answers = after.counts.flash_answers - before.counts.flash_answers
    return dataclasses.replace(found, p50_s=p50_s, p99_s=p99_s, worst_s=max(ages), answers=answers)


def _push(session: jaxstate.Session, first: int, count: int) -> int:
    numbers = range(first, first + count)
    session.push([LINE.format(n=n, price=100 + n % 7, volume=n * 37 % 1000) for n in numbers])
    return first + count


def table(results: Sequence[Result]) -> str:
    """The results as lines of text."""
    lines = ["target, s   tokens/s   reading   answers   age p50   p99   worst, s"]
    for one in results:
        ages = (one.p50_s, one.p99_s, one.worst_s)
        shown = "   ".join("-" if age is None else f"{age:.1f}" for age in ages)
        target = "none" if one.target_s is None else f"{one.target_s:g}"
        lines.append(
            f"{target:>9}   {one.tokens_per_s:8.0f}   {one.reading_share:7.0%}   "
            f"{one.answers:7}   {shown}"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="gemma3-270m")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    model = jaxstate.load(options.model)
    results = [measure(model, target, options.seconds) for target in (None, 1e6, 5.0, 1.0)]
    print(table(results))
    print(json.dumps([dataclasses.asdict(one) for one in results]))


if __name__ == "__main__":
    main()
