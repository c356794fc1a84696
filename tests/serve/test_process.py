"""A server as a process: it loads, is told to stop, and is killed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.servers import Server, served


def test_it_listens_before_it_is_ready(tiny: str, place: Path) -> None:
    with Server(tiny, place) as server:
        first = httpx.get(f"{server.url}/health")
        assert first.status_code == 503 and first.json()["status"] == "unavailable"
        assert httpx.get(f"{server.url}/livez").status_code == 200
        early = httpx.post(f"{server.url}/v1/sessions", json={})
        assert early.status_code == 503 and early.json()["error"]["code"] == "not_ready"
        assert early.headers["retry-after"] == "1"
        server.wait_ready()
        assert httpx.post(f"{server.url}/v1/sessions", json={}).status_code == 201
        assert server.stop() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_and_ends_with_0(
    tiny: str, place: Path, how: signal.Signals
) -> None:
    """An answer under way is given, streams of events end, and the sessions are there again."""
    kept = place / "kept"
    with served(tiny, place, "--journal", kept) as server:
        url = f"{server.url}/v1/sessions"
        httpx.post(url, json={"id": "feed"})
        httpx.post(f"{url}/feed/push", json={"data": ["one", "two"]})
        httpx.get(f"{url}/feed/wait")
        events: list[str] = []
        answers: list[httpx.Response] = []
        listening = threading.Thread(target=_listen, args=(f"{url}/feed/events", events))
        asked = {"prompt": "What?", "max_tokens": 200, "temperature": 9.0, "seed": 1, "stop": []}
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/feed/generate", json=asked, timeout=60)
            )
        )
        listening.start(), asking.start()
        while not (events and httpx.get(f"{url}/feed").json()["busy"]):
            time.sleep(0.005)
        assert server.stop(how) == 0
        listening.join(10), asking.join(10)
    assert answers[0].status_code == 200
    assert "event: closed" in events
    with served(tiny, place, "--journal", kept) as again:
        session = httpx.get(f"{again.url}/v1/sessions/feed").json()
        assert session["data_version"] == 2
        assert again.stop() == 0


def _listen(url: str, heard: list[str]) -> None:
    with httpx.stream("GET", url, timeout=60) as events:
        for line in events.iter_lines():
            heard.append(line)


def test_killed_under_load_nothing_acknowledged_is_missing(tiny: str, place: Path) -> None:
    """Clients that number their pushes go on where they were, exactly once."""
    kept, names = place / "kept", [f"feed{number}" for number in range(4)]
    acknowledged = dict.fromkeys(names, 0)
    port = "0"
    for life in range(3):
        with served(tiny, place, "--journal", kept, "--port", port) as server:
            port = str(server.port)
            stop = threading.Event()
            clients = [
                threading.Thread(target=_push_on, args=(server.url, name, acknowledged, stop))
                for name in names
            ]
            for one in clients:
                one.start()
            time.sleep(1.0 + life / 3)
            server.stop(signal.SIGKILL)
            stop.set()
            for one in clients:
                one.join(30)
    assert all(count > 3 for count in acknowledged.values())
    with served(tiny, place, "--journal", kept, "--port", port) as server:
        for name in names:
            httpx.get(f"{server.url}/v1/sessions/{name}/wait", timeout=60)
            session = httpx.get(f"{server.url}/v1/sessions/{name}").json()
            position = httpx.get(
                f"{server.url}/v1/sessions/{name}/position", params={"client": name}
            ).json()["client_seq"]
            # What was pushed and not acknowledged may be there, once; nothing else is.
            assert acknowledged[name] <= position <= acknowledged[name] + 1
            assert session["data_version"] == position


def _push_on(url: str, name: str, acknowledged: dict[str, int], stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=10) as client:
        try:
            if client.get(f"/v1/sessions/{name}").status_code == 404:
                made = {"id": name, "window": {"entries": 20}}
                assert client.post("/v1/sessions", json=made).status_code == 201
            while not stop.is_set():
                number = acknowledged[name] + 1
                body = {"data": f"{number}", "client": name, "client_seq": number, "strict": True}
                reply = client.post(f"/v1/sessions/{name}/push", json=body)
                assert reply.status_code == 200, reply.text
                acknowledged[name] = number
        except httpx.HTTPError:
            return  # it was killed


def test_what_would_go_on_for_ever_ends_with_the_server(tiny: str, place: Path) -> None:
    """A push that is silent, and a wait for what nobody pushes."""
    with served(tiny, place) as server:
        httpx.post(f"{server.url}/v1/sessions", json={"id": "feed"})
        ends, replies = threading.Event(), list[httpx.Response]()

        def silent() -> Iterator[bytes]:
            yield b"one\ntwo\n"
            ends.wait(60)

        calls = [
            lambda: httpx.post(
                f"{server.url}/v1/sessions/feed/push",
                content=silent(),
                headers={"content-type": "text/plain"},
                timeout=60,
            ),
            lambda: httpx.get(f"{server.url}/v1/sessions/feed/wait?version=99", timeout=60),
        ]
        threads = [threading.Thread(target=lambda one=one: replies.append(one())) for one in calls]
        for one in threads:
            one.start()
        while httpx.get(f"{server.url}/v1/sessions/feed").json()["data_version"] < 2:
            time.sleep(0.01)
        time.sleep(0.3)
        began_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began_s < 20  # and not when nobody has anything to say any more
        ends.set()
        for one in threads:
            one.join(10)
    assert [one.status_code for one in replies] == [503, 503]
    assert any("2 entries of this body are taken" in one.text for one in replies)


def test_half_a_header_is_not_waited_for(tiny: str, place: Path) -> None:
    """On a new connection, and on one that has had a request."""
    with served(tiny, place, "--body-timeout", "1") as server:
        for requests in (0, 1):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as one:
                for _ in range(requests):
                    one.sendall(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
                    reply = b""
                    while b"ok" not in reply:
                        reply += one.recv(4096)
                one.sendall(b"GET /livez HTT")
                assert one.recv(4096) == b""
        slow = b"POST /v1/sessions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n{"
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as one:
            one.sendall(slow)
            assert b"408" in one.recv(4096)


def test_a_session_that_answers_is_not_deleted(tiny: str, place: Path) -> None:
    with served(tiny, place) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        client.post("/v1/sessions", json={"id": "feed"})
        late = {"prompt": "?", "min_version": 1, "stream": True, "max_tokens": 4}
        with client.stream("POST", "/v1/sessions/feed/generate", json=late) as stream:
            busy = httpx.delete(f"{server.url}/v1/sessions/feed")
            assert busy.status_code == 409 and busy.json()["error"]["code"] == "busy"
            httpx.post(f"{server.url}/v1/sessions/feed/push", json={"data": "one"})
            assert "[DONE]" in stream.read().decode()
        assert client.delete("/v1/sessions/feed").status_code == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "no key is needed: give --api-key"),
        (["--keys", "no/such.toml"], "cannot be read"),
        (["--port", "1", "--host", "203.0.113.1", "--api-key", "x"], "cannot be listened to"),
        (["-m", "no/such/model"], "no/such/model"),
        (["--ask-timeout", "0"], "ask_s=0"),
        (["--durability", "fsync"], "of a --journal, and none is given"),
    ],
)
def test_what_cannot_be_served_ends_with_1(tiny: str, options: list[str], says: str) -> None:
    usual = [] if "-m" in options else ["-m", tiny]
    port = [] if "--port" in options else ["--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxstate", "serve", *usual, *port, *options],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and says in done.stderr, done.stderr


def test_logs_have_nobodys_text(tiny: str, place: Path) -> None:
    with served(tiny, place, "--log", "json") as server:
        httpx.post(f"{server.url}/v1/sessions", json={"id": "private-name", "prefix": "a secret"})
        httpx.post(f"{server.url}/v1/sessions/private-name/push", json={"data": "a secret"})
        httpx.post(f"{server.url}/v1/sessions/private-name/generate", json={"prompt": "a secret"})
        httpx.get(f"{server.url}/v1/sessions/private-name/position?client=a-secret")
        server.stop()
    logged = "".join(server.log)
    assert '"route": "/v1/sessions/{id}/push"' in logged and '"status": 200' in logged
    assert "secret" not in logged and "private" not in logged
