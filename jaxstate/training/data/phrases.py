"""Sentences with alternatives: "[What is|Tell me] the [last|latest] {f}[ of {e}|]".

Comes in: such a pattern. Goes out: one of its sentences, with {names} filled in. Alternatives nest.
Does not know: what the sentences are about.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence

# A text, or a choice between sequences of such parts.
Part = str | tuple[tuple["Part", ...], ...]


def say(rng: random.Random, pattern: str, values: Mapping[str, str]) -> str:
    """One of the pattern's sentences, each alternative as likely as its neighbours."""
    return "".join(_spoken(rng, _parsed(pattern))).format_map(values)


def say_one(rng: random.Random, patterns: Sequence[str], values: Mapping[str, str]) -> str:
    """A sentence of one of several patterns."""
    return say(rng, rng.choice(patterns), values)


def _spoken(rng: random.Random, parts: tuple[Part, ...]) -> list[str]:
    spoken: list[str] = []
    for part in parts:
        spoken += [part] if isinstance(part, str) else _spoken(rng, rng.choice(part))
    return spoken


@functools.cache
def _parsed(pattern: str) -> tuple[Part, ...]:
    parts, end = _sequence(pattern, 0)
    if end != len(pattern):
        raise ValueError(f"unbalanced brackets in {pattern!r}")
    return parts


def _sequence(pattern: str, at: int) -> tuple[tuple[Part, ...], int]:
    """Parts up to a `|` or `]` of this level, or the end."""
    parts: list[Part] = []
    text = ""
    while at < len(pattern) and pattern[at] not in "|]":
        if pattern[at] != "[":
            text += pattern[at]
            at += 1
            continue
        choices: list[tuple[Part, ...]] = []
        at += 1
        while True:
            choice, at = _sequence(pattern, at)
            choices.append(choice)
            if at >= len(pattern):
                raise ValueError(f"unbalanced brackets in {pattern!r}")
            at += 1
            if pattern[at - 1] == "]":
                break
        parts += [text, tuple(choices)]
        text = ""
    return (*parts, text), at
