"""Tensors of a file -> the decoder's parameters as jax arrays.

Comes in: a `TensorSource`, the `NameTable` for it and the flat path -> shape and dtype of every
parameter. Goes out: a nested dict of jax arrays. Everything is checked first. Then each parameter
is filled in one host buffer, by row blocks that threads read, dequantise, transpose and cast, and
is handed to jax; on CPU jax takes the buffer itself, elsewhere it is released once the copy is on
the device. So the peak is the parameters plus a few blocks (CPU), or the largest parameter plus a
few blocks (elsewhere).
Does not know: file formats, families.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, Union

import jax
import numpy as np

from jaxstate.errors import InvalidInput
from jaxstate.weights.names import NameTable
from jaxstate.weights.plan import Abstract, Placement, make_plan
from jaxstate.weights.source import TensorSource

Params: TypeAlias = dict[str, Union[jax.Array, "Params"]]
Progress: TypeAlias = Callable[[int, int], None]

# 1 MB of float32: a block and its temporaries stay in the caches (a Q8_0 embedding of 262144 x 640
# takes 0.28 s in such blocks and 0.47 s in ones of 5 MB).
_BLOCK_ELEMENTS = 2**18
_ALIGNMENT = 64  # bytes; XLA's CPU client copies what is aligned less
_MAX_THREADS = 8


@dataclass(frozen=True)
class _Block:
    """Rows of one tensor, and where they go."""

    placement: Placement
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        return (self.stop - self.start) * math.prod(self.placement.shape[1:])


def load_params(
    source: TensorSource,
    table: NameTable,
    abstract: Abstract,
    *,
    sharding: jax.sharding.Sharding | None = None,
    progress: Progress | None = None,
    num_threads: int | None = None,
) -> Params:
    """Loads all parameters.

    Args:
        source: the tensors.
        table: `name_table(config, file_format)`.
        abstract: flat path ("layers_0/mlp/w_down") -> shape and dtype, by `jax.eval_shape` of the
            model.
        sharding: where the arrays go; None for jax's default device.
        progress: called from this thread with bytes of parameters done and in all.
        num_threads: how many blocks are prepared at once; None for one a core, at most 8.

    Returns:
        Nested dict with the shapes and dtypes of `abstract`.

    Raises:
        WeightsMismatch: tensors and parameters do not fit; lists everything, and nothing was
            loaded.
        UnsupportedModel: a file was damaged since it was opened.
        InvalidInput: `num_threads` is below 1.
    """
    if num_threads is not None and num_threads < 1:
        raise InvalidInput(f"num_threads={num_threads} must be positive")
    plan = make_plan(source, table, abstract)
    total = sum(_num_bytes(leaf) for leaf in abstract.values())
    done = 0
    flat: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(num_threads or min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for path, leaf in abstract.items():
            buffer = _aligned_empty(leaf)
            for elements in _fill(pool, buffer, source, plan[path], table.head_dim):
                done += elements * buffer.itemsize
                if progress is not None:
                    progress(done, total)
            flat[path] = _hand_over(buffer, sharding)
    return _nested(flat)


def _num_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _aligned_empty(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    size = _num_bytes(leaf)
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + size].view(leaf.dtype).reshape(leaf.shape)


def _fill(
    pool: ThreadPoolExecutor,
    buffer: np.ndarray,
    source: TensorSource,
    placements: tuple[Placement, ...],
    head_dim: int,
) -> Iterator[int]:
    """Fills one parameter; yields the number of elements after each block."""
    pending: list[tuple[Future[None], int]] = []
    try:
        for block in _blocks(placements, head_dim):
            future = pool.submit(_write, buffer, source, block, head_dim)
            pending.append((future, block.num_elements))
        for future, elements in pending:
            future.result()
            yield elements
    finally:
        for future, _ in pending:
            future.cancel()  # after an error the rest is not worth reading


def _blocks(placements: tuple[Placement, ...], head_dim: int) -> Iterator[_Block]:
    for placement in placements:
        unit = head_dim if placement.permuted else 1  # heads are reordered as a whole
        row_elements = math.prod(placement.shape[1:])
        step = max(1, _BLOCK_ELEMENTS // (row_elements * unit)) * unit
        for start in range(0, placement.shape[0], step):
            yield _Block(placement, start, min(start + step, placement.shape[0]))


def _write(buffer: np.ndarray, source: TensorSource, block: _Block, head_dim: int) -> None:
    """Reads one block, converts it and casts it into its place."""
    placement = block.placement
    values = source.rows(placement.name, block.start, block.stop)
    if placement.permuted:
        values = _half_split(values, head_dim)
    if placement.transform == "add_one":
        # In float32: 1 + w rounds away most of a small bfloat16 w.
        values = values.astype(np.float32) + np.float32(1)
    first = placement.columns[0]
    if placement.transposed:
        buffer[:, first + block.start : first + block.stop] = values.T
    else:
        buffer[first + block.start : first + block.stop] = values


def _half_split(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows 2 j + s of each head go to s * H / 2 + j: the inverse of llama.cpp's `permute`."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def _hand_over(buffer: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """A jax array of the buffer; nobody writes to the buffer afterwards, so jax may keep it."""
    return jax.device_put(buffer, sharding, may_alias=True).block_until_ready()


def _nested(flat: Mapping[str, jax.Array]) -> Params:
    root: Params = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = root
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise InvalidInput(f"{path} lies within another parameter")
            node = child
        node[leaf] = array
    return root
