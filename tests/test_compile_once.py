"""After warm-up nothing compiles, whatever is pushed, asked, saved or refused.

Compilations are counted where XLA reports them, so neither a stray `jnp` call nor a committed array
that recompiles without a trace escapes. jit's own caches are emptied before the workload: what an
earlier test happened to compile cannot hide anything.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import jaxstate
from jaxstate.config import StepConfig
from jaxstate.errors import CapacityExceeded, InvalidInput, PromptTooLong, StaleState
from jaxstate.model.bundle import Model
from jaxstate.testing import TINY_CONFIG, TINY_STEPS, ByteTokenizer
from tests.persist import sessions
from tests.reference import random_model

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
CELLS = 71  # of no other test, so that warm-up has everything to do
LARGEST = max(TINY_STEPS.extend_tokens)


@contextlib.contextmanager
def counting_compilations() -> Iterator[list[str]]:
    """Collects one entry for each compilation."""
    seen: list[str] = []

    def listen(event: str, seconds: float, **facts: str | int) -> None:
        if event == COMPILE_EVENT:
            seen.append(str(facts))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@functools.cache
def model() -> Model:
    made = random_model(TINY_CONFIG, TINY_STEPS, seed=31, tokenizer=ByteTokenizer())
    with counting_compilations() as seen:
        jaxstate.warm_up(made, CELLS)
    assert seen, "warm-up compiled nothing: the counter or the choice of CELLS is wrong"
    jax.clear_caches()
    return made


def read(length: int) -> jaxstate.SessionState:
    state = jaxstate.init_state(model(), CELLS)
    ids = np.arange(length) % TINY_CONFIG.vocab_size
    return jaxstate.extend(model(), state, ids) if length else state


def test_the_counter_counts() -> None:
    """A shape that nobody has seen compiles, once; and the listener goes when it should."""
    step = jax.jit(lambda x: x * 2 + 1)
    with counting_compilations() as seen:
        step(np.zeros(12_347, np.float32))
        first = len(seen)
        step(np.ones(12_347, np.float32))
        assert len(seen) == first >= 1
        step(np.ones(12_349, np.float32))
        assert len(seen) > first
    before = len(seen)
    step(np.ones(12_351, np.float32))
    assert len(seen) == before


def test_the_counter_sees_what_a_step_outside_the_table_costs() -> None:
    """A capacity that was not warmed up compiles at its first use: the table has no such shape."""
    steps = StepConfig(block_cells=4, extend_tokens=(2,), question_tokens=(2,), tail_cells=(4,))
    fresh = random_model(TINY_CONFIG, steps, seed=32)
    with counting_compilations() as seen:
        jaxstate.init_state(fresh, 67)
    assert len(seen) == 1


def test_a_second_warm_up_compiles_nothing() -> None:
    model()
    with counting_compilations() as seen:
        jaxstate.warm_up(model(), CELLS)
    assert seen == []


def test_other_weights_of_the_same_shape_need_no_warm_up() -> None:
    model()
    other = random_model(TINY_CONFIG, TINY_STEPS, seed=33, tokenizer=ByteTokenizer())
    with counting_compilations() as seen:
        state = jaxstate.extend(other, jaxstate.init_state(other, CELLS), [1, 2, 3])
        jaxstate.query(other, state, [1, 2], max_tokens=3)
        jaxstate.ready_logits(other, state)
    assert seen == []


def test_pushes_of_every_size_compile_nothing() -> None:
    """One token to several times the largest bucket, onto every length."""
    model()
    with counting_compilations() as seen:
        for size in range(1, CELLS + 1):
            state = read(size)
            for more in (1, 3, LARGEST - 1, LARGEST, LARGEST + 1):
                if int(state.length) + more <= CELLS:
                    state = jaxstate.extend(model(), state, [7] * more)
        state = read(0)
        for token in range(CELLS):
            state = jaxstate.extend(model(), state, [token])
    assert int(state.length) == CELLS
    assert seen == []


def test_questions_of_every_size_compile_nothing() -> None:
    model()
    largest = TINY_STEPS.tail_cells[-1]
    with counting_compilations() as seen:
        for length in (0, 1, CELLS):
            state = read(length)
            for size in range(1, largest + 1):
                for max_tokens in {1, 2, 9, largest + 1 - size}:
                    if size + max_tokens - 1 <= largest:
                        jaxstate.query(model(), state, [3] * size, max_tokens=max_tokens)
    assert seen == []


def test_settings_of_every_kind_compile_nothing() -> None:
    model()
    with counting_compilations() as seen:
        state = read(20)
        for number in range(12):
            sampling = jaxstate.Sampling(
                temperature=0.3 * (number % 4), top_p=1.0 - 0.05 * number, seed=number * 1001
            )
            stop = [[], ["a"], ["ab", "\n"], ["\u20ac" * 5]][number % 4]
            jaxstate.query(model(), state, [5, 6], max_tokens=6, sampling=sampling, stop=stop)
            jaxstate.ready_logits(model(), state)
            state = jaxstate.extend(model(), state, [number])
    assert seen == []


def test_tokens_of_every_kind_compile_nothing() -> None:
    model()
    on_device = [
        jax.device_put(np.array([1, 2, 3], dtype), jax.devices()[0])
        for dtype in (np.int32, np.uint8, np.int16)
    ]
    tokens = [[1, 2, 3], (1, 2, 3), range(3), np.arange(3, dtype=np.uint8), *on_device]
    with counting_compilations() as seen:
        state = read(0)
        for given in tokens:
            state = jaxstate.extend(model(), state, given)
            jaxstate.query(model(), state, given, max_tokens=2)
    assert seen == []


def test_saving_and_restoring_into_the_same_capacity_compile_nothing(tmp_path: Path) -> None:
    model()
    with counting_compilations() as seen:
        for length in (0, 1, 4, 6, 7, 30, 64, 65, CELLS):
            live = read(length)
            jaxstate.save_state(tmp_path / "s", model(), live, notes={"length": length})
            back = jaxstate.restore_state(tmp_path / "s", model())
            assert int(back.length) == length
            jaxstate.query(model(), back, [1], max_tokens=3)
            if length < CELLS:
                back = jaxstate.extend(model(), back, [1])
                jaxstate.ready_logits(model(), back)
            jaxstate.query(model(), live, [1], max_tokens=3)
    assert seen == []


def test_refusals_compile_nothing() -> None:
    """Past the last bucket is an error or is cut; it never falls through to a new shape."""
    model()
    with counting_compilations() as seen:
        state = read(CELLS - 1)
        with pytest.raises(CapacityExceeded):
            jaxstate.extend(model(), state, [1] * 2)
        with pytest.raises(CapacityExceeded):
            jaxstate.extend(model(), state, [1] * 100)
        with pytest.raises(PromptTooLong):
            jaxstate.query(model(), state, [1] * 33, max_tokens=1)
        with pytest.raises(PromptTooLong):
            jaxstate.query(model(), state, [1], max_tokens=100)
        with pytest.raises(InvalidInput):
            jaxstate.query(model(), state, [[1]])
        jaxstate.extend(model(), state, [1])
        with pytest.raises(StaleState):
            jaxstate.query(model(), state, [1])
    assert seen == []


def test_a_long_mixed_life_compiles_nothing(tmp_path: Path) -> None:
    """Several sessions, everything in random order, with numpy's clock as the only judge."""
    model()
    random = np.random.default_rng(34)
    with counting_compilations() as seen:
        states = [read(0) for _ in range(3)]
        for step in range(150):
            which = int(random.integers(3))
            state, kind = states[which], int(random.integers(6))
            if kind <= 1:
                size = int(random.integers(1, 3 * LARGEST))
                if int(state.length) + size > CELLS:
                    states[which] = read(int(random.integers(5)))
                else:
                    ids = random.integers(0, 256, size)
                    states[which] = jaxstate.extend(model(), state, ids)
            elif kind <= 3:
                size = int(random.integers(1, 20))
                sampling = jaxstate.Sampling(
                    temperature=float(random.random()), top_p=0.9, seed=step
                )
                stop = ["x"] if kind == 3 else None
                jaxstate.query(
                    model(),
                    state,
                    random.integers(0, 256, size),
                    max_tokens=int(random.integers(1, 12)),
                    sampling=sampling,
                    stop=stop,
                )
            elif kind == 4 and int(state.length):
                jaxstate.ready_logits(model(), state)
            elif kind == 5:
                jaxstate.save_state(tmp_path / "s", model(), state)
                states[which] = jaxstate.restore_state(tmp_path / "s", model())
    assert seen == []


def test_bfloat16_cells_compile_once_too(tmp_path: Path) -> None:
    """The copies between host and device must not convert."""
    half = sessions.model_of(ml_dtypes.bfloat16)
    jaxstate.warm_up(half, sessions.CELLS)  # an earlier module's executables may have been let go
    jax.clear_caches()
    with counting_compilations() as seen:
        state = sessions.read(9, half)
        jaxstate.query(half, state, [1, 2], max_tokens=4)
        jaxstate.ready_logits(half, state)
        jaxstate.save_state(tmp_path / "s", half, state)
        back = jaxstate.restore_state(tmp_path / "s", half)
        jaxstate.extend(half, back, [1])
    assert seen == []
