"""Arguments of the functional core: what is taken, and that refusing the rest changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxstate
from jaxstate.config import LayerAttention, Rope
from jaxstate.errors import InvalidInput, JaxstateError, StaleState
from jaxstate.model.bundle import Model
from jaxstate.testing import TINY_CONFIG
from tests.persist.sessions import CELLS, STEPS, model_of
from tests.reference import bits, random_model, reference_forward

VOCAB = TINY_CONFIG.vocab_size

Call = Callable[[Model, jaxstate.SessionState, object], object]


def model() -> Model:
    """That of the snapshot tests: its steps are compiled once for both."""
    return model_of()


def read(tokens: object) -> jaxstate.SessionState:
    return jaxstate.extend(model(), jaxstate.init_state(model(), CELLS), tokens)  # pyright: ignore


def call_extend(model: Model, state: jaxstate.SessionState, tokens: object) -> object:
    return jaxstate.extend(model, state, tokens)  # pyright: ignore[reportArgumentType]


def call_query(model: Model, state: jaxstate.SessionState, tokens: object) -> object:
    return jaxstate.query(model, state, tokens, max_tokens=2)  # pyright: ignore


both = pytest.mark.parametrize("call", [call_extend, call_query], ids=["extend", "query"])

GOOD = {
    "list": [1, 100, 5],
    "tuple": (1, 100, 5),
    "range": range(1, 9, 3),
    "numpy integers": [np.int64(1), np.int32(100), np.uint8(5)],
    "not contiguous": np.arange(30)[::7],
    "read only": np.broadcast_to(np.int64(7), (3,)),
    "jax": jnp.asarray(np.array([1, 100, 5], np.int32)),
    "jax uint8": jnp.asarray(np.array([1, 100, 5], np.uint8)),
} | {
    dtype: np.array([1, 100, 5], dtype)
    for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i4")
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_of_integers_is_taken(kind: str) -> None:
    tokens = GOOD[kind]
    plain = [int(token) for token in np.asarray(tokens)]
    before = np.array(tokens, copy=True)
    state, expected = read(tokens), read(plain)
    assert bits(state) == bits(expected)
    answers = [jaxstate.query(model(), state, asked, max_tokens=3) for asked in (tokens, plain)]
    assert answers[0].logits.tobytes() == answers[1].logits.tobytes()
    assert answers[0].tokens.tolist() == answers[1].tokens.tolist()
    np.testing.assert_array_equal(np.asarray(tokens), before)


BAD = {
    "empty list": [],
    "empty array": np.array([], np.int32),
    "a number": 5,
    "nothing": None,
    "two rows": [[1, 2], [3, 4]],
    "one row": np.array([[1, 2, 3]]),
    "no shape": np.int32(3),
    "ragged": [[1, 2], [3]],
    "ragged end": [1, [2]],
    "text": "abc",
    "bytes": b"abc",
    "texts": ["1", "2"],
    "floats": [1.0, 2.0],
    "one float": [1, 2.0],
    "float array": np.array([1, 2], np.float32),
    "bfloat16": jnp.asarray(np.array([1, 2], ml_dtypes.bfloat16)),
    "not a number": [float("nan")],
    "bools": [True, False],
    "bool array": np.array([True]),
    "complex": [1j],
    "objects": np.array([1, 2], object),
    "a set": {1, 2},
    "a dict": {1: 2},
    "a generator": (token for token in (1, 2)),
    "negative": [3, -1],
    "far negative": [-(2**40)],
    "past the vocabulary": [VOCAB],
    "far past": [2**31],
    "wraps to 1 in int32": [2**32 + 1],
    "wraps to 1 in int64": [2**64 + 1],
    "unsigned past": np.array([2**32 + 1], np.uint64),
    "larger than uint64": [2**70],
    "int8 negative": np.array([-1], np.int8),
    "the last of many": [0] * 30 + [VOCAB],
}


@both
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_list_of_ids_is_refused_and_changes_nothing(kind: str, call: Call) -> None:
    state = read([1, 2, 3])
    before = bits(state)
    with pytest.raises(InvalidInput):
        call(model(), state, BAD[kind])
    assert bits(state) == before
    assert int(jaxstate.extend(model(), state, [4]).length) == 4


@both
def test_a_message_says_what_was_given_and_what_is_allowed(call: Call) -> None:
    state = read([1])
    with pytest.raises(InvalidInput, match=rf"0 \.\. {VOCAB - 1}.*{VOCAB + 7}"):
        call(model(), state, [1, VOCAB + 7])
    with pytest.raises(InvalidInput, match="float"):
        call(model(), state, [1.5])
    with pytest.raises(InvalidInput, match=r"\(1, 2\)"):
        call(model(), state, [[1, 2]])
    with pytest.raises(InvalidInput, match="empty"):
        call(model(), state, [])


@both
def test_the_first_and_the_last_token_of_the_vocabulary(call: Call) -> None:
    call(model(), read([0]), [0, VOCAB - 1])


@pytest.mark.parametrize("cells", [0, -5, TINY_CONFIG.max_context + 1, 7.5, "64", None, True])
def test_impossible_capacities_are_refused(cells: object) -> None:
    with pytest.raises(InvalidInput):
        jaxstate.init_state(model(), cells)  # pyright: ignore[reportArgumentType]


# A state that was taken over


def use_extend(state: jaxstate.SessionState) -> object:
    return jaxstate.extend(model(), state, [1])


def use_query(state: jaxstate.SessionState) -> object:
    return jaxstate.query(model(), state, [1], max_tokens=2)


def use_ready(state: jaxstate.SessionState) -> object:
    return jaxstate.ready_logits(model(), state)


@pytest.mark.parametrize("use", [use_extend, use_query, use_ready])
@pytest.mark.parametrize("tokens", [1, 16, 17, CELLS])
def test_a_state_that_was_taken_over_says_what_to_write(
    use: Callable[[jaxstate.SessionState], object], tokens: int
) -> None:
    state = jaxstate.init_state(model(), CELLS)
    longer = jaxstate.extend(model(), state, [1] * tokens)
    for _ in range(2):
        with pytest.raises(StaleState, match=r"state = extend\(model, state, tokens\)"):
            use(state)
    assert int(longer.length) == tokens
    assert jaxstate.ready_logits(model(), longer).shape == (VOCAB,)


def test_the_cells_of_a_state_that_was_taken_over_are_gone() -> None:
    """Memory is reused, not doubled: donation works on this backend."""
    state = read([1, 2, 3])
    jaxstate.extend(model(), state, [4])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.pool, state.length)))


def test_extend_returns_a_new_state_of_the_same_kind() -> None:
    state = read([1, 2])
    kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    longer = jaxstate.extend(model(), state, [3])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), longer) == kinds
    assert longer.layout == state.layout


# A state of another model


def other_model(kind: str) -> Model:
    def changed(**changes: object) -> Model:
        config = dataclasses.replace(TINY_CONFIG, **changes)  # pyright: ignore
        return random_model(config, STEPS, seed=1)

    layers = TINY_CONFIG.layers
    if kind == "dtype":
        return random_model(TINY_CONFIG, STEPS, seed=1, dtype=ml_dtypes.bfloat16)
    if kind == "layers":
        return changed(layers=(*layers, layers[0]))
    if kind == "order of windows":
        return changed(layers=layers[::-1])
    if kind == "window":
        return changed(layers=(LayerAttention(rope=Rope(base=1e3), window=8), layers[1]))
    if kind == "heads":
        return changed(num_kv_heads=4)
    if kind == "head size":
        return changed(head_dim=16)
    if kind == "width":
        return changed(model_dim=40)
    if kind == "blocks":
        return random_model(TINY_CONFIG, dataclasses.replace(STEPS, block_cells=5), seed=1)
    if kind == "positions":
        return changed(max_context=CELLS - 1)
    raise AssertionError(kind)


OTHERS = [
    "dtype",
    "layers",
    "order of windows",
    "window",
    "heads",
    "head size",
    "width",
    "blocks",
    "positions",
]


@pytest.mark.parametrize("kind", OTHERS)
def test_a_state_of_another_model_is_refused_and_lives_on(kind: str) -> None:
    state, other = read([1, 2, 3]), other_model(kind)
    before = bits(state)
    for use in (
        lambda: jaxstate.query(other, state, [1], max_tokens=2),
        lambda: jaxstate.ready_logits(other, state),
        lambda: jaxstate.extend(other, state, [4]),
    ):
        with pytest.raises(InvalidInput):
            use()
        assert bits(state) == before
    assert int(jaxstate.extend(model(), state, [4]).length) == 4


def test_errors_are_errors_of_the_library() -> None:
    """One except clause catches all that is raised on purpose; bad arguments are ValueErrors."""
    for error in (InvalidInput, StaleState):
        assert issubclass(error, JaxstateError)
    assert issubclass(InvalidInput, ValueError)


def test_progress_of_warm_up_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    jaxstate.warm_up(model(), CELLS, progress=lambda done, total: seen.append((done, total)))
    total = seen[-1][1]
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_the_reference_agrees_on_this_model() -> None:
    stream = [1, 2, 3, 250, 7, 0, 9, 200, 4]
    found = jaxstate.ready_logits(model(), read(stream))
    np.testing.assert_allclose(
        found, reference_forward(model(), stream).logits[-1], atol=1e-4, rtol=0
    )
