"""Many questions of one session in one step: each is answered as `query` answers it alone, and
touches nothing. Steps over several sessions: `tests.engine.test_grouped`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

import jaxstate
from jaxstate.cells.session import SessionState, SharedPool
from jaxstate.cells.tables import GroupBlock, Seen, TableBook
from jaxstate.config import LayerAttention, Rope, StepConfig
from jaxstate.model.bundle import Model
from jaxstate.records import Sampling
from jaxstate.steps.checks import padded_stop_ids
from jaxstate.steps.engine_steps import EngineSteps, plan_engine
from jaxstate.steps.functional import session_steps
from jaxstate.steps.packing import (
    HostChoices,
    Row,
    RowShape,
    distinct,
    pack_contexts,
    pack_rows,
    unpack_choice,
)
from jaxstate.steps.rows import RowPool
from jaxstate.testing import TINY_CONFIG, TINY_STEPS, tiny_config
from tests.reference import bits, log_softmax, random_model, reference_forward

CELLS = 61
POOL_CELLS = 160
SLACK = TINY_STEPS.extend_tokens[-1]
RANDOM = np.random.default_rng(40)
STREAM = RANDOM.integers(0, 256, CELLS).astype(np.int32)
NO_TOKENS = np.zeros(0, np.int32)


@functools.cache
def model(name: str = "windows") -> Model:
    if name == "windows":
        return random_model(TINY_CONFIG, TINY_STEPS, seed=40)
    if name == "narrow":  # steps of one session each, and of few tokens
        steps = dataclasses.replace(TINY_STEPS, step_sessions=(1,), step_tokens=16)
        return random_model(TINY_CONFIG, steps, seed=40)
    # Another kind of layer, and blocks that divide no size.
    steps = StepConfig(
        block_cells=5,
        extend_tokens=(16,),
        question_tokens=(4,),
        tail_cells=(14,),
        question_rows=(1, 3),
        step_tokens=12,
        choice_tokens=(3,),
        tail_block_cells=3,
        tail_blocks=32,
    )
    rope = Rope(base=10_000.0)
    config = tiny_config(
        layers=(LayerAttention(rope=rope),), num_heads=2, tied_embeddings=False, qk_norm=True
    )
    return random_model(config, steps, seed=41)


@functools.cache
def steps_of(name: str) -> EngineSteps:
    own = model(name)
    return plan_engine(
        own.config, own.dtype, own.steps, session_cells=CELLS, cells=POOL_CELLS, sessions=2
    )


def question(length: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng([length, seed]).integers(0, 256, length).astype(np.int32)


@dataclasses.dataclass(eq=False)
class Asked:
    """A question under way, and what was chosen for it so far."""

    tokens: NDArray[np.int32]
    blocks: tuple[int, ...]
    seen: Seen
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    read: int = 0
    chosen: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    gaps: list[float] = dataclasses.field(default_factory=list)
    done: bool = False

    def input(self, tokens: NDArray[np.int32] = NO_TOKENS) -> Row:
        return Row(
            seen=self.seen,
            blocks=self.blocks,
            tokens=tokens,
            used_cells=self.read,
            sampling=self.sampling,
        )


class Rig:
    """One session in a pool of cells that is NaN otherwise, and a pool of rows, as an engine holds
    them; and the same session as the functional core holds it, to compare with."""

    def __init__(
        self, length: int = 30, name: str = "windows", stop: tuple[int, ...] = (257,)
    ) -> None:
        self.model, self.steps, self.length = model(name), steps_of(name), length
        self.cells: SharedPool = self.steps.pool()
        self.tables = TableBook(self.steps.layout)
        self.table, self.other = self.tables.new(), self.tables.new()
        self._poison()
        self.push(STREAM[:length])
        self.pool: RowPool = self.steps.rows()
        self.stop_ids = jax.device_put(padded_stop_ids(stop))
        # Not in order: nothing may depend on where a row lies.
        self.free = list(np.random.default_rng(7).permutation(TINY_STEPS.tail_blocks).tolist())

    def _poison(self) -> None:
        for group, count in enumerate(self.steps.layout.group_blocks):
            blocks = [GroupBlock(group, block) for block in range(count)]
            self.cells = self.steps.poison(self.cells, blocks)

    @functools.cached_property
    def state(self) -> SessionState:
        """What the session had read at the start."""
        state = session_steps(self.model, CELLS, SLACK).open()
        tokens = STREAM[: self.length]
        return jaxstate.extend(self.model, state, tokens) if self.length else state

    def push(self, tokens: NDArray[np.int32]) -> None:
        """The other session takes a block after each chunk, so that blocks are not in order."""
        for start in range(0, len(tokens), SLACK):
            piece, seen = tokens[start : start + SLACK], self.at(self.table.cells)
            self.tables.grow(self.table, seen.cells + len(piece))
            self.tables.grow(self.other, min(self.other.cells + 1, CELLS))
            chunk = Row(seen=seen, blocks=(), tokens=piece, commits=True)
            self.cells, _ = self.steps.commit(self.model.params, self.cells, [chunk])

    @property
    def all_cells(self) -> list[jax.Array]:
        """Everything that the pool holds, the other session's too."""
        return jax.tree.leaves(self.cells)

    def at(self, cells: int) -> Seen:
        return Seen(session=0, tables=self.table.blocks, cells=cells)

    def row(self, tokens: NDArray[np.int32], cells: int = 32, **settings: float) -> Asked:
        size = self.steps.steps.tail_block_cells
        blocks = tuple(self.free.pop() for _ in range(-(-cells // size)))
        sampling = Sampling(**settings)  # pyright: ignore[reportArgumentType]
        return Asked(tokens, blocks, self.at(self.length), sampling)

    def start(self, rows: Sequence[Asked]) -> None:
        """Reads whole questions: first chunks together, the rest one by one."""
        pieces = [row.tokens[: self.steps.question_tokens[-1]] for row in rows]
        inputs = [row.input(piece) for row, piece in zip(rows, pieces, strict=True)]
        self.cells, self.pool, chosen = self.steps.start(
            self.model.params, self.cells, self.pool, inputs, self.stop_ids
        )
        for row, piece in zip(rows, pieces, strict=True):
            row.read = len(piece)
        self._take(rows, chosen)
        for row in rows:
            self._more(row)

    def _more(self, row: Asked) -> None:
        while row.read < len(row.tokens):
            piece = row.tokens[row.read : row.read + self.steps.question_tokens[-1]]
            self.pool, chosen = self.steps.more(
                self.model.params, self.cells, self.pool, row.input(piece), self.stop_ids
            )
            row.read += len(piece)
            self._take([row], chosen)

    def decode(self, rows: Sequence[Asked]) -> None:
        inputs = [row.input() for row in rows]
        self.pool, chosen = self.steps.decode(
            self.model.params, self.cells, self.pool, inputs, self.stop_ids
        )
        for row in rows:
            row.read += 1
        self._take(rows, chosen)

    def score(self, row: Asked, choices: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """After the row's question, of which `row.read` tokens are read."""
        used, last = row.read, row.tokens[row.read :]
        assert len(last) == 1
        inputs = [
            Row(
                seen=row.seen,
                blocks=row.blocks,
                tokens=np.concatenate([last, choice]),
                used_cells=used,
            )
            for choice in choices
        ]
        found = self.steps.score(self.model.params, self.cells, self.pool, inputs)
        return np.asarray(found)[: len(choices)]

    def _take(self, rows: Sequence[Asked], packed: jax.Array) -> None:
        chosen = unpack_choice(np.asarray(packed))
        for index, row in enumerate(rows):
            _note(row, chosen, index)


def _note(row: Asked, chosen: HostChoices, index: int) -> None:
    """What the last step chose; before the question is read to its end, it does not count."""
    if row.read <= len(row.tokens):
        row.chosen, row.logprobs, row.gaps = [], [], []
    row.done = bool(chosen.done[index])
    if not row.done:
        row.chosen.append(int(chosen.tokens[index]))
        row.logprobs.append(float(chosen.logprobs[index]))
        row.gaps.append(float(chosen.gaps[index]))


def check_as_query(rig: Rig, row: Asked, max_tokens: int) -> None:
    alone = jaxstate.query(
        rig.model, rig.state, row.tokens, max_tokens=max_tokens, sampling=row.sampling
    )
    assert row.chosen[:max_tokens] == alone.tokens.tolist()
    np.testing.assert_allclose(row.logprobs[:max_tokens], alone.logprobs, atol=1e-5, rtol=0)
    if row.gaps:
        best = np.sort(alone.logits)[-2:]
        np.testing.assert_allclose(row.gaps[0], best[1] - best[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [0, 5, 30])
@pytest.mark.parametrize("lengths", [(1, 2, 3, 4), (4, 1), (3,), (2, 4, 1)])
def test_questions_that_begin_together(length: int, lengths: tuple[int, ...]) -> None:
    """Answers of 10 tokens cross blocks of 4 cells, and the smaller size of tails."""
    rig = Rig(length)
    before = bits(rig.all_cells)
    rows = [rig.row(question(n)) for n in lengths]
    rig.start(rows)
    for _ in range(9):
        rig.decode(rows)
    assert bits(rig.all_cells) == before
    for row in rows:
        check_as_query(rig, row, 10)


def test_questions_of_every_border() -> None:
    """Blocks and sizes of 4, 8, 16, 32: one less, just so, one more; decoded side by side."""
    rig = Rig(30)
    for lengths in [(3, 4, 5, 7), (8, 9, 15, 16), (17, 20, 23, 24), (25, 31, 32)]:
        room = 33 - max(lengths)
        rows = [rig.row(question(n, 1)) for n in lengths]
        for row in rows:
            rig.start([row])
        for _ in range(min(room, 6) - 1):
            rig.decode(rows)
        for row in rows:
            check_as_query(rig, row, min(room, 6))
            rig.free += row.blocks


def test_rows_join_and_leave_between_steps() -> None:
    rig = Rig()
    first, second, third, fourth = (rig.row(question(n, 2)) for n in (5, 2, 7, 1))
    rig.start([first])
    rig.decode([first])
    rig.start([second, fourth])
    rig.decode([fourth, first])
    rig.start([third])
    for together in ([second, third, first, fourth], [third, second], [second], [first, third]):
        rig.decode(together)
    for row, size in ((first, 5), (second, 4), (third, 4), (fourth, 3)):
        assert len(row.chosen) == size or row.done
        check_as_query(rig, row, size)


def test_blocks_are_used_again_without_a_trace() -> None:
    """NaN is the worst that an earlier row can leave behind."""
    rig = Rig()
    poison = jax.tree.map(
        lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype) if leaf.ndim > 1 else leaf, rig.pool
    )
    fresh, again = Rig(), rig
    again.pool = jax.device_put(poison)
    rows = [one.row(question(6)) for one in (fresh, again)]
    for one, row in zip((fresh, again), rows, strict=True):
        one.start([row])
        for _ in range(4):
            one.decode([row])
    assert rows[0].chosen == rows[1].chosen
    assert rows[0].logprobs == rows[1].logprobs


@pytest.mark.parametrize("count", [1, 2, 3])
def test_padding_and_neighbours_write_nothing(count: int) -> None:
    """Every block of others, and every slot of others, equal bit for bit after each step."""
    rig = Rig()
    others = [rig.row(question(n, 3)) for n in (4, 3, 2)]
    rig.start(others)
    rows = [rig.row(question(3, 4), cells=8) for _ in range(count)]
    own = [block for row in rows for block in row.blocks]

    def rest() -> list[bytes]:
        arrays = [np.delete(np.asarray(leaf), own, axis=0) for leaf in jax.tree.leaves(rig.pool)]
        return bits((arrays, rig.all_cells))

    before = rest()
    rig.start(rows)
    assert rest() == before
    for _ in range(3):
        rig.decode(rows)
        assert rest() == before
    rig.score(dataclasses.replace(rows[0], tokens=question(rows[0].read + 1)), [question(2)])
    assert rest() == before


@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_sampled_rows_are_those_of_a_question_alone(temperature: float) -> None:
    """Each by its own settings, whoever sits beside it; one of them is greedy."""
    rig = Rig()
    settings = [
        {"temperature": temperature, "seed": 5},
        {"temperature": temperature, "seed": 2**32 - 1, "top_p": 0.6},
        {},
        {"temperature": 1e39, "seed": 6},
    ]
    rows = [rig.row(question(n, 5), **one) for n, one in zip((3, 4, 2, 1), settings, strict=True)]
    rig.start(rows)
    for _ in range(6):
        rig.decode(rows)
    assert len({tuple(row.chosen) for row in rows}) == 4
    for row in rows:
        check_as_query(rig, row, 7)


def test_a_row_that_is_done_stays_as_it_is() -> None:
    plain = Rig()
    first = plain.row(question(3))
    plain.start([first])
    rig = Rig(stop=(first.chosen[0],))
    ended, other = rig.row(question(3)), rig.row(question(4))
    rig.start([ended, other])
    assert (ended.done, other.done) == (True, False)

    def cells() -> list[bytes]:
        at = np.array(ended.blocks)
        return bits([np.asarray(leaf)[at] for leaf in jax.tree.leaves(rig.pool)])

    before = cells()
    for _ in range(3):
        rig.decode([ended, other])
        assert ended.done
        assert cells() == before
    assert len(other.chosen) == 4 or other.done


def test_what_half_a_question_chose_ends_nothing() -> None:
    """The token after the first chunk may well be a stop token."""
    plain = Rig()
    whole = question(20, 6)
    half = plain.row(whole[:16])
    plain.start([half])
    rig = Rig(stop=(half.chosen[0],))
    row = rig.row(whole)
    rig.start([row])
    alone = jaxstate.query(rig.model, rig.state, whole, max_tokens=1)
    assert row.done == (int(alone.logits.argmax()) == half.chosen[0])


@pytest.mark.parametrize("length", [1, 2, 5, 9, 10, 16])
def test_scores_are_sums_of_a_plain_forward_pass(length: int) -> None:
    """Answers of 1 to 8 tokens that share one question; its tail is 0 to 15 cells."""
    rig = Rig(30)
    asked = question(length, 8)
    row = rig.row(asked[:-1] if length > 1 else asked)
    if length > 1:
        rig.start([row])
    row = dataclasses.replace(row, tokens=asked)
    before = bits((rig.all_cells, rig.pool))
    choices = [question(n, 9) for n in range(1, 9)]
    found = np.concatenate([rig.score(row, choices[:4]), rig.score(row, choices[4:])])
    assert bits((rig.all_cells, rig.pool)) == before
    check_scores(rig, asked, choices, found)
    np.testing.assert_array_equal(rig.score(row, choices[1:3]), found[1:3])


def test_another_model_in_other_shapes() -> None:
    rig = Rig(30, "global")
    rows = [rig.row(question(n, 11), cells=14) for n in (2, 4, 3)]
    long = rig.row(question(9, 11), cells=14)
    rig.start(rows)
    rig.start([long])
    rig.decode(rows)
    for _ in range(5):
        rig.decode([rows[1], long])
    for row, size in zip((*rows, long), (2, 7, 2, 6), strict=True):
        check_as_query(rig, row, size)
    asked, choices = question(6, 12), [question(n, 12) for n in (1, 3)]
    row = rig.row(asked[:-1], cells=14)
    rig.start([row])
    check_scores(rig, asked, choices, rig.score(dataclasses.replace(row, tokens=asked), choices))


def check_scores(
    rig: Rig,
    asked: NDArray[np.int32],
    choices: Sequence[NDArray[np.int32]],
    found: NDArray[np.float32],
) -> None:
    """Against float64 passes over the whole text, without a cache."""
    for choice, total in zip(choices, found, strict=True):
        text = np.concatenate([STREAM[: rig.length], asked, choice])
        logprobs = log_softmax(reference_forward(rig.model, text).logits)
        at = np.arange(len(text) - len(choice), len(text))
        expected = logprobs[at - 1, text[at]].sum()
        np.testing.assert_allclose(total, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("seen", [0, 1, 6, 7, 8, 21, 22, 23, 24, 29])
def test_rows_go_on_seeing_what_they_began_with(seen: int) -> None:
    """The session grows by its slack, and on to the last readable length: not a bit changes."""
    quiet, busy = Rig(seen), Rig(seen)
    until = busy.steps.layout.readable_until(seen)
    assert until >= min(CELLS, seen + SLACK)
    rows = [rig.row(question(5)) for rig in (quiet, busy)]
    for rig, row in zip((quiet, busy), rows, strict=True):
        rig.start([row])
    for end in (seen + 1, seen + SLACK, until):
        busy.push(STREAM[busy.table.cells : end])
        late = [rig.row(question(3), cells=4) for rig in (quiet, busy)]
        for rig, row, new in zip((quiet, busy), rows, late, strict=True):
            rig.decode([row])
            rig.start([new])
        assert (rows[0].chosen, rows[0].logprobs) == (rows[1].chosen, rows[1].logprobs)
        assert (late[0].chosen, late[0].logprobs) == (late[1].chosen, late[1].logprobs)
    assert busy.table.cells == until


def looking(session: int, cells: int) -> Seen:
    """At the first of two groups through a table of 2 blocks, at the second through one of 3."""
    tables = np.full(2, 10 + session, np.int32), np.full(3, 20 + session, np.int32)
    return Seen(session=session, tables=tables, cells=cells)


def test_packing_pads_and_keeps_every_bit() -> None:
    shape = RowShape(rows=3, width=2, tokens=4, no_block=99, sessions=1, rows_each=0, widths=(2, 3))
    sampling = Sampling(temperature=0.3, top_p=0.1, seed=2**31 + 5)
    row = Row(
        seen=looking(1, 13),
        blocks=(7, 8, 9),
        tokens=np.array([5, 6], np.int32),
        used_cells=11,
        sampling=sampling,
    )
    packed = pack_rows([row], shape)
    assert packed.shape == shape.packed == (3, 13)
    assert packed[0, 1:3].tolist() == [2, 11]
    assert packed[0, 3:5].view(np.float32).tolist() == np.array([0.3, 0.1], np.float32).tolist()
    assert packed[0, 5:6].view(np.uint32).tolist() == [2**31 + 5]
    assert packed[0, 6] == 0
    assert packed[0, 7:].tolist() == [7, 8, 5, 6, 0, 0]
    assert packed[1:, 1:7].any() == 0
    assert packed[1:, 7:].tolist() == [[99, 99, 0, 0, 0, 0]] * 2
    contexts = pack_contexts([row.seen], shape)
    assert contexts.dtype == packed.dtype == np.int32
    assert contexts.tolist() == [[13, 0, 11, 11, 21, 21, 21]]


def test_packing_says_which_session_a_row_looks_at_and_what_becomes_of_it() -> None:
    """Three looks of two rows each at most: rows 0 and 2 at session 1, row 1 at session 2, row 3 at
    an older version of session 1; that one is a chunk. Rows of padding look at nothing."""
    shape = RowShape(rows=5, width=1, tokens=2, no_block=99, sessions=5, rows_each=2, widths=(2, 3))
    looks = [looking(1, 13), looking(2, 13), looking(1, 13), looking(1, 12)]
    looks[3] = dataclasses.replace(looks[3], slid_cells=8)
    rows = [
        Row(seen=look, blocks=(), tokens=np.array([5, 6], np.int32), commits=number == 3)
        for number, look in enumerate(looks)
    ]
    groups = distinct(rows)
    assert groups == [[0, 2], [1], [3]]
    packed = pack_rows(rows, shape, groups)
    assert packed[:, 0].tolist() == [0, 2, 1, 4, 10]
    assert packed[:, 6].tolist() == [0, 0, 0, 2, 0]
    contexts = pack_contexts([looks[0], looks[1], looks[3]], shape)
    assert contexts.tolist() == [
        [13, 0, 11, 11, 21, 21, 21],
        [13, 0, 12, 12, 22, 22, 22],
        [12, 8, 11, 11, 21, 21, 21],
        *[[0] * 7] * 2,
    ]


def test_more_rows_than_declared_are_a_bug_of_the_caller() -> None:
    rig = Rig(5)
    with pytest.raises(AssertionError, match="5 rows"):
        rig.start([rig.row(question(1), cells=4) for _ in range(5)])
    narrow = Rig(5, "narrow")
    with pytest.raises(AssertionError, match="2 rows"):
        narrow.start([narrow.row(question(5), cells=8) for _ in range(2)])


def test_rows_that_look_at_different_cells_are_a_bug_of_a_caller_who_declared_no_such_steps() -> (
    None
):
    rig = Rig(5, "narrow")
    rows = [rig.row(question(1), cells=4) for _ in range(2)]
    rows[1].seen = rig.at(4)
    with pytest.raises(AssertionError, match="serve one session each"):
        rig.start(rows)


def test_more_rows_of_one_session_than_a_mixture_has_room_for() -> None:
    """Three beside one that looks at an older version, where two may be mixed: each for itself."""
    rig, older = Rig(5), Rig(4)
    rows = [rig.row(question(n), cells=12) for n in (3, 1, 4, 2)]
    rows[3].seen = rig.at(4)
    rig.start(rows)
    for _ in range(4):
        rig.decode(rows)
    for row in rows[:3]:
        check_as_query(rig, row, 5)
    check_as_query(older, rows[3], 5)
