"""Safetensors files as a `TensorSource`.

Comes in: a `.safetensors` file, or a directory with `model.safetensors` or with
`model.safetensors.index.json` and its shards. Goes out: names, shapes and row blocks. The
safetensors library validates every header when it is opened; the blocks are read with `read_exact`,
because the library's own slices keep the whole file mapped.
Does not know: what the tensors mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxstate.errors import UnsupportedModel
from jaxstate.textfiles import read_text_file
from jaxstate.weights.source import check_rows, read_exact

_DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
    }
)


@dataclass(frozen=True)
class _Stored:
    """Where one tensor lies."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class SafetensorsFiles:
    """The tensors of one file or of all shards; nothing is held open."""

    def __init__(self, tensors: Mapping[str, _Stored]) -> None:
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        """All tensor names, in file order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape, [out, in] for a linear layer."""
        return self._tensors[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` as stored: float32, float16 or bfloat16."""
        stored = self._tensors[name]
        check_rows(name, stored.shape[0], start, stop)
        row_bytes = stored.dtype.itemsize * math.prod(stored.shape[1:])
        offset = stored.offset + start * row_bytes
        data = read_exact(stored.path, offset, (stop - start) * row_bytes)
        return data.view(stored.dtype).reshape(stop - start, *stored.shape[1:])


def open_safetensors(path: Path) -> SafetensorsFiles:
    """Opens one `.safetensors` file, or a model directory (single file or shards).

    Raises:
        UnsupportedModel: no such file, a damaged header, a missing shard, a name that the index
            promises and the shard lacks (or the other way round), or an element type other than
            F32, F16 and BF16; lists all.
    """
    if path.is_file():
        return SafetensorsFiles(_read_headers([path]))
    single = path / "model.safetensors"
    if single.is_file():  # before an index that lies beside it, as transformers does
        return SafetensorsFiles(_read_headers([single]))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return SafetensorsFiles(_read_shards(index))
    raise UnsupportedModel(
        f"{path}: there is neither model.safetensors nor model.safetensors.index.json"
    )


def _read_shards(index: Path) -> Mapping[str, _Stored]:
    weight_map = _read_weight_map(index)
    shards = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    missing = [f"shard {name} is missing" for name, path in shards.items() if not path.is_file()]
    if missing:
        raise UnsupportedModel(f"{index}: " + "; ".join(missing))
    tensors = _read_headers(list(shards.values()))
    found = {name: stored.path.name for name, stored in tensors.items()}
    problems = [
        f"{name} should be in {shard} and is {'in ' + found[name] if name in found else 'nowhere'}"
        for name, shard in weight_map.items()
        if found.get(name) != shard
    ]
    problems += [
        f"{name} in {found[name]} is not in the index" for name in found.keys() - weight_map
    ]
    if problems:
        raise UnsupportedModel(f"{index} does not describe its shards: " + "; ".join(problems))
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        content: object = json.loads(read_text_file(index, "the index"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{index} cannot be read: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedModel(f"{index} has no weight_map")
    wrong = [name for name, shard in weight_map.items() if not _is_plain_file_name(shard)]
    if wrong:
        # A shard name with a directory in it could point anywhere on this machine.
        raise UnsupportedModel(f"{index}: no plain file name for {', '.join(wrong)}")
    return weight_map


def _is_plain_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def _read_headers(paths: Sequence[Path]) -> Mapping[str, _Stored]:
    tensors: dict[str, _Stored] = {}
    problems: list[str] = []
    for path in paths:
        for name, stored in _read_header(path, problems).items():
            if name in tensors:
                problems.append(f"{name} is in {tensors[name].path.name} and in {path.name}")
            tensors[name] = stored
    if problems:
        raise UnsupportedModel("these safetensors files cannot be used: " + "; ".join(problems))
    return MappingProxyType(tensors)


def _read_header(path: Path, problems: list[str]) -> dict[str, _Stored]:
    """One file's tensors; what is wrong goes to `problems`."""
    try:
        with safe_open(path, framework="numpy") as file:  # checks lengths, offsets and the JSON
            file.keys()
    except (SafetensorError, OSError) as error:
        problems.append(f"{path.name} is damaged or truncated ({error})")
        return {}
    header_bytes = int(read_exact(path, 0, 8).view("<u8")[0])
    header = json.loads(read_exact(path, 8, header_bytes).tobytes())
    header.pop("__metadata__", None)
    tensors: dict[str, _Stored] = {}
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            problems.append(f"{name} has type {entry['dtype']} (supported: {', '.join(_DTYPES)})")
            continue
        offset = 8 + header_bytes + entry["data_offsets"][0]
        tensors[name] = _Stored(path, offset, tuple(entry["shape"]), dtype)
    return tensors
