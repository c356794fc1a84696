"""`jaxstate stream --window`: a stream that is longer than its session goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_stream import QUESTION, expected_answer

LINES = [f"{'abc'[n % 3]}{n:03d} goes on and on\n" for n in range(60)]


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    path = tmp_path / "feed.txt"
    path.write_text("".join(LINES), encoding="utf-8")
    return path


def seen(event: dict[str, object]) -> list[int]:
    """Numbers of the lines that an answer saw."""
    visible = event["visible"]
    assert isinstance(visible, list)
    return [n for one in visible for n in range(one["first"], one["last"] + 1)]


@pytest.mark.parametrize("window", [["200t"], ["9e"], ["key=^[a-c]"], ["300t", "20e"]])
def test_a_stream_longer_than_its_session(
    run: Run, tiny: str, feed: Path, window: list[str]
) -> None:
    budgets = [word for one in window for word in ("--window", one)]
    outcome = run(
        "stream", feed, "-m", tiny, "--cells", 480, *budgets,
        "--ask", QUESTION, "--max-tokens", 8, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (answer,), (done,) = outcome.named("answer"), outcome.named("done")
    assert (answer["version"], done["version"]) == (60, 60)
    numbers = seen(answer)
    assert numbers[-1] == 60 and len(numbers) < 40
    entries = [LINES[number - 1] for number in numbers]
    assert answer["text"] == expected_answer(tiny, entries)
    moved = outcome.named("window")
    assert moved and all(event["version"] < 60 for event in moved)
    gone = [n for event in moved for name in ("left", "replaced") for n in seen_in(event, name)]
    assert sorted(gone + numbers) == list(range(1, 61))


def seen_in(event: dict[str, object], name: str) -> list[int]:
    return seen({"visible": event[name]})


def test_people_see_where_the_window_begins(run: Run, tiny: str, feed: Path) -> None:
    outcome = run("stream", feed, "-m", tiny, "--cells", 480, "--window", "200t", "--ask", QUESTION)
    assert outcome.code == 0
    assert "version 60 (" in outcome.err and " lines from " in outcome.err


def test_a_journal_keeps_the_window_until_another_is_given(
    run: Run, tiny: str, feed: Path, tmp_path: Path
) -> None:
    same = ("-m", tiny, "--cells", 480, "--journal", tmp_path / "j", "--ask", QUESTION, "--json")
    first = run("stream", *same, "--session", f"web={feed}", "--window", "200t")
    assert first.code == 0, first.err
    with feed.open("a", encoding="utf-8") as file:
        file.writelines(LINES)
    again = run("stream", *same, "--session", f"web={feed}")
    assert again.code == 0, again.err
    assert again.named("answer")[0]["version"] == 120
    assert 5 < len(seen(again.named("answer")[0])) < 30
    with feed.open("a", encoding="utf-8") as file:
        file.writelines(LINES[:20])
    # Also without the option there was room beside it for what is read anew.
    (done,) = again.named("done")
    metrics = done["metrics"]
    assert isinstance(metrics, dict) and metrics["counts"]["windows_moved_in_place"] == 0
    other = run("stream", *same, "--session", f"web={feed}", "--window", "3e", "--hop", "0.3")
    assert other.code == 0, other.err
    assert len(seen(other.named("answer")[0])) <= 4
    verified = run("inspect", tmp_path / "j", "--verify", "--json")
    assert verified.code == 0, verified.err
    (session,) = verified.named("session")
    assert session["problems"] == [] and session["differences"], "a snapshot was compared"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--window", "4096"], "4096t (tokens)"),
        (["--window", "key=("], "is no regular expression"),
        (["--window", "5t", "--window", "6t"], "given twice"),
        (["--hop", "0.5"], "add --window"),
        (["--slide"], "add --window"),
        (["--window", "key=x", "--slide"], "give one of them up"),
        (["--window", "5t", "--hop", "2"], "at most 1"),
        (["--window", "10000t"], "do not fit behind a prefix"),
    ],
)
def test_windows_that_cannot_be(
    run: Run, tiny: str, feed: Path, wrong: list[str], said: str
) -> None:
    outcome = run("stream", feed, "-m", tiny, "--cells", 480, *wrong)
    assert outcome.code == 1 and said in outcome.err.replace("\n", " ")
