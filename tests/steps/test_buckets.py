"""Which compiled shape serves which input: borders, and that nothing falls past the last one."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.cells.layout import plan_layout
from jaxstate.config import StepConfig
from jaxstate.errors import InvalidInput, PromptTooLong
from jaxstate.steps.buckets import Chunk, chunks, question_sizes, smallest_fitting, tail_size
from jaxstate.steps.compiled import SessionSteps
from jaxstate.testing import TINY_CONFIG

sizes = st.sets(st.integers(1, 40), min_size=1, max_size=4).map(lambda found: tuple(sorted(found)))
step_configs = st.builds(
    StepConfig,
    block_cells=st.integers(1, 8),
    extend_tokens=sizes,
    question_tokens=sizes,
    tail_cells=sizes,
)


@pytest.mark.parametrize(
    ("count", "size"), [(0, 4), (1, 4), (3, 4), (4, 4), (5, 16), (15, 16), (16, 16), (17, None)]
)
def test_the_smallest_that_fits(count: int, size: int | None) -> None:
    assert smallest_fitting(count, (4, 16)) == size


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(0, 1, 4)]),
        (3, [(0, 3, 4)]),
        (4, [(0, 4, 4)]),
        (5, [(0, 5, 16)]),
        (16, [(0, 16, 16)]),
        (17, [(0, 16, 16), (16, 1, 4)]),
        (20, [(0, 16, 16), (16, 4, 4)]),
        (21, [(0, 16, 16), (16, 5, 16)]),
        (33, [(0, 16, 16), (16, 16, 16), (32, 1, 4)]),
    ],
)
def test_chunks(count: int, expected: list[tuple[int, int, int]]) -> None:
    assert list(chunks(count, (4, 16))) == [Chunk(*one) for one in expected]


@given(count=st.integers(1, 200), declared=sizes)
def test_chunks_cover_every_token_once(count: int, declared: tuple[int, ...]) -> None:
    found = list(chunks(count, declared))
    assert [token for c in found for token in range(c.start, c.start + c.count)] == list(
        range(count)
    )
    for chunk in found:
        assert chunk.size == smallest_fitting(chunk.count, declared)
        assert chunk.count >= 1
    assert all(chunk.count == declared[-1] for chunk in found[:-1])


@pytest.mark.parametrize(
    ("question", "answer", "size"),
    [
        *[(1, 1, 8), (7, 1, 8), (8, 1, 8), (9, 1, 32), (1, 8, 8), (1, 9, 32), (4, 5, 8)],
        *[(5, 5, 32), (31, 1, 32), (32, 1, 32), (1, 32, 32), (17, 16, 32)],
    ],
)
def test_tails(question: int, answer: int, size: int) -> None:
    """The last answer token needs no cell."""
    assert tail_size(question, answer, StepConfig(tail_cells=(8, 32))) == size


@pytest.mark.parametrize(("question", "answer"), [(33, 1), (32, 2), (1, 33), (17, 17), (1000, 1)])
def test_a_tail_past_the_last_bucket_is_refused(question: int, answer: int) -> None:
    with pytest.raises(PromptTooLong, match="holds 32") as caught:
        tail_size(question, answer, StepConfig(tail_cells=(8, 32)))
    assert isinstance(caught.value, InvalidInput)
    assert str(question + answer - 1) in str(caught.value)


@given(steps=step_configs, data=st.data())
def test_whatever_is_asked_has_a_declared_shape(steps: StepConfig, data: st.DataObject) -> None:
    """The list that warm-up compiles holds every shape that a question or a push can bring."""
    layout = plan_layout(TINY_CONFIG, cells=64, block_cells=steps.block_cells)
    table = SessionSteps(
        config=TINY_CONFIG, dtype=jnp.dtype(jnp.float32), layout=layout, steps=steps
    )
    specs = list(table.specs())
    assert len(set(specs)) == len(specs)
    shapes = {(spec.kind, spec.tokens, spec.tail_cells) for spec in specs}
    largest = steps.tail_cells[-1]
    question = data.draw(st.integers(1, largest))
    answer = data.draw(st.integers(1, largest + 1 - question))
    tail = tail_size(question, answer, steps)
    assert ("query", 1, tail) in shapes
    first, *rest = chunks(question, question_sizes(tail, steps))
    assert ("ask", first.size, tail) in shapes
    for chunk in rest:
        assert ("query", chunk.size, tail) in shapes
    for chunk in chunks(data.draw(st.integers(1, 100)), steps.extend_tokens):
        assert ("extend", chunk.size, 0) in shapes
    copied = {spec.group for spec in specs if spec.kind == "read"}
    assert copied == set(layout.layer_groups)


@given(steps=step_configs)
def test_no_shape_is_declared_that_cannot_occur(steps: StepConfig) -> None:
    """Compiling is the price of a start; nobody should pay for a prefill larger than its tail."""
    for tail in steps.tail_cells:
        offered = question_sizes(tail, steps)
        used = {c.size for n in range(1, tail + 1) for c in chunks(n, offered)}
        assert set(offered) == used
