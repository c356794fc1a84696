"""What streams are about: bars, ticks, sensors, logs, and facts that change.

Comes in: a random number generator. Goes out: sources, each of which makes one entry after the
other and remembers what it said. Does not know: questions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxstate.training.data import names
from jaxstate.training.data.layouts import make_layout
from jaxstate.training.data.numbers import Shown, Walk, price_walk
from jaxstate.training.data.records import History, Record, Value, Words
from jaxstate.training.data.times import Clock

_RELAYOUT = 0.1  # of the streams change their layout under way, as feeds do
_RELAYOUT_EACH = 0.01


class Source:
    """Makes records and writes them down.

    Attributes:
        kind: "bars", "ticks", "sensors", "logs" or "facts".
        words: how people speak of it.
        history: what it said so far.
        clock: of its entries.
        entities: all that it may speak of, whether it has or not.
        named, timed: whether entries say who and when.
    """

    kind = ""
    entity_keys: Sequence[str] = ("name",)
    sentences: Sequence[str] = ()

    def __init__(self, rng: random.Random, entities: list[str], words: Words, clock: Clock) -> None:
        self.rng, self.words, self.history = rng, words, History()
        self.entities, self.clock = entities, clock
        self.named = len(entities) > 1 or rng.random() < 0.75
        self.timed = rng.random() < 0.85
        self._relayouts = _RELAYOUT_EACH if rng.random() < _RELAYOUT else 0.0
        self._pending: str | None = None
        self.relayout()

    @property
    def fields(self) -> list[str]:
        """In the order of the layout."""
        return [*self.words.fields, *self.words.labels]

    def relayout(self) -> None:
        """Chooses how entries look from now on."""
        self._write, self._pending = make_layout(
            self.rng,
            self.fields,
            named=self.named,
            timed=self.timed,
            entity_key=self.rng.choice(self.entity_keys),
            short=self.short(),
            units=self.units(),
            sentences=self.sentences,
        )

    def short(self) -> Mapping[str, str]:
        """Abbreviations of the fields: one letter where that tells them apart."""
        letters = [field[0].upper() for field in self.fields]
        if len(set(letters)) == len(letters) and self.rng.random() < 0.6:
            return dict(zip(self.fields, letters, strict=True))
        return {field: field[: max(3, len(field) // 2)] for field in self.fields}

    def units(self) -> Mapping[str, str]:
        """What is written around the numbers of a field, as formats."""
        return {}

    def decimals(self, entity: str, field: str) -> int:
        """Of the numbers of a field."""
        del entity, field
        return 0

    def emit(self) -> str:
        """The next entry; some are headers."""
        if self._relayouts and self.rng.random() < self._relayouts:
            self.relayout()
        if self._pending is not None:
            header, self._pending = self._pending, None
            if self.rng.random() < 0.8:
                return header
        record = self.make()
        self.history.add(record)
        return self._write(record)

    def make(self) -> Record:
        """The next record."""
        raise NotImplementedError


class _Turns:
    """Whose turn it is: all entities one after the other, or at random."""

    def __init__(self, rng: random.Random, entities: Sequence[str]) -> None:
        self._rng, self._entities, self._at = rng, entities, 0
        self._even = rng.random() < 0.5
        self._weights = [rng.uniform(0.3, 1) for _ in entities]

    def next(self) -> tuple[str, bool]:
        """The entity, and whether a round has ended before it."""
        if not self._even:
            return self._rng.choices(self._entities, self._weights)[0], True
        entity = self._entities[self._at]
        first = self._at == 0
        self._at = (self._at + 1) % len(self._entities)
        return entity, first


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
        "{time} {entity} [opened at|open] {open}, high {high}, low {low}, [closed at|close] {close}",
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
        fields = {
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
        )
        walks = {entity: price_walk(rng) for entity in entities}
        if rng.random() < 0.7:  # one feed writes all of its prices alike
            shown = next(iter(walks.values()))[1]
            walks = {entity: (walk, shown) for entity, (walk, _) in walks.items()}
        self._walks, self._turns = walks, _Turns(rng, entities)
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
        fields = {"price": ("price", "price", "trade price", "traded price")}
        if rng.random() < 0.4:
            fields["size"] = ("size", "trade size", "quantity")
        words = Words(
            record=("trade", "tick", "entry", "line", "quote"),
            records=("trades", "ticks", "entries", "lines", "prices"),
            entity=("symbol", "symbol", "ticker", "stock", "company"),
            fields=fields,
            plain="price",
            plain_words=("price", "price", "value"),
        )
        self._walks = {entity: price_walk(rng) for entity in entities}
        self._turns = _Turns(rng, entities)
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


@dataclass(frozen=True, slots=True)
class _Quantity:
    """Something that sensors measure.

    Attributes:
        words: what it is called.
        units: one of them is written behind it.
        low, high: usual values.
        decimals: shown.
    """

    words: tuple[str, ...]
    units: tuple[str, ...]
    low: float
    high: float
    decimals: tuple[int, ...] = (0, 1, 1, 2)


_QUANTITIES: Mapping[str, _Quantity] = {
    "temperature": _Quantity(("temperature", "temp"), (" C", " °C", "C", " F", " K"), -20, 120),
    "pressure": _Quantity(("pressure",), (" bar", " kPa", " psi", " hPa"), 1, 1100),
    "humidity": _Quantity(("humidity", "relative humidity"), ("%", " %"), 10, 99),
    "voltage": _Quantity(("voltage",), (" V", "V", " mV"), 1, 400),
    "current": _Quantity(("current",), (" A", "A", " mA"), 0.5, 60),
    "speed": _Quantity(("speed",), (" km/h", " m/s", " rpm"), 1, 3000),
    "level": _Quantity(("level", "fill level"), (" cm", " %", " l", " mm"), 5, 900),
    "flow": _Quantity(("flow", "flow rate"), (" l/s", " l/min", " m3/h"), 1, 250),
    "power": _Quantity(("power",), (" W", " kW", " MW"), 1, 5000),
    "load": _Quantity(("load", "CPU load"), ("", "%", " %"), 1, 100),
    "latency": _Quantity(("latency",), (" ms", "ms"), 1, 800),
    "glucose": _Quantity(("glucose", "glucose level"), (" mg/dL", ""), 50, 320, (0,)),
    "heart_rate": _Quantity(("heart rate", "pulse"), (" bpm", ""), 45, 190, (0,)),
    "weight": _Quantity(("weight",), (" kg", " t", " g"), 1, 900),
    "depth": _Quantity(("depth",), (" m",), 1, 400),
    "reading": _Quantity(("reading", "value"), ("",), 0, 1000),
    "wind": _Quantity(("wind speed", "wind"), (" km/h", " m/s", " kn"), 0, 130),
    "rain": _Quantity(("rainfall", "rain"), (" mm",), 0, 60),
    "co2": _Quantity(("CO2", "CO2 level"), (" ppm",), 350, 2500, (0,)),
    "queue": _Quantity(("queue length", "queue"), ("",), 0, 900, (0,)),
}
_DEVICES = (
    "sensor boiler tank pump valve motor room reactor turbine probe node meter station unit line "
    "freezer server rack bay patient vehicle buoy well silo oven furnace fan zone gate"
).split()


class Sensors(Source):
    """Readings of one to three quantities of some devices."""

    kind = "sensors"
    entity_keys = ("sensor", "device", "id", "name", "station", "unit")

    def __init__(self, rng: random.Random) -> None:
        quantities = rng.sample(sorted(_QUANTITIES), rng.choice((1, 1, 1, 2, 2, 3)))
        noun = rng.choice(_DEVICES)
        count = rng.choice((1, 1, 2, 2, 3, 4, 5, 6))
        entities = names.distinct(
            lambda: names.device(rng, noun if rng.random() < 0.8 else rng.choice(_DEVICES)), count
        )
        single = quantities[0] if len(quantities) == 1 else None
        words = Words(
            record=("reading", "reading", "measurement", "entry", "sample"),
            records=("readings", "readings", "measurements", "entries", "samples"),
            entity=("sensor", "device", noun),
            fields={name: _QUANTITIES[name].words for name in quantities},
            plain=single,
            plain_words=("reading", "value", "measurement"),
        )
        with_units = rng.random() < 0.6
        self._units = {
            name: "{}" + rng.choice(_QUANTITIES[name].units) if with_units else "{}"
            for name in quantities
        }
        self.sentences = [
            pattern.replace("{q}", name).replace("{field}", "{" + name + "}")
            for name in quantities[:1]
            if single
            for pattern in _SENSOR_SENTENCES
        ]
        self._shown = {
            name: Shown(rng.choice(_QUANTITIES[name].decimals), strips=rng.random() < 0.2)
            for name in quantities
        }
        self._walks = {
            (entity, name): self._walk(rng, name) for entity in entities for name in quantities
        }
        self._turns, self._time = _Turns(rng, entities), ""
        super().__init__(rng, entities, words, Clock(rng, daily=rng.random() < 0.1))

    def _walk(self, rng: random.Random, name: str) -> Walk:
        quantity, scale = _QUANTITIES[name], 10 ** self._shown[name].decimals
        start = rng.uniform(quantity.low, quantity.high)
        width = (quantity.high - quantity.low) * math.exp(rng.uniform(-6.5, -2))
        floor = None if quantity.low < 0 else 0
        return Walk(rng, round(start * scale), max(1.0, width * scale), floor, relative=False)

    def units(self) -> Mapping[str, str]:
        """One of each quantity's, or none."""
        return self._units

    def decimals(self, entity: str, field: str) -> int:
        """Of the quantity."""
        return self._shown[field].decimals

    def make(self) -> Record:
        """Readings after the last ones."""
        entity, due = self._turns.next()
        if due:
            self._time = self.clock.tick()
        values = {
            name: self._shown[name].value(self._walks[entity, name].move())
            for name in self.words.fields
        }
        return Record(entity, self._time if self.timed else "", values)


_SENSOR_SENTENCES = (
    "{time} {entity} {q} {field}",
    "{time} {entity} [reports|measured|shows|reads] {field}",
    "{entity} [reports|measured|shows|reads] {field}",
    "{time} {q} [of|at|in] {entity}[:| is] {field}",
    "[The|] {q} [of|at|in] {entity} is [now|] {field}[.|]",
    "{time} [measured|reading:|{q}] {field}",
    "{q} [is now|now|=] {field}",
    "At {time}, {entity} had a {q} of {field}.",
)
_LEVELS = ("INFO", "INFO", "INFO", "DEBUG", "WARN", "WARN", "ERROR", "ERROR", "CRITICAL")
_MESSAGES = (
    "connection to {w} refused",
    "timeout after {n} ms",
    "user {p} logged in",
    "user {p} logged out",
    "disk {w} at {n}%",
    "request {n} took {m} ms",
    "job {w} started",
    "job {w} finished in {m} s",
    "job {w} failed",
    "cache miss for {w}",
    "retry {d} of 5",
    "certificate of {w} expires in {d} days",
    "payment {n} declined",
    "payment {n} accepted",
    "order {n} shipped",
    "config reloaded",
    "health check passed",
    "health check failed",
    "queue {w} has {n} messages",
    "restarting",
    "out of memory",
    "rate limit of {p} reached",
    "upload of {w} complete",
    "cannot open {w}",
)


class Logs(Source):
    """Log lines: level, service, sometimes a code, a message."""

    kind = "logs"
    entity_keys = ("service", "svc", "logger", "component")
    sentences = (
        "{time} {level} {entity} {message}",
        "{time} {level} [{entity}] {message}".replace("[", "(").replace("]", ")"),
        "{time} {entity} {level} {message}",
        "{time} {entity}: {level}: {message}",
        "{level} {entity}: {message}",
        "{time} {level} {entity} {code} {message}",
        "{time} {entity} {level} {code}: {message}",
        "{level} {code} {entity} - {message}",
        "{time} {level} {message}",
        "{level}: {message}",
        "{time} {level} {code} {message}",
    )

    def __init__(self, rng: random.Random) -> None:
        count = rng.choice((1, 2, 3, 3, 4, 5, 6))
        entities = names.distinct(lambda: _service(rng), count)
        labels = {"level": ("level", "log level", "severity")}
        if rng.random() < 0.45:
            labels["code"] = ("code", "error code", "status code")
        labels["message"] = ("message", "log message")
        words = Words(
            record=("line", "log line", "entry", "message", "event"),
            records=("lines", "log lines", "entries", "events"),
            entity=("service", "component", "service"),
            fields={},
            labels=labels,
        )
        prefix, digits = rng.choice(("E", "ERR-", "", "code ", "X")), rng.choice((2, 3, 4))
        self._codes = [
            prefix + str(rng.randrange(10 ** (digits - 1), 10**digits))
            for _ in range(rng.randint(3, 12))
        ]
        self._small = rng.random() < 0.2
        self._turns = _Turns(rng, entities)
        self._people = [names.person(rng) for _ in range(4)]
        super().__init__(rng, entities, words, Clock(rng, daily=False))

    def short(self) -> Mapping[str, str]:
        """As loggers write them."""
        return {"level": self.rng.choice(("lvl", "severity")), "code": "code", "message": "msg"}

    def make(self) -> Record:
        """A line."""
        entity, _ = self._turns.next()
        rng = self.rng
        level = rng.choice(_LEVELS)
        message = rng.choice(_MESSAGES).format(
            w=names.word(rng),
            p=rng.choice(self._people),
            n=rng.randint(10, 9999),
            m=rng.randint(1, 900),
            d=rng.randint(1, 9),
        )
        shown = {"level": level.lower() if self._small else level, "message": message}
        if "code" in self.words.labels:
            shown["code"] = rng.choice(self._codes)
        values = {field: Value(shown[field]) for field in self.words.labels}
        return Record(entity, self.clock.tick() if self.timed else "", values)


def _service(rng: random.Random) -> str:
    parts = ("auth payment billing api db cache search order user mail queue web login report "
             "backup scheduler gateway worker ingest export inventory shipping").split()  # fmt: skip
    tail = rng.choice(("", "-service", "-svc", "-api", "d", f"-{rng.randint(1, 9)}", "_worker"))
    return rng.choice(parts) + tail


class Facts(Source):
    """Keys with values that are set and set again."""

    kind = "facts"
    entity_keys = ("key", "name", "id", "item")

    def __init__(self, rng: random.Random) -> None:
        what = rng.choice(sorted(_FACTS))
        self.fact = _FACTS[what]
        count = rng.choice((2, 3, 4, 6, 8, 12, 20))
        entities = names.distinct(lambda: self.fact.key(rng), count)
        words = Words(
            record=("update", "entry", "line", "change"),
            records=("updates", "entries", "lines", "changes"),
            entity=self.fact.nouns,
            fields={},
            labels={self.fact.field: self.fact.words},
        )
        self.sentences = [
            one.replace("{value}", "{" + self.fact.field + "}")
            for one in (*self.fact.sentences, *_FACT_SENTENCES)
        ]
        self._fresh = list(entities)
        rng.shuffle(self._fresh)
        super().__init__(rng, entities, words, Clock(rng, daily=rng.random() < 0.3))
        self.timed = self.timed and rng.random() < 0.5
        self.named = True
        self.relayout()

    def make(self) -> Record:
        """A key that is new, or one that changes."""
        if self._fresh and (not self.history.records or self.rng.random() < 0.5):
            entity = self._fresh.pop()
        else:
            entity = self.rng.choice(sorted(self.history.of))
        value = self.fact.value(self.rng)
        before = self.history.of.get(entity)
        if before and before[-1].values[self.fact.field].shown == value:
            value = self.fact.value(self.rng)
        time = self.clock.tick() if self.timed else ""
        return Record(entity, time, {self.fact.field: Value(value)})


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A kind of facts.

    Attributes:
        nouns: what a key is.
        field: what it has.
        words: what that is called.
        key, value: make one.
        sentences: patterns with {entity}, {value} and perhaps {time}.
        ask: questions for the value, with {e}.
    """

    nouns: tuple[str, ...]
    field: str
    words: tuple[str, ...]
    key: Callable[[random.Random], str]
    value: Callable[[random.Random], str]
    sentences: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()


_FACT_SENTENCES = (
    "{entity} = {value}",
    "{entity}={value}",
    "{entity}: {value}",
    "SET {entity} {value}",
    "set {entity} to {value}",
    "{entity} -> {value}",
    "{entity} is [now|] {value}",
    "{time} {entity} = {value}",
    "{time} {entity}: {value}",
    "{time} [set|update] {entity} {value}",
    "{time} {entity} changed to {value}",
)


def _setting(rng: random.Random) -> str:
    style = rng.randrange(4)
    parts = [names.word(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    if style == 0:
        return ".".join(parts)
    if style == 1:
        return "_".join(parts).upper()
    return ("_" if style == 2 else "-").join(parts)


def _setting_value(rng: random.Random) -> str:
    return rng.choice(
        (
            str(rng.randint(0, 9999)),
            names.word(rng),
            rng.choice(("on", "off", "true", "false", "enabled", "disabled")),
            f"{rng.uniform(0, 100):.{rng.randint(1, 3)}f}",
            f"{names.word(rng)}{rng.randint(1, 99)}",
        )
    )


_STATES = (
    "open closed pending shipped delivered cancelled paid refunded lost active idle broken "
    "running stopped ready late early returned packed approved rejected"
).split()

_MODES = "on off standby idle heating cooling locked unlocked full empty online offline".split()
_THINGS = (
    "key box crate pallet bicycle truck phone tablet book lamp desk chair monitor drone wrench "
    "hammer pump sample parcel folder guitar mirror kettle helmet trolley projector router cart"
).split()
_ROOMS = "hall kitchen office lab store depot hangar corridor workshop library lobby vault".split()


def _spot(rng: random.Random) -> str:
    room = rng.choice(_ROOMS)
    return rng.choice(
        (
            room,
            f"the {room}",
            f"{names.word(rng)} {room}",
            f"room {rng.randint(1, 400)}",
            f"shelf {rng.randint(1, 40)}",
            f"{rng.choice(('north', 'south', 'east', 'west', 'upper', 'lower'))} {room}",
            names.place(rng),
            f"{room} {rng.randint(1, 20)}",
        )
    )


_FACTS: Mapping[str, Fact] = {
    "setting": Fact(
        nouns=("key", "setting", "variable", "parameter"),
        field="value",
        words=("value",),
        key=_setting,
        value=_setting_value,
        ask=("[What is|What's] {e}[ set to| now|]?", "{e}?", "[Read|Get|Show] {e}."),
    ),
    "order": Fact(
        nouns=("order", "ticket", "shipment"),
        field="status",
        words=("status", "state"),
        key=lambda rng: f"{rng.choice(('order', 'ticket', 'shipment', 'job'))} {rng.randint(1, 99999)}",
        value=lambda rng: rng.choice(_STATES),
        sentences=("{entity} was {value}[.|]", "[The|] status of {entity} is [now|] {value}[.|]"),
        ask=("[Is|What happened to|How is] {e}?", "[In what state|What state] is {e}[ in|]?"),
    ),
    "person": Fact(
        nouns=("person", "employee"),
        field="city",
        words=("city", "location", "town"),
        key=names.person,
        value=names.place,
        sentences=(
            "{entity} [moved to|is in|lives in|went to|travelled to|arrived in] {value}[.|]",
            "{time} {entity} [moved to|is in|arrived in] {value}",
        ),
        ask=(
            "Where [is|does] {e}[ now| live|]?",
            "[In|] [which|what] [city|place|town] is {e}[ now|]?",
            "Where did {e} go last?",
        ),
    ),
    "room": Fact(
        nouns=("team", "meeting"),
        field="room",
        words=("room",),
        key=lambda rng: f"{rng.choice(('team', 'meeting', 'class'))} {names.word(rng)}",
        value=lambda rng: rng.choice((str(rng.randint(1, 999)), f"{rng.choice('ABCDEF')}{rng.randint(1, 40)}")),
        sentences=("{entity} [meets in|is in|moved to] room {value}[.|]",),
        ask=("[In which|Which|What] room is {e}[ in|]?", "Where does {e} meet?"),
    ),
    "stock": Fact(
        nouns=("item", "product"),
        field="stock",
        words=("stock", "quantity", "count"),
        key=lambda rng: f"{names.word(rng)} {rng.choice(('bolts', 'boxes', 'cables', 'bottles', 'chairs', 'tiles'))}",
        value=lambda rng: str(rng.randint(0, 999)),
        sentences=("[stock of|inventory:|] {entity} {value}", "{value} {entity} [left|in stock]"),
        ask=("How many {e} are [left|there|in stock][ now|]?",),
    ),
    "place": Fact(
        nouns=("item", "thing", "object"),
        field="location",
        words=("location", "place", "position"),
        key=lambda rng: rng.choice(("", "", "the ", f"{names.word(rng)} ")) + rng.choice(_THINGS),
        value=_spot,
        sentences=(
            "{entity} is [now|] in {value}[.|]",
            "{entity} [was moved to|went to|was put in|lies in|now in|is kept in] {value}[.|]",
            "[moved|put|brought] {entity} to {value}",
            "UPDATE {entity} [place|location|at]={value}",
        ),
        ask=(
            "Where [is|was] {e}[ now| kept| put| last seen|]?",
            "Where [do I find|would I find|can one get] {e}[ now|]?",
            "In [which|what] [place|room] is {e}?",
        ),
    ),
    "balance": Fact(
        nouns=("account", "customer"),
        field="balance",
        words=("balance", "amount"),
        key=lambda rng: f"{rng.choice(('account', 'customer', 'wallet', 'client'))} {rng.randint(10, 99999)}",
        value=lambda rng: f"{rng.uniform(0, 10 ** rng.randint(2, 5)):.2f}",
        sentences=("[The|] balance of {entity} is [now|] {value}[.|]", "{entity} has {value}"),
        ask=("How much [does|did] {e} have[ now|]?", "How much [is in|is left in] {e}?"),
    ),
    "gate": Fact(
        nouns=("flight", "train"),
        field="gate",
        words=("gate", "platform"),
        key=lambda rng: f"{rng.choice(('flight', 'train', 'bus'))} {rng.choice('ABKLX')}{rng.randint(10, 9999)}",
        value=lambda rng: f"{rng.choice(('', 'A', 'B', 'C', 'D'))}{rng.randint(1, 60)}",
        sentences=("{entity} [leaves from|departs from|boards at|moved to] gate {value}[.|]",),
        ask=("From which gate does {e} leave?", "[Which|What] gate [is|for] {e}?"),
    ),
    "state": Fact(
        nouns=("device", "switch", "door"),
        field="state",
        words=("state", "status", "mode"),
        key=lambda rng: names.device(rng, rng.choice(_DEVICES)),
        value=lambda rng: rng.choice(_STATES) if rng.random() < 0.5 else rng.choice(_MODES),
        sentences=("{entity} [went|is|turned|switched to] {value}[.|]", "{entity} reports {value}"),
        ask=("[How|In what state] is {e}[ now|]?", "Is {e} on or what?", "What is {e} doing[ now|]?"),
    ),
    "owner": Fact(
        nouns=("task", "project", "account"),
        field="owner",
        words=("owner", "person in charge"),
        key=lambda rng: f"{rng.choice(('project', 'task', 'account'))} {names.word(rng)}",
        value=names.person,
        sentences=("{entity} [belongs to|is owned by|was assigned to|is with] {value}[.|]",),
        ask=("Who [owns|has|is responsible for] {e}[ now|]?", "[To whom|Who] is {e} assigned[ to|]?"),
    ),
    "version": Fact(
        nouns=("package", "service", "component"),
        field="version",
        words=("version",),
        key=lambda rng: f"{names.word(rng)}-{names.word(rng)}",
        value=lambda rng: f"{rng.randint(0, 12)}.{rng.randint(0, 30)}.{rng.randint(0, 20)}",
        sentences=("{entity} [updated to|is at|upgraded to|released] [version |]{value}[.|]",),
        ask=("[Which|What] version [of {e} is running|is {e}|does {e} have]?",),
    ),
}  # fmt: skip
