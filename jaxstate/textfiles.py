"""Text files that people hand over: one way to read them all.

Comes in: a path. Goes out: its text, or an error in the words of whoever named the file. Does not
know: what the text is for.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from jaxstate.errors import InvalidInput

# Longest first: UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text_file(path: Path, what: str) -> str:
    """The text of a file, in UTF-8, or in what its byte order mark says; line breaks are "\\n".

    Args:
        path: of the file.
        what: it is, for errors: "the prefix".

    Raises:
        InvalidInput: it cannot be read, or is not text of that encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{what} {path} cannot be read: {error.strerror}") from error
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"{what} {path} is not {encoding.upper()}: byte 0x{content[error.start]:02x} in line "
            f"{line}; convert it (iconv -f … -t utf-8)"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encoding_of(content: bytes) -> str:
    """What a byte order mark at the beginning says; UTF-8 without one."""
    return next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
