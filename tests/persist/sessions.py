"""Sessions to save, and how two of them are compared: by the bits of all that they need."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

import jaxstate
from jaxstate.config import StepConfig
from jaxstate.model.bundle import Model
from jaxstate.testing import TINY_CONFIG, ByteTokenizer
from tests.reference import layers_of_pool, random_model

CELLS = 75  # 19 blocks: more than one copy moves, the last one half used
STEPS = StepConfig(block_cells=4, extend_tokens=(16,), question_tokens=(4,), tail_cells=(8,))
STREAM = np.random.default_rng(0).integers(0, 256, CELLS).tolist()


@functools.cache
def model_of(dtype: DTypeLike = np.float32) -> Model:
    """Every step compiled."""
    made = random_model(TINY_CONFIG, STEPS, seed=5, dtype=dtype, tokenizer=ByteTokenizer())
    jaxstate.warm_up(made, CELLS)
    return made


def read(length: int, model: Model | None = None, cells: int = CELLS) -> jaxstate.SessionState:
    model = model or model_of()
    state = jaxstate.init_state(model, cells)
    return jaxstate.extend(model, state, STREAM[:length]) if length else state


def kept(state: jaxstate.SessionState) -> list[bytes]:
    """The bytes of everything that a session needs, in stream order, wherever it lies."""
    layout, length = state.layout, int(state.length)
    found = [np.asarray(state.ready).tobytes(), np.asarray(state.length).tobytes()]
    layers = layers_of_pool(layout.layer_groups, state.pool)
    for layer, group in enumerate(layout.layer_groups):
        window, table = layout.groups[group].window, np.asarray(state.tables[group])
        first = 0 if window is None else max(0, length - window + 1)
        at = np.arange(first, length)
        blocks = table[at // layout.block_cells % len(table)]
        for part in layers[layer]:
            found.append(part[blocks, at % layout.block_cells].tobytes())
    return found


def answers(model: Model, state: jaxstate.SessionState) -> list[tuple[bytes, ...]]:
    results = [jaxstate.query(model, state, asked, max_tokens=4) for asked in ([1, 2], [200])]
    return [(r.tokens.tobytes(), r.logits.tobytes(), r.logprobs.tobytes()) for r in results]


def check_equal(a: jaxstate.SessionState, b: jaxstate.SessionState, model: Model) -> None:
    assert a.length.dtype == b.length.dtype == np.int32
    assert a.ready.dtype == b.ready.dtype
    assert kept(a) == kept(b)
    assert answers(model, a) == answers(model, b)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
