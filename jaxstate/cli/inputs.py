"""What `jaxstate stream` reads, and which session each of it belongs to.

Comes in: FILE, or NAME=FILE several times. Goes out: checked inputs, and their lines, read by a
thread of their own. Does not know: sessions, models.
"""

from __future__ import annotations

import array
import codecs
import fcntl
import hashlib
import os
import queue
import re
import stat
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jaxstate.cli.decoding import UTF8, checked_encoding, in_utf8, is_compressed
from jaxstate.cli.lines import MAX_LINE_BYTES, InvalidBytes, Line, line_of, read_lines
from jaxstate.cli.runtime import LOOK_S, in_thread
from jaxstate.cli.saving import check_writable
from jaxstate.cli.tailing import follow_lines
from jaxstate.errors import InvalidInput
from jaxstate.formats import EntryFormat, FormatName
from jaxstate.persist.files import RECORD_NAME, check_snapshot_target
from jaxstate.textfiles import encoding_of

STANDARD_INPUT = "-"
# A file this large has more tokens than a chunk of the smaller sizes.
_BULK_BYTES = 512
# What is looked at of a file before anything is loaded for it.
_FIRST_BYTES = 1 << 16
# A session's id that is also the name of a directory, and no option.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Reading:
    """How the bytes of inputs become entries.

    Attributes:
        invalid: what to do with bytes that are no text.
        follow: go on after the end of a file, through its rotations.
        encoding: of the text.
        format, template: as for `EntryFormat`.
        grep: entries in which this is not found are left out.
        max_bytes: of a line at most, its line break included.
    """

    invalid: InvalidBytes = "refuse"
    follow: bool = False
    encoding: str = UTF8
    format: FormatName = "lines"
    template: str | None = None
    grep: re.Pattern[str] | None = None
    max_bytes: int = MAX_LINE_BYTES

    def entries(self) -> Callable[[str], str | None]:
        """Makes entries of one input's lines, in order; None for a line that makes none."""
        form = EntryFormat(self.format, self.template)

        def entry(line: str) -> str | None:
            # Lines as they are keep their blanks, and are entries even when they are empty.
            made = line if self.format == "lines" else form.entry(line)
            if made is None or (self.grep is not None and not self.grep.search(made)):
                return None
            return made

        return entry


@dataclass(frozen=True)
class Input:
    """A file or a pipe, and the name of its session: None for the only one, where none is given."""

    name: str | None
    source: str

    @property
    def title(self) -> str:
        """What people know it by."""
        return self.name or self.source

    @property
    def label(self) -> str:
        """What lines about its session begin with."""
        return f"{self.name}: " if self.name else ""

    @property
    def is_bulk(self) -> bool:
        """Whether many lines wait from the start."""
        return self.source != STANDARD_INPUT and os.stat(self.source).st_size > _BULK_BYTES

    @property
    def is_file(self) -> bool:
        """Whether it can be read twice."""
        return self.source != STANDARD_INPUT and stat.S_ISREG(os.stat(self.source).st_mode)

    @property
    def client(self) -> str | None:
        """Under which name its lines are numbered, so that reading the file once more adds only
        what is new; None for a pipe, which nobody can read twice."""
        if not self.is_file:
            return None
        path = os.path.realpath(self.source)
        return f"file:{hashlib.sha256(path.encode()).hexdigest()[:32]}"

    def place(self, directory: Path | None) -> Path | None:
        """Where its session lies: the directory itself, or one of its name in there."""
        return directory if directory is None or self.name is None else directory / self.name

    def open(self) -> BinaryIO:
        """Its bytes; waits for whoever writes a named pipe.

        Raises:
            OSError: it cannot be opened.
        """
        return standard_input() if self.source == STANDARD_INPUT else open(self.source, "rb")


def reading_of(
    replace_invalid: bool,
    follow: bool,
    encoding: str,
    format: FormatName,
    template: str | None,
    grep: str | None,
    max_bytes: int,
) -> Reading:
    """How input is read, as a command line says it.

    Raises:
        InvalidInput: an option is not as it must be.
    """
    reading = Reading(
        invalid="replace" if replace_invalid else "refuse",
        follow=follow,
        encoding=checked_encoding(encoding),
        format=format,
        template=template,
        grep=checked_pattern(grep),
        max_bytes=max_bytes,
    )
    reading.entries()  # or it says what is wrong with the format
    return reading


def checked_pattern(given: str | None) -> re.Pattern[str] | None:
    """`--grep`, as given.

    Raises:
        InvalidInput: it is no regular expression.
    """
    try:
        return None if given is None else re.compile(given)
    except re.error as error:
        raise InvalidInput(f"--grep {given!r} is no regular expression: {error}") from error


def standard_input() -> BinaryIO:
    """Not `sys.stdin`: a thread that still waits for a line would keep Python from ending."""
    return open(0, "rb", closefd=False)


def inputs_of(source: str | None, named: Sequence[str]) -> tuple[Input, ...]:
    """The inputs that a command line means.

    Args:
        source: FILE, or - for standard input.
        named: instead of it, NAME=FILE of each session.

    Raises:
        InvalidInput: both, neither, a bad name, a name or standard input twice, or a file that
            cannot be read.
    """
    if source is not None and named:
        raise InvalidInput(
            f"{source!r} and --session: give one FILE, or every one of them as --session NAME=FILE"
        )
    if source is None and not named:
        raise InvalidInput("what is to be read? Give FILE, - for a pipe, or --session NAME=FILE")
    inputs = tuple(map(_named, named)) or (Input(None, str(source)),)
    _check_once("session", [one.name for one in inputs])
    _check_once("input", [one.source for one in inputs if one.source == STANDARD_INPUT])
    for one in inputs:
        _check_readable(one)
    return inputs


def check_text(inputs: Sequence[Input], reading: Reading) -> None:
    """Refuses files whose beginning shows that they cannot be read line by line as text, before
    anything is loaded for them. Pipes are not looked into; and of several inputs those that cannot
    be read are left to fail alone, as long as one can.

    Args:
        inputs: readable ones.
        reading: how they will be read.

    Raises:
        InvalidInput: all of them are empty, archives, a document of another kind, or not of the
            encoding.
    """
    refusals: list[InvalidInput] = []
    for one in inputs:
        if not one.is_file:
            return
        try:
            with open(one.source, "rb") as file:
                _check_first_bytes(one.source, file.read(_FIRST_BYTES), reading)
            return
        except InvalidInput as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _check_first_bytes(source: str, first: bytes, reading: Reading) -> None:
    if not first and not reading.follow:
        raise InvalidInput(f"{source} is empty: nothing was read")
    if is_compressed(first):
        if reading.follow:
            raise InvalidInput(f"--follow: {source} is compressed, and no file that still grows is")
        return
    if first.startswith(b"PK\x03\x04"):
        raise InvalidInput(f"{source} is a zip archive: unzip -p {source} | jaxstate stream - …")
    if first.startswith(b"%PDF"):
        raise InvalidInput(f"{source} is a PDF: pdftotext {source} - | jaxstate stream - …")
    if reading.encoding != UTF8:
        if reading.follow:
            raise InvalidInput("--follow reads UTF-8: leave --encoding out, or convert the file")
        return
    if encoding_of(first) not in ("utf-8", "utf-8-sig"):
        line_of(first.split(b"\n")[0], 1)  # which says what it is
    if b"\0" in first:
        raise InvalidInput(
            f"{source} is no text: byte {first.index(bytes(1)) + 1} of it is zero; it is read line "
            "by line, as text in UTF-8"
        )
    if reading.invalid == "refuse":
        _check_utf8(source, first)


def _check_utf8(source: str, first: bytes) -> None:
    """Of a beginning, which may end within a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(first)
    except UnicodeDecodeError as error:
        begin = first.rfind(b"\n", 0, error.start) + 1
        number = first.count(b"\n", 0, error.start) + 1
        try:
            line_of(first[begin : error.end], number)
        except InvalidInput as refusal:
            raise InvalidInput(f"{source}: {refusal}") from error
        raise


def check_targets(inputs: Sequence[Input], save: Path | None) -> None:
    """Refuses a place to save to before anything is read.

    Raises:
        InvalidInput: something else lies there, or nothing can be written there.
    """
    if save is None:
        return
    for one in inputs:
        target = one.place(save)
        assert target is not None
        if one.name and ((save / RECORD_NAME).exists() or (save.exists() and not save.is_dir())):
            raise InvalidInput(
                f"--save {save}: with --session it is a directory of sessions, but there is "
                f"{'a saved session' if save.is_dir() else 'a file'} there; choose another"
            )
        check_snapshot_target(target)
        check_writable(target)


def _named(text: str) -> Input:
    name, is_there, source = text.partition("=")
    if not is_there or not source:
        raise InvalidInput(f"--session {text!r} must be NAME=FILE, or NAME=- for a pipe")
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"--session {text!r}: the name {name!r} must be 1 to 128 of A-Z a-z 0-9 _ . - and not "
            "begin with . or -"
        )
    return Input(name, source)


def _check_once(what: str, values: Sequence[str | None]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InvalidInput(f"the {what} {value!r} is given more than once")


def _check_readable(one: Input) -> None:
    """A pipe is only looked at: opening it would wait for its writer, or take its one reader."""
    if one.source == STANDARD_INPUT:
        return
    try:
        if not stat.S_ISFIFO(os.stat(one.source).st_mode):
            open(one.source, "rb").close()
    except (OSError, ValueError) as error:
        raise _unreadable(one, error) from error


def _unreadable(one: Input, error: Exception) -> InvalidInput:
    reason = error.strerror if isinstance(error, OSError) else error
    return InvalidInput(f"{one.source} cannot be read: {reason}")


class LineReader:
    """An input's lines, one whenever it is asked for, and never ahead of that.

    A thread waits for them, so that who asks need not: after the `with` block that thread may still
    hang in a pipe that says nothing, and is left alone.

    Args:
        one: what to read.
        reading: how.
    """

    def __init__(self, one: Input, reading: Reading) -> None:
        self._input = one
        self._reading = reading
        self._wanted = threading.Semaphore(0)
        self._found: queue.SimpleQueue[Line | Exception | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._stream: BinaryIO | None = None
        self._is_read = threading.Event()

    def behind_bytes(self) -> int | None:
        """What is there and was not read yet: the rest of a file, or what waits in a pipe beyond
        what was taken out of it; None while nobody knows."""
        if self._is_read.is_set():
            return 0
        return None if self._stream is None else _behind_bytes(self._stream)

    def __enter__(self) -> LineReader:
        in_thread(self._run, "jaxstate-lines")
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._wanted.release()

    def until(self, go_on: Callable[[], bool]) -> Iterator[Line]:
        """Lines until the input ends, or `go_on`, which is asked again and again, says no.

        Raises:
            InvalidInput: the input cannot be read, or as `read_lines`.
        """
        while go_on() and (line := self._next(go_on)) is not None:
            yield line

    def _next(self, go_on: Callable[[], bool]) -> Line | None:
        self._wanted.release()
        while go_on():
            try:
                found = self._found.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if isinstance(found, Exception):
                raise found
            return found
        return None

    def _run(self) -> None:
        """In the thread."""
        reading = self._reading
        try:
            if reading.follow and self._input.is_file:
                self._pass_on(
                    follow_lines(
                        self._input.source,
                        self._ended.wait,
                        invalid=reading.invalid,
                        max_bytes=reading.max_bytes,
                        opened=self._opened,
                    )
                )
            else:
                with self._input.open() as raw:
                    self._opened(raw)
                    stream = in_utf8(raw, reading.encoding, reading.invalid)
                    self._pass_on(
                        read_lines(stream, invalid=reading.invalid, max_bytes=reading.max_bytes)
                    )
        except OSError as error:
            self._found.put(_unreadable(self._input, error))
        except Exception as error:
            self._found.put(error)

    def _opened(self, stream: BinaryIO) -> None:
        self._stream = stream

    def _pass_on(self, lines: Iterator[Line]) -> None:
        while self._is_wanted():
            line = next(lines, None)
            if line is None:
                self._is_read.set()
            self._found.put(line)

    def _is_wanted(self) -> bool:
        self._wanted.acquire()
        return not self._ended.is_set()


def _behind_bytes(stream: BinaryIO) -> int | None:
    try:
        facts = os.fstat(stream.fileno())
        if stat.S_ISREG(facts.st_mode):
            return max(0, facts.st_size - stream.tell())
        waiting = array.array("i", [0])
        fcntl.ioctl(stream.fileno(), termios.FIONREAD, waiting)
        return waiting[0]
    except (OSError, ValueError):  # no such question here, or it was closed meanwhile
        return None
