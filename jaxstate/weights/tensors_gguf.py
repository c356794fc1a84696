"""GGUF files as metadata and a `TensorSource`.

Comes in: a path. Goes out: metadata as plain Python values, and tensors by row blocks: F32, F16 and
BF16 as stored, everything else dequantised to float32 by the `gguf` package.
Does not know: what keys and tensors mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from jaxstate.errors import UnsupportedModel
from jaxstate.weights.gguf_header import TensorEntry, read_gguf_header
from jaxstate.weights.source import check_rows, read_exact

_PLAIN: Mapping[GGMLQuantizationType, np.dtype] = MappingProxyType(
    {
        GGMLQuantizationType.F32: np.dtype(np.float32),
        GGMLQuantizationType.F16: np.dtype(np.float16),
        GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
    }
)


# Of a file that was cut short, nearly all tensors are concerned.
_SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class _Stored:
    """Where one tensor lies, and how a row of it is coded."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int

    @property
    def row_elements(self) -> int:
        """Elements of one row; ggml quantises along the last axis, so a vector is one row."""
        return self.shape[0] if len(self.shape) == 1 else math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        block_elements, block_bytes = GGML_QUANT_SIZES[self.kind]
        return self.row_elements // block_elements * block_bytes

    @property
    def num_bytes(self) -> int:
        return self.row_bytes * (self.shape[0] if len(self.shape) > 1 else 1)


class GgufTensors:
    """The tensors of one file; nothing is held open."""

    def __init__(self, path: Path, tensors: Mapping[str, _Stored]) -> None:
        self._path = path
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        """All tensor names, in file order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in torch order, [out, in] for a linear layer."""
        return self._tensors[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`: as stored if F32, F16 or BF16, otherwise in float32."""
        stored = self._tensors[name]
        check_rows(name, stored.shape[0], start, stop)
        if len(stored.shape) == 1:
            return self._decode(stored, 0, 1)[0, start:stop].copy()
        return self._decode(stored, start, stop).reshape(stop - start, *stored.shape[1:])

    def _decode(self, stored: _Stored, start: int, stop: int) -> np.ndarray:
        size = (stop - start) * stored.row_bytes
        data = read_exact(self._path, stored.offset + start * stored.row_bytes, size)
        plain = _PLAIN.get(stored.kind)
        if plain is not None:
            return data.view(plain).reshape(stop - start, stored.row_elements)
        if not size:
            return np.empty((stop - start, stored.row_elements), np.float32)
        # One long row: gguf would otherwise walk 16 rows at a time, eight times slower on narrow
        # tensors. Quantisation blocks never straddle rows, so the numbers are the same.
        values = dequantize(data.reshape(1, -1), stored.kind)
        return values.reshape(stop - start, stored.row_elements)


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file.

    Attributes:
        metadata: every key, as str, int, float, bool or a list of one of these.
        tensors: the tensors, read lazily.
    """

    metadata: Mapping[str, object]
    tensors: GgufTensors


def open_gguf(path: Path) -> GgufFile:
    """Opens a GGUF file and checks that every tensor can be read; reads no tensor.

    Raises:
        UnsupportedModel: not a GGUF file, damaged, truncated, one part of a split model, or with
            tensors of a type that cannot be dequantised; lists the first of those.
    """
    header = read_gguf_header(path)
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedModel(
            f"{path} is one part of {header.metadata['split.count']}; "
            "join them with llama-gguf-split --merge"
        )
    file_size = path.stat().st_size
    problems: list[str] = []
    tensors = {
        name: stored
        for name, entry in header.tensors.items()
        if (stored := _check(name, entry, file_size, problems))
    }
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        rest = f"; and {more} more tensors of {len(header.tensors)}" if more > 0 else ""
        raise UnsupportedModel(f"{path} cannot be used: {shown}{rest}")
    return GgufFile(header.metadata, GgufTensors(path, MappingProxyType(tensors)))


def _check(name: str, entry: TensorEntry, file_size: int, problems: list[str]) -> _Stored | None:
    try:
        kind = GGMLQuantizationType(entry.type_code)
    except ValueError:
        problems.append(f"{name} has the unknown type {entry.type_code}")
        return None
    if kind not in _PLAIN and not _can_dequantise(kind):
        problems.append(f"{name} has type {kind.name}, which cannot be dequantised")
        return None
    stored = _Stored(entry.shape, kind, entry.offset)
    block_elements, _ = GGML_QUANT_SIZES[kind]
    if entry.shape[-1] % block_elements or 0 in entry.shape:
        problems.append(f"{name} of shape {entry.shape} is not made of {kind.name} blocks")
        return None
    end = stored.offset + stored.num_bytes
    if end > file_size:
        problems.append(f"{name} ends at byte {end}, the file (truncated?) at {file_size}")
        return None
    return stored


def _can_dequantise(kind: GGMLQuantizationType) -> bool:
    """Asks gguf itself, with one block of zeros: no list of its types here can grow old."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
