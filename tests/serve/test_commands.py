"""The command line as a client: `push`, `attach`, and `ask` of a running server."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from jaxstate.cli import app, inputs
from tests.serve.servers import Server, served


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def jaxstate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `jaxstate …` in this process."""

    def run(*arguments: object, text: str | None = None) -> Done:
        monkeypatch.setattr("sys.argv", ["jaxstate", *map(str, arguments)])
        if text is not None:
            monkeypatch.setattr(inputs, "standard_input", lambda: io.BytesIO(text.encode()))
        capfd.readouterr()
        code = 0
        try:
            app.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return Done(code, out, " ".join(err.split()))

    return run


@pytest.fixture
def feed(server: Server, http: httpx.Client) -> str:
    """Where a session of that name is; nothing is left of it."""
    return "/v1/sessions/feed"


def tokens_of(http: httpx.Client, entries: list[str]) -> int:
    http.post("/v1/sessions", json={"id": "same"})
    http.post("/v1/sessions/same/push", json={"data": entries})
    http.get("/v1/sessions/same/wait")
    tokens = http.get("/v1/sessions/same").json()["tokens"]
    http.delete("/v1/sessions/same")
    return tokens


def test_a_file_goes_on_where_the_server_has_it(
    jaxstate: Run, server: Server, http: httpx.Client, feed: str, tmp_path: Path
) -> None:
    lines = [f"line {number}" for number in range(80)]
    source = tmp_path / "app.log"
    source.write_text("".join(f"{line}\n" for line in lines[:40]))
    done = jaxstate("push", server.url, "feed", source, "--window", "700t", "--flash", "What?")
    assert done.returncode == 0, done.stderr
    assert "40 entries pushed; the session is at version 40" in done.stderr
    assert http.get(feed).json()["window"] == 700
    source.write_text("".join(f"{line}\n" for line in lines))
    again = jaxstate("push", server.url, "feed", source, "--json")
    pushed = [json.loads(line) for line in again.stdout.splitlines()][-1]
    assert (pushed["event"], pushed["entries"], pushed["version"]) == ("pushed", 40, 80)
    once_more = jaxstate("push", server.url, "feed", source)
    assert "0 entries pushed" in once_more.stderr and once_more.returncode == 0
    assert [one["text"] for one in http.get(f"{feed}/entries?last=80").json()["data"]] == lines
    source.write_text("".join(f"other {line}\n" for line in lines))
    changed = jaxstate("push", server.url, "feed", source)
    assert changed.returncode == 1 and "the file was changed or replaced" in changed.stderr
    source.write_text("line 0\n")
    cut = jaxstate("push", server.url, "feed", source)
    assert cut.returncode == 1 and "fewer lines" in cut.stderr
    assert http.get(feed).json()["data_version"] == 80


def test_pipes_formats_and_compressed(
    jaxstate: Run, server: Server, http: httpx.Client, feed: str, tmp_path: Path
) -> None:
    piped = jaxstate("push", server.url, "feed", "-", "--grep", "e", text="one\ntwo\nthree")
    assert piped.returncode == 0, piped.stderr
    table = tmp_path / "prices.csv.gz"
    table.write_bytes(gzip.compress(b"day,close\n1,9.5\n2,7\n"))
    assert jaxstate("push", server.url, "feed", table, "--format", "csv").returncode == 0
    entries = ["one", "three", "day=1, close=9.5", "day=2, close=7"]
    assert [one["text"] for one in http.get(f"{feed}/entries").json()["data"]] == entries
    assert http.get(feed).json()["tokens"] == tokens_of(http, entries)


def test_ask_and_attach(jaxstate: Run, server: Server, http: httpx.Client, feed: str) -> None:
    jaxstate("push", server.url, "feed", "-", text="one\n")
    asked = jaxstate("ask", server.url, "What?", "--session", "feed", "--max-tokens", "4")
    assert asked.returncode == 0 and "Q: What?" in asked.stdout
    assert "version 1, computed" in asked.stdout
    assert jaxstate("ask", server.url, "What?").returncode == 1
    nobody = jaxstate("ask", server.url, "What?", "--session", "nobody")
    assert nobody.returncode == 1 and "no session 'nobody'" in nobody.stderr
    attached = subprocess.Popen(
        [sys.executable, "-m", "jaxstate", "attach", server.url, "feed", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert attached.stdout is not None
    assert json.loads(attached.stdout.readline())["event"] == "connected"
    http.post(f"{feed}/flash", json={"query": "What?", "max_tokens": 4})
    while (event := json.loads(attached.stdout.readline()))["event"] != "flash_ready":
        pass
    assert event["query"] == "What?"
    http.delete(feed)
    assert attached.wait(30) == 0
    attached.stdout.close()


def test_a_server_that_dies_meanwhile(tiny: str, place: Path, tmp_path: Path) -> None:
    """The client tries again until it is there, and every line is read once."""
    source, kept = tmp_path / "app.log", place / "kept"
    source.write_text("".join(f"line {number}\n" for number in range(700)))
    with served(tiny, place, "--journal", kept) as first:
        port, url = str(first.port), first.url
        window = {"id": "feed", "window": {"entries": 50}}
        httpx.post(f"{url}/v1/sessions", json=window)
        client = subprocess.Popen(
            [sys.executable, "-m", "jaxstate", "push", url, "feed", str(source)],
            stderr=subprocess.PIPE,
            text=True,
        )
        while httpx.get(f"{url}/v1/sessions/feed").json()["data_version"] < 100:
            time.sleep(0.02)
        first.stop(signal.SIGKILL)
    with served(tiny, place, "--journal", kept, "--port", port) as again:
        assert client.wait(120) == 0
        assert client.stderr is not None
        assert "does not answer" in client.stderr.read()
        client.stderr.close()
        assert httpx.get(f"{again.url}/v1/sessions/feed").json()["data_version"] == 700
        newest = httpx.get(f"{again.url}/v1/sessions/feed/entries?last=2").json()["data"]
        assert [one["text"] for one in newest] == ["line 698", "line 699"]


def test_attach_goes_on_through_a_restart(tiny: str, place: Path) -> None:
    kept = place / "kept"
    with served(tiny, place, "--journal", kept) as first:
        port = str(first.port)
        httpx.post(f"{first.url}/v1/sessions", json={"id": "feed"})
        attached = subprocess.Popen(
            [sys.executable, "-m", "jaxstate", "attach", f"{first.url}/v1", "feed", "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert attached.stdout is not None
        assert json.loads(attached.stdout.readline())["event"] == "connected"
        first.stop()
    with served(tiny, place, "--journal", kept, "--port", port) as again:
        events = iter(attached.stdout.readline, "")
        kinds = [json.loads(line)["event"] for line in itertools.islice(events, 3)]
        assert "connected" in kinds
        httpx.delete(f"{again.url}/v1/sessions/feed")
        assert attached.wait(30) == 0
    attached.stdout.close()


def test_a_followed_file_that_is_rotated(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    source = tmp_path / "app.log"
    source.write_text("one\ntwo\n")
    command = [sys.executable, "-m", "jaxstate", "push", server.url, "feed", str(source)]

    def followed(version: int) -> None:
        with subprocess.Popen([*command, "--follow"], stderr=subprocess.DEVNULL) as client:
            ends_s = time.monotonic() + 60
            while time.monotonic() < ends_s:
                reply = http.get("/v1/sessions/feed")
                if reply.is_success and reply.json()["data_version"] >= version:
                    break
                time.sleep(0.05)
            client.send_signal(signal.SIGTERM)
            assert client.wait(30) == 143

    followed(2)
    source.rename(tmp_path / "app.log.1")  # while nobody looks
    source.write_text("three\nfour\nfive\n")
    followed(5)
    texts = [one["text"] for one in http.get("/v1/sessions/feed/entries").json()["data"]]
    assert texts == ["one", "two", "three", "four", "five"]


def test_what_cannot_be_done_ends_with_1(jaxstate: Run, server: Server, tmp_path: Path) -> None:
    source = tmp_path / "app.log"
    source.write_text("one\n")
    for arguments, says in (
        (["push", "ftp://x", "feed", source], "must begin with http"),
        (["push", server.url, "no such/name", source], "id|name"),
        (["push", "http://127.0.0.1:9", "feed", source, "--patience", "0.1"], "within 0.1 s"),
        (["attach", "http://127.0.0.1:9", "feed", "--patience", "0.1"], "within 0.1 s"),
        (["push", server.url, "feed", tmp_path / "no-file"], "cannot be read"),
    ):
        done = jaxstate(*arguments)
        assert done.returncode == 1, done.stderr
        assert re.search(says, done.stderr), done.stderr
