"""What a stream says, apart from how it says it.

Comes in: nothing. Goes out: the records that entries are made of, and questions with their answers.
Numbers are integers in units of their last decimal, so that every comparison is exact, and each
comes with the characters that the entry shows, so that an answer copies them. Does not know:
layouts, wordings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FAMILIES = (
    "last value",
    "value at a time",
    "previous value",
    "highest or lowest of the last k",
    "highest or lowest of all",
    "when highest or lowest",
    "up or down",
    "bullish or bearish",
    "threshold",
    "how many",
    "which one",
    "did it happen",
    "what changed",
    "updated key",
    "unknown",
)
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Value:
    """As an entry shows it, and in units of its last decimal; None for a word."""

    shown: str
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One entry's content: who, when (as shown; empty if it says nothing), and what."""

    entity: str
    time: str
    values: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its exact answer.

    Attributes:
        family: one of `FAMILIES`.
        text: as it is asked.
        answer: as it must be given.
        choices: what may be answered, where the question names it; else empty.
    """

    family: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Words:
    """How people speak of a source.

    Attributes:
        record, records: one of its entries, several of them.
        entity: what its entities are.
        fields: for each numeric field, what it is called.
        labels: likewise for fields that are words.
        plain: the numeric field that "value" or "price" alone means, or None.
        plain_words: those words.
        verbs: for some fields, patterns that ask for them with a verb: {e} is the entity, {when}
            what says which record, with a space before it.
    """

    record: tuple[str, ...]
    records: tuple[str, ...]
    entity: tuple[str, ...]
    fields: dict[str, tuple[str, ...]]
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    plain: str | None = None
    plain_words: tuple[str, ...] = ()
    verbs: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


class History:
    """Records so far, all of them and by entity."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.of: dict[str, list[Record]] = {}

    def add(self, record: Record) -> None:
        """Appends one."""
        self.records.append(record)
        self.of.setdefault(record.entity, []).append(record)
