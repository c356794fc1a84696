"""Errors of the library in the words of the command line.

Comes in: what an error says, in the names of the Python API. Goes out: the same, in options. Only
what a command can reach is here; what has no option stays as it is. Does not know: which command.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_Words = str | Callable[[re.Match[str]], str]

# In this order: longer ones first.
_OPTIONS: tuple[tuple[str, _Words], ...] = (
    (
        r"\(?load the model with steps=StepConfig\((\w+)=\(…, larger\)\)\)?",
        r"give larger \1 with --steps",
    ),
    (r"ignore=\[([^]]*)\]", lambda found: _options("--ignore", found.group(1))),
    (r'template="plain"', "--template plain"),
    (r'dtype="(\w+)"', r"--dtype \1"),
    (r'open the\s+session with a longer queue or the policy "block"', "give a larger --queue"),
    (r"open the session with a longer queue", "give a larger --queue"),
    (r"start it with more session_cells=", "give more --cells"),
    (r"an engine with more session_cells", "more --cells"),
    (r"give (the engine|it) fewer cells, or a smaller share of the memory", "give fewer --cells"),
    (r"restore it with cells=(\S+) or more", r"give --cells \1 or more"),
    (r" \(max_context; pass max_context= to load\(\) to change it\)", ""),
    (r" ?\(session_cells=\)", " (--cells)"),
    (r"\bsession_cells=", "--cells "),
    (r"\bcells=(?=[\d,]+)", "--cells "),
    (r"\bmax_tokens=(?=\d)", "--max-tokens "),
    (r"\b(lower|raise) max_tokens\b", r"\1 --max-tokens"),
    (r"question='' is empty; ask something", "a question is empty: ask something"),
    (r"or remove it with engine\.erase\('([^']*)'\)", "or start another --journal"),
    (r"open (it|another) with more cells", "give more --cells"),
    (r"push less, or open a session with more cells", "give more --cells"),
)


def in_options(text: str) -> str:
    """What an error says, with options where it names arguments."""
    for pattern, words in _OPTIONS:
        text = re.sub(pattern, words, text)
    return text


def _options(option: str, listed: str) -> str:
    """`'a', 'b'` as `--ignore a --ignore b`."""
    return " ".join(f"{option} {name}" for name in re.findall(r"'([^']*)'", listed))
