"""What a journal holds against a model of it: sessions, forks, entries, erasure, damage."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxstate.errors import JournalDamaged
from jaxstate.persist import changes, logged
from jaxstate.persist.schema import JOURNAL, create
from tests.persist.test_journal import opening


@dataclass
class Modelled:
    """A session: its entries by number (None: displaced), and whether it is open."""

    entries: dict[int, str | None]
    base: int = 0
    parent: int | None = None
    open: bool = True
    erased: bool = False
    names: set[str] = field(default_factory=set)

    @property
    def last(self) -> int:
        return max(self.entries, default=self.base)


class JournalAgainstModel(RuleBasedStateMachine):
    """Opens, pushes, forks, ends, erases; after each every session is what it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.source = sqlite3.connect(":memory:", isolation_level=None)
        create(self.source, JOURNAL)
        self.sessions: dict[int, Modelled] = {}
        self.written = 0

    def make(self, change: changes.Change) -> None:
        self.source.execute("BEGIN")
        change(self.source)
        self.source.execute("COMMIT")

    @property
    def living(self) -> list[int]:
        return [key for key, one in self.sessions.items() if one.open]

    @precondition(lambda self: len(self.sessions) < 8)
    @rule()
    def open(self) -> None:
        key = len(self.sessions) + 1
        self.make(changes.opened(opening(key)))
        self.sessions[key] = Modelled({})

    @precondition(lambda self: self.living)
    @rule(data=st.data(), count=st.integers(1, 3), drop=st.booleans())
    def push(self, data: st.DataObject, count: int, drop: bool) -> None:
        key = data.draw(st.sampled_from(self.living))
        one = self.sessions[key]
        texts = [f"text {self.written + n}." for n in range(count)]
        self.written += count
        first, gone = one.last + 1, []
        # What a fork has read was committed, and what is committed is never displaced.
        forked = max(
            (fork.base for fork in self.sessions.values() if fork.parent == key), default=0
        )
        if drop and one.last > max(one.base, forked):
            gone = [(one.last, one.last)]
            one.entries[one.last] = None
        push = changes.Push(client="c", client_seq=first, receipt=f"[{first}]", digest=b"d")
        self.make(changes.pushed(key, first, texts, gone, push))
        one.entries.update(enumerate(texts, first))

    @precondition(lambda self: self.living and len(self.sessions) < 8)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.living))
        of = self.sessions[parent]
        # What is displaced was never read, so no version ends there that a fork could start from.
        version = data.draw(st.integers(0, of.last))
        key = len(self.sessions) + 1
        self.make(changes.opened(opening(key, parent=parent, version=version)))
        entries = {n: text for n, text in of.entries.items() if n <= version}
        self.sessions[key] = Modelled(entries, base=version, parent=parent)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.living))
        self.make(changes.ended(key))
        self.sessions[key].open = False

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.sessions)))
        if not self.sessions[key].erased:
            self.make(changes.erased(key))
            self.sessions[key].open, self.sessions[key].erased = False, True

    @invariant()
    def every_session_is_what_it_should_be(self) -> None:
        assert {key for key, _ in logged.keys_of(self.source)} == set(self.living)
        kept = {key for key, one in self.sessions.items() if not one.erased}
        assert {key for key, _ in logged.keys_of(self.source, ended=True)} == kept
        for key in kept:
            one, session = self.sessions[key], logged.session_of(self.source, key)
            assert session.last == one.last
            for after in {0, one.base, one.last // 2, one.last}:
                found = list(logged.entries_of(self.source, session, after))
                wanted = [(n, t) for n, t in one.entries.items() if n > after and t is not None]
                assert [(entry.sequence, entry.text) for entry in found] == wanted
            assert logged.root_of(self.source, session).prefix is not None

    @invariant()
    def nothing_is_left_of_what_nobody_has(self) -> None:
        """Texts in the tables are those that some session that is not erased has, or has dropped
        (a displaced entry stays until its session is erased)."""
        texts = {bytes(row[0]).decode() for row in self.source.execute("SELECT text FROM entries")}
        having = [one for one in self.sessions.values() if not one.erased]
        wanted = {text for one in having for text in one.entries.values() if text is not None}
        dropped = any(t is None for one in self.sessions.values() for t in one.entries.values())
        assert wanted <= texts
        assert dropped or texts == wanted

    @invariant()
    def receipts_are_those_of_sessions_that_are_not_erased(self) -> None:
        keys = {row[0] for row in self.source.execute("SELECT session FROM pushes")}
        assert keys <= {key for key, one in self.sessions.items() if not one.erased}
        for key, one in self.sessions.items():
            last = logged.last_seq(self.source, key, "c")
            assert one.erased or last is None or last <= one.last

    def teardown(self) -> None:
        self.source.close()


JournalAgainstModel.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestJournalAgainstModel = JournalAgainstModel.TestCase


def filled() -> sqlite3.Connection:
    source = sqlite3.connect(":memory:", isolation_level=None)
    create(source, JOURNAL)
    for key in (1, 2):
        changes.opened(opening(key))(source)
        changes.pushed(key, 1, ["a", "b", "c"])(source)
    return source


DAMAGE = {
    "another text": "UPDATE entries SET text = x'41' WHERE log = 1 AND sequence = 2",
    "no text": "UPDATE entries SET text = 7 WHERE log = 1 AND sequence = 2",
    "another place": "UPDATE entries SET sequence = 9 WHERE log = 1 AND sequence = 2",
    "a missing entry": "DELETE FROM entries WHERE log = 1 AND sequence = 2",
    "another's entry": "UPDATE entries SET text = (SELECT text FROM entries WHERE log = 2 AND "
    "sequence = 1), checksum = (SELECT checksum FROM entries WHERE log = 2 AND sequence = 1) "
    "WHERE log = 1 AND sequence = 2",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_found_and_concerns_one_session(what: str) -> None:
    with contextlib.closing(filled()) as source:
        source.execute(DAMAGE[what])
        session = logged.session_of(source, 1)
        with pytest.raises(JournalDamaged, match="entry 2 of session 's1' is missing"):
            list(logged.entries_of(source, session, 0))
        other = logged.session_of(source, 2)
        assert [one.text for one in logged.entries_of(source, other, 0)] == ["a", "b", "c"]


@pytest.mark.parametrize("column", ["prefix", "tenant", "base_version", "base_tokens", "parent"])
def test_a_damaged_opening_is_found(column: str) -> None:
    with contextlib.closing(filled()) as source:
        value = {"base_version": "1", "parent": "2"}.get(column, "x'42'")
        source.execute(f"UPDATE sessions SET {column} = {value} WHERE key = 1")
        with pytest.raises(JournalDamaged, match=r"session 's1'|session 1"):
            logged.session_of(source, 1)
        assert logged.session_of(source, 2).last == 3


def test_the_last_used_session_comes_first() -> None:
    with contextlib.closing(filled()) as source:
        source.execute("UPDATE entries SET pushed_s = 1e12 WHERE log = 1 AND sequence = 3")
        assert [name for _, name in logged.keys_of(source)] == ["s1", "s2"]
        source.execute("UPDATE entries SET pushed_s = 2e12 WHERE log = 2 AND sequence = 3")
        assert [name for _, name in logged.keys_of(source)] == ["s2", "s1"]
        assert logged.largest_key(source) == 2
