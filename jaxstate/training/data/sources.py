"""What all sources of a stream have in common.

Comes in: a random number generator. Goes out: `Source`, which makes one entry after the other and
remembers what it said. Does not know: what any source is about, questions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from jaxstate.training.data.layouts import make_layout
from jaxstate.training.data.records import History, Record, Words
from jaxstate.training.data.times import Clock

_RELAYOUT = 0.1  # of the streams change their layout under way, as feeds do
_RELAYOUT_EACH = 0.01


class Source:
    """Makes records and writes them down.

    Attributes:
        kind: "bars", "ticks", "sensors", "logs" or "facts".
        words: how people speak of it.
        history: what it said so far.
        clock: of its entries.
        entities: all that it may speak of, whether it has or not.
        named, timed: whether entries say who and when.
    """

    kind = ""
    entity_keys: Sequence[str] = ("name",)
    sentences: Sequence[str] = ()

    def __init__(self, rng: random.Random, entities: list[str], words: Words, clock: Clock) -> None:
        self.rng, self.words, self.history = rng, words, History()
        self.entities, self.clock = entities, clock
        self.named = len(entities) > 1 or rng.random() < 0.75
        self.timed = rng.random() < 0.85
        self._relayouts = _RELAYOUT_EACH if rng.random() < _RELAYOUT else 0.0
        self._pending: str | None = None
        self.relayout()

    @property
    def fields(self) -> list[str]:
        """In the order of the layout."""
        return [*self.words.fields, *self.words.labels]

    def relayout(self) -> None:
        """Chooses how entries look from now on."""
        self._write, self._pending = make_layout(
            self.rng,
            self.fields,
            named=self.named,
            timed=self.timed,
            entity_key=self.rng.choice(self.entity_keys),
            short=self.short(),
            units=self.units(),
            sentences=self.sentences,
        )

    def short(self) -> Mapping[str, str]:
        """Abbreviations of the fields: one letter where that tells them apart."""
        letters = [field[0].upper() for field in self.fields]
        if len(set(letters)) == len(letters) and self.rng.random() < 0.6:
            return dict(zip(self.fields, letters, strict=True))
        return {field: field[: max(3, len(field) // 2)] for field in self.fields}

    def units(self) -> Mapping[str, str]:
        """What is written around the numbers of a field, as formats."""
        return {}

    def decimals(self, entity: str, field: str) -> int:
        """Of the numbers of a field."""
        del entity, field
        return 0

    def emit(self) -> str:
        """The next entry; some are headers."""
        if self._relayouts and self.rng.random() < self._relayouts:
            self.relayout()
        if self._pending is not None:
            header, self._pending = self._pending, None
            if self.rng.random() < 0.8:
                return header
        record = self.make()
        self.history.add(record)
        return self._write(record)

    def make(self) -> Record:
        """The next record."""
        raise NotImplementedError


class Turns:
    """Whose turn it is: all entities one after the other, or at random."""

    def __init__(self, rng: random.Random, entities: Sequence[str]) -> None:
        self._rng, self._entities, self._at = rng, entities, 0
        self._even = rng.random() < 0.5
        self._weights = [rng.uniform(0.3, 1) for _ in entities]

    def next(self) -> tuple[str, bool]:
        """The entity, and whether a round has ended before it."""
        if not self._even:
            return self._rng.choices(self._entities, self._weights)[0], True
        entity = self._entities[self._at]
        first = self._at == 0
        self._at = (self._at + 1) % len(self._entities)
        return entity, first
