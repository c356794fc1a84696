"""Lines that are pushed as log shippers and `curl` send them, and what numbers make of a push."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.serve.servers import Server


@pytest.fixture
def feed(http: httpx.Client) -> str:
    http.post("/v1/sessions", json={"id": "feed"})
    return "/v1/sessions/feed"


def read(http: httpx.Client, feed: str) -> int:
    """Tokens of the session, once all is read: every byte is one."""
    http.get(f"{feed}/wait")
    return http.get(feed).json()["tokens"]


def test_text_line_by_line(http: httpx.Client, feed: str) -> None:
    opening = read(http, feed)
    plain = {"content-type": "text/plain; charset=utf-8"}
    reply = http.post(f"{feed}/push", content=b"one\ntwo\r\n\n  \nthree", headers=plain).json()
    assert (reply["pushed"], reply["first"], reply["last"]) == (3, 1, 3)
    assert read(http, feed) == opening + len("one\ntwo\nthree\n")


def test_an_endless_body_is_pushed_as_it_comes(
    server: Server, feed: str, http: httpx.Client
) -> None:
    def lines() -> Iterator[bytes]:
        yield b"one\ntw"
        while http.get(feed).json()["data_version"] < 1:
            pass
        yield b"o\n"
        while http.get(feed).json()["data_version"] < 2:
            pass
        yield b"three"

    with httpx.Client(base_url=server.url, timeout=60) as other:
        reply = other.post(
            f"{feed}/push", content=lines(), headers={"content-type": "text/plain"}
        ).json()
    assert (reply["pushed"], reply["last"]) == (3, 3)


def test_json_lines(http: httpx.Client, feed: str) -> None:
    opening = read(http, feed)
    objects = [{"timestamp": "09:30", "level": "warn", "message": "up"}, {"a": 1, "b": "x"}, "y"]
    body = "\n".join(map(json.dumps, objects))
    kind = {"content-type": "application/x-ndjson"}
    assert http.post(f"{feed}/push", content=body, headers=kind).json()["pushed"] == 3
    assert read(http, feed) == opening + len("09:30 warn up\n" + "a=1, b=x\n" + "y\n")
    template = {"template": "{b}!"}
    again = http.post(f"{feed}/push", content='{"b": 7}', headers=kind, params=template)
    assert again.json()["pushed"] == 1
    assert read(http, feed) == opening + len("09:30 warn up\na=1, b=x\ny\n7!\n")


@pytest.mark.parametrize(
    ("body", "kind", "query", "says"),
    [
        (b"", "text/plain", {}, "no lines that make entries"),
        (b"\n \n", "text/plain", {}, "no lines that make entries"),
        (b"ok\n\xff\n", "text/plain", {}, "line 2 is not UTF-8"),
        (b"{}\n[1]\n", "application/x-ndjson", {}, "object or a string"),
        (b"{", "application/x-ndjson", {}, "no JSON"),
        (b"a", "text/plain", {"format": "xml"}, "none of auto, lines"),
        (b"a", "text/plain", {"client": "x"}, "belong together"),
        (b"a", "text/plain", {"client": "x", "client_seq": "-1"}, "client_seq='-1'"),
        (b'a,b\n"x', "text/plain", {"format": "csv"}, "within a quoted field"),
        (b"a", "text/xml", {}, "application/x-ndjson"),
        (b"a", "application/x-www-form-urlencoded", {}, "no JSON"),
        (b"a", "text/plain", {"fomat": "csv"}, "'fomat' in the query is not known"),
        (b'{"a": 1}\n{"b": 2}', "application/x-ndjson", {"template": "{b}"}, "line 1: "),
    ],
)
def test_lines_that_cannot_be_taken(
    http: httpx.Client, feed: str, body: bytes, kind: str, query: dict[str, str], says: str
) -> None:
    headers = {"content-type": kind}
    reply = http.post(f"{feed}/push", content=body, headers=headers, params=query)
    assert reply.status_code in (400, 415) and says in reply.json()["error"]["message"]


def test_an_error_says_how_much_before_it_is_taken(http: httpx.Client, feed: str) -> None:
    def body() -> Iterator[bytes]:
        yield b"one\ntwo\n"
        yield b"\xff\n"

    reply = http.post(f"{feed}/push", content=body(), headers={"content-type": "text/plain"})
    assert reply.status_code == 400
    taken = http.get(f"{feed}/wait").json()["data_version"]
    assert f"({taken} entries of this body are taken" in reply.json()["error"]["message"]


def test_numbers_make_a_push_happen_once(http: httpx.Client, feed: str) -> None:
    numbered = {"data": ["one", "two"], "client": "me", "client_seq": 1}
    first = http.post(f"{feed}/push", json=numbered).json()
    again = http.post(f"{feed}/push", json=numbered).json()
    assert (first["first"], first["last"]) == (again["first"], again["last"]) == (1, 2)
    other = http.post(f"{feed}/push", json={**numbered, "data": "x"})
    assert other.status_code == 400 and "under number 1" in other.json()["error"]["message"]
    gap = http.post(f"{feed}/push", json={**numbered, "client_seq": 5, "strict": True})
    assert gap.status_code == 409 and gap.json()["error"]["code"] == "sequence_gap"
    assert http.get(f"{feed}/position", params={"client": "me"}).json()["client_seq"] == 1
    assert http.get(f"{feed}/position", params={"client": "you"}).json()["client_seq"] is None
    assert http.get(f"{feed}/position").status_code == 400
    plain = {"content-type": "text/plain"}
    query = {"client": "me", "client_seq": "2"}
    for _ in range(2):
        lines = http.post(f"{feed}/push", content=b"a\nb", headers=plain, params=query).json()
        assert (lines["first"], lines["last"]) == (3, 4)
    for key in ("me/3", "a1b2-opaque"):
        replies = [
            http.post(f"{feed}/push", json={"data": "x"}, headers={"idempotency-key": key}).json()
            for _ in range(2)
        ]
        assert replies[0]["last"] == replies[1]["last"]
        replies = [
            http.post(f"{feed}/push", content=b"y", headers={**plain, "idempotency-key": f"l{key}"})
            for _ in range(2)
        ]
        assert replies[0].json()["last"] == replies[1].json()["last"]
    both = http.post(f"{feed}/push", json=numbered, headers={"idempotency-key": "x"})
    assert both.status_code == 400


def test_full_queues(http: httpx.Client) -> None:
    """A queue holds 4,096 entries; the second push comes long before the first is read."""
    for policy in ("reject", "drop_oldest"):
        made = {"id": policy, "policy": policy, "window": {"entries": 4}}
        assert http.post("/v1/sessions", json=made).status_code == 201
        push = f"/v1/sessions/{policy}/push"
        too_many = http.post(push, json={"data": ["x"] * 5000})
        assert too_many.status_code == 400, "more than the queue holds at once"
        assert http.post(push, json={"data": ["x"] * 4000}).status_code == 200
        second = http.post(push, json={"data": ["y"] * 4000})
        if policy == "reject":
            assert second.status_code == 429 and second.headers["retry-after"] == "1"
            assert second.json()["error"]["code"] == "queue_full"
        else:
            assert second.status_code == 200
            assert 0 < second.json()["dropped"] == second.json()["total_dropped"]


def test_curl(server: Server, http: httpx.Client, feed: str) -> None:
    push = ["curl", "-s", f"{server.url}{feed}/push"]
    as_json = subprocess.run(
        [*push, "-d", '{"data": "zero"}'], capture_output=True, timeout=60, check=True
    )
    assert json.loads(as_json.stdout)["pushed"] == 1
    command = [*push, "-H", "content-type: text/plain"]
    done = subprocess.run(
        [*command, "--data-binary", "@-"], input=b"one\ntwo\n", capture_output=True, timeout=60
    )
    assert json.loads(done.stdout)["pushed"] == 2


def test_versions_forks_windows_and_rest(http: httpx.Client, feed: str) -> None:
    http.post(f"{feed}/push", json={"data": ["one", "two", "three"]})
    http.get(f"{feed}/wait", params={"version": 3})
    newest = http.post(f"{feed}/generate", json={"prompt": "?", "max_tokens": 4}).json()
    early = {"prompt": "?", "max_tokens": 4, "as_of": 1}
    assert newest["data_version"] == 3
    assert http.post(f"{feed}/generate", json=early).json()["data_version"] == 1
    forked = http.post(f"{feed}/fork", json={"id": "fork", "version": 1})
    assert forked.status_code == 201 and forked.json()["data_version"] == 1
    at_fork = http.post("/v1/sessions/fork/generate", json={"prompt": "?", "max_tokens": 4})
    assert at_fork.json()["text"] == http.post(f"{feed}/generate", json=early).json()["text"]
    assert http.post(f"{feed}/fork", json={"version": 9}).status_code == 400
    assert http.post(f"{feed}/fork", json={"id": "fork"}).status_code == 409
    assert http.post(f"{feed}/suspend").json()["residency"] != "device"
    assert http.post(f"{feed}/resume").json()["residency"] == "device"
    window = http.put(f"{feed}/window", json={"window": {"entries": 2}}).json()
    assert window["window_spec"]["entries"] == 2
    http.post(f"{feed}/push", json={"data": ["four", "five", "six"]})
    http.get(f"{feed}/wait")
    late = {"prompt": "?", "max_tokens": 4, "min_version": 6}
    assert http.post(f"{feed}/generate", json=late).json()["visible"][0]["last"] == 6
    chosen = {"prompt": "?", "choices": ["yes", "no"]}
    answer = http.post(f"{feed}/generate", json=chosen).json()
    assert answer["text"] in ("yes", "no") and len(answer["choice_logprobs"]) == 2
    never = {"prompt": "?", "min_version": 99, "timeout_s": 0.1}
    assert http.post(f"{feed}/generate", json=never).status_code == 504
