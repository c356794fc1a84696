"""Answers that are there already: used exactly if computing now would give the same.

A session of 5 cells answers a question of 3 tokens with "5:3" and <eos>: four chosen tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxstate.engine.api.session import Session
from jaxstate.engine.types.values import Answer, Span, Usage
from jaxstate.errors import InvalidInput
from tests.engine.rig import Rig


def answered(rig: Rig, session: Session, question: str, **settings: object) -> Answer:
    future = session.submit(question, **settings)
    rig.engine.run()
    return future.result(timeout=0)


def flashed(**settings: object) -> tuple[Rig, Session]:
    """A session of 5 cells at version 1 whose flash query "xyz" is fresh."""
    rig = Rig()
    session = rig.open("abcd")
    query = session.flash("xyz", **settings)
    rig.engine.run()
    assert query.fresh
    rig.news()
    return rig, session


def facts(answer: Answer) -> tuple[object, ...]:
    """What must be the same however it was answered."""
    return (
        answer.text,
        answer.token_ids,
        answer.version,
        answer.logprob,
        answer.confidence,
        answer.finish_reason,
        answer.probability,
        answer.choice_logprobs,
    )


def test_a_hit_is_there_at_once() -> None:
    rig, session = flashed()
    rig.clock.pass_s(7.0)
    future = session.submit("xyz")
    assert future.done()
    answer = future.result(timeout=0)
    assert (answer.text, answer.version, answer.source) == ("5:3", 1, "flash")
    assert answer.latency_s == 0.0
    usage = answer.usage
    assert (usage.context_tokens, usage.question_tokens, usage.answer_tokens) == (5, 0, 0)
    assert rig.engine.run() == 0 and rig.news() == []
    assert rig.engine.metrics().ask_latency_s["flash"].count == 1
    assert rig.engine.metrics().ask_latency_s["computed"].count == 0
    assert session.ask("xyz", timeout=0) == answer


@pytest.mark.parametrize(
    ("registered", "asked", "source"),
    [
        pytest.param({}, {}, "flash", id="the same"),
        pytest.param({}, {"min_version": 1}, "flash", id="min_version reached"),
        pytest.param({}, {"max_tokens": 16}, "flash", id="the default spelled out"),
        pytest.param({"max_tokens": 2}, {}, "flash", id="registered length adopted"),
        pytest.param({"max_tokens": 2}, {"max_tokens": 2}, "flash", id="same length"),
        pytest.param({"max_tokens": 2}, {"max_tokens": 3}, "computed", id="cut off, longer asked"),
        pytest.param({"max_tokens": 3}, {"max_tokens": 2}, "computed", id="cut off, shorter asked"),
        pytest.param({}, {"max_tokens": 4}, "flash", id="ended sooner, just"),
        pytest.param({}, {"max_tokens": 9}, "flash", id="ended sooner"),
        pytest.param({}, {"max_tokens": 60}, "flash", id="ended sooner than more"),
        pytest.param({}, {"max_tokens": 3}, "computed", id="the end would not be seen"),
        pytest.param({}, {"stop": [":"]}, "computed", id="other stop"),
        pytest.param({"stop": [":"]}, {}, "flash", id="registered stop adopted"),
        pytest.param({"stop": [":"]}, {"stop": [":"]}, "flash", id="same stop"),
        pytest.param({"stop": [":"]}, {"stop": []}, "computed", id="no stop"),
        pytest.param({"stop": [":"]}, {"max_tokens": 2}, "flash", id="stopped within"),
        pytest.param({"stop": [":"]}, {"max_tokens": 1}, "computed", id="stop not reached"),
        pytest.param({"stop": [":3"]}, {"max_tokens": 3}, "flash", id="long stop within"),
        pytest.param({"stop": [":3"]}, {"max_tokens": 2}, "computed", id="half a stop string"),
        pytest.param({"stop": ["5:3"]}, {"max_tokens": 1}, "computed", id="stop from the start"),
        pytest.param({}, {"temperature": 0.5}, "computed", id="temperature"),
        pytest.param({}, {"top_p": 0.5}, "flash", id="top_p of a greedy answer"),
        pytest.param({}, {"seed": 1}, "flash", id="seed of a greedy answer"),
        pytest.param({}, {"choices": ["a", "b"]}, "computed", id="choices of its own"),
        pytest.param({"choices": ["a", "b"]}, {}, "flash", id="registered choices adopted"),
        pytest.param({"choices": ["a", "b"]}, {"choices": ["a", "b"]}, "flash", id="same choices"),
        pytest.param({"choices": ["a", "b"]}, {"choices": ["b", "a"]}, "ready", id="reordered"),
        pytest.param({"choices": ["a", "b"]}, {"choices": ["a"]}, "ready", id="fewer choices"),
        pytest.param({"choices": ["a", "b"]}, {"max_tokens": 1}, "flash", id="choices, any length"),
        pytest.param(
            {"choices": ["a", "bb"]}, {"choices": ["bb"]}, "ready", id="of several tokens"
        ),
        pytest.param(
            {"choices": ["a", "b"]}, {"choices": ["b", "a"], "max_tokens": 1}, "ready", id="fitting"
        ),
        pytest.param({"choices": ["a"]}, {"choices": ["a", "b"]}, "computed", id="one more choice"),
    ],
)
def test_exact_or_not_used(registered: dict[str, Any], asked: dict[str, Any], source: str) -> None:
    """Whatever the source, the answer is what an engine without flash queries gives."""
    rig, session = flashed(**registered)
    answer = answered(rig, session, "xyz", **asked)
    assert answer.source == source
    plain = Rig()
    adopted = {**registered, **asked}
    if registered.get("choices") and "max_tokens" in asked:
        del adopted["max_tokens"]
    assert facts(answer) == facts(answered(plain, plain.open("abcd"), "xyz", **adopted))


@pytest.mark.parametrize("question", ["xy", "xyz ", "XYZ", "xyz\n"])
def test_only_the_very_same_text(question: str) -> None:
    rig, session = flashed()
    assert answered(rig, session, question).source == "computed"


def test_a_stale_answer_never_counts() -> None:
    rig, session = flashed()
    session.push("efg")
    assert session.submit("xyz").result(timeout=0).version == 1  # not committed yet
    rig.turns(1)
    answer = answered(rig, session, "xyz")
    assert (answer.source, answer.text, answer.version) == ("computed", "9:3", 2)
    assert answered(rig, session, "xyz").source == "flash"


def test_an_answer_at_a_version_below_the_least_does_not_count() -> None:
    rig, session = flashed()
    session.push("efg")
    future = session.submit("xyz", min_version=2)
    assert not future.done()
    rig.engine.run()
    assert (future.result(timeout=0).text, future.result(timeout=0).version) == ("9:3", 2)


def test_a_hit_is_the_answer_in_everything_but_how_it_came() -> None:
    rig = Rig()
    session = rig.open("abcd")
    queries = [session.flash("fl"), session.flash("c", choices=["a", "bb"])]
    rig.engine.run()
    for query in queries:
        hit = session.submit(query.question).result(timeout=0)
        assert query.answer is not None
        alike = dataclasses.replace(
            query.answer, source="flash", latency_s=hit.latency_s, usage=hit.usage
        )
        assert hit == alike
        assert hit.usage == Usage(
            context_tokens=5, question_tokens=0, answer_tokens=0, cached_tokens=5
        )


def test_before_the_first_answer() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.flash("xyz", max_tokens=2)
    answer = answered(rig, session, "xyz")
    assert (answer.source, answer.text) == ("computed", "5:")  # with the registered length


def test_after_removal() -> None:
    rig, session = flashed(max_tokens=2)
    session.unflash(session.flashes()[0].id)
    answer = answered(rig, session, "xyz")
    assert (answer.source, answer.text) == ("computed", "5:3")


def test_another_sessions_answer_never_counts() -> None:
    rig, _ = flashed()
    other = rig.open("0123456")
    answer = answered(rig, other, "xyz")
    assert (answer.source, answer.text) == ("computed", "8:3")


def test_an_answer_computed_at_an_old_version_does_not_count() -> None:
    """It is delivered after the session went on: marked with its version, never given as fresh."""
    rig = Rig()
    session = rig.open("abcd")
    query = session.flash("xyz", max_tokens=2)
    rig.turns(1)
    session.push("efg")
    rig.turns(2)
    assert query.answer is not None and query.answer.version == 1 and not query.fresh
    answer = answered(rig, session, "xyz")
    assert (answer.source, answer.version, answer.text) == ("computed", 2, "9:")


# --- choices whose scores are there ------------------------------------------------------------


def test_a_ready_answer() -> None:
    """At 5 cells a choice of n tokens has minus the distance of n to 5."""
    rig, session = flashed(choices=["f", "a", "bbb"])
    future = session.submit("xyz", choices=["bbb", "f"])
    assert future.done()
    answer = future.result(timeout=0)
    assert (answer.text, answer.version, answer.source) == ("bbb", 1, "ready")
    assert answer.choice_logprobs == (-2.0, -4.0)
    assert (answer.logprob, answer.confidence, answer.finish_reason) == (-2.0, 2.0, "stop")
    assert answer.probability == pytest.approx(1 / (1 + np.exp(-2)))
    usage = answer.usage
    assert (usage.context_tokens, usage.question_tokens, usage.answer_tokens) == (5, 0, 0)
    assert rig.engine.run() == 0 and rig.news() == []
    assert rig.engine.metrics().ask_latency_s["ready"].count == 1


def test_ready_is_for_the_very_same_text_and_version() -> None:
    rig, session = flashed(choices=["a", "b"])
    choices = ["b", "a"]
    assert answered(rig, session, "XYZ", choices=choices).source == "computed"
    session.push("a")
    assert session.submit("xyz", choices=choices).result(timeout=0).version == 1
    future = session.submit("xyz", choices=choices, min_version=2)
    assert not future.done()
    rig.turns(1)
    computed = session.submit("xyz", choices=choices)
    assert not computed.done()
    rig.engine.run()
    assert computed.result(timeout=0).source == "computed"
    assert future.result(timeout=0).version == 2
    again = session.submit("xyz", choices=choices).result(timeout=0)
    assert (again.source, again.version, again.usage.context_tokens) == ("ready", 2, 7)
    session.unflash("q1")
    assert answered(rig, session, "xyz", choices=choices).source == "computed"


def test_a_choice_that_is_too_long_is_refused_though_its_score_is_there() -> None:
    _, session = flashed(choices=["a", "bb"])
    with pytest.raises(InvalidInput, match="max_tokens=1"):
        session.submit("xyz", choices=["bb"], max_tokens=1)


def test_hits_of_a_closed_session() -> None:
    _, session = flashed(choices=["a", "b"])
    session.close()
    for asked in ({"question": "xyz"}, {"question": "xyz", "choices": ["b", "a"]}):
        with pytest.raises(Exception, match="closed by its user"):
            session.submit(**asked)


def test_an_answer_that_is_given_again_keeps_every_field() -> None:
    """One that is added to `Answer` later, too."""
    answer = Answer(
        text="b",
        token_ids=(1,),
        version=3,
        source="flash",
        confidence=0.5,
        logprob=-1.0,
        finish_reason="stop",
        latency_s=2.0,
        usage=Usage(context_tokens=1, question_tokens=2, answer_tokens=3),
        probability=0.7,
        choice_logprobs=(-1.0, -2.0),
        token_logprobs=(-1.0,),
        stopped_by="\n",
        seed=9,
        visible=(Span(first=1, last=3),),
        window="slide",
    )
    assert answer.given(0.25) == dataclasses.replace(answer, latency_s=0.25)
    assert None not in dataclasses.astuple(answer), "a new field has its value here, too"
