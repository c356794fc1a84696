"""What is refused.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

import dataclasses

import pytest

from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import CapacityExceeded, PromptTooLong, QueueFull
from jaxstate.testing import FAKE_LIMITS
from tests.engine.rig import Rig, said


def test_asks_are_bounded() -> None:
    rig = Rig(config=EngineConfig(waiting_asks=2))
    session = rig.open("abcd")
    futures = [session.submit("a"), session.submit("b")]
    with pytest.raises(QueueFull, match="waiting_asks"):
        session.submit("c")
    assert futures[0].cancel()
    session.submit("c")
    rig.engine.run()
    assert futures[1].done()


def test_questions_that_do_not_fit() -> None:
    rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, max_context=30))
    session = rig.open("a" * 9)  # 10 cells
    with pytest.raises(PromptTooLong):
        session.submit("q" * 60, max_tokens=6)  # 65 tail cells of 64
    fits = session.submit("q" * 10, max_tokens=11)  # positions 10 .. 29
    past = session.submit("q" * 10, max_tokens=12)
    rig.engine.run()
    assert said(fits) == "10:10 v1"
    with pytest.raises(CapacityExceeded, match="position 31"):
        past.result(timeout=0)
    rig.at_rest()


def test_a_flash_query_past_the_models_positions_says_so() -> None:
    rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, max_context=30))
    session = rig.open("a" * 9)
    long, fine = session.flash("q" * 10, max_tokens=16), session.flash("fl")
    rig.engine.run()
    assert fine.fresh
    assert not long.fresh and long.error is not None and "position 35" in long.error
    assert rig.engine.run() == 0
