"""A file that is still being written, line by line, through its rotations: as `tail -F`.

Comes in: a path. Goes out: its complete lines, now and as they come. When the file was renamed and
another has its name, the old one is read to its end, then the new one from its beginning; when it
was cut (copied and truncated), it is read from its beginning again. Does not know: sessions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from jaxstate.cli.lines import MAX_LINE_BYTES, InvalidBytes, Line, line_of

# How often the end of a file is looked at for more.
_LOOK_S = 0.2


def follow_lines(
    path: str,
    rest: Callable[[float], bool],
    *,
    invalid: InvalidBytes = "refuse",
    max_bytes: int = MAX_LINE_BYTES,
    opened: Callable[[BinaryIO], object] = lambda _: None,
) -> Iterator[Line]:
    """Complete lines, numbered within each file; `Line.turn` counts rotations.

    A last line without its line break is not one yet; of a file that was rotated or cut it is one.

    Args:
        path: of the file.
        rest: waits so many seconds for nothing; True once nobody wants more.
        invalid, max_bytes: as for `read_lines`.
        opened: is told each file that is read from now on.

    Raises:
        OSError: it cannot be opened, or read.
        InvalidInput: as `read_lines`.
    """
    turn, stream = 0, open(path, "rb")  # noqa: SIM115 - another takes its place
    opened(stream)
    try:
        while True:
            number, begun = 0, b""
            for raw in _pieces(path, stream, rest, max_bytes):
                if raw is None:
                    break
                begun += raw
                if begun.endswith(b"\n") or len(begun) > max_bytes:
                    number += 1
                    yield line_of(begun, number, invalid=invalid, max_bytes=max_bytes, turn=turn)
                    begun = b""
            else:
                return
            if begun:
                number += 1
                yield line_of(begun, number, invalid=invalid, max_bytes=max_bytes, turn=turn)
            turn += 1
            if _is_cut(stream):
                stream.seek(0)
            else:
                stream.close()
                stream = open(path, "rb")  # noqa: SIM115
                opened(stream)
    finally:
        stream.close()


def _pieces(
    path: str, stream: BinaryIO, rest: Callable[[float], bool], max_bytes: int
) -> Iterator[bytes | None]:
    """Lines, and the beginnings of lines; None once the file was rotated or cut, and all of it was
    read; the end if nobody wants more."""
    while True:
        if raw := stream.readline(max_bytes + 1):
            yield raw
        elif _is_cut(stream):
            yield None
        elif _is_another(path, stream):
            # Whoever writes may not have noticed yet.
            while raw := stream.readline(max_bytes + 1):
                yield raw
            yield None
        elif rest(_LOOK_S):
            return


def _is_cut(stream: BinaryIO) -> bool:
    return os.fstat(stream.fileno()).st_size < stream.tell()


def _is_another(path: str, stream: BinaryIO) -> bool:
    """Whether the name is another file's by now; not while it is nobody's."""
    try:
        there, here = os.stat(path), os.fstat(stream.fileno())
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def entry_at(path: str, number: int, entry: Callable[[str], str | None]) -> str | None:
    """The entry that a complete line makes; None if the file has fewer, or it makes none.

    Args:
        path: of the file.
        number: from 1.
        entry: makes entries of lines, all from the first on.
    """
    with open(path, "rb") as stream:
        for count, raw in enumerate(stream, start=1):
            made = entry(line_of(raw, count, invalid="replace").text)
            if count == number:
                return made if raw.endswith(b"\n") else None
    return None
