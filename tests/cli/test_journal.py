"""`jaxstate stream --journal` and `jaxstate inspect` of what it left."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import jax
import pytest

import jaxstate
from jaxstate.persist.journal import Journal
from jaxstate.persist.places import DATABASE
from tests.cli.conftest import Run, feed
from tests.cli.test_stream import QUESTION, TEXT, expected_answer

# Orbax leaves futures behind when a read fails; what it says of them is not ours.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "feed.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_same_command_goes_on_where_it_was(
    run: Run, tiny: str, file: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "kept"
    command = (
        "stream", "--session", f"feed={file}", "-m", tiny, "--cells", 512, "--journal", journal,
        "--flash", "and?", "--flash-max-tokens", 4, "--ask", QUESTION, "--max-tokens", 8, "--json",
    )  # fmt: skip
    first = run(*command)
    assert first.code == 0, first.err
    lines = TEXT.splitlines(keepends=True)
    (answer,) = first.named("answer")
    assert answer["text"] == expected_answer(tiny, lines)
    again = run(*command)
    assert again.code == 0, again.err
    (recovered,) = again.named("recovered")
    assert (recovered["version"], recovered["last"]) == (len(lines), len(lines))
    assert again.named("answer")[0]["text"] == answer["text"]
    (done,) = again.named("done")
    assert done["version"] == len(lines) and done["metrics"]["counts"]["tokens_ingested"] == 0  # pyright: ignore
    more = [*lines, "one more line\n", "and the last\n"]
    file.write_text("".join(more), encoding="utf-8")
    third = run(*command)
    assert third.code == 0, third.err
    assert third.named("done")[0]["version"] == len(more)
    assert third.named("answer")[0]["text"] == expected_answer(tiny, more)


def test_a_file_that_was_changed_is_not_taken_for_the_same(
    run: Run, tiny: str, file: Path, tmp_path: Path
) -> None:
    command = (
        "stream", "--session", f"feed={file}", "-m", tiny, "--cells", 512,
        "--journal", tmp_path / "kept",
    )  # fmt: skip
    assert run(*command).code == 0
    lines = TEXT.splitlines(keepends=True)
    file.write_text("".join([*lines[:-1], "changed\n"]), encoding="utf-8")
    outcome = run(*command)
    assert (
        outcome.code == 1
        and "is not the line that the session has read there" in outcome.err.replace("\n", " ")
    )


def test_a_file_that_was_cut_is_not_passed_over(
    run: Run, tiny: str, file: Path, tmp_path: Path
) -> None:
    """A log that was rotated: its new lines would look like old ones."""
    command = (
        "stream", "--session", f"feed={file}", "-m", tiny, "--cells", 512,
        "--journal", tmp_path / "kept",
    )  # fmt: skip
    assert run(*command).code == 0
    file.write_text("a new line\n", encoding="utf-8")
    outcome = run(*command)
    lines = len(TEXT.splitlines())
    assert outcome.code == 1 and f"fewer lines than the {lines} of it" in outcome.err


def test_a_pipe_is_new_each_time(
    run: Run, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "kept"
    for number in (1, 2):
        feed(monkeypatch, "a line\nanother\n", {})
        outcome = run(
            "stream", "--session", "feed=-", "-m", tiny, "--cells", 512, "--journal", journal,
            "--json",
        )  # fmt: skip
        assert outcome.code == 0 and outcome.named("done")[0]["version"] == 2 * number


def test_what_does_not_go_together_is_said(run: Run, tiny: str, file: Path, tmp_path: Path) -> None:
    journal = tmp_path / "kept"
    nameless = run("stream", file, "-m", tiny, "--journal", journal)
    assert nameless.code == 1 and "--session NAME=FILE" in nameless.err
    loaded = run(
        "stream", "--session", f"a={file}", "-m", tiny, "--journal", journal, "--load", tmp_path
    )
    assert loaded.code == 1 and "drop --load or --journal" in loaded.err
    held = Journal(journal)
    try:
        busy = run("stream", "--session", f"a={file}", "-m", tiny, "--journal", journal)
    finally:
        held._lock.release()
        held._connection.close()
    assert busy.code == 1 and "in use by another engine" in busy.err


@pytest.fixture
def left(tiny: str, tmp_path: Path) -> Path:
    """A journal with one session that was snapshotted, a fork, and one that was closed."""
    model = jaxstate.load(tiny)
    with jaxstate.Engine(
        model, cells=1024, session_cells=256, warm_up=False, journal=tmp_path / "j"
    ) as engine:
        session = engine.open("feed", prefix="Begin.")
        session.push(TEXT.splitlines())
        session.flash("and?", max_tokens=2)
        session.wait_fresh()
        fork = session.fork("fork")
        fork.push("its own")
        fork.wait()
        engine.open("gone").close()
        session.export(tmp_path / "file")
    return tmp_path / "j"


def test_a_journal_is_shown_and_verified(run: Run, left: Path) -> None:
    shown = run("inspect", left, "--json")
    assert shown.code == 0
    by_id = {one["id"]: one for one in shown.named("session")}
    lines = len(TEXT.splitlines())
    assert by_id["feed"]["version"] == by_id["feed"]["snapshot_version"] == lines
    assert by_id["fork"]["version"] == lines + 1 and by_id["fork"]["forked_from"] == 1
    assert [by_id[name]["open"] for name in ("feed", "fork", "gone")] == [True, True, False]
    assert by_id["feed"]["flash_queries"] == 1
    verified = run("inspect", left, "--verify", "--json")
    assert verified.code == 0, verified.err
    for name, entries in (("feed", lines), ("fork", lines + 1)):
        (one,) = [one for one in verified.named("session") if one["id"] == name]
        assert one["entries"] == entries and one["problems"] == []
        differences = one["differences"]
        assert isinstance(differences, list) and differences and max(differences) < 1e-4
    people = run("inspect", left)
    assert "feed" in people.out and "gone" in people.out and "closed" in people.out


def test_an_exported_session_is_shown(run: Run, left: Path) -> None:
    shown = run("inspect", left.parent / "file", "--json")
    assert shown.code == 0
    assert [one["id"] for one in shown.named("session")] == ["feed"]
    refused = run("inspect", left.parent / "file", "--verify")
    assert refused.code == 1 and "only a journal can be verified" in refused.err


DAMAGE = {
    "an entry": (
        "UPDATE entries SET text = x'00' WHERE log = 1 AND sequence = 2",
        "entry 2 of session 'feed' is missing",
    ),
    "tokens": (
        "UPDATE segments SET tokens = zeroblob(length(tokens))",
        "is missing, or not as it was written",
    ),
    "an opening": ("UPDATE sessions SET prefix = x'00' WHERE key = 1", "not as it was written"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_verify_finds_damage(run: Run, left: Path, what: str) -> None:
    sql, message = DAMAGE[what]
    with contextlib.closing(sqlite3.connect(left / DATABASE)) as database:
        database.execute(sql)
        database.commit()
    outcome = run("inspect", left, "--verify", "--json")
    assert outcome.code == 1
    assert message in json.dumps(outcome.named("session"))


def test_verify_finds_damaged_and_wrong_cells(run: Run, left: Path, tiny: str) -> None:
    """Files that do not match their checksums, and good files of another model's cells."""
    piece = next(iter((left / "segments").iterdir()))
    for file in (piece / "cells").rglob("*"):
        if file.is_file() and file.name != "session.json":
            file.write_bytes(file.read_bytes()[::-1])
    outcome = run("inspect", left, "--verify", "--json")
    assert outcome.code == 1 and "cannot be read" in json.dumps(outcome.named("session"))
    shutil.rmtree(piece)
    outcome = run("inspect", left, "--verify", "--json")
    assert outcome.code == 1 and "not a readable snapshot" in json.dumps(outcome.named("session"))


def test_verify_compares_what_a_model_computes(
    run: Run, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that claims to be the same, and computes something else."""
    from jaxstate.cli import inspect_journal

    def wrong(source: str, dtype: object) -> jaxstate.Model:
        model = jaxstate.load(source)
        other = jax.tree.map(lambda leaf: leaf * 1.01, model.params)
        twin = jaxstate.Model(
            config=model.config,
            params=other,
            tokenizer=model.tokenizer,
            template=model.template,
            steps=model.steps,
            source=model.source,
        )
        monkeypatch.setattr(type(twin), "fingerprint", model.fingerprint)
        return twin

    monkeypatch.setattr(inspect_journal, "load", wrong)
    outcome = run("inspect", left, "--verify", "--json")
    assert outcome.code == 1
    assert "differ from what the model computes" in json.dumps(outcome.named("session"))


def test_no_journal_is_refused(run: Run, tiny: str, tmp_path: Path) -> None:
    assert run("inspect", tmp_path / "nothing").code == 1
    refused = run("inspect", tiny, "--verify")
    assert refused.code == 1 and "only a journal can be verified" in refused.err
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / DATABASE).write_bytes(b"no database" * 100)
    damaged = run("inspect", tmp_path / "j")
    assert damaged.code == 1 and "is not a journal of jaxstate" in damaged.err
