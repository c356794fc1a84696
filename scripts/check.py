"""Format, lint and types, as people, pre-commit and CI run them: scripts/check.py [--fix]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXING = (("ruff", "check", "--fix", "."), ("ruff", "format", "."))
CHECKING = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("pyright",))


def main() -> int:
    """Runs each tool of this interpreter's environment; 1 if any complains."""
    commands = (FIXING if "--fix" in sys.argv[1:] else ()) + CHECKING
    failed = False
    for name, *arguments in commands:
        print(f"> {name} {' '.join(arguments)}", flush=True)
        failed |= subprocess.run([sys.executable, "-m", name, *arguments], cwd=ROOT).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
