"""Choosing tokens: greedy exactly, random ones against exact probabilities, with fixed seeds."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import jaxstate
from jaxstate.cells.pool import Context, KVPool
from jaxstate.config import StepConfig
from jaxstate.model.decoder import Tail
from jaxstate.records import Sampling
from jaxstate.steps.query import Chosen, draw_step, empty_tail, query_step
from jaxstate.steps.sampling import SamplingRows, choose, greedy, sampling_rows
from jaxstate.testing import tiny_config
from tests.reference import log_softmax, random_model
from tests.steps.scripted import BOS, VOCAB, session, table_model

DRAWS = 20_000
LOGITS = np.array([0.3, 2.0, -1.0, 1.5, 0.0, -4.0, 1.9], np.float32)

compiled_choose = jax.jit(choose)


def draw_many(
    logits: NDArray[np.float32], sampling: Sampling, *, vary: str
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """DRAWS tokens from the same logits, by many seeds or by many draws of one seed."""
    count = np.arange(DRAWS, dtype=np.int32)
    rows = SamplingRows(
        temperature=np.full((1, DRAWS), sampling.temperature, np.float32),
        top_p=np.full((1, DRAWS), sampling.top_p, np.float32),
        seed=np.full((1, DRAWS), sampling.seed, np.uint32)
        + (count.astype(np.uint32) if vary == "seed" else np.uint32(0)),
    )
    number = np.where(vary == "draw", count, 0).astype(np.int32)[None]
    repeated = jnp.asarray(np.broadcast_to(logits, (1, DRAWS, len(logits))))
    token, logprob = compiled_choose(repeated, rows, number)
    return np.asarray(token)[0], np.asarray(logprob)[0]


def nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.float64]:
    """The smallest set of the most likely tokens whose probabilities sum to at least top_p."""
    order = np.argsort(-probabilities, kind="stable")
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    kept = np.zeros_like(probabilities)
    kept[order[:size]] = probabilities[order[:size]]
    return kept / kept.sum()


@pytest.mark.parametrize("vary", ["seed", "draw"])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.6, 0.3])
def test_tokens_come_with_their_exact_probabilities(
    vary: str, temperature: float, top_p: float
) -> None:
    """Top-p is applied to the probabilities at that temperature."""
    wide = LOGITS.astype(np.float64) / temperature
    exact = nucleus(np.exp(log_softmax(wide)), top_p)
    token, logprob = draw_many(
        LOGITS, Sampling(temperature=temperature, top_p=top_p, seed=11), vary=vary
    )
    found = np.bincount(token, minlength=len(LOGITS)) / DRAWS
    assert (found[exact == 0] == 0).all()
    assert (np.abs(found - exact) <= 5 * np.sqrt(exact * (1 - exact) / DRAWS) + 1e-9).all()
    plain = log_softmax(LOGITS.astype(np.float64))[token]
    np.testing.assert_allclose(logprob, plain, atol=1e-5)


def test_successive_draws_of_one_seed_are_independent() -> None:
    """Pairs of neighbours are as frequent as the product of their probabilities says."""
    token, _ = draw_many(LOGITS, Sampling(temperature=1.0, seed=5), vary="draw")
    exact = np.exp(log_softmax(LOGITS.astype(np.float64)))
    pairs = np.bincount(token[:-1] * len(LOGITS) + token[1:], minlength=len(LOGITS) ** 2)
    expected = np.outer(exact, exact).reshape(-1)
    tolerance = 5 * np.sqrt(expected / DRAWS) + 5 / DRAWS
    assert (np.abs(pairs / (DRAWS - 1) - expected) <= tolerance).all()


def test_the_border_of_the_nucleus() -> None:
    """Of 1/2, 1/4, 1/8, 1/8: a set that sums to exactly top_p is large enough."""
    logits = np.log(np.array([0.125, 0.5, 0.125, 0.25])).astype(np.float32)
    for top_p, allowed in ((0.5, {1}), (0.51, {1, 3}), (0.75, {1, 3}), (1.0, {0, 1, 2, 3})):
        token, _ = draw_many(logits, Sampling(temperature=1.0, top_p=top_p, seed=1), vary="draw")
        assert set(token.tolist()) == allowed


def rows_of(*settings: Sampling) -> SamplingRows:
    return sampling_rows([list(settings)])


def choose_rows(
    logits: NDArray[np.float32], *settings: Sampling, draw: int = 0
) -> NDArray[np.int32]:
    """One row of logits for each setting."""
    given = jnp.asarray(logits[None])
    number = np.full((1, len(settings)), draw, np.int32)
    return np.asarray(compiled_choose(given, rows_of(*settings), number)[0])[0]


def test_greedy_takes_the_largest_and_of_equal_ones_the_first() -> None:
    logits = np.array([[1, 3, 3, 2], [5, 5, 5, 5], [-9, -8, -7, -8]], np.float32)
    assert choose_rows(logits, *[Sampling()] * 3).tolist() == [1, 0, 2]
    # Neighbours that sample do not change that, nor do seed and top_p without a temperature.
    mixed = (Sampling(), Sampling(top_p=0.1, seed=9), Sampling())
    assert choose_rows(logits, *mixed).tolist() == [1, 0, 2]
    four = np.concatenate([logits, logits[:1]])
    hot = Sampling(temperature=9.0, seed=4)
    assert choose_rows(four, *mixed, hot)[:3].tolist() == [1, 0, 2]


@pytest.mark.parametrize("top_p", [1e-3, 1e-9, 1e-45, 1e-300])
def test_a_tiny_top_p_is_greedy(top_p: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 3, (64, 9)).astype(np.float32)
    settings = [Sampling(temperature=3.0, top_p=top_p, seed=seed) for seed in range(64)]
    assert choose_rows(logits, *settings).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-37, 1.2e-38, 1e-38, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    """Logits divided by almost nothing leave float32; the largest must still win."""
    random = np.random.default_rng(4)
    logits = random.normal(0, 9, (64, 9)).astype(np.float32)
    settings = [Sampling(temperature=temperature, seed=seed) for seed in range(64)]
    assert choose_rows(logits, *settings).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e9, 1e38, 1e39, 1e300])
def test_a_huge_temperature_is_uniform(temperature: float) -> None:
    """Every finite temperature is allowed, also one that float32 cannot hold."""
    settings = [Sampling(temperature=temperature, seed=seed) for seed in range(4000)]
    logits = np.broadcast_to(LOGITS[:4], (4000, 4)).astype(np.float32)
    found = np.bincount(choose_rows(logits, *settings), minlength=4) / 4000
    assert np.abs(found - 0.25).max() < 0.04


def test_the_same_seed_gives_the_same_token_in_any_company() -> None:
    random = np.random.default_rng(6)
    logits = random.normal(0, 1, (5, 9)).astype(np.float32)
    settings = [
        Sampling(temperature=1.0, seed=1),
        Sampling(),
        Sampling(temperature=0.5, top_p=0.7, seed=2**32 - 1),
        Sampling(temperature=2.0, top_p=0.5, seed=1),
        Sampling(temperature=1.0, seed=0),
    ]
    for draw in range(20):
        together = choose_rows(logits, *settings, draw=draw)
        for row, one in enumerate(settings):
            assert choose_rows(logits[row : row + 1], one, draw=draw)[0] == together[row]
        again = choose_rows(logits[::-1], *settings[::-1], draw=draw)
        assert again[::-1].tolist() == together.tolist()


def test_greedy_alone_is_greedy_among_others() -> None:
    """Steps choose greedily; that is what rows without a temperature get when others sample."""
    logits = np.random.default_rng(8).normal(0, 3, (64, 9)).astype(np.float32)
    token, logprob = jax.jit(greedy)(jnp.asarray(logits))
    same, plain = compiled_choose(
        jnp.asarray(logits[None]), rows_of(*[Sampling()] * 64), np.zeros((1, 64), np.int32)
    )
    np.testing.assert_array_equal(np.asarray(token), np.asarray(same)[0])
    np.testing.assert_allclose(np.asarray(logprob), np.asarray(plain)[0], atol=1e-6)


def test_rows_are_arrays_of_the_declared_types() -> None:
    rows = sampling_rows([[Sampling(), Sampling(temperature=1.5, top_p=0.5, seed=2**32 - 1)]] * 3)
    assert (rows.temperature.dtype, rows.top_p.dtype, rows.seed.dtype) == (
        np.float32,
        np.float32,
        np.uint32,
    )
    assert rows.temperature.shape == rows.top_p.shape == rows.seed.shape == (3, 2)
    assert rows.seed[0].tolist() == [0, 2**32 - 1]


# Whole answers


def test_a_sampled_answer_follows_the_table() -> None:
    """First tokens of many seeds, and the log-probabilities under the plain softmax."""
    logits = np.full((VOCAB, VOCAB), -20.0)
    logits[:, :7] = LOGITS
    model = table_model(logits)
    state = session(model)
    temperature, count = 0.7, 500
    tokens = []
    for seed in range(count):
        sampling = Sampling(temperature=temperature, seed=seed)
        result = jaxstate.query(model, state, [BOS], max_tokens=2, sampling=sampling)
        tokens += result.tokens.tolist()
        np.testing.assert_allclose(
            result.logprobs, log_softmax(logits[BOS])[result.tokens], atol=1e-4
        )
    exact = np.exp(log_softmax(logits[BOS][:7] / temperature))
    found = np.bincount(tokens, minlength=7) / (2 * count)
    assert (np.abs(found - exact) <= 5 * np.sqrt(exact * (1 - exact) / (2 * count))).all()


def test_the_same_seed_gives_the_same_answer_and_another_another() -> None:
    model = table_model(np.random.default_rng(5).normal(0, 0.5, (VOCAB, VOCAB)))
    state = session(model)

    def answer(seed: int) -> tuple[int, ...]:
        sampling = Sampling(temperature=1.0, seed=seed)
        return tuple(
            jaxstate.query(model, state, [BOS], max_tokens=8, sampling=sampling).tokens.tolist()
        )

    first = [answer(seed) for seed in range(6)]
    assert [answer(seed) for seed in range(6)] == first
    assert len(set(first)) == 6
    # Draws within an answer differ too: 8 equal rows of logits do not give one token 8 times.
    flat = table_model(np.zeros((VOCAB, VOCAB)))
    sampling = Sampling(temperature=1.0, seed=1)
    result = jaxstate.query(flat, session(flat), [BOS], max_tokens=8, sampling=sampling)
    assert len(set(result.tokens.tolist())) > 4


ENDS = (7, 11, 19, 23, 31)  # of 40 tokens: some answers end early, some do not


@functools.cache
def batch_model() -> jaxstate.Model:
    config = tiny_config(vocab_size=40, model_dim=16, mlp_dim=24, max_context=64, eos_ids=ENDS)
    steps = StepConfig(block_cells=4, extend_tokens=(16,), question_tokens=(4,), tail_cells=(16,))
    return random_model(config, steps, seed=21)


def test_asked_in_a_batch_is_asked_alone() -> None:
    """Questions of two sessions, with their own lengths, seeds and ends, in one compiled step."""
    model, random = batch_model(), np.random.default_rng(22)
    states = []
    for length in (13, 22):
        stream = random.integers(0, 40, length)
        states.append(jaxstate.extend(model, jaxstate.init_state(model, 30), stream))
    pools = [state.pool for state in states]
    pool: KVPool = jax.tree.map(lambda *parts: jnp.concatenate(parts), *pools)
    tables = tuple(
        np.stack([np.asarray(table), np.asarray(table) + np.int32(len(table))])
        for table in states[0].tables
    )
    lengths = np.array([13, 22], np.int32)
    context = Context(pool=pool, tables=tables, lengths=lengths)
    settings = [
        [Sampling(), Sampling(temperature=0.8, seed=3), Sampling(temperature=2.0, seed=3)],
        [Sampling(temperature=1.0, top_p=0.6, seed=9), Sampling(), Sampling(temperature=5.0)],
    ]
    counts = np.array([[4, 1, 3], [2, 4, 4]], np.int32)
    questions = random.integers(0, 40, (2, 3, 4)).astype(np.int32)
    rows = sampling_rows(settings)
    stop_ids = np.array([*ENDS, -1], np.int32)

    @jax.jit
    def step(tail: Tail, tokens: object, counts: object, done: object) -> tuple[Tail, Chosen]:
        tail, chosen = query_step(
            model.decoder, model.params, context, tail, tokens, counts, done, stop_ids
        )  # pyright: ignore
        return tail, draw_step(chosen.logits, tail.lengths, done, rows, stop_ids)  # pyright: ignore

    tail = empty_tail(model.decoder, 2, 3, 16)
    done = np.zeros((2, 3), bool)
    tail, chosen = step(tail, questions, counts, done)
    told: list[Chosen] = [chosen]
    for _ in range(9):
        # Padded to the question's size, so that one executable serves all.
        tokens = jnp.pad(chosen.token, ((0, 0), (0, 0), (0, 3)))
        tail, chosen = step(tail, tokens, np.ones((2, 3), np.int32), chosen.done)
        told.append(chosen)
    ended = np.asarray(told[5].done)
    assert ended.any()
    assert not ended.all()
    for session_index, state in enumerate(states):
        for question in range(3):
            asked = questions[session_index, question, : counts[session_index, question]]
            alone = jaxstate.query(
                model, state, asked, max_tokens=10, sampling=settings[session_index][question]
            )
            at = (session_index, question)
            ends = [bool(np.asarray(one.done)[at]) for one in told]
            assert ends == sorted(ends), "what is done stays done"
            size = ends.index(True) if True in ends else 10
            tokens = [int(np.asarray(one.token)[(*at, 0)]) for one in told[:size]]
            assert tokens == alone.tokens.tolist()
            assert alone.finish_reason == ("stop" if True in ends else "length")
            told_bits = [np.asarray(one.told)[(slice(None), *at)] for one in told[:size]]
            assert [int(bits[0]) for bits in told_bits] == tokens
            logprobs = [float(bits[1].view(np.float32)) for bits in told_bits]
            np.testing.assert_allclose(logprobs, alone.logprobs, atol=1e-4)
            np.testing.assert_allclose(
                np.asarray(told[0].logits)[at], alone.logits, atol=1e-4, rtol=0
            )
            # A question that is done reads nothing: its tail stays as it is.
            read = counts[at] + min(size, 9)
            assert int(np.asarray(tail.lengths)[at]) == read  # pyright: ignore
