"""What a window that slides costs in answers: the same stream, exact and slid, beside the truth.

    python scripts/slide_error.py [--model smollm2-135m] [--windows 10]

Ticks of three shares go into two sessions of one engine with the same window, one in each mode.
After every few ticks both are asked for the last price of a share. Prints how often each is right,
how often both say the same, and how far the gaps between the two largest logits of the first token
lie apart, by how far the window has slid; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from dataclasses import asdict, dataclass

import jaxstate

SHARES = ("ACME", "BETA", "CORE")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the stream.

    Attributes:
        windows: of tokens that had left by its end.
        asked: questions.
        exact_right, slide_right: of them.
        same: answers that are the same in both.
        gap: between the two largest logits of the first token, median of exact answers.
        gap_apart, gap_apart_most: how far that of the other lies from it, median and largest.
    """

    windows: float
    asked: int
    exact_right: int
    slide_right: int
    same: int
    gap: float
    gap_apart: float
    gap_apart_most: float


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", help="the one that comes with jaxstate, else")
    parser.add_argument("--tokens", type=int, default=600, help="of the window")
    parser.add_argument("--windows", type=int, default=10, help="so many times that are streamed")
    parser.add_argument("--every", type=int, default=4, help="ticks")
    options = parser.parse_args()
    model = jaxstate.load(options.model) if options.model else jaxstate.load()
    parts = list[Part]()
    with jaxstate.Engine(model, cells=8192, warm_up=False) as engine:
        opened = [
            engine.open(
                prefix="Prices of three shares.",
                window=jaxstate.Window(tokens=options.tokens, hop=0.25, mode=mode),
            )
            for mode in ("exact", "slide")
        ]
        chance, last, read, number = random.Random(0), dict[str, str](), 0, 0
        for part in range(1, options.windows + 1):
            found = list[tuple[str, jaxstate.Answer, jaxstate.Answer]]()
            while read < part * options.tokens:
                number += 1
                share = chance.choice(SHARES)
                last[share] = f"{chance.uniform(10, 99):.2f}"
                text = f"{9 + number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d} "
                text += f"{share} {last[share]}"
                read += len(model.text.encode(text + "\n"))
                for session in opened:
                    session.push(text)
                    session.wait()
                if number % options.every == 0:
                    asked = f"What was the last price of {share}?"
                    exact, slide = (one.ask(asked, max_tokens=8) for one in opened)
                    found.append((last[share], exact, slide))
            parts.append(_part(part, found))
            print(parts[-1], flush=True)
    print(json.dumps([asdict(one) for one in parts]))


def _part(windows: int, found: list[tuple[str, jaxstate.Answer, jaxstate.Answer]]) -> Part:
    apart = [abs(exact.confidence - slide.confidence) for _, exact, slide in found]
    return Part(
        windows=windows - 1,
        asked=len(found),
        exact_right=sum(truth in exact.text for truth, exact, _ in found),
        slide_right=sum(truth in slide.text for truth, _, slide in found),
        same=sum(exact.text == slide.text for _, exact, slide in found),
        gap=statistics.median(exact.confidence for _, exact, _ in found),
        gap_apart=statistics.median(apart),
        gap_apart_most=max(apart),
    )


if __name__ == "__main__":
    main()
