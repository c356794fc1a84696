"""The command line on a tiny model, in this process and with its compilation cache left alone."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import rich.console

from jaxstate.cli import app as command_line
from jaxstate.cli import inputs, runtime, show
from jaxstate.config import StepConfig
from tests.tiny_directory import write_directory


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def named(self, name: str) -> list[dict[str, object]]:
        return [event for event in self.events if event["event"] == name]


Run = Callable[..., Outcome]

# Fewer sizes than the default, so that there is less to compile.
STEPS = StepConfig(extend_tokens=(64,), question_tokens=(32,), question_rows=(1, 8))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a tiny model."""
    return str(write_directory(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs `jaxstate …` as the console script does."""
    monkeypatch.setattr(runtime, "use_compilation_cache", lambda: Path())
    monkeypatch.setattr(runtime, "StepConfig", lambda: STEPS)

    def console(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr("sys.argv", ["jaxstate", *map(str, arguments)])
        capsys.readouterr()
        code = _exit_code()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return console


class Feed(io.BytesIO):
    """A pipe that does something before it gives its n-th line."""

    def __init__(self, text: str, before: Mapping[int, Callable[[], object]]) -> None:
        super().__init__(text.encode())
        self._before = before
        self._given = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        self._given += 1
        if act := self._before.get(self._given):
            act()
        return super().readline(-1 if size is None else size)


def feed(
    monkeypatch: pytest.MonkeyPatch, text: str, before: Mapping[int, Callable[[], object]]
) -> None:
    """Lets standard input be such a pipe."""
    monkeypatch.setattr(inputs, "standard_input", lambda: Feed(text, before))


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets standard output and error be a wide screen."""

    class Terminal(rich.console.Console):
        def __init__(self, **options: object) -> None:
            options |= {"force_terminal": True, "width": 160}
            super().__init__(**options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(show, "Console", Terminal)


@pytest.fixture
def press() -> Iterator[Callable[[], None]]:
    """Ctrl-C while a line is awaited: the pipe says nothing more until the test is over."""
    over = threading.Event()

    def pressed() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(60)

    yield pressed
    over.set()


def _exit_code() -> int:
    try:
        command_line.main()
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    return 0
