"""The attention kernels against dense float64 numpy, at every border.

Every pool here is poisoned: blocks that no session owns, and cells that were never written, hold
NaN.
A kernel that takes the place of the reference must pass this file as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jaxstate.cells.layout import plan_layout
from jaxstate.config import LayerAttention, Rope
from jaxstate.model.attention import Partial, context_attention, merge, tail_attention
from jaxstate.model.backends import triton
from jaxstate.testing import tiny_config
from tests.reference import one_layer

Array64 = NDArray[np.float64]
CHUNK = 512  # cells that one turn of the loop reads
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Values and softmax weights are rounded to the cells' dtype; scores and their log-sum-exp are not.
OUT_TOLERANCE = {"float32": 3e-5, "bfloat16": 3e-2, "float16": 4e-3}
LSE_TOLERANCE = 2e-4
EMPTY = -1e29  # the log-sum-exp of nothing lies below

IMPLEMENTATIONS: dict[str, Callable[..., Partial]] = {
    name: jax.jit(function, static_argnames=("scale", "cap"))
    for name, function in {
        "reference": context_attention,
        "triton": functools.partial(triton.context_attention, interpret=True),
    }.items()
}
compiled_context = IMPLEMENTATIONS["reference"]
compiled_tail = jax.jit(tail_attention, static_argnames=("scale", "cap"))
compiled_merge = jax.jit(merge)


@pytest.fixture(scope="module", autouse=True, params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of this file runs for each of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "compiled_context", IMPLEMENTATIONS[request.param])
        yield


@dataclass(frozen=True)
class Dense:
    """Attention in float64: out [B, R, N, H] and lse [B, R, N], of nothing 0 and -inf."""

    out: Array64
    lse: Array64


def dense(
    q: Array64,
    keys: Array64,
    values: Array64,
    sees: NDArray[np.bool_],
    scale: float,
    cap: float | None,
) -> Dense:
    """q [B, R, N, H], keys and values [B, S, K, H], sees [B, R, S]."""
    group = q.shape[2] // keys.shape[2]
    keys, values = (np.repeat(part, group, axis=2) for part in (keys, values))
    scores = np.einsum("brnh,bsnh->brns", q, keys) * scale
    if cap is not None:
        scores = cap * np.tanh(scores / cap)
    scores = np.where(sees[:, :, None, :], scores, -np.inf)
    top = np.max(scores, axis=-1, initial=-1e300)
    weights = np.exp(scores - top[..., None])
    total = weights.sum(-1)
    out = np.einsum("brns,bsnh->brnh", weights, values)
    with np.errstate(divide="ignore"):
        return Dense(out / np.maximum(total, 1e-300)[..., None], np.log(total) + top)


def check(found: Partial, expected: Dense, dtype: str = "float32") -> None:
    """Outputs and log-sum-exps; both are float32 whatever the cells are."""
    assert found.out.dtype == np.float32
    assert found.lse.dtype == np.float32
    assert found.out.shape == expected.out.shape
    assert found.lse.shape == expected.lse.shape
    out, lse = np.asarray(found.out), np.asarray(found.lse)
    tolerance = OUT_TOLERANCE[dtype]
    np.testing.assert_allclose(out, expected.out, atol=tolerance, rtol=tolerance)
    nothing = np.isneginf(expected.lse)
    np.testing.assert_allclose(
        lse[~nothing], expected.lse[~nothing], atol=LSE_TOLERANCE, rtol=LSE_TOLERANCE
    )
    assert (lse[nothing] < EMPTY).all()
    assert np.isfinite(lse).all()
    assert (out[nothing] == 0).all()


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a kernel is compiled for."""

    block: int
    width: int
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    sessions: int = 3
    rows: int = 3
    spare: int = 3
    dtype: str = "float32"
    cap: float | None = None

    @property
    def capacity(self) -> int:
        return self.block * self.width

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


@dataclass(frozen=True)
class Poisoned:
    """Sessions of given lengths in one shuffled, poisoned pool, and the streams they hold."""

    shape: Shape
    lengths: Sequence[int]
    seed: int = 0
    poison: float = np.nan
    streams: tuple[Array64, Array64] = field(init=False)
    pool: tuple[jax.Array, jax.Array] = field(init=False)
    tables: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        shape, random = self.shape, np.random.default_rng(self.seed)
        kind = DTYPES[shape.dtype]
        size = (shape.sessions, max(1, *self.lengths), shape.kv_heads, shape.head_dim)
        stored = [random.normal(0, 1, size).astype(kind) for _ in range(2)]
        physical = random.permutation(shape.sessions * shape.width + shape.spare)
        tables = physical[: shape.sessions * shape.width].reshape(shape.sessions, shape.width)
        pool = []
        for stream in stored:
            cells = np.full((len(physical), shape.block, *size[2:]), self.poison, kind)
            for session, length in enumerate(self.lengths):
                # What one long write leaves in a ring: the last `width` blocks.
                last = (length - 1) // shape.block
                first = max(0, last - shape.width + 1) * shape.block
                at = np.arange(first, length)
                blocks = tables[session][at // shape.block % shape.width]
                cells[blocks, at % shape.block] = stream[session, at]
            pool.append(cells)
        set_field = functools.partial(object.__setattr__, self)
        set_field("streams", tuple(stream.astype(np.float64) for stream in stored))
        set_field("pool", one_layer(*pool))
        set_field("tables", tables.astype(np.int32))

    def queries(self) -> jax.Array:
        shape, random = self.shape, np.random.default_rng(self.seed + 1)
        size = (shape.sessions, shape.rows, shape.heads, shape.head_dim)
        return jnp.asarray(random.normal(0, 2, size).astype(DTYPES[shape.dtype]))

    def check(self, starts: NDArray[np.int32] | None = None) -> None:
        shape = self.shape
        if starts is None:
            starts = np.zeros((shape.sessions, shape.rows), np.int32)
        q = self.queries()
        lengths = np.array(self.lengths, np.int32)
        found = compiled_context(
            q, *self.pool, self.tables, lengths, starts, scale=shape.scale, cap=shape.cap
        )
        positions = np.arange(self.streams[0].shape[1])
        sees = (positions < lengths[:, None, None]) & (positions >= starts[..., None])
        wide = np.asarray(q).astype(np.float64)
        check(found, dense(wide, *self.streams, sees, shape.scale, shape.cap), shape.dtype)


MANY_TURNS = Shape(block=4, width=260, spare=5)
BORDERS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 511, 512, 513, 515, 516, 517, 1023, 1024, 1025, 1039, 1040)


@pytest.mark.parametrize("length", BORDERS)
def test_borders_of_blocks_and_turns(length: int) -> None:
    """One session at the border, its neighbours empty and full."""
    Poisoned(MANY_TURNS, (length, 0, MANY_TURNS.capacity), seed=length).check()
    Poisoned(MANY_TURNS, (min(length + 1, 1040), length, max(length - 1, 0))).check()


def test_nothing_but_empty_sessions() -> None:
    Poisoned(MANY_TURNS, (0, 0, 0)).check()


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.tuples(*[st.integers(0, MANY_TURNS.capacity)] * 3),
    back=st.lists(st.integers(-3, 700), min_size=9, max_size=9),
    seed=st.integers(0, 99),
)
def test_any_lengths_and_any_starts(
    lengths: tuple[int, int, int], back: list[int], seed: int
) -> None:
    """Starts lie before, at and behind the end: rows that see all, some or nothing."""
    ends = np.array(lengths, np.int32)[:, None]
    starts = np.maximum(ends - np.array(back, np.int32).reshape(3, 3), 0)
    Poisoned(MANY_TURNS, lengths, seed=seed).check(starts)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(block=3, width=345, heads=4, kv_heads=1),  # 510 cells a turn; one head of keys
        Shape(block=1, width=1030, heads=2, kv_heads=2, rows=1),  # every head its own
        Shape(block=600, width=2),  # a block is longer than a turn
        Shape(block=512, width=3, sessions=2, spare=0),
    ],
    ids=lambda shape: f"block{shape.block}",
)
def test_other_block_sizes(shape: Shape) -> None:
    block, full = shape.block, shape.capacity
    turn = max(1, CHUNK // block) * block
    borders = sorted(
        {
            min(max(edge + off, 0), full)
            for edge in (0, block, turn, 2 * turn, full)
            for off in (-1, 0, 1)
        }
    )
    for at, length in enumerate(borders):
        lengths = (length, borders[-1 - at], borders[at // 2])[: shape.sessions]
        Poisoned(shape, lengths, seed=at).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_every_dtype_head_size_and_cap(dtype: str, head_dim: int, cap: float | None) -> None:
    """The pool is full to the last block, and so are some sessions."""
    shape = Shape(
        block=16,
        width=34,
        head_dim=head_dim,
        dtype=dtype,
        cap=cap,
        heads=6,
        kv_heads=2,
        rows=2,
        spare=0,
    )
    full = shape.capacity
    for lengths in ((full, full, full), (15, 16, 17), (511, 512, 513), (0, 1, full - 1)):
        case = Poisoned(shape, lengths, seed=lengths[0])
        case.check()
        starts = np.array([[0, 9], [3, 16], [17, 500]], np.int32)
        case.check(starts)


def test_scores_far_from_zero_do_not_overflow() -> None:
    """e^700 is no float32, and neither is the sum of many e^88."""
    shape = Shape(block=4, width=8, sessions=1, rows=1, heads=1, kv_heads=1, head_dim=2, spare=0)
    keys = np.zeros((8, 4, 1, 2), np.float32)
    keys[..., 0] = np.linspace(-700, 700, 32, dtype=np.float32).reshape(8, 4, 1)
    values = np.random.default_rng(0).normal(0, 1, keys.shape).astype(np.float32)
    table, q = np.arange(8, dtype=np.int32)[None], np.ones((1, 1, 1, 2), np.float32)
    for sign in (1.0, -1.0):
        found = compiled_context(
            jnp.asarray(sign * q, jnp.float32),
            *one_layer(keys, values),
            table,
            np.array([32], np.int32),
            np.zeros((1, 1), np.int32),
            scale=1.0,
            cap=None,
        )
        streams = (part.reshape(1, 32, 1, 2).astype(np.float64) for part in (keys, values))
        sees = np.ones((1, 1, 32), bool)
        check(found, dense(sign * q.astype(np.float64), *streams, sees, shape.scale * 2**0.5, None))


def test_sessions_may_share_blocks() -> None:
    """A frozen prefix is in the tables of many sessions."""
    shape = Shape(block=4, width=6, sessions=2, spare=1)
    case = Poisoned(shape, (24, 24))
    case.tables[1] = case.tables[0]
    for stream in case.streams:
        stream[1] = stream[0]
    object.__setattr__(case, "lengths", (24, 9))
    case.check()


WINDOWS = (1, 2, 3, 4, 5, 8, 9, 13)


def ring(window: int, *, sessions: int, block: int = 4) -> Shape:
    config = tiny_config(layers=(LayerAttention(rope=Rope(base=1e4), window=window),))
    (group,) = plan_layout(config, cells=500, block_cells=block).groups
    return Shape(block=block, width=group.table_width, sessions=sessions)


def window_starts(lengths: Sequence[int], window: int, rows: int) -> NDArray[np.int32]:
    """Row r is the token at position length + r."""
    positions = np.array(lengths, np.int32)[:, None] + np.arange(rows, dtype=np.int32)
    return np.maximum(positions - (window - 1), 0)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_ring_shorter_than_the_stream(window: int) -> None:
    """Written in one piece: what the ring cannot hold was dropped, and was never in these cells."""
    shape = ring(window, sessions=1)
    for length in range(2 * shape.capacity + 6):
        case = Poisoned(shape, (length,), seed=length)
        case.check(window_starts((length,), window, shape.rows))


@pytest.mark.parametrize("window", [3, 5, 9])
def test_rings_of_several_sessions_of_similar_length(window: int) -> None:
    shape = ring(window, sessions=3)
    for length in range(2 * shape.capacity + 2):
        lengths = (length, length, length)
        Poisoned(shape, lengths, seed=length).check(window_starts(lengths, window, shape.rows))


@pytest.mark.parametrize("poison", [1e30, np.nan, np.inf])
@pytest.mark.parametrize("window", [3, 5, 9])
def test_rings_of_several_sessions_of_different_length(window: int, poison: float) -> None:
    """The loop starts at the oldest cell of any of them, which the others' rings overwrote.

    A full session whose newest block is half written: where its ring once held an older block, or
    never held anything, the pool may hold another session's NaN.
    """
    shape = ring(window, sessions=3)
    for length in range(3 * shape.capacity):
        lengths = (length, 0, length // 2)
        case = Poisoned(shape, lengths, seed=length, poison=poison)
        case.check(window_starts(lengths, window, shape.rows))


def tail_case(
    dtype: str, head_dim: int, seed: int
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], NDArray[np.bool_]]:
    """B=2, Q=3, T=4 tokens over S=7 cells; every row sees one cell at least."""
    random, kind = np.random.default_rng(seed), DTYPES[dtype]
    q = random.normal(0, 2, (2, 3, 4, 4, head_dim))
    keys, values = (random.normal(0, 1, (2, 3, 7, 2, head_dim)) for _ in range(2))
    visible = random.random((2, 3, 4, 7)) < 0.4
    visible[..., 3:] &= np.tri(4, dtype=bool)
    visible[..., np.arange(4), 3 + np.arange(4)] = True
    unseen = ~visible.any(axis=2)
    huge = 6e4 if dtype == "float16" else 1e30
    keys[unseen], values[unseen] = huge, -huge
    arrays = (jnp.asarray(part.astype(kind)) for part in (q, keys, values))
    return tuple(arrays), visible  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_the_tail(dtype: str, head_dim: int, cap: float | None) -> None:
    """Row q * T + t is token t of question q; cells that no row sees are huge."""
    for seed in range(4):
        (q, keys, values), visible = tail_case(dtype, head_dim, seed)
        found = compiled_tail(q, keys, values, visible, scale=head_dim**-0.5, cap=cap)
        merged = [np.asarray(part).astype(np.float64) for part in (q, keys, values)]
        each = [part.reshape(6, *part.shape[2:]) for part in merged]
        flat = dense(*each, visible.reshape(6, 4, 7), head_dim**-0.5, cap)
        check(found, Dense(flat.out.reshape(2, 12, 4, -1), flat.lse.reshape(2, 12, 4)), dtype)


def test_a_tail_that_sees_itself_alone() -> None:
    """One cell: the output is its value, the log-sum-exp its score."""
    (q, keys, values), _ = tail_case("float32", 8, 0)
    visible = np.zeros((2, 3, 4, 7), bool)
    visible[..., np.arange(4), 3 + np.arange(4)] = True
    found = compiled_tail(q, keys, values, visible, scale=0.5, cap=None)
    own = np.repeat(np.asarray(values)[:, :, 3:], 2, axis=3).reshape(2, 12, 4, 8)
    np.testing.assert_array_equal(np.asarray(found.out), own)
    repeated = np.repeat(np.asarray(keys)[:, :, 3:], 2, axis=3)
    scores = 0.5 * np.sum(np.asarray(q) * repeated, axis=-1).reshape(2, 12, 4)
    np.testing.assert_allclose(np.asarray(found.lse), scores, atol=1e-5)


def parts(seed: int, count: int) -> tuple[list[Partial], Dense]:
    """Attention over 24 keys in `count` disjoint parts, and over all of them."""
    random = np.random.default_rng(seed)
    q = random.normal(0, 3, (2, 3, 4, 8))
    keys, values = (random.normal(0, 1, (2, 24, 2, 8)) for _ in range(2))
    cuts = np.sort(random.choice(np.arange(25), count - 1)) if count > 1 else np.array([], int)
    found = []
    for low, high in zip([0, *cuts], [*cuts, 24], strict=True):
        sees = np.zeros((2, 3, 24), bool)
        sees[:, :, low:high] = True
        part = dense(q, keys, values, sees, 0.5, None)
        lse = np.maximum(part.lse, -1e30)
        found.append(
            Partial(out=jnp.asarray(part.out, jnp.float32), lse=jnp.asarray(lse, jnp.float32))
        )
    return found, dense(q, keys, values, np.ones((2, 3, 24), bool), 0.5, None)


def nothing_like(part: Partial) -> Partial:
    return Partial(out=jnp.zeros_like(part.out), lse=jnp.full_like(part.lse, -1e30))


def same_bits(a: Partial, b: Partial) -> bool:
    return all(
        np.array_equal(np.asarray(x), np.asarray(y)) for x, y in ((a.out, b.out), (a.lse, b.lse))
    )


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000), count=st.integers(1, 5), order=st.randoms(use_true_random=False)
)
def test_merging_any_parts_in_any_order_is_the_whole(seed: int, count: int, order: object) -> None:
    found, whole = parts(seed, count)
    order.shuffle(found)  # pyright: ignore[reportAttributeAccessIssue]
    check(functools.reduce(compiled_merge, found), whole)


def test_merge_is_commutative_and_associative() -> None:
    """To rounding: XLA may fuse one of the two products with the sum."""
    (a, b, c), whole = parts(3, 3)
    ab, ba = compiled_merge(a, b), compiled_merge(b, a)
    np.testing.assert_allclose(np.asarray(ab.out), np.asarray(ba.out), atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(ab.lse), np.asarray(ba.lse))
    left = compiled_merge(compiled_merge(a, b), c)
    right = compiled_merge(a, compiled_merge(b, c))
    np.testing.assert_allclose(np.asarray(left.out), np.asarray(right.out), atol=2e-6)
    np.testing.assert_allclose(np.asarray(left.lse), np.asarray(right.lse), atol=2e-6)
    check(left, whole)


def test_merging_with_nothing_changes_nothing() -> None:
    (a, _), _ = parts(4, 2)
    empty = nothing_like(a)
    assert same_bits(compiled_merge(a, empty), a)
    assert same_bits(compiled_merge(empty, a), a)
    both = compiled_merge(empty, empty)
    assert not np.asarray(both.out).any()
    assert (np.asarray(both.lse) < EMPTY).all()
    assert np.isfinite(np.asarray(both.lse)).all()
    assert same_bits(compiled_merge(both, a), a)


def test_merging_parts_of_very_different_weight() -> None:
    """A part that weighs e^200 times more decides alone; no overflow, no NaN."""
    (a, b), _ = parts(5, 2)
    for shift in (-500.0, -200.0, 200.0, 500.0):
        far = Partial(out=b.out, lse=a.lse + jnp.float32(shift))
        merged = compiled_merge(a, far)
        winner = far if shift > 0 else a
        assert same_bits(merged, winner)


@pytest.mark.parametrize("border", [0, 1, 3, 4, 5, 12, 510, 512, 514, 600])
def test_a_context_in_two_parts_is_the_whole(border: int) -> None:
    """Positions below the border and from the border on, merged, are one context of 600 cells."""
    case = Poisoned(MANY_TURNS, (600, 600, 600), seed=border)
    args = (case.queries(), *case.pool, case.tables)
    run = functools.partial(compiled_context, scale=MANY_TURNS.scale, cap=None)
    ends = [np.full(3, size, np.int32) for size in (600, border)]
    starts = [np.full((3, 3), start, np.int32) for start in (0, border)]
    below, above = run(*args, ends[1], starts[0]), run(*args, ends[0], starts[1])
    whole, merged = run(*args, ends[0], starts[0]), compiled_merge(below, above)
    np.testing.assert_allclose(np.asarray(merged.out), np.asarray(whole.out), atol=3e-6)
    np.testing.assert_allclose(np.asarray(merged.lse), np.asarray(whole.lse), atol=3e-6)
