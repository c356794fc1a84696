"""One open server for all tests that need nothing special of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.servers import Server, served
from tests.tiny_directory import write_directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_directory(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="package")
def server(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tiny, tmp_path_factory.mktemp("server"), "--webhook-host", "127.0.0.1:9") as one:
        yield one


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """A client of it, and nothing is left of its sessions."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
        for one in client.get("/v1/sessions").json()["data"]:
            assert client.delete(f"/v1/sessions/{one['id']}").status_code == 200


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "server"
