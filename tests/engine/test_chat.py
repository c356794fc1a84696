"""Conversations: answered as a session that had read just them would, shared, and not kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import jaxstate
from jaxstate import BudgetExceeded, CapacityExceeded, InvalidInput, PromptTooLong, UnknownSession
from jaxstate.engine.requests.encoding import CONVERSATION_TAIL
from jaxstate.testing.tiny import tiny_model
from jaxstate.text import Message, conversation_tokens
from tests.engine.rig import Rig

TALK: list[Message] = [
    {"role": "system", "content": "Prices of today"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?"},
]


@pytest.fixture(scope="module")
def engine() -> Iterator[jaxstate.Engine]:
    with jaxstate.Engine(tiny_model(), cells=512, session_cells=128, warm_up=False) as one:
        yield one


def test_the_answer_is_that_of_the_functional_core(engine: jaxstate.Engine) -> None:
    model = tiny_model()
    tokens = conversation_tokens(model.template, model.text, TALK)
    read, asked = tokens[:-CONVERSATION_TAIL], tokens[-CONVERSATION_TAIL:]
    state = jaxstate.extend(model, jaxstate.init_state(model, cells=128), np.array(read, np.int32))
    wanted = jaxstate.query(model, state, np.array(asked, np.int32), max_tokens=8, stop=("\n",))
    for _ in range(3):  # the second and third share what the first has read
        answer = engine.chat(TALK, max_tokens=8)
        assert answer.token_ids == tuple(wanted.tokens)
        assert answer.usage.context_tokens + answer.usage.question_tokens == len(tokens)
        np.testing.assert_allclose(answer.logprob, wanted.logprobs.sum(), atol=1e-4)
    assert engine.count_tokens(TALK) == len(tokens)


def test_what_was_read_is_shared_within_a_tenant(engine: jaxstate.Engine) -> None:
    again = [*TALK, {"role": "assistant", "content": "2"}, {"role": "user", "content": "three?"}]
    first = engine.chat(TALK, tenant="shares", max_tokens=4).usage
    same = engine.chat(TALK, tenant="shares", max_tokens=4).usage
    longer = engine.chat(again, tenant="shares", max_tokens=4).usage  # pyright: ignore
    other = engine.chat(TALK, tenant="another", max_tokens=4).usage
    assert first.cached_tokens == other.cached_tokens == 0
    block_cells = tiny_model().steps.block_cells
    read = (first.context_tokens - 1) // block_cells * block_cells
    assert same.cached_tokens == longer.cached_tokens == read


def test_nobody_sees_it_and_nothing_stays() -> None:
    rig = Rig()
    kept = rig.open("abcd")
    future = rig.engine.submit_chat(TALK)
    rig.turns(1)
    assert [one.id for one in rig.engine.sessions()] == [kept.id]
    assert rig.engine.metrics().gauges.sessions == 1
    with pytest.raises(UnknownSession):
        rig.engine.session("~5")
    rig.engine.run()
    assert future.result(timeout=0).source == "computed"
    assert len(rig.core.state.records) == 1
    rig.at_rest()


def test_one_that_is_cancelled_gives_everything_back() -> None:
    rig = Rig()
    rig.open("abcd")
    future = rig.engine.submit_chat(TALK)
    rig.turns(1)
    assert future.cancel()
    rig.engine.run()
    assert len(rig.core.state.records) == 1
    rig.at_rest()


def test_a_journal_hears_nothing_of_it(tmp_path: Path) -> None:
    rig = Rig(journal=tmp_path / "kept")
    future = rig.engine.submit_chat(TALK)
    rig.engine.run()
    future.result(timeout=0)
    rig.engine.close()
    again = Rig(journal=tmp_path / "kept")
    assert again.engine.sessions() == [] and again.engine.recovery.sessions == ()
    again.engine.close()


def test_pieces_of_it_come_while_it_grows(engine: jaxstate.Engine) -> None:
    with engine.stream_chat(TALK, max_tokens=8, temperature=1.0, seed=3) as pieces:
        text = "".join(pieces)
    assert pieces.answer is not None and pieces.answer.text == text
    assert text == engine.chat(TALK, max_tokens=8, temperature=1.0, seed=3).text


def test_without_max_tokens_it_may_fill_the_tail(engine: jaxstate.Engine) -> None:
    tail_cells = tiny_model().steps.tail_cells[-1]
    answer = engine.chat(TALK, stop=[], temperature=2.0, seed=1)
    assert answer.finish_reason == "stop" or len(answer.token_ids) == (
        tail_cells - CONVERSATION_TAIL + 1
    )


def test_choices_and_asyncio() -> None:
    async def talk() -> tuple[str, str]:
        made = jaxstate.AsyncEngine(tiny_model(), cells=256, session_cells=128, warm_up=False)
        async with made as engine:
            answer = await engine.chat(TALK, choices=["yes", "no"])
            async with engine.stream_chat(TALK, choices=["yes", "no"]) as pieces:
                return answer.text, "".join([piece async for piece in pieces])

    text, pieces = asyncio.run(talk())
    assert text == pieces and text in ("yes", "no")


def test_what_cannot_be_answered_is_refused_and_nothing_stays(engine: jaxstate.Engine) -> None:
    with pytest.raises(InvalidInput, match="must end with one of the user's"):
        engine.chat(TALK[:3])
    with pytest.raises(PromptTooLong):
        engine.chat(TALK, max_tokens=1000)
    with pytest.raises(InvalidInput, match="tenant"):
        engine.chat(TALK, tenant="no such/name")
    with pytest.raises(CapacityExceeded, match="the conversation"):
        engine.chat([{"role": "user", "content": "x" * 200}])
    with pytest.raises(TypeError, match=r"Engine\.chat\(\) got an unexpected .* 'as_of'"):
        engine.chat(TALK, as_of=1)  # pyright: ignore
    full = [engine.open(reserve=128) for _ in range(4)]
    with pytest.raises(BudgetExceeded):
        engine.chat(TALK, max_tokens=4)
    for one in full:
        one.close()
    assert len(engine._core.state.records) == 0


def test_messages_are_asked_of_a_session(engine: jaxstate.Engine) -> None:
    """One message alone is the question, and finds its flash answer; more go on from it."""
    with engine.open(prefix="Prices") as session:
        session.push("a")
        session.flash("two?", max_tokens=4)
        session.wait_fresh()
        alone = session.ask([{"role": "user", "content": "two?"}], max_tokens=4)
        assert alone.source == "flash"
        assert alone.text == session.ask("two?", max_tokens=4).text
        talk: list[Message] = [
            {"role": "user", "content": "o"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "t"},
        ]
        with pytest.raises(PromptTooLong):
            session.ask(talk)
        with pytest.raises(InvalidInput, match="must end with one of the user's"):
            session.ask(talk[:2])
        assert session.info().tokens == session.ask("x", max_tokens=1).usage.cached_tokens
