"""Facts that change: keys with values that are set and set again.

Comes in: a random number generator. Goes out: the source `Facts`. Does not know: questions, but for
those that only one kind of fact has words for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxstate.training.data import names
from jaxstate.training.data.records import Record, Value, Words
from jaxstate.training.data.sensors import DEVICES
from jaxstate.training.data.sources import Source
from jaxstate.training.data.times import Clock

_PROPERTIES = 0.2


class Facts(Source):
    """Keys with values that are set and set again."""

    kind = "facts"
    entity_keys = ("key", "name", "id", "item")

    def __init__(self, rng: random.Random) -> None:
        what = rng.choice(sorted(_FACTS))
        self.fact = _property(rng) if rng.random() < _PROPERTIES else _FACTS[what]
        count = rng.choice((2, 3, 4, 6, 8, 12, 20))
        entities = names.distinct(lambda: self.fact.key(rng), count)
        words = Words(
            record=("update", "entry", "line", "change"),
            records=("updates", "entries", "lines", "changes"),
            entity=self.fact.nouns,
            fields={},
            labels={self.fact.field: self.fact.words},
        )
        self.sentences = [
            one.replace("{value}", "{" + self.fact.field + "}")
            for one in (*self.fact.sentences, *_FACT_SENTENCES)
        ]
        self._fresh = list(entities)
        rng.shuffle(self._fresh)
        super().__init__(rng, entities, words, Clock(rng, daily=rng.random() < 0.3))
        self.timed = self.timed and rng.random() < 0.5
        self.named = True
        self.relayout()

    def make(self) -> Record:
        """A key that is new, or one that changes."""
        if self._fresh and (not self.history.records or self.rng.random() < 0.5):
            entity = self._fresh.pop()
        else:
            entity = self.rng.choice(sorted(self.history.of))
        value = self.fact.value(self.rng)
        before = self.history.of.get(entity)
        if before and before[-1].values[self.fact.field].shown == value:
            value = self.fact.value(self.rng)
        time = self.clock.tick() if self.timed else ""
        return Record(entity, time, {self.fact.field: Value(value)})


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A kind of facts.

    Attributes:
        nouns: what a key is.
        field: what it has.
        words: what that is called.
        key, value: make one.
        sentences: patterns with {entity}, {value} and perhaps {time}.
        ask: questions for the value, with {e}.
    """

    nouns: tuple[str, ...]
    field: str
    words: tuple[str, ...]
    key: Callable[[random.Random], str]
    value: Callable[[random.Random], str]
    sentences: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()


_FACT_SENTENCES = (
    "{entity} = {value}",
    "{entity}={value}",
    "{entity}: {value}",
    "SET {entity} {value}",
    "set {entity} to {value}",
    "{entity} -> {value}",
    "{entity} is [now|] {value}",
    "{time} {entity} = {value}",
    "{time} {entity}: {value}",
    "{time} [set|update] {entity} {value}",
    "{time} {entity} changed to {value}",
    "{entity} - {value}",
    "{entity},{value}",
    "{entity} => {value}",
    "{entity} now {value}",
    "{time} {entity} -> {value}",
    "update: {entity} {value}",
    "[new|latest] value for {entity}: {value}",
    "{value} [for|is now set for] {entity}",
)


def _setting(rng: random.Random) -> str:
    style = rng.randrange(4)
    parts = [names.word(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    if style == 0:
        return ".".join(parts)
    if style == 1:
        return "_".join(parts).upper()
    return ("_" if style == 2 else "-").join(parts)


def _setting_value(rng: random.Random) -> str:
    return rng.choice(
        (
            str(rng.randint(0, 9999)),
            names.word(rng),
            rng.choice(("on", "off", "true", "false", "enabled", "disabled")),
            f"{rng.uniform(0, 100):.{rng.randint(1, 3)}f}",
            f"{names.word(rng)}{rng.randint(1, 99)}",
        )
    )


def _of(rng: random.Random, words: str) -> str:
    return rng.choice(words.split())


def _numbered(rng: random.Random, heads: Sequence[str], most: int) -> str:
    """A letter, or what else may stand there, and a number."""
    return f"{rng.choice(heads)}{rng.randint(1, most)}"


_STATES = (
    "open closed pending shipped delivered cancelled paid refunded lost active idle broken "
    "running stopped ready late early returned packed approved rejected"
).split()

_MODES = "on off standby idle heating cooling locked unlocked full empty online offline".split()


def _spot(rng: random.Random) -> str:
    room = names.room(rng)
    return rng.choice(
        (
            room,
            room,
            f"{names.word(rng)} {room}",
            f"room {rng.randint(1, 400)}",
            f"{rng.choice(('shelf', 'aisle', 'bay', 'box', 'rack'))} {rng.randint(1, 40)}",
            f"{rng.choice(('north', 'south', 'east', 'west', 'upper', 'lower', 'old'))} {room}",
            names.place(rng),
            f"{room} {rng.randint(1, 20)}",
        )
    )


def _thing(rng: random.Random) -> str:
    """A thing, with what tells it from others of its kind or without."""
    draw = rng.random()
    if draw < 0.6:
        return names.noun(rng)
    if draw < 0.85:
        return f"{names.word(rng)} {names.noun(rng)}"
    return f"{names.noun(rng)} {rng.randint(1, 99)}"


def _anything(rng: random.Random) -> str:
    """What any property may be."""
    return rng.choice((_setting_value, _spot, names.person, lambda one: rng.choice(_STATES)))(rng)


def _property(rng: random.Random) -> Fact:
    """Any property of any kind of thing, whose name only this stream knows."""
    called = names.noun(rng)
    return Fact(
        nouns=("item", "entry", "name", "key", names.noun(rng)),
        field=called,
        words=(called,),
        key=rng.choice((_thing, names.person, names.word, _setting)),
        value=_anything,
        sentences=(
            "[The|] " + called + " of [the |]{entity} is [now|] {value}[.|]",
            "{entity} " + called + "[:| =|] {value}",
            "{entity} [has|got] " + called + " {value}[.|]",
        ),
        ask=(
            "[What is|Which is|Tell me] the " + called + " of [the |]{e}[ now|]?",
            "[What|Which] " + called + " [does|did] [the |]{e} [have|get][ now|]?",
        ),
    )


_FACTS: Mapping[str, Fact] = {
    "setting": Fact(
        nouns=("key", "setting", "variable", "parameter"),
        field="value",
        words=("value",),
        key=_setting,
        value=_setting_value,
        ask=("[What is|What's] {e}[ set to| now|]?", "{e}?", "[Read|Get|Show] {e}."),
    ),
    "order": Fact(
        nouns=("order", "ticket", "shipment"),
        field="status",
        words=("status", "state"),
        key=lambda rng: f"{_of(rng, 'order ticket shipment job')} {rng.randint(1, 99999)}",
        value=lambda rng: rng.choice(_STATES),
        sentences=("{entity} was {value}[.|]", "[The|] status of {entity} is [now|] {value}[.|]"),
        ask=("[Is|What happened to|How is] {e}?", "[In what state|What state] is {e}[ in|]?"),
    ),
    "person": Fact(
        nouns=("person", "employee"),
        field="city",
        words=("city", "location", "town"),
        key=names.person,
        value=names.place,
        sentences=(
            "{entity} [moved to|is in|lives in|went to|travelled to|arrived in] {value}[.|]",
            "{time} {entity} [moved to|is in|arrived in] {value}",
        ),
        ask=(
            "Where [is|does] {e}[ now| live|]?",
            "[In|] [which|what] [city|place|town] is {e}[ now|]?",
            "Where did {e} go last?",
            "[Where|In which town] [can I|would I|could one] [meet|find|visit|reach] {e}[ now|]?",
            "{e} [stays|lives|is] [where|in which city][ now| these days|]?",
            "[Say|Tell me] where {e} [is|lives|went last].",
        ),
    ),
    "room": Fact(
        nouns=("team", "meeting"),
        field="room",
        words=("room",),
        key=lambda rng: f"{_of(rng, 'team meeting class')} {names.word(rng)}",
        value=lambda rng: rng.choice((f"{rng.randint(1, 999)}", _numbered(rng, "ABCDEF", 40))),
        sentences=("{entity} [meets in|is in|moved to] room {value}[.|]",),
        ask=("[In which|Which|What] room is {e}[ in|]?", "Where does {e} meet?"),
    ),
    "stock": Fact(
        nouns=("item", "product"),
        field="stock",
        words=("stock", "quantity", "count"),
        key=lambda rng: f"{names.word(rng)} {_of(rng, 'bolts boxes cables bottles chairs tiles')}",
        value=lambda rng: str(rng.randint(0, 999)),
        sentences=("[stock of|inventory:|] {entity} {value}", "{value} {entity} [left|in stock]"),
        ask=("How many {e} are [left|there|in stock][ now|]?",),
    ),
    "place": Fact(
        nouns=("item", "article", "object"),
        field="location",
        words=("location", "place", "position"),
        key=_thing,
        value=_spot,
        sentences=(
            "[The |the |]{entity} is [now|] [in|at] [the |]{value}[.|]",
            "[The |the |]{entity} [was moved to|went to|was put in|lies in|now in|is kept in|has "
            "moved to|can be seen in] [the |]{value}[.|]",
            "[moved|put|brought|took|carried] [the |]{entity} to [the |]{value}",
            "UPDATE {entity} [place|location|at|loc]={value}",
            "{entity} @ {value}",
            "{time} [the |]{entity} [is in|moved to|at|seen in] [the |]{value}",
        ),
        ask=(
            "Where [is|was] [the |]{e}[ now| kept| put| last seen| at the moment|]?",
            "Where [do I find|would I find|can one get|should I look for|did they put|did somebody "
            "leave|must I go for] [the |]{e}[ now|]?",
            "In [which|what] [place|room] [is|was|lies] [the |]{e}[ now| kept| left|]?",
            "[Where|To what place] [has|did] [the |]{e} [gone|go|been moved|been taken|move][ "
            "last|]"
            "?",
            "[Tell me where|I look for|Say where|Do you know where] [the |]{e} [is|is now|went|"
            "lies].",
            "[What|Which] [place|room|location] [has|holds] [the |]{e}[ now|]?",
            "[Find|Locate] [the |]{e} for me.",
            "[The |]{e} is [where|in which place|in what room][ now|]?",
        ),
    ),
    "balance": Fact(
        nouns=("account", "customer"),
        field="balance",
        words=("balance", "amount"),
        key=lambda rng: f"{_of(rng, 'account customer wallet client')} {rng.randint(10, 99999)}",
        value=lambda rng: f"{rng.uniform(0, 10 ** rng.randint(2, 5)):.2f}",
        sentences=("[The|] balance of {entity} is [now|] {value}[.|]", "{entity} has {value}"),
        ask=("How much [does|did] {e} have[ now|]?", "How much [is in|is left in] {e}?"),
    ),
    "gate": Fact(
        nouns=("flight", "train"),
        field="gate",
        words=("gate", "platform"),
        key=lambda rng: f"{_of(rng, 'flight train bus')} {_numbered(rng, 'ABKLX', 9999)}",
        value=lambda rng: _numbered(rng, ("", "A", "B", "C", "D"), 60),
        sentences=("{entity} [leaves from|departs from|boards at|moved to] gate {value}[.|]",),
        ask=("From which gate does {e} leave?", "[Which|What] gate [is|for] {e}?"),
    ),
    "state": Fact(
        nouns=("device", "switch", "door"),
        field="state",
        words=("state", "status", "mode"),
        key=lambda rng: names.device(rng, rng.choice(DEVICES)),
        value=lambda rng: rng.choice(_STATES) if rng.random() < 0.5 else rng.choice(_MODES),
        sentences=("{entity} [went|is|turned|switched to] {value}[.|]", "{entity} reports {value}"),
        ask=(
            "[How|In what state] is {e}[ now|]?",
            "Is {e} on or what?",
            "What is {e} doing[ now|]?",
        ),
    ),
    "owner": Fact(
        nouns=("task", "project", "account"),
        field="owner",
        words=("owner", "person in charge"),
        key=lambda rng: f"{_of(rng, 'project task account')} {names.word(rng)}",
        value=names.person,
        sentences=("{entity} [belongs to|is owned by|was assigned to|is with] {value}[.|]",),
        ask=(
            "Who [owns|has|is responsible for] {e}[ now|]?",
            "[To whom|Who] is {e} assigned[ to|]?",
        ),
    ),
    "version": Fact(
        nouns=("package", "service", "component"),
        field="version",
        words=("version",),
        key=lambda rng: f"{names.word(rng)}-{names.word(rng)}",
        value=lambda rng: f"{rng.randint(0, 12)}.{rng.randint(0, 30)}.{rng.randint(0, 20)}",
        sentences=("{entity} [updated to|is at|upgraded to|released] [version |]{value}[.|]",),
        ask=("[Which|What] version [of {e} is running|is {e}|does {e} have]?",),
    ),
    "role": Fact(
        nouns=("person", "member"),
        field="role",
        words=("role", "job", "position"),
        key=names.person,
        value=lambda rng: _of(
            rng, "manager cook driver nurse pilot clerk guard tutor buyer editor judge miner tailor"
        ),
        sentences=("{entity} [works as|is now|became] [a |]{value}[.|]",),
        ask=("What [does|is] {e}[ do| now|]?", "[As what|In what role] does {e} work[ now|]?"),
    ),
    "score": Fact(
        nouns=("team", "player"),
        field="score",
        words=("score", "points", "result"),
        key=lambda rng: names.place(rng) if rng.random() < 0.5 else names.person(rng),
        value=lambda rng: str(rng.randint(0, 180)),
        sentences=(
            "{entity} [has|is at|stands at|now has] {value}[ points|]",
            "{entity} scores, now {value}",
        ),
        ask=("How many points [has|does] {e}[ have|][ now|]?", "What is the score of {e}?"),
    ),
    "fare": Fact(
        nouns=("product", "article", "item"),
        field="price",
        words=("price", "cost"),
        key=_thing,
        value=lambda rng: f"{rng.uniform(0.2, 900):.2f}",
        sentences=("[the |The |]{entity} [costs|sells for|is now|goes for] {value}[.|]",),
        ask=(
            "[How much|What] [does|do] [the |]{e} cost[ now|]?",
            "[What do I pay|How much is it|What must one pay] for [the |]{e}[ now|]?",
        ),
    ),
    "due": Fact(
        nouns=("task", "report", "project"),
        field="due",
        words=("due date", "deadline"),
        key=lambda rng: f"{_of(rng, 'report review audit draft')} {names.word(rng)}",
        value=lambda rng: (
            f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
        ),
        sentences=("{entity} is [now|] due [on|] {value}[.|]",),
        ask=("When is {e} due?", "[By when|Until when] must {e} be [done|ready]?"),
    ),
    "address": Fact(
        nouns=("host", "machine", "server"),
        field="address",
        words=("address", "IP", "IP address"),
        key=lambda rng: f"{names.word(rng)}{rng.choice('-_')}{rng.randint(1, 99)}",
        value=lambda rng: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
        sentences=("{entity} [has address|is at|got|moved to] {value}[.|]",),
        ask=("[At|Under] what address is {e}[ now|]?", "[How|Where] do I reach {e}[ now|]?"),
    ),
    "mood": Fact(
        nouns=("person", "patient", "pet"),
        field="mood",
        words=("mood", "state", "condition"),
        key=names.person,
        value=lambda rng: _of(
            rng, "happy tired hungry calm angry sick asleep awake busy bored sad well better worse"
        ),
        sentences=("{entity} [is|feels|seems|looks] [now|] {value}[.|]",),
        ask=("How [is|does] {e}[ now| feel|]?", "[In what|Which] [mood|state] is {e}[ now| in|]?"),
    ),
}
