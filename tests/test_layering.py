"""Which way the arrows go: a module imports only from the left, and only `steps` and `training`
compile.

    records, errors, config, textfiles, formats -> text | weights | cells -> model -> steps
        -> persist -> engine -> the package itself -> serve -> cli, __main__      (testing: up
        to engine; training: up to model)

The rules are functions of source text, so the test of the test can give them a violation.
"""

from __future__ import annotations

import ast
import functools
import gc
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import jaxstate

Sources = Mapping[str, str]

PACKAGE = "jaxstate"
ROOT = Path(jaxstate.__file__).parent
# "" is jaxstate/__init__.py: what users import, so neither server nor command line is in it.
RANKS = {
    **dict.fromkeys(("records", "errors", "config", "textfiles", "formats"), 0),
    **dict.fromkeys(("text", "weights", "cells"), 1),
    "model": 2,
    "training": 3,
    "steps": 3,
    "persist": 4,
    "engine": 5,
    "testing": 6,
    "": 7,
    "serve": 8,
    "cli": 9,
    "__main__": 10,
}
SIBLINGS = {"text", "weights", "cells"}
# The engine's own floors: a package imports from those below it.
ENGINE_RANKS = {
    **dict.fromkeys(("types", "executor"), 0),
    **dict.fromkeys(("requests", "scheduler"), 1),
    "flash": 2,
    "sessions": 3,
    "memory": 4,
    "core": 5,
    "durability": 6,
    "api": 7,
}
COMPILING = ("steps", "training")
NO_JAX_PARTS = ("records", "errors", "config", "textfiles", "formats", "text")
NO_JAX_MODULES = tuple(
    f"{PACKAGE}.cells.{name}" for name in ("blocks", "layout", "prefixes", "tables")
)
# Libraries that import jax themselves.
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
COMPILERS = {"jit", "pjit", "pmap", "xla_computation", "make_jaxpr"}


def package_sources() -> dict[str, str]:
    """Module name -> source, of the whole package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def part_of(module: str) -> str:
    """The first name below the package: "cells" of jaxstate.cells.pool, "" of jaxstate."""
    return [*module.split("."), ""][1]


@functools.cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """Every node of a source's tree, parsed once.

    Without garbage collection: a finaliser that lets another thread run in the middle of a parse
    makes Python 3.11 fail (python/cpython#106905).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return tuple(ast.walk(ast.parse(source)))
    finally:
        if was_on:
            gc.enable()


def imported(source: str, known: Sources) -> Iterator[str]:
    """Every module that a source names in an import, wherever in the file it stands."""
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def wrong_arrows(sources: Sources) -> list[str]:
    """Imports that point to the right, to a sibling, or to the fakes."""
    wrong = []
    for module, source in sources.items():
        mine = part_of(module)
        if mine not in RANKS:
            wrong.append(f"{module} is in no layer of the table")
            continue
        for target in imported(source, sources):
            if target.split(".")[0] != PACKAGE:
                continue
            theirs = part_of(target)
            if theirs not in RANKS:
                wrong.append(f"{module} imports {target}, which is in no layer of the table")
            elif theirs != mine and not may_import(mine, theirs):
                wrong.append(f"{module} imports {target}")
    return wrong


def wrong_floors(sources: Sources) -> list[str]:
    """Imports within the engine that do not point to a floor below."""
    wrong = []
    for module, source in sources.items():
        if part_of(module) != "engine" or module == f"{PACKAGE}.engine":
            continue
        mine = module.split(".")[2]
        if mine not in ENGINE_RANKS:
            wrong.append(f"{module} is on no floor of the engine")
            continue
        for target in imported(source, sources):
            if not target.startswith(f"{PACKAGE}.engine."):
                continue
            theirs = target.split(".")[2]
            if theirs != mine and not ENGINE_RANKS.get(theirs, 99) < ENGINE_RANKS[mine]:
                wrong.append(f"{module} imports {target}")
    return wrong


def may_import(mine: str, theirs: str) -> bool:
    if theirs == "testing":
        return False
    if {mine, theirs} <= SIBLINGS:
        return False
    # Those of rank 0 stand side by side; a circle between them is found below.
    return RANKS[theirs] < RANKS[mine] or RANKS[mine] == RANKS[theirs] == 0


def circles(sources: Sources) -> list[str]:
    """Modules that import themselves, directly or by way of others."""
    arrows = {
        module: {target for target in imported(source, sources) if target in sources} - {module}
        for module, source in sources.items()
    }

    def reached(start: str) -> set[str]:
        seen, stack = set(), [start]
        while stack:
            for target in arrows[stack.pop()]:
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return seen

    return [module for module in sources if module in reached(module)]


def jax_where_none_belongs(sources: Sources) -> list[str]:
    """Modules without jax that import it, or import a module of ours that does."""

    def uses_jax(module: str, seen: frozenset[str]) -> bool:
        for target in imported(sources[module], sources):
            if target.split(".")[0] in JAX:
                return True
            if target in sources and target not in seen and uses_jax(target, seen | {target}):
                return True
        return False

    return [
        module
        for module in sources
        if (part_of(module) in NO_JAX_PARTS or module in NO_JAX_MODULES)
        and uses_jax(module, frozenset({module}))
    ]


def compiles_outside_steps(sources: Sources) -> list[str]:
    """Uses of jax.jit and its relatives elsewhere than in `steps` and `training`.

    `flax.linen.jit` inside the decoder is none: it marks a layer as traced once, within a step.
    """
    wrong = []
    for module, source in sources.items():
        if part_of(module) in COMPILING:
            continue
        for node in nodes_of(source):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module.split(".")[0] == "jax":
                    names = COMPILERS.intersection(alias.name for alias in node.names)
                    wrong += [f"{module}:{node.lineno} imports {name}" for name in sorted(names)]
            elif isinstance(node, ast.Attribute) and node.attr in COMPILERS:
                owner = ast.unparse(node.value)
                if not (owner == "nn" and part_of(module) == "model"):
                    wrong.append(f"{module}:{node.lineno} uses {owner}.{node.attr}")
    return wrong


def sloppy_imports(sources: Sources) -> list[str]:
    """Relative imports and star imports."""
    wrong = []
    for module, source in sources.items():
        for node in nodes_of(source):
            if isinstance(node, ast.ImportFrom):
                if node.level:
                    wrong.append(f"{module}:{node.lineno} imports relatively")
                if any(alias.name == "*" for alias in node.names):
                    wrong.append(f"{module}:{node.lineno} imports everything")
    return wrong


RULES = [
    wrong_arrows,
    wrong_floors,
    circles,
    jax_where_none_belongs,
    compiles_outside_steps,
    sloppy_imports,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule: object) -> None:
    assert rule(package_sources()) == []  # pyright: ignore[reportCallIssue]


def test_there_is_something_to_check() -> None:
    sources = package_sources()
    assert {"jaxstate", "jaxstate.cells.layout", "jaxstate.steps.compiled"} <= set(sources)
    arrows = {
        (part_of(module), part_of(target))
        for module, source in sources.items()
        for target in imported(source, sources)
        if target.split(".")[0] == PACKAGE
    }
    assert {("steps", "model"), ("model", "cells"), ("persist", "steps"), ("", "text")} <= arrows
    found = nodes_of(sources["jaxstate.steps.compiled"])
    uses = [node for node in found if isinstance(node, ast.Attribute)]
    assert any(use.attr == "jit" for use in uses)


GOOD = {
    "jaxstate": "from jaxstate.steps.a import go",
    "jaxstate.errors": "import json",
    "jaxstate.cells.layout": "from jaxstate.errors import E",
    "jaxstate.model.a": "import jax\nfrom jaxstate.cells import layout",
    "jaxstate.steps.a": "import jax\nfrom jaxstate.model.a import x\ngo = jax.jit(x)",
    "jaxstate.text.a": "from jaxstate.errors import E",
    "jaxstate.testing": "from jaxstate.steps.a import go",
}


@pytest.mark.parametrize("rule", RULES)
def test_good_sources_pass(rule: object) -> None:
    assert rule(GOOD) == []  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (wrong_arrows, "jaxstate.cells.layout", "from jaxstate.model.a import x"),
        (wrong_arrows, "jaxstate.cells.layout", "import jaxstate.steps.a"),
        (wrong_arrows, "jaxstate.cells.layout", "from jaxstate import steps"),
        (wrong_arrows, "jaxstate.cells.layout", "import jaxstate"),
        (wrong_arrows, "jaxstate.cells.b", "from jaxstate.text.a import x"),
        (wrong_arrows, "jaxstate.errors", "from jaxstate.cells.layout import x"),
        (wrong_arrows, "jaxstate.model.b", "from jaxstate.testing import x"),
        (wrong_arrows, "jaxstate.testing", "from jaxstate.serve.app import x"),
        (wrong_arrows, "jaxstate.engine.core.b", "from jaxstate.testing import x"),
        (wrong_floors, "jaxstate.engine.core.b", "from jaxstate.engine.api.engine import x"),
        (wrong_floors, "jaxstate.engine.executor.b", "from jaxstate.engine.types.values import x"),
        (wrong_floors, "jaxstate.engine.b", "import json"),
        (wrong_arrows, "jaxstate.somewhere", "import json"),
        (wrong_arrows, "jaxstate", "from jaxstate.serve.app import x"),
        (wrong_arrows, "jaxstate.model.b", "def f():\n    from jaxstate.steps.a import go"),
        (
            wrong_arrows,
            "jaxstate.model.b",
            """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from jaxstate.persist.snapshot import x
            """,
        ),
        (circles, "jaxstate.errors", "from jaxstate.text.a import x"),
        (jax_where_none_belongs, "jaxstate.errors", "import jax.numpy as jnp"),
        (jax_where_none_belongs, "jaxstate.text.b", "from flax import struct"),
        (jax_where_none_belongs, "jaxstate.text.b", "def f():\n    import jax"),
        (jax_where_none_belongs, "jaxstate.cells.layout", "from jaxstate.model.a import x"),
        (compiles_outside_steps, "jaxstate.model.b", "import jax\ngo = jax.jit(len)"),
        (compiles_outside_steps, "jaxstate.model.b", "from jax import jit"),
        (compiles_outside_steps, "jaxstate.engine.b", "import flax.linen as nn\nx = nn.jit(y)"),
        (
            compiles_outside_steps,
            "jaxstate.persist.b",
            """
            import functools, jax
            @functools.partial(jax.jit, static_argnums=0)
            def f(x): ...
            """,
        ),
        (sloppy_imports, "jaxstate.model.b", "from . import a"),
        (sloppy_imports, "jaxstate.model.b", "from ..errors import E"),
        (sloppy_imports, "jaxstate.model.b", "from jaxstate.errors import *"),
    ],
)
def test_a_violation_is_found(rule: object, module: str, source: str) -> None:
    """Each rule can fail; the good sources around the bad one stay good."""
    bad = {**GOOD, module: textwrap.dedent(source)}
    found = rule(bad)  # pyright: ignore[reportCallIssue]
    assert found
    assert any(module in one for one in found)
