"""What the scheduler remembers of sessions. All other tests here compare it with what they are."""

from __future__ import annotations

import pytest

from tests.engine.rig import Rig


def test_what_waits_for_its_time_is_remembered_once() -> None:
    """A question that may be computed once an hour, while its session reads all the time."""
    rig = Rig()
    session = rig.open("a")
    flash = session.flash("q", min_interval_s=3600.0)
    rig.engine.run()
    for _ in range(150):
        session.push("b")
        rig.engine.run()
    assert len(rig.core.ready._timers) <= 10, "one for each look would be 150"
    assert not flash.fresh
    rig.clock.pass_s(3600.0)
    rig.engine.run()
    assert flash.fresh


def test_a_change_that_nobody_tells_is_found_out() -> None:
    """A session that waits for its time is seen, and nothing is done for it."""
    rig = Rig()
    session = rig.open("a")
    session.flash("q", min_interval_s=3600.0)
    rig.engine.run()
    session.push("b")
    rig.engine.run()
    session.record.asks_served += 1
    with pytest.raises(AssertionError, match="was not touched"):
        rig.engine.turn()
