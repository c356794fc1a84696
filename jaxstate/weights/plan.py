"""A name table against real tensors: what goes where, or everything that does not fit.

Comes in: a `TensorSource`, a `NameTable` and the flat path -> shape of the parameters. Goes out:
for each parameter the placements that fill it exactly, checked before any tensor is loaded (only a
redundant copy of a tied embedding is read, to compare it).
Does not know: how blocks are read and converted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from jaxstate.errors import WeightsMismatch
from jaxstate.weights.names import NameTable, Rule, Transform, name_pattern
from jaxstate.weights.source import TensorSource

if TYPE_CHECKING:
    import jax

_COMPARED_ROWS = 1024


@dataclass(frozen=True)
class Placement:
    """One tensor in one parameter.

    Attributes:
        name: of the tensor.
        shape: of the tensor, [out, in] or [out].
        columns: first and last + 1 place on the parameter's last axis; unused when a matrix is
            copied as it is.
        transform: what happens to the values.
    """

    name: str
    shape: tuple[int, ...]
    columns: tuple[int, int]
    transform: Transform

    @property
    def transposed(self) -> bool:
        """Whether the tensor is [out, in] and the parameter [in, out]."""
        return self.transform in ("transpose", "transpose_unpermute")

    @property
    def permuted(self) -> bool:
        """Whether the rows of each head are in interleaved RoPE order."""
        return self.transform in ("unpermute", "transpose_unpermute")


Abstract: TypeAlias = "Mapping[str, jax.ShapeDtypeStruct]"
Plan: TypeAlias = Mapping[str, tuple[Placement, ...]]


def make_plan(source: TensorSource, table: NameTable, abstract: Abstract) -> Plan:
    """Matches every tensor with its place.

    Raises:
        WeightsMismatch: unknown, missing, surplus, doubly matched or misshapen tensors; lists every
            one.
    """
    problems: list[str] = []
    matches: dict[tuple[str, Rule], list[str]] = defaultdict(list)
    copies: list[tuple[str, str]] = []
    for name in source.names():
        places, ignored, copied = _match(name, table)
        if len(places) + ignored + len(copied) > 1:
            problems.append(f"ambiguous: {name} is matched by several rules")
        elif places:
            matches[places[0]].append(name)
        elif copied:
            copies.append((name, copied[0]))
        elif not ignored:
            problems.append(f"unknown: {name}")
    plan = {path: _place(source, table, abstract, path, matches, problems) for path in abstract}
    problems += [
        f"surplus: {', '.join(names)} (this model has no {path})"
        for (path, _), names in matches.items()
        if path not in abstract
    ]
    problems += [text for name, path in copies for text in _copy_problems(source, name, plan, path)]
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise WeightsMismatch(f"the tensors do not fit the model:{lines}")
    return plan


def _match(name: str, table: NameTable) -> tuple[list[tuple[str, Rule]], bool, list[str]]:
    """Its (parameter, rule) pairs, whether it is ignored, and the parameters that it copies."""
    places = [
        (rule.path.replace("{i}", "".join(found.groups())), rule)
        for rule in table.rules
        for pattern in rule.patterns
        if (found := pattern.fullmatch(name))
    ]
    ignored = any(re.fullmatch(pattern, name) for pattern in table.ignored)
    copied = [path for pattern, path in table.copies.items() if re.fullmatch(pattern, name)]
    return places, ignored, copied


def _place(
    source: TensorSource,
    table: NameTable,
    abstract: Abstract,
    path: str,
    matches: Mapping[tuple[str, Rule], list[str]],
    problems: list[str],
) -> tuple[Placement, ...]:
    """The placements of one parameter; what is wrong goes to `problems`."""
    shape = abstract[path].shape
    placements: list[Placement] = []
    rules = [rule for rule in table.rules if name_pattern(rule.path).fullmatch(path)]
    spans = [_columns(rule, table, shape) for rule in rules]
    if not _tile(spans, shape[-1]):
        problems.append(f"no rules fill the parameter {path} of shape {shape}")
        return ()
    for rule, columns in zip(rules, spans, strict=True):
        names = matches.get((path, rule), [])
        if len(names) > 1:
            problems.append(f"duplicate: {' and '.join(names)} both fill {path} ({rule.part})")
        if not names:
            problems.append(f"missing: {_expected_name(rule, path)} for {path} ({rule.part})")
        for name in names:
            placement = Placement(name, source.shape(name), columns, rule.transform)
            problems += _shape_problems(placement, shape, table.head_dim)
            placements.append(placement)
    return tuple(placements)


def _columns(rule: Rule, table: NameTable, shape: tuple[int, ...]) -> tuple[int, int]:
    return (0, shape[-1]) if rule.part == "whole" else table.columns[rule.part]


def _tile(spans: list[tuple[int, int]], width: int) -> bool:
    """Whether the spans cover 0 .. width without gap or overlap."""
    ends = [0, *(stop for _, stop in sorted(spans))]
    starts = [start for start, _ in sorted(spans)]
    return bool(spans) and ends == [*starts, width]


def _expected_name(rule: Rule, path: str) -> str:
    found = name_pattern(rule.path).fullmatch(path)
    layer = "".join(found.groups()) if found else ""
    return " or ".join(name.replace("{i}", layer) for name in rule.names)


def _shape_problems(placement: Placement, shape: tuple[int, ...], head_dim: int) -> list[str]:
    first, last = placement.columns
    expected = (last - first, *shape[:-1]) if placement.transposed or len(shape) == 1 else shape
    if placement.shape != expected:
        return [f"misshapen: {placement.name} is {placement.shape}, {expected} is needed"]
    if placement.permuted and (last - first) % head_dim:
        return [f"misshapen: {placement.name} is not made of heads of {head_dim}"]
    return []


def _copy_problems(source: TensorSource, name: str, plan: Plan, path: str) -> list[str]:
    """A redundant tensor must equal what it repeats, or one of the two would be silently lost."""
    originals = plan.get(path, ())
    if len(originals) != 1:
        return []  # already reported as missing or duplicate
    original, shape = originals[0].name, source.shape(name)
    if shape != source.shape(original):
        return [f"misshapen: {name} is {shape}, its original {original} {source.shape(original)}"]
    for start in range(0, shape[0], _COMPARED_ROWS):
        stop = min(start + _COMPARED_ROWS, shape[0])
        left, right = source.rows(name, start, stop), source.rows(original, start, stop)
        if not np.array_equal(left.astype(np.float32), right.astype(np.float32)):
            return [f"surplus: {name} differs from {original}, and the embeddings are tied"]
    return []
