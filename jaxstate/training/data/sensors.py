"""Readings of devices.

Comes in: a random number generator. Goes out: the source `Sensors`. Does not know: questions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from jaxstate.training.data import names
from jaxstate.training.data.numbers import Shown, Walk
from jaxstate.training.data.records import Record, Words
from jaxstate.training.data.sources import Source, Turns
from jaxstate.training.data.times import Clock


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
DEVICES = (
    "sensor boiler tank pump valve motor room reactor turbine probe node meter station unit line "
    "freezer server rack bay patient vehicle buoy well silo oven furnace fan zone gate"
).split()


class Sensors(Source):
    """Readings of one to three quantities of some devices."""

    kind = "sensors"
    entity_keys = ("sensor", "device", "id", "name", "station", "unit")

    def __init__(self, rng: random.Random) -> None:
        quantities = rng.sample(sorted(_QUANTITIES), rng.choice((1, 1, 1, 2, 2, 3)))
        noun = rng.choice(DEVICES)
        count = rng.choice((1, 1, 2, 2, 3, 4, 5, 6))
        entities = names.distinct(
            lambda: names.device(rng, noun if rng.random() < 0.8 else rng.choice(DEVICES)), count
        )
        single = quantities[0] if len(quantities) == 1 else None
        words = Words(
            record=("reading", "reading", "measurement", "entry", "sample"),
            records=("readings", "readings", "measurements", "entries", "samples"),
            entity=("sensor", "device", noun),
            fields={name: _QUANTITIES[name].words for name in quantities},
            plain=single,
            plain_words=("reading", "value", "measurement"),
            verbs={
                name: (
                    "[What|Which value] did {e} [show|report|measure|read|give|send]{when}?",
                    "What [was|has been] measured [by|at] {e}{when}?",
                )
                for name in quantities[:1]
                if single
            },
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
        self._turns, self._time = Turns(rng, entities), ""
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
