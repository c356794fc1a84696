"""Which implementation of attention runs: asked of the device once, and said once.

Comes in: what the config wants and a model's shapes. Goes out: a `Backend`. A kernel is chosen only
if a small case of it, compiled and run on this device with this version of JAX, agrees with the
reference; otherwise the reason is logged and the reference runs.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstate.config import ModelConfig, StepConfig
from jaxstate.errors import InvalidInput
from jaxstate.model.backends import packed, reference, triton
from jaxstate.model.context import Heads, LayerContext, LayerTail, Packed
from jaxstate.model.devices import current_device

Backend = Literal["reference", "triton", "triton+cudnn", "triton-interpret"]

_log = logging.getLogger("jaxstate")


def attend(
    backend: Backend,
    qkv: Float[Array, "B Q T G H"],
    positions: Int[Array, "B Q T"],
    context: LayerContext | Packed,
    tail: LayerTail | None,
    *,
    heads: Heads,
    window: int | None,
    scale: float,
    cap: float | None = None,
) -> Float[Array, "B Q T N H"]:
    """`jaxstate.model.backends.reference.attend`, by that backend."""
    if isinstance(context, Packed):
        return packed.attend(
            qkv, positions, context, heads=heads, window=window, scale=scale, cap=cap
        )
    if backend == "triton+cudnn" and _cudnn().takes(qkv, context, tail, window, cap):
        return _cudnn().attend(qkv, context, heads=heads, scale=scale)
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


def reads_whole_tails(backend: Backend) -> bool:
    """Whether a question's own cells are read as far as its table goes; else as far as in use."""
    return backend == "reference"


def choose_backend(config: ModelConfig, dtype: jnp.dtype, steps: StepConfig) -> Backend:
    """The backend that `steps.attention` asks for, or with "auto" the fastest that works here.

    Raises:
        InvalidInput: a kernel was asked for by name that cannot run these shapes on this device.
    """
    if steps.attention in ("reference", "triton-interpret"):
        return steps.attention
    problem = _problem(config, jnp.dtype(dtype), steps)
    if problem is None:
        return "triton" if _cudnn_problem(config.head_dim, dtype) else "triton+cudnn"
    if steps.attention == "triton":
        raise InvalidInput(f'attention="triton" cannot run here: {problem}')
    if current_device().platform == "gpu":
        _say_once(f"attention runs as plain JAX, several times slower than the kernel: {problem}")
    return "reference"


def _problem(config: ModelConfig, dtype: jnp.dtype, steps: StepConfig) -> str | None:
    """Why the kernel cannot run a model; None if it can."""
    platform = current_device().platform
    if platform != "gpu":
        return f"it needs an NVIDIA GPU, this is {platform}"
    blocks = (steps.block_cells, steps.tail_block_cells, *steps.tail_cells)
    return triton.unsupported(config.head_dim, dtype, blocks) or _probe(config.head_dim, dtype)


@functools.cache
def _probe(head_dim: int, dtype: jnp.dtype) -> str | None:
    """Runs the kernel on a small case on this device; what is wrong with it, or None."""
    run = functools.partial(triton.attend, tail=_small_tail(head_dim, dtype))
    problem = _difference(run, head_dim, dtype, questions=2, tokens=3)
    if problem is None:
        _say_once(f"attention runs in Triton kernels ({dtype.name}, heads of {head_dim})")
    return problem


@functools.cache
def _cudnn_problem(head_dim: int, dtype: jnp.dtype) -> str | None:
    """Runs a long chunk through cuDNN on this device; what is wrong with it, or None."""

    def run(
        qkv: Array, _: Array, context: LayerContext, *, heads: Heads, window: None, scale: float
    ) -> Array:
        return _cudnn().attend(qkv, context, heads=heads, scale=scale)

    problem = _difference(run, head_dim, dtype, questions=1, tokens=512)
    what = f"not in cuDNN: {problem}" if problem else "in cuDNN"
    _say_once(f"attention of long chunks runs {what} ({dtype.name}, heads of {head_dim})")
    return problem


def _cudnn() -> ModuleType:
    """Imported only where it is used: it stands on an interface that JAX may change."""
    return importlib.import_module("jaxstate.model.backends.cudnn")


def _difference(
    run: Callable[..., Array], head_dim: int, dtype: jnp.dtype, *, questions: int, tokens: int
) -> str | None:
    """Whether `run` computes a small case as the reference does; what is wrong with it, or None."""
    context = LayerContext(
        cells=_normal(1, dtype, 6, 3, 2, 64, 2, head_dim),
        layer=jnp.int32(1),
        table=jnp.asarray([[5, 0, 3, 1]], jnp.int32),
        lengths=jnp.asarray([200], jnp.int32),
        place=None,
        rows_each=1,
    )
    tail = _small_tail(head_dim, dtype) if questions == 2 else None
    used = jnp.zeros((1, questions), jnp.int32) if tail is None else tail.used[None]
    positions = 200 + used[..., None] + jnp.arange(tokens, dtype=jnp.int32)[None, None]
    qkv = _normal(3, dtype, 1, questions, tokens, 8, head_dim)
    heads = Heads(queries=4, keys=2)
    try:
        found = run(qkv, positions, context, heads=heads, window=None, scale=0.1)
        values = np.asarray(found, np.float64)
    except Exception as error:  # Whatever a compiler of kernels throws, the reference still works.
        return f"the kernel does not compile or run: {type(error).__name__}: {error}"
    expected = np.asarray(
        reference.attend(qkv, positions, context, tail, heads=heads, window=None, scale=0.1),
        np.float64,
    )
    # Two ways of rounding to that dtype, of values about 1 in size.
    difference = float(np.abs(values - expected).max())
    if not difference < 8 * float(jnp.finfo(dtype).eps):
        return f"the kernel's results differ from the reference by {difference:.1e}"
    return None


def _small_tail(head_dim: int, dtype: jnp.dtype) -> LayerTail:
    return LayerTail(
        cells=_normal(4, dtype, 4, 3, 2, 32, 2, head_dim),
        layer=jnp.int32(2),
        tables=jnp.asarray([[2], [0]], jnp.int32),
        used=jnp.asarray([7, 0], jnp.int32),
    )


def _normal(seed: int, dtype: jnp.dtype, *shape: int) -> Array:
    values = np.random.default_rng(seed).normal(0, 1, shape)
    return jnp.asarray(values.astype(np.float32), dtype)


@functools.cache
def _say_once(message: str) -> None:
    _log.info(message)
