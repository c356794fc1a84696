"""What a question is about, and the words that all families share.

Comes in: a source and its history. Goes out: a `View`, which chooses what is asked for and how
it is called. Does not know: families.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jaxstate.training.data.phrases import say_one
from jaxstate.training.data.records import Question, Record
from jaxstate.training.data.sources import Source

WHAT = (
    "[What is|What was|What's|Tell me|Give me|State|Report|Say|Find|What is|What was|Show me|I "
    "need|Do you know|Can you tell me|Look up|Name|Which was|Output|I want to know|Let me "
    "know|Could"
    " you give me|Let's see|Read me|Print|Return|Fetch|Please give|Check|Identify|I'd like|Provide]"
)


LAST = (
    "[last|latest|most recent|newest|current|last|latest|last seen|last known|final|most current|"
    "freshest|present|very last|last reported|last available]"
)


NOW = (
    "[| now| right now| at the moment| so far| currently|||| at present| as of now| these days||| "
    "at"
    " this point| by now| at this time| today]"
)


MARK = "[?|?|?|.|]"


LATELY = (
    "last",
    "just now",
    "at the last {r}",
    "the last time",
    "on the last {r}",
    "most recently",
    "in the end",
    "at the end",
    "in its last {r}",
    "in the last {r}",
)


COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
                "ten", "eleven", "twelve")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class View:
    """What a question is about.

    Attributes:
        source: who said it.
        rng: chooses.
        alone: whether nothing else in the stream could be meant.
        subject: the entity that it is about, if it is about one.
        announced: whether the question begins with the subject ("For X: ...") and need not name it.
    """

    source: Source
    rng: random.Random
    alone: bool
    subject: str
    announced: bool = False

    @property
    def records(self) -> list[Record]:
        """What the source has said."""
        return self.source.history.records

    @property
    def can_omit(self) -> bool:
        """Whether an entity need not be named."""
        return self.alone and len(self.source.entities) == 1

    @property
    def omits(self) -> bool:
        """Whether the subject is left out this time."""
        if not self.source.named or self.announced:
            return True
        return self.can_omit and self.rng.random() < 0.5

    @property
    def who(self) -> str:
        """The subject, or what stands for it."""
        return "it" if self.announced else self.subject

    def of(self) -> str:
        """How the subject is named behind what it has; empty where it is left out."""
        if self.omits:
            return ""
        return say_one(self.rng, (" of {e}", " of {e}", " for {e}", " in {e}"), {"e": self.subject})

    def by(self) -> str:
        """How the subject is named in front of what it has, with a space behind it."""
        if self.omits:
            return ""
        return say_one(self.rng, ("{e}'s ", "{e} "), {"e": self.subject})

    def named(self, field_words: str) -> str:
        """The field with its owner: "the close of X", "X's close"."""
        if self.rng.random() < 0.35:
            by = self.by()
            return (
                by or self.rng.choice(("the ", "its " if self.announced else "the "))
            ) + field_words
        return "the " + field_words + self.of()

    def number_field(self) -> tuple[str, str] | None:
        """A numeric field and how it is called here."""
        words = self.source.words
        if not words.fields:
            return None
        if words.plain is not None and self.rng.random() < 0.3:
            return words.plain, self.rng.choice(words.plain_words)
        if words.plain is not None and self.rng.random() < 0.4:
            return words.plain, self.rng.choice(words.fields[words.plain])
        field = self.rng.choice(list(words.fields))
        return field, self.rng.choice(words.fields[field])

    def any_field(self) -> tuple[str, str]:
        """A field of any kind."""
        found = self.number_field()
        if found is not None:
            return found
        labels = self.source.words.labels
        field = self.rng.choice(list(labels))
        return field, self.rng.choice(labels[field])

    def record_word(self) -> str:
        """What one record is called."""
        return self.rng.choice(self.source.words.record)

    def records_word(self) -> str:
        """What several are called."""
        return self.rng.choice(self.source.words.records)

    def entity_word(self) -> str:
        """What an entity is called."""
        return self.rng.choice(self.source.words.entity)

    def say(self, patterns: Sequence[str], **values: str) -> str:
        """One of some patterns, with values."""
        return say_one(self.rng, patterns, values)

    def how_many_back(self, at_most: int) -> int | None:
        """A usual number of records, at least 2."""
        fitting = [k for k in (2, 3, 3, 4, 5, 5, 5, 6, 7, 8, 10, 10, 10, 12, 15, 20, 20, 20, 25, 30)
                   if k <= at_most]  # fmt: skip
        if not fitting:
            return None
        if self.rng.random() < 0.1:
            return self.rng.randint(2, min(at_most, 30))
        return self.rng.choice(fitting)


def announce(view: View, question: Question, name: str) -> str:
    """The text of a question that does not name whom it is about, behind who that is."""
    head = view.say(
        (
            "[For|About|Regarding|Concerning|As for|On|With regard to|Take|Consider|Looking at|Now "
            "to|Same for|Think of] {e}[, |: | - ]",
            "{e} [- |-- ]",
            "I have a question about {e}[: |. ]",
        ),
        e=name,
    )
    return head + question.text


def shown_value(record: Record, field: str) -> str:
    """A value as its entry shows it."""
    return record.values[field].shown


def number_of(record: Record, field: str) -> int:
    """A value as a whole number of its last decimals."""
    number = record.values[field].number
    if number is None:
        raise TypeError(f"{field} is a word")
    return number


def plain_number(number: int, decimals: int) -> str:
    """Without zeros behind the point."""
    sign, size = "-" if number < 0 else "", abs(number)
    if not decimals:
        return sign + str(size)
    whole, part = divmod(size, 10**decimals)
    tail = f"{part:0{decimals}d}".rstrip("0")
    return f"{sign}{whole}.{tail}" if tail else f"{sign}{whole}"


def count_word(view: View, count: int) -> str:
    """A number in digits, or small ones in words."""
    if count < len(COUNT_WORDS) and view.rng.random() < 0.25:
        return COUNT_WORDS[count]
    return str(count)


def words_of_time(view: View, time: str) -> dict[str, str]:
    """A time as a question names it."""
    asked = view.source.clock.asked(time)
    at = view.source.clock.on(asked)
    return {"at": at, "At": at[0].upper() + at[1:], "t": asked}


def asked_with_verb(view: View, when: str) -> tuple[str, str] | None:
    """A field and a question for it in other words than its name, where there are such words."""
    verbs = view.source.words.verbs
    if not verbs or not view.source.named or view.rng.random() > 0.3:
        return None
    field = view.rng.choice(list(verbs))
    if field not in view.source.fields:
        return None
    return field, view.say(verbs[field], e=view.who, when=f" {when}")


def yes_or_no(view: View) -> str:
    """What asks for a plain answer, or nothing."""
    if view.rng.random() < 0.85:
        return ""
    return view.say((" [Answer|Say|Reply] yes or no.", " (yes/no)", " Yes or no?"))
