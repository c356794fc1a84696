"""What the command line refuses before it loads a model, in the words of its options; and asking
what was kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import jaxstate
from jaxstate.persist.places import locked
from tests.cli.conftest import Run
from tests.tiny_directory import write_directory

LINES = "".join(f"line {number} of a log\n" for number in range(12))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.write_text(LINES, encoding="utf-8")
    return path


class TestBefore:
    """Whatever can be refused is refused before a model is loaded, and says what was given."""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"is empty: nothing was read"),
            (b"PK\x03\x04", r"is a zip archive: unzip -p .* \| jaxstate stream -"),
            (b"%PDF-1.7", r"is a PDF: pdftotext"),
            (b"abc\x00def\n", r"is no text: byte 4 of it is zero"),
            (b"one\ntwo \xff\n", r"line 2 is not UTF-8: byte 0xff at column 5"),
            ("a\n".encode("utf-16"), r"UTF-16 by its byte order mark"),
        ],
    )
    def test_files(self, run: Run, tiny: str, tmp_path: Path, content: bytes, message: str) -> None:
        source = tmp_path / "source"
        source.write_bytes(content)
        ended = run("stream", source, "-m", tiny, "--cells", 512)
        assert ended.code == 1
        assert re.search(message, ended.err), ended.err
        assert "loading" not in ended.err

    def test_a_character_that_the_first_block_cuts_is_no_fault(
        self, run: Run, tiny: str, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"a\n" * 32_767 + b"x" + "é\n".encode())  # 65,535 bytes, then two
        ended = run("stream", source, "-m", tiny, "--cells", 64)
        assert "is not UTF-8" not in ended.err and "loading" in ended.err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--ask", "q", "--max-tokens", "5000"], r"--max-tokens 5000: .*nothing was read"),
            (
                ["--flash", "q", "--flash-max-tokens", "5000"],
                r"--flash-max-tokens 5000: a question and its answer have 1024 tokens at most",
            ),
            (["--every", "3"], "--every says when to ask, but not what"),
        ],
    )
    def test_options(
        self, run: Run, tiny: str, log: Path, options: list[str], message: str
    ) -> None:
        ended = run("stream", log, "-m", tiny, *options)
        assert ended.code == 1
        assert re.search(message, ended.err), ended.err
        assert "loading" not in ended.err

    def test_the_dtype_of_a_saved_session(
        self, run: Run, tiny: str, log: Path, tmp_path: Path
    ) -> None:
        saved = tmp_path / "saved"
        common = ["--cells", "512", "--dtype", "bfloat16"]
        assert run("stream", log, "-m", tiny, *common, "--save", saved).code == 0
        for command in (["stream", log, "--load", saved], ["ask", saved, "q"]):
            ended = run(*command, "--dtype", "float32")
            assert ended.code == 1
            assert "--dtype float32: the session at" in ended.err
            assert "was saved in bfloat16" in ended.err and "loading" not in ended.err
        assert "in bfloat16" in run("ask", saved, "q").err  # as it was saved

    def test_a_journal_that_is_in_use(self, run: Run, tiny: str, log: Path, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        lock = locked(kept)
        try:
            ended = run("stream", "-m", tiny, "--journal", kept, "--session", f"a={log}")
        finally:
            lock.release()
        assert ended.code == 1
        assert "is in use by another engine" in ended.err and "loading" not in ended.err

    def test_one_bad_file_of_several_fails_alone(
        self, run: Run, tiny: str, log: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").touch()
        both = ["--session", f"a={tmp_path / 'empty'}", "--session", f"b={log}"]
        ended = run("stream", "-m", tiny, "--cells", 512, *both, "--json")
        assert ended.code == 1
        assert {one["session"]: one["version"] for one in ended.named("done")} == {"a": 0, "b": 12}
        asked = run("stream", "-m", tiny, "--cells", 512, *both, "--ask", "q", "--json")
        assert {one["session"] for one in asked.named("answer")} == {"b"}  # a has read nothing
        alone = run("stream", "-m", tiny, *both[:2])
        assert "is empty" in alone.err and "loading" not in alone.err


class TestSameModel:
    """What was kept with one model is not gone on with by another."""

    def test_a_journal_keeps_its_model(
        self, run: Run, tiny: str, log: Path, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        session = ["--session", f"a={log}"]
        assert run("stream", "-m", tiny, "--cells", 512, "--journal", kept, *session).code == 0
        for command in (["stream", "--journal", kept, *session], ["ask", kept, "q"]):
            ended = run(*command, "-m", "smollm2-135m")
            assert ended.code == 1
            assert f"the journal {kept} was made with {tiny}" in ended.err
            assert "opening" not in ended.err
        again = run("stream", "--cells", 512, "--journal", kept, *session)  # it names its model
        assert again.code == 0 and f"opening {tiny}" in again.err

    def test_so_does_a_saved_session(self, run: Run, tiny: str, log: Path, tmp_path: Path) -> None:
        saved = tmp_path / "saved"
        first = run("stream", log, "-m", tiny, "--cells", 512, "--save", saved)
        assert first.code == 0 and "in place of" not in first.out
        again = run("stream", log, "-m", tiny, "--cells", 512, "--save", saved)
        assert "in place of the session there" in again.out
        for command in (["stream", log, "--load", saved], ["ask", saved, "q"]):
            ended = run(*command, "-m", "smollm2-135m")
            assert ended.code == 1
            assert (
                "--model smollm2-135m: the session at" in ended.err and "opening" not in ended.err
            )


class TestWords:
    """Errors speak of options, not of Python's arguments."""

    def test_a_question_that_is_too_long(self, run: Run, tiny: str, log: Path) -> None:
        ended = run("stream", log, "-m", tiny, "--cells", 512, "--ask", "x" * 1100)
        assert ended.code == 1
        assert "lower --max-tokens, or give larger tail_cells with --steps" in ended.err
        assert "StepConfig" not in ended.err and "version" not in ended.err

    def test_unknown_fields_and_templates(self, run: Run, log: Path, tmp_path: Path) -> None:
        other = write_directory(tmp_path / "other")
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "new_field": 1}))
        broken = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
        settings = json.loads((other / "tokenizer_config.json").read_text())
        (other / "tokenizer_config.json").write_text(
            json.dumps({**settings, "chat_template": broken})
        )
        common = ["stream", log, "-m", other, "--cells", 512]
        assert "--ignore new_field" in run(*common).err
        assert "--template plain" in run(*common, "--ignore", "new_field").err
        ended = run(*common, "--ignore", "new_field", "--template", "plain")
        assert ended.code == 0, ended.err

    def test_several_files(self, run: Run, tiny: str, log: Path) -> None:
        ended = run("stream", log, "other/db.log", "-m", tiny)
        assert ended.code == 1
        assert f"--session app={log} --session db=other/db.log" in ended.err

    def test_names_that_are_nearly_right(self, run: Run, log: Path) -> None:
        assert "did you mean smollm2-135m?" in run("stream", log, "-m", "smolm2-135m").err
        assert "nowhere is no path here" in run("inspect", "nowhere").err

    def test_version(self, run: Run) -> None:
        ended = run("--version")
        assert (ended.code, ended.out) == (0, f"jaxstate {jaxstate.__version__}\n")


class TestJournal:
    def test_ask_asks_its_sessions(self, run: Run, tiny: str, log: Path, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        both = ["--session", f"a={log}", "--session", f"b={log}"]
        made = run("stream", "-m", tiny, "--cells", 512, "--journal", kept, *both)
        assert made.code == 0, made.err
        ended = run("ask", kept, "Who?", "--cells", 512, "--json")
        assert ended.code == 0, ended.err
        versions = {one["session"]: one["version"] for one in ended.named("answer")}
        assert versions == {"a": 12, "b": 12}
        one = run("ask", kept, "Who?", "--cells", 512, "--session", "b")
        assert one.code == 0 and "b: Q: Who?" in one.out and "a: Q" not in one.out
        wrong = run("ask", kept, "Who?", "--session", "c")
        assert wrong.code == 1 and "it has " in wrong.err and "loading" not in wrong.err

    def test_what_is_neither(self, run: Run, tmp_path: Path) -> None:
        ended = run("ask", tmp_path, "Who?")
        assert ended.code == 1
        assert "neither a saved session nor a journal" in ended.err
