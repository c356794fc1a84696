"""A journal that an engine left, whole or damaged, and what the next engine makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxstate
from jaxstate.engine.durability.recovery import RecoveredSession
from jaxstate.engine.flash.conditions import Crosses, Equals
from jaxstate.engine.types.options import Coalesce, QueuePolicy, Tenant
from jaxstate.errors import InvalidInput
from jaxstate.persist.places import DATABASE, read_only
from jaxstate.testing import (
    FAKE_LIMITS,
    SHARED_LIMITS,
    FakeClock,
    FakeExecutor,
    fake_layout,
    tiny_model,
)
from jaxstate.text import Template
from tests.engine.journals import (
    SMALL,
    changed,
    erased_of,
    fetched,
    found,
    killed,
    read_all,
    segments,
    started,
)
from tests.engine.rig import BARE, Rig


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "j"


def test_everything_is_there_again_and_only_the_rest_is_read(path: Path) -> None:
    rig = started(path)
    session = rig.open(id="feed", prefix="prefix")
    session.push([f"entry {n}" for n in range(10)])
    rig.engine.run()
    assert rig.engine.snapshot() == 1 and rig.engine.snapshot() == 0
    session.push(["later", "last"])
    rig.engine.run()
    session.push("never read")
    live = bytes(rig.cells(session))
    rig = started(killed(rig))
    assert rig.engine.recovery.sessions == (
        RecoveredSession(id="feed", version=10, last=13, tokens_to_read=6 + 5 + 11),
    )
    back = rig.engine.session("feed")
    assert (back.version, back.info().pending, back.info().residency) == (10, 3, "disk")
    ask = back.submit("xyz", min_version=13)
    read_all(rig)
    assert found(rig, "feed") == (13, live + b"never read\n")
    assert fetched(rig) == 22 + 3
    assert ask.result(0).version == 13
    assert back.push("next").first == 14
    rig.engine.close()


def test_an_ask_is_answered_at_the_snapshots_version_or_waits_for_the_one_it_demands(
    path: Path,
) -> None:
    rig = started(path)
    session = rig.open("abcd", id="feed")
    rig.engine.snapshot()
    session.push("efgh")
    rig = started(killed(rig))
    back = rig.engine.session("feed")
    now = back.submit("xyz")
    read_all(rig)
    assert (now.result(0).text, now.result(0).version) == ("5:3", 1)
    later = back.submit("xyz", min_version=2)
    read_all(rig)
    assert (later.result(0).text, later.result(0).version) == ("10:3", 2)
    rig.engine.close()


def test_without_a_snapshot_all_of_it_is_read(path: Path) -> None:
    rig = started(path)
    rig.open("abcd", id="feed", prefix="0123")
    rig = started(killed(rig))
    assert rig.engine.recovery.sessions[0].version == -1
    read_all(rig)
    assert found(rig, "feed") == (1, b"0123abcd\n")
    rig.engine.close()


def test_the_last_snapshot_is_taken_when_the_engine_is_closed(path: Path) -> None:
    """A restart then reads nothing (B23), whatever was read."""
    with threaded(path) as engine:
        session = engine.open("feed")
        session.push(["a" * 20] * 10)
        session.wait()
    with threaded(path) as engine:
        back = engine.session("feed")
        assert (back.version, engine.recovery.sessions[0].tokens_to_read) == (10, 0)
        assert back.ask("xyz", timeout=20).text == "210:3"
        counts = engine.metrics().counts
        assert (counts.tokens_ingested, counts.tokens_rebuilt) == (0, 0)


def threaded(path: Path) -> jaxstate.Engine:
    """An engine with threads of its own, on a fake device."""
    model = dataclasses.replace(tiny_model(), template=BARE)
    return jaxstate.Engine(model, executor=FakeExecutor(FakeClock()), journal=path)


def test_a_session_comes_back_as_it_was(path: Path) -> None:
    """Name, tenant, reserve, class, policy, flash queries with their answers, what clients
    have pushed."""
    tenants = {"acme": Tenant(weight=2.0)}
    config = dataclasses.replace(SMALL, tenants=tenants)
    rig = started(path, config=config)
    session = rig.open(
        id="feed", prefix="ab", tenant="acme", reserve=40, residency="pinned", policy="reject"
    )
    other = rig.open(id="other", reserve=32)
    receipt = session.push(["x", "y"], client="c", client_seq=7)
    plain = session.flash("abc", max_tokens=3)
    rich = session.flash(
        "Up?",
        choices=["yes", "no"],
        when=Equals("yes"),
        min_interval_s=2.0,
        deadline_s=9.0,
    )
    session.flash("gone")
    session.unflash("q3")
    crosses = session.flash("Price?", stop=["x"], when=Crosses(3, "up"))
    rig.engine.run()
    answers = [one.answer for one in (plain, rich, crosses)]
    info = session.info()
    rig.engine.snapshot()
    other.close()
    rig = started(killed(rig), config=config)
    assert [one.id for one in rig.engine.sessions()] == ["feed"]
    back = rig.engine.session("feed")
    assert [one.answer for one in back.flashes()] == answers
    assert all(one.fresh for one in back.flashes())
    assert [one.id for one in back.flashes()] == ["q1", "q2", "q4"]
    read_all(rig)
    assert back.info() == info
    assert back.record.queue.policy == "reject"
    settings = [one.settings for one in back.record.flash]
    assert settings == [one.settings for one in session.record.flash]
    assert back.push(["x", "y"], client="c", client_seq=7) == receipt
    assert back.flash("fresh one").id == "q5"
    assert back.push("z", client="c", client_seq=8).first == 3
    rig.engine.close()


def test_news_is_not_told_twice(path: Path) -> None:
    """What a condition has seen, it has seen."""
    rig = started(path)
    session = rig.open("abcd", id="feed")
    session.flash("abc", choices=["5"], when=Equals("5"))
    rig.engine.run()
    rig.engine.snapshot()
    rig = started(killed(rig))
    back = rig.engine.session("feed")
    heard = back.subscribe()
    back.push("e")
    read_all(rig)
    events = [type(event).__name__ for event in iter(heard.poll, None)]
    assert "FlashReady" not in events and back.flashes()[0].fresh
    rig.engine.close()


def test_a_program_that_registers_its_questions_anew_finds_them(path: Path) -> None:
    """Callbacks cannot be kept, so a program gives them again; equal questions are the same."""
    rig = started(path)
    rig.open("abcd", id="feed").flash("abc", max_tokens=3)
    rig = started(killed(rig))
    back, fired = rig.engine.session("feed"), []
    with pytest.raises(InvalidInput, match="registered already"):
        back.flash("abc", max_tokens=4)
    again = back.flash("abc", max_tokens=3, on_fire=fired.append)
    assert again.id == "q1" and len(back.flashes()) == 1
    with pytest.raises(InvalidInput, match="registered already"):
        back.flash("abc", max_tokens=3)
    read_all(rig)
    assert [one.text for one in fired] == ["5:3"]
    rig.engine.close()


def test_sessions_that_were_closed_stay_closed_and_names_are_free(path: Path) -> None:
    rig = started(path)
    rig.open("abcd", id="feed").close()
    rig.open("ef", id="feed")
    rig = started(killed(rig))
    read_all(rig)
    assert found(rig, "feed") == (1, b"ef\n")
    with pytest.raises(InvalidInput, match="open already"):
        rig.engine.open("feed")
    rig.engine.close()


def test_displaced_entries_stay_displaced(path: Path) -> None:
    config = dataclasses.replace(SMALL, queue_entries=2, queue_policy="drop_oldest")
    rig = started(path, config=config)
    session = rig.open(id="feed")
    session.push(["a", "b"])
    rig.engine.run()
    session.push(["c", "d"])
    session.push("e")
    rig = started(killed(rig), config=config)
    read_all(rig)
    assert found(rig, "feed") == (5, b"a\nb\nd\ne\n")
    rig.engine.close()


@pytest.mark.parametrize("policy", ["drop_oldest", Coalesce(lambda text: text[:1])])
def test_what_came_back_is_not_displaced(path: Path, policy: QueuePolicy) -> None:
    """It may have been read before: an answer has seen it, and a fork has it."""
    config = dataclasses.replace(SMALL, queue_policy=policy, queue_entries=2)
    rig = started(path, config=config)
    session = rig.open(id="feed")
    for text in ("a1", "b1", "c1"):
        session.push(text)
        rig.engine.run()
    fork = rig.engine.fork(session, rig.engine.turn).id
    rig = started(killed(rig), config=config)
    for name in ("feed", fork):
        back = rig.engine.session(name)
        assert back.push(["a2", "b2"]).dropped == ()
        assert back.push("a3").dropped == (jaxstate.Span(first=4, last=4),)
    for _ in range(2):
        read_all(rig)
        for name in ("feed", fork):
            assert found(rig, name) == (6, b"a1\nb1\nc1\nb2\na3\n")
        rig = started(killed(rig), config=config)
    rig.engine.close()


def test_more_than_a_queue_holds_is_read_all_the_same(path: Path) -> None:
    rig = started(path, config=dataclasses.replace(SMALL, queue_entries=2))
    session = rig.open(id="feed")
    for number in range(20):
        session.push(f"{number}")
        rig.engine.run()
    whole = bytes(rig.cells(session))
    rig = started(killed(rig), config=dataclasses.replace(SMALL, queue_entries=2))
    back = rig.engine.session("feed")
    assert back.info().pending == 20
    back.push(["there is", "room"], timeout=0)
    with pytest.raises(Exception, match="queue was full"):
        back.push("more", timeout=0)
    read_all(rig)
    assert found(rig, "feed") == (22, whole + b"there is\nroom\n")
    rig.engine.close()


def test_forks_come_back_whatever_became_of_their_parents(path: Path) -> None:
    rig = started(path)
    parent = rig.open("ab", id="parent", prefix="0")
    fork = rig.engine.fork(parent, rig.engine.turn)
    parent.push("parent's")
    fork.push("fork's")
    rig.engine.run()
    grandchild = rig.engine.fork(fork, rig.engine.turn)
    grandchild.push("grandchild's")
    rig.engine.run()
    fork.close()
    erased_of(rig, fork.id)
    whole = {one.id: found(rig, one.id) for one in (parent, grandchild)}
    rig = started(killed(rig))
    assert {one.id for one in rig.engine.sessions()} == set(whole)
    read_all(rig)
    assert {name: found(rig, name) for name in whole} == whole
    rig.engine.close()


def test_a_fork_has_its_parents_snapshot(path: Path) -> None:
    rig = started(path)
    parent = rig.open("a" * 40, id="parent")
    rig.engine.snapshot()
    parent.push("b")
    rig.engine.run()
    fork = rig.engine.fork(parent, rig.engine.turn)
    fork.push("c")
    rig = started(killed(rig))
    tokens = {one.id: one.tokens_to_read for one in rig.engine.recovery.sessions}
    assert tokens == {"parent": 2, fork.id: 4}
    read_all(rig)
    assert found(rig, fork.id) == (3, b"a" * 40 + b"\nb\nc\n")
    rig.engine.close()


def test_earlier_versions_are_known_after_a_restart(path: Path) -> None:
    """Before and after the snapshot; a fork at one of them comes back as well."""
    rig = started(path)
    session = rig.open(id="feed", prefix="0")
    session.push(["ab", "c", "", "def"])
    rig.engine.run()
    rig.engine.snapshot()
    session.push(["g", "hi"])
    rig = started(killed(rig))
    read_all(rig)
    back = rig.engine.session("feed")
    answers = [back.submit("xyz", as_of=version) for version in range(7)]
    fork = rig.engine.fork(back, rig.engine.turn, version=2)
    fork.push("fork's")
    read_all(rig)
    cells = [1, 4, 6, 7, 11, 13, 16]
    assert [one.result(0).text for one in answers] == [f"{count}:3" for count in cells]
    assert found(rig, fork.id) == (3, b"0ab\nc\nfork's\n")
    rig.engine.snapshot()
    rig = started(killed(rig))
    read_all(rig)
    assert found(rig, fork.id) == (3, b"0ab\nc\nfork's\n")
    assert rig.engine.session(fork.id).submit("x", as_of=1) is not None
    with pytest.raises(InvalidInput, match="versions 0 to 3"):
        rig.engine.session(fork.id).submit("x", as_of=4)
    rig.engine.close()


def test_a_restored_session_comes_back(path: Path, tmp_path: Path) -> None:
    """Its tokens are in the journal, though nobody knows their text."""
    plain = Rig()
    session = plain.open("abcd")
    plain.manager.capture(session.record, {})
    saved = plain.manager.capture(session.record, {})
    plain.engine.run()
    saved.result(0)(tmp_path / "saved")
    rig = started(path)
    read_back = rig.manager.load(tmp_path / "saved")
    rig.manager.restore("feed", read_back, 1, "block", tenant="default")
    rig.engine.session("feed").push("ef")
    rig = started(killed(rig))
    assert rig.engine.recovery.sessions[0].version == 1
    read_all(rig)
    assert found(rig, "feed") == (2, b"abcd\nef\n")
    again = killed(rig)
    rig = started(again, template=Template(bare="other", opening=("", ""), asking=("", "")))
    assert rig.engine.sessions() == []
    ((name, reason),) = rig.engine.recovery.failed
    assert name == "feed" and "another tokenizer or template" in reason
    rig.engine.close()
    rig = started(again)
    read_all(rig)
    assert found(rig, "feed") == (2, b"abcd\nef\n")
    rig.engine.close()


def test_a_second_restart_while_the_first_was_not_done(path: Path) -> None:
    rig = started(path)
    session = rig.open("ab", id="feed")
    rig.engine.snapshot()
    session.push(["cd", "ef"])
    rig = started(killed(rig))
    rig.engine.session("feed").push("gh")
    rig = started(killed(rig))
    rig.engine.session("feed").push("ij")
    read_all(rig)
    assert found(rig, "feed") == (5, b"ab\ncd\nef\ngh\nij\n")
    rig.engine.close()


def test_what_was_suspended_comes_back_too(path: Path) -> None:
    """From the host's memory it is saved without the device."""
    rig = started(path)
    session = rig.open("a" * 30, id="feed", reserve=64)
    session.suspending()
    rig.engine.run()
    assert session.info().residency == "host"
    rig.news()
    assert rig.engine.snapshot() == 1 and rig.news() == []
    rig = started(killed(rig))
    assert rig.engine.session("feed").info().reserve == 0
    read_all(rig)
    assert found(rig, "feed") == (1, b"a" * 30 + b"\n") and fetched(rig) == 0
    rig.engine.close()


def test_pieces_are_written_once(path: Path) -> None:
    """Whole pieces stay from snapshot to snapshot, and sessions share those that are the same."""
    rig = started(path, limits=SHARED_LIMITS)
    prefix = "0123456789abcdef" * 3 + "x"
    first = rig.open("a", id="first", prefix=prefix)
    rig.engine.snapshot()
    seen = segments(path)
    assert len(seen) == 4
    second = rig.open("b", id="second", prefix=prefix)
    rig.engine.snapshot()
    assert len(segments(path) - seen) == 1 and seen <= segments(path)
    seen = segments(path)
    first.push("c" * 30)
    rig.engine.run()
    rig.engine.snapshot()
    assert len(segments(path) - seen) == 3  # 49 .. 83 in pieces of 16, of which none was whole
    first.close()
    second.close()
    rig.engine.close()


def test_only_so_many_snapshots_are_kept(path: Path) -> None:
    rig = started(path)
    session = rig.open(id="feed")
    for number in range(6):
        session.push(f"{number}" * 20)
        rig.engine.run()
        rig.engine.snapshot()
    rig.core.journal_writer.clear_segments()
    with contextlib.closing(read_only(path)) as source:
        versions = [row[0] for row in source.execute("SELECT version FROM snapshots")]
    assert versions == [5, 6]
    assert segments(path) == {one.name for one in (path / "segments").iterdir()}
    rig.engine.close()


def snapshots(path: Path) -> Iterator[tuple[Path, Path]]:
    """Every file of the snapshots at a path."""
    for file in sorted((path / "segments").rglob("*")):
        if file.is_file():
            yield file, file.relative_to(path)


def with_two(path: Path) -> Path:
    """Two sessions with snapshots in several pieces, and something to read."""
    rig = started(path)
    for name in ("feed", "other"):
        rig.open(name * 12, id=name)
    rig.engine.snapshot()
    for name in ("feed", "other"):
        rig.engine.session(name).push("tail")
    return killed(rig)


WHOLE = {name: (2, name.encode() * 12 + b"\ntail\n") for name in ("feed", "other")}


def test_damage_anywhere_in_a_snapshot(path: Path, tmp_path: Path) -> None:
    """Every file removed, emptied, cut, flipped here and there: what is good is used, the rest is
    read again; both sessions are what they should be, and so they are the next time."""
    left = with_two(path)
    number = 0
    for _, name in list(snapshots(left)):
        for damage in ("gone", "empty", "cut", "first", "middle", "last"):
            number += 1
            copy = tmp_path / f"damaged{number}"
            shutil.copytree(left, copy)
            _damage(copy / name, damage)
            rig = started(copy)
            read_all(rig)
            assert {one: found(rig, one) for one in WHOLE} == WHOLE, (name, damage)
            assert 10 <= fetched(rig) <= 10 + 61, "only what was damaged is read again"
            assert rig.engine.snapshot() == 2
            rig.news()
            rig = started(killed(rig))
            assert [one.tokens_to_read for one in rig.engine.recovery.sessions] == [0, 0]
            read_all(rig)
            assert {one: found(rig, one) for one in WHOLE} == WHOLE
            assert fetched(rig) == 0
            rig.engine.close()
    assert number >= 30


def _damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
        return
    at = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}.get(how, 0)
    flipped = bytearray(content)
    flipped[at] ^= 0xFF
    changed = {"empty": b"", "cut": content[: len(content) // 2]}.get(how, bytes(flipped))
    file.write_bytes(changed)


ROWS = {
    "no segments": "UPDATE snapshots SET segments = '[]'",
    "other segments": "UPDATE snapshots SET segments = '[\"no\"]'",
    "in another order": "UPDATE segments SET first = first + 1",
    "short tokens": "UPDATE segments SET tokens = x'00000000'",
    "rows gone": "DELETE FROM segments",
    "of the future": "UPDATE snapshots SET version = 99",
    "another model": "UPDATE snapshots SET fingerprint = 'another'",
    "more cells": "UPDATE snapshots SET cells = cells + 1",
}


@pytest.mark.parametrize("what", ROWS)
def test_a_snapshot_that_does_not_fit_is_set_aside(
    path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    left = with_two(path)
    with contextlib.closing(sqlite3.connect(left / DATABASE)) as database:
        database.execute(ROWS[what])
        database.commit()
    with caplog.at_level(logging.WARNING):
        rig = started(left)
    assert "set aside" in caplog.text
    assert len(rig.engine.recovery.set_aside) == 2
    read_all(rig)
    assert {one: found(rig, one) for one in WHOLE} == WHOLE
    rig.core.journal_writer.journal.write(lambda _: None)  # pyright: ignore
    with contextlib.closing(read_only(left)) as source:
        asides = [row[0] for row in source.execute("SELECT set_aside FROM snapshots")]
    assert len(asides) == 2 and None not in asides
    rig.engine.close()


def test_the_snapshot_before_serves_if_the_newest_does_not(path: Path) -> None:
    rig = started(path, config=dataclasses.replace(SMALL, snapshot_bytes=1 << 20))
    session = rig.open("a" * 50, id="feed")
    rig.engine.snapshot()
    before = segments(path)
    session.push("b" * 20)
    rig.engine.run()
    rig.engine.snapshot()
    (newest,) = segments(path) - before
    left = killed(rig)
    shutil.rmtree(left / "segments" / newest / "cells.npz", ignore_errors=True)
    (left / "segments" / newest / "cells.npz").unlink()
    rig = started(left)
    read_all(rig)
    assert found(rig, "feed") == (2, b"a" * 50 + b"\n" + b"b" * 20 + b"\n")
    assert fetched(rig) == 21
    assert (left / "set-aside" / newest).is_dir()
    rig.engine.close()


def test_another_tokenizer_reads_the_texts_again(path: Path) -> None:
    left = with_two(path)
    spaced = Template(bare="", opening=("<", ">"), asking=("", ""))
    rig = started(left, template=spaced)
    assert len(rig.engine.recovery.set_aside) == 2
    assert "tokenizer, template" in rig.engine.recovery.set_aside[0]
    read_all(rig)
    assert {one: found(rig, one) for one in WHOLE} == WHOLE
    rig.engine.close()


def test_a_session_that_cannot_come_back_harms_no_other(path: Path) -> None:
    left = with_two(path)
    with contextlib.closing(sqlite3.connect(left / DATABASE)) as database:
        database.execute("UPDATE entries SET text = x'00' WHERE log = 1 AND sequence = 2")
        database.commit()
    rig = started(left)
    read_all(rig)
    ((name, reason),) = rig.engine.recovery.failed
    assert name == "feed" and "entry 2 of session 'feed' is missing" in reason
    assert found(rig, "other") == WHOLE["other"]
    with pytest.raises(InvalidInput, match=r"in the journal, but could not.*erase\('feed'\)"):
        rig.engine.open("feed")
    assert erased_of(rig, "feed") == 1
    assert rig.engine.open("feed").push("new").first == 1
    with pytest.raises(InvalidInput, match="is open"):
        rig.engine.erase("feed")
    rig.engine.close()


def test_an_engine_that_is_too_small_says_so_and_loses_nothing(path: Path) -> None:
    left = with_two(path)
    small = dataclasses.replace(FAKE_LIMITS, layout=fake_layout(40, 80))
    rig = started(left, limits=small)
    reasons = dict(rig.engine.recovery.failed)
    assert set(reasons) == {"feed", "other"}
    assert "holds 54 cells; a session of this engine holds 40" in reasons["feed"]
    rig.engine.close()
    rig = started(left)
    read_all(rig)
    assert {one: found(rig, one) for one in WHOLE} == WHOLE
    rig.engine.close()


def test_more_sessions_than_there_is_room_for_come_back_one_after_the_other(path: Path) -> None:
    rig = started(path)
    for number in range(6):
        rig.open("x" * (20 + number), id=f"s{number}")
        rig.engine.snapshot()
    few = dataclasses.replace(FAKE_LIMITS, layout=fake_layout(48, 96))
    rig = started(killed(rig), limits=few)
    asks = [rig.engine.session(f"s{n}").submit("xyz") for n in range(6)]
    read_all(rig)
    assert [ask.result(0).text for ask in asks] == [f"{21 + n}:3" for n in range(6)]
    assert fetched(rig) == 6 * 3
    rig.check_blocks()
    rig.engine.close()


def test_the_last_used_comes_first(path: Path) -> None:
    rig = started(path)
    for number in range(3):
        rig.open(f"{number}", id=f"s{number}")
    rig.engine.session("s1").push("again")
    rig = started(killed(rig))
    assert rig.engine.recovery.sessions[0].id == "s1"
    read_all(rig)
    assert rig.news()[0].split()[1] == "s1"
    rig.engine.close()


def test_stray_pieces_of_a_killed_process_go(path: Path) -> None:
    left = with_two(path)
    (left / "segments" / "half.new").mkdir()
    (left / "segments" / ("0" * 64)).mkdir()
    rig = started(left)
    assert {one.name for one in (left / "segments").iterdir()} == segments(left)
    rig.engine.close()


def test_a_snapshot_that_fails_is_taken_the_next_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for every write in turn: nothing half written is ever named."""
    rig = started(path)
    session = rig.open("abcd" * 10, id="feed")
    save, failing = rig.executor.save, 0

    def full(*args: object) -> None:
        nonlocal failing
        failing -= 1
        if failing == 0:
            raise OSError(28, "No space left on device")
        save(*args)  # pyright: ignore

    monkeypatch.setattr(rig.executor, "save", full)
    for number in (1, 2, 2):  # what was written the last time is there
        failing = number
        assert rig.engine.snapshot() == 0 and session.record.saved.version == -1
        assert not list((path / "segments").glob("*.new"))
    assert rig.engine.metrics().counts.snapshots_failed == 3
    failing = 0
    assert rig.engine.snapshot() == 1
    rig = started(killed(rig))
    assert rig.engine.recovery.sessions[0].tokens_to_read == 0
    rig.engine.close()


def test_an_answer_is_never_given_to_another_question(path: Path) -> None:
    """Names of flash queries are not used twice, also over restarts, nor while one that cannot be
    asked here has it."""
    rig = started(path)
    session = rig.open("abcd", id="feed")
    session.flash("aaa", max_tokens=3)
    rig.engine.run()
    rig.engine.snapshot()
    session.unflash("q1")
    rig = started(killed(rig))
    assert rig.engine.session("feed").flash("zzzzzz", max_tokens=3).id == "q2"
    rig = started(killed(rig))
    (query,) = rig.engine.session("feed").flashes()
    assert (query.id, query.question, query.answer) == ("q2", "zzzzzz", None)
    one = dataclasses.replace(SMALL, flash_limit=1)
    rig.engine.session("feed").flash("more")
    rig = started(killed(rig), config=one)
    back = rig.engine.session("feed")
    assert [one.id for one in back.flashes()] == ["q2"] and not rig.engine.recovery.failed
    back.unflash("q2")
    assert back.flash("new").id == "q4"
    rig = started(killed(rig))
    assert [one.id for one in rig.engine.session("feed").flashes()] == ["q3", "q4"]
    rig.engine.close()


def test_questions_that_cannot_be_asked_here_keep_nobody_from_coming_back(path: Path) -> None:
    rig = started(path)
    session = rig.open("abcd", id="feed")
    session.flash("abc")
    session.flash("def")
    rig = started(killed(rig), config=dataclasses.replace(SMALL, flash_limit=1))
    assert not rig.engine.recovery.failed
    assert [one.question for one in rig.engine.session("feed").flashes()] == ["abc"]
    rig.engine.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE questions SET settings = '{'",
        "UPDATE questions SET settings = '[]'",
        'UPDATE questions SET settings = \'{"when": ["Sometimes", {}]}\'',
        "UPDATE snapshots SET segments = '{'",
        "UPDATE snapshots SET segments = '7'",
    ],
)
def test_rows_that_make_no_sense_keep_no_session_from_coming_back(path: Path, sql: str) -> None:
    rig = started(path)
    rig.open("abcd", id="other")
    rig.open("abcd", id="feed").flash("abc")
    rig.engine.snapshot()
    left = killed(rig)
    changed(left, f"{sql} WHERE session = 2")
    rig = started(left)
    read_all(rig)
    assert not rig.engine.recovery.failed
    assert found(rig, "other") == found(rig, "feed") == (1, b"abcd\n")
    if "questions" in sql:
        (told,) = rig.engine.recovery.unasked
        assert "'q1' of session 'feed'" in told
        assert rig.engine.session("feed").flash("abc").id == "q2"
    else:
        (told,) = rig.engine.recovery.set_aside
        assert "what the journal says of it is damaged" in told
    rig.engine.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE sessions SET base_ends = x'00' WHERE key = 2",
        "UPDATE sessions SET policy = 'sometimes' WHERE key = 2",
        "UPDATE questions SET name = 'no number' WHERE session = 2",
    ],
)
def test_a_session_that_cannot_be_understood_leaves_no_half_made_books(
    path: Path, sql: str
) -> None:
    rig = started(path)
    rig.open("abcd", id="other")
    rig.open("abcd", id="feed").flash("abc")
    rig.engine.snapshot()
    left = killed(rig)
    changed(left, sql)
    rig = started(left)
    read_all(rig)
    assert [name for name, _ in rig.engine.recovery.failed] == ["feed"]
    assert {one.id for one in rig.engine.sessions()} == {"other"}
    assert set(rig.core.state.by_id) == {"other"} and len(rig.core.state.records) == 1
    assert found(rig, "other") == (1, b"abcd\n")
    rig.check_blocks()
    rig.engine.close()


def test_damaged_answers_are_computed_again(path: Path) -> None:
    rig = started(path)
    rig.open("abcd", id="feed").flash("abc", max_tokens=3)
    rig.engine.run()
    rig.engine.snapshot()
    left = killed(rig)
    with contextlib.closing(sqlite3.connect(left / DATABASE)) as database:
        database.execute("UPDATE snapshots SET answers = replace(answers, '5:3', '6:3')")
        database.commit()
    rig = started(left)
    (query,) = rig.engine.session("feed").flashes()
    assert query.answer is None
    read_all(rig)
    assert query.answer is not None and query.answer.text == "5:3"
    rig.engine.close()


@pytest.mark.parametrize("column", ["tokens", "ends"])
def test_damaged_rows_of_pieces_are_not_believed(path: Path, column: str) -> None:
    """Neither as they are, nor with a checksum that fits: the piece's name says what is in it."""
    left = with_two(path)
    with contextlib.closing(sqlite3.connect(left / DATABASE)) as database:
        value = f"substr({column}, 1, length({column}) - 1) || x'01'"
        database.execute(f"UPDATE segments SET {column} = {value} WHERE length({column}) > 0")
        database.commit()
    rig = started(left)
    assert rig.engine.recovery.set_aside
    read_all(rig)
    assert {one: found(rig, one) for one in WHOLE} == WHOLE
    rig.engine.close()


def test_a_forks_snapshots_do_not_name_pieces_that_are_gone(path: Path) -> None:
    rig = started(path)
    parent = rig.open("a" * 40, id="parent")
    parent.push("b" * 40)
    rig.engine.run()
    rig.engine.snapshot()
    fork = rig.engine.fork(parent, rig.engine.turn, version=1)
    parent.close()
    rig.core.journal_writer.clear_segments()
    fork.push("c" * 40)
    rig.engine.run()
    rig.engine.snapshot()
    rig = started(killed(rig))
    assert not rig.engine.recovery.set_aside
    assert rig.engine.recovery.sessions[0].tokens_to_read == 0
    read_all(rig)
    assert found(rig, fork.id) == (2, b"a" * 40 + b"\n" + b"c" * 40 + b"\n")
    rig.engine.close()


def test_keys_are_not_used_twice(path: Path) -> None:
    rig = started(path)
    rig.open("abcd", id="one")
    rig.open("abcd", id="two").close()
    erased_of(rig, "two")
    rig = started(killed(rig))
    assert rig.open("x", id="three").record.log_key == 3
    rig.engine.close()
