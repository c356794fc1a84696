"""The command line on a tiny model, in this process and with its compilation cache left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxstate.cli import app as command_line
from jaxstate.cli import runtime
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


def _exit_code() -> int:
    try:
        command_line.main()
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    return 0
