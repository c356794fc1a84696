"""Prices: bars and ticks of symbols.

Comes in: a random number generator. Goes out: the sources `Bars` and `Ticks`. Does not know:
questions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from jaxstate.training.data import names
from jaxstate.training.data.numbers import Shown, price_walk
from jaxstate.training.data.records import Record, Value, Words
from jaxstate.training.data.sources import Source, Turns
from jaxstate.training.data.times import Clock


def _some_symbols(rng: random.Random) -> list[str]:
    count = rng.choice((1, 1, 1, 2, 2, 3, 3, 4, 5, 6))
    return names.distinct(lambda: names.symbol(rng), count)


def _currency(rng: random.Random, fields: Sequence[str]) -> Mapping[str, str]:
    if rng.random() < 0.88:
        return {}
    written = rng.choice(("${}", "${}", "€{}", "{} USD", "{} EUR"))
    return dict.fromkeys(fields, written)


class Bars(Source):
    """Open, high, low, close and often volume of symbols."""

    kind = "bars"
    entity_keys = ("symbol", "ticker", "sym", "instrument", "name")
    sentences = (
        "{time} {entity} [opened at|open] {open}, high {high}, low {low}, [closed at|close] "
        "{close}",
        "{time} {entity} [opened at|open] {open}, high {high}, low {low}, [closed at|close] {close}"
        "[, volume {volume}| on volume of {volume}]",
        "{time}: {entity} opened at {open}, [reached|rose to] {high}, fell to {low} and closed at "
        "{close}[.|]",
        "{entity} on {time}: open {open} high {high} low {low} close {close}",
        "{time} opened at {open}, high {high}, low {low}, closed at {close}[.|]",
        "{entity} opened at {open}, peaked at {high}, bottomed at {low}, and closed at {close}.",
        "[On|At] {time}, {entity} traded between {low} and {high}, opening at {open} and closing at"
        " {close}[ with {volume} shares traded|, volume {volume}].",
        "{time}: open {open}, high {high}, low {low}, close {close}, volume {volume}",
    )

    def __init__(self, rng: random.Random) -> None:
        entities = _some_symbols(rng)
        fields: dict[str, tuple[str, ...]] = {
            "open": ("open", "opening price", "open price"),
            "high": ("high", "high price"),
            "low": ("low", "low price"),
            "close": ("close", "closing price", "close price", "close"),
        }
        if rng.random() < 0.6:
            fields["volume"] = ("volume", "trading volume", "volume traded")
        daily = rng.random() < 0.6
        words = Words(
            record=("bar", "bar", "day" if daily else "candle", "entry"),
            records=("bars", "bars", "days" if daily else "candles", "entries"),
            entity=("symbol", "symbol", "ticker", "stock", "instrument"),
            fields=fields,
            plain="close",
            plain_words=("price", "price", "last price", "value"),
            verbs={
                "open": ("[What|At what price|Where] did {e} open[ at|]{when}?",),
                "high": (
                    "How high did {e} [go|get|trade|climb|rise]{when}?",
                    "What was the most that {e} [cost|traded for|fetched]{when}?",
                ),
                "low": (
                    "How low did {e} [go|get|trade|fall|sink]{when}?",
                    "What was the least that {e} [cost|traded for|fetched]{when}?",
                ),
                "close": (
                    "[What|At what level|Where] did {e} [close|finish|end|settle][ at|]{when}?",
                    "{e} [closed|ended|settled] at what[ price|]{when}?",
                ),
                "volume": (
                    "How much of {e} was traded{when}?",
                    "How many shares of {e} [changed hands|were traded]{when}?",
                ),
            },
        )
        walks = {entity: price_walk(rng) for entity in entities}
        if rng.random() < 0.7:  # one feed writes all of its prices alike
            shown = next(iter(walks.values()))[1]
            walks = {entity: (walk, shown) for entity, (walk, _) in walks.items()}
        self._walks, self._turns = walks, Turns(rng, entities)
        self._volume = math.exp(rng.uniform(math.log(50), math.log(4e8)))
        self._volume_shown = Shown(0, groups=rng.random() < 0.15)
        self._time = ""
        super().__init__(rng, entities, words, Clock(rng, daily=daily))

    def units(self) -> Mapping[str, str]:
        """Some feeds write a currency."""
        return _currency(self.rng, ("open", "high", "low", "close"))

    def decimals(self, entity: str, field: str) -> int:
        """Of its prices; volumes have none."""
        return 0 if field == "volume" else self._walks[entity][1].decimals

    def make(self) -> Record:
        """A bar that starts near where the last one ended."""
        entity, due = self._turns.next()
        if due:
            self._time = self.clock.tick()
        walk, shown = self._walks[entity]
        last = walk.now
        spread = max(1.0, abs(walk.move() - last))
        opened = last + round(self.rng.gauss(0, 0.3) * spread)
        high = max(opened, walk.now) + round(abs(self.rng.gauss(0, 0.6)) * spread)
        low = max(1, min(opened, walk.now) - round(abs(self.rng.gauss(0, 0.6)) * spread))
        numbers = {"open": max(1, opened), "high": high, "low": low, "close": walk.now}
        values = {field: shown.value(number) for field, number in numbers.items()}
        if "volume" in self.words.fields:
            volume = round(self._volume * math.exp(self.rng.gauss(0, 0.5)))
            values["volume"] = self._volume_shown.value(volume)
        return Record(entity, self._time if self.timed else "", values)


class Ticks(Source):
    """Trades or quotes: a price, sometimes a size."""

    kind = "ticks"
    entity_keys = Bars.entity_keys
    sentences = (
        "{time} {entity} traded at {price}",
        "{time} {entity} [trades at|at|@|is at|now] {price}",
        "{entity} [traded at|last|@|is now at|=] {price}",
        "{time} [price|last price|trade at|traded at] {price}",
        "[price is now|last price|traded at|new price:] {price}",
        "{time} trade {entity} {size} @ {price}",
        "{time} {entity} {price} x {size}",
        "{entity}: [bought|sold|traded] {size} at {price}",
        "At {time} {entity} changed hands at {price}[.|]",
        "{time} {entity} traded at {price}, [volume|size|quantity] {size}[.|]",
    )

    def __init__(self, rng: random.Random) -> None:
        entities = _some_symbols(rng)
        fields: dict[str, tuple[str, ...]] = {
            "price": ("price", "price", "trade price", "traded price")
        }
        if rng.random() < 0.4:
            fields["size"] = ("size", "trade size", "quantity")
        words = Words(
            record=("trade", "tick", "entry", "line", "quote"),
            records=("trades", "ticks", "entries", "lines", "prices"),
            entity=("symbol", "symbol", "ticker", "stock", "company"),
            fields=fields,
            plain="price",
            plain_words=("price", "price", "value"),
            verbs={
                "price": (
                    "[What|At what price|For how much] did {e} [trade|sell|go][ at| for|]{when}?",
                    "How much [did|does] {e} cost{when}?",
                    "What [was paid|did people pay] for {e}{when}?",
                    "{e} [traded|was traded|went] at what[ price|]{when}?",
                ),
                "size": ("How [much|many] of {e} [was|were] [traded|sold]{when}?",),
            },
        )
        self._walks = {entity: price_walk(rng) for entity in entities}
        self._turns = Turns(rng, entities)
        self._lot = rng.choice((1, 1, 10, 100))
        super().__init__(rng, entities, words, Clock(rng, daily=rng.random() < 0.1))

    def units(self) -> Mapping[str, str]:
        """Some feeds write a currency."""
        return _currency(self.rng, ("price",))

    def decimals(self, entity: str, field: str) -> int:
        """Of its prices; sizes have none."""
        return 0 if field == "size" else self._walks[entity][1].decimals

    def make(self) -> Record:
        """A price after the last one."""
        entity, _ = self._turns.next()
        walk, shown = self._walks[entity]
        values = {"price": shown.value(walk.move())}
        if "size" in self.words.fields:
            number = self._lot * self.rng.randint(1, 60)
            values["size"] = Value(str(number), number)
        return Record(entity, self.clock.tick() if self.timed else "", values)
