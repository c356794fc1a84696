"""What the server costs over the engine, and how it stands under load: loopback, bounded.

    python scripts/bench_server.py --clients 200 --sessions 50 --seconds 30 --json out.json

1. One client, one request at a time: a push, a flash hit and a computed answer, over HTTP and by
   the same calls in a process. What the server adds to an answer is the client's time less the
   engine's own, which the reply names, request by request; to a push, the difference of medians.
2. Many clients at once on some sessions, each a connection of its own that pushes numbered entries,
   asks what a flash query keeps answered, and asks what nobody has registered. In the end every
   acknowledged entry must be there, once, and no request may have failed.

Times are those of the client, from the first byte sent to the last received; flash hits and
computed answers apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import jaxstate

FLASH = "What is the last close of ACME?"
ASKED = "What is the last open of ACME?"
PREFIX = "/v1/sessions"
KINDS = ("push", "hit", "computed", "hit added", "computed added")
# So long without a step being compiled, they all are.
_QUIET_S = 20.0

Times = dict[str, list[float]]


@dataclass
class Connection:
    """One kept-alive connection; the least that HTTP needs, so that clients cost little.

    Attributes:
        port: of the server.
        times: seconds of each kind of request.
    """

    port: int
    times: Times
    reader: asyncio.StreamReader = field(init=False)
    writer: asyncio.StreamWriter = field(init=False)

    async def open(self) -> None:
        """Connects."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def call(
        self, method: str, path: str, body: object = None, kind: str | None = None
    ) -> dict[str, object]:
        """A request and its reply.

        Raises:
            RuntimeError: its status was not 2xx.
        """
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        began_s = time.perf_counter()
        self.writer.write(head.encode() + content)
        header = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", header)
        assert length is not None, header
        reply = await self.reader.readexactly(int(length[1]))
        if kind is not None:
            self.times[kind].append(time.perf_counter() - began_s)
        if header[9:10] != b"2":
            raise RuntimeError(f"{method} {path}: {header.splitlines()[0]!r} {reply[:200]!r}")
        return json.loads(reply)


def entry(number: int, chance: random.Random) -> str:
    """A day of prices."""
    opened, closed = chance.uniform(90, 110), chance.uniform(90, 110)
    return f"day {number}: ACME open {opened:.2f} close {closed:.2f}"


async def one_at_a_time(port: int, count: int) -> Times:
    """A push that is read, a hit, a computed answer, again and again, over HTTP."""
    times: Times = defaultdict(list)
    one = Connection(port, times)
    await one.open()
    await one.call("POST", PREFIX, {"id": "alone", "window": {"entries": 20}})
    await one.call("POST", f"{PREFIX}/alone/flash", {"query": FLASH, "max_tokens": 16})
    chance = random.Random(0)
    for number in range(count):
        data = {"data": entry(number, chance)}
        await one.call("POST", f"{PREFIX}/alone/push", data, "push")
        await one.call("GET", f"{PREFIX}/alone/wait")
        for _ in range(100):
            hit = await one.call("POST", f"{PREFIX}/alone/generate", {"prompt": FLASH}, "any")
            kind = "hit" if hit["source"] == "flash" else "stale"
            times[kind].append(times["any"].pop())
            times[f"{kind} added"].append(times[kind][-1] - float(str(hit["latency_s"])))
            if len(times["hit"]) > 3 * number:
                break
        ask = {"prompt": ASKED, "max_tokens": 16}
        reply = await one.call("POST", f"{PREFIX}/alone/generate", ask, "computed")
        times["computed added"].append(times["computed"][-1] - float(str(reply["latency_s"])))
    await one.call("DELETE", f"{PREFIX}/alone")
    return times


async def warmed_up(port: int) -> None:
    """Waits until the server compiles nothing more in the background."""
    one = Connection(port, defaultdict(list))
    await one.open()
    since_s, before = time.perf_counter(), -1
    while time.perf_counter() - since_s < _QUIET_S:
        compiled = (await one.call("GET", "/health"))["graph_captures"]
        if compiled != before:
            since_s, before = time.perf_counter(), compiled
        await asyncio.sleep(0.5)
    print(f"{before} steps compiled")


async def in_process(model: jaxstate.Model, count: int) -> Times:
    """The same by the engine's own calls."""
    times: Times = defaultdict(list)

    async def timed(kind: str, call: Awaitable[object]) -> None:
        began_s = time.perf_counter()
        await call
        times[kind].append(time.perf_counter() - began_s)

    async with jaxstate.AsyncEngine(model, cells=65_536, warm_up=False) as engine:
        session = engine.open("alone", window=jaxstate.Window(entries=20))
        session.flash(FLASH, max_tokens=16)
        chance = random.Random(0)
        for number in range(count):
            await timed("push", session.push(entry(number, chance)))
            await session.wait()
            await session.wait_fresh()
            for _ in range(3):
                await timed("hit", session.ask(FLASH))
            await timed("computed", session.ask(ASKED, max_tokens=16))
    return times


@dataclass
class Load:
    """What many clients do at once.

    Attributes:
        port: of the server.
        clients, sessions: how many.
        seconds: how long.
        pause_s: of each client between requests, on average.
        window: entries that stay in a session's context; 0 for all.
    """

    port: int
    clients: int
    sessions: int
    seconds: float
    pause_s: float
    window: int
    times: Times = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list[str])
    acknowledged: dict[str, int] = field(default_factory=dict[str, int])

    async def run(self) -> None:
        """Opens sessions, loads them, and counts what is there in the end."""
        control = Connection(self.port, self.times)
        await control.open()
        names = [f"load{number}" for number in range(self.sessions)]
        for name in names:
            await control.call("POST", PREFIX, {"id": name, "window": {"entries": 20}})
            await control.call("POST", f"{PREFIX}/{name}/flash", {"query": FLASH, "max_tokens": 16})
        self.acknowledged = dict.fromkeys(names, 0)
        ends_s = time.perf_counter() + self.seconds
        clients = [
            self._client(number, names[number % self.sessions], ends_s)
            for number in range(self.clients)
        ]
        await asyncio.gather(*clients)
        for name in names:
            await control.call("GET", f"{PREFIX}/{name}/wait")
            there = await control.call("GET", f"{PREFIX}/{name}")
            if there["data_version"] != self.acknowledged[name]:
                self.errors.append(
                    f"{name}: {self.acknowledged[name]} acknowledged, {there['data_version']} there"
                )
            await control.call("DELETE", f"{PREFIX}/{name}")

    async def _client(self, number: int, name: str, ends_s: float) -> None:
        chance = random.Random(number)
        one = Connection(self.port, self.times)
        await one.open()
        pushed = 0
        while time.perf_counter() < ends_s:
            await asyncio.sleep(chance.expovariate(1 / self.pause_s))
            try:
                what = chance.random()
                if what < 0.4:
                    pushed += 1
                    data = {
                        "data": entry(pushed, chance),
                        "client": f"client{number}",
                        "client_seq": pushed,
                        "strict": True,
                    }
                    await one.call("POST", f"{PREFIX}/{name}/push", data, "push")
                    self.acknowledged[name] += 1
                elif what < 0.9:
                    ask = {"prompt": FLASH}
                    reply = await one.call("POST", f"{PREFIX}/{name}/generate", ask, "any")
                    kind = "hit" if reply["source"] == "flash" else "computed"
                    self.times[kind].append(self.times["any"].pop())
                else:
                    ask = {"prompt": ASKED, "max_tokens": 16}
                    await one.call("POST", f"{PREFIX}/{name}/generate", ask, "computed")
            except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
                self.errors.append(str(error))
                return


def started(model: str, options: list[str]) -> tuple[subprocess.Popen[str], int]:
    """A server process, ready, and its port."""
    command = [sys.executable, "-m", "jaxstate", "serve", "-m", model, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--log", "off", "--sessions", "64", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    port, said = 0, list[str]()
    for line in iter(process.stderr.readline, ""):
        said.append(line)
        if found := re.search(r"listening at http://[^ ]*:(\d+)", line):
            port = int(found[1])
        if line.startswith("ready: "):
            return process, port
    raise SystemExit(f"the server ended with {process.wait()}: {''.join(said)}")


def shown(title: str, times: Times) -> dict[str, dict[str, float]]:
    """Prints p50 and p99 in milliseconds, and returns them."""
    figures: dict[str, dict[str, float]] = {}
    print(f"\n{title}\n{'':16}{'count':>8}{'p50 ms':>10}{'p99 ms':>10}{'most ms':>10}")
    kinds = [kind for kind in KINDS if kind in times]
    for kind in kinds:
        some = np.array(times[kind]) * 1000
        figures[kind] = {
            "count": float(len(times[kind])),
            "p50_ms": float(np.percentile(some, 50)),
            "p99_ms": float(np.percentile(some, 99)),
            "most_ms": float(some.max()),
        }
        one = figures[kind]
        print(
            f"{kind:16}{one['count']:8.0f}{one['p50_ms']:10.2f}{one['p99_ms']:10.2f}"
            f"{one['most_ms']:10.2f}"
        )
    return figures


def main() -> None:
    """Measures, prints, and fails if anything was lost or refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="streams-20m")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--pause", type=float, default=1.0, help="of each client, seconds")
    parser.add_argument("--window", type=int, default=20, help="entries of a session; 0: all")
    parser.add_argument("--alone", type=int, default=100, help="rounds of one client")
    parser.add_argument("--journal", type=Path, help="keep it there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    more = [] if options.journal is None else ["--journal", str(options.journal)]
    process, port = started(options.model, more)
    try:
        asyncio.run(warmed_up(port))
        work: Callable[[int], Awaitable[Times]] = lambda count: one_at_a_time(port, count)  # noqa: E731
        asyncio.run(_awaited(work(20)))  # compiles what is used
        over_http = shown("one client over HTTP", asyncio.run(_awaited(work(options.alone))))
        warm = Load(port, options.clients, options.sessions, 10.0, options.pause, options.window)
        asyncio.run(warm.run())
        load = Load(
            port,
            options.clients,
            options.sessions,
            options.seconds,
            options.pause,
            options.window,
        )
        asyncio.run(load.run())
        title = f"{options.clients} clients on {options.sessions} sessions, {options.seconds:g} s"
        under_load = shown(title, load.times)
        requests = sum(len(some) for some in load.times.values())
        print(f"{requests / options.seconds:.0f} requests/s, {len(load.errors)} errors")
    finally:
        process.terminate()
        code = process.wait(120)
    model = jaxstate.load(options.model)
    asyncio.run(in_process(model, 20))
    alone = shown("the same calls in a process", asyncio.run(in_process(model, options.alone)))
    added = {
        "push": over_http["push"]["p50_ms"] - alone["push"]["p50_ms"],
        "hit": over_http["hit added"]["p50_ms"],
        "computed": over_http["computed added"]["p50_ms"],
    }
    print("\nadded by the server at p50, ms:", {k: round(v, 3) for k, v in added.items()})
    figures = {
        "model": options.model,
        "over_http": over_http,
        "in_process": alone,
        "added_p50_ms": added,
        "load": {
            "clients": options.clients,
            "sessions": options.sessions,
            "seconds": options.seconds,
            "requests": requests,
            "errors": load.errors[:20],
            **under_load,
        },
        "exit_code": code,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if load.errors or warm.errors or code:
        raise SystemExit(f"failed: {[*warm.errors, *load.errors][:5]}, exit code {code}")


async def _awaited(work: Awaitable[Times]) -> Times:
    return await work


if __name__ == "__main__":
    main()
