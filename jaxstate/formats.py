"""Lines as people have them, to entries as a model reads them well.

Comes in: one line at a time. Goes out: an entry, or nothing for a line that is none by itself (the
header of a table, the first lines of a quoted field, a blank line). Does not know: where lines come
from, sessions.

- `lines`: as they are.
- `jsonl`: an object a line. With a template (`"{time} {user.name}: {message}"`) its fields, else
  time, level and message under their usual names, else all fields as `name=value`.
- `csv`: the first line names the columns, each row is `name=value, name=value`; commas, semicolons
  or tabs, as the header shows.
- `syslog`: syslog (RFC 3164, RFC 5424, as journald prints it) and web servers' common logs, without
  what no question is about: priority, host, process number, protocol version.
- `auto`: what the first line looks like.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from jaxstate.errors import InvalidInput
from jaxstate.records import shown

FormatName: TypeAlias = Literal["auto", "lines", "jsonl", "csv", "syslog"]

_TIMES = ("time", "timestamp", "@timestamp", "ts", "date", "datetime")
_LEVELS = ("level", "severity", "lvl", "log.level")
_MESSAGES = ("message", "msg", "log", "text", "body", "data", "event")
_FIELD = re.compile(r"\{([^{}]+)\}")
# A quoted field may hold line breaks; a row that holds more is no row.
_MOST_CHARACTERS = 1 << 20

_SYSLOG = re.compile(
    r"""(?:<\d{1,3}>)?                                    # priority
        (?:(?P<rfc5424>1\ )?
           (?P<iso>\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)?)
         | (?P<bsd>[A-Z][a-z]{2}\ [ \d]\d\ [\d:]{8}))
        \ (?P<host>\S+)\ (?P<rest>.+)""",
    re.VERBOSE,
)
_RFC5424 = re.compile(r"(?P<app>\S+) \S+ \S+ (?:-|(?:\[[^\]]*\])+) ?(?P<message>.*)")
_TAGGED = re.compile(r"(?P<app>[^\s:\[]+)(?:\[\d+\])?: ?(?P<message>.*)")
_COMMON = re.compile(
    r'(?P<host>\S+) \S+ (?P<user>\S+) \[(?P<time>[^\]]+)\] "(?P<request>(?:[^"\\]|\\.)*)" '
    r'(?P<status>\d{3}) (?P<size>\d+|-)(?: "(?P<referer>(?:[^"\\]|\\.)*)" .*)?'
)


class EntryFormat:
    """Makes entries of lines; it remembers what the lines before said of the next.

    Args:
        name: of the format.
        template: of `jsonl`.

    Raises:
        InvalidInput: no such format, or a template for another.
    """

    def __init__(self, name: FormatName = "lines", template: str | None = None) -> None:
        if name not in get_args(FormatName):
            raise InvalidInput(f"format={shown(name)} is none of {', '.join(get_args(FormatName))}")
        if template is not None and name not in ("jsonl", "auto"):
            raise InvalidInput(f"a template is for the format jsonl, and not for {name!r}")
        if template is not None and not _FIELD.search(template):
            raise InvalidInput(
                f"template={shown(template)} names no field, such as {{message}} (curl takes "
                "braces away: write %7Bmessage%7D)"
            )
        self.name: FormatName = name
        self._template = template
        self._columns: list[str] | None = None
        self._delimiter = ","
        self._quoted: list[str] = []
        self._characters = self._quotes = 0

    def entry(self, line: str) -> str | None:
        """The entry that a line makes; None if it makes none.

        Args:
            line: with or without its line break.

        Raises:
            InvalidInput: it is not of the format, and how.
        """
        text = line.rstrip("\r\n")
        if self.name == "auto" and text.strip():
            self.name = "jsonl" if self._template is not None else format_of(text)
        if self.name == "csv":
            return self._row(text)
        if not text.strip():
            return None
        if self.name == "jsonl":
            return json_entry(text, self._template)
        return log_entry(text) if self.name == "syslog" else text

    def end(self) -> None:
        """Nothing more comes.

        Raises:
            InvalidInput: a quoted field of a table is still open.
        """
        if self._quoted:
            raise InvalidInput("the last row of the table ends within a quoted field")

    def _row(self, text: str) -> str | None:
        if not text.strip() and not self._quoted:
            return None
        self._quoted.append(text)
        self._characters += len(text) + 1
        self._quotes += text.count('"')
        if self._characters > _MOST_CHARACTERS:
            raise InvalidInput(f"a row of the table has more than {_MOST_CHARACTERS:,} characters")
        if self._quotes % 2:  # a quoted field goes on
            return None
        whole = "\n".join(self._quoted)
        self._quoted.clear()
        self._characters = self._quotes = 0
        if self._columns is None:
            self._delimiter = _delimiter(whole)
            self._columns = [name.strip() for name in self._cells(whole)]
            return None
        cells = self._cells(whole)
        if len(cells) != len(self._columns):
            raise InvalidInput(
                f"a row has {len(cells)} fields, and the header {len(self._columns)}: "
                f"{shown(whole)}"
            )
        pairs = zip(self._columns, cells, strict=True)
        return ", ".join(f"{name}={_one_line(value)}" for name, value in pairs if value.strip())

    def _cells(self, text: str) -> list[str]:
        try:
            rows = csv.reader([text + "\n"], delimiter=self._delimiter, strict=True)
            return next(rows, [])
        except csv.Error as error:
            raise InvalidInput(f"a row cannot be read: {error}: {shown(text)}") from error


def format_of(line: str) -> FormatName:
    """What a first line looks like."""
    text = line.strip()
    if text.startswith("{") and _object(text) is not None:
        return "jsonl"
    if _SYSLOG.fullmatch(text) or _COMMON.fullmatch(text):
        return "syslog"
    names = text.split(_delimiter(text))
    is_header = len(names) > 1 and all(
        re.fullmatch(r'"?[A-Za-z_][\w .%()/-]*"?', one) for one in names
    )
    return "csv" if is_header else "lines"


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _object(text: str) -> Mapping[str, object] | None:
    try:
        made = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return made if isinstance(made, dict) else None


def json_entry(text: str, template: str | None = None) -> str:
    """The entry of a line of JSON.

    Args:
        text: an object, or a string, which is the entry.
        template: with fields in braces, those of fields with dots; one that an object does not
            have is left out.

    Raises:
        InvalidInput: it is no JSON, or neither, or has none of the template's fields.
    """
    try:
        made = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"this line is no JSON ({error}): {shown(text)}") from error
    if isinstance(made, str):
        return made
    if not isinstance(made, dict):
        raise InvalidInput(f"a line of JSON must be an object or a string: {shown(text)}")
    if template is not None:
        names = _FIELD.findall(template)
        if all(_field(made, name) is None for name in names):
            raise InvalidInput(f"an object has none of {', '.join(names)}: {shown(text)}")
        return _FIELD.sub(lambda found: _shown(_field(made, found[1])), template).strip()
    message = _first(made, _MESSAGES)
    if message is None:
        return ", ".join(f"{name}={_shown(value)}" for name, value in made.items())
    parts = (_first(made, _TIMES), _first(made, _LEVELS), message)
    return " ".join(_shown(part) for part in parts if part is not None)


def _first(made: Mapping[str, object], names: tuple[str, ...]) -> object:
    found = (_field(made, name) for name in names)
    return next((value for value in found if isinstance(value, str | int | float)), None)


def _field(made: Mapping[str, object], name: str) -> object:
    if name in made:
        return made[name]
    value: object = made
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _one_line(value)
    return json.dumps(value, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def log_entry(text: str) -> str:
    """A line of a log without what no question is about; one of no known form as it is."""
    if found := _SYSLOG.fullmatch(text):
        form = _RFC5424 if found["rfc5424"] else _TAGGED
        time = found["iso"] or found["bsd"]
        if said := form.fullmatch(found["rest"]):
            app = "" if said["app"] == "-" else f"{said['app']}: "
            return f"{time} {app}{said['message'].lstrip(chr(0xFEFF))}"
        return f"{time} {found['rest']}"
    if found := _COMMON.fullmatch(text):
        request = found["request"].rpartition(" HTTP/")[0] or found["request"]
        size = "" if found["size"] == "-" else f" {found['size']} bytes"
        user = "" if found["user"] == "-" else f" {found['user']}"
        return f"{found['time']} {found['host']}{user} {request} {found['status']}{size}"
    return text
