"""Warm questions, and what is refused.

`tests.engine.rig` says how the numbers come about.
"""

from __future__ import annotations

import dataclasses

import pytest

from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import CapacityExceeded, FlashLimit, InvalidInput, PromptTooLong, QueueFull
from jaxstate.testing import FAKE_LIMITS
from tests.engine.rig import Rig, said

# --- warm ---------------------------------------------------------------------------------------


def test_warm_questions_are_kept_at_every_version() -> None:
    rig = Rig()
    session = rig.open("abcd")
    for text in ("w1", "w2"):
        session.warm(text)
    session.warm("w1")  # again: nothing
    rig.engine.run()
    session.push("e")
    rig.engine.run()
    assert rig.news() == ["logits s1 x2", "extend s1 2", "logits s1 x2"]
    session.unwarm("w2")
    with pytest.raises(InvalidInput, match="not a warm question"):
        session.unwarm("w2")
    session.push("e")
    rig.engine.run()
    assert rig.news() == ["extend s1 2", "logits s1 x1"]


def test_more_warm_questions_than_a_step_takes() -> None:
    rig = Rig()
    session = rig.open("abcd")
    for n in range(11):
        session.warm(f"w{n:02}")
    rig.engine.run()
    assert rig.news() == ["logits s1 x8", "logits s1 x3"]


def test_warm_questions_are_bounded() -> None:
    rig = Rig(config=EngineConfig(warm_limit=2))
    session = rig.open()
    session.warm("w1")
    session.warm("w2")
    with pytest.raises(FlashLimit, match="unwarm"):
        session.warm("w3")
    with pytest.raises(InvalidInput, match="at most 32 tokens"):
        rig.open().warm("w" * 33)


# --- bounds -------------------------------------------------------------------------------------


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


def test_a_warm_question_past_the_models_positions_is_not_used() -> None:
    """Asking it is refused, so what is kept for it must not answer."""
    rig = Rig(limits=dataclasses.replace(FAKE_LIMITS, max_context=12))
    session = rig.open("a" * 9)
    session.warm("q" * 10)
    rig.engine.run()
    future = session.submit("q" * 10, choices=["a", "b"])
    rig.engine.run()
    with pytest.raises(CapacityExceeded):
        future.result(timeout=0)
