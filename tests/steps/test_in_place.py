"""Pools that a step takes over are written in place: no step needs memory in proportion to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from jaxstate.config import StepConfig
from jaxstate.steps.compiled import plan_steps
from jaxstate.steps.engine_steps import plan_engine
from jaxstate.steps.programs import SESSION_PROGRAMS
from jaxstate.steps.row_programs import ROW_PROGRAMS
from jaxstate.steps.spec import Program, StepSpec
from jaxstate.testing import tiny_config

# Large pools of cells and of rows, equally large, and little else. What a step over several
# sessions needs beside them (9 MB here) does not grow with the pools.
CONFIG = dataclasses.replace(tiny_config(), max_context=1 << 20)
CELLS = 1 << 17
POOL_CELLS = 4 * CELLS
STEPS = StepConfig(
    block_cells=16,
    extend_tokens=(16,),
    question_tokens=(16,),
    tail_cells=(32,),
    question_rows=(1, 4),
    step_tokens=64,
    choice_tokens=(4,),
    tail_block_cells=16,
    tail_blocks=POOL_CELLS // 16,
)
TAKES_OVER = (
    *("commit", "start", "more", "decode", "score", "copy", "put_ready"),
    *("extend", "ask", "query"),
)


def specs() -> Iterator[StepSpec]:
    dtype = jnp.dtype("float32")
    yield from plan_engine(
        CONFIG, dtype, STEPS, session_cells=CELLS, cells=POOL_CELLS, sessions=4
    ).specs()
    planned = plan_steps(CONFIG, dtype, STEPS, CELLS)
    yield from (*planned.reading_specs(), *planned.asking_specs(STEPS.tail_cells[0]))


def program(spec: StepSpec) -> Program:
    return (ROW_PROGRAMS.get(spec.kind) or SESSION_PROGRAMS[spec.kind])(spec)  # pyright: ignore


def name_of(spec: StepSpec) -> str:
    looks = f"{spec.sessions} sessions x{spec.rows_each}" if spec.sessions > 1 else "1 session"
    return f"{spec.kind} x{spec.rows} {spec.tokens} {spec.tail_cells} {looks}"


SPECS = {name_of(spec): spec for spec in specs() if spec.kind in TAKES_OVER}


def test_no_two_steps_have_one_name() -> None:
    assert len(SPECS) == sum(spec.kind in TAKES_OVER for spec in specs())


@pytest.mark.parametrize("name", SPECS)
def test_no_step_copies_a_pool(name: str) -> None:
    made = program(SPECS[name])
    lowered = jax.jit(made.function, donate_argnums=made.donated).lower(*made.arguments)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    pool_bytes = max(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(made.arguments)
        if hasattr(leaf, "size")
    )
    assert memory.temp_size_in_bytes < pool_bytes / 2, "one layer's pool is copied"
