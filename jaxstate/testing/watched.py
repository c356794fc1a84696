"""A device that is watched: which step wrote whose cells.

Comes in: what `Executor` says. Goes out: the same as `DeviceExecutor` gives, and an error when a
step wrote cells that are not its own. Does not know: what it is used for.
"""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import numpy as np

from jaxstate.cells.session import SessionState
from jaxstate.engine.device import DeviceExecutor
from jaxstate.engine.executor import Pending, Tokens
from jaxstate.model.bundle import Model


class WatchedExecutor(DeviceExecutor):
    """Knows which sessions a step may write, and sees whether it wrote others.

    Args:
        model: whose steps.
        session_cells: capacity of every session.
        steps_ahead: steps launched before the last one's result is fetched, as on an accelerator;
            None for what is usual on this device.
    """

    def __init__(self, model: Model, *, session_cells: int, steps_ahead: int | None = None) -> None:
        super().__init__(model, session_cells=session_cells)
        if steps_ahead is not None:
            self._limits = dataclasses.replace(self._limits, steps_ahead=steps_ahead)
        self._written: set[int] = set()
        self._digests: dict[int, bytes] = {}

    def extend(self, session: int, tokens: Tokens) -> Pending[None]:
        """Commits tokens; the only step that may change cells."""
        self._written.add(session)
        return super().extend(session, tokens)

    def check_cells(self) -> None:
        """Compares every session's bits with those at the last call.

        Raises:
            AssertionError: a session changed that no `extend` wrote.
        """
        digests = {name: _digest(state) for name, state in self.states().items()}
        for name, digest in digests.items():
            unchanged = self._digests.get(name, digest) == digest
            assert unchanged or name in self._written, f"a step changed the cells of session {name}"
        self._digests, self._written = digests, set()

    def open(self, session: int) -> None:
        """Makes an empty session; another engine may have had one of that name."""
        self._digests.pop(session, None)
        super().open(session)

    def copy(self, session: int, into: int) -> None:
        """Makes a copy of a session."""
        self._digests.pop(into, None)
        super().copy(session, into)


def _digest(state: SessionState) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    return digest.digest()
