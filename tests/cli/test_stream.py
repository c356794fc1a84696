"""`jaxstate stream` and `ask`: what is read, answered, saved, refused, and with which exit code."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

import jaxstate
from jaxstate.cli import inputs
from jaxstate.cli.signals import Interrupt
from jaxstate.persist.files import inspect_snapshot
from tests.cli.conftest import Run, feed
from tests.tiny_directory import directory_model, write_directory

TEXT = "first line\nsecond line\nthird line\n"
QUESTION = "what?"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def expected_answer(
    model_path: str, entries: list[str], max_tokens: int = 8, question: str = QUESTION
) -> str:
    """What the functional core answers."""
    model = jaxstate.load(model_path)
    template, tokenizer = model.template, model.text
    tokens = template.open_tokens(tokenizer, "")
    for entry in entries:
        tokens += template.entry_tokens(tokenizer, entry)
    state = jaxstate.extend(model, jaxstate.init_state(model, 512), tokens)
    asked = template.question_tokens(tokenizer, question)
    result = jaxstate.query(model, state, asked, max_tokens=max_tokens, stop=template.stop)
    return (result.text or "").strip()


def test_reads_answers_and_saves(run: Run, tiny: str, document: Path, tmp_path: Path) -> None:
    saved = tmp_path / "session"
    outcome = run(
        "stream", document, "-m", tiny, "--cells", 256, "--ask", QUESTION,
        "--max-tokens", 8, "--save", saved, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    versions = [event["version"] for event in outcome.named("read")]
    assert versions == sorted(set(versions))
    assert versions[-1] == 3
    (answer,) = outcome.named("answer")
    assert answer["text"] == expected_answer(tiny, TEXT.splitlines(keepends=True))
    assert (answer["source"], answer["version"]) == ("computed", 3)
    (done,) = outcome.named("done")
    assert done["metrics"]["counts"]["entries_committed"] == 3  # pyright: ignore
    # A byte is a token, and BOS is one more.
    assert (done["version"], done["cells"], done["exit_code"]) == (3, len(TEXT) + 1, 0)
    assert inspect_snapshot(saved).notes["entries"] == 3


def test_plain_output_is_for_people(run: Run, tiny: str, document: Path) -> None:
    outcome = run("stream", document, "-m", tiny, "--cells", 256, "--ask", QUESTION)
    assert outcome.code == 0
    assert f"Q: {QUESTION}" in outcome.out
    assert "version 3" in outcome.out
    assert "{" not in outcome.out


def test_asks_every_so_many_lines_and_not_twice_at_the_end(
    run: Run, tiny: str, document: Path
) -> None:
    arguments = ("stream", document, "-m", tiny, "--cells", 256, "--ask", QUESTION, "--json")
    assert [e["version"] for e in run(*arguments, "--every", 2).named("answer")] == [2, 3]
    assert [e["version"] for e in run(*arguments, "--every", 3).named("answer")] == [3]


def test_reads_standard_input(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, TEXT, {})
    outcome = run("stream", "-", "-m", tiny, "--cells", 256, "--json")
    assert (outcome.code, outcome.named("done")[0]["version"]) == (0, 3)


def test_goes_on_with_a_saved_session(run: Run, tiny: str, document: Path, tmp_path: Path) -> None:
    saved, rest = tmp_path / "session", tmp_path / "rest.txt"
    rest.write_text("fourth line\n", encoding="utf-8")
    run("stream", document, "-m", tiny, "--cells", 256, "--save", saved)
    outcome = run(
        "stream", rest, "--load", saved, "--save", saved, "--ask", QUESTION,
        "--max-tokens", 8, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.named("done")[0]["version"] == 4
    whole = (TEXT + "fourth line\n").splitlines(keepends=True)
    assert outcome.named("answer")[0]["text"] == expected_answer(tiny, whole)


def test_asks_a_saved_session(run: Run, tiny: str, document: Path, tmp_path: Path) -> None:
    saved = tmp_path / "session"
    run("stream", document, "-m", tiny, "--cells", 256, "--save", saved)
    outcome = run("ask", saved, QUESTION, "and?", "--max-tokens", 8, "--json")
    assert outcome.code == 0
    answers = outcome.named("answer")
    assert [answer["question"] for answer in answers] == [QUESTION, "and?"]
    assert answers[0]["text"] == expected_answer(tiny, TEXT.splitlines(keepends=True))


def test_a_prefix_is_read_first(run: Run, tiny: str, document: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix.txt"
    prefix.write_text("a prefix\n", encoding="utf-8")
    outcome = run("stream", document, "-m", tiny, "--cells", 256, "--prefix", prefix, "--json")
    assert outcome.named("done")[0]["cells"] == len("a prefix\n" + TEXT) + 1


class TestRefusals:
    """Exit code 1, a message that names the cause, and what was read kept where asked."""

    def test_empty_file(self, run: Run, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "empty").write_bytes(b"")
        outcome = run("stream", tmp_path / "empty", "-m", tiny, "--cells", 256)
        assert outcome.code == 1
        assert "is empty: nothing was read" in outcome.err

    def test_missing_file(self, run: Run, tiny: str, tmp_path: Path) -> None:
        outcome = run("stream", tmp_path / "none", "-m", tiny)
        assert outcome.code == 1
        assert "No such file" in outcome.err

    def test_missing_model(self, run: Run, document: Path, tmp_path: Path) -> None:
        outcome = run("stream", document, "-m", tmp_path / "none")
        assert outcome.code == 1
        assert "there is no model at" in outcome.err

    def test_bytes_that_are_not_utf8(self, run: Run, tiny: str, tmp_path: Path) -> None:
        source, saved = tmp_path / "bytes", tmp_path / "session"
        source.write_bytes(b"good\nb\xffd\nnever read\n")
        outcome = run("stream", source, "-m", tiny, "--cells", 256, "--save", saved, "--json")
        assert outcome.code == 1
        assert "line 2 is not UTF-8" in str(outcome.named("error")[0]["message"])
        assert not saved.exists(), "found before anything was loaded"
        replaced = run("stream", source, "-m", tiny, "--cells", 256, "--replace-invalid", "--json")
        assert (replaced.code, replaced.named("done")[0]["version"]) == (0, 3)

    def test_bytes_in_a_pipe_that_are_not_utf8(
        self, run: Run, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody could know; what came before them is kept."""
        saved = tmp_path / "session"
        monkeypatch.setattr(inputs, "standard_input", lambda: io.BytesIO(b"good\nb\xffd\nno\n"))
        outcome = run("stream", "-", "-m", tiny, "--cells", 256, "--save", saved, "--json")
        assert outcome.code == 1
        assert "line 2 is not UTF-8" in str(outcome.named("error")[0]["message"])
        assert inspect_snapshot(saved).notes["entries"] == 1

    def test_a_line_longer_than_the_session(self, run: Run, tiny: str, tmp_path: Path) -> None:
        source, saved = tmp_path / "long", tmp_path / "session"
        source.write_text("short\n" + "x" * 300 + "\n", encoding="utf-8")
        outcome = run("stream", source, "-m", tiny, "--cells", 256, "--save", saved)
        assert outcome.code == 1
        assert "line 2: the entry has 301 tokens" in outcome.err
        assert inspect_snapshot(saved).notes["entries"] == 1

    def test_a_full_session(self, run: Run, tiny: str, tmp_path: Path) -> None:
        source, saved = tmp_path / "full", tmp_path / "session"
        source.write_text("x" * 99 + "\n" + "y" * 199 + "\n", encoding="utf-8")
        outcome = run("stream", source, "-m", tiny, "--cells", 256, "--save", saved)
        assert outcome.code == 1
        assert "line 2: the session is full: it holds 101 of 256 cells" in outcome.err
        assert "saved version 1" in outcome.out

    def test_a_save_path_that_is_something_else_is_refused_before_reading(
        self, run: Run, tiny: str, document: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (other / "mine").write_text("keep", encoding="utf-8")
        outcome = run("stream", document, "-m", tiny, "--save", other, "--json")
        assert outcome.code == 1
        assert not outcome.named("read")
        assert (other / "mine").read_text(encoding="utf-8") == "keep"

    def test_a_session_of_another_model(
        self, run: Run, tiny: str, document: Path, tmp_path: Path
    ) -> None:
        saved = tmp_path / "session"
        run("stream", document, "-m", tiny, "--cells", 256, "--save", saved)
        other = write_directory(tmp_path / "other", seed=1)
        outcome = run("ask", saved, QUESTION, "-m", other)
        assert outcome.code == 1
        assert "was saved with another model" in outcome.err

    def test_a_question_without_room(
        self, run: Run, tiny: str, document: Path, tmp_path: Path
    ) -> None:
        saved = tmp_path / "session"
        outcome = run(
            "stream", document, "-m", tiny, "--cells", 256, "--ask", "x" * 1100,
            "--save", saved, "--json",
        )  # fmt: skip
        assert outcome.code == 1
        assert "the largest declared tail holds 1024" in str(outcome.named("error")[0]["message"])
        assert not outcome.named("read") and not saved.exists(), "refused before anything was read"

    def test_a_prefix_with_a_saved_session(
        self, run: Run, tiny: str, document: Path, tmp_path: Path
    ) -> None:
        saved = tmp_path / "session"
        run("stream", document, "-m", tiny, "--cells", 256, "--save", saved)
        outcome = run("stream", document, "--load", saved, "--prefix", document)
        assert outcome.code == 1
        assert "drop --prefix or --load" in outcome.err


class TestInterrupt:
    """Ctrl-C never leaves half an entry."""

    def test_between_entries_it_is_only_noted(self) -> None:
        interrupt = Interrupt()
        interrupt.press(2, None)
        assert interrupt.pressed

    def test_a_second_one_stops_at_once(self) -> None:
        interrupt = Interrupt()
        interrupt.press(2, None)
        with pytest.raises(KeyboardInterrupt):
            interrupt.press(2, None)

    def test_what_was_read_is_saved(
        self,
        run: Run,
        tiny: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        press: Callable[[], None],
    ) -> None:
        saved = tmp_path / "session"
        feed(monkeypatch, TEXT, {3: press})
        outcome = run("stream", "-", "-m", tiny, "--cells", 256, "--save", saved, "--json")
        assert outcome.code == 130
        assert outcome.named("done")[0]["exit_code"] == 130
        assert inspect_snapshot(saved).notes["entries"] == 2

    def test_a_second_one_while_it_saves_ends_it_without_a_word(
        self,
        run: Run,
        tiny: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        press: Callable[[], None],
    ) -> None:
        monkeypatch.setattr(jaxstate.Session, "save", lambda *_, **__: press())
        feed(monkeypatch, TEXT, {3: press})
        outcome = run("stream", "-", "-m", tiny, "--cells", 256, "--save", tmp_path / "s", "--json")
        assert outcome.code == 130
        assert not outcome.named("done")
        assert not outcome.named("error")


def test_the_directory_holds_the_model_that_it_was_made_from(tiny: str) -> None:
    loaded, made = jaxstate.load(tiny), directory_model()
    assert loaded.fingerprint == made.fingerprint
    assert loaded.text.encode("é\n") == [*"é\n".encode()]
