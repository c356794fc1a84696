"""Processes that are there to be killed, one at a time, and what they report.

Comes in: orders. Goes out: their reports, as they come. A process of ours forks them
(`crash_child`), since this one has threads and a device. Does not know: what the orders mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from tests.harness.crash_known import Report

_READ_BYTES = 1 << 16


class Nursery:
    """Forks processes, and kills them. A context manager.

    Args:
        folder: for what they share: what was compiled, and what they write as errors.
    """

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "errors.txt"
        self._rest = b""
        self._reports: deque[Report] = deque()
        self._pid: int | None = None
        # A step that another process has compiled need not be compiled again.
        caches = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness.crash_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **caches},
            )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()

    def order(self, order: Mapping[str, object]) -> None:
        """A new process, after the one before has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> bool:
        """SIGKILL, if there is one that did not end; whether there is."""
        if self._pid is None:
            return False
        os.kill(self._pid, signal.SIGKILL)
        return True

    def read(self, until_s: float) -> Report | None:
        """The next report; None if there is none by then, in monotonic seconds.

        Raises:
            RuntimeError: the process that forks has ended.
        """
        while not self._reports:
            left_s = max(0.0, until_s - time.monotonic())
            assert self._process.stdout is not None
            ready, _, _ = select.select([self._process.stdout], [], [], left_s)
            if not ready:
                return None
            self._take(os.read(self._process.stdout.fileno(), _READ_BYTES))
        report = self._reports.popleft()
        if "born" in report:
            self._pid = report["born"]
        elif "ended" in report:
            self._pid = None
        return report

    def errors(self) -> str:
        """What was written as errors."""
        return self._errors.read_text(encoding="utf-8", errors="replace")

    def _take(self, read: bytes) -> None:
        if not read:
            raise RuntimeError(f"nobody is left who could fork:\n{self.errors()}")
        *lines, self._rest = (self._rest + read).split(b"\n")
        for line in filter(None, lines):
            # A process that was killed may have left half a line.
            with contextlib.suppress(json.JSONDecodeError):
                self._reports.append(json.loads(line))
