"""A batch shared by several devices is learnt from as on one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import TOML

PROGRAM = """
import sys
import jax
from jaxstate.cli import main
if __name__ == "__main__":  # workers import this, too
    assert jax.device_count() == int(sys.argv[1])
    sys.argv[1:] = ["train", sys.argv[2], "--into", sys.argv[3], "--workers", "1"]
    main()
"""


def test_two_devices_learn_what_one_does(directory: Path, tmp_path: Path) -> None:
    config, program = tmp_path / "config.toml", tmp_path / "program.py"
    config.write_text(TOML.replace("steps = 4", "steps = 20").replace("accumulate = 2", ""))
    program.write_text(PROGRAM)
    losses = {}
    for count in (1, 2):
        into = tmp_path / str(count)
        shutil.copytree(directory, into)
        flag = f"--xla_force_host_platform_device_count={count}"
        subprocess.run(
            [sys.executable, program, str(count), config, into],
            env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
            timeout=240,
        )
        reports = map(json.loads, (into / "log.jsonl").read_text().splitlines())
        losses[count] = [one["loss"] for one in reports if "loss" in one]
    assert losses[1] and losses[2] == pytest.approx(losses[1], rel=1e-3)
