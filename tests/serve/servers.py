"""A real server process over loopback, on a tiny model."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

# Fewer and smaller sizes than the default, so that there is less to compile.
STEPS = """\
block_cells = 16
extend_tokens = [64]
question_tokens = [16, 64]
tail_cells = [256]
question_rows = [1, 8]
step_sessions = [1, 8]
"""
READY_S = 120.0


class Server:
    """`jaxstate serve` as people start it.

    Args:
        model: a directory.
        place: for what it needs.
        options: of the command line.
    """

    def __init__(self, model: str, place: Path, *options: str | Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        steps = place / "steps.toml"
        steps.write_text(STEPS)
        command = [sys.executable, "-m", "jaxstate", "serve", "-m", model, "--steps", str(steps)]
        if not any(str(one) == "--port" for one in options):
            command += ["--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--cells", "4096", "--session-cells", "1024", *map(str, options)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._address()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.log.extend(iter(self._process.stderr.readline, ""))

    def _address(self) -> str:
        ends_s = time.monotonic() + READY_S
        while time.monotonic() < ends_s and self._process.poll() is None:
            for line in tuple(self.log):
                if found := re.search(r"listening at (http://\S+)", line):
                    return found[1]
            time.sleep(0.02)
        raise AssertionError("".join(self.log))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self) -> Server:
        ends_s = time.monotonic() + READY_S
        while time.monotonic() < ends_s and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError("".join(self.log))

    def rss_bytes(self) -> int:
        """Of its memory, what is in use."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 60.0) -> int:
        """Its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        self._reader.join(5)
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop(signal.SIGKILL)
        if self._process.stderr is not None:
            self._process.stderr.close()


@contextlib.contextmanager
def served(model: str, place: Path, *options: str | Path) -> Iterator[Server]:
    with Server(model, place, *options) as server:
        yield server.wait_ready()
