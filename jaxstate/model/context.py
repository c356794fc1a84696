"""One layer's share of what questions look at: committed cells, and their own.

Comes in: a `Context`, queries in the order in which their rows came. Goes out: the layer's share of
the context, and the queries with those of one session side by side, there and back. Does not know:
how attention is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxstate.cells.pool import Context, GroupCells
from jaxstate.config import ModelConfig
from jaxstate.model.attention import Partial


class Heads(NamedTuple):
    """N query heads, and K heads of keys and as many of values."""

    queries: int
    keys: int


def split_heads(
    qkv: Float[Array, "*batch G H"], kv_heads: int
) -> tuple[Float[Array, "*batch N H"], Float[Array, "*batch K H"], Float[Array, "*batch K H"]]:
    """Queries, keys and values that lie side by side, G = N + 2 K heads."""
    first = qkv.shape[-2] - 2 * kv_heads
    return (
        qkv[..., :first, :],
        qkv[..., first : first + kv_heads, :],
        qkv[..., first + kv_heads :, :],
    )


@struct.dataclass
class LayerContext:
    """One layer's share of a `Context`: layer number `layer` of `cells`.

    The number is an array, so that layers of one kind are the same computation.
    """

    cells: GroupCells
    layer: Int[Array, ""]
    table: Int[Array, "B W"]
    lengths: Int[Array, " B"]
    place: Int[Array, " R"] | None
    rows_each: int = struct.field(pytree_node=False)


@struct.dataclass
class Packed:
    """Sessions that are among the tokens themselves, for training: rows [B, R, T], of which the
    first `session_rows` are a session, one after the other, and the others look at it.

    Every row sees the session's cells before its own first position, and its own tokens up to each.

    Attributes:
        session_rows: so many.
        seen_rows: the other rows come in as many equal runs; for each run, of how many of the
            session's first rows its own may see something: the rest is not looked at.
    """

    session_rows: int = struct.field(pytree_node=False)
    seen_rows: tuple[int, ...] = struct.field(pytree_node=False)


@struct.dataclass
class LayerTail:
    """One layer's share of the questions' own cells, one question after the other (R = B * Q).

    Attributes:
        cells: [PT, L, 2, Ct, K, H].
        layer: int32, which of them.
        tables: int32 [R, W], blocks of each question; those past the last block read as zeros.
        used: int32 [R], cells in use.
    """

    cells: Float[Array, "PT L 2 Ct K H"]
    layer: Int[Array, ""]
    tables: Int[Array, "R W"]
    used: Int[Array, " R"]


def layer_context(
    config: ModelConfig, context: Context | Packed, index: int
) -> LayerContext | Packed:
    """What layer `index` sees of a context."""
    if isinstance(context, Packed):
        return context
    groups = [config.windows.index(layer.window) for layer in config.layers]
    group = groups[index]
    return LayerContext(
        cells=context.pool.groups[group],
        layer=jnp.int32(groups[:index].count(group)),
        table=context.tables[group],
        lengths=context.lengths,
        place=context.place,
        rows_each=context.rows_each,
    )


def by_session(
    q: Float[Array, "B Q T N H"], starts: Int[Array, "B Q T"], context: LayerContext
) -> tuple[Float[Array, "S E T N H"], Int[Array, "S E T"]]:
    """Rows that look at one session side by side; rows that are mixed are gathered."""
    if context.place is None:
        return q, starts
    sessions, each, rows = context.lengths.shape[0], context.rows_each, q.shape[1]
    nobody = jnp.full((sessions * each,), rows, jnp.int32)
    members = nobody.at[context.place].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    gathered = q[0].at[members].get(mode="fill", fill_value=0)
    # Where there is no row none begins earlier than the others do.
    ends = jnp.repeat(context.lengths, each)[:, None]
    first = starts[0].at[members].get(mode="fill", fill_value=0)
    first = jnp.where((members < rows)[:, None], first, ends)
    shape = (sessions, each, q.shape[2])
    return gathered.reshape(*shape, *q.shape[3:]), first.reshape(shape)


def by_row(partial: Partial, context: LayerContext, tokens: int) -> Partial:
    """The order in which the rows came."""
    if context.place is None:
        return partial
    slots = context.lengths.shape[0] * context.rows_each

    def back(x: Array) -> Array:
        rows = (
            x.reshape(slots, tokens, *x.shape[2:]).at[context.place].get(mode="fill", fill_value=0)
        )
        return rows.reshape(1, -1, *x.shape[2:])

    return Partial(out=back(partial.out), lse=back(partial.lse))
