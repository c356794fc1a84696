"""Every step of an engine, each through its compiled executable, in the smallest shape that fits.

Comes in: the pool of all sessions, the pool of all questions under way, and rows as the host knows
them. Goes out: new pools, and results that are still on the device. `specs` lists every shape that
these methods can choose. Does not know: which session is whose, what is urgent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxstate.cells.layout import PoolLayout, share_pool
from jaxstate.cells.session import SessionState, SharedPool
from jaxstate.cells.tables import BlockCopy, GroupBlock, Seen
from jaxstate.config import ModelConfig, StepConfig
from jaxstate.model.backends import reads_whole_tails
from jaxstate.steps.buckets import question_sizes, smallest_fitting
from jaxstate.steps.compiled import SessionSteps, compiled, plan_steps
from jaxstate.steps.packing import Row, distinct, pack_contexts, pack_rows
from jaxstate.steps.row_programs import row_shape
from jaxstate.steps.rows import RowPool
from jaxstate.steps.spec import COPY_BLOCKS, EngineKind, StepSpec
from jaxstate.weights import Params

_NO_TOKENS = np.zeros(0, np.int32)


def plan_engine(
    config: ModelConfig,
    dtype: jnp.dtype,
    steps: StepConfig,
    *,
    session_cells: int,
    cells: int,
    sessions: int,
) -> EngineSteps:
    """The steps of an engine; compiles nothing.

    Sessions have slack for one chunk: what a question began with stays readable while the largest
    chunk is read.

    Args:
        config, dtype, steps: of the model.
        session_cells: capacity of each session.
        cells: of the pool.
        sessions: how many may lie in it at once.

    Raises:
        InvalidInput: `session_cells` is not within 1 .. `config.max_context`, or does not fit into
            the pool.
    """
    slack = steps.extend_tokens[-1]
    alone = plan_steps(config, dtype, steps, session_cells, slack)
    blocks = cells // steps.block_cells
    shared = share_pool(alone.layout, blocks=blocks, sessions=sessions)
    return EngineSteps(session=dataclasses.replace(alone, layout=shared))


@dataclass(frozen=True, kw_only=True)
class EngineSteps:
    """The steps of sessions that share a pool, and of the questions in a pool beside it.

    Attributes:
        session: the same sessions' steps one at a time; saving and restoring use them.
    """

    session: SessionSteps

    @property
    def steps(self) -> StepConfig:
        """The declared sizes."""
        return self.session.steps

    @property
    def layout(self) -> PoolLayout:
        """The sessions' shapes, and their pool's."""
        return self.session.layout

    @property
    def question_tokens(self) -> tuple[int, ...]:
        """Sizes T of `start` and `more`: those that the largest tail can need."""
        return question_sizes(self.steps.tail_cells[-1], self.steps)

    @property
    def start_rows(self) -> tuple[tuple[int, int], ...]:
        """(tokens, rows): one `start` takes so many rows of at most so many tokens."""
        return tuple((size, self._rows_beside(size)[-1]) for size in self.question_tokens)

    @property
    def chunk_rows(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(tokens, sizes): in which numbers chunks of at most so many tokens are read together."""
        return tuple((size, self._chunks_beside(size)) for size in self.steps.extend_tokens)

    @property
    def tail_cells(self) -> tuple[int, ...]:
        """Sizes M of tails: the declared ones in whole blocks, or the largest alone where a larger
        one costs nothing."""
        block = self.steps.tail_block_cells
        sizes = sorted({-(-cells // block) * block for cells in self.steps.tail_cells})
        return tuple(sizes if reads_whole_tails(self.session.backend) else sizes[-1:])

    @property
    def shares_steps(self) -> bool:
        """Whether a step may serve several sessions."""
        return self.steps.step_sessions[-1] > 1

    def specs(self) -> Iterator[StepSpec]:
        """All that can occur; compiling these is a complete warm-up."""
        for kind in ("pool", "rows", "copy", "wipe", "take_ready", "put_ready"):
            yield self._spec(kind)
        for tokens, sizes in self.chunk_rows:
            for rows in sizes:
                yield self._spec("commit", rows=rows, sessions=rows, tokens=tokens)
        for tokens in self.question_tokens:
            for rows in self._rows_beside(tokens):
                for sessions, each in self._looks(rows):
                    yield self._spec(
                        "start", rows=rows, sessions=sessions, rows_each=each, tokens=tokens
                    )
        for rows in self.steps.question_rows:
            yield self._spec("draw_rows", rows=rows)
        yield from self._tail_specs()
        yield from self.session.copying_specs()

    def pool(self) -> SharedPool:
        """A pool without sessions."""
        return compiled(self._spec("pool"))()

    def rows(self) -> RowPool:
        """A pool without questions."""
        return compiled(self._spec("rows"))()

    def copy(self, pool: SharedPool, copies: Sequence[BlockCopy]) -> SharedPool:
        """Copies blocks; takes `pool` over."""
        for start in range(0, len(copies), COPY_BLOCKS):
            pairs = self._nothing(2)
            for slot, one in enumerate(copies[start : start + COPY_BLOCKS]):
                pairs[one.group, :, slot] = (one.source, one.target)
            pool = compiled(self._spec("copy"))(pool, jax.device_put(pairs))
        return pool

    def poison(self, pool: SharedPool, blocks: Sequence[GroupBlock]) -> SharedPool:
        """Fills blocks with NaN; takes `pool` over. For tests: it is not part of a warm-up."""
        return self._filled("poison", pool, blocks)

    def wipe(self, pool: SharedPool, blocks: Sequence[GroupBlock]) -> SharedPool:
        """Fills blocks with zeros; takes `pool` over."""
        return self._filled("wipe", pool, blocks)

    def _filled(
        self, kind: Literal["poison", "wipe"], pool: SharedPool, blocks: Sequence[GroupBlock]
    ) -> SharedPool:
        for start in range(0, len(blocks), COPY_BLOCKS):
            ids = self._nothing(1)
            for slot, one in enumerate(blocks[start : start + COPY_BLOCKS]):
                ids[one.group, 0, slot] = one.block
            pool = compiled(self._spec(kind))(pool, jax.device_put(ids[:, 0]))
        return pool

    def view(self, pool: SharedPool, seen: Seen) -> SessionState:
        """One session as the functional core knows it; it is gone with the next step that writes.

        Its table holds numbers past the end where it has no block.
        """
        block = self._last_block(seen)
        return SessionState(
            pool=pool.cells,
            tables=tuple(jax.device_put(table) for table in seen.tables),
            length=jax.device_put(np.int32(seen.cells)),
            ready=compiled(self._spec("take_ready"))(pool.ready, jax.device_put(block)),
            layout=self.layout,
        )

    def put(self, pool: SharedPool, seen: Seen, state: SessionState) -> SharedPool:
        """The pool after a `view` of it was written to; takes `pool` over."""
        block = jax.device_put(self._last_block(seen))
        ready = compiled(self._spec("put_ready"))(pool.ready, block, state.ready)
        return SharedPool(cells=state.pool, ready=ready)

    def commit(
        self, params: Params, pool: SharedPool, chunks: Sequence[Row]
    ) -> tuple[SharedPool, Bool[Array, " B"]]:
        """Commits one chunk of each of several sessions; takes `pool` over.

        Returns:
            The pool, and whether each chunk's numbers are all finite, in an array that no later
            step takes over: once it is there, so are the cells.
        """
        longest = max(len(chunk.tokens) for chunk in chunks)
        tokens = _fitting("tokens of a chunk", longest, self.steps.extend_tokens)
        size = _fitting("chunks", len(chunks), self._chunks_beside(tokens))
        spec = self._spec("commit", rows=size, sessions=size, tokens=tokens)
        shape = row_shape(spec)
        contexts = pack_contexts([chunk.seen for chunk in chunks], shape)
        packed = pack_rows(chunks, shape)
        return compiled(spec)(params, pool, *jax.device_put((contexts, packed)))

    def start(
        self,
        params: Params,
        pool: SharedPool,
        row_pool: RowPool,
        rows: Sequence[Row],
        stop_ids: Int[Array, " n"],
    ) -> tuple[SharedPool, RowPool, Int[Array, "5 R"]]:
        """Begins questions, and commits the chunks among the rows; takes both pools over.

        Returns:
            The pools, and what was chosen (`unpack_choice`).
        """
        tokens = _fitting("tokens", max(len(row.tokens) for row in rows), self.question_tokens)
        spec = self._for_rows("start", rows, self._rows_beside(tokens), tokens=tokens)
        contexts, packed = _packed(spec, rows)
        pool, row_pool, chosen, logits = compiled(spec)(
            params, pool, contexts, row_pool, packed, stop_ids
        )
        row_pool, chosen = self._drawn(row_pool, rows, chosen, logits, stop_ids)
        return pool, row_pool, chosen

    def more(
        self,
        params: Params,
        pool: SharedPool,
        row_pool: RowPool,
        row: Row,
        stop_ids: Int[Array, " n"],
    ) -> tuple[RowPool, Int[Array, "5 1"]]:
        """`more_step` of one row; takes `row_pool` over."""
        tokens = _fitting("tokens", len(row.tokens), self.question_tokens)
        # Only long questions come here: one size of tail serves them all.
        self._tail_size([row])
        spec = self._spec("more", rows=1, tokens=tokens, tail_cells=self.tail_cells[-1])
        contexts, packed = _packed(spec, [row])
        row_pool, chosen, logits = compiled(spec)(
            params, pool, contexts, row_pool, packed, stop_ids
        )
        return self._drawn(row_pool, [row], chosen, logits, stop_ids)

    def decode(
        self,
        params: Params,
        pool: SharedPool,
        row_pool: RowPool,
        rows: Sequence[Row],
        stop_ids: Int[Array, " n"],
    ) -> tuple[RowPool, Int[Array, "5 R"]]:
        """`decode_step`; takes `row_pool` over. Rows bring no tokens."""
        tail = self._tail_size(rows, new_cells=1)
        spec = self._for_rows("decode", rows, self.steps.question_rows, tail_cells=tail)
        contexts, packed = _packed(spec, rows)
        row_pool, chosen, logits = compiled(spec)(
            params, pool, contexts, row_pool, packed, stop_ids
        )
        return self._drawn(row_pool, rows, chosen, logits, stop_ids)

    def _drawn(
        self,
        row_pool: RowPool,
        rows: Sequence[Row],
        chosen: Int[Array, "5 R"],
        logits: Float[Array, "R V"],
        stop_ids: Int[Array, " n"],
    ) -> tuple[RowPool, Int[Array, "5 R"]]:
        """What rows that sample choose instead of the likeliest token; the others keep theirs."""
        if all(row.sampling.temperature == 0 for row in rows):
            return row_pool, chosen
        spec = self._spec("draw_rows", rows=logits.shape[0])
        bare = [dataclasses.replace(row, tokens=_NO_TOKENS) for row in rows]
        packed = jax.device_put(pack_rows(bare, row_shape(spec)))
        last, done, chosen = compiled(spec)(
            row_pool.lengths, row_pool.last, row_pool.done, packed, chosen, logits, stop_ids
        )
        return dataclasses.replace(row_pool, last=last, done=done), chosen

    def score(
        self, params: Params, pool: SharedPool, row_pool: RowPool, rows: Sequence[Row]
    ) -> Float[Array, " R"]:
        """`score_step`; a row's tokens are the question's last one and then the given answer."""
        tokens = _fitting(
            "tokens of a choice",
            max(len(row.tokens) - 1 for row in rows),
            self.steps.choice_tokens,
        )
        tail = _fitting("tail cells", max(row.used_cells for row in rows), self.tail_cells)
        spec = self._for_rows("score", rows, self._choices, tokens=tokens, tail_cells=tail)
        contexts, packed = _packed(spec, rows)
        return compiled(spec)(params, pool, contexts, row_pool, packed)

    @property
    def _choices(self) -> tuple[int, ...]:
        """Rows of `score`: nobody has only one choice, so a step for one is not worth its time."""
        return self.steps.question_rows[1:] or self.steps.question_rows

    def _rows_beside(self, tokens: int) -> tuple[int, ...]:
        """Numbers of rows that can begin together with that many tokens each."""
        many = (rows for rows in self.steps.question_rows[1:])
        return (1, *(rows for rows in many if rows * tokens <= self.steps.step_tokens))

    def _chunks_beside(self, tokens: int) -> tuple[int, ...]:
        """Numbers of chunks that can be read together with that many tokens each."""
        many = (sessions for sessions in self.steps.step_sessions[1:])
        return (1, *(count for count in many if count * tokens <= self.steps.step_tokens))

    def _looks(self, rows: int) -> Iterator[tuple[int, int]]:
        """(sessions, rows of each): how so many rows may look at sessions."""
        yield 1, 0
        if rows > 1 and self.shares_steps:
            yield rows, 0
            yield self._mixed(rows)

    def _mixed(self, rows: int) -> tuple[int, int]:
        """Sessions, and rows of each, whose cells are read once for all of these. Attention is
        computed for as many rows as there could be: no more than twice those that there are."""
        each = min(rows, self.steps.session_rows)
        return max(2, 2 * rows // each), each

    def _for_rows(
        self,
        kind: EngineKind,
        rows: Sequence[Row],
        sizes: tuple[int, ...],
        *,
        tokens: int = 0,
        tail_cells: int = 0,
    ) -> StepSpec:
        """The smallest step for these rows."""
        size = _fitting("rows", len(rows), sizes)
        groups = distinct(rows)
        assert len(groups) == 1 or self.shares_steps, "this engine's steps serve one session each"
        sessions, each = (1, 0) if len(groups) == 1 else self._looking(size, groups)
        return self._spec(
            kind,
            rows=size,
            sessions=sessions,
            rows_each=each,
            tokens=tokens,
            tail_cells=tail_cells,
        )

    def _looking(self, rows: int, groups: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Mixed, if several rows look at one session and the mixture has room; otherwise each row
        for itself, as if it were the only one of its session."""
        sessions, each = self._mixed(rows)
        most = max(map(len, groups))
        fits = most > 1 and most <= each and len(groups) <= sessions
        return (sessions, each) if fits else (rows, 0)

    def _tail_size(self, rows: Sequence[Row], new_cells: int = 0) -> int:
        """M for the longest tail among the rows, with the cells that are new now."""
        needed = (row.used_cells + max(len(row.tokens), new_cells) for row in rows)
        return _fitting("tail cells", max(needed), self.tail_cells)

    def _tail_specs(self) -> Iterator[StepSpec]:
        """What looks at tails."""
        for tokens in self.question_tokens:
            yield self._spec("more", rows=1, tokens=tokens, tail_cells=self.tail_cells[-1])
        for cells in self.tail_cells:
            for rows in self.steps.question_rows:
                for sessions, each in self._looks(rows):
                    yield self._spec(
                        "decode", rows=rows, sessions=sessions, rows_each=each, tail_cells=cells
                    )
            for rows in self._choices:
                for sessions, each in self._looks(rows):
                    for tokens in self.steps.choice_tokens:
                        yield self._spec(
                            "score",
                            rows=rows,
                            sessions=sessions,
                            rows_each=each,
                            tokens=tokens,
                            tail_cells=cells,
                        )

    def _last_block(self, seen: Seen) -> np.int32:
        """The block of the primary group that holds the last cell; one past the end without any."""
        table = seen.tables[self.layout.primary]
        if seen.cells == 0:
            return np.int32(self.layout.group_blocks[self.layout.primary])
        return np.int32(table[(seen.cells - 1) // self.layout.block_cells % len(table)])

    def _nothing(self, columns: int) -> np.ndarray:
        """int32 [G, columns, N] of block numbers past the end."""
        ends = np.array(self.layout.group_blocks, np.int32)[:, None, None]
        return np.tile(ends, (1, columns, COPY_BLOCKS))

    def _spec(
        self,
        kind: EngineKind,
        *,
        rows: int = 0,
        sessions: int = 1,
        rows_each: int = 0,
        tokens: int = 0,
        tail_cells: int = 0,
    ) -> StepSpec:
        return StepSpec(
            kind=kind,
            config=self.session.config,
            dtype=self.session.dtype,
            backend=self.session.backend,
            layout=self.layout,
            tokens=tokens,
            tail_cells=tail_cells,
            rows=rows,
            sessions=sessions,
            rows_each=rows_each,
            row_pool=(self.steps.tail_blocks, self.steps.tail_block_cells),
        )


def _fitting(what: str, count: int, sizes: tuple[int, ...]) -> int:
    size = smallest_fitting(count, sizes)
    assert size is not None, f"{count} {what}; the declared sizes are {sizes}"
    return size


def _packed(spec: StepSpec, rows: Sequence[Row]) -> tuple[Int[Array, "S X"], Int[Array, "R X"]]:
    """The sessions that rows look at, and the rows."""
    shape, groups = row_shape(spec), distinct(rows)
    # A session for each row, or one for each group of rows that look at the same.
    each = shape.sessions > 1 and shape.rows_each == 0
    looks = rows if each else [rows[members[0]] for members in groups]
    contexts = pack_contexts([row.seen for row in looks], shape)
    return jax.device_put((contexts, pack_rows(rows, shape, groups)))
