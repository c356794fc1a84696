"""In every engine that a test here makes, what is remembered of sessions is compared with what they
are, in every turn."""

from __future__ import annotations

import pytest

from jaxstate.engine.core import engine_core
from jaxstate.testing.stepped import CheckedScheduler, CheckedSessions


@pytest.fixture(autouse=True)
def remembers_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_core, "ReadySessions", CheckedSessions)
    monkeypatch.setattr(engine_core, "Scheduler", CheckedScheduler)
