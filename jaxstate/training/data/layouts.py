"""How entries look: pairs, columns, JSON, tables, sentences.

Comes in: records of one source. Goes out: their text, all in one layout. Does not know: what the
fields mean.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence

from jaxstate.training.data.phrases import say
from jaxstate.training.data.records import Record

Layout = Callable[[Record], str]

_KNOWN_ORDER = ("open", "high", "low", "close")


def make_layout(
    rng: random.Random,
    fields: Sequence[str],
    *,
    named: bool,
    timed: bool,
    entity_key: str,
    short: Mapping[str, str],
    units: Mapping[str, str],
    sentences: Sequence[str],
) -> tuple[Layout, str | None]:
    """A layout, and the header line that comes before its entries, if it has one.

    Args:
        rng: chooses it.
        fields: in their usual order.
        named, timed: whether entries say who and when.
        entity_key: what programs call an entity.
        short: an abbreviation of each field.
        units: of those fields that have one, as formats ("{} kg", "${}").
        sentences: patterns with {time}, {entity} and the fields in braces.
    """
    sentences = [
        one
        for one in sentences
        if ("{entity}" in one) == named
        and ("{time}" in one) == timed
        and set(re.findall(r"{(\w+)}", one)) - {"entity", "time"} == set(fields)
    ]
    kind = rng.choice(
        ("pairs", "pairs", "pairs", "columns", "columns", "json", "table", "slashes")
        + ("sentence",) * (4 if sentences else 0)
    )
    if kind == "sentence":
        return _sentence(rng, rng.choice(sentences), units), None
    if kind == "json":
        return _json(rng, fields, named, timed, entity_key, short), None
    if kind in ("columns", "table"):
        return _columns(rng, fields, named, timed, entity_key, table=kind == "table")
    if kind == "slashes" and tuple(fields[:4]) == _KNOWN_ORDER:
        return _slashes(rng, fields, named, timed), None
    return _pairs(rng, fields, named, timed, short, units), None


def _sentence(rng: random.Random, pattern: str, units: Mapping[str, str]) -> Layout:
    settled = random.Random(rng.random())
    state = settled.getstate()

    def write(record: Record) -> str:
        settled.setstate(state)  # always the same alternatives
        shown = {
            name: units.get(name, "{}").format(value.shown) for name, value in record.values.items()
        }
        said = say(settled, pattern, {"entity": record.entity, "time": record.time, **shown})
        return " ".join(said.split())  # alternatives that are empty leave spaces

    return write


def _json(
    rng: random.Random,
    fields: Sequence[str],
    named: bool,
    timed: bool,
    entity_key: str,
    short: Mapping[str, str],
) -> Layout:
    keys = {field: short[field] if rng.random() < 0.3 else field for field in fields}
    time_key = rng.choice(("time", "t", "ts", "timestamp", "date"))
    separators = rng.choice(((", ", ": "), (",", ":")))
    entity_first, quoted = rng.random() < 0.4, rng.random() < 0.25

    def write(record: Record) -> str:
        head = {time_key: record.time} if timed else {}
        who = {entity_key: record.entity} if named else {}
        content = (who | head) if entity_first else (head | who)
        parts = [f"{json.dumps(key)}{separators[1]}{json.dumps(text)}"
                 for key, text in content.items()]  # fmt: skip
        for field in fields:
            value = record.values[field]
            plain = value.number is not None and "," not in value.shown and not quoted
            text = value.shown if plain else json.dumps(value.shown)
            parts.append(f"{json.dumps(keys[field])}{separators[1]}{text}")
        return "{" + separators[0].join(parts) + "}"

    return write


def _columns(
    rng: random.Random,
    fields: Sequence[str],
    named: bool,
    timed: bool,
    entity_key: str,
    *,
    table: bool,
) -> tuple[Layout, str | None]:
    between = " | " if table else rng.choice((",", ",", ", ", ";", "\t", " | ", "  "))
    if any(" " in one for one in fields) and between == "  ":
        between = ","
    edges = ("| ", " |") if table else ("", "")
    entity_first = rng.random() < 0.4
    case = rng.choice((str.lower, str.lower, str.title, str.upper))
    time_key = rng.choice(("date", "time", "timestamp", "t"))

    def line(time: str, entity: str, values: Sequence[str]) -> str:
        head = ([time] if timed else []) + ([entity] if named else [])
        if entity_first:
            head.reverse()
        return edges[0] + between.join([*head, *values]) + edges[1]

    def write(record: Record) -> str:
        return line(record.time, record.entity, [record.values[field].shown for field in fields])

    header = line(case(time_key), case(entity_key), [case(field) for field in fields])
    return write, header


def _slashes(rng: random.Random, fields: Sequence[str], named: bool, timed: bool) -> Layout:
    """Only where everybody knows the order: open, high, low, close, then what else there is."""
    letters = "".join(field[0].upper() for field in fields)
    label, between = rng.choice((f"{letters} ", f"{letters}: ", f"({letters}) ")), rng.choice("/ ")
    colon = rng.choice((" ", ": ", " - "))

    def write(record: Record) -> str:
        head = " ".join(([record.time] if timed else []) + ([record.entity] if named else []))
        values = between.join(record.values[field].shown for field in fields)
        return (head + colon if head else "") + label + values

    return write


def _pairs(
    rng: random.Random,
    fields: Sequence[str],
    named: bool,
    timed: bool,
    short: Mapping[str, str],
    units: Mapping[str, str],
) -> Layout:
    style = rng.choice((str, str, str.capitalize, str.upper, short.__getitem__))
    names = {field: style(field) for field in fields}
    equals = rng.choice(("=", ": ", " ", ":"))
    between = rng.choice((" ", ", ", "; ", " | ")) if equals != " " else rng.choice((", ", "; "))
    entity_first, colon = rng.random() < 0.3, rng.choice((" ", ": ", " - ", " | ", ", "))
    hides_name = len(fields) == 1 and named and rng.random() < 0.6

    def write(record: Record) -> str:
        head = ([record.time] if timed else []) + ([record.entity] if named else [])
        if entity_first:
            head.reverse()
        pairs = between.join(
            ("" if hides_name else names[field] + equals)
            + units.get(field, "{}").format(record.values[field].shown)
            for field in fields
        )
        return (" ".join(head) + colon if head else "") + pairs

    return write
