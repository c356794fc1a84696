"""Webhooks: what a receiver gets, what it gets again, and where nothing is sent."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.servers import Server, served


class Receiver:
    """A real HTTP server that fails as often as it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.failures: list[int] = []
        self.news = threading.Condition()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with receiver.news:
                    status = receiver.failures.pop(0) if receiver.failures else 204
                    if status == 204:
                        receiver.got.append((dict(self.headers), body))
                    receiver.news.notify_all()
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: len(self.got) >= count, 60), self.got


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture(scope="module")
def hooked(
    tiny: str, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    place: Path = tmp_path_factory.mktemp("hooked")
    with served(tiny, place, "--webhook-host", receiver.host) as one:
        yield one


def test_answers_that_are_news_are_sent_signed_and_again(
    hooked: Server, receiver: Receiver
) -> None:
    hook = {"url": f"http://{receiver.host}/hook?x=1", "secret": "shared"}
    receiver.failures += [500, 503]
    with httpx.Client(base_url=hooked.url, timeout=60) as client:
        client.post("/v1/sessions", json={"id": "feed"})
        made = client.post(
            "/v1/sessions/feed/flash", json={"query": "What?", "max_tokens": 4, "webhook": hook}
        )
        assert made.status_code == 201
        receiver.wait(1)
        headers, body = receiver.got[0]
        sent = json.loads(body)
        assert (sent["session_id"], sent["query"]) == ("feed", "What?")
        listed = client.get("/v1/sessions/feed/flash").json()["data"][0]
        assert sent["value"] == listed["value"]
        signed = dict(part.split("=") for part in headers["x-jaxstate-signature"].split(","))
        wanted = hmac.new(b"shared", signed["t"].encode() + b"." + body, hashlib.sha256)
        assert signed["v1"] == wanted.hexdigest()
        assert receiver.failures == []
        client.delete("/v1/sessions/feed")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x",
        "http://localhost/x",
        "ftp://{host}/x",
        "http://{host}@evil.example/x",
        "http://evil.example#@{host}/x",
        "http://{host}.evil.example/x",
        "//{host}/x",
        "x",
        "http://[::1",
        "http://{host}/\u0001",
    ],
)
def test_nothing_is_sent_where_it_may_not(hooked: Server, receiver: Receiver, url: str) -> None:
    with httpx.Client(base_url=hooked.url, timeout=60) as client:
        client.post("/v1/sessions", json={"id": "other"})
        hook = {"url": url.format(host=receiver.host)}
        refused = client.post("/v1/sessions/other/flash", json={"query": "?", "webhook": hook})
        assert refused.status_code == 403 and receiver.host in refused.text
        client.delete("/v1/sessions/other")
