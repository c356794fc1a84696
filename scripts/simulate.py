"""Random lives of a whole engine on a tiny model: scripts/simulate.py [--seeds 0:2000].

Every life is decided by its seed; after every step it is checked that nothing was lost, mixed up or
mislabelled (`jaxstate.testing.simulation` says what). Ends with exit code 1 at the first seed that
fails, and prints how to replay it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from rich.progress import track

from jaxstate.testing import Tally, simulate, tiny_model


def main() -> int:
    """Lives the lives; 1 if a promise was broken."""
    options = _options()
    first, end = (int(number) for number in options.seeds.split(":"))
    model, tallies, began_s = tiny_model(), list[Tally](), time.perf_counter()
    seeds = track(range(first, end), "simulating", disable=not sys.stderr.isatty())
    try:
        tallies = simulate(model, seeds, operations=options.operations)
    except AssertionError as error:
        print(f"FAILED: {error}")
        return 1
    total = Counter[str]()
    for tally in tallies:
        total.update(tally.operations)
        total.update({f"answers, {source}": n for source, n in tally.sources.items()})
        total["turns"] += tally.turns
    print(f"{len(tallies)} lives in {time.perf_counter() - began_s:.0f} s, nothing broken")
    print(", ".join(f"{name}: {count:,}" for name, count in sorted(total.items())))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:2000", metavar="FIRST:END")
    parser.add_argument("--operations", type=int, default=40, help="things clients do in a life")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
