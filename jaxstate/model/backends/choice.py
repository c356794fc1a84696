"""Which implementation of attention runs: asked of the device once, and said once.

Comes in: what the config wants and a model's shapes. Goes out: a `Backend`. A kernel is chosen only
if a small case of it, compiled and run on this device with this version of JAX, agrees with the
reference; otherwise the reason is logged and the reference runs.
"""

from __future__ import annotations

import functools
import logging
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstate.config import ModelConfig, StepConfig
from jaxstate.errors import InvalidInput
from jaxstate.model.backends import reference, triton
from jaxstate.model.context import Heads, LayerContext, LayerTail

Backend = Literal["reference", "triton", "triton-interpret"]

_log = logging.getLogger("jaxstate")


def attend(
    backend: Backend,
    qkv: Float[Array, "B Q T G H"],
    positions: Int[Array, "B Q T"],
    context: LayerContext,
    tail: LayerTail | None,
    *,
    heads: Heads,
    window: int | None,
    scale: float,
    cap: float | None = None,
) -> Float[Array, "B Q T N H"]:
    """`jaxstate.model.backends.reference.attend`, by that backend."""
    run = reference.attend
    if backend != "reference":
        run = functools.partial(triton.attend, interpret=backend == "triton-interpret")
    return run(qkv, positions, context, tail, heads=heads, window=window, scale=scale, cap=cap)


def add_norm(
    backend: Backend,
    x: Float[Array, "*batch D"],
    change: Float[Array, "*batch D"] | None,
    scale: Float[Array, " D"],
    *,
    eps: float,
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch D"]]:
    """`jaxstate.model.backends.reference.add_norm`, by that backend."""
    if backend == "reference" or change is None:
        return reference.add_norm(x, change, scale, eps=eps)
    return triton.add_norm(x, change, scale, eps=eps, interpret=backend == "triton-interpret")


def choose_backend(config: ModelConfig, dtype: jnp.dtype, steps: StepConfig) -> Backend:
    """The backend that `steps.attention` asks for, or with "auto" the fastest that works here.

    Raises:
        InvalidInput: a kernel was asked for by name that cannot run these shapes on this device.
    """
    if steps.attention in ("reference", "triton-interpret"):
        return steps.attention
    problem = _problem(config, jnp.dtype(dtype), steps)
    if problem is None:
        return "triton"
    if steps.attention == "triton":
        raise InvalidInput(f'attention="triton" cannot run here: {problem}')
    if jax.default_backend() == "gpu":
        _say_once(f"attention runs as plain JAX, several times slower than the kernel: {problem}")
    return "reference"


def _problem(config: ModelConfig, dtype: jnp.dtype, steps: StepConfig) -> str | None:
    """Why the kernel cannot run a model; None if it can."""
    if jax.default_backend() != "gpu":
        return f"it needs an NVIDIA GPU, this is {jax.default_backend()}"
    blocks = (steps.block_cells, steps.tail_block_cells, *steps.tail_cells)
    return triton.unsupported(config.head_dim, dtype, blocks) or _probe(config.head_dim, dtype)


@functools.cache
def _probe(head_dim: int, dtype: jnp.dtype) -> str | None:
    """Runs the kernel on a small case on this device; what is wrong with it, or None."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return jnp.asarray(random.normal(0, 1, shape).astype(np.float32), dtype)

    blocks, cells = 6, 64
    context = LayerContext(
        keys=normal(blocks, cells, 2, head_dim),
        values=normal(blocks, cells, 2, head_dim),
        table=jnp.asarray([[5, 0, 3, 1]], jnp.int32),
        lengths=jnp.asarray([200], jnp.int32),
        place=None,
        rows_each=1,
    )
    tail = LayerTail(
        keys=normal(4, 32, 2, head_dim),
        values=normal(4, 32, 2, head_dim),
        tables=jnp.asarray([[2], [0]], jnp.int32),
        used=jnp.asarray([7, 0], jnp.int32),
    )
    qkv, heads = normal(1, 2, 3, 8, head_dim), Heads(queries=4, keys=2)
    positions = jnp.asarray([[[207, 208, 209], [200, 201, 202]]], jnp.int32)
    try:
        found, expected = (
            np.asarray(
                run(qkv, positions, context, tail, heads=heads, window=None, scale=0.1), np.float64
            )
            for run in (triton.attend, reference.attend)
        )
    except Exception as error:  # Whatever a compiler of kernels throws, the reference still works.
        return f"the kernel does not compile or run: {type(error).__name__}: {error}"
    # Two ways of rounding to that dtype, of values about 1 in size.
    difference = float(np.abs(found - expected).max())
    if not difference < 8 * float(jnp.finfo(dtype).eps):
        return f"the kernel's results differ from the reference by {difference:.1e}"
    _say_once(f"attention runs in Triton kernels ({dtype.name}, heads of {head_dim})")
    return None


@functools.cache
def _say_once(message: str) -> None:
    _log.info(message)
