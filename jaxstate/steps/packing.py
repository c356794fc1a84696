"""The rows of a step as integer arrays each way: two uploads and one download a step.

Comes in: rows in Python values, or what a step chose. Goes out: the other side's form. Floats and
unsigned seeds travel as their bits. Does not know: what the rows are for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from jaxstate.cells.pool import Context, KVPool
from jaxstate.cells.tables import Seen
from jaxstate.records import Sampling
from jaxstate.steps.rows import RowChoice
from jaxstate.steps.sampling import SamplingRows

_GREEDY = Sampling()
# Columns before the table: place, tokens, cells used, temperature, top_p, seed, tokens committed.
_HEADER = 7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One row of a step: of a question, or a chunk that becomes cells of a session.

    Attributes:
        seen: the cells that it looks at; of a chunk, what its session has (its table has blocks for
            the new cells as well).
        tokens: int32 [n] to read; none where the device knows the token, which it chose last; to
            score a given answer, the question's last token and the answer.
        blocks: a question's tail blocks, enough for the cells in use and these tokens.
        used_cells: of its tail so far.
        sampling: how the token after these is chosen.
        commits: whether it is a chunk.
    """

    seen: Seen
    tokens: NDArray[np.int32]
    blocks: tuple[int, ...] = ()
    used_cells: int = 0
    sampling: Sampling = _GREEDY
    commits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """Shape of a step: R rows, W tail table entries, T tokens; `no_block` is PT, which pads tables.

    `sessions` S and `rows_each` as in `StepSpec`; `widths` of the sessions' tables.
    """

    rows: int
    width: int
    tokens: int
    no_block: int
    sessions: int
    rows_each: int
    widths: tuple[int, ...]

    @property
    def packed(self) -> tuple[int, int]:
        """[R, 7 + W + T]."""
        return (self.rows, _HEADER + self.width + self.tokens)

    @property
    def contexts(self) -> tuple[int, int]:
        """[S, 2 + the sum of the tables' widths]."""
        return (self.sessions, 2 + sum(self.widths))


@struct.dataclass
class RowArguments:
    """The rows of a step on the device.

    Attributes:
        place: int32 [R], as in `Context`; looked at only where rows are mixed.
        counts: int32 [R], of the tokens; 0 for padding.
        commits: int32 [R], of those that become a session's.
        used: int32 [R], cells in use as the host knows them.
        sampling: [1, R].
        tables: int32 [R, W], PT for padding.
        tokens: int32 [R, T].
    """

    place: Int[Array, " R"]
    counts: Int[Array, " R"]
    commits: Int[Array, " R"]
    used: Int[Array, " R"]
    sampling: SamplingRows
    tables: Int[Array, "R W"]
    tokens: Int[Array, "R T"]


def pack_contexts(seen: Sequence[Seen], shape: RowShape) -> NDArray[np.int32]:
    """What sessions are looked at, as int32 [S, 2 + widths], padded with sessions of no cells."""
    packed = np.zeros(shape.contexts, np.int32)
    for one, line in zip(seen, packed, strict=False):
        line[0], line[1] = one.cells, one.slid_cells
        np.concatenate(one.tables, out=line[2:])
    return packed


def unpack_contexts(
    packed: Int[Array, "S X"], pool: KVPool, rows: RowArguments, shape: RowShape
) -> Context:
    """What `pack_contexts` packed, inside a step."""
    ends = np.cumsum((2, *shape.widths)).tolist()
    tables = tuple(packed[:, a:b] for a, b in itertools.pairwise(ends))
    return Context(
        pool=pool,
        tables=tables,
        lengths=packed[:, 0],
        slid=packed[:, 1],
        place=rows.place if shape.rows_each else None,
        rows_each=shape.rows_each or 1,
    )


def distinct(rows: Sequence[Row]) -> list[list[int]]:
    """Numbers of the rows that look at the same, for each such look, in the order of the rows."""
    members: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(rows):
        members.setdefault(row.seen.together, []).append(number)
    return list(members.values())


def pack_rows(
    rows: Sequence[Row], shape: RowShape, groups: Sequence[Sequence[int]] = ()
) -> NDArray[np.int32]:
    """Rows as int32 [R, 7 + W + T], padded; `groups` as `distinct` gives them, where rows mix."""
    packed = np.zeros(shape.packed, np.int32)
    packed[:, 0] = shape.sessions * max(shape.rows_each, 1)
    packed[:, _HEADER : _HEADER + shape.width] = shape.no_block
    for row, line in zip(rows, packed, strict=False):
        line[1:_HEADER] = _header(row)
        blocks = row.blocks[: shape.width]
        line[_HEADER : _HEADER + len(blocks)] = blocks
        line[_HEADER + shape.width :][: len(row.tokens)] = row.tokens
    for session, members in enumerate(groups if shape.rows_each else ()):
        for slot, number in enumerate(members):
            packed[number, 0] = session * shape.rows_each + slot
    return packed


def _header(row: Row) -> list[int]:
    count = len(row.tokens)
    commits = count if row.commits else 0
    if row.sampling is _GREEDY:
        return [count, row.used_cells, *_GREEDY_BITS, commits]
    return [count, row.used_cells, *_bits(row.sampling), commits]


def _bits(sampling: Sampling) -> tuple[int, ...]:
    """Temperature, top_p and seed as int32."""
    temperature = min(sampling.temperature, float(np.finfo(np.float32).max))
    floats = np.array([temperature, sampling.top_p], np.float32).view(np.int32)
    seed = np.array([sampling.seed], np.uint32).view(np.int32)
    return tuple(np.concatenate([floats, seed]).tolist())


_GREEDY_BITS = _bits(_GREEDY)


def unpack_rows(packed: Int[Array, "R X"], width: int) -> RowArguments:
    """What `pack_rows` packed, inside a step."""
    floats = jax.lax.bitcast_convert_type(packed[:, 3:5], jnp.float32)
    return RowArguments(
        place=packed[:, 0],
        counts=packed[:, 1],
        commits=packed[:, 6],
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
    """What a step chose, [R] each: int32 tokens, float32 log-probabilities and gaps, bool done."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    gaps: NDArray[np.float32]
    done: NDArray[np.bool_]


def pack_choice(chosen: RowChoice) -> Int[Array, "5 R"]:
    """All of a choice but its logits, inside a step."""
    floats = [jax.lax.bitcast_convert_type(x, jnp.int32) for x in (chosen.logprob, chosen.gap)]
    done = [x.astype(jnp.int32) for x in (chosen.done, chosen.was_done)]
    return jnp.stack([chosen.token, *floats, *done])


def chosen_of(packed: Int[Array, "5 R"], logits: Float[Array, "R V"]) -> RowChoice:
    """What `pack_choice` packed, inside a step."""
    logprob, gap = jax.lax.bitcast_convert_type(packed[1:3], jnp.float32)
    return RowChoice(
        token=packed[0],
        logprob=logprob,
        gap=gap,
        done=packed[3] != 0,
        was_done=packed[4] != 0,
        logits=logits,
    )


def unpack_choice(packed: NDArray[np.int32]) -> HostChoices:
    """What `pack_choice` packed, on the host."""
    tokens, logprobs, gaps, done = np.array(packed[:4])
    return HostChoices(tokens, logprobs.view(np.float32), gaps.view(np.float32), done != 0)
