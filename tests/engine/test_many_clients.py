"""Fifty clients at once for a while: threads and tasks that push, ask, register, leave.

Nothing may be lost, nobody may get another's answer, and closing must end everything. Answers carry
the proof: the number of cells that they saw and of tokens that were asked, the only choice that was
offered, and for a sample the whole answer as the functional core gives it.
"""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import jaxstate
from jaxstate.engine.requests.encoding import PromptEncoder, Settings
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import CapacityExceeded, ClosedError, TimedOut
from jaxstate.model.bundle import Model
from jaxstate.testing import Reference, tiny_model

THREADS = TASKS = 25
SECONDS = 20.0
# Of a client, at most: enough idleness that flash queries are answered at all.
PAUSE_S = 0.6
SESSION_CELLS = 160


@functools.cache
def model() -> Model:
    return tiny_model()


class Client:
    """One client with a session of its own, and what it knows by itself."""

    def __init__(self, number: int, engine: jaxstate.Engine) -> None:
        self.number = number
        self.random = random.Random(number)
        self.engine = engine
        self.encoder = PromptEncoder(
            tokenizer=model().text,
            template=model().template,
            limits=engine._core.limits,  # pyright: ignore[reportPrivateUsage]
        )
        self.asked = self.pushed = self.flash_hits = self.sessions = 0
        self.samples: list[tuple[tuple[int, ...], jaxstate.Answer, Settings, str]] = []
        self.begin()

    def begin(self) -> None:
        self.sessions += 1
        self.session = self.engine.open(f"c{self.number}-{self.sessions}")
        self.tokens = [tuple(self.encoder.opening("").tolist())]

    def entries(self) -> list[str]:
        return [
            f"{self.number}:{self.random.randint(0, 99)}"[: self.random.randint(0, 6)]
            for _ in range(self.random.randint(1, 3))
        ]

    def took(self, texts: list[str], receipt: jaxstate.Receipt) -> None:
        assert (receipt.first, receipt.last) == (
            len(self.tokens),
            len(self.tokens) + len(texts) - 1,
        )
        self.tokens += [tuple(self.encoder.entry(text).tolist()) for text in texts]
        self.pushed += len(texts)

    def question(self) -> tuple[str, Settings]:
        if self.random.random() < 0.5:
            return "q", Settings(choices=(f"c{self.number}",))
        return "x" * (1 + self.number % 4), Settings(max_tokens=self.random.randint(1, 4))

    def got(self, question: str, settings: Settings, answer: jaxstate.Answer, least: int) -> None:
        """Checks an answer against what this client alone has pushed."""
        self.asked += 1
        self.flash_hits += answer.source == "flash"
        assert least <= answer.version <= len(self.tokens) - 1
        read = self.read(answer.version)
        assert answer.usage.context_tokens == len(read)
        if settings.choices is not None:
            assert answer.text == settings.choices[0], "another client's answer"
        if answer.source == "computed":
            asked = self.encoder.ask(question, settings)
            assert answer.usage.question_tokens == len(asked.tokens)
        if self.random.random() < 0.05:
            self.samples.append((read, answer, settings, question))

    def read(self, version: int) -> tuple[int, ...]:
        return tuple(token for entry in self.tokens[: version + 1] for token in entry)

    def check_session(self) -> None:
        """Everything pushed was read, once."""
        info = self.session.info()
        assert info.version == len(self.tokens) - 1, "an entry was lost"
        assert info.tokens == len(self.read(info.version))
        assert (info.pending, info.dropped) == (0, 0)


def thread_life(client: Client, until_s: float) -> None:
    while time.monotonic() < until_s:
        time.sleep(client.random.random() * PAUSE_S)
        dice = client.random.random()
        try:
            if dice < 0.35:
                texts = client.entries()
                client.took(texts, client.session.push(texts, timeout=30))
            elif dice < 0.85:
                question, settings = client.question()
                least = client.session.version
                answer = client.session.ask(
                    question, max_tokens=settings.max_tokens, choices=settings.choices, timeout=30
                )
                client.got(question, settings, answer, max(least, 0))
            elif dice < 0.9:
                client.session.submit("never mind", max_tokens=4).cancel()
            elif dice < 0.95:
                with pytest.raises(TimedOut):
                    client.session.ask("too far", min_version=10**6, max_tokens=2, timeout=0.001)
            elif not client.session.flashes():
                client.session.flash("q", choices=[f"c{client.number}"])
            else:
                client.session.wait(timeout=30)
                client.check_session()
        except CapacityExceeded:
            client.session.wait(timeout=30)
            client.check_session()
            client.session.close()
            client.begin()
    client.session.wait(timeout=30)
    client.check_session()


async def task_life(client: Client, until_s: float) -> None:
    session = jaxstate.AsyncSession(client.session)
    while time.monotonic() < until_s:
        await asyncio.sleep(client.random.random() * PAUSE_S)
        dice = client.random.random()
        try:
            if dice < 0.35:
                texts = client.entries()
                client.took(texts, await session.push(texts, timeout=30))
            elif dice < 0.85:
                question, settings = client.question()
                least = session.version
                answer = await session.ask(
                    question, max_tokens=settings.max_tokens, choices=settings.choices, timeout=30
                )
                client.got(question, settings, answer, max(least, 0))
            elif dice < 0.9:
                task = asyncio.create_task(session.ask("never mind", max_tokens=4))
                await asyncio.sleep(client.random.random() * 0.01)
                task.cancel()
            elif not session.flashes():
                session.flash("q", choices=[f"c{client.number}"])
        except CapacityExceeded:
            await session.wait(timeout=30)
            client.check_session()
            session.close()
            client.begin()
            session = jaxstate.AsyncSession(client.session)
    await session.wait(timeout=30)
    client.check_session()


def test_fifty_clients_for_a_while() -> None:
    clients_count, before = THREADS + TASKS, set(threading.enumerate())
    engine = jaxstate.Engine(
        model(),
        cells=(clients_count + 1) * SESSION_CELLS,
        session_cells=SESSION_CELLS,
        config=EngineConfig(queue_entries=4),
    )
    engine.wait_warm_up(timeout=300)
    compiled = engine.metrics().gauges.compilations
    watcher = engine.open("watched")
    events: list[jaxstate.Event] = []
    listening = threading.Thread(target=lambda: events.extend(watcher.events()))
    listening.start()
    clients = [Client(number, engine) for number in range(clients_count)]
    until_s = time.monotonic() + SECONDS
    with ThreadPoolExecutor(THREADS) as threads:
        futures = [threads.submit(thread_life, client, until_s) for client in clients[:THREADS]]

        async def all_tasks() -> None:
            await asyncio.gather(*(task_life(client, until_s) for client in clients[THREADS:]))

        asyncio.run(all_tasks())
        for future in futures:
            future.result(timeout=60)
    metrics = engine.metrics()
    waiting = watcher.submit("left alone", min_version=10**6, max_tokens=2)
    engine.close()
    listening.join(timeout=10)
    assert not listening.is_alive()
    assert isinstance(events[-1], jaxstate.Closed)
    with pytest.raises(ClosedError):
        waiting.result(timeout=10)
    with pytest.raises(ClosedError):
        engine.open()
    left = set(threading.enumerate()) - before
    assert not [one for one in left if one.name.startswith("jaxstate")]
    assert metrics.gauges.compilations == compiled
    _check_totals(clients, metrics)


def _check_totals(clients: list[Client], metrics: jaxstate.EngineMetrics) -> None:
    assert metrics.counts.entries_pushed == sum(client.pushed for client in clients)
    assert metrics.counts.entries_committed == metrics.counts.entries_pushed
    assert metrics.counts.asks_failed == 0
    assert min(client.asked for client in clients) > 0, "a client was starved"
    assert sum(client.flash_hits for client in clients) > 0
    check_samples(clients)


def check_samples(clients: list[Client], at_most: int = 60) -> None:
    """The functional core gives the same answers to the same entries."""
    reference = Reference(model(), SESSION_CELLS)
    samples = [(client, sample) for client in clients for sample in client.samples]
    random.Random(0).shuffle(samples)
    assert len(samples) > 20
    for client, (read, answer, settings, question) in samples[:at_most]:
        reference.check(answer, read, client.encoder.ask(question, settings))
