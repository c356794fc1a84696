"""What people name as a model and what is none that we read: called by its name, with the way out.

Comes in: a name or a path. Goes out: nothing, or an `UnsupportedModel` or `InvalidInput` that says
what it is and what to do. Does not know: how models are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.textfiles import read_text_file

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_CONVERT = (
    "load it with transformers, where that is installed, and write it again: "
    "model.save_pretrained(DIRECTORY, safe_serialization=True)"
)


def check_is_model(path: Path) -> None:
    """Refuses a file or directory that is there and is something else than a model of ours.

    Raises:
        UnsupportedModel: what it is, and the way out.
        InvalidInput: nothing that is known.
    """
    what = (_of_file if path.is_file() else _of_directory)(path)
    if what is not None:
        raise UnsupportedModel(f"{path} {what}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InvalidInput(
            f"{path} is no model: a directory needs a config.json, a file must be a .gguf"
        )


def refuse_missing(name: str, known: Callable[[], tuple[str, ...]]) -> InvalidInput:
    """What to say of a path that is not there.

    Args:
        name: as given; it has a separator in it, or ends as a file of weights does.
        known: the names that would do.
    """
    if _REPOSITORY.fullmatch(name) and not Path(name).parent.exists():
        return InvalidInput(
            f"{name} is no path here, and looks like a repository on a hub. Nothing is downloaded: "
            f"get it first (hf download {name} --local-dir DIRECTORY), and give that directory; or "
            f"give one of the known names: {', '.join(known())}"
        )
    return InvalidInput(f"there is no model at {name}: no such file or directory")


def _of_file(path: Path) -> str | None:
    """What a file is; None for one that is to be read as GGUF."""
    ending = path.suffix.lower()
    if ending == ".safetensors":
        return (
            "is a file of weights alone: give the directory that it lies in, with the model's "
            "config.json and tokenizer beside it"
        )
    if ending in _PICKLES:
        return f"is a pickle, which could run code while it is read: {_CONVERT}"
    if ending in (".json", ".model", ".jinja"):
        return "is a part of a model: give the directory that it lies in"
    if ending in (".onnx", ".tflite", ".h5", ".msgpack", ".npz"):
        return f"has a format that is not read here ({ending}): {_CONVERT}"
    return None


def _of_directory(path: Path) -> str | None:
    """What a directory is; None for one that is to be read as a Hugging Face model."""
    has = {one.name for one in path.iterdir()}
    if "adapter_config.json" in has:
        return (
            f"is an adapter (LoRA) of {_base_of(path)}, not a model: merge it into that one with "
            "peft (merge_and_unload), save the result, and give its directory"
        )
    if "config.json" not in has:
        return _without_config(path, has)
    stored = [name for name in has if name.endswith((".safetensors", ".safetensors.index.json"))]
    others = sorted(name for name in has if Path(name).suffix in (*_PICKLES, ".h5", ".msgpack"))
    if not stored and others:
        return f"has its weights as {others[0]}, and no safetensors: {_CONVERT}"
    return None


def _without_config(path: Path, has: set[str]) -> str | None:
    files = sorted(name for name in has if name.endswith(".gguf"))
    if len(files) == 1:
        return f"is a directory around a GGUF file: give the file, {path / files[0]}"
    if files:
        return f"holds several GGUF files: give one of them, such as {path / files[0]}"
    if "session.json" in has:
        return "is a saved session, not a model: ask it with `jaxstate ask`, or go on with --load"
    if "journal.db" in has:
        return "is a journal, not a model: `jaxstate inspect` shows what it holds"
    if "snapshots" in has and (found := sorted((path / "snapshots").glob("*/config.json"))):
        return f"is a hub's cache around a model: give {found[0].parent}"
    if {"params.json", "consolidated.00.pth", "consolidated.safetensors"} & has:
        return "is a model in its authors' own format: give one in the Hugging Face layout"
    return None


def _base_of(path: Path) -> str:
    try:
        found = json.loads(read_text_file(path / "adapter_config.json", "the adapter's config"))
        base = found["base_model_name_or_path"]
    except (InvalidInput, ValueError, KeyError, TypeError):
        return "another model"
    return str(base)
