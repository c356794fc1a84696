"""A full pool under random clients: scripts/soak.py [--seconds 600] [--seed 0] [--dtype bfloat16].

Threads open sessions of several tenants (with shared and public prefixes, reserves, some pinned),
push, ask, register questions, cancel, fork, save and restore, suspend, resume and close at random,
on a real engine with a tiny model whose pool is always too small; freed blocks are full of NaN.
Nothing may be lost, mixed up or stuck: every session ends with all of its entries read, at the end
every block is free again, and within a minute sessions were on the device, in memory, in snapshots
and given up. In float32 answers are compared with those of the functional core; in lower precision
they must be finite, of a version that the session had, and have seen as many cells as that has
tokens (ties may go either way). Exit code 1 if anything is broken.
"""

from __future__ import annotations

import argparse
import sys

from rich.progress import Progress

from tests.harness.soak import Soak


def main() -> int:
    """Soaks; 1 if a promise was broken."""
    options = _options()
    soak = Soak(seed=options.seed, clients=options.clients, dtype=options.dtype)
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("soaking", total=options.seconds)
        report = soak.run(options.seconds, lambda done_s: progress.update(task, completed=done_s))
    for line in report.lines():
        print(line)
    return 1 if report.broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8, help="threads")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
