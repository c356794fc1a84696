"""The immutable state of one session: a small pytree around its pool; and a pool that many share.

Comes in: a layout. Goes out: `SessionState`, which steps take and return; `SharedPool`. Does not
know: models, steps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxstate.cells.layout import PoolLayout
from jaxstate.cells.pool import Context, KVPool, empty_pool
from jaxstate.errors import StaleState

_STALE = """\
this SessionState was already taken over by an earlier step: extend() reuses its memory (donation)
and returns the new state. You have probably written
    extend(model, state, tokens)              # the returned state is lost
    query(model, state, question)
Write instead
    state = extend(model, state, tokens)
    query(model, state, question)             # leaves the state usable, as often as you like"""


@struct.dataclass
class SessionState:
    """What one session has read.

    It does not know which weights computed its cells: use it with the model that opened it. (What
    `save_state` writes does know, and is refused under other weights.)

    Attributes:
        pool: its cells.
        tables: for each group int32 [W], physical block of logical block b at entry b % W.
        length: int32 [], committed cells.
        ready: [D] in the parameters' dtype, the final hidden vector after the last committed token
            (zeros before the first); `ready_logits` turns it into logits when somebody wants them.
        layout: static; the shapes above and the capacity.
    """

    pool: KVPool
    tables: tuple[Int[Array, " W"], ...]
    length: Int[Array, ""]
    ready: Float[Array, " D"]
    layout: PoolLayout = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        """How much it holds, as far as that can be said without its arrays (they may be traced, or
        taken over)."""
        return f"SessionState(length={self.length!r}, {self.layout.cells:,} cells of capacity)"


@struct.dataclass
class SharedPool:
    """The cells of all sessions of an engine.

    Attributes:
        cells: of all layers.
        ready: [P, D]: at each block of the primary group, the final hidden vector after the last
            cell that was written to it.
    """

    cells: KVPool
    ready: Float[Array, "P D"]


def new_shared_pool(layout: PoolLayout, *, model_dim: int, dtype: jnp.dtype) -> SharedPool:
    """A pool without sessions, zero-filled."""
    blocks = layout.group_blocks[layout.primary]
    return SharedPool(cells=empty_pool(layout, dtype), ready=jnp.zeros((blocks, model_dim), dtype))


def new_session(layout: PoolLayout, *, model_dim: int, dtype: jnp.dtype) -> SessionState:
    """An empty session that owns a pool of its own."""
    return SessionState(
        pool=empty_pool(layout, dtype),
        tables=tuple(jnp.arange(group.table_width, dtype=jnp.int32) for group in layout.groups),
        length=jnp.zeros((), jnp.int32),
        ready=jnp.zeros((model_dim,), dtype),
        layout=layout,
    )


def as_context(state: SessionState) -> Context:
    """The session as a batch of one, for steps."""
    return Context(
        pool=state.pool,
        tables=tuple(table[None, :] for table in state.tables),
        lengths=state.length[None],
    )


def check_alive(state: SessionState) -> None:
    """Refuses a state whose arrays a step has taken over.

    Raises:
        StaleState: with what to write instead.
    """
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
        raise StaleState(_STALE)
