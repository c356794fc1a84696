"""Flash answers under a steady overload: no older than they may be, as long as reading keeps half
of the device."""

from __future__ import annotations

import dataclasses

import pytest

from jaxstate.engine.api.session import Session
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import InvalidInput
from jaxstate.testing import FAKE_LIMITS, fake_layout
from tests.engine.rig import Rig

LONG = dataclasses.replace(FAKE_LIMITS, layout=fake_layout(4096, 4096), max_context=1 << 20)


def overload(rig: Rig, session: Session, seconds: float) -> list[float]:
    """Entries wait all the time; how old the answer was at every turn, from the first on."""
    ages: list[float] = []
    (query,) = session.flashes()
    ends_s = rig.clock.now_s + seconds
    passed: dict[int, float] = {}
    while rig.clock.now_s < ends_s:
        while session.info().pending < 4:
            session.push("e" * 15)  # a step of reading, 1 s
        rig.engine.turn()
        passed.setdefault(session.version, rig.clock.now_s)
        if query.answer is not None:
            newer = [at for version, at in passed.items() if version > query.answer.version]
            ages.append(rig.clock.now_s - min(newer, default=rig.clock.now_s))
    return ages


def test_answers_are_no_older_than_they_may_be() -> None:
    """A question takes 0.8 s, a chunk 1 s: one answer in 5 s is easily afforded."""
    rig = Rig(limits=LONG, staleness_s=None)
    session = rig.open("abcd")
    session.flash("xyz")
    ages = overload(rig, session, 100.0)
    assert max(ages) <= 5.0
    metrics = rig.engine.metrics()
    assert metrics.flash_missed_s.count == 0
    assert metrics.counts.tokens_ingested > 50 * 16, "and reading goes on"


def test_each_question_may_have_a_target_of_its_own() -> None:
    rig = Rig(limits=LONG, staleness_s=None, config=EngineConfig(flash_staleness_s=50.0))
    session = rig.open("abcd")
    session.flash("xyz", staleness_s=4.0)
    assert max(overload(rig, session, 60.0)) <= 4.0


def test_reading_keeps_half_of_the_device() -> None:
    """A target that nobody can keep: 0.1 s."""
    rig = Rig(limits=LONG, staleness_s=None, config=EngineConfig(flash_staleness_s=0.1))
    session = rig.open("abcd")
    session.flash("xyz")
    began_s = rig.clock.now_s
    overload(rig, session, 100.0)
    metrics = rig.engine.metrics()
    reading_s = metrics.step_s["ingest"].total
    assert reading_s >= 0.48 * (rig.clock.now_s - began_s)
    assert metrics.flash_missed_s.count > 10 and metrics.flash_missed_s.largest > 0.1


def test_targets_are_checked() -> None:
    with pytest.raises(InvalidInput, match="flash_staleness_s"):
        EngineConfig(flash_staleness_s=-1.0)
    with pytest.raises(InvalidInput, match="staleness_s"):
        Rig().open("abcd").flash("xyz", staleness_s=float("nan"))
