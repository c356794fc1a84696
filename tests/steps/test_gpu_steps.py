"""What a GPU is given to run, looked at without one: every step, lowered for CUDA.

A branch or a loop whose course a value on the device decides makes the host wait in the middle of a
step, and parts its graph in two.
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxstate.config import LayerAttention, Rope, StepConfig
from jaxstate.steps.compiled import plan_steps
from jaxstate.steps.engine_steps import plan_engine
from jaxstate.steps.programs import SESSION_PROGRAMS
from jaxstate.steps.row_programs import ROW_PROGRAMS
from jaxstate.steps.spec import Program, StepSpec
from jaxstate.testing import tiny_config

# Two layers that see everything and two with a window, in heads that the kernel takes.
LAYERS = tuple(LayerAttention(rope=Rope(base=1e4), window=window) for window in (None, 64) * 2)
CONFIG = dataclasses.replace(tiny_config(), layers=LAYERS, head_dim=64)
STEPS = StepConfig(
    extend_tokens=(16, 128),
    question_tokens=(16,),
    tail_cells=(64, 128),
    question_rows=(1, 8),
    step_sessions=(1, 8),
    choice_tokens=(4,),
)


def specs() -> list[StepSpec]:
    """Those of sessions and of an engine, as they are on a GPU."""
    dtype = jnp.dtype(jnp.bfloat16)
    alone = plan_steps(CONFIG, dtype, STEPS, 256)
    shared = plan_engine(CONFIG, dtype, STEPS, session_cells=256, cells=1024, sessions=4)
    found = [*alone.specs(), *shared.specs()]
    return [dataclasses.replace(spec, backend="triton") for spec in found]


def lowered(spec: StepSpec) -> str:
    build = SESSION_PROGRAMS.get(spec.kind) or ROW_PROGRAMS[spec.kind]  # pyright: ignore
    program: Program = build(spec)
    jitted = jax.jit(program.function, donate_argnums=program.donated)
    return jitted.trace(*program.arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kind", sorted({spec.kind for spec in specs()}))
def test_no_step_branches_or_loops_by_what_it_computes(kind: str) -> None:
    for spec in specs():
        if spec.kind == kind:
            text = lowered(spec)
            assert not re.findall(r"stablehlo\.(?:while|case|if)\b", text), spec
            # Greedy rows pay for no sort: a row that samples is followed by a step of its own.
            assert ("stablehlo.sort" in text) == (kind in {"draw", "draw_rows"}), spec


def test_the_steps_that_read_are_made_of_the_kernels() -> None:
    """Two kernels for attention and two for norms in each layer, one of them for what follows."""
    found = {spec.kind: lowered(spec).count("triton") for spec in specs()}
    reading = {"extend", "ask", "query", "commit", "start", "more", "decode", "score"}
    assert {kind for kind, count in found.items() if count} == reading


def test_the_reference_loops_by_length() -> None:
    """Which is why a GPU does not run it; and the test above would see it."""
    spec = next(spec for spec in specs() if spec.kind == "decode")
    assert "stablehlo.while" in lowered(dataclasses.replace(spec, backend="reference"))


def test_kernels_that_read_what_is_in_use_need_one_size_of_tail() -> None:
    sizes = {}
    for attention in ("reference", "triton-interpret"):
        steps = dataclasses.replace(STEPS, attention=attention)
        shared = plan_engine(
            CONFIG, jnp.dtype("float32"), steps, session_cells=256, cells=1024, sessions=4
        )
        sizes[attention] = {spec.tail_cells for spec in shared.specs() if spec.kind == "decode"}
    assert sizes == {"reference": {64, 128}, "triton-interpret": {128}}
