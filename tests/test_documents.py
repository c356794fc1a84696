"""Documents say what is so: their examples run, and their lists are whole."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import jaxstate
from jaxstate.cli.app import app
from tests.tiny_directory import write_directory

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
# What an example on a page takes for granted.
BEFORE = """
import sys, jaxstate
model = jaxstate.load(sys.argv[1])
RULES = "Be short."
"""
SESSION = """
engine = jaxstate.Engine(model, cells=512, warm_up=False)
session = engine.open()
session.push("ACME 101.20")
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as many positions as the examples want."""
    path = write_directory(tmp_path_factory.mktemp("models") / "tiny")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 65_536}))
    return path


@pytest.mark.parametrize(
    ("name", "before"),
    [("engine", ""), ("sessions", ""), ("durability", ""), ("errors", SESSION)],
)
def test_python_runs_as_printed(name: str, before: str, tiny: Path, tmp_path: Path) -> None:
    code = BEFORE + before + "\n".join(blocks(DOCS / f"{name}.md", "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tiny)],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [line.split("  #")[0] for line in lines if line.startswith("jaxstate ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_are_printed(page: Path) -> None:
    """Parsed, not run: what some of them name is the reader's own."""
    group = typer.main.get_command(app)
    for line in commands(page):
        name, *arguments = shlex.split(line)[1:]
        with group.make_context("jaxstate", [name, *arguments]) as context:
            command = group.get_command(context, name)  # pyright: ignore
            assert command is not None, line
            command.make_context(name, arguments, parent=context)


def test_every_command_and_option_is_on_the_page() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    assert {f"jaxstate {name}" for name in group.commands} <= set(  # pyright: ignore
        re.findall(r"jaxstate [a-z]+", text)
    )
    stream = group.commands["stream"]  # pyright: ignore
    options = {one for parameter in stream.params for one in parameter.opts if one[:2] == "--"}
    assert options - set(re.findall(r"--[a-z-]+", text)) == {"--help"} & options


def test_every_event_is_on_the_page() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    source = "".join(path.read_text() for path in (ROOT / "jaxstate" / "cli").glob("*.py"))
    events = set(re.findall(r"\.event\(\s*\"([a-z_]+)\"", source))
    assert len(events) > 10
    assert {name for name in events if f"`{name}`" not in text} == set()


def test_every_error_is_on_the_page() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    errors = [
        name
        for name in jaxstate.__all__
        if inspect.isclass(one := getattr(jaxstate, name)) and issubclass(one, Exception)
    ]
    assert len(errors) > 20
    for name in errors:
        mentioned = text.count(f"`{name}`") + text.count(f" {name}")
        assert mentioned >= 2 or name == "JaxstateError", f"{name}: in the tree and in a table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_calls_of_async_sessions_are_listed_as_they_are() -> None:
    """Awaited or not: the table in engine.md against the classes."""
    text = (DOCS / "engine.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"\| awaited \| not awaited \|\n\|---\|---\|\n\|(.*?)\|(.*?)\|\n", text)
    listed = [set(re.findall(r"`([a-z_]+)`", cell)) for cell in row]
    for kind in (jaxstate.AsyncSession, jaxstate.AsyncEngine):
        for name, member in vars(kind).items():
            if name.startswith("_") or not inspect.isfunction(member) or name == "events":
                continue
            waits = inspect.iscoroutinefunction(member)
            assert name in listed[0 if waits else 1], f"{kind.__name__}.{name}"
