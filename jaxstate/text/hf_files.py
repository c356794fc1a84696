"""The small JSON files beside a Hugging Face tokenizer.

Comes in: a directory. Goes out: the few facts in tokenizer_config.json and special_tokens_map.json
that decide how a text opens. Does not know: vocabularies.
"""

from __future__ import annotations

import json
from pathlib import Path

from jaxstate.errors import UnsupportedModel


def parse_object(text: str, name: str) -> dict[str, object]:
    """One JSON object.

    Raises:
        UnsupportedModel: `text` is not JSON, or not an object; `name` says where it came from.
    """
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnsupportedModel(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{name} holds a {type(value).__name__}, not an object")
    return {str(key): item for key, item in value.items()}


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty if there is no such file.

    Raises:
        UnsupportedModel: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnsupportedModel(f"{path} is not UTF-8: {error}") from None
    return parse_object(text, str(path))


def special_text(directory: Path, key: str) -> str | None:
    """How a special token ("bos_token", "eos_token") is written, or None if the files name none.

    Raises:
        UnsupportedModel: the file says something that is neither a string nor an added token.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = read_object(directory / name)
        if key in values:  # an explicit null is an answer: this model has none
            return _written(values[key], f"{directory / name}: {key}")
    return None


def adds_bos(directory: Path) -> bool:
    """Whether texts open with BOS: unless tokenizer_config.json says `add_bos_token: false`."""
    return read_object(directory / "tokenizer_config.json").get("add_bos_token") is not False


def _written(value: object, where: str) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value or None
    raise UnsupportedModel(
        f"{where} is {value!r}; a string or an object with `content` is expected"
    )
