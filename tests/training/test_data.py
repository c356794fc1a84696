"""Streams and their questions: the same for the same seed, and true."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.training.data import FAMILIES, Question, Stream
from jaxstate.training.data.phrases import say


def lived(seed: int, entries: int) -> tuple[Stream, list[str]]:
    stream = Stream(random.Random(seed))
    return stream, [stream.entry() for _ in range(entries)]


def questions(stream: Stream, count: int) -> list[Question]:
    asked = [stream.question() for _ in range(count)]
    return [one for one in asked if one is not None]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**9), entries=st.integers(0, 60))
def test_the_same_seed_makes_the_same_stream(seed: int, entries: int) -> None:
    (one, said), (other, again) = lived(seed, entries), lived(seed, entries)
    assert said == again and all("\n" not in entry for entry in said)
    assert questions(one, 5) == questions(other, 5)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**9), entries=st.integers(1, 120))
def test_questions_are_well_formed(seed: int, entries: int) -> None:
    stream, _ = lived(seed, entries)
    for one in questions(stream, 10):
        assert one.family in FAMILIES
        assert one.text.strip() and one.answer.strip() and "{" not in one.text
        assert not one.choices or one.answer in one.choices


def test_every_family_occurs() -> None:
    counts: Counter[str] = Counter()
    for seed in range(60):
        stream, _ = lived(seed, 60)
        counts.update(one.family for one in questions(stream, 40))
    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) > 5


def test_truth_by_what_the_entries_say() -> None:
    """Entries that are JSON are read back, and every answer about one symbol is looked up there."""
    checked: Counter[str] = Counter()
    for seed in range(4000):
        stream, said = lived(seed, 25)
        records = _one_symbol(said)
        if records is None:
            continue
        for one in questions(stream, 30):
            if _is_true(one, records):
                checked[one.family] += 1
    assert checked["last value"] > 5 and checked["previous value"] > 5
    assert checked["highest or lowest of all"] > 5 and checked["bullish or bearish"] > 2
    assert checked["highest or lowest of the last k"] > 5 and checked["value at a time"] > 5


_WHO = {"symbol", "ticker", "sym", "instrument", "name"}
_WHEN = {"time", "t", "ts", "timestamp", "date"}
_FIELDS = ("open", "high", "low", "close", "volume")


def _one_symbol(said: list[str]) -> list[dict[str, str]] | None:
    """Bars of one symbol, if all entries are JSON of that kind; values as characters."""
    if not all(entry.startswith("{") for entry in said):
        return None
    found = [json.loads(entry, parse_float=str, parse_int=str) for entry in said]
    named = {one[key] for one in found for key in _WHO if key in one}
    values = [[v for k, v in one.items() if k not in _WHO | _WHEN] for one in found]
    if len(named) > 1 or min(map(len, values)) < 4:
        return None
    if not all(re.fullmatch(r"[\d.,]+", value) for shown in values for value in shown):
        return None  # log lines
    times = [[v for k, v in one.items() if k in _WHEN] for one in found]
    return [
        dict(zip((*_FIELDS[: len(shown)], "time"), [*shown, *when], strict=False))
        for shown, when in zip(values, times, strict=True)
    ]


def _is_true(one: Question, records: list[dict[str, str]]) -> bool:
    """Raises where a question's answer cannot be true; False for families that are not checked."""
    last, answer = records[-1], one.answer
    if one.family == "last value":
        assert answer in last.values()
    elif one.family == "previous value":
        assert any(answer in record.values() for record in records[:-1])
    elif one.family == "value at a time":
        assert any(answer in record.values() for record in records)
    elif one.family in ("highest or lowest of all", "highest or lowest of the last k"):
        assert answer in _extremes(records)
    elif one.family == "bullish or bearish" and not re.search(r"\b(on|at)\b", one.text.lower()):
        rose = Decimal(last["close"]) > Decimal(last["open"])
        assert answer == ("bullish" if rose else "bearish")
    else:
        return False
    return True


def _extremes(records: list[dict[str, str]]) -> set[str]:
    """Every value that is the highest or lowest of its field over the last k, for any k."""
    found: set[str] = set()
    for field in set(records[0]) - {"time"}:
        values = [record[field].replace(",", "") for record in records]
        numbers = [Decimal(value) for value in values]
        for first in range(len(numbers)):
            tail = numbers[first:]
            found |= {records[first + tail.index(best(tail))][field] for best in (max, min)}
    return found


def test_phrases() -> None:
    rng = random.Random(0)
    said = {say(rng, "[a|b[c|]] {x}", {"x": "y"}) for _ in range(100)}
    assert said == {"a y", "bc y", "b y"}
    for wrong in ("[a|b", "a]b"):
        with pytest.raises(ValueError, match="unbalanced"):
            say(rng, wrong, {})
