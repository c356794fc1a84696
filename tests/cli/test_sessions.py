"""`jaxstate stream --session`: several inputs at once, each into its own session."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from jaxstate.cli import inputs
from jaxstate.persist.files import inspect_snapshot
from tests.cli.conftest import Outcome, Run, feed, terminal
from tests.cli.test_stream import QUESTION, TEXT, expected_answer

TEXTS = {"a": TEXT, "b": "another\nstream\n", "c": "only one line\n"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """By the names of their sessions."""
    paths = {name: tmp_path / f"{name}.txt" for name in TEXTS}
    for name, path in paths.items():
        path.write_text(TEXTS[name], encoding="utf-8")
    return paths


def sessions(files: Mapping[str, Path | str]) -> tuple[str, ...]:
    return tuple(part for name, path in files.items() for part in ("--session", f"{name}={path}"))


def by_session(outcome: Outcome, event: str) -> dict[object, dict[str, object]]:
    """The last event of that name for each session."""
    return {one["session"]: one for one in outcome.named(event)}


def test_each_input_goes_into_its_own_session(
    run: Run, tiny: str, files: dict[str, Path], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    outcome = run(
        "stream", *sessions(files), "-m", tiny, "--cells", 256, "--ask", QUESTION,
        "--flash", "and?", "--max-tokens", 8, "--flash-max-tokens", 8, "--save", saved, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    done, answers, final = (by_session(outcome, name) for name in ("done", "answer", "final"))
    assert set(done) == set(answers) == set(final) == set(TEXTS)
    assert all("session" in event for event in outcome.events)
    for name, text in TEXTS.items():
        entries = text.splitlines(keepends=True)
        assert answers[name]["text"] == expected_answer(tiny, entries)
        assert final[name]["text"] == expected_answer(tiny, entries, question="and?")
        assert (final[name]["version"], final[name]["fresh"]) == (len(entries), True)
        assert (done[name]["exit_code"], done[name]["saved"]) == (0, str(saved / name))
        assert inspect_snapshot(saved / name).notes["entries"] == len(entries)


def test_saved_sessions_go_on_under_their_names(
    run: Run, tiny: str, files: dict[str, Path], tmp_path: Path
) -> None:
    saved, wanted = tmp_path / "saved", {name: files[name] for name in "ab"}
    run("stream", *sessions(files), "-m", tiny, "--cells", 256, "--save", saved)
    outcome = run("stream", *sessions(wanted), "--load", saved, "--save", saved, "--json")
    assert outcome.code == 0
    assert {name: one["version"] for name, one in by_session(outcome, "done").items()} == {
        "a": 6,
        "b": 4,
    }
    assert [inspect_snapshot(saved / name).notes["entries"] for name in "abc"] == [6, 4, 1]


def test_one_prefix_is_read_once_for_all(
    run: Run, tiny: str, files: dict[str, Path], tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix.txt"
    prefix.write_text("what all have in common\n" * 8, encoding="utf-8")
    wanted = {name: files[name] for name in "ab"}
    outcome = run(
        "stream", *sessions(wanted), "-m", tiny, "--cells", 512, "--prefix", prefix, "--json"
    )
    assert outcome.code == 0
    opening = len(prefix.read_text()) + 1
    done = by_session(outcome, "done")
    for name in wanted:
        assert done[name]["cells"] == opening + len(TEXTS[name])
    counts = outcome.named("done")[-1]["metrics"]["counts"]  # pyright: ignore[reportIndexIssue]
    both = opening + sum(len(TEXTS[name]) for name in wanted)
    assert both <= counts["tokens_ingested"] < both + opening


def test_an_empty_file_is_the_fault_of_its_session_only(
    run: Run, tiny: str, files: dict[str, Path], tmp_path: Path
) -> None:
    files["b"].write_bytes(b"")
    outcome = run(
        "stream", *sessions(files), "-m", tiny, "--cells", 256, "--save", tmp_path / "s", "--json"
    )
    assert outcome.code == 1
    (error,) = outcome.named("error")
    assert (error["session"], error["message"]) == (
        "b",
        f"{files['b']} is empty: nothing was read",
    )
    codes = {name: one["exit_code"] for name, one in by_session(outcome, "done").items()}
    assert codes == {"a": 0, "b": 1, "c": 0}


def test_an_input_that_fails_in_the_middle_leaves_the_others_alone(
    run: Run, tiny: str, files: dict[str, Path], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    files["b"].write_bytes(b"good\nb\xffd\nnever read\n")
    outcome = run("stream", *sessions(files), "-m", tiny, "--cells", 256, "--save", saved)
    assert outcome.code == 1
    assert "b: line 2 is not UTF-8" in outcome.err.replace("\n", " ")
    assert [inspect_snapshot(saved / name).notes["entries"] for name in "abc"] == [3, 1, 1]


def test_a_file_that_breaks_while_it_is_read(
    run: Run, tiny: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError(5, "Input/output error")

    feed(monkeypatch, TEXT, {2: broken})
    wanted = {"a": files["a"], "pipe": "-"}
    outcome = run("stream", *sessions(wanted), "-m", tiny, "--cells", 256, "--json")
    assert outcome.code == 1
    assert outcome.named("error")[0]["message"] == "- cannot be read: Input/output error"
    versions = {name: one["version"] for name, one in by_session(outcome, "done").items()}
    assert versions == {"a": 3, "pipe": 1}


def test_a_session_that_cannot_be_saved_is_the_only_one(
    run: Run, tiny: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    in_the_way = saved / "b"

    def put_in_the_way() -> None:
        saved.mkdir(exist_ok=True)
        in_the_way.write_text("a file", encoding="utf-8")

    feed(monkeypatch, TEXT, {2: put_in_the_way})
    wanted = {"a": files["a"], "b": "-"}
    outcome = run(
        "stream", *sessions(wanted), "-m", tiny, "--cells", 256, "--save", saved, "--json"
    )
    assert outcome.code == 1
    done = by_session(outcome, "done")
    assert done["a"]["saved"] == str(saved / "a")
    beside = Path(str(done["b"]["saved"]))
    assert beside.name.startswith("b-") and beside.parent == saved
    assert inspect_snapshot(beside).length > 0
    assert done["b"]["exit_code"] == 1
    assert "is not a snapshot" in str(outcome.named("error")[0]["message"])


class TestPipes:
    """An input that says nothing holds up nobody."""

    def test_a_file_is_done_and_saved_while_a_pipe_says_nothing(
        self,
        run: Run,
        tiny: str,
        files: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        saved = tmp_path / "saved"
        seen: list[bool] = []

        def until_the_other_is_saved() -> None:
            ends_s = time.monotonic() + 60
            while not (saved / "a" / "session.json").exists() and time.monotonic() < ends_s:
                time.sleep(0.01)
            seen.append((saved / "a" / "session.json").exists())

        feed(monkeypatch, TEXT, {1: until_the_other_is_saved})
        wanted = {"pipe": "-", "a": files["a"]}
        outcome = run(
            "stream", *sessions(wanted), "-m", tiny, "--cells", 256, "--save", saved, "--json"
        )
        assert outcome.code == 0
        assert seen == [True]
        assert [one["session"] for one in outcome.named("done")] == ["a", "pipe"]

    def test_named_pipes(self, run: Run, tiny: str, tmp_path: Path) -> None:
        """One of them has no writer for a while: opening it waits, for its own session only."""
        pipes = {name: tmp_path / name for name in ("early", "late")}
        for path in pipes.values():
            os.mkfifo(path)

        def write() -> None:
            for name, path in pipes.items():
                path.write_text(f"{name}\n", encoding="utf-8")

        writer = threading.Thread(target=write)
        writer.start()
        outcome = run("stream", *sessions(pipes), "-m", tiny, "--cells", 256, "--json")
        writer.join()
        assert outcome.code == 0
        assert {one["version"] for one in outcome.named("done")} == {1}

    def test_ctrl_c_saves_every_session(
        self,
        run: Run,
        tiny: str,
        files: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        press: Callable[[], None],
    ) -> None:
        silent, saved = tmp_path / "silent", tmp_path / "saved"
        os.mkfifo(silent)
        feed(monkeypatch, TEXT, {3: press})
        wanted = {"pipe": "-", "silent": silent}
        outcome = run(
            "stream", *sessions(wanted), "-m", tiny, "--cells", 256, "--save", saved, "--json"
        )
        os.close(os.open(silent, os.O_RDWR))  # lets the thread that opens it go
        assert outcome.code == 130
        assert [inspect_snapshot(saved / name).notes["entries"] for name in wanted] == [2, 0]
        assert {one["exit_code"] for one in outcome.named("done")} == {130}


class TestPeople:
    """What is shown without --json."""

    def test_lines_begin_with_the_name_of_their_session(
        self, run: Run, tiny: str, files: dict[str, Path]
    ) -> None:
        outcome = run(
            "stream", *sessions(files), "-m", tiny, "--cells", 256, "--ask", QUESTION,
            "--flash", QUESTION,
        )  # fmt: skip
        assert outcome.code == 0
        for name, text in TEXTS.items():
            version = text.count("\n")
            assert f"{name}: Q: {QUESTION}\n{name}: A: " in outcome.out
            assert f"{name}: at the end, fresh, version {version}: {QUESTION} -> " in outcome.out
            assert f"{name}: version {version}: {len(text) + 1} of 256 cells" in outcome.err

    def test_a_terminal_shows_a_row_for_each(
        self, run: Run, tiny: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal(monkeypatch)
        outcome = run("stream", *sessions(files), "-m", tiny, "--cells", 256, "--flash", QUESTION)
        assert outcome.code == 0
        for word in ("session", "residency", "device", "cells in use"):
            assert word in outcome.err
        for name, text in TEXTS.items():
            rows = [line for line in outcome.err.split("\n") if line.startswith(f" {name} ")]
            assert any(f"{len(text) + 1} of 256" in row for row in rows)
            answers = [line for line in outcome.out.split("\n") if line.startswith(f" {name} ")]
            assert any("fresh" in line for line in answers)


class TestRefusals:
    """Exit code 1 and a message that says what to do, before a model is looked for."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--session", "a"), "'a' must be NAME=FILE"),
            (("--session", "a="), "'a=' must be NAME=FILE"),
            (("--session", "=b.txt"), "the name '' must be"),
            (("--session", "../a=b.txt"), "the name '../a' must be"),
            (("--session", "..=b.txt"), "the name '..' must be"),
            (("--session", "a=none.txt"), "none.txt cannot be read: No such file"),
            (("--session", "a=."), ". cannot be read: Is a directory"),
            (("--session", "a=-", "--session", "a=-"), "the session 'a' is given more than once"),
            (("--session", "a=-", "--session", "b=-"), "the input '-' is given more than once"),
            (("-", "--session", "a=-"), "'-' and --session: give one FILE"),
            ((), "what is to be read?"),
            (("--session", "a=-", "--every", "2"), "add --ask, or drop --every"),
            (("--session", "a=-", "--load", "none"), "not a readable snapshot"),
        ],
    )
    def test_arguments(self, run: Run, arguments: tuple[str, ...], message: str) -> None:
        outcome = run("stream", *arguments, "-m", "no-such-model", "--json")
        assert outcome.code == 1
        assert message in str(outcome.named("error")[0]["message"])

    @pytest.mark.parametrize("name", ["file", "session", "other"])
    def test_places_to_save_to(
        self, run: Run, files: dict[str, Path], tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "file").write_text("mine", encoding="utf-8")
        (tmp_path / "session").mkdir()
        (tmp_path / "session" / "session.json").write_text("{}", encoding="utf-8")
        (tmp_path / "other" / "b").mkdir(parents=True)
        (tmp_path / "other" / "b" / "mine").write_text("mine", encoding="utf-8")
        outcome = run("stream", *sessions(files), "-m", "no-such-model", "--save", tmp_path / name)
        assert outcome.code == 1
        assert "choose another" in outcome.err
        assert "no-such-model" not in outcome.err


def test_a_pipe_is_not_opened_before_it_is_read(tmp_path: Path) -> None:
    """Or its one writer would find a reader that goes away again."""
    os.mkfifo(tmp_path / "pipe")
    (one,) = inputs.inputs_of(None, [f"a={tmp_path / 'pipe'}"])
    assert (one.name, one.title, one.label, one.is_bulk) == ("a", "a", "a: ", False)
