"""Any chunking of a stream == one extend == a plain pass without a cache; questions change nothing.

The oracle is `reference.reference_forward`, dense float64 numpy. Each variant costs a few seconds
of compiling, so there are few of them and many examples within each.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate
from jaxstate.config import LayerAttention, Rope, StepConfig
from jaxstate.errors import CapacityExceeded
from jaxstate.model.bundle import Model
from jaxstate.records import QueryResult
from jaxstate.testing import tiny_config
from tests.reference import (
    Reference,
    bits,
    layers_of_pool,
    log_softmax,
    random_model,
    reference_forward,
)

VOCAB = 40
CELLS = 29  # no block size of the variants divides it
MAX_CONTEXT = 48
TAIL = 10
TOLERANCE = 1e-4

Cuts = tuple[list[int], list[int]]


def layer(window: int | None, base: float = 10_000.0, **rope: object) -> LayerAttention:
    return LayerAttention(rope=Rope(base=base, **rope), window=window)  # pyright: ignore


def variant(
    *layers: LayerAttention, block: int, question_tokens: int = 3, **changes: object
) -> Model:
    """Chunks of 7 are longer than the small rings and cover no whole number of blocks."""
    config = tiny_config(
        **{
            "vocab_size": VOCAB,
            "model_dim": 16,
            "mlp_dim": 24,
            "head_dim": 4,
            "query_scale": 0.5,
            "max_context": MAX_CONTEXT,
            "bos_id": None,
            "eos_ids": (),
            "layers": layers,
            **changes,
        }
    )
    steps = StepConfig(
        block_cells=block,
        extend_tokens=(7,),
        question_tokens=(question_tokens,),
        tail_cells=(TAIL,),
    )
    return random_model(config, steps, seed=block)


def build(name: str) -> Model:
    if name == "blocks of 1":
        model = variant(layer(1), layer(2, 500.0), block=1, question_tokens=1)
    elif name == "blocks of 2":
        model = variant(layer(1), layer(2), layer(3, 500.0), layer(4), block=2, question_tokens=1)
    elif name == "blocks of 3":
        model = variant(layer(2), layer(6), layer(3, 500.0), layer(4), block=3)
    elif name == "blocks of 4":
        model = variant(layer(3), layer(5, 500.0), layer(8), layer(4), block=4, question_tokens=1)
    elif name == "blocks of 5":
        model = variant(layer(4), layer(10, 500.0), layer(6), layer(5), block=5, question_tokens=1)
    elif name == "one head of keys":
        model = variant(
            layer(6),
            layer(None, 500.0),
            block=4,
            num_kv_heads=1,
            qkv_bias=True,
            out_bias=True,
            tied_embeddings=False,
        )
    elif name == "gemma":
        model = variant(
            layer(5, 300.0),
            layer(None),
            block=3,
            qk_norm=True,
            post_norms=True,
            attention_softcap=1.5,
            final_softcap=2.0,
            embed_scale=4.1,
            activation="gelu_tanh",
            query_scale=1.3,
        )
    elif name == "every head its keys":
        model = variant(
            layer(None, factors=(1.0, 2.5)), layer(None), block=4, num_kv_heads=4, norm_eps=1e-2
        )
    else:
        raise AssertionError(name)
    return model


@functools.cache
def model_of(name: str) -> Model:
    """The variant of that name, every step compiled."""
    model = build(name)
    jaxstate.warm_up(model, CELLS)
    return model


VARIANTS = (
    "blocks of 1",
    "blocks of 2",
    "blocks of 3",
    "blocks of 4",
    "blocks of 5",
    "one head of keys",
    "gemma",
    "every head its keys",
)
all_variants = pytest.mark.parametrize("name", VARIANTS)
few = settings(deadline=None, max_examples=30)


def token_lists(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, VOCAB - 1), min_size=least, max_size=most)


@st.composite
def cut_streams(draw: st.DrawFn) -> Cuts:
    """A stream of 1 .. CELLS tokens, biased to a full session, and where to cut it."""
    size = draw(st.one_of(st.integers(1, CELLS), st.just(CELLS)))
    stream = draw(token_lists(size, size))
    return stream, sorted(draw(st.sets(st.integers(1, size), max_size=size)) | {size})


def read_in_cuts(
    model: Model, stream: list[int], cuts: list[int], cells: int = CELLS
) -> jaxstate.SessionState:
    state, start = jaxstate.init_state(model, cells), 0
    for cut in cuts:
        state = jaxstate.extend(model, state, stream[start:cut])
        start = cut
    return state


def check_answer(
    model: Model, before: list[int], result: QueryResult, *, max_tokens: int
) -> Reference:
    """The answer is what a plain pass over everything says, token by token."""
    answer = result.tokens.tolist()
    assert len(answer) == max_tokens
    assert result.finish_reason == "length"
    plain = reference_forward(model, before + answer)
    rows = plain.logits[len(before) - 1 : len(before) - 1 + max_tokens]
    np.testing.assert_allclose(result.logits, rows[0], atol=TOLERANCE, rtol=0)
    for row, chosen in zip(rows, answer, strict=True):
        # The largest, or one that float32 cannot tell from it.
        assert row[chosen] > row.max() - 2 * TOLERANCE
    exact = log_softmax(rows)[np.arange(max_tokens), answer]
    np.testing.assert_allclose(result.logprobs, exact, atol=TOLERANCE, rtol=0)
    return plain


def check_cells(model: Model, state: jaxstate.SessionState, plain: Reference) -> None:
    """Every cell that is still needed lies where the layout says and holds what it should."""
    length, block = int(state.length), state.layout.block_cells
    layers = layers_of_pool(state.layout.layer_groups, state.pool)
    for index, kind in enumerate(model.config.layers):
        table = np.asarray(state.tables[state.layout.layer_groups[index]])
        first = 0 if kind.window is None else max(0, length - kind.window + 1)
        positions = np.arange(first, length)
        blocks, offsets = table[positions // block % len(table)], positions % block
        keys, values = (part[blocks, offsets] for part in layers[index])
        np.testing.assert_allclose(keys, plain.keys[index][positions], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(values, plain.values[index][positions], atol=TOLERANCE, rtol=0)


def test_the_variants_differ_where_they_should() -> None:
    """Guards the suite itself: each block size meets the windows around its borders."""
    for block in range(1, 6):
        model = build(f"blocks of {block}")
        windows = {kind.window for kind in model.config.layers}
        assert {size for size in (block - 1, block, block + 1, 2 * block) if size} <= windows
        assert model.steps.block_cells == block


@all_variants
@few
@given(cut=cut_streams(), question=token_lists(1, 6), max_tokens=st.integers(1, 5))
def test_any_cut_is_one_extend_is_a_plain_pass(
    name: str, cut: Cuts, question: list[int], max_tokens: int
) -> None:
    model, (stream, cuts) = model_of(name), cut
    whole = read_in_cuts(model, stream, [len(stream)])
    pieces = read_in_cuts(model, stream, cuts)
    plain = reference_forward(model, stream)
    for state in (whole, pieces):
        assert int(state.length) == len(stream)
        assert state.length.dtype == np.int32
        check_cells(model, state, plain)
        ready = jaxstate.ready_logits(model, state)
        np.testing.assert_allclose(ready, plain.logits[-1], atol=TOLERANCE, rtol=0)
        result = jaxstate.query(model, state, question, max_tokens=max_tokens)
        check_answer(model, stream + question, result, max_tokens=max_tokens)


@all_variants
@few
@given(
    cut=cut_streams(),
    questions=st.lists(st.tuples(token_lists(1, 6), st.integers(1, 5)), min_size=1, max_size=4),
)
def test_a_question_changes_no_bit_and_asking_again_gives_the_same_bits(
    name: str, cut: Cuts, questions: list[tuple[list[int], int]]
) -> None:
    model, (stream, cuts) = model_of(name), cut
    state = read_in_cuts(model, stream, cuts)
    before = bits(state)

    def ask_all() -> list[tuple[bytes, ...]]:
        results = [jaxstate.query(model, state, asked, max_tokens=n) for asked, n in questions]
        return [(r.tokens.tobytes(), r.logits.tobytes(), r.logprobs.tobytes()) for r in results]

    first = ask_all()
    assert bits(state) == before
    assert ask_all() == first
    assert bits(state) == before
    undisturbed = bits(read_in_cuts(model, stream, cuts))
    assert undisturbed == before


@all_variants
def test_questions_of_every_size(name: str) -> None:
    """1 .. as many as a tail holds, on sessions that end on either side of a block border."""
    model, random = model_of(name), np.random.default_rng(5)
    block = model.steps.block_cells
    for length in (2 * block - 1, 2 * block, 2 * block + 1):
        stream = random.integers(0, VOCAB, length).tolist()
        state = read_in_cuts(model, stream, [length])
        for size in range(1, TAIL + 1):
            question = random.integers(0, VOCAB, size).tolist()
            max_tokens = min(3, TAIL + 1 - size)
            result = jaxstate.query(model, state, question, max_tokens=max_tokens)
            check_answer(model, stream + question, result, max_tokens=max_tokens)


@all_variants
def test_a_question_to_an_empty_session(name: str) -> None:
    model = model_of(name)
    state = jaxstate.init_state(model, CELLS)
    before = bits(state)
    result = jaxstate.query(model, state, [3, 1, 2], max_tokens=4)
    check_answer(model, [3, 1, 2], result, max_tokens=4)
    assert bits(state) == before


@all_variants
def test_the_capacity_is_exact(name: str) -> None:
    model = model_of(name)
    stream = np.random.default_rng(6).integers(0, VOCAB, CELLS).tolist()
    state = read_in_cuts(model, stream, [CELLS - 1])
    before = bits(state)
    with pytest.raises(CapacityExceeded, match=f"{CELLS - 1} of {CELLS} cells"):
        jaxstate.extend(model, state, [1, 2])
    assert bits(state) == before
    state = jaxstate.extend(model, state, stream[-1:])
    before = bits(state)
    for too_many in (1, 7, 8, 100):
        with pytest.raises(CapacityExceeded):
            jaxstate.extend(model, state, [1] * too_many)
        assert bits(state) == before
    result = jaxstate.query(model, state, [4, 5], max_tokens=4)
    check_answer(model, [*stream, 4, 5], result, max_tokens=4)


@pytest.mark.parametrize("name", ["blocks of 4", "gemma"])
def test_more_than_the_whole_capacity_at_once_changes_nothing(name: str) -> None:
    model = model_of(name)
    state = jaxstate.init_state(model, CELLS)
    with pytest.raises(CapacityExceeded):
        jaxstate.extend(model, state, [1] * (CELLS + 1))
    assert int(state.length) == 0
    assert int(jaxstate.extend(model, state, [1] * CELLS).length) == CELLS


def test_two_capacities_give_the_same_answers() -> None:
    model, random = model_of("gemma"), np.random.default_rng(7)
    for length in (1, 12, CELLS):
        stream = random.integers(0, VOCAB, length).tolist()
        small = read_in_cuts(model, stream, [length])
        large = read_in_cuts(model, stream, [length], cells=MAX_CONTEXT)
        ready = [jaxstate.ready_logits(model, state) for state in (small, large)]
        np.testing.assert_allclose(*ready, atol=1e-5, rtol=0)
        a, b = (jaxstate.query(model, s, [9, 8, 7, 6], max_tokens=5) for s in (small, large))
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-5, rtol=0)
        assert a.tokens.tolist() == b.tokens.tolist()
        check_answer(model, [*stream, 9, 8, 7, 6], b, max_tokens=5)


def test_a_question_may_reach_the_last_position_of_the_model_and_no_further() -> None:
    """The last answer token is never read, so it needs no position."""
    model = model_of("gemma")
    stream = np.random.default_rng(8).integers(0, VOCAB, MAX_CONTEXT - 6).tolist()
    state = read_in_cuts(model, stream, [len(stream)], cells=MAX_CONTEXT)
    result = jaxstate.query(model, state, [1, 2, 3], max_tokens=4)
    check_answer(model, [*stream, 1, 2, 3], result, max_tokens=4)
    for question, max_tokens in (([1, 2, 3], 5), ([1, 2, 3, 4], 4), ([1] * 7, 1)):
        before = bits(state)
        with pytest.raises(CapacityExceeded, match=str(MAX_CONTEXT)):
            jaxstate.query(model, state, question, max_tokens=max_tokens)
        assert bits(state) == before
    full = jaxstate.extend(model, state, [0] * 6)
    with pytest.raises(CapacityExceeded):
        jaxstate.query(model, full, [1], max_tokens=1)


def test_sessions_of_one_model_do_not_meet() -> None:
    """Interleaved reading and asking: each session is as if it were alone."""
    model, random = model_of("blocks of 3"), np.random.default_rng(9)
    streams = [random.integers(0, VOCAB, CELLS).tolist() for _ in range(3)]
    states = [jaxstate.init_state(model, CELLS) for _ in streams]
    lengths = [0, 0, 0]
    for step in range(12):
        who = step % 3
        size = int(random.integers(1, 8))
        piece = streams[who][lengths[who] : lengths[who] + size]
        if piece:
            states[who] = jaxstate.extend(model, states[who], piece)
            lengths[who] += len(piece)
        for asked, state in enumerate(states):
            seen = streams[asked][: lengths[asked]]
            result = jaxstate.query(model, state, [7], max_tokens=2)
            check_answer(model, [*seen, 7], result, max_tokens=2)


def test_a_branch_of_the_future_does_not_reach_back() -> None:
    """A state that went into `extend` is gone, but a copy taken before answers as before."""
    import jax

    model = model_of("one head of keys")
    state = read_in_cuts(model, [1, 2, 3, 4, 5, 6, 7, 8, 9], [9])
    copy = jax.tree.map(lambda leaf: jax.device_put(np.array(leaf)), state)
    longer = jaxstate.extend(model, state, [10, 11, 12])
    check_answer(
        model, [*range(1, 13), 3], jaxstate.query(model, longer, [3], max_tokens=3), max_tokens=3
    )
    check_answer(
        model, [*range(1, 10), 3], jaxstate.query(model, copy, [3], max_tokens=3), max_tokens=3
    )
