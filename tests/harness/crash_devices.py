"""What an engine that will be killed runs on: few cells, small pieces, many snapshots.

Comes in: the name of a device. Goes out: a model, an executor, the engine's bounds. Does not know:
processes, clients.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.executor.protocol import Executor, HostCells
from jaxstate.engine.types.options import EngineConfig
from jaxstate.model.bundle import Model
from jaxstate.persist.files import Note
from jaxstate.testing.byte_tokenizer import ByteTokenizer
from jaxstate.testing.clock import FakeClock
from jaxstate.testing.fake_executor import Call, FakeExecutor
from jaxstate.testing.fake_limits import FAKE_LIMITS, fake_layout
from jaxstate.testing.tiny import TINY_CONFIG, TINY_STEPS, tiny_model
from jaxstate.text import plain_template

CrashDevice: TypeAlias = Literal["fake", "tiny"]

SESSION_CELLS = 384
# Less than all sessions have, so that they move.
_CELLS = 3 * SESSION_CELLS
# Time for entries to wait in, at most.
_EXTEND_S = 0.002
# Few shapes, so that a process soon begins.
_STEPS = dataclasses.replace(
    TINY_STEPS,
    extend_tokens=(16,),
    question_tokens=(32,),
    tail_cells=(64,),
    choice_tokens=(8,),
    question_rows=(1,),
    step_sessions=(1,),
    session_rows=1,
)
# Of pieces, so that a full session has several.
_SNAPSHOT_BYTES: dict[CrashDevice, int] = {"fake": 256, "tiny": 16 << 10}


def model_of(device: CrashDevice) -> Model:
    """What the engine is given: "fake" needs only text, "tiny" has random weights."""
    if device == "tiny":
        return tiny_model(steps=_STEPS)
    tokenizer = ByteTokenizer()
    template = plain_template(tokenizer.bos)
    return Model(config=TINY_CONFIG, params={}, tokenizer=tokenizer, template=template)


def config_of(device: CrashDevice) -> EngineConfig:
    """Short queues, so that policies count, and snapshots all the time."""
    return EngineConfig(
        queue_entries=8, snapshot_s=0.02, snapshot_bytes=_SNAPSHOT_BYTES[device], flash_limit=8
    )


def device_of(device: CrashDevice, model: Model, saving: Callable[[], None]) -> Executor:
    """An executor that calls `saving` before it writes a piece of a snapshot."""
    return _FakeDevice(saving) if device == "fake" else _TinyDevice(model, saving)


class _FakeDevice(FakeExecutor):
    """Takes real time to read."""

    def __init__(self, saving: Callable[[], None]) -> None:
        layout = fake_layout(SESSION_CELLS, _CELLS)
        super().__init__(FakeClock(), limits=dataclasses.replace(FAKE_LIMITS, layout=layout))
        self._saving = saving

    def _call(
        self,
        call: Call,
        sessions: tuple[int, ...],
        rows: int = 0,
        tokens: int = 0,
        chunks: tuple[int, ...] = (),
    ) -> None:
        super()._call(call, sessions, rows, tokens, chunks)
        if call == "extend":
            time.sleep(random.random() * _EXTEND_S)

    def save(
        self, path: str | os.PathLike[str], cells: HostCells, notes: Mapping[str, Note]
    ) -> None:
        """Tells first."""
        self._saving()
        super().save(path, cells, notes)


class _TinyDevice(DeviceExecutor):
    def __init__(self, model: Model, saving: Callable[[], None]) -> None:
        super().__init__(model, session_cells=SESSION_CELLS, cells=_CELLS, sessions=8)
        self._saving = saving

    def save(
        self, path: str | os.PathLike[str], cells: HostCells, notes: Mapping[str, Note]
    ) -> None:
        """Tells first."""
        self._saving()
        super().save(path, cells, notes)
