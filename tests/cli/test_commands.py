"""The other commands: help, inspect, and the compilation cache."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from jaxstate.cli import runtime
from jaxstate.cli.demo_text import QUESTIONS
from jaxstate.config import StepConfig
from jaxstate.errors import InvalidInput
from tests.cli.conftest import Run


@pytest.mark.parametrize("command", ["", "stream", "ask", "inspect", "demo", "train"])
def test_help_says_what_a_command_does(run: Run, command: str) -> None:
    outcome = run(*command.split(), "--help")
    assert outcome.code == 0
    assert "Usage: jaxstate" in outcome.out


def test_unknown_options_are_refused(run: Run) -> None:
    assert run("stream", "x", "--no-such-option").code == 2


def test_inspect_a_model(run: Run, tiny: str) -> None:
    outcome = run("inspect", tiny, "--json")
    (model,) = outcome.named("model")
    assert outcome.code == 0
    assert (model["family"], model["layers"], model["vocabulary"]) == ("llama", 2, 258)
    assert model["windows"] == "2 layers see all"
    assert "llama" in run("inspect", tiny).out


def test_inspect_a_session(run: Run, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a\nb\n", encoding="utf-8")
    run("stream", tmp_path / "text", "-m", tiny, "--cells", 256, "--save", tmp_path / "s")
    (session,) = run("inspect", tmp_path / "s", "--json").named("session")
    assert (session["cells"], session["capacity_cells"], session["entries"]) == (5, 256, 2)
    assert session["model"] == tiny


def test_inspect_nothing(run: Run, tmp_path: Path) -> None:
    outcome = run("inspect", tmp_path)
    assert outcome.code == 1
    assert "is no model" in outcome.err


def test_inspect_a_damaged_session(run: Run, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text("{", encoding="utf-8")
    outcome = run("inspect", tmp_path)
    assert outcome.code == 1
    assert "not a readable snapshot" in outcome.err


def test_step_sizes_come_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "steps.toml"
    path.write_text("tail_cells = [256]\n", encoding="utf-8")
    assert runtime.read_steps(path) == StepConfig(tail_cells=(256,))
    assert runtime.read_steps(None) == StepConfig()
    with pytest.raises(InvalidInput, match="cannot be read"):
        runtime.read_steps(tmp_path / "none")


def test_the_compilation_cache_lies_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert runtime.use_compilation_cache() == tmp_path / "jaxstate" / "xla"
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
        assert runtime.use_compilation_cache() == tmp_path / "mine"
        # What a program chose before stays.
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "chosen"))
        assert runtime.use_compilation_cache() == tmp_path / "chosen"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_the_demo_asks_within_its_document() -> None:
    document = Path(runtime.__file__).parent.parent / "data" / "constitution.txt"
    lines = document.read_text(encoding="utf-8").splitlines()
    assert len(lines) == max(version for version, _ in QUESTIONS)
    assert len(" ".join(lines).split()) == 9185


def test_a_training_begins_with_a_model_whose_vocabulary_it_can_use(
    run: Run, tiny: str, tmp_path: Path
) -> None:
    config = Path(__file__).parents[2] / "configs" / "train" / "streams-20m.toml"
    outcome = run("train", config, "--into", tmp_path / "run", "--from", tiny)
    assert outcome.code == 1
    assert "has no tokenizer.model" in outcome.err
    assert not (tmp_path / "run").exists(), "found before anything was written"
