"""What is done when a flash answer is news."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import pytest

from jaxstate import Changed, ConfidenceAbove, Crosses, Equals, InvalidInput
from jaxstate.cli.actions import checked_choices, condition_of

from .conftest import Run


def test_conditions_as_they_are_written() -> None:
    assert condition_of(None) is None and condition_of("changed") == Changed()
    assert condition_of("equals=a=b") == Equals("a=b")
    assert condition_of("crosses=1e2") == Crosses(100.0)
    assert condition_of("rises-above=3") == Crosses(3.0, "up")
    assert condition_of("falls-below=-3") == Crosses(-3.0, "down")
    assert condition_of("confidence=2.5") == ConfidenceAbove(2.5)
    for wrong in ("", "equals", "equals=", "crosses=x", "crosses=nan", "rises=3"):
        with pytest.raises(InvalidInput):
            condition_of(wrong)
    assert checked_choices("yes, no") == ("yes", "no")
    for wrong in ("", "yes", "yes,", "yes,yes"):
        with pytest.raises(InvalidInput, match="two answers or more"):
            checked_choices(wrong)


def test_a_command_and_a_receiver_get_the_answers(run: Run, tiny: str, tmp_path: Path) -> None:
    got: list[dict[str, object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    source, into = tmp_path / "log", tmp_path / "said"
    source.write_text("one\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{receiver.server_address[1]}/"
        flash = ("--flash", "Up?", "--choices", "yes,no", "--exec", f"cat >> {into}")
        done = run("stream", source, "-m", tiny, "--cells", "64", *flash, "--webhook", url)
        assert done.code == 0, done.err
        receiver.shutdown()
    said = json.loads(into.read_text().splitlines()[0].split("}{")[0])
    assert said["question"] == "Up?" and said["text"] in ("yes", "no")
    assert got[0]["question"] == "Up?" and got[0]["text"] in ("yes", "no")


def test_what_fails_is_told_and_ends_nothing(run: Run, tiny: str, tmp_path: Path) -> None:
    source = tmp_path / "log"
    source.write_text("one\n")
    usual = ("stream", source, "-m", tiny, "--cells", "64", "--flash", "Up?")
    failing = run(*usual, "--exec", "exit 3", "--webhook", "http://127.0.0.1:9/")
    assert failing.code == 0
    assert "--exec: exit 3 ended with 3" in failing.err and "--webhook: " in failing.err
    assert run(*usual, "--webhook", "ftp://x").code == 1
    assert run(*usual[:-2], "--when", "changed").code == 1
