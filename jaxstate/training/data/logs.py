"""Log lines of services.

Comes in: a random number generator. Goes out: the source `Logs`. Does not know: questions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from jaxstate.training.data import names
from jaxstate.training.data.records import Record, Value, Words
from jaxstate.training.data.sources import Source, Turns
from jaxstate.training.data.times import Clock

_SERVICES = (
    "auth payment billing api db cache search order user mail queue web login report backup "
    "scheduler gateway worker ingest export inventory shipping"
).split()
_LEVELS = ("INFO", "INFO", "INFO", "DEBUG", "WARN", "WARN", "ERROR", "ERROR", "CRITICAL")
_MESSAGES = (
    "connection to {w} refused",
    "timeout after {n} ms",
    "user {p} logged in",
    "user {p} logged out",
    "disk {w} at {n}%",
    "request {n} took {m} ms",
    "job {w} started",
    "job {w} finished in {m} s",
    "job {w} failed",
    "cache miss for {w}",
    "retry {d} of 5",
    "certificate of {w} expires in {d} days",
    "payment {n} declined",
    "payment {n} accepted",
    "order {n} shipped",
    "config reloaded",
    "health check passed",
    "health check failed",
    "queue {w} has {n} messages",
    "restarting",
    "out of memory",
    "rate limit of {p} reached",
    "upload of {w} complete",
    "cannot open {w}",
)


class Logs(Source):
    """Log lines: level, service, sometimes a code, a message."""

    kind = "logs"
    entity_keys = ("service", "svc", "logger", "component")
    sentences = (
        "{time} {level} {entity} {message}",
        "{time} {level} [{entity}] {message}".replace("[", "(").replace("]", ")"),
        "{time} {entity} {level} {message}",
        "{time} {entity}: {level}: {message}",
        "{level} {entity}: {message}",
        "{time} {level} {entity} {code} {message}",
        "{time} {entity} {level} {code}: {message}",
        "{level} {code} {entity} - {message}",
        "{time} {level} {message}",
        "{level}: {message}",
        "{time} {level} {code} {message}",
    )

    def __init__(self, rng: random.Random) -> None:
        count = rng.choice((1, 2, 3, 3, 4, 5, 6))
        entities = names.distinct(lambda: _service(rng), count)
        labels: dict[str, tuple[str, ...]] = {"level": ("level", "log level", "severity")}
        if rng.random() < 0.45:
            labels["code"] = ("code", "error code", "status code")
        labels["message"] = ("message", "log message")
        words = Words(
            record=("line", "log line", "entry", "message", "event"),
            records=("lines", "log lines", "entries", "events"),
            entity=("service", "component", "service"),
            fields={},
            labels=labels,
        )
        prefix, digits = rng.choice(("E", "ERR-", "", "code ", "X")), rng.choice((2, 3, 4))
        self._codes = [
            prefix + str(rng.randrange(10 ** (digits - 1), 10**digits))
            for _ in range(rng.randint(3, 12))
        ]
        self._small = rng.random() < 0.2
        self._turns = Turns(rng, entities)
        self._people = [names.person(rng) for _ in range(4)]
        super().__init__(rng, entities, words, Clock(rng, daily=False))

    def short(self) -> Mapping[str, str]:
        """As loggers write them."""
        return {"level": self.rng.choice(("lvl", "severity")), "code": "code", "message": "msg"}

    def make(self) -> Record:
        """A line."""
        entity, _ = self._turns.next()
        rng = self.rng
        level = rng.choice(_LEVELS)
        message = rng.choice(_MESSAGES).format(
            w=names.word(rng),
            p=rng.choice(self._people),
            n=rng.randint(10, 9999),
            m=rng.randint(1, 900),
            d=rng.randint(1, 9),
        )
        shown = {"level": level.lower() if self._small else level, "message": message}
        if "code" in self.words.labels:
            shown["code"] = rng.choice(self._codes)
        values = {field: Value(shown[field]) for field in self.words.labels}
        return Record(entity, self.clock.tick() if self.timed else "", values)


def _service(rng: random.Random) -> str:
    tail = rng.choice(("", "-service", "-svc", "-api", "d", f"-{rng.randint(1, 9)}", "_worker"))
    return rng.choice(_SERVICES) + tail
