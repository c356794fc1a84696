"""What names a compiled step: its kind and every shape.

Comes in: nothing but values that can be hashed. Goes out: `StepSpec`, the key of the table in
`compiled`, and `Program`, what is compiled for it. Does not know: how a step computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from jaxstate.cells.layout import PoolLayout
from jaxstate.config import ModelConfig
from jaxstate.model.backends import Backend
from jaxstate.model.decoder import Decoder

SessionKind = Literal["open", "extend", "ask", "query", "draw", "ready", "read", "write"]
EngineKind = Literal[
    "pool",
    "rows",
    "copy",
    "poison",
    "wipe",
    "take_ready",
    "put_ready",
    "commit",
    "start",
    "more",
    "decode",
    "draw_rows",
    "score",
]
StepKind = SessionKind | EngineKind

# Blocks that one call copies within the pool.
COPY_BLOCKS = 16
# Blocks of a group that one call moves between the pool and the host.
MOVED_BLOCKS = 8


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """Names one executable.

    Attributes:
        kind: which step.
        config: the model's.
        dtype: of parameters and cells.
        backend: what computes attention.
        layout: the session's shapes.
        tokens: T, where the step takes tokens.
        tail_cells: M, where it takes a tail.
        group: of layers, where it moves blocks between that group and the host.
        rows: R, where it takes questions that share a `RowPool`.
        sessions: S, how many sessions its rows look at: 1, as many as there are rows, or mixed.
        rows_each: how many rows may look at one session, where they are mixed; 0 where not.
        row_pool: that pool's blocks and cells of each.
    """

    kind: StepKind
    config: ModelConfig
    dtype: jnp.dtype
    backend: Backend
    layout: PoolLayout
    tokens: int = 0
    tail_cells: int = 0
    group: int = 0
    rows: int = 0
    sessions: int = 1
    rows_each: int = 0
    row_pool: tuple[int, int] = (0, 0)

    @property
    def decoder(self) -> Decoder:
        """What computes its forward pass."""
        return Decoder(config=self.config, dtype=self.dtype, backend=self.backend)


@dataclass(frozen=True)
class Program:
    """A function to compile.

    Attributes:
        function: pure.
        arguments: their shapes, as pytrees of `jax.ShapeDtypeStruct`.
        donated: which of them it takes over.
    """

    function: Callable[..., Any]
    arguments: tuple[object, ...]
    donated: tuple[int, ...] = ()
