"""The space that some tokenizers put in front of a text.

Comes in: a tokenizer.json. Goes out: where its tokenizer writes such a space, and the same settings
without it. Does not know: the `tokenizers` library, texts.

The stages that write it: the normalizer Prepend and the pre-tokenizer ByteLevel with
`add_prefix_space` before every stretch between special tokens; the pre-tokenizer Metaspace likewise
with `prepend_scheme` "always", and with "first" at the start of a text alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from jaxstate.text.hf_files import parse_object
from jaxstate.text.pieces import Place

_NOWHERE: frozenset[Place] = frozenset({"start", "special", "text"})
_EVERYWHERE: frozenset[Place] = frozenset({"start", "special"})
_FIRST: frozenset[Place] = frozenset({"start"})


def space_prefixes(spec: Mapping[str, object]) -> frozenset[Place]:
    """The places at which the settings encode as they should; at all others the space that they
    write has to go."""
    schemes = [_scheme(stage) for stage in _stages(spec)]
    if "always" in schemes:
        return _EVERYWHERE
    return _FIRST if "first" in schemes else _NOWHERE


def without_space_prefix(source: str) -> str:
    """A tokenizer.json that writes no space in front of a text.

    Raises:
        UnsupportedModel: it is no JSON object.
    """
    spec = parse_object(source, "tokenizer.json")
    changed = {key: _without(spec.get(key)) for key in ("normalizer", "pre_tokenizer")}
    return json.dumps(spec | changed, sort_keys=True)


def _stages(spec: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    for key in ("normalizer", "pre_tokenizer"):
        yield from _flat(spec.get(key))


def _flat(stage: object) -> Iterator[Mapping[str, object]]:
    """A stage, or those of a sequence."""
    if not isinstance(stage, dict):
        return
    yield stage
    for key in ("normalizers", "pretokenizers"):
        parts = stage.get(key)
        for part in parts if isinstance(parts, list) else ():
            yield from _flat(part)


def _scheme(stage: Mapping[str, object]) -> str:
    """ "always", "first" or "never"."""
    match stage.get("type"):
        case "Prepend":
            return "always" if stage.get("prepend") else "never"
        case "ByteLevel":
            return "always" if stage.get("add_prefix_space") is True else "never"
        case "Metaspace":
            older = "always" if stage.get("add_prefix_space", True) is True else "never"
            return str(stage.get("prepend_scheme", older))
        case _:
            return "never"


def _without(stage: object) -> object:
    """The same stage writing none; None if nothing is left of it."""
    if not isinstance(stage, dict):
        return stage
    match stage.get("type"):
        case "Prepend":
            return None
        case "ByteLevel":
            return stage | {"add_prefix_space": False}
        case "Metaspace":
            rest = {key: value for key, value in stage.items() if key != "add_prefix_space"}
            return rest | {"prepend_scheme": "never"}
        case "Sequence":
            return stage | {key: _without_all(stage[key]) for key in _PARTS if key in stage}
        case _:
            return stage


_PARTS = ("normalizers", "pretokenizers")


def _without_all(stages: object) -> list[object]:
    changed = [_without(stage) for stage in stages] if isinstance(stages, list) else []
    return [stage for stage in changed if stage is not None]
