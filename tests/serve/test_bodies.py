"""Requests as they must not be: whatever comes, no 500, no leak, no session that hangs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
import websockets.exceptions
import websockets.sync.client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from jaxstate.serve.openapi import document
from tests.serve.servers import Server

schemathesis.serializer.alias("application/x-ndjson", "text/plain")
SCHEMA = schemathesis.openapi.from_dict(document())
# Those that would wait for what never comes, and the stream of events, which has no end.
ENDLESS = ("/v1/sessions/{id}/events", "/v1/sessions/{id}/wait")


@pytest.fixture(scope="module", autouse=True)
def feed(server: Server) -> Iterator[None]:
    """A session that the guesses may find."""
    httpx.post(f"{server.url}/v1/sessions", json={"id": "0"})
    yield
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for one in client.get("/v1/sessions").json()["data"]:
            client.delete(f"/v1/sessions/{one['id']}")


@settings(
    max_examples=int(os.environ.get("JAXSTATE_GUESSES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(case=SCHEMA.as_strategy())
def test_nothing_that_the_document_allows_breaks_the_server(
    server: Server, case: schemathesis.Case
) -> None:
    if case.path in ENDLESS:
        return
    if isinstance(case.body, dict):
        case.body.pop("stream", None)
        case.body.pop("min_version", None)  # it would wait
        case.body.pop("timeout_s", None)  # and be right to say that it took too long
    if case.path_parameters and "id" in case.path_parameters and case.method != "DELETE":
        case.path_parameters["id"] = "0"
    response = case.call(base_url=server.url, timeout=60)
    # Not ready, or no room for what was guessed, is no failure of the server.
    if response.status_code != 503:
        case.validate_response(response, checks=[not_a_server_error])
    if case.path != "/metrics" and response.status_code >= 400:
        assert "message" in response.json()["error"]
    httpx.post(f"{server.url}/v1/sessions", json={"id": "0"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
PATHS = [
    "/v1/sessions",
    "/v1/sessions/0/push",
    "/v1/sessions/0/generate",
    "/v1/sessions/0/flash",
    "/v1/sessions/0/fork",
    "/v1/sessions/0/warm",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
]


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(PATHS),
    body=JSON.map(lambda made: json.dumps(made).encode()) | st.binary(max_size=40),
    kind=st.sampled_from(["application/json", "text/plain", "application/x-ndjson", "a/b", ""]),
)
def test_any_body_gets_an_answer(server: Server, path: str, body: bytes, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    response = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)
    assert response.status_code < 500, (body, response.text)
    if response.status_code >= 400:
        assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/sessions/0/generate", b"{}", 400, "missing required field `prompt`"),
        ("/v1/sessions/0/generate", b'{"prompt": ""}', 400, "length >= 1"),
        ("/v1/sessions/0/generate", b'{"prompt": "x", "tempratur": 1}', 400, "`tempratur`"),
        ("/v1/sessions/0/generate", b'{"prompt": "x"', 400, "no JSON"),
        ("/v1/sessions/0/generate", b'{"prompt": "\xff"}', 400, "no JSON"),
        ("/v1/sessions/0/generate", b'{"prompt": "\\ud800"}', 400, "no JSON|surrogate"),
        ("/v1/sessions/0/generate", b"[" * 100_000, 400, "Expected `object`"),
        ("/v1/sessions/0/generate", b'{"prompt": "x", "as_of": 99}', 400, "as_of=99"),
        ("/v1/sessions/0/generate", b'{"prompt": "x", "seed": -1}', 400, "seed"),
        ("/v1/sessions/0/push", b'{"data": ["a", 3]}', 400, "data"),
        ("/v1/sessions/0/push", b'{"data": "a", "client": "x"}', 400, "belong together"),
        ("/v1/sessions/0/flash", b'{"query": "x", "when": {"direction": "up"}}', 400, "crosses"),
        ("/v1/sessions", b'{"window": {}}', 400, "needs a budget"),
        ("/v1/sessions", b'{"window": {"tokens": 99999}}', 400, "window"),
        ("/v1/sessions", b'{"id": "a.b"}', 400, "id"),
        ("/no/such/path", b"{}", 404, "openapi.json"),
        ("/v1/models", b"{}", 405, "POST is not for this path"),
    ],
)
def test_refusals_say_what_is_wrong(
    http: httpx.Client, path: str, body: bytes, status: int, says: str
) -> None:
    http.post("/v1/sessions", json={"id": "0"})
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert re.search(says, response.json()["error"]["message"]), response.text


def test_bodies_have_bounds(server: Server, http: httpx.Client) -> None:
    http.post("/v1/sessions", json={"id": "feed"})
    huge = b'{"data": "' + b"x" * (17 << 20) + b'"}'
    assert http.post("/v1/sessions/feed/push", content=huge).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * (1 << 20)

    with contextlib.suppress(httpx.HTTPError):  # it may be cut off while it is sent
        assert http.post("/v1/sessions/feed/push", content=endless()).status_code == 413
    assert http.get("/v1/sessions/feed").json()["data_version"] == 0


def _raw(server: Server, data: bytes) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    one.sendall(data)
    return one


def _head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


def test_half_sent_requests_and_disconnects_leave_nothing(
    server: Server, http: httpx.Client
) -> None:
    """At every point of a request, and of the stream that it gets."""
    http.post("/v1/sessions", json={"id": "feed"})
    http.post("/v1/sessions/feed/push", json={"data": "one"})
    http.get("/v1/sessions/feed/wait")
    body = json.dumps({"prompt": "What?", "max_tokens": 100, "stream": True, "stop": []}).encode()
    whole = _head("/v1/sessions/feed/generate", len(body)) + body
    chat = json.dumps(
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100, "stream": True}
    ).encode()
    whole_chat = _head("/v1/chat/completions", len(chat)) + chat
    events = b"GET /v1/sessions/feed/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    files = server.open_files()
    for _ in range(5):
        for cut in (1, 20, 60, len(whole) - len(body), len(whole) - 1):
            _raw(server, whole[:cut]).close()
        for request in (whole, whole_chat, events):
            for read in (0, 1, 200, 400):
                one = _raw(server, request)
                if read:
                    one.recv(read)
                one.close()
    ends_s = time.monotonic() + 30
    while time.monotonic() < ends_s:
        health = http.get("/health").json()
        if health["queued"] == health["running"] == 0 and server.open_files() <= files + 2:
            break
        time.sleep(0.1)
    assert health["queued"] == health["running"] == 0
    assert server.open_files() <= files + 2
    assert not http.get("/v1/sessions/feed").json()["busy"]
    assert http.get("/health").json()["kv_pages_free"] > 0
    under_way = http.get("/metrics").text.split("jaxstate_http_under_way ")[-1].split()[0]
    assert float(under_way) == 1.0  # that of the metrics itself


def test_readers_that_do_not_read_cost_no_memory(server: Server, http: httpx.Client) -> None:
    http.post("/v1/sessions", json={"id": "feed", "window": {"entries": 8}})
    slow = [
        _raw(server, b"GET /v1/sessions/feed/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        for _ in range(4)
    ]
    for _ in range(10):
        http.post("/v1/sessions/feed/push", json={"data": [f"{n}" for n in range(40)]})
    http.get("/v1/sessions/feed/wait")
    before = server.rss_bytes()
    for _ in range(30):
        http.post("/v1/sessions/feed/push", json={"data": [f"{n}" for n in range(40)]})
    http.get("/v1/sessions/feed/wait")
    assert http.get("/v1/sessions/feed").json()["data_version"] == 40 * 40
    assert server.rss_bytes() < before + (64 << 20)
    for one in slow:
        one.close()


def test_sockets_say_what_is_wrong_and_stay_open(server: Server, http: httpx.Client) -> None:
    http.post("/v1/sessions", json={"id": "feed"})
    url = f"ws{server.url.removeprefix('http')}/v1/sessions/feed/ws"
    with websockets.sync.client.connect(url) as one:

        def said() -> dict[str, Any]:
            """The next message that is not of what the session has read."""
            while (message := json.loads(one.recv()))["type"] == "data_updated":
                pass
            return message

        assert said()["type"] == "connected"
        for bad in ("x", "{}", '{"type": "push"}', '{"type": "push", "data": []}', b"\xff"):
            one.send(bad)
            reply = said()
            assert reply["type"] == "error" and reply["data"]["code"] == 400
        one.send('{"type": "push", "data": "one"}')
        assert said()["type"] == "push_ack"
        http.get("/v1/sessions/feed/wait")
        http.delete("/v1/sessions/feed")
        assert said()["type"] == "closed"
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            said()
