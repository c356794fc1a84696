"""The public surface: what is exported, documented, and promised with its arguments."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from pathlib import Path

import pytest

import jaxstate

CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"
PUBLIC = [name for name in jaxstate.__all__ if name != "__version__"]


def test_all_is_sorted_and_has_nothing_twice() -> None:
    assert sorted(PUBLIC) == PUBLIC
    assert len(set(jaxstate.__all__)) == len(jaxstate.__all__)


def test_all_is_what_is_bound() -> None:
    bound = {
        name
        for name, value in vars(jaxstate).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert bound == set(PUBLIC)
    assert "__version__" in jaxstate.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    value = getattr(jaxstate, name)
    assert own_doc(value), f"{name} has no docstring"
    if inspect.isclass(value):
        missing = [
            member
            for member, found in vars(value).items()
            if not member.startswith("_")
            and (inspect.isfunction(found) or isinstance(found, property))
            and not (found.__doc__ or "").strip()
            and member != "replace"  # flax's, on every struct
        ]
        assert missing == []


def own_doc(value: object) -> str:
    """What somebody wrote: dataclasses make themselves a docstring out of their fields."""
    doc = (getattr(value, "__doc__", None) or "").strip()
    made = dataclasses.is_dataclass(value) and doc.startswith(f"{value.__name__}(")  # pyright: ignore
    return "" if made else doc


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isfunction(getattr(jaxstate, n))])
def test_every_public_function_is_typed(name: str) -> None:
    signature = inspect.signature(getattr(jaxstate, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize(
    ("name", "leading", "defaults"),
    [
        ("load", ["source", "dtype", "max_context"], {"dtype": None, "max_context": None}),
        ("init_state", ["model", "cells"], {"cells": 4096}),
        ("extend", ["model", "state", "tokens"], {}),
        ("query", ["model", "state", "tokens", "max_tokens"], {"max_tokens": 16}),
        ("save_state", ["path", "model", "state"], {}),
        ("restore_state", ["path", "model", "cells"], {}),
    ],
)
def test_the_promised_arguments(name: str, leading: list[str], defaults: dict[str, object]) -> None:
    """Names, order and defaults of the functional core; whatever was added has a default."""
    parameters = inspect.signature(getattr(jaxstate, name)).parameters
    assert list(parameters)[: len(leading)] == leading
    for argument, default in defaults.items():
        assert parameters[argument].default == default
    for argument in list(parameters)[len(leading) :]:
        assert parameters[argument].default is not inspect.Parameter.empty


def test_the_promised_fields_of_a_result() -> None:
    fields = {field.name for field in dataclasses.fields(jaxstate.QueryResult)}
    assert {"tokens", "logits", "logprobs", "finish_reason"} <= fields


def test_the_promised_fields_of_a_model() -> None:
    fields = {field.name for field in dataclasses.fields(jaxstate.Model)}
    assert {"config", "params", "tokenizer", "template"} <= fields
    assert jaxstate.Model.__dataclass_params__.frozen  # pyright: ignore


def test_every_error_is_exported_and_has_one_root() -> None:
    from jaxstate import errors

    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert classes <= set(PUBLIC)
    assert all(issubclass(getattr(errors, name), jaxstate.JaxstateError) for name in classes)


def test_the_drawing_of_the_error_tree_is_the_tree() -> None:
    from jaxstate import errors

    line = re.compile(r"^    ([\u2502\u251c\u2514\u2500 ]*)(\w+)(?: \((\w+)\))?(?: {2,}.*)?$")
    parents: dict[int, str] = {}
    drawn = {}
    for text in (errors.__doc__ or "").splitlines():
        match = line.match(text)
        if match and hasattr(errors, match[2]):
            depth = len(match[1])
            parents[depth] = match[2]
            above = [parents[other] for other in sorted(parents) if other < depth]
            drawn[match[2]] = {*above[-1:], *([match[3]] if match[3] else [])}
            parents = {d: n for d, n in parents.items() if d <= depth}
    real = {
        name: {base.__name__ for base in value.__bases__}
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    real["JaxstateError"] = set()
    assert drawn == real


def test_the_version_is_that_of_the_newest_change() -> None:
    if not CHANGELOG.exists():
        pytest.skip("there is no CHANGELOG.md yet")
    versions = re.findall(r"^## \[?v?(\d+\.\d+[^\s\]]*)\]?", CHANGELOG.read_text("utf-8"), re.M)
    assert versions, "CHANGELOG.md names no version"
    assert versions[0] == jaxstate.__version__


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", jaxstate.__version__)
