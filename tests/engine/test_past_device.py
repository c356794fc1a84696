"""Earlier versions with real steps: what comes out is what `query` gives on a state that read just
those entries, whatever the layers see, at every border of a block, alone and among other asks.

Freed blocks are full of NaN, so whoever reads one shows it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pytest

import jaxstate
from jaxstate.config import LayerAttention, Rope, StepConfig
from jaxstate.engine.api.session import Session
from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.engine.requests.encoding import PromptEncoder, Settings
from jaxstate.engine.requests.futures import AskFuture
from jaxstate.engine.types.options import EngineConfig
from jaxstate.errors import VersionUnavailable
from jaxstate.testing import (
    TINY_CONFIG,
    TINY_STEPS,
    FakeClock,
    SteppedEngine,
    tiny_config,
    tiny_model,
)
from jaxstate.testing.reference import Reference
from jaxstate.text import Template

CELLS = 64  # as in the tests of steps that are shared: the same executables
PLAIN = Template(bare="<bos>", opening=("<bos>", ""), asking=("", ""))
# Where versions end, after the first of one token: around whole blocks of 4 cells, a window of 7,
# and a ring of 28 cells.
ENDS: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 27, 28, 29, 31, 32, 33, 55, 56, 57)
TEXT = "the price went up by 1.25 and then down by 0.75, as nobody had said it would"
FEW = StepConfig(
    block_cells=4,
    extend_tokens=(16,),
    question_tokens=(16,),
    tail_cells=(32,),
    question_rows=(1, 4),
    step_sessions=(1, 4),
    session_rows=2,
    step_tokens=64,
    choice_tokens=(8,),
    tail_block_cells=4,
    tail_blocks=32,
)
_FULL = LayerAttention(rope=Rope(base=10_000.0))
_WINDOW = LayerAttention(rope=Rope(base=1_000.0), window=7)
KINDS = {"full": (_FULL, _FULL), "both": TINY_CONFIG.layers, "window": (_WINDOW, _WINDOW)}


@functools.cache
def model(kind: str) -> jaxstate.Model:
    # What other tests have compiled, or few shapes of one's own.
    steps = TINY_STEPS if kind == "both" else FEW
    made = tiny_model(tiny_config(layers=KINDS[kind]), steps=steps, seed=4)
    return dataclasses.replace(made, template=PLAIN)


@functools.cache
def executor(kind: str) -> DeviceExecutor:
    return DeviceExecutor(model(kind), session_cells=CELLS, cells=512, sessions=16, poison=True)


@functools.cache
def reference(kind: str) -> Reference:
    return Reference(model(kind), CELLS)


class Streams:
    """Sessions on a device, with what each has read."""

    def __init__(self, kind: str, config: EngineConfig | None = None) -> None:
        self.kind = kind
        self.engine = SteppedEngine(executor(kind), FakeClock(), config=config, template=PLAIN)
        self.encoder = PromptEncoder(
            tokenizer=model(kind).text, template=PLAIN, limits=executor(kind).limits
        )

    def filled(self, ends: tuple[int, ...] = ENDS) -> Session:
        """A session whose versions end there."""
        session = self.engine.open()
        for start, end in zip((1, *ends), ends, strict=False):
            session.push(TEXT[start : end - 1] if end - start > 1 else "")
            self.engine.run()
            assert session.info().tokens == end
        return session

    def check(self, future: AskFuture, read: list[int], question: str, **settings: object) -> None:
        asked = self.encoder.ask(question, Settings(max_tokens=4, **settings))  # pyright: ignore
        reference(self.kind).check(future.result(timeout=0), tuple(read), asked)

    def close(self) -> None:
        self.engine.check_blocks()
        self.engine.close()
        self.engine.turn()


@pytest.fixture(params=list(KINDS))
def streams(request: pytest.FixtureRequest) -> Iterator[Streams]:
    made = Streams(request.param)
    yield made
    made.close()


def read_by(session: Session, version: int) -> list[int]:
    log = session.record.residence.log
    end = log.version_end(version)
    assert end is not None
    return log.tokens(0, end).tolist()


def held(streams: Streams, session: Session, version: int) -> bool:
    """As the layout says."""
    end = len(read_by(session, version))
    layout = executor(streams.kind).limits.layout
    return layout.readable_until(end) >= session.info().tokens


def test_an_answer_about_any_version_is_that_of_a_state_which_read_just_that(
    streams: Streams,
) -> None:
    session = streams.filled()
    gone = 0
    for version in range(len(ENDS) + 1):
        question, choices = "up?", ("y", "no")
        if not held(streams, session, version):
            gone += 1
            with pytest.raises(VersionUnavailable):
                session.submit(question, as_of=version)
            continue
        free = session.submit(question, max_tokens=4, as_of=version)
        chosen = session.submit(question, max_tokens=4, choices=choices, as_of=version)
        newest = session.submit(question, max_tokens=4)
        streams.engine.run()
        assert free.result(timeout=0).version == version
        streams.check(free, read_by(session, version), question)
        streams.check(chosen, read_by(session, version), question, choices=choices)
        streams.check(newest, read_by(session, len(ENDS)), question)
    assert (gone > 0) == (streams.kind != "full")
    assert [one.id for one in streams.engine.sessions()] == [session.id]


def test_asks_about_many_versions_and_sessions_at_once(streams: Streams) -> None:
    sessions = [streams.filled(), streams.filled((2, 9, 15, 16, 17))]
    asked: list[tuple[AskFuture, list[int], str]] = []
    for session in sessions:
        for version in range(session.version + 1):
            if held(streams, session, version):
                question = ("up?", "is it down", "q")[version % 3]
                future = session.submit(question, max_tokens=4, as_of=version)
                asked.append((future, read_by(session, version), question))
    for session in sessions:
        session.push("!" * 5)  # is read beside them
    streams.engine.run()
    answered = [one for one in asked if one[0].exception(timeout=0) is None]
    refused = [one[0].exception(timeout=0) for one in asked if one not in answered]
    assert all(isinstance(error, VersionUnavailable) for error in refused)
    assert len(answered) > 3 and (streams.kind != "full" or not refused)
    for one in answered:
        streams.check(*one)


def test_an_answer_that_is_under_way_keeps_its_cells_while_the_session_reads_on(
    streams: Streams,
) -> None:
    session = streams.filled()
    version = next(v for v in range(len(ENDS) + 1) if held(streams, session, v))
    future = session.submit("is it down", max_tokens=4, as_of=version)
    streams.engine.turn()
    session.push("?" * 6)
    streams.engine.run()
    streams.check(future, read_by(session, version), "is it down")
    assert session.version == len(ENDS) + 1


def test_a_fork_at_any_version_goes_on_like_a_session_that_read_just_that(
    streams: Streams,
) -> None:
    """Its cells, its ready vector and its answers, before and after it has read more."""
    parent = streams.filled()
    for version in range(len(ENDS) + 1):
        read = read_by(parent, version)
        try:
            child = streams.engine.fork(parent, streams.engine.turn, version=version)
        except VersionUnavailable:
            assert streams.kind != "full"
            continue
        before = child.submit("up?", max_tokens=4)
        streams.engine.run()
        streams.check(before, read, "up?")
        check_ready(streams, child, read)
        child.push("later")
        streams.engine.run()
        more = read_by(child, version + 1)
        assert more[: len(read)] == read and len(more) == len(read) + 6
        after = [child.submit("up?", max_tokens=4), parent.submit("up?", max_tokens=4)]
        streams.engine.run()
        streams.check(after[0], more, "up?")
        streams.check(after[1], read_by(parent, len(ENDS)), "up?")
        for earlier in range(version + 1):
            if child.record.residence.oldest_cells <= len(read_by(child, earlier)) and held(
                streams, child, earlier
            ):
                again = child.submit("up?", max_tokens=4, as_of=earlier)
                streams.engine.run()
                streams.check(again, read_by(parent, earlier), "up?")
        child.close()
        streams.engine.run()
        streams.engine.check_blocks()


def check_ready(streams: Streams, session: Session, read: list[int]) -> None:
    """What `ready_logits` would say of it, saved and restored."""
    own, record = model(streams.kind), session.record
    state = jaxstate.extend(own, jaxstate.init_state(own, CELLS), read)
    seen = record.residence.seen(len(read))
    view = executor(streams.kind).view(seen)
    np.testing.assert_allclose(np.asarray(view.ready), np.asarray(state.ready), atol=1e-4)


@pytest.mark.parametrize("host_bytes", [1 << 30, 0])
@pytest.mark.parametrize("kind", list(KINDS))
def test_versions_of_a_session_that_was_away(kind: str, host_bytes: int) -> None:
    streams = Streams(kind, EngineConfig(host_bytes=host_bytes))
    session = streams.filled()
    session.suspending()
    streams.engine.run()
    session.resuming()
    streams.engine.run()
    found = 0
    for version in range(len(ENDS) + 1):
        try:
            future = session.submit("up?", max_tokens=4, as_of=version)
        except VersionUnavailable:
            assert not held(streams, session, version) or host_bytes
            continue
        streams.engine.run()
        streams.check(future, read_by(session, version), "up?")
        found += version > 0
    assert found >= 1 and (kind != "full" or found == len(ENDS))
    assert host_bytes or kind == "full" or found > 1
    streams.close()
