"""Bytes as people have them, as the lines of UTF-8 that everything else reads.

Comes in: a stream of bytes, perhaps compressed, perhaps in another encoding. Goes out: one of
UTF-8, as soon as there is some. Does not know: files, pipes, lines.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable
from typing import BinaryIO, cast

import zstandard

from jaxstate.cli.lines import InvalidBytes
from jaxstate.errors import InvalidInput

UTF8 = "utf-8"
_PIECE_BYTES = 1 << 16
# What a compressed stream begins with, and who reads it.
_COMPRESSED: tuple[tuple[bytes, Callable[[BinaryIO], BinaryIO]], ...] = (
    (b"\x1f\x8b", lambda raw: cast("BinaryIO", gzip.GzipFile(fileobj=raw))),
    (b"BZh", lambda raw: cast("BinaryIO", bz2.BZ2File(raw))),
    (b"\xfd7zXZ", lambda raw: cast("BinaryIO", lzma.LZMAFile(raw))),  # noqa: SIM115
    (
        b"\x28\xb5\x2f\xfd",
        lambda raw: io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        ),
    ),
)
_MOST_MAGIC = max(len(magic) for magic, _ in _COMPRESSED)
# What these libraries say of a stream that is damaged or ends too early.
_DAMAGED = (EOFError, OSError, lzma.LZMAError, zstandard.ZstdError)


def is_compressed(first: bytes) -> bool:
    """Whether a stream that begins so is compressed in a way that is read."""
    return any(first.startswith(magic) for magic, _ in _COMPRESSED)


def checked_encoding(name: str) -> str:
    """An encoding, by the name that Python has for it.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return codecs.lookup(name).name
    except LookupError as error:
        raise InvalidInput(
            f"--encoding {name!r} is not known; utf-8, latin-1, cp1252, utf-16 and many more are"
        ) from error


def in_utf8(raw: BinaryIO, encoding: str, invalid: InvalidBytes) -> BinaryIO:
    """The same as UTF-8.

    Args:
        raw: bytes, perhaps compressed.
        encoding: of the text in them, as `checked_encoding`.
        invalid: what to do with bytes that are not of it.

    Returns:
        A stream that raises InvalidInput where it cannot be read.
    """
    first = raw.peek(_MOST_MAGIC) if isinstance(raw, io.BufferedReader) else b""
    opener = next((one for magic, one in _COMPRESSED if first.startswith(magic)), None)
    if opener is None and encoding == UTF8:
        return raw  # line by line, and never ahead of that
    plain = raw if opener is None else opener(raw)
    return cast("BinaryIO", io.BufferedReader(_Read(plain, encoding, invalid)))


class _Read(io.RawIOBase):
    """Decompressed and recoded, piece by piece.

    Args:
        plain: decompressed bytes.
        encoding, invalid: as `in_utf8`.
    """

    def __init__(self, plain: BinaryIO, encoding: str, invalid: InvalidBytes) -> None:
        self._plain = cast("io.BufferedReader", plain)
        self._encoding = encoding
        self._decoder = None
        if encoding != UTF8:
            errors = "strict" if invalid == "refuse" else "replace"
            self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._ready = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `io.RawIOBase.readinto`."""
        while not self._ready:
            piece = self._piece()
            self._ready = self._recoded(piece)
            if not piece:
                break
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _piece(self) -> bytes:
        try:
            return self._plain.read1(_PIECE_BYTES)
        except _DAMAGED as error:
            raise InvalidInput(f"it cannot be decompressed: {error}") from error

    def _recoded(self, piece: bytes) -> bytes:
        if self._decoder is None:
            return piece
        try:
            return self._decoder.decode(piece, final=not piece).encode(UTF8, "surrogatepass")
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"it is not {self._encoding}: byte 0x{error.object[error.start]:02x}; give another "
                "--encoding, or --replace-invalid"
            ) from error

    def close(self) -> None:
        """And what it reads."""
        if not self.closed:
            self._plain.close()
        super().close()
