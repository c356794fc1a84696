"""The command line as a client of a running server.

Comes in: a server's address, a key, lines, questions. Goes out: requests that are repeated until
they are answered, each push once whatever is lost on the way. Does not know: engines, models.

Pushes are numbered. What the server has acknowledged is asked for first, and gone on from; so a
client that is killed, and a server that is, lose nothing and repeat nothing, as long as the server
keeps a journal.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import httpx

from jaxstate.cli.show import Show
from jaxstate.errors import InvalidInput, JaxstateError, TimedOut, UnknownSession
from jaxstate.records import JsonValue

_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_COME_AGAIN = (408, 429, 502, 503, 504)

Reply = dict[str, JsonValue]


class ServerRefused(JaxstateError):
    """A server did not do what it was asked for; its own words."""


class RemoteSession:
    """A session of a running server.

    Args:
        show: where waiting is told.
        url: of the server, `http://host:port`.
        name: of the session.
        key: of the tenant; None for a server without.
        patience_s: for which a request is repeated while the server does not answer, or says that
            it is to come again.
    """

    def __init__(self, show: Show, url: str, name: str, key: str | None, patience_s: float) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise InvalidInput(f"the server {url!r} must begin with http:// or https://")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._show = show
        self._path = f"/v1/sessions/{quote(name, safe='')}"
        self.name = name
        self._patience_s = patience_s
        self._client = httpx.Client(base_url=base, headers=headers, timeout=_TIMEOUT)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def open(self, **settings: JsonValue) -> bool:
        """Opens it if it is not there; whether it was made now.

        Raises:
            ServerRefused: it cannot be made.
        """
        try:
            self.facts()
            return False
        except UnknownSession:
            self._call("POST", "/v1/sessions", {"id": self.name, **settings})
            return True

    def facts(self) -> Reply:
        """What the server says of it.

        Raises:
            UnknownSession: there is none.
        """
        return self._call("GET", self._path)

    def position(self, client: str) -> int:
        """The number that a client's last acknowledged push had; 0 for none."""
        reply = self._call("GET", f"{self._path}/position?client={quote(client, safe='')}")
        number = reply["client_seq"]
        return number if isinstance(number, int) else 0

    def push(self, entries: list[str], client: str, number: int) -> Reply:
        """Entries, once: a repeat of that number adds nothing."""
        data: list[JsonValue] = [*entries]
        body: Reply = {"data": data, "client": client, "client_seq": number}
        return self._call("POST", f"{self._path}/push", body)

    def wait(self) -> int:
        """Waits until everything pushed is read; the version then."""
        version = self._call("GET", f"{self._path}/wait")["data_version"]
        assert isinstance(version, int)
        return version

    def ask(self, question: str, max_tokens: int) -> Reply:
        """An answer."""
        body: Reply = {"prompt": question, "max_tokens": max_tokens}
        return self._call("POST", f"{self._path}/generate", body)

    def flash(self, question: str, max_tokens: int) -> None:
        """Registers a question, if it is not registered already."""
        try:
            self._call("POST", f"{self._path}/flash", {"query": question, "max_tokens": max_tokens})
        except ServerRefused as refused:
            if "registered already" not in str(refused):
                raise

    def events(self) -> Iterator[tuple[str, Reply]]:
        """What happens there, through connections that break, until it is closed.

        Raises:
            UnknownSession: it is gone.
            TimedOut: the server did not answer for as long as we are patient.
        """
        ends_s = time.monotonic() + self._patience_s
        while True:
            try:
                with self._client.stream("GET", f"{self._path}/events") as response:
                    if response.status_code == 200:
                        yield from _events_of(response)
                        ends_s = time.monotonic() + self._patience_s
                    else:
                        response.read()
                        if response.status_code not in _COME_AGAIN:
                            self._check(response)
                    why = _message(response) if response.status_code != 200 else "it ended"
            except httpx.TransportError as error:
                why = str(error) or repr(error)
            self._rest(why, _PAUSES_S[2], ends_s)

    def _call(self, method: str, path: str, body: Reply | None = None) -> Reply:
        ends_s = time.monotonic() + self._patience_s
        pauses = itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1]))
        while True:
            why = ""
            try:
                response = self._client.request(method, path, json=body)
                if response.status_code not in _COME_AGAIN:
                    self._check(response)
                    return response.json()
                why = _message(response)
            except httpx.TransportError as error:
                why = str(error) or repr(error)
            self._rest(why, next(pauses), ends_s)

    def _rest(self, why: str, pause_s: float, ends_s: float) -> None:
        """Before the next attempt, if there is one."""
        where = f"{self._client.base_url}".rstrip("/")
        if time.monotonic() + pause_s > ends_s:
            raise TimedOut(f"{where} did not do it within {self._patience_s:g} s: {why}")
        self._show.note(
            f"{where} does not answer ({why}); trying for {self._patience_s:g} s, Ctrl-C ends it"
        )
        time.sleep(pause_s)

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        if response.status_code == 404:
            raise UnknownSession(_message(response))
        raise ServerRefused(_message(response))


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"


def _events_of(response: httpx.Response) -> Iterator[tuple[str, Reply]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
