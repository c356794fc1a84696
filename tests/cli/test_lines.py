"""Lines of a byte stream: what is an entry, and what is refused by name."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.cli.lines import Line, read_lines
from jaxstate.errors import InvalidInput


def lines_of(data: bytes, **options: object) -> list[Line]:
    return list(read_lines(io.BytesIO(data), **options))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))))
def test_lines_joined_are_the_text(parts: list[str]) -> None:
    text = "\n".join(parts)
    lines = lines_of(text.encode("utf-8"))
    joined = "".join(line.text for line in lines)
    assert joined == text.removeprefix("\ufeff")
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))


def test_an_empty_stream_has_no_lines() -> None:
    assert lines_of(b"") == []


def test_blank_lines_are_entries() -> None:
    assert lines_of(b"a\n\nb") == [Line(1, "a\n"), Line(2, "\n"), Line(3, "b")]


def test_a_line_that_is_not_utf8_is_named() -> None:
    lines = read_lines(io.BytesIO(b"good\nb\xe4d\n"))
    assert next(lines) == Line(1, "good\n")
    with pytest.raises(InvalidInput, match=r"line 2 is not UTF-8: byte 0xe4 at column 2"):
        next(lines)


def test_invalid_bytes_are_replaced_only_when_asked() -> None:
    assert lines_of(b"b\xe4d\n", invalid="replace") == [Line(1, "b\ufffdd\n")]


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False)])
def test_the_longest_line(size: int, fits: bool) -> None:
    data = b"x" * (size - 1) + b"\n"
    if fits:
        assert len(lines_of(data, max_bytes=10)) == 1
        return
    with pytest.raises(InvalidInput, match="line 1 is longer than 10 bytes"):
        lines_of(data, max_bytes=10)


def test_a_line_is_yielded_before_the_next_one_exists() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        lines = read_lines(source)
        sink.write(b"first\n")
        assert next(lines).text == "first\n"
        sink.write(b"second\n")
        assert next(lines).text == "second\n"
