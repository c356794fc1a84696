"""Every backend of attention computes what the reference computes, and says when it cannot.

The pools are poisoned: what no session and no question has written is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import jaxstate
from jaxstate.config import StepConfig
from jaxstate.errors import InvalidInput
from jaxstate.model.backends import Heads, add_norm, attend, choose_backend
from jaxstate.model.context import LayerContext, LayerTail
from jaxstate.testing import tiny_config
from tests.reference import random_model

BLOCK, WIDTH, TAIL_BLOCK, TAIL_WIDTH = 16, 5, 8, 3
KV_HEADS, GROUP, HEAD_DIM = 2, 3, 16
LAYERS, LAYER = 3, 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """Questions of T tokens; each looks at a session, some several at the same.

    Attributes:
        lengths: cells of each session.
        tails: cells of each question's own, before the new tokens.
        sessions: which one each question looks at; -1 for padding.
        mixed: whether rows are brought side by side, up to so many of a session; 0 for no.
    """

    lengths: tuple[int, ...]
    tails: tuple[int, ...]
    sessions: tuple[int, ...]
    mixed: int = 0
    tokens: int = 1
    window: int | None = None
    cap: float | None = None
    with_tail: bool = True
    dtype: str = "float32"


CASES = {
    "one session, one question": Case(lengths=(37,), tails=(0,), sessions=(0,), tokens=16),
    "decode": Case(lengths=(80,), tails=(17,), sessions=(0,)),
    "no tail": Case(lengths=(33,), tails=(0,), sessions=(0,), tokens=5, with_tail=False),
    "nothing read yet": Case(lengths=(0,), tails=(0,), sessions=(0,), tokens=40, with_tail=False),
    "many new tokens": Case(lengths=(16,), tails=(0,), sessions=(0,), tokens=150, with_tail=False),
    "questions of one session": Case(
        lengths=(79,), tails=(0, 1, 7, 8, 9, 24), sessions=(0,) * 6, tokens=1
    ),
    "one of each": Case(
        lengths=(0, 1, 15, 16, 17), tails=(3, 0, 8, 1, 23), sessions=(0, 1, 2, 3, 4)
    ),
    "mixed": Case(
        lengths=(31, 80, 0, 5), tails=(4, 0, 9, 2, 16, 0), sessions=(1, 0, 1, 3, 1, -1), mixed=3
    ),
    "mixed, several tokens": Case(
        lengths=(31, 64), tails=(4, 0, 9), sessions=(1, 0, 1), mixed=2, tokens=5
    ),
    "capped": Case(lengths=(80,), tails=(17, 2), sessions=(0, 0), cap=1.5, tokens=3),
    **{
        f"window {window}": Case(
            lengths=(75,), tails=(11, 0, 3), sessions=(0, 0, 0), tokens=9, window=window
        )
        for window in (1, 2, 8, 9, 12, 20, 40)
    },
    "window, mixed": Case(
        lengths=(75, 33), tails=(11, 0, 3), sessions=(1, 0, 1), tokens=2, window=7, mixed=2
    ),
    "window of a long chunk": Case(
        lengths=(60,), tails=(0,), sessions=(0,), tokens=140, window=50, with_tail=False
    ),
    "bfloat16": Case(lengths=(80,), tails=(17, 2), sessions=(0, 0), tokens=4, dtype="bfloat16"),
    "float16": Case(lengths=(80,), tails=(17, 2), sessions=(0, 0), tokens=4, dtype="float16"),
}
compiled_attend = jax.jit(attend, static_argnames=("backend", "heads", "window", "scale", "cap"))
# Softmax weights are rounded to the cells' dtype, at different places.
TOLERANCE = {"float32": 3e-6, "bfloat16": 3e-2, "float16": 4e-3}


def pool(
    random: np.random.Generator, tables: NDArray[np.int32], counts: tuple[int, ...], block: int
) -> NDArray[np.float32]:
    """Blocks [P, L, 2, block, K, H] of which one layer holds the first cells of each table, and
    all else is NaN."""
    cells = np.full((tables.size + 2, LAYERS, 2, block, KV_HEADS, HEAD_DIM), np.nan, np.float32)
    for table, count in zip(tables, counts, strict=True):
        at = np.arange(count)
        fresh = random.normal(0, 1, (count, 2, KV_HEADS, HEAD_DIM))
        cells[table[at // block], LAYER, :, at % block] = fresh
    return cells


def attended(case: Case, backend: str) -> NDArray[np.float64]:
    """Outputs of the questions that are no padding, [R, T, N, H]."""
    random = np.random.default_rng(3)
    kind = jnp.dtype(case.dtype)
    count, questions = len(case.lengths), len(case.sessions)
    tables = random.permutation(count * WIDTH).astype(np.int32).reshape(count, WIDTH)
    tail_tables = random.permutation(questions * TAIL_WIDTH).astype(np.int32)
    tail_tables = tail_tables.reshape(questions, TAIL_WIDTH)
    place, slots = [], [0] * count
    for session in case.sessions:
        place.append(count * case.mixed if session < 0 else session * case.mixed + slots[session])
        slots[session] += session >= 0
    context = LayerContext(
        cells=jnp.asarray(pool(random, tables, case.lengths, BLOCK), kind),
        layer=jnp.int32(LAYER),
        table=jnp.asarray(tables),
        lengths=jnp.asarray(case.lengths, jnp.int32),
        place=jnp.asarray(place, jnp.int32) if case.mixed else None,
        rows_each=case.mixed or 1,
    )
    tail = LayerTail(
        cells=jnp.asarray(pool(random, tail_tables, case.tails, TAIL_BLOCK), kind),
        layer=jnp.int32(LAYER),
        tables=jnp.asarray(tail_tables),
        used=jnp.asarray(case.tails, jnp.int32),
    )
    shape = (1, questions) if count == 1 or case.mixed else (questions, 1)
    seen = np.array([0 if one < 0 else case.lengths[one] for one in case.sessions])
    first = (seen + np.array(case.tails)).reshape(*shape, 1)
    positions = jnp.asarray(first + np.arange(case.tokens), jnp.int32)

    heads = Heads(queries=KV_HEADS * GROUP, keys=KV_HEADS)
    size = (*shape, case.tokens, heads.queries + 2 * heads.keys, HEAD_DIM)
    out = compiled_attend(
        backend,
        jnp.asarray(random.normal(0, 1, size), kind),
        positions,
        context,
        tail if case.with_tail else None,
        heads=heads,
        window=case.window,
        scale=HEAD_DIM**-0.5,
        cap=case.cap,
    )
    assert out.dtype == kind
    flat = np.asarray(out, np.float64).reshape(questions, *out.shape[2:])
    return flat[[one >= 0 for one in case.sessions]]


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_compute_what_the_reference_computes(name: str) -> None:
    case = CASES[name]
    expected = attended(case, "reference")
    found = attended(case, "triton-interpret")
    assert np.isfinite(expected).all()
    tolerance = TOLERANCE[case.dtype]
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dim", [8, 24, 64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sum_and_its_norm(dim: int, dtype: str) -> None:
    random = np.random.default_rng(dim)
    x, change = (jnp.asarray(random.normal(0, 2, (2, 3, 5, dim)), dtype) for _ in range(2))
    scale = jnp.asarray(random.normal(1, 0.1, dim), jnp.float32)
    total, normed = add_norm("reference", x, change, scale, eps=1e-5)
    found_total, found_normed = add_norm("triton-interpret", x, change, scale, eps=1e-5)
    assert found_total.dtype == found_normed.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(found_total), np.asarray(total))
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    wide, found = (np.asarray(part, np.float64) for part in (normed, found_normed))
    np.testing.assert_allclose(found, wide, atol=tolerance, rtol=tolerance)


def test_without_a_gpu_the_reference_is_chosen() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("this machine has a GPU")
    config, dtype = tiny_config(), jnp.dtype(jnp.bfloat16)
    assert choose_backend(config, dtype, StepConfig()) == "reference"
    with pytest.raises(InvalidInput, match="NVIDIA GPU"):
        choose_backend(config, dtype, StepConfig(attention="triton"))


@pytest.mark.parametrize("name", ["reference", "triton-interpret"])
def test_a_backend_can_be_asked_for(name: str) -> None:
    steps = StepConfig(attention=name)  # pyright: ignore[reportArgumentType]
    assert choose_backend(tiny_config(), jnp.dtype(jnp.float32), steps) == name


def test_a_model_answers_the_same_with_either() -> None:
    """Layers with and without a window, chunks and questions of several pieces, greedy."""
    answers = []
    for name in ("reference", "triton-interpret"):
        steps = StepConfig(
            block_cells=8,
            extend_tokens=(16,),
            question_tokens=(4,),
            tail_cells=(16,),
            attention=name,  # pyright: ignore[reportArgumentType]
        )
        model = random_model(tiny_config(), steps, seed=2)
        state = jaxstate.extend(model, jaxstate.init_state(model, cells=64), list(range(1, 40)))
        answers.append(jaxstate.query(model, state, [7, 8, 9, 7, 3], max_tokens=8))
    expected, found = answers
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
