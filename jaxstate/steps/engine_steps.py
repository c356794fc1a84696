"""Every step of an engine, each through its compiled executable, in the smallest shape that fits.

Comes in: sessions of one layout, the pool of all questions under way, and rows as the host knows
them. Goes out: new states and pools, and results that are still on the device. `specs` lists every
shape that these methods can choose. Does not know: which session is whose, what is urgent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from jaxstate.cells.layout import PoolLayout
from jaxstate.cells.session import SessionState
from jaxstate.config import ModelConfig, StepConfig
from jaxstate.steps.buckets import question_sizes, smallest_fitting
from jaxstate.steps.compiled import SessionSteps, compiled, plan_steps
from jaxstate.steps.packing import RowInput, pack_rows
from jaxstate.steps.row_programs import row_shape
from jaxstate.steps.rows import RowPool
from jaxstate.steps.spec import EngineKind, StepSpec
from jaxstate.weights import Params


def plan_engine(
    config: ModelConfig, dtype: jnp.dtype, steps: StepConfig, cells: int
) -> EngineSteps:
    """The steps of an engine whose sessions have that capacity; compiles nothing.

    Sessions have slack for one chunk: what a question began with stays readable while the largest
    chunk is read.

    Raises:
        InvalidInput: `cells` is not within 1 .. `config.max_context`.
    """
    slack = steps.extend_tokens[-1]
    return EngineSteps(session=plan_steps(config, dtype, steps, cells, slack))


@dataclass(frozen=True, kw_only=True)
class EngineSteps:
    """The steps of sessions of one layout, and of the questions that share a pool beside them.

    Attributes:
        session: the same sessions' steps one question at a time; saving and restoring use them.
    """

    session: SessionSteps

    @property
    def steps(self) -> StepConfig:
        """The declared sizes."""
        return self.session.steps

    @property
    def layout(self) -> PoolLayout:
        """The sessions' shapes."""
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
    def tail_cells(self) -> tuple[int, ...]:
        """Sizes M of gathered tails: the declared ones in whole blocks."""
        block = self.steps.tail_block_cells
        return tuple(sorted({-(-cells // block) * block for cells in self.steps.tail_cells}))

    def specs(self) -> Iterator[StepSpec]:
        """All that can occur; compiling these is a complete warm-up."""
        yield from (self.session.open_spec(), self._spec("rows"), self._spec("copy"))
        for tokens in self.steps.extend_tokens:
            yield self._spec("commit", tokens=tokens)
        for tokens in self.question_tokens:
            for rows in self._rows_beside(tokens):
                yield self._spec("start", rows=rows, tokens=tokens)
        yield from self._tail_specs()
        yield from self.session.copying_specs()

    def open(self) -> SessionState:
        """An empty session."""
        return self.session.open()

    def rows(self) -> RowPool:
        """A pool without questions."""
        return compiled(self._spec("rows"))()

    def copy(self, state: SessionState) -> SessionState:
        """An equal session with memory of its own."""
        return compiled(self._spec("copy"))(state)

    def extend(
        self, params: Params, state: SessionState, tokens: NDArray[np.int32]
    ) -> tuple[SessionState, Int[Array, ""]]:
        """Commits one chunk [n]; takes `state` over.

        Returns:
            The session, and its length in an array that no later step takes over: once it is
            there, so are the cells.
        """
        size = _fitting("tokens of a chunk", len(tokens), self.steps.extend_tokens)
        padded = np.zeros(size, np.int32)
        padded[: len(tokens)] = tokens
        arguments = jax.device_put((padded, np.int32(len(tokens))))
        return compiled(self._spec("commit", tokens=size))(params, state, *arguments)

    def start(
        self,
        params: Params,
        state: SessionState,
        pool: RowPool,
        rows: Sequence[RowInput],
        seen_cells: int,
        stop_ids: Int[Array, " n"],
    ) -> tuple[RowPool, Int[Array, "4 Q"], Float[Array, "Q V"]]:
        """`start_step`; takes `pool` over.

        Returns:
            The pool, what was chosen (`unpack_choice`), and the logits it was chosen from.
        """
        tokens = _fitting("tokens", max(len(row.tokens) for row in rows), self.question_tokens)
        size = _fitting("rows", len(rows), self._rows_beside(tokens))
        spec = self._spec("start", rows=size, tokens=tokens)
        return compiled(spec)(params, state, pool, _packed(spec, rows, seen_cells), stop_ids)

    def more(
        self,
        params: Params,
        state: SessionState,
        pool: RowPool,
        row: RowInput,
        seen_cells: int,
        stop_ids: Int[Array, " n"],
    ) -> tuple[RowPool, Int[Array, "4 1"]]:
        """`more_step` of one row; takes `pool` over."""
        tokens = _fitting("tokens", len(row.tokens), self.question_tokens)
        # Only long questions come here: one size of tail serves them all.
        self._tail_size([row])
        spec = self._spec("more", rows=1, tokens=tokens, tail_cells=self.tail_cells[-1])
        return compiled(spec)(params, state, pool, _packed(spec, [row], seen_cells), stop_ids)

    def decode(
        self,
        params: Params,
        state: SessionState,
        pool: RowPool,
        rows: Sequence[RowInput],
        seen_cells: int,
        stop_ids: Int[Array, " n"],
    ) -> tuple[RowPool, Int[Array, "4 Q"]]:
        """`decode_step`; takes `pool` over. Rows bring no tokens."""
        size = _fitting("rows", len(rows), self.steps.question_rows)
        spec = self._spec("decode", rows=size, tail_cells=self._tail_size(rows, new_cells=1))
        return compiled(spec)(params, state, pool, _packed(spec, rows, seen_cells), stop_ids)

    def score(
        self,
        params: Params,
        state: SessionState,
        pool: RowPool,
        rows: Sequence[RowInput],
        seen_cells: int,
    ) -> Float[Array, " Q"]:
        """`score_step`; a row's tokens are the question's last one and then the given answer."""
        tokens = _fitting(
            "tokens of a choice",
            max(len(row.tokens) - 1 for row in rows),
            self.steps.choice_tokens,
        )
        size = _fitting("choices", len(rows), self._choices)
        cells = _fitting("tail cells", max(row.used_cells for row in rows), self.tail_cells)
        spec = self._spec("score", rows=size, tokens=tokens, tail_cells=cells)
        return compiled(spec)(params, state, pool, _packed(spec, rows, seen_cells))

    @property
    def _choices(self) -> tuple[int, ...]:
        """Rows of `score`: nobody has only one choice, so a step for one is not worth its time."""
        return self.steps.question_rows[1:] or self.steps.question_rows

    def _rows_beside(self, tokens: int) -> tuple[int, ...]:
        """Numbers of rows that can begin together with that many tokens each."""
        many = (rows for rows in self.steps.question_rows[1:])
        return (1, *(rows for rows in many if rows * tokens <= self.steps.step_tokens))

    def _tail_size(self, rows: Sequence[RowInput], new_cells: int = 0) -> int:
        """M for the longest tail among the rows, with the cells that are new now."""
        needed = (row.used_cells + max(len(row.tokens), new_cells) for row in rows)
        return _fitting("tail cells", max(needed), self.tail_cells)

    def _tail_specs(self) -> Iterator[StepSpec]:
        """What looks at tails."""
        for tokens in self.question_tokens:
            yield self._spec("more", rows=1, tokens=tokens, tail_cells=self.tail_cells[-1])
        for cells in self.tail_cells:
            for rows in self.steps.question_rows:
                yield self._spec("decode", rows=rows, tail_cells=cells)
            for rows in self._choices:
                for tokens in self.steps.choice_tokens:
                    yield self._spec("score", rows=rows, tokens=tokens, tail_cells=cells)

    def _spec(
        self, kind: EngineKind, *, rows: int = 0, tokens: int = 0, tail_cells: int = 0
    ) -> StepSpec:
        return StepSpec(
            kind=kind,
            config=self.session.config,
            dtype=self.session.dtype,
            layout=self.layout,
            tokens=tokens,
            tail_cells=tail_cells,
            rows=rows,
            row_pool=(self.steps.tail_blocks, self.steps.tail_block_cells),
        )


def _fitting(what: str, count: int, sizes: tuple[int, ...]) -> int:
    size = smallest_fitting(count, sizes)
    assert size is not None, f"{count} {what}; the declared sizes are {sizes}"
    return size


def _packed(spec: StepSpec, rows: Sequence[RowInput], seen_cells: int) -> Int[Array, "Q X"]:
    return jax.device_put(pack_rows(rows, seen_cells, row_shape(spec)))
