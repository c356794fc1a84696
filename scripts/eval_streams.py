"""How often a model's answers about streams are right, by family of questions.

    python scripts/eval_streams.py [-m MODEL] [--tokens 512 2048 8000] [--streams 6]

The streams are real files that no training data was made of (package `bokeh-sampledata`: daily bars
of five companies, a glucose monitor, sea temperatures) and updates of keys that are made here; the
questions are worded here, in none of the generator's words (`jaxstate.training.data` is not
imported). Entries are pushed into a session until it has that many tokens, then every question is
asked, with its choices where it has some. Truth is plain Python over the same entries.

A number is right if it is that number, whatever stands around it; a word, if the answer begins with
it. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxstate

YES_NO = ("yes", "no")
_QUESTION_TOKENS = 512  # beside the session, at most, with its answer
_ERR = Console(stderr=True)


@dataclass(frozen=True)
class Asked:
    """A question about entries, with its truth."""

    family: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Entries, and what is asked about the first so many of them."""

    name: str
    entries: Sequence[str]
    ask: Callable[[random.Random, int], list[Asked]]


@dataclass(frozen=True)
class Bar:
    """A day of a company, with prices as the entry shows them."""

    symbol: str
    date: str
    open: str
    high: str
    low: str
    close: str
    volume: str


def _rows(file: str) -> list[dict[str, str]]:
    data = resources.files("bokeh_sampledata") / "_data" / file
    with data.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def _bars() -> dict[str, list[Bar]]:
    found: dict[str, list[Bar]] = defaultdict(list)
    for row in _rows("stocks.csv.gz"):
        opened, high, low, close = (
            f"{float(row[name]):.2f}" for name in ("Open", "High", "Low", "Close")
        )
        bar = Bar(row["Ticker"], row["Date"], opened, high, low, close, row["Volume"])
        found[bar.symbol].append(bar)
    return found


_BAR_ENTRIES: Sequence[Callable[[Bar], str]] = (
    lambda b: (
        f"{b.date} {b.symbol} open={b.open} high={b.high} low={b.low} close={b.close} "
        f"volume={b.volume}"
    ),
    lambda b: f"{b.symbol},{b.date},{b.open},{b.high},{b.low},{b.close},{b.volume}",
    lambda b: f"{b.date} {b.symbol}: O {b.open} H {b.high} L {b.low} C {b.close}",
    lambda b: (
        f'{{"date": "{b.date}", "symbol": "{b.symbol}", "open": {b.open}, "high": {b.high}, '
        f'"low": {b.low}, "close": {b.close}}}'
    ),
)


def _stock_case(rng: random.Random, bars: dict[str, list[Bar]], number: int) -> Case:
    """One, two or three companies, day by day, from a random day on."""
    symbols = rng.sample(sorted(bars), rng.choice((1, 1, 2, 3)))
    length = min(len(bars[symbol]) for symbol in symbols)
    start = rng.randrange(max(1, length - 200))
    days = [bars[symbol][-length + start :][:200] for symbol in symbols]
    ordered = [bar for day in zip(*days, strict=False) for bar in day]
    write = _BAR_ENTRIES[number % len(_BAR_ENTRIES)]
    header = ["symbol,date,open,high,low,close,volume"] if number % len(_BAR_ENTRIES) == 1 else []
    entries = [*header, *map(write, ordered)]

    def ask(rng: random.Random, count: int) -> list[Asked]:
        return list(_about_bars(rng, ordered[: count - len(header)]))

    return Case(f"bars of {len(symbols)}", entries, ask)


def _about_bars(rng: random.Random, bars: list[Bar]) -> Iterator[Asked]:
    of: dict[str, list[Bar]] = defaultdict(list)
    for bar in bars:
        of[bar.symbol].append(bar)
    symbol = rng.choice(sorted(of))
    mine = of[symbol]
    closes = [float(bar.close) for bar in mine]
    last = mine[-1]
    yield Asked("last value", f"Give the final closing level of {symbol} in this feed.", last.close)
    yield Asked("last value", f"{symbol}: most recent open?", last.open)
    day = rng.choice(mine)
    yield Asked("value at a time", f"{symbol} on {day.date}: where was the close?", day.close)
    day = rng.choice(mine)
    yield Asked("value at a time", f"On {day.date}, how high did {symbol} get?", day.high)
    if len(mine) < 3:
        return
    yield Asked(
        "previous value", f"What was {symbol}'s close the day before the last one?", mine[-2].close
    )
    for k in {3, 20} if len(mine) > 20 else {3}:
        highest = max(mine[-k:], key=lambda bar: float(bar.high)).high
        lowest = min(mine[-k:], key=lambda bar: float(bar.low)).low
        yield Asked(
            f"highest or lowest of the last {k}",
            f"Of the last {k} bars of {symbol}, what is the highest high?",
            highest,
        )
        yield Asked(
            f"highest or lowest of the last {k}",
            f"How low did {symbol} trade in the last {k} bars?",
            lowest,
        )
    yield Asked(
        "highest or lowest of all",
        f"What is the highest close of {symbol} anywhere in this data?",
        max(mine, key=lambda bar: float(bar.close)).close,
    )
    for k in (2, 5, 10):
        if len(closes) >= k and closes[-1] != closes[-k]:
            yield Asked(
                "up or down",
                f"From the first to the last of {symbol}'s last {k} bars, did the close go up or "
                "down?",
                "up" if closes[-1] > closes[-k] else "down",
                ("up", "down"),
            )
    if last.close != last.open:
        yield Asked(
            "bullish or bearish",
            f"A day is bullish when the close is above the open and bearish when it is below. Was "
            f"{symbol}'s last day bullish or bearish?",
            "bullish" if float(last.close) > float(last.open) else "bearish",
            ("bullish", "bearish"),
        )
    limit = round(closes[-1] * rng.uniform(0.95, 1.05), 1)
    yield Asked(
        "threshold",
        f"Did {symbol} last close above {limit}?",
        "yes" if closes[-1] > limit else "no",
        YES_NO,
    )
    if len(of) > 1:
        top = max(of, key=lambda name: float(of[name][-1].close))
        yield Asked("which one", "Which symbol had the highest last close?", top, tuple(sorted(of)))
        yield Asked("which one", "Which symbol's bar came in last?", bars[-1].symbol)
    stranger = rng.choice(("NVDA", "ORCL", "TSLA", "KO"))
    yield Asked("unknown", f"Give the final closing level of {stranger} in this feed.", "unknown")
    yield Asked("unknown", f"{symbol} on 1987-03-04: where was the close?", "unknown")


@dataclass(frozen=True)
class Reading:
    """A value at a time."""

    time: str
    value: str


def _reading_case(rng: random.Random, file: str, number: int) -> Case:
    """A glucose monitor, or the temperature of the sea."""
    what, time, value, unit = {
        "CGM.csv.gz": ("glucose", "datetime", "glucose", " mg/dL"),
        "sea_surface_temperature.csv.gz": (
            "temperature",
            "time (UTC)",
            "temperature (celsius)",
            " C",
        ),
    }[file]
    rows = _rows(file)
    start = rng.randrange(len(rows) - 900)
    readings = [Reading(row[time], row[value]) for row in rows[start : start + 900] if row[value]]
    forms: Sequence[Callable[[Reading], str]] = (
        lambda r: f"{r.time} {what} {r.value}{unit}",
        lambda r: f"[{r.time}] {what}={r.value}",
        lambda r: f"{r.time};{r.value}",
    )
    entries = list(map(forms[number % len(forms)], readings))

    def ask(rng: random.Random, count: int) -> list[Asked]:
        return list(_about_readings(rng, readings[:count], what))

    return Case(what, entries, ask)


def _about_readings(rng: random.Random, readings: list[Reading], what: str) -> Iterator[Asked]:
    numbers = [float(one.value) for one in readings]
    yield Asked("last value", f"What does the {what} stand at now?", readings[-1].value)
    one = rng.choice(readings)
    yield Asked("value at a time", f"What {what} was measured at {one.time}?", one.value)
    yield Asked(
        "previous value", f"Which {what} was read just before the latest?", readings[-2].value
    )
    for k in {3, 20} if len(readings) > 20 else {3}:
        top = max(readings[-k:], key=lambda one: float(one.value)).value
        yield Asked(
            f"highest or lowest of the last {k}",
            f"What is the peak {what} among the {k} latest readings?",
            top,
        )
    yield Asked(
        "highest or lowest of all",
        f"What is the smallest {what} of all readings here?",
        min(readings, key=lambda one: float(one.value)).value,
    )
    for k in (2, 5, 10):
        if len(numbers) >= k and numbers[-1] != numbers[-k]:
            yield Asked(
                "up or down",
                f"Comparing the first and the last of the {k} latest readings, did the {what} go "
                "up or down?",
                "up" if numbers[-1] > numbers[-k] else "down",
                ("up", "down"),
            )
    limit = round(numbers[-1] * rng.uniform(0.9, 1.1), 1)
    if limit != numbers[-1]:
        yield Asked(
            "threshold",
            f"Does the current {what} exceed {limit}?",
            "yes" if numbers[-1] > limit else "no",
            YES_NO,
        )
    yield Asked("unknown", f"What {what} was measured at 1999-12-31 23:59?", "unknown")


_ITEMS = "printer laptop bicycle ladder camera piano drill scanner tent kayak".split()
_SHELVES = "north hall, cellar, attic, garage, room 12, room 30, shed, office, lab 4, yard".split(
    ", "
)


def _key_case(rng: random.Random, number: int) -> Case:
    """Where things are; each is moved several times."""
    forms: Sequence[Callable[[str, str], str]] = (
        lambda item, place: f"{item}: {place}",
        lambda item, place: f"The {item} is now in the {place}.",
        lambda item, place: f"UPDATE {item} location={place}",
    )
    updates = [(rng.choice(_ITEMS), rng.choice(_SHELVES)) for _ in range(1200)]
    entries = [forms[number % len(forms)](*update) for update in updates]

    def ask(rng: random.Random, count: int) -> list[Asked]:
        where = dict(updates[:count])
        asked = [
            Asked("updated key", f"Where can the {item} be found now?", where[item])
            for item in rng.sample(sorted(where), min(4, len(where)))
        ]
        stranger = rng.choice(("violin", "wheelbarrow", "telescope"))
        asked.append(Asked("unknown", f"Where can the {stranger} be found now?", "unknown"))
        asked.append(Asked("what changed", "Which thing was updated last?", updates[count - 1][0]))
        return asked

    return Case("keys", entries, ask)


def is_right(asked: Asked, text: str) -> bool:
    """Whether an answer says the truth."""
    said, truth = text.strip().lower(), asked.answer.lower()
    if re.fullmatch(r"-?[\d.,]+", truth):
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", said)
        return bool(numbers) and float(numbers[0].replace(",", "")) == float(truth)
    return said.startswith(truth)


def _cases(rng: random.Random, streams: int) -> list[Case]:
    bars = _bars()
    cases: list[Case] = []
    for number in range(streams):
        cases.append(_stock_case(rng, bars, number))
        cases.append(_stock_case(rng, bars, number + 1))
        file = ("CGM.csv.gz", "sea_surface_temperature.csv.gz")[number % 2]
        cases.append(_reading_case(rng, file, number))
        cases.append(_key_case(rng, number))
    return cases


Counts = dict[str, list[bool]]


def evaluate(model: jaxstate.Model, tokens: int, cases: Sequence[Case], wrong: list[str]) -> Counts:
    """Right and wrong answers by family, at that many tokens of context."""
    found: Counts = defaultdict(list)
    cells = min(tokens + _QUESTION_TOKENS, model.config.max_context)
    with jaxstate.Engine(model, cells=cells, session_cells=cells) as engine:
        for number, case in enumerate(track(cases, f"{tokens:,} tokens", console=_ERR)):
            session, read = engine.open(f"case-{number}"), 0
            used = session.info().tokens
            for entry in case.entries:
                used += len(model.template.entry_tokens(model.text, entry))
                if used > tokens:
                    break
                session.push(entry)
                read += 1
            session.wait()
            for asked in case.ask(random.Random(number), read):
                answer = session.ask(asked.text, max_tokens=24, choices=asked.choices or None)
                right = is_right(asked, answer.text)
                found[asked.family].append(right)
                if not right:
                    wrong.append(
                        f"{tokens} {case.name}: {asked.text} {asked.answer!r}, not {answer.text!r}"
                    )
            session.close()
    return found


def _shares(found: Counts) -> dict[str, float]:
    everything = [right for rights in found.values() for right in rights]
    return {
        **{family: sum(rights) / len(rights) for family, rights in sorted(found.items())},
        "all": sum(everything) / len(everything),
    }


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("-m", "--model", default="streams-20m", help="as jaxstate.load takes it")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8000])
    parser.add_argument("--streams", type=int, default=6, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    options = parser.parse_args()
    model = jaxstate.load(options.model, dtype=options.dtype)
    wrong: list[str] = []
    shares: dict[int, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for tokens in options.tokens:
        cases = _cases(random.Random(options.seed), options.streams)
        found = evaluate(model, tokens, cases, wrong)
        shares[tokens] = _shares(found)
        counts = {family: len(rights) for family, rights in found.items()}
    table = Table(title=f"right answers of {model.source}, %")
    for name in ("family", "asked", *(f"{tokens:,}" for tokens in options.tokens)):
        table.add_column(name, justify="left" if name == "family" else "right")
    for family in sorted({name for one in shares.values() for name in one}, key=_last_all):
        cells = [f"{100 * one[family]:.0f}" if family in one else "" for one in shares.values()]
        table.add_row(family, str(counts.get(family, sum(counts.values()))), *cells)
    Console().print(table)
    if options.wrong:
        print("\n".join(wrong))
    print(json.dumps({"model": model.source, "right": shares}))
    return 0


def _last_all(name: str) -> tuple[bool, str]:
    return name == "all", name


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description."""


if __name__ == "__main__":
    sys.exit(main())
