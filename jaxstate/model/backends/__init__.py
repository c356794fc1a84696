"""Implementations of attention, one file each, and which of them runs where.

Comes in: a model's shapes and the device. Goes out: the name of a backend (`choose_backend`), which
is part of every compiled step's key, and `attend` for that name. Nothing outside this package knows
how a backend works or what it needs. Does not know: layers, sessions.
"""

from jaxstate.model.backends.choice import Backend, attend, choose_backend

__all__ = ["Backend", "attend", "choose_backend"]
