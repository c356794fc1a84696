"""An answer in pieces: put together they are what `ask` gives, and none ends within a character."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate
from jaxstate import AnswerStream, InvalidInput, StepFailed, TimedOut
from jaxstate.testing.tiny import tiny_model
from tests.engine.rig import Rig


def test_pieces_come_while_the_answer_grows() -> None:
    rig = Rig()
    session = rig.open("abcd")
    stream = session.stream("xyz", timeout=0)
    pieces: list[str] = []
    while rig.engine.turn():
        if stream._feed.text or stream.answer:
            pieces += [piece] if (piece := stream._take()) else []
    assert pieces == ["5", ":", "3"]
    assert stream.answer is not None and stream.answer.text == "5:3"
    assert list(stream) == []
    rig.at_rest()


def test_what_was_read_late_comes_at_once() -> None:
    rig = Rig()
    session = rig.open("abcd")
    stream = session.stream("xyz")
    rig.engine.run()
    assert list(stream) == ["5:3"]


def test_a_flash_answer_comes_in_one_piece() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.flash("xyz")
    rig.engine.run()
    stream = session.stream("xyz")
    assert list(stream) == ["5:3"]
    assert stream.answer is not None and stream.answer.source == "flash"


def test_choices_come_in_one_piece() -> None:
    rig = Rig()
    session = rig.open("abcd")
    stream = session.stream("xyz", choices=["yes", "no"])
    rig.engine.run()
    assert list(stream) == [stream.answer.text if stream.answer else ""]


def test_a_closed_stream_takes_its_question_off_the_device() -> None:
    rig = Rig()
    session = rig.open("abcd")
    with session.stream("xyz") as stream:
        rig.turns(2)
        assert next(stream) == "5:"
    rig.engine.run()
    assert list(stream) == [] and stream.answer is None
    assert rig.engine.metrics().counts.asks_cancelled == 1
    rig.at_rest()


def test_a_stream_that_nobody_has_takes_its_question_off_the_device() -> None:
    rig = Rig()
    session = rig.open("abcd")
    session.stream("xyz")
    gc.collect()
    rig.engine.run()
    assert rig.engine.metrics().counts.asks_cancelled == 1
    assert rig.news() == ["start s1 x1"]
    rig.at_rest()


def test_a_timeout_ends_it() -> None:
    rig = Rig()
    session = rig.open("abcd")
    stream = session.stream("xyz", timeout=0)
    with pytest.raises(TimedOut, match="within 0 s; it was cancelled"):
        next(stream)
    assert rig.engine.metrics().counts.asks_timed_out == 1


def test_a_device_that_fails_is_told_behind_what_was_said() -> None:
    rig = Rig()
    session = rig.open("abcd")
    stream = session.stream("xyz")
    rig.turns(2)
    rig.executor.fail_next("decode")
    rig.engine.run()
    assert next(stream) == "5:"
    with pytest.raises(StepFailed):
        next(stream)


def test_what_cannot_be_asked_is_refused_at_once() -> None:
    rig = Rig()
    session = rig.open("abcd")
    with pytest.raises(InvalidInput, match="empty"):
        session.stream("")
    with pytest.raises(TypeError, match=r"Session\.stream\(\) got an unexpected .* 'tokens'"):
        session.stream("xyz", tokens=3)  # pyright: ignore


@pytest.fixture(scope="module")
def engine() -> object:
    with jaxstate.Engine(tiny_model(), cells=512, session_cells=128, warm_up=False) as one:
        yield one


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(max_size=12),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.0, 1.0, 4.0]),
    stop=st.sampled_from([None, ["é"], ["a", " "]]),
)
def test_pieces_put_together_are_the_answer(
    engine: jaxstate.Engine, text: str, seed: int, temperature: float, stop: list[str] | None
) -> None:
    with engine.open() as session:
        session.push(text or "x")
        session.wait()
        how = {"seed": seed, "temperature": temperature, "stop": stop, "max_tokens": 8}
        stream = session.stream("é?", **how)  # pyright: ignore
        pieces = list(stream)
        assert isinstance(stream, AnswerStream) and stream.answer is not None
        asked = session.ask("é?", **how)  # pyright: ignore
        assert "".join(pieces) == asked.text == stream.answer.text
        assert all(pieces)
        assert asked.token_logprobs is not None
        assert len(asked.token_logprobs) == len(asked.token_ids)
        np.testing.assert_allclose(sum(asked.token_logprobs), asked.logprob, rtol=1e-5)


def test_asyncio_reads_along(engine: jaxstate.Engine) -> None:
    async def read() -> tuple[str, str]:
        async with jaxstate.AsyncEngine(
            tiny_model(), cells=256, session_cells=64, warm_up=False
        ) as made:
            session = made.open()
            await session.push("abcd")
            async with session.stream("xyz", min_version=1, max_tokens=8) as stream:
                pieces = [piece async for piece in stream]
            assert stream.answer is not None
            with pytest.raises(TimedOut):
                async for _ in session.stream("xyz", min_version=2, max_tokens=8, timeout=0.05):
                    pass
            return "".join(pieces), stream.answer.text

    together, text = asyncio.run(read())
    assert together == text
