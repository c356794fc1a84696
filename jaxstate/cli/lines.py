"""A byte stream, line by line, as entries.

Comes in: a binary stream (a file or a pipe). Goes out: text lines with their numbers, as soon as
each is complete. Does not know: tokens, sessions. A line that cannot be taken is an error that
names it; nothing is skipped, replaced or shortened unless the caller asked for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from jaxstate.errors import InvalidInput
from jaxstate.textfiles import encoding_of

InvalidBytes = Literal["refuse", "replace"]

# A line this long is no line: a binary file, or text without line breaks.
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        number: from 1.
        text: with the line break if it had one.
        turn: how many files of that name were read before this one.
    """

    number: int
    text: str
    turn: int = 0


def read_lines(
    stream: BinaryIO, *, invalid: InvalidBytes = "refuse", max_bytes: int = MAX_LINE_BYTES
) -> Iterator[Line]:
    """Yields lines until the stream ends.

    Args:
        stream: read one line at a time, never ahead of need.
        invalid: what to do with bytes that are not UTF-8: refuse the line, or read U+FFFD.
        max_bytes: the longest line that is taken, its line break included.

    Raises:
        InvalidInput: a line is not UTF-8 (and `invalid` is "refuse") or longer than `max_bytes`.
    """
    number = 0
    while raw := stream.readline(max_bytes + 1):
        number += 1
        yield line_of(raw, number, invalid=invalid, max_bytes=max_bytes)


def line_of(
    raw: bytes,
    number: int,
    *,
    invalid: InvalidBytes = "refuse",
    max_bytes: int = MAX_LINE_BYTES,
    turn: int = 0,
) -> Line:
    """One line of its bytes.

    Args:
        raw: with the line break, if it has one.
        number: from 1; the first is looked at for a byte order mark.
        invalid: what to do with bytes that are not UTF-8.
        max_bytes: the longest that is taken.
        turn: of the line.

    Raises:
        InvalidInput: as `read_lines`.
    """
    if len(raw) > max_bytes:
        raise InvalidInput(
            f"line {number} is longer than {max_bytes:,} bytes; is this text with line breaks?"
        )
    encoding = encoding_of(raw) if number == 1 else "utf-8"
    if encoding not in ("utf-8", "utf-8-sig"):
        raise InvalidInput(
            f"this is {encoding.upper()} by its byte order mark, and lines are read as UTF-8; "
            f"give --encoding {encoding}"
        )
    return Line(number, _decode(raw, number, invalid), turn)


def _decode(raw: bytes, number: int, invalid: InvalidBytes) -> str:
    if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is not part of the text
    try:
        return raw.decode("utf-8", errors="strict" if invalid == "refuse" else "replace")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"line {number} is not UTF-8: byte 0x{raw[error.start]:02x} at column "
            f"{error.start + 1}; give its --encoding, or --replace-invalid"
        ) from error
