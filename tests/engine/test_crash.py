"""Engines that are killed at random moments; `scripts/crash_test.py` does it as often as one likes.

And the test of the test: a journal that is not what it should be is found out.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jaxstate
from jaxstate.persist.places import DATABASE, SEGMENTS
from tests.harness.crash import CrashReport, CrashTest
from tests.harness.crash_check import JournalCheck
from tests.harness.crash_clients import Client
from tests.harness.crash_devices import config_of, device_of, model_of
from tests.harness.crash_known import Known, SentPush, Stream
from tests.harness.crash_shown import Uninterrupted

WANTED = (
    "entries displaced",
    "fork, acknowledged",
    "close, acknowledged",
    "erase, acknowledged",
)


def checked(report: CrashReport, kills: int) -> None:
    assert not report.broken, "\n".join(report.broken)
    assert report.kills.total() == kills
    counts = report.counts
    assert counts["entries acknowledged"] > 5 * kills and counts["pushes repeated"] > 0
    assert counts["sessions back from a snapshot"] > 0 and counts["sessions shown"] > kills
    assert counts["tokens held in snapshots"] > 0


def test_thirty_kills_lose_nothing() -> None:
    report = CrashTest(kills=30, seed=1).run()
    checked(report, 30)
    counts = report.counts
    assert counts["entries of unknown fate, found"] + counts["entries of unknown fate, not found"]
    assert counts["entries displaced"] and counts["fork, acknowledged"]
    assert len(report.kills) > 2, f"all were killed alike: {report.kills}"


def test_what_comes_back_answers_as_if_nothing_had_been_killed() -> None:
    """A real model with a sliding window, synced to the disk."""
    checked(CrashTest(kills=4, seed=1, device="tiny", level="fsync").run(), 4)


def test_in_memory_the_newest_may_be_lost_but_nothing_else() -> None:
    report = CrashTest(kills=6, seed=2, level="memory").run()
    assert not report.broken, "\n".join(report.broken)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Known]:
    """What some clients did, and the journal that their engine left."""
    path, broken = tmp_path_factory.mktemp("journal") / "j", list[str]()
    known, model, lock = Known(broken.append), model_of("fake"), threading.Lock()
    device = device_of("fake", model, lambda: None)

    def tell(report: dict[str, object]) -> None:
        with lock:
            known.told(report)

    def enough() -> bool:
        with lock:
            there = known.open
            displaced = any(stream.dropped for stream in there)
        return displaced and len(there) > 1 and all(map(known.counts.get, WANTED))

    def act(name: str) -> None:
        client = Client(engine, tell, name, seq=0, life=1, seed=name)
        while not enough():
            client.act()

    settings = {"executor": device, "config": config_of("fake"), "journal": path}
    with jaxstate.Engine(model, **settings) as engine:  # pyright: ignore
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(act, ("c0", "c1", "c2", "c3")))
        for session in engine.sessions():
            session.flash("c9?1", max_tokens=2)
            known.streams[session.id].flashes["c9?1"] = True
            session.wait(timeout=30)
    JournalCheck(path, known, "os", broken.append).run()  # it knows where forks begin
    assert not broken
    return path, known


def looked_at(path: Path, known: Known) -> list[str]:
    broken: list[str] = []
    JournalCheck(path, copy.deepcopy(known), "os", broken.append).run(everything=True)
    return broken


def test_what_an_engine_left_is_as_it_should_be(left: tuple[Path, Known]) -> None:
    assert looked_at(*left) == []


OPEN = "(SELECT max(key) FROM sessions WHERE ended_s IS NULL)"
DAMAGE = {
    "an entry is gone": (
        "DELETE FROM entries WHERE (log, sequence) = (SELECT log, max(sequence) FROM entries)",
        "does not know it|not where its receipt says",
    ),
    "nobody sent it": (
        "INSERT INTO entries SELECT log, max(sequence) + 1, x'78', 0, 0, 0 FROM entries",
        "was never sent",
    ),
    "an entry is there twice": (
        "INSERT INTO entries SELECT log, max(sequence) + 1, text, 0, 0, 0 FROM entries",
        "there twice",
    ),
    "two texts change places": (
        "CREATE TEMP TABLE two AS SELECT * FROM entries WHERE sequence < 3; "
        "UPDATE entries SET text = (SELECT text FROM two WHERE two.log = entries.log AND "
        "two.sequence = 3 - entries.sequence) WHERE sequence < 3 AND log = (SELECT log FROM two "
        "GROUP BY log HAVING count(DISTINCT text) = 2 LIMIT 1)",
        "out of order|not where its receipt says",
    ),
    "what was displaced is back": (
        "UPDATE entries SET dropped = 0",
        "receipts name",
    ),
    "another receipt": (
        "UPDATE pushes SET receipt = replace(receipt, 'os', 'fsync')",
        "was told",
    ),
    "a receipt is gone": ("DELETE FROM pushes", "without its receipt"),
    "a session is gone": (
        f"DELETE FROM sessions WHERE key = {OPEN}",
        "was opened, as was acknowledged",
    ),
    "a closed session is open": (
        # The last of each name, where none of that name is open.
        "UPDATE sessions SET ended_s = NULL"
        " WHERE key IN (SELECT max(key) FROM sessions GROUP BY id)"
        " AND id NOT IN (SELECT id FROM sessions WHERE ended_s IS NULL)",
        "was closed, as was acknowledged",
    ),
    "an open session has ended": (
        "UPDATE sessions SET ended_s = 1",
        "nobody closed it",
    ),
    "a question is forgotten": ("DELETE FROM questions", "registered, as was acknowledged"),
    "nobody registered it": (
        f"INSERT INTO questions VALUES ({OPEN}, 'flash', 'f99', '{{\"question\": \"?\"}}')",
        "nobody registered",
    ),
    "a snapshot is damaged": ("UPDATE snapshots SET set_aside = 'it is bad'", "it is bad"),
    "a closed session has a snapshot": (
        "UPDATE snapshots SET session = (SELECT key FROM sessions WHERE ended_s IS NOT NULL)",
        "and has a snapshot",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_journal_that_is_not_as_it_should_be_is_found_out(
    left: tuple[Path, Known], tmp_path: Path, what: str
) -> None:
    path, known = Path(shutil.copytree(left[0], tmp_path / "j")), left[1]
    damage, told = DAMAGE[what]
    with contextlib.closing(sqlite3.connect(path / DATABASE, isolation_level=None)) as database:
        database.executescript(damage)
        assert database.total_changes > 0
    broken = looked_at(path, known)
    assert any(part in one for one in broken for part in told.split("|")), broken


def test_a_text_that_was_erased_and_is_somewhere_is_found_out(
    left: tuple[Path, Known], tmp_path: Path
) -> None:
    path, known = Path(shutil.copytree(left[0], tmp_path / "j")), copy.deepcopy(left[1])
    erased = Stream("erased", there=True, ended=True, erased=True)
    erased.pushes["c9", 1] = SentPush(("c9.1.0 x",))
    known.streams["erased"] = erased
    assert looked_at(path, known) == []
    with (path / f"{DATABASE}-old").open("wb") as file:
        file.write(b"... c9.1.0 x ...")
    assert "session erased was erased, and files hold" in looked_at(path, known)[0]


def test_a_version_that_was_seen_and_is_gone_is_found_out(left: tuple[Path, Known]) -> None:
    known = copy.deepcopy(left[1])
    stream = known.open[0]
    known.told({"saw": stream.name, "version": stream.last})
    assert looked_at(left[0], known) == []
    known.told({"saw": stream.name, "version": stream.last + 1})
    assert "was seen, as was acknowledged" in looked_at(left[0], known)[0]


def test_a_piece_that_is_gone_is_found_out(left: tuple[Path, Known], tmp_path: Path) -> None:
    path = Path(shutil.copytree(left[0], tmp_path / "j"))
    shutil.rmtree(next((path / SEGMENTS).iterdir()))
    assert "pieces of snapshots are missing" in looked_at(path, left[1])[0]


def shown(version: int, tokens: list[int]) -> dict[str, object]:
    return {"version": version, "tokens": tokens, "visible": None}


def test_a_session_that_shows_something_else_is_found_out(left: tuple[Path, Known]) -> None:
    expected, stream = Uninterrupted("fake"), left[1].open[0]
    tokens = expected.tokens(stream)
    assert expected.difference(stream, shown(stream.last, tokens)) is None
    for version, read in ((stream.last - 1, tokens), (stream.last, tokens[:-1])):
        assert expected.difference(stream, shown(version, read))
    numbers = sorted(stream.numbered())
    if len(numbers) > 1:
        some = [[numbers[0], numbers[0]]]
        seen = expected.tokens(stream, some)
        assert expected.difference(stream, {**shown(stream.last, seen), "visible": some})


def test_an_answer_is_that_of_an_uninterrupted_run(left: tuple[Path, Known]) -> None:
    expected, stream = Uninterrupted("tiny"), left[1].open[0]
    tokens = expected.tokens(stream)
    wanted = expected.answer(tokens)
    report = {
        "version": stream.last,
        "visible": None,
        "cells": len(tokens),
        "answer": wanted.tokens.tolist(),
        "logprob": float(wanted.logprobs.sum()),
    }
    assert expected.difference(stream, report) is None
    for name, value in (("cells", 1), ("answer", [1]), ("logprob", 0.0), ("logprob", float("nan"))):
        assert expected.difference(stream, {**report, name: value}), name
