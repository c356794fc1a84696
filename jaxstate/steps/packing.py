"""The rows of a step as one integer array each way: one upload and one download a step.

Comes in: rows in Python values, or what a step chose. Goes out: the other side's form. Floats and
unsigned seeds travel as their bits. Does not know: what the rows are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int
from numpy.typing import NDArray

from jaxstate.records import Sampling
from jaxstate.steps.rows import RowChoice
from jaxstate.steps.sampling import SamplingRows

_GREEDY = Sampling()
# Columns before the table: cells seen, tokens, cells used, temperature, top_p, seed.
_HEADER = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RowInput:
    """One row of a step.

    Attributes:
        blocks: its tail blocks.
        tokens: int32 [n] to read; none where the device knows the token.
        used_cells: of its tail.
        sampling: how it chooses.
    """

    blocks: tuple[int, ...]
    tokens: NDArray[np.int32]
    used_cells: int = 0
    sampling: Sampling = _GREEDY


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """Shape of a step: Q rows, W table entries, T tokens; `no_block` is PT, which pads tables."""

    rows: int
    width: int
    tokens: int
    no_block: int

    @property
    def packed(self) -> tuple[int, int]:
        """[Q, 6 + W + T]."""
        return (self.rows, _HEADER + self.width + self.tokens)


@struct.dataclass
class RowArguments:
    """The rows of a step on the device.

    Attributes:
        seen: int32 [], committed cells that all of them look at.
        counts: int32 [Q], of the tokens; 0 for padding.
        used: int32 [Q], cells in use as the host knows them.
        sampling: [1, Q].
        tables: int32 [Q, W], PT for padding.
        tokens: int32 [Q, T].
    """

    seen: Int[Array, ""]
    counts: Int[Array, " Q"]
    used: Int[Array, " Q"]
    sampling: SamplingRows
    tables: Int[Array, "Q W"]
    tokens: Int[Array, "Q T"]


def pack_rows(rows: Sequence[RowInput], seen_cells: int, shape: RowShape) -> NDArray[np.int32]:
    """Rows as int32 [Q, 6 + W + T], padded."""
    packed = np.zeros(shape.packed, np.int32)
    packed[:, 0] = seen_cells
    packed[:, _HEADER : _HEADER + shape.width] = shape.no_block
    for row, line in zip(rows, packed, strict=False):
        line[1:_HEADER] = _header(row)
        blocks = row.blocks[: shape.width]
        line[_HEADER : _HEADER + len(blocks)] = blocks
        line[_HEADER + shape.width :][: len(row.tokens)] = row.tokens
    return packed


def _header(row: RowInput) -> NDArray[np.int32]:
    sampling = row.sampling
    temperature = min(sampling.temperature, float(np.finfo(np.float32).max))
    counts = np.array([len(row.tokens), row.used_cells], np.int32)
    floats = np.array([temperature, sampling.top_p], np.float32).view(np.int32)
    return np.concatenate([counts, floats, np.array([sampling.seed], np.uint32).view(np.int32)])


def unpack_rows(packed: Int[Array, "Q X"], width: int) -> RowArguments:
    """What `pack_rows` packed, inside a step."""
    floats = jax.lax.bitcast_convert_type(packed[:, 3:5], jnp.float32)
    return RowArguments(
        seen=packed[0, 0],
        counts=packed[:, 1],
        used=packed[:, 2],
        sampling=SamplingRows(
            temperature=floats[None, :, 0],
            top_p=floats[None, :, 1],
            seed=jax.lax.bitcast_convert_type(packed[None, :, 5], jnp.uint32),
        ),
        tables=packed[:, _HEADER : _HEADER + width],
        tokens=packed[:, _HEADER + width :],
    )


@dataclass(frozen=True, slots=True, eq=False)
class HostChoices:
    """What a step chose, [Q] each: int32 tokens, float32 log-probabilities and gaps, bool done."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    gaps: NDArray[np.float32]
    done: NDArray[np.bool_]


def pack_choice(chosen: RowChoice) -> Int[Array, "4 Q"]:
    """All of a choice but its logits, inside a step."""
    floats = [jax.lax.bitcast_convert_type(x, jnp.int32) for x in (chosen.logprob, chosen.gap)]
    return jnp.stack([chosen.token, *floats, chosen.done.astype(jnp.int32)])


def unpack_choice(packed: NDArray[np.int32]) -> HostChoices:
    """What `pack_choice` packed, on the host."""
    tokens, logprobs, gaps, done = np.array(packed)
    return HostChoices(tokens, logprobs.view(np.float32), gaps.view(np.float32), done != 0)
