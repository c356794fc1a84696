"""`jaxstate push` and `jaxstate attach`: a running server's sessions from the command line.

Comes in: parsed options. Goes out: lines that the server has, answers that it gives, and an exit
code. Does not know: how requests are repeated (`remote`), engines.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxstate.cli.inputs import Input, LineReader, Reading, check_text, inputs_of
from jaxstate.cli.lines import Line
from jaxstate.cli.remote import RemoteSession, Reply, ServerRefused
from jaxstate.cli.show import Show
from jaxstate.cli.signals import Interrupt, interruptible
from jaxstate.errors import InvalidInput
from jaxstate.records import JsonValue

# Lines of one push, which is acknowledged as a whole.
_LINES = 64
# More than the lines from the first entry of a push to its last.
_SPAN = 128
# For which a server that does not answer is tried, where nobody waits for longer.
_ASK_S = 60.0


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of `jaxstate push`; see `jaxstate push --help`."""

    url: str
    session: str
    source: str
    key: str | None
    window: dict[str, JsonValue] | None
    flash: tuple[str, ...]
    patience_s: float
    reading: Reading


def run_push(show: Show, options: PushOptions) -> int:
    """Pushes a file's or a pipe's lines, from where the server has them."""
    (source,) = inputs_of(options.source, ())
    check_text([source], options.reading)
    remote = RemoteSession(show, options.url, options.session, options.key, options.patience_s)
    try:
        settings = {} if options.window is None else {"window": options.window}
        if remote.open(**settings):
            show.note(f"session {options.session} is open now")
        for question in options.flash:
            remote.flash(question, 32)
        return _Pushing(show, remote, source, options.reading).run()
    finally:
        remote.close()


@dataclass(slots=True)
class _Batch:
    """Lines that are pushed together.

    Attributes:
        client: under which name.
        first, last: the lines of its first and its last entry.
        entries: that they make; lines between them may make none.
    """

    client: str
    first: int
    last: int
    entries: list[str]

    @property
    def number(self) -> int:
        """Of the push: it ascends with the lines, and says which lines these are."""
        return self.last * _SPAN + (self.last - self.first + 1)


class _Pushing:
    """One input on its way into a session of a server."""

    def __init__(self, show: Show, remote: RemoteSession, source: Input, reading: Reading) -> None:
        self._show = show
        self._remote = remote
        self._source = source
        self._reading = reading
        # What a pipe has said nobody can read twice.
        self._client = source.client or f"pipe:{secrets.token_hex(8)}"
        self._pushed = 0

    def run(self) -> int:
        """Pushes until the input ends or a signal comes; the exit code."""
        with interruptible() as interrupt:
            base = self._turns_before()
            while (base := self._read(base, interrupt)) is not None:
                self._show.note(
                    f"{self._source.source} is another file now: read from its beginning"
                )
        version = self._remote.wait()
        self._show.event("pushed", entries=self._pushed, version=version)
        self._show.note(f"{self._pushed:,} entries pushed; the session is at version {version:,}")
        return interrupt.exit_code

    def _name(self, turn: int) -> str:
        return self._client if turn == 0 else f"{self._client}#{turn}"

    def _turns_before(self) -> int:
        """Files of that name that the server has all of, and that are gone."""
        turns = 0
        while self._remote.position(self._name(turns + 1)):
            turns += 1
        return turns

    def _read(self, base: int, interrupt: Interrupt) -> int | None:
        """Reads the input from where the server has it.

        Returns:
            None at its end; or how many files of that name came before, if it is not the one that
            the server has the beginning of.
        """
        with LineReader(self._source, self._reading) as reader:
            lines = reader.until(lambda: not interrupt.pressed)
            for batch, is_known in self._batches(lines, base):
                if not is_known:
                    reply = self._remote.push(batch.entries, batch.client, batch.number)
                    self._pushed += len(batch.entries)
                    self._show.event("acknowledged", line=batch.last, last=reply["last"])
                elif not self._is_same(batch):
                    return base + 1
        return None

    def _is_same(self, batch: _Batch) -> bool:
        """Whether the server has these lines under that number.

        Raises:
            InvalidInput: it has others, and the file is not followed through rotations.
        """
        try:
            self._remote.push(batch.entries, batch.client, batch.number)
            return True
        except ServerRefused as refused:
            if self._reading.follow:
                return False
            raise InvalidInput(
                f"line {batch.last} of {self._source.source} is not what the session has read "
                "there: the file was changed or replaced, and nothing more of it was read. Push it "
                "to another session, or go on with --follow"
            ) from refused

    def _batches(self, lines: Iterator[Line], base: int) -> Iterator[tuple[_Batch, bool]]:
        """What is pushed together: many lines of a file that is whole, one of what still grows;
        and first, what the server has last, to be compared."""
        turn, known = 0, self._known(base)
        entry_of, batch = self._reading.entries(), _Batch(self._name(base), 1, 0, [])
        most = _LINES if self._source.is_file and not self._reading.follow else 1
        line = None
        for line in lines:
            if line.turn > turn:
                if batch.entries:
                    yield batch, False
                turn, entry_of = line.turn, self._reading.entries()
                known = self._known(base + turn)
                batch = _Batch(self._name(base + turn), 1, 0, [])
            entry = entry_of(line.text)
            is_known = line.number <= known.last
            if entry is not None and line.number >= known.first:
                batch.first = batch.first if batch.entries else line.number
                batch.last = line.number
                batch.entries.append(entry)
            full = batch.last - batch.first + 1 >= most
            if batch.entries and (line.number == known.last or (full and not is_known)):
                yield batch, is_known
                batch = _Batch(batch.client, 1, 0, [])
        if batch.entries:
            yield batch, False
        if line is not None and line.number < known.last and not self._reading.follow:
            raise InvalidInput(
                f"{self._source.source} has fewer lines than the {known.last:,} of it that the "
                "session has read: it was cut or replaced, and nothing was read"
            )

    def _known(self, turn: int) -> _Batch:
        """The last batch of that file that the server has, without its entries."""
        number = self._remote.position(self._name(turn))
        last, span = divmod(number, _SPAN)
        if last:
            self._show.note(f"the session has {last:,} lines of it already")
        return _Batch(self._name(turn), last - span + 1, last, [])


def run_ask_server(
    show: Show,
    url: str,
    names: Sequence[str],
    questions: Sequence[str],
    key: str | None,
    max_tokens: int,
) -> int:
    """Asks sessions of a server.

    Raises:
        InvalidInput: no session is named.
    """
    if not names:
        raise InvalidInput("which session of the server? Give --session NAME")
    for name in names:
        remote = RemoteSession(show.about(name, f"{name}: "), url, name, key, _ASK_S)
        try:
            for question in questions:
                _tell(show.about(name, f"{name}: "), question, remote.ask(question, max_tokens))
        finally:
            remote.close()
    return 0


def _tell(show: Show, question: str, reply: Reply) -> None:
    show.event("answer", **{**reply, "question": question})
    show.say(
        f"Q: {question}",
        f"A: {reply['text'] or '(nothing)'}",
        f"   version {reply['data_version']}, {reply['source']}",
    )


def run_attach(show: Show, url: str, session: str, key: str | None, patience_s: float) -> int:
    """Tells what happens in a session of a server, until it is closed or Ctrl-C."""
    remote = RemoteSession(show, url, session, key, patience_s)
    try:
        for name, data in remote.events():
            show.event(name, **data)
            if name == "flash_ready":
                show.say(f"{data['query']}: {data['value']}   (version {data['data_version']})")
            elif name == "data_updated":
                show.note(f"version {data['data_version']}, {data['pending']} entries wait")
            elif name == "closed" and "stopped" not in str(data.get("reason")):
                show.note(f"closed: {data.get('reason')}")
                return 0
    finally:
        remote.close()
    return 0
