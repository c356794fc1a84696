"""Parameters -> a safetensors file as transformers names it: the way back of `load`.

Comes in: a config and the decoder's parameters. Goes out: `model.safetensors` in bfloat16, by the
same name table that reads it. Does not know: config files, tokenizers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from jaxstate.config import ModelConfig
from jaxstate.weights.load import Params
from jaxstate.weights.names import NameTable, Rule, Transform, name_pattern, name_table


def save_weights(path: Path, config: ModelConfig, params: Params) -> None:
    """Writes them in bfloat16, aside first, so that nobody reads half a file."""
    aside = path.with_name(path.name + ".part")
    save_file(hf_tensors(config, params), aside, metadata={"format": "pt"})
    os.replace(aside, path)


def hf_tensors(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Every tensor of a Hugging Face file of that model, bfloat16, under its usual name."""
    table = name_table(config, "hf")
    flat = cast("dict[str, jax.Array]", traverse_util.flatten_dict(params, sep="/"))
    tensors: dict[str, np.ndarray] = {}
    for path, array in flat.items():
        values = np.asarray(array).astype(np.float32)
        for rule in table.rules:
            found = name_pattern(rule.path).fullmatch(path)
            if found is not None:
                name = rule.names[0].replace("{i}", "".join(found.groups()))
                tensors[name] = _tensor(values, rule, table)
    return tensors


def _tensor(values: np.ndarray, rule: Rule, table: NameTable) -> np.ndarray:
    if rule.part != "whole":
        first, end = table.columns[rule.part]
        values = values[..., first:end]
    changed = {"copy": values, "transpose": values.T, "add_one": values - 1}
    unsupported: tuple[Transform, ...] = ("unpermute", "transpose_unpermute")
    if rule.transform in unsupported:
        raise ValueError(f"{rule.transform} occurs in GGUF files only")
    return np.ascontiguousarray(changed[rule.transform]).astype(ml_dtypes.bfloat16)
