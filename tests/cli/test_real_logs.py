"""`jaxstate stream` on logs as they are: longer than a session, half written, rotated, with control
characters, into places that cannot be written, ended by signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxstate.cli import app as command_line
from jaxstate.cli.saving import check_writable, save_somewhere
from jaxstate.cli.show import Show, visible
from jaxstate.cli.tailing import follow_lines
from jaxstate.errors import InvalidInput
from jaxstate.persist.files import inspect_snapshot
from jaxstate.textfiles import read_text_file
from tests.cli.conftest import Run
from tests.tiny_directory import MAX_CONTEXT


def test_a_full_session_still_answers(run: Run, tiny: str, tmp_path: Path) -> None:
    log, saved = tmp_path / "log", tmp_path / "saved"
    log.write_text("".join(f"line {n:4}\n" for n in range(100)), encoding="utf-8")
    outcome = run(
        "stream", log, "-m", tiny, "--cells", 256, "--ask", "What?", "--flash", "Up?",
        "--flash-max-tokens", 2, "--max-tokens", 2, "--save", saved, "--json",
    )  # fmt: skip
    assert outcome.code == 1
    (answer,) = outcome.named("answer")
    (final,) = outcome.named("final")
    (done,) = outcome.named("done")
    assert answer["version"] == final["version"] == done["version"] == 25
    (error,) = outcome.named("error")
    said = str(error["message"])
    assert said.startswith("line 26: the session is full")
    assert "About 25 lines of this kind fit (10 cells each)" in said
    assert f"up to {MAX_CONTEXT:,}" in said
    assert inspect_snapshot(saved).length == 251


def test_without_cells_a_session_grows_as_far_as_the_model_goes(
    run: Run, tiny: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 1500 + "\n" + "y" * 540 + "\n" + "z" * 20 + "\n", encoding="utf-8")
    outcome = run("stream", log, "-m", tiny, "--json")
    (done,) = outcome.named("done")
    assert (done["version"], done["cells"]) == (2, 1 + 1501 + 541)
    assert "the model was made for no more" in str(outcome.named("error")[0]["message"])


def test_a_line_without_its_end_is_read_once_it_has_one(
    run: Run, tiny: str, tmp_path: Path
) -> None:
    log = tmp_path / "web.log"
    command = (
        "stream", "-m", tiny, "--cells", 256, "--journal", tmp_path / "kept",
        "--session", f"web={log}",
    )  # fmt: skip
    versions = []
    for text in ("first line\nsecond li", "", "ne\nthird\n", "fourth\n"):
        with log.open("a", encoding="utf-8") as file:
            file.write(text)
        outcome = run(*command, "--json")
        assert outcome.code == 0
        versions.append(outcome.named("done")[0]["version"])
    assert versions == [1, 1, 3, 4]


HIDDEN = "\x1b]0;owned\x07 \x9b31m \u202egnp.exe\u2066 \r\x08"


def test_what_a_terminal_would_obey_is_made_visible(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(as_json=False)
    show.say(f"A: {HIDDEN}")
    show.note(HIDDEN)
    show.error(HIDDEN)
    told = "".join(capsys.readouterr())
    assert not set(told) & set("\x1b\x07\x9b\u202e\u2066\r\x08")
    assert r"\x1b]0;owned\x07" in told and r"\u202e" in told
    assert visible("plain\ttext\nand näive") == "plain\ttext\nand näive"


def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_read(
    run: Run, tiny: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("one\n", encoding="utf-8")
    outcome = run("stream", log, "-m", tiny, "--save", "/proc/nowhere/saved", "--json")
    assert outcome.code == 1 and not outcome.named("read")
    assert "nothing can be written in /proc" in str(outcome.named("error")[0]["message"])
    check_writable(tmp_path / "new" / "deep" / "place")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["log"]


def test_a_save_that_fails_is_tried_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[Path] = []

    def save(place: Path) -> None:
        tried.append(place)
        if len(tried) < 2:
            raise ValueError("No space left on device\nTraceback of a library")

    place = save_somewhere(Show(as_json=False), save, tmp_path / "saved")
    assert place == tried[1] and place.parent == tmp_path
    told = capsys.readouterr().err
    assert "No space left on device" in told and "Traceback" not in told

    def never(place: Path) -> None:
        raise OSError(28, "No space left on device")

    assert save_somewhere(Show(as_json=False), never, tmp_path / "saved") is None
    assert "saved nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfPrices\r\n", "Prices\n"),
        ("Prices\n".encode("utf-16"), "Prices\n"),
        ("Prices\n".encode("utf-32"), "Prices\n"),
        (b"a\rb\n", "a\nb\n"),
    ],
)
def test_text_files_are_read_in_one_way(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert read_text_file(path, "the prefix") == text


def test_files_that_are_no_text_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntw\xff\n")
    with pytest.raises(InvalidInput, match=r"the prefix .*file is not UTF-8: byte 0xff in line 2"):
        read_text_file(path, "the prefix")
    with pytest.raises(InvalidInput, match=r"the prefix .* cannot be read: Is a directory"):
        read_text_file(tmp_path, "the prefix")


class Log:
    """A file that is read while a script of changes is made to it, one at each rest."""

    def __init__(self, path: Path, *changes: Callable[[], object]) -> None:
        self._path = path
        self._changes = list(changes)

    def lines(self) -> list[tuple[int, int, str]]:
        def rest(_: float) -> bool:
            if not self._changes:
                return True
            self._changes.pop(0)()
            return False

        return [(one.turn, one.number, one.text) for one in follow_lines(str(self._path), rest)]


def test_rotations_are_followed(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    path.write_text("a\nb", encoding="utf-8")

    def add(text: str, to: Path = path) -> Callable[[], object]:
        def act() -> None:
            with to.open("a", encoding="utf-8") as file:
                file.write(text)

        return act

    renamed = Log(
        path,
        add("b\n"),
        lambda: path.rename(old),  # and nothing has its name for a while
        add("late\nlast", to=old),
        add("c\n"),
        add("d\n"),
    )
    assert renamed.lines() == [
        (0, 1, "a\n"),
        (0, 2, "bb\n"),
        (0, 3, "late\n"),
        (0, 4, "last"),
        (1, 1, "c\n"),
        (1, 2, "d\n"),
    ]
    cut = Log(path, lambda: os.truncate(path, 0), add("e\n"), add("half"))
    assert cut.lines() == [(0, 1, "c\n"), (0, 2, "d\n"), (1, 1, "e\n")]


def _wait_for(path: Path, text: str, ended: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while text not in path.read_text(encoding="utf-8"):
        assert ended.poll() is None and time.monotonic() < deadline, path.read_text("utf-8")
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_as_ctrl_c_does(tiny: str, tmp_path: Path, number: int) -> None:
    log, saved, told = tmp_path / "log", tmp_path / "saved", tmp_path / "told"
    log.write_text("one\ntwo →\n", encoding="utf-8")
    program = f"from {command_line.__name__} import main; main()"
    with told.open("wb") as out:
        running = subprocess.Popen(
            [
                sys.executable, "-c", program, "stream", str(log), "--follow", "-m", tiny,
                "--cells", "256", "--save", str(saved), "--json",
            ],
            stdout=out, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        )  # fmt: skip
        try:
            _wait_for(told, '"version": 2', running)
            with log.open("a", encoding="utf-8") as file:
                file.write("three\n")
            _wait_for(told, '"version": 3', running)
            running.send_signal(number)
            running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 128 + number
    assert inspect_snapshot(saved).notes["entries"] == 3


def test_a_rotated_file_goes_on_in_a_journal(tiny: str, run: Run, tmp_path: Path) -> None:
    """Stopped, rotated, started again: the new file is read from its beginning, once."""
    log = tmp_path / "log"
    log.write_text("one\ntwo\n", encoding="utf-8")
    kept = ("-m", tiny, "--cells", 256, "--journal", tmp_path / "kept", "--session", f"a={log}")
    assert run("stream", *kept).code == 0
    log.rename(tmp_path / "log.1")
    log.write_text("new\n", encoding="utf-8")
    refused = run("stream", *kept)
    assert refused.code == 1 and "fewer lines than the 2" in " ".join(refused.err.split())
    told = tmp_path / "told"
    program = f"from {command_line.__name__} import main; main()"
    with told.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, "-c", program, "stream", *map(str, kept), "--follow", "--json"],
            stdout=out,
        )
        try:
            _wait_for(told, '"version": 3', running)
            running.send_signal(signal.SIGTERM)
            assert running.wait(timeout=60) == 143
        finally:
            running.kill()
    assert '"rotated"' in told.read_text(encoding="utf-8")
    again = run("stream", *kept, "--json")
    assert again.named("done")[0]["version"] == 3, "nothing is read twice"
