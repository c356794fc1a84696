"""`jaxstate stream` as people meet it: on screens of all widths, in files and pipes, from each kind
of input; in a process of its own, on a pseudo-terminal where there is a screen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.tiny_directory import write_directory

QUESTION = "Which one of all these many lines was the last one that came in?"
LINES = "".join(f"line {number} of a log\n" for number in range(12))
COMMAND = [sys.executable, "-c", "from jaxstate.cli import main; main()"]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.write_text(LINES, encoding="utf-8")
    return path


@dataclass(frozen=True)
class Seen:
    """What a command put on its screen, and how it ended."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        return _ESCAPES.sub("", self.text).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def environment(**settings: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")
    }
    return {**kept, "TERM": "xterm-256color", "JAX_COMPILATION_CACHE_DIR": "", **settings}


def on_screen(
    *arguments: str | Path, width: int, typed: str | None = None, **settings: str
) -> Seen:
    """The command on a terminal of that width; what is typed ends with the end of input."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment(**settings),
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    if typed is not None:
        os.write(master, typed.encode() + b"\x04")
    text = b"".join(_read(master, process)).decode()
    return Seen(process.wait(timeout=60), text)


def _read(master: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s:
        if select.select([master], [], [], 0.2)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other side is closed
                return
            if not piece:
                return
            yield piece
        elif process.poll() is not None:
            return


def redirected(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    options = {"env": environment(), "capture_output": True, **options}
    return subprocess.run(  # pyright: ignore
        [*COMMAND, *map(str, arguments)], text=True, timeout=120, check=False, **options
    )


def arguments(model: Path, source: str | Path) -> list[str | Path]:
    return ["stream", source, "-m", model, "--cells", "512", "--flash", QUESTION]


class TestWidths:
    @pytest.mark.parametrize("width", [40, 60, 80, 200])
    def test_nothing_is_wider_than_the_screen(self, model: Path, log: Path, width: int) -> None:
        seen = on_screen(*arguments(model, log), width=width)
        assert seen.code == 0, seen.text
        lines = [line for line in seen.lines if line.startswith(" ")]
        assert lines and max(map(cell_len, lines)) <= width
        header = next(line for line in reversed(lines) if "question" in line)
        row = next(line for line in reversed(lines) if "Which" in line or "…" in line)
        assert "answer" in header
        assert (QUESTION in row) == (width == 200)
        assert ("…" in row) == (width < 200)  # the question is cut
        # Between the two it depends on how long the answers are at that moment.
        for name, never, always in (
            ("cells in use", 40, 60),
            ("age", 40, 80),
            ("confidence", 80, 200),
        ):
            shown = any(name in line for line in lines)
            assert shown or width < always, name
            assert not shown or width > never, name

    def test_the_answer_has_the_room(self, model: Path, log: Path) -> None:
        seen = on_screen(*arguments(model, log), width=80)
        header = next(line for line in reversed(seen.lines) if "question" in line)
        columns = [header.index(name) for name in ("question", "answer", "state")]
        assert columns[2] - columns[1] > columns[1] - columns[0]


class TestScreens:
    def test_without_colours(self, model: Path, log: Path) -> None:
        seen = on_screen(*arguments(model, log), width=80, NO_COLOR="1")
        assert seen.code == 0
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", seen.text)  # no colour is set

    def test_on_a_dumb_terminal_nothing_is_drawn_over(self, model: Path, log: Path) -> None:
        seen = on_screen(*arguments(model, log), width=80, TERM="dumb")
        assert seen.code == 0
        assert "\x1b" not in seen.text
        assert "flash queries" in seen.text

    def test_in_plain_ascii(self, model: Path, log: Path) -> None:
        seen = on_screen(
            *arguments(model, log), width=80, LANG="C", LC_ALL="C", PYTHONUTF8="0",
            PYTHONCOERCECLOCALE="0",
        )  # fmt: skip
        assert seen.code == 0, seen.text
        assert "Traceback" not in seen.text
        assert seen.text.isascii()

    def test_it_is_drawn_again_only_when_something_changed(self, model: Path) -> None:
        """Two seconds in which nothing comes are quiet."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        process = subprocess.Popen(
            [*COMMAND, "stream", "-", "-m", str(model), "--cells", "512"],
            stdin=subprocess.PIPE, stdout=slave, stderr=slave, env=environment(),
        )  # fmt: skip
        os.close(slave)
        assert process.stdin is not None
        process.stdin.write(b"one line\n")
        process.stdin.flush()
        told, end_s = b"", time.monotonic() + 100
        while b"1 " not in told or b"reading" not in told:  # the table is there
            left_s = end_s - time.monotonic()
            assert select.select([master], [], [], max(0.0, left_s))[0], told
            told += os.read(master, 65536)
        quiet = b""
        end_s = time.monotonic() + 3.0
        while (left_s := end_s - time.monotonic()) > 0:
            if select.select([master], [], [], left_s)[0]:
                piece = os.read(master, 65536)
                quiet = piece if time.monotonic() < end_s - 2.0 else quiet + piece
        process.stdin.close()
        list(_read(master, process))
        assert process.wait(timeout=60) == 0
        assert quiet.count(b"reading") <= 2


class TestFilesAndPipes:
    def test_notes_in_a_file_are_not_wrapped(self, model: Path, log: Path, tmp_path: Path) -> None:
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            ended = redirected(*arguments(model, log), capture_output=False, stdout=out, stderr=err)
        assert ended.returncode == 0
        told = (tmp_path / "err").read_text().splitlines()
        assert any(line.startswith("loading") and line.endswith("yet") for line in told)
        assert any(re.fullmatch(r"version 12: .* cells, .* tokens/s", line) for line in told)
        assert not re.search("─|\x1b", (tmp_path / "out").read_text())

    def test_json_in_a_pipe(self, model: Path, log: Path) -> None:
        before_s = time.time()
        ended = redirected(*arguments(model, log), "--ask", "Who?", "--json")
        assert (ended.returncode, ended.stderr) == (0, "")
        events = [json.loads(line) for line in ended.stdout.splitlines()]
        assert {event["session"] for event in events} == {str(log)}
        times = [event["time"] for event in events]
        assert times == sorted(times) and before_s < times[0] <= times[-1] < time.time()
        read = [event for event in events if event["event"] == "read"]
        assert read[-1]["version"] == 12 and read[-1]["lines_left"] > 0
        assert read[-1]["behind_bytes"] == 0
        kinds = {event["event"] for event in events}
        assert {"read", "flash", "final", "answer", "done"} == kinds

    def test_how_many_lines_fit_is_said_early(self, model: Path, log: Path) -> None:
        ended = redirected(*arguments(model, log))
        (said,) = re.findall(r"(\d+) cells a line so far: about (\d+) more of this kind fit",
                             ended.stderr)  # fmt: skip
        each, left = map(int, said)
        assert each == round(len(LINES) / 12)
        assert abs(left - (512 - 9 * each) / each) < 8


class TestInputs:
    """Standard input as a terminal, a pipe and a file; a named pipe."""

    def test_a_terminal(self, model: Path) -> None:
        seen = on_screen(*arguments(model, "-"), "--json", width=80, typed="typed line\n")
        assert seen.code == 0
        assert '"version": 1' in seen.text

    @pytest.mark.parametrize("kind", ["pipe", "file", "fifo"])
    def test_others(self, model: Path, log: Path, tmp_path: Path, kind: str) -> None:
        if kind == "pipe":
            ended = redirected(*arguments(model, "-"), "--json", input=LINES)
        elif kind == "file":
            with log.open() as file:
                ended = redirected(*arguments(model, "-"), "--json", stdin=file)
        else:
            fifo = tmp_path / "fifo"
            os.mkfifo(fifo)
            writer = threading.Thread(target=fifo.write_text, args=(LINES,))
            writer.start()
            ended = redirected(*arguments(model, fifo), "--json")
            writer.join()
        assert ended.returncode == 0, ended.stderr
        done = json.loads(ended.stdout.splitlines()[-1])
        assert (done["event"], done["version"]) == ("done", 12)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_model_is_loaded_ends_at_once(
    log: Path, tmp_path: Path, number: int, exit_code: int
) -> None:
    """Not when all is compiled: a program that hangs in it stands for that."""
    code = (
        # A job in the background of a shell would begin with Ctrl-C ignored.
        "import signal, time, jaxstate.cli.runtime as r\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "r.compile_all = lambda specs, progress=None: time.sleep(100)\n"
        "from jaxstate.cli import main\nmain()"
    )
    model = write_directory(tmp_path / "m")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "stream", str(log), "-m", str(model), "--cells", "512"],
        stderr=subprocess.PIPE, env=environment(), text=True,
    )  # fmt: skip
    assert process.stderr is not None
    told = ""
    while "loading" not in told:
        line = process.stderr.readline()
        assert line, told  # or it has ended
        told += line
    time.sleep(1.0)
    process.send_signal(number)
    assert process.wait(timeout=50) == exit_code
    assert "interrupted: nothing more was done" in process.stderr.read()
    process.stderr.close()
