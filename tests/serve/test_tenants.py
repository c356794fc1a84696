"""Keys: whose a request is, and that one tenant neither sees, names nor exhausts another."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import layerscale
import pytest
import websockets.exceptions
import websockets.sync.client

from jaxstate.errors import InvalidInput
from jaxstate.serve.keys import key_ring
from tests.serve.servers import Server, served

KEYS = f"""\
[tenants.acme]
keys = ["acme-key", "acme-second"]
sessions = 2
requests = 2
quota_cells = 512
weight = 2.0

[tenants.other]
key_sha256 = ["{hashlib.sha256(b"other-key").hexdigest()}"]

[tenants.ops]
keys = ["ops-key"]
operator = true
"""


@pytest.fixture(scope="module")
def keyed(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("keyed")
    (place / "keys.toml").write_text(KEYS)
    with served(tiny, place, "--keys", place / "keys.toml") as one:
        yield one


def client(server: Server, key: str | None) -> httpx.Client:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60)


def forget_all(one: httpx.Client) -> None:
    while (listed := one.get("/v1/sessions")).status_code == 429:
        time.sleep(0.02)  # a stream's end is still to be noticed
    for session in listed.json()["data"]:
        one.delete(f"/v1/sessions/{session['id']}")


@pytest.fixture
def acme(keyed: Server) -> Iterator[httpx.Client]:
    with client(keyed, "acme-key") as one:
        yield one
        forget_all(one)


@pytest.fixture
def other(keyed: Server) -> Iterator[httpx.Client]:
    with client(keyed, "other-key") as one:
        yield one
        forget_all(one)


def test_no_route_without_a_key(keyed: Server) -> None:
    paths = [
        *httpx.get(f"{keyed.url}/openapi.json", headers={"x-api-key": "acme-key"}).json()["paths"],
        "/openapi.json",
        "/no/such/path",
    ]
    assert len(paths) > 20
    for key in (None, "wrong", "acme-keyx", "acme-ke"):
        with client(keyed, key) as one:
            for path in paths:
                for method in ("GET", "POST", "DELETE", "PUT"):
                    status = one.request(method, path).status_code
                    free = path in ("/health", "/healthz", "/livez")
                    assert status == 401 or free, (method, path, status)
            assert one.get("/health").status_code == one.get("/").status_code == 200
    assert httpx.get(f"{keyed.url}/v1/models", headers={"x-api-key": "other-key"}).is_success
    with layerscale.LayerScale(base_url=keyed.url, api_key="wrong") as one:
        with pytest.raises(layerscale.AuthenticationError):
            one.sessions.list()
        with pytest.raises(layerscale.AuthenticationError):
            one.sessions.ws("feed")


def test_a_tenant_sees_its_own_alone(acme: httpx.Client, other: httpx.Client) -> None:
    assert acme.post("/v1/sessions", json={"id": "feed"}).status_code == 201
    assert other.post("/v1/sessions", json={"id": "feed"}).status_code == 201
    acme.post("/v1/sessions/feed/push", json={"data": "acme's"})
    assert acme.get("/v1/sessions/feed/wait").json() == {"data_version": 1}
    assert other.get("/v1/sessions/feed").json()["data_version"] == 0
    assert acme.post("/v1/sessions", json={"id": "mine"}).status_code == 201
    for path in ("/v1/sessions/mine", "/v1/sessions/acme.mine", "/v1/sessions/acme.mine/flash"):
        assert other.get(path).status_code == 404
    assert [one["id"] for one in other.get("/v1/sessions").json()["data"]] == ["feed"]
    assert other.delete("/v1/sessions/mine").status_code == 404
    assert other.post("/v1/sessions", json={"id": "acme.mine"}).status_code == 400


def test_a_tenant_has_bounds(acme: httpx.Client, other: httpx.Client) -> None:
    for name in ("one", "two"):
        assert acme.post("/v1/sessions", json={"id": name}).status_code == 201
    refused = acme.post("/v1/sessions", json={"id": "three"})
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "sessions"
    many = acme.post("/v1/sessions/one/push", json={"data": ["x" * 400, "y" * 400]})
    assert many.status_code == 429 and many.json()["error"]["code"] == "budget_exceeded"
    other.post("/v1/sessions", json={"id": "feed"})
    assert other.post("/v1/sessions/feed/push", json={"data": "z" * 800}).status_code == 200
    one = acme.stream("GET", "/v1/sessions/one/events")
    with one as first, acme.stream("GET", "/v1/sessions/two/events") as second:
        assert first.status_code == second.status_code == 200
        third = acme.get("/v1/sessions")
        assert third.status_code == 429 and third.headers["retry-after"] == "1"
        assert other.get("/v1/sessions").status_code == 200


def test_what_concerns_all_takes_an_operator(keyed: Server, acme: httpx.Client) -> None:
    window = {"window": {"key": "(\\w+)"}}
    assert acme.get("/metrics").status_code == 403
    assert "metrics" not in acme.get("/v1/overview").json()
    assert acme.post("/v1/sessions", json=window).status_code == 403
    with client(keyed, "ops-key") as ops:
        assert "jaxstate_sessions" in ops.get("/metrics").text
        assert "counts" in ops.get("/v1/overview").json()["metrics"]
        made = ops.post("/v1/sessions", json=window)
        assert made.status_code == 201
        ops.delete(f"/v1/sessions/{made.json()['id']}")


def test_other_sites_pages_are_refused(server: Server, keyed: Server) -> None:
    evil, own = {"origin": "http://evil.example"}, {"origin": server.url}
    push = {"content": "x", "headers": {**evil, "content-type": "text/plain"}}
    assert httpx.post(f"{server.url}/v1/sessions/feed/push", **push).status_code == 403
    assert httpx.get(f"{server.url}/v1/sessions", headers=evil).status_code == 403
    assert httpx.get(f"{server.url}/v1/sessions", headers=own).status_code == 200
    assert httpx.get(f"{server.url}/health", headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(f"{keyed.url}/health", headers={"host": "ours.example"}).status_code == 200
    for odd in ("[::1", "a:b:c", "@", "127.0.0.1@evil.example", "", ":8080"):
        assert httpx.get(f"{server.url}/health", headers={"host": odd}).status_code in (400, 403)
        assert httpx.get(f"{server.url}/health", headers={"origin": odd}).status_code == 403
    for own_name in ("localhost", "localhost:80", "[::1]:8080", "[::1]", "127.0.0.1"):
        assert httpx.get(f"{server.url}/health", headers={"host": own_name}).status_code == 200
    url = f"ws{server.url.removeprefix('http')}/v1/sessions/feed/ws"
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        websockets.sync.client.connect(url, origin="http://evil.example")  # pyright: ignore
    assert refused.value.response.status_code == 403


def test_pages_that_are_named_may_use_it(tiny: str, place: Path) -> None:
    origin = "https://ours.example"
    with Server(tiny, place, "--cors", origin) as one:
        preflight = httpx.options(
            f"{one.url}/v1/sessions",
            headers={"origin": origin, "access-control-request-method": "POST"},
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        health = httpx.get(f"{one.url}/health", headers={"origin": origin})
        assert health.headers["access-control-allow-origin"] == origin
        other = httpx.options(f"{one.url}/v1/sessions", headers={"origin": "https://x.example"})
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[tenants.acme]\n", "needs keys, or key_sha256"),
        ("[tenants.acme]\nkeys = []\n", "needs keys, or key_sha256"),
        ("[tenants.acme]\nkeys = ['']\n", "a key is a text"),
        ("[tenants.acme]\nkey_sha256 = ['abc']\n", "64 hexadecimal digits"),
        ("[tenants.acme]\nkeys = ['x']\nquota = 3\n", "and not quota"),
        ("[tenants.acme]\nkeys = ['x']\nsessions = 0\n", "sessions=0 must be at least 1"),
        ("[tenants.acme]\nkeys = ['x']\nweight = -1\n", "weight=-1 must be positive"),
        ("[tenants.'no.dots']\nkeys = ['x']\n", "1 to 32 of"),
        ("[tenants.a]\nkeys = ['x']\n[tenants.b]\nkeys = ['x']\n", "also of 'a'"),
        ("keys = ['x']\n", r"tables \[tenants.NAME\]"),
        ("", r"tables \[tenants.NAME\]"),
        ("[tenants", "is not TOML"),
    ],
)
def test_keys_that_cannot_be_read(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "keys.toml").write_text(content)
    with pytest.raises(InvalidInput, match=says):
        key_ring(None, tmp_path / "keys.toml")


def test_one_key_is_an_operators() -> None:
    ring = key_ring("secret", None)
    assert ring.tenant_of("secret") is not None and ring.tenant_of("secret").operator  # pyright: ignore
    assert ring.tenant_of("Secret") is None and ring.tenant_of(None) is None
    assert key_ring(None, None).tenant_of("anything") is not None
    with pytest.raises(InvalidInput, match="empty"):
        key_ring(" ", None)
    with pytest.raises(InvalidInput, match="give one key"):
        key_ring("x", Path("keys.toml"))
