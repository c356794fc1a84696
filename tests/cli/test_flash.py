"""`jaxstate stream --flash` and `--policy`: what is kept answered, told, dropped and refused."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jaxstate.cli import streaming
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.protocol import StepKind
from jaxstate.persist.files import inspect_snapshot
from jaxstate.steps.packing import Row
from tests.cli.conftest import Run, feed, terminal
from tests.cli.test_stream import QUESTION, TEXT, expected_answer

OTHER = "and?"
ENTRIES = TEXT.splitlines(keepends=True)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_flash_answers_are_fresh_at_the_end(run: Run, tiny: str, document: Path) -> None:
    outcome = run(
        "stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION, "--flash", OTHER,
        "--flash-max-tokens", 8, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    final = {event["question"]: event for event in outcome.named("final")}
    told = {event["question"]: event for event in outcome.named("flash")}
    assert set(final) == set(told) == {QUESTION, OTHER}
    for question, event in final.items():
        assert (event["version"], event["fresh"]) == (3, True)
        assert event["text"] == expected_answer(tiny, ENTRIES, question=question)
        assert {**event, "event": "flash", "time": told[question]["time"]} == {
            name: value for name, value in told[question].items() if name != "fired"
        }
    fields = set(told[QUESTION])
    assert fields >= {"id", "confidence", "logprob", "latency_s", "fired"}
    names = [event["event"] for event in outcome.events]
    assert names[-1] == "done"
    assert "final" not in names[: names.index("flash")]


def test_an_answer_never_comes_before_its_version_is_told(
    run: Run, tiny: str, document: Path
) -> None:
    outcome = run("stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION, "--json")
    read = 0
    for event in outcome.events:
        if event["event"] == "read":
            read = event["version"]
        elif event["event"] == "flash":
            assert event["version"] <= read  # pyright: ignore[reportOperatorIssue]


def test_a_flash_question_is_answered_between_lines(
    run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the third line is awaited, the second is read and the answer told."""
    seen: list[tuple[int, str]] = []
    tell = streaming.Follower._tell_flash

    def noted(self: streaming.Follower, query: object, answer: object, *, fired: bool) -> None:
        tell(self, query, answer, fired=fired)  # pyright: ignore[reportArgumentType]
        seen.append((answer.version, answer.text))  # pyright: ignore[reportAttributeAccessIssue]

    def until_told() -> None:
        ends_s = time.monotonic() + 60
        while (not seen or seen[-1][0] < 2) and time.monotonic() < ends_s:
            time.sleep(0.01)

    monkeypatch.setattr(streaming.Follower, "_tell_flash", noted)
    feed(monkeypatch, TEXT, {3: until_told})
    outcome = run(
        "stream", "-", "-m", tiny, "--cells", 256, "--flash", QUESTION, "--flash-max-tokens", 8
    )
    assert outcome.code == 0
    assert dict(seen)[2] == expected_answer(tiny, ENTRIES[:2])
    assert dict(seen)[3] == expected_answer(tiny, ENTRIES)


def test_people_without_a_terminal_get_lines(run: Run, tiny: str, document: Path) -> None:
    outcome = run("stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION)
    assert outcome.code == 0
    assert f"version 3: {QUESTION} -> " in outcome.out
    assert f"at the end, fresh, version 3: {QUESTION} -> " in outcome.out
    assert "(confidence " in outcome.out
    assert "version 3: 35 of 256 cells" in outcome.err
    assert "{" not in outcome.out


def test_people_with_a_terminal_get_a_table(
    run: Run, tiny: str, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(monkeypatch)
    outcome = run("stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION)
    assert outcome.code == 0
    for word in ("reading", "lag", "cells in use", "35 of 256", "age", QUESTION):
        assert word in outcome.err
    for word in ("flash queries", QUESTION, "fresh", "confidence"):
        assert word in outcome.out
    assert " -> " not in outcome.out


def test_asks_come_after_the_flash_answers_and_use_them(
    run: Run, tiny: str, document: Path
) -> None:
    outcome = run(
        "stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION, "--ask", QUESTION,
        "--ask", OTHER, "--max-tokens", 16, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    answers = outcome.named("answer")
    assert [answer["source"] for answer in answers] == ["flash", "computed"]
    assert answers[0]["text"] == outcome.named("final")[0]["text"]


def test_every_with_flash(run: Run, tiny: str, document: Path) -> None:
    outcome = run(
        "stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION, "--ask", OTHER,
        "--every", 1, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    assert [answer["version"] for answer in outcome.named("answer")] == [1, 2, 3]
    assert outcome.named("final")[0]["version"] == 3


def test_a_restored_session_keeps_flash_questions_answered(
    run: Run, tiny: str, document: Path, tmp_path: Path
) -> None:
    saved, rest = tmp_path / "session", tmp_path / "rest.txt"
    rest.write_text("fourth line\n", encoding="utf-8")
    run("stream", document, "-m", tiny, "--cells", 256, "--save", saved)
    outcome = run("stream", rest, "--load", saved, "--flash", QUESTION, "--json")
    (final,) = outcome.named("final")
    assert (outcome.code, final["version"], final["fresh"]) == (0, 4, True)
    assert [event["version"] for event in outcome.named("read")] == [4]


class Gate(threading.Event):
    """What a device waits for, and whether it does so already."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()


class TestPolicy:
    """What happens when lines come faster than they are read."""

    @pytest.fixture
    def slow(self, monkeypatch: pytest.MonkeyPatch) -> Gate:
        """Nothing is read until this is set."""
        go = Gate()
        launch = DeviceExecutor.run

        def waiting(self: DeviceExecutor, kind: StepKind, rows: Sequence[Row]) -> object:
            if kind == "extend":
                go.reached.set()
                go.wait(60)
            return launch(self, kind, rows)

        monkeypatch.setattr(DeviceExecutor, "run", waiting)
        return go

    def arguments(self, tiny: str, policy: str) -> tuple[str | int, ...]:
        return (
            "stream", "-", "-m", tiny, "--cells", 256, "--policy", policy, "--queue", 2, "--json"
        )  # fmt: skip

    def test_drop_oldest_says_what_was_dropped(
        self, run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch, slow: Gate
    ) -> None:
        # The opening is under way before the first line comes, so that no chunk has lines in it.
        before = {1: lambda: slow.reached.wait(60), 6: slow.set}
        feed(monkeypatch, "1\n2\n3\n4\n5\n", before)
        outcome = run(*self.arguments(tiny, "drop_oldest"))
        assert outcome.code == 0
        told = outcome.named("dropped")
        spans = [span for event in told for span in event["spans"]]  # pyright: ignore
        assert spans == [{"first": number, "last": number} for number in (1, 2, 3)]
        assert sum(event["lines"] for event in told) == 3  # pyright: ignore
        assert len(told) < 3  # what comes within a second is said at once
        (done,) = outcome.named("done")
        assert (done["version"], done["cells"], done["dropped"]) == (5, 1 + len("4\n5\n"), 3)

    def test_reject_stops_and_names_the_line(
        self, run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch, slow: Gate
    ) -> None:
        threading.Timer(1.0, slow.set).start()
        feed(monkeypatch, "1\n2\n3\n4\n", {})
        outcome = run(*self.arguments(tiny, "reject"))
        assert outcome.code == 1
        assert str(outcome.named("error")[0]["message"]).startswith("line 3: 1 entries do not fit")
        assert outcome.named("done")[0]["version"] == 2

    def test_block_reads_everything(
        self, run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch, slow: Gate
    ) -> None:
        threading.Timer(0.3, slow.set).start()
        feed(monkeypatch, "1\n2\n3\n4\n5\n", {})
        outcome = run(*self.arguments(tiny, "block"))
        (done,) = outcome.named("done")
        assert (outcome.code, done["version"], done["dropped"]) == (0, 5, 0)

    def test_another_policy(self, run: Run, document: Path) -> None:
        assert run("stream", document, "-m", "x", "--policy", "newest").code == 2


class TestRefusals:
    """Exit code 1 or 2, before anything is read."""

    def test_a_flash_question_without_room(self, run: Run, tiny: str, document: Path) -> None:
        outcome = run(
            "stream", document, "-m", tiny, "--cells", 256, "--flash", "x" * 1100, "--json"
        )
        assert outcome.code == 1
        assert "the largest declared tail holds 1024" in str(outcome.named("error")[0]["message"])
        assert not outcome.named("read")
        assert not outcome.named("done")

    def test_a_flash_question_twice(self, run: Run, tiny: str, document: Path) -> None:
        outcome = run(
            "stream", document, "-m", tiny, "--cells", 256, "--flash", OTHER, "--flash", OTHER
        )
        assert outcome.code == 1
        assert "is registered already" in outcome.err

    def test_an_empty_flash_question(self, run: Run, tiny: str, document: Path) -> None:
        outcome = run("stream", document, "-m", tiny, "--cells", 256, "--flash", "")
        assert outcome.code == 1
        assert "--flash '' is empty: ask something" in outcome.err

    def test_every_without_ask(self, run: Run, tiny: str, document: Path) -> None:
        outcome = run("stream", document, "-m", tiny, "--every", 2, "--flash", QUESTION)
        assert outcome.code == 1
        assert "add --ask, or drop --every" in outcome.err

    @pytest.mark.parametrize(
        "option",
        [("--flash-max-tokens", 0), ("--queue", 1), ("--every", 0), ("--cells", 0)],
    )
    def test_numbers_that_mean_nothing(
        self, run: Run, document: Path, option: tuple[str, int]
    ) -> None:
        assert run("stream", document, "-m", "x", *map(str, option)).code == 2

    def test_an_empty_stream(self, run: Run, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "empty").write_bytes(b"")
        outcome = run("stream", tmp_path / "empty", "-m", tiny, "--cells", 256, "--flash", QUESTION)
        assert outcome.code == 1
        assert "is empty: nothing was read" in outcome.err


def test_a_flash_question_that_cannot_be_answered_is_an_error(
    run: Run, tiny: str, tmp_path: Path
) -> None:
    """The session grows to where the question would reach past the model's positions."""
    source, saved, short = tmp_path / "long", tmp_path / "session", tmp_path / "short"
    source.write_text(("x" * 23 + "\n") * 10, encoding="utf-8")
    shutil.copytree(tiny, short)
    config = json.loads((short / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 256
    (short / "config.json").write_text(json.dumps(config), encoding="utf-8")
    outcome = run("stream", source, "-m", short, "--flash", QUESTION, "--save", saved, "--json")
    assert outcome.code == 1
    assert "this model was made for 256" in str(outcome.named("flash_error")[-1]["message"])
    assert f"{QUESTION} was not answered" in str(outcome.named("error")[0]["message"])
    assert inspect_snapshot(saved).notes["entries"] == 10


class TestInterrupt:
    """Ctrl-C while flash queries are kept answered."""

    def test_while_a_line_is_awaited(
        self,
        run: Run,
        tiny: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        press: Callable[[], None],
    ) -> None:
        saved = tmp_path / "session"
        feed(monkeypatch, TEXT, {3: press})
        outcome = run(
            "stream", "-", "-m", tiny, "--cells", 256, "--flash", QUESTION, "--ask", OTHER,
            "--save", saved, "--json",
        )  # fmt: skip
        assert outcome.code == 130
        (answer,) = outcome.named("answer")  # what was to be asked is asked, as far as was read
        assert (answer["question"], answer["version"]) == (OTHER, 2)
        assert outcome.named("done")[0]["version"] == 2
        assert inspect_snapshot(saved).notes["entries"] == 2

    def test_while_flash_answers_are_awaited(
        self, run: Run, tiny: str, document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The wait ends, the session is saved, and nothing stale is called fresh."""
        wait = streaming.wait_until_answered

        def interrupted(session: streaming.Session, go_on: Callable[[], bool]) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            while go_on():
                time.sleep(0.01)
            wait(session, go_on)

        launch = DeviceExecutor.run

        def refusing(self: DeviceExecutor, kind: StepKind, rows: Sequence[Row]) -> object:
            if kind == "start":
                raise RuntimeError("never answered")
            return launch(self, kind, rows)

        monkeypatch.setattr(streaming, "wait_until_answered", interrupted)
        monkeypatch.setattr(DeviceExecutor, "run", refusing)
        saved = tmp_path / "session"
        outcome = run(
            "stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION, "--save", saved,
            "--json",
        )  # fmt: skip
        assert outcome.code == 130
        assert not [event for event in outcome.named("final") if event["fresh"]]
        assert outcome.named("done")[0]["exit_code"] == 130
        assert inspect_snapshot(saved).notes["entries"] == 3


class Broken(io.StringIO):
    """A pipe whose reader goes away after the first line."""

    def write(self, text: str, /) -> int:
        if "\n" in self.getvalue():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def test_a_reader_that_goes_away_ends_it(
    run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `jaxstate stream … | head -1`: no traceback, no exit code 0."""
    feed(monkeypatch, TEXT, {3: lambda: time.sleep(0.5)})
    monkeypatch.setattr("sys.stdout", Broken())
    outcome = run("stream", "-", "-m", tiny, "--cells", 256, "--flash", QUESTION, "--json")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err


def test_events_that_were_not_read_in_time_are_made_up_for(
    run: Run, tiny: str, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All events but the first are lost; how things stand at the end is told all the same."""
    subscribe = streaming.Session.subscribe

    def lossy(self: streaming.Session, **options: object) -> object:
        subscription = subscribe(self, **options)  # pyright: ignore[reportArgumentType]
        subscription.offer = lambda event: True  # pyright: ignore
        return subscription

    monkeypatch.setattr(streaming.Session, "subscribe", lossy)
    outcome = run("stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION, "--json")
    assert outcome.code == 0
    assert [event["version"] for event in outcome.named("read")] == [3]
    (told,) = outcome.named("flash")
    assert (told["version"], told["fresh"]) == (3, True)


def test_a_follower_that_was_dropped_listens_anew(
    run: Run, tiny: str, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe, made = streaming.Session.subscribe, []

    def first_is_dropped(self: streaming.Session, **options: object) -> object:
        subscription = subscribe(self, **options)  # pyright: ignore[reportArgumentType]
        if not made:
            subscription.close("dropped: 1 events were not read in time")
        made.append(subscription)
        return subscription

    monkeypatch.setattr(streaming.Session, "subscribe", first_is_dropped)
    outcome = run("stream", document, "-m", tiny, "--cells", 256, "--flash", QUESTION, "--json")
    assert outcome.code == 0
    assert len(made) == 2
    assert "dropped" in str(outcome.named("missed")[0]["message"])
    assert outcome.named("final")[0]["fresh"]
