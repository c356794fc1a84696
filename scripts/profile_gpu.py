"""Where an answer's time goes on a GPU: kernels by name, busy time against wall time.

    python scripts/profile_gpu.py [--shape 8b] [--contexts 2816 19456] [--top 12] [--reference]

A model of a known shape with random weights, made on the card. For each context it profiles reading
a 17-token tick, the first token of the answer to a 16-token question, and 17 answer tokens, all
through the functional core, and prints for each: wall time without the profiler (median), the time
that the GPU was busy, kernels, and the kernels that took longest. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from random_models import SHAPES, random_model

import jaxstate

QUESTION_TOKENS, ANSWER_TOKENS, TICK_TOKENS = 16, 17, 17


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the GPU did in one call.

    Attributes:
        kernels: how many ran.
        busy_ms: how long in all.
        by_name: (name, how many, milliseconds in all), longest first.
    """

    kernels: int
    busy_ms: float
    by_name: list[tuple[str, int, float]]


def profiled(call: Callable[[], object], *, repeats: int = 3) -> Profile:
    """Runs it under the profiler; everything is per call.

    Raises:
        RuntimeError: no kernels were seen: this is no GPU.
    """
    names: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(call())
        (trace,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(trace))
        for plane in data.planes:
            for line in plane.lines if "GPU" in plane.name else ():
                if "Stream" in line.name:
                    for event in line.events:
                        names[event.name].append(event.duration_ns / 1e6)
    if not names:
        raise RuntimeError("the profiler saw no kernels; this needs a GPU")
    rows = [(name, len(each) // repeats, sum(each) / repeats) for name, each in names.items()]
    rows.sort(key=lambda row: -row[2])
    return Profile(
        kernels=sum(map(len, names.values())) // repeats,
        busy_ms=sum(row[2] for row in rows),
        by_name=rows,
    )


def median_ms(call: Callable[[], object], *, repeats: int = 15) -> float:
    """Median wall time of a call and everything that it started."""
    taken: list[float] = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        jax.block_until_ready(call())
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken[3:])


def main() -> int:
    """Profiles every context and prints what it found."""
    options = _options()
    steps = jaxstate.StepConfig(
        extend_tokens=(32, 1024),
        question_tokens=(16,),
        tail_cells=(128,),
        attention="reference" if options.reference else "auto",
    )
    model = random_model(options.shape, "bfloat16", steps)
    report: list[dict[str, object]] = []
    for context in options.contexts:
        for what, call in _calls(model, context).items():
            wall, profile = median_ms(call), profiled(call)
            print(
                f"{context:>6} {what}: wall {wall:.2f} ms, busy {profile.busy_ms:.2f} ms, "
                f"{profile.kernels} kernels",
                flush=True,
            )
            for name, count, taken_ms in profile.by_name[: options.top]:
                print(f"  {taken_ms:8.3f} ms {count:5d} x {taken_ms / count * 1e3:7.1f} us  {name}")
            report.append({"context": context, "what": what, "wall_ms": wall, **asdict(profile)})
    for row in report:
        row.pop("by_name")
    print(json.dumps(report))
    return 0


def _calls(model: jaxstate.Model, context: int) -> dict[str, Callable[[], object]]:
    """What is profiled, after a session of that many cells was read."""
    random = np.random.default_rng(0)
    question = random.integers(300, 100_000, QUESTION_TOKENS)
    tick = random.integers(300, 100_000, TICK_TOKENS)
    held = [jaxstate.init_state(model, cells=context + 40 * TICK_TOKENS)]
    held[0] = jaxstate.extend(model, held[0], random.integers(300, 100_000, context))

    def read() -> object:
        held[0] = jaxstate.extend(model, held[0], tick)
        return held[0]

    def answer(tokens: int) -> Callable[[], object]:
        return lambda: jaxstate.query(model, held[0], question, max_tokens=tokens).tokens

    return {
        "question, first token": answer(1),
        f"{ANSWER_TOKENS} answer tokens": answer(ANSWER_TOKENS),
        f"{TICK_TOKENS}-token tick": read,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[2816, 19456, 65536])
    parser.add_argument("--top", type=int, default=12, help="kernels to name")
    parser.add_argument("--reference", action="store_true", help="without kernels of our own")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
