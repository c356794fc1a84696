"""The small JSON files beside a Hugging Face tokenizer.

Comes in: a directory. Goes out: the facts in tokenizer_config.json, special_tokens_map.json and
added_tokens.json that decide how a text opens and which tokens there are. Where two files say
different things, what transformers 5.24 does is done, or both are named in an error. Does not know:
how text is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxstate.errors import InvalidInput, UnsupportedModel
from jaxstate.textfiles import read_text_file


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
    return parse_object(read_utf8(path), str(path)) if path.is_file() else {}


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
        UnsupportedModel: it cannot be read, or is not text.
    """
    try:
        return read_text_file(path, "the file")
    except InvalidInput as error:
        raise UnsupportedModel(str(error)) from None


def special_text(directory: Path, key: str) -> str | None:
    """How a special token ("bos_token", "eos_token") is written, or None if the files name none.

    Raises:
        UnsupportedModel: the file says something that is neither a string nor an added token.
    """
    for name, values in _special_files(directory):
        if key in values:  # an explicit null is an answer: this model has none
            return _written(values[key], f"{directory / name}: {key}")
    return None


def _special_files(directory: Path) -> list[tuple[str, Mapping[str, object]]]:
    """The files that name special tokens, the one that counts most first."""
    config = "tokenizer_config.json", read_object(directory / "tokenizer_config.json")
    older = "special_tokens_map.json", read_object(directory / "special_tokens_map.json")
    return [config, older] if "added_tokens_decoder" in config[1] else [older, config]


def bos_setting(directory: Path) -> bool | None:
    """`add_bos_token` of tokenizer_config.json: whether texts open with BOS; None if it says
    nothing, and the tokenizer itself decides."""
    value = read_object(directory / "tokenizer_config.json").get("add_bos_token")
    return value if isinstance(value, bool) else None


@dataclass(frozen=True)
class Added:
    """A token that a file beside tokenizer.json names.

    Attributes:
        content: how it is written.
        flags: as tokenizer.json has them.
        file: which says so.
    """

    content: str
    flags: Mapping[str, bool]
    file: str


_PLAIN_FLAGS: Mapping[str, bool] = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}
_SPECIAL_KEYS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def added_in_files(directory: Path) -> dict[int, Added]:
    """The tokens that `added_tokens_decoder` and added_tokens.json give a number, by it.

    Raises:
        UnsupportedModel: they contradict each other.
    """
    found: dict[int, Added] = {}
    for token, one in _numbered(directory):
        same = next((n for n, had in found.items() if had.content == one.content), token)
        known = found.setdefault(same, one)
        if known.content != one.content or same != token:
            raise UnsupportedModel(
                f"{directory}: {known.file} says {known.content!r} is token {same}, {one.file} "
                f"says {one.content!r} is token {token}; correct one of the two files"
            )
    return found


def _numbered(directory: Path) -> Iterator[tuple[int, Added]]:
    decoder = read_object(directory / "tokenizer_config.json").get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        match entry:
            case {"content": str(content), **rest} if str(number).isdigit():
                flags = {key: rest.get(key) is True for key in _PLAIN_FLAGS}
                yield int(number), Added(content, flags, "tokenizer_config.json")
            case _:
                raise UnsupportedModel(
                    f"{directory / 'tokenizer_config.json'}: added_tokens_decoder has {number!r}: "
                    f"{entry!r}, which is no added token"
                )
    for content, number in read_object(directory / "added_tokens.json").items():
        if not isinstance(number, int):
            raise UnsupportedModel(
                f"{directory / 'added_tokens.json'}: {content!r} has the number {number!r}"
            )
        special = content in _unnumbered(directory)
        yield number, Added(content, {**_PLAIN_FLAGS, "special": special}, "added_tokens.json")


def _unnumbered(directory: Path) -> dict[str, str]:
    """Special tokens that files name without a number, each with its file, in the order in which
    transformers adds them."""
    found: dict[str, str] = {}
    for key in _SPECIAL_KEYS:
        content = special_text(directory, f"{key}_token")
        if content is not None:
            found.setdefault(content, "tokenizer_config.json")
    for name, values in _special_files(directory):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = values.get(key)
            listed = list(more.values()) if isinstance(more, dict) else more
            for one in listed if isinstance(listed, list) else ():
                content = _written(one, f"{directory / name}: {key}")
                if content is not None:
                    found.setdefault(content, name)
    return found


def with_added_tokens(source: str, directory: Path) -> str:
    """A tokenizer.json with the tokens that only the files beside it name.

    Args:
        source: the text of tokenizer.json.
        directory: with the other files.

    Raises:
        UnsupportedModel: they contradict each other, or leave numbers out.
    """
    spec = parse_object(source, "tokenizer.json")
    ids = _known_ids(spec)
    added = spec.get("added_tokens")
    entries: list[object] = list(added) if isinstance(added, list) else []
    before = len(entries)
    for token, one in sorted(added_in_files(directory).items()):
        if ids.setdefault(one.content, token) != token:
            raise _contradiction(directory, one, token, ids[one.content])
        if not _has_added(entries, one.content):
            entries.append({"id": token, "content": one.content, **one.flags})
    numbers = {token: content for content, token in ids.items()}
    if len(numbers) < len(ids):
        doubled = next(c for c, token in ids.items() if numbers[token] != c)
        raise UnsupportedModel(
            f"{directory}: token {ids[doubled]} is {doubled!r} in tokenizer.json and "
            f"{numbers[ids[doubled]]!r} in the files beside it; correct one of them"
        )
    for content in _unnumbered(directory):
        if content not in ids:
            ids[content] = max(ids.values(), default=-1) + 1
            entries.append(
                {"id": ids[content], "content": content, **_PLAIN_FLAGS, "special": True}
            )
    new = sorted(entry["id"] for entry in entries[before:] if isinstance(entry, dict))
    _refuse_holes(directory, new, set(_known_ids(spec).values()))
    return source if len(entries) == before else json.dumps(spec | {"added_tokens": entries})


def _known_ids(spec: Mapping[str, object]) -> dict[str, int]:
    """Every token of a tokenizer.json, by how it is written."""
    model = spec.get("model")
    vocab: object = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocab, dict):
        ids |= {str(piece): token for piece, token in vocab.items() if isinstance(token, int)}
    elif isinstance(vocab, list):  # a Unigram model: pieces with their scores
        ids |= {str(one[0]): token for token, one in enumerate(vocab) if isinstance(one, list)}
    added = spec.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        match entry:
            case {"content": str(content), "id": int(token)}:
                ids[content] = token
            case _:
                pass  # whoever reads tokenizer.json refuses it
    return ids


def _has_added(entries: list[object], content: str) -> bool:
    return any(isinstance(entry, dict) and entry.get("content") == content for entry in entries)


def _contradiction(directory: Path, one: Added, token: int, own: int) -> UnsupportedModel:
    return UnsupportedModel(
        f"{directory}: {one.content!r} is token {own} in tokenizer.json and token {token} in "
        f"{one.file}; correct one of the two files"
    )


def _refuse_holes(directory: Path, new: list[int], known: set[int]) -> None:
    """The library numbers added tokens one after the other."""
    start = max(known, default=-1) + 1
    beyond = [token for token in new if token >= start]
    if beyond != list(range(start, start + len(beyond))):
        raise UnsupportedModel(
            f"{directory}: tokenizer.json ends before token {start}, and the files beside it add "
            f"{beyond[:8]}; the tokens between are named nowhere. Save the tokenizer anew"
        )


def _written(value: object, where: str) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value or None
    raise UnsupportedModel(
        f"{where} is {value!r}; a string or an object with `content` is expected"
    )
