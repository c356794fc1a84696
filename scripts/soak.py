"""A full pool under random clients: scripts/soak.py [--seconds 600] [--seed 0].

Threads open sessions of several tenants (with shared prefixes and reserves), push, ask, register
questions, cancel, fork, suspend and close at random, on a real engine with a tiny model whose pool
is always too small; freed blocks are full of NaN. Nothing may be lost, mixed up or stuck: answers
are compared with those of the functional core, every session ends with all of its entries read, and
at the end every block is free again. Exit code 1 if anything is broken.
"""

from __future__ import annotations

import argparse
import sys

from rich.progress import Progress

from jaxstate.testing.soak import Soak


def main() -> int:
    """Soaks; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8, help="threads")
    options = parser.parse_args()
    soak = Soak(seed=options.seed, clients=options.clients)
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("soaking", total=options.seconds)
        report = soak.run(options.seconds, lambda done_s: progress.update(task, completed=done_s))
    for line in report.lines():
        print(line)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
