"""Lines to entries."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.errors import InvalidInput
from jaxstate.formats import EntryFormat, FormatName, format_of


def entries(name: FormatName, text: str, template: str | None = None) -> list[str]:
    form = EntryFormat(name, template)
    made = [form.entry(line) for line in text.split("\n")]
    form.end()
    return [one for one in made if one is not None]


def test_lines_stay_as_they_are() -> None:
    assert entries("lines", "a\r\n\n  b \n{}") == ["a", "  b ", "{}"]


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ('{"time": "09:30", "level": "warn", "message": "up"}', "09:30 warn up"),
        ('{"@timestamp": 5, "msg": "a\\n  b"}', "5 a b"),
        ('{"date": 1.5, "log": "x", "stream": "stdout"}', "1.5 x"),
        ('{"price": 3, "ok": true, "who": null, "in": {"a": [1]}}',
         'price=3, ok=true, who=, in={"a": [1]}'),
        ('"just text"', "just text"),
        ("{}", ""),
    ],
)  # fmt: skip
def test_objects_by_their_usual_names(line: str, entry: str) -> None:
    assert EntryFormat("jsonl").entry(line) == entry


def test_objects_by_a_template() -> None:
    template = "{t} {user.name}: {text}{missing}"
    line = json.dumps({"t": 1, "user": {"name": "Ann"}, "text": "hi", "user.x": 2})
    assert EntryFormat("jsonl", template).entry(line) == "1 Ann: hi"
    assert EntryFormat("jsonl", "{user.x}").entry(line) == "2"
    with pytest.raises(InvalidInput, match="an object has none of a, b"):
        EntryFormat("jsonl", "{a} {b}").entry(line)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables(delimiter: str) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows(
        [["day", "open price", "note"], ["1", "9.5", ""], ["2", "7", 'a "b"\nc, d;\te']]
    )
    assert entries("csv", file.getvalue()) == [
        "day=1, open price=9.5",
        'day=2, open price=7, note=a "b" c, d; e',
    ]


@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["C"]), max_size=6), min_size=2, max_size=2
        ),
        max_size=5,
    )
)
def test_every_row_of_a_table_is_an_entry(rows: list[list[str]]) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([["one", "two"], *rows])
    made = entries("csv", file.getvalue().replace("\r\n", "\n"))
    wanted = [
        ", ".join(
            f"{name}={' '.join(value.split())}"
            for name, value in zip(("one", "two"), row, strict=True)
            if value.strip()
        )
        for row in rows
    ]
    assert [one for one in made if one] == [one for one in wanted if one]


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (
            "<34>Oct 11 22:14:15 mymachine su[230]: 'su root' failed for lonvick",
            "Oct 11 22:14:15 su: 'su root' failed for lonvick",
        ),
        (
            "<165>1 2026-08-24T05:14:15.000003-07:00 host evntslog 8710 ID47 "
            '[exampleSDID@32473 iut="3"] An application event',
            "2026-08-24T05:14:15.000003-07:00 evntslog: An application event",
        ),
        (
            "2026-08-24T05:14:15Z host kernel: usb 1-1: new",
            "2026-08-24T05:14:15Z kernel: usb 1-1: new",
        ),
        (
            '10.0.0.3 - - [10/Oct/2026:13:55:36 +0000] "GET /a?b HTTP/1.1" 404 23 "-" "curl/8"',
            "10/Oct/2026:13:55:36 +0000 10.0.0.3 GET /a?b 404 23 bytes",
        ),
        (
            '::1 - ann [10/Oct/2026:13:55:36 +0000] "POST / HTTP/2" 200 -',
            "10/Oct/2026:13:55:36 +0000 ::1 ann POST / 200",
        ),
        ("something else", "something else"),
    ],
)
def test_logs_lose_what_no_question_is_about(line: str, entry: str) -> None:
    assert EntryFormat("syslog").entry(line) == entry


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('{"a": 1}', "jsonl"),
        ("{not json", "lines"),
        ("date,open,close", "csv"),
        ("Zeit;Wert (C)", "csv"),
        ("Hello, world, and more.", "lines"),
        ("Oct 11 22:14:15 host su: x", "syslog"),
        ("plain", "lines"),
    ],
)
def test_what_a_first_line_looks_like(line: str, name: str) -> None:
    assert format_of(line) == name
    form = EntryFormat("auto")
    form.entry("")
    form.entry(line)
    assert form.name == name


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("jsonl", "x", "no JSON"),
        ("jsonl", "[1]", "an object or a string"),
        ("jsonl", "[" * 100_000, "no JSON"),
        ("csv", "a,b\n1", "a row has 1 fields, and the header 2"),
        ("csv", 'a,b\n"1', "within a quoted field"),
        ("csv", 'a,b\n"1"x,2', "cannot be read"),
        ("csv", 'a,b\n"' + "x\n" * 600_000, "more than 1,048,576 characters"),
    ],
)
def test_what_is_not_of_the_format_is_refused(name: FormatName, text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        entries(name, text)


def test_formats_and_templates_that_there_are_not() -> None:
    with pytest.raises(InvalidInput, match="none of auto"):
        EntryFormat("xml")  # pyright: ignore
    with pytest.raises(InvalidInput, match="template is for"):
        EntryFormat("csv", "{a}")
    with pytest.raises(InvalidInput, match="names no field"):
        EntryFormat("jsonl", "message")
