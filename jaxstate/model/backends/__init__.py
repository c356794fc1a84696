"""Implementations of what a GPU wants kernels for, one file each, and which of them runs where.

Comes in: a model's shapes and the device. Goes out: the name of a backend (`choose_backend`), which
is part of every compiled step's key, and `attend` and `add_norm` for that name. Nothing outside
this package knows how a backend works or what it needs. Does not know: layers, sessions.
"""

from jaxstate.model.backends.choice import (
    Backend,
    add_norm,
    attend,
    choose_backend,
    reads_whole_tails,
)
from jaxstate.model.context import Heads, split_heads

__all__ = [
    "Backend",
    "Heads",
    "add_norm",
    "attend",
    "choose_backend",
    "reads_whole_tails",
    "split_heads",
]
