"""Windows on a real model: at random moments of streams far longer than the context, every answer
is that of a state which has read just the entries that it names, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path

import numpy as np
import pytest

import jaxstate
from jaxstate import Answer, EngineConfig, Window
from jaxstate.testing import TINY_CONFIG, tiny_model
from tests.engine.test_aio import FEW

# Orbax leaves futures behind when a read fails; what it says of them is not ours.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PREFIX = "Prices of three shares."
QUESTION = "Why?"
CONFIG = EngineConfig(snapshot_s=None, snapshot_bytes=8_000)
BLOCK = 16
WINDOWS = {
    "tokens": Window(tokens=60, hop=0.5),
    "tokens, hop chosen": Window(tokens=60),
    "entries": Window(entries=7, hop=0.3),
    "age": Window(age_s=0.3, hop=0.5),
    "key": Window(key="^([a-z])", hop=0.5),
    "all": Window(tokens=70, entries=12, key="^([a-z])", hop=0.25),
}


@functools.cache
def model(kind: str, dtype: str = "float32") -> jaxstate.Model:
    """With layers that see a window of their own, and without."""
    config = TINY_CONFIG
    if kind == "full":
        layers = tuple(dataclasses.replace(one, window=None) for one in config.layers)
        config = dataclasses.replace(config, layers=layers)
    return tiny_model(config, steps=FEW, dtype=dtype)


def engine_of(made: jaxstate.Model, journal: Path | None = None) -> jaxstate.Engine:
    """Sessions of 144 cells."""
    return jaxstate.Engine(
        made, cells=1024, session_cells=144, config=CONFIG, warm_up=False, journal=journal
    )


def fresh(
    made: jaxstate.Model, texts: dict[int, str], answer: Answer, *, exact: bool = True
) -> jaxstate.QueryResult:
    """What a state says that has read the prefix and the entries that an answer names."""
    assert answer.visible is not None
    tokens = made.template.open_tokens(made.text, PREFIX)
    for one in answer.visible:
        for number in range(one.first, one.last + 1):
            tokens += made.template.entry_tokens(made.text, texts[number])
    assert not exact or answer.usage.context_tokens == len(tokens)
    state = jaxstate.extend(made, jaxstate.init_state(made, 256), tokens)
    asked = made.template.question_tokens(made.text, QUESTION)
    return jaxstate.query(made, state, asked, max_tokens=3)


def check(made: jaxstate.Model, texts: dict[int, str], answer: Answer, close: float = 1e-4) -> None:
    """Numbers that come of the logits, and in float32 the tokens as well."""
    wanted = fresh(made, texts, answer)
    gap = float(np.diff(np.sort(wanted.logits)[-2:])[0])
    assert abs(answer.confidence - gap) < close
    if made.dtype == np.float32:
        assert list(answer.token_ids) == wanted.tokens.tolist()
        assert abs(answer.logprob - float(wanted.logprobs.sum())) < 3 * close
    assert answer.visible is not None
    assert max((one.last for one in answer.visible), default=0) == answer.version


def some_text(chance: random.Random) -> str:
    return f"{chance.choice('abc')}{chance.randrange(10 ** chance.randint(1, 6))}"


@pytest.mark.parametrize("kind", ["windows", "full"])
@pytest.mark.parametrize("name", list(WINDOWS))
def test_answers_are_those_of_a_fresh_prefill(kind: str, name: str) -> None:
    """Ten times the context, asks and flash queries meanwhile."""
    made, chance, texts = model(kind), random.Random(f"{kind} {name}"), dict[int, str]()
    answers: list[Answer] = []
    with engine_of(made) as engine:
        session = engine.open(prefix=PREFIX, window=WINDOWS[name])
        query = session.flash(QUESTION, max_tokens=3, stop=[])
        tokens = 0
        while tokens < 1440:
            batch = [some_text(chance) for _ in range(chance.choice((1, 1, 2, 5)))]
            receipt = session.push(batch)
            texts.update(zip(range(receipt.first, receipt.last + 1), batch, strict=True))
            tokens += sum(len(text) + 1 for text in batch)
            if chance.random() < 0.3:
                answers.append(session.ask(QUESTION, max_tokens=3, stop=[], timeout=60))
            if chance.random() < 0.1:
                session.wait_fresh(60)
                assert query.answer is not None and query.fresh
                answers.append(query.answer)  # source "computed", whoever asked
        session.wait(timeout=60)
        assert engine.metrics().counts.windows_moved > (0 if name == "age" else 3)
    assert len(answers) > 10
    for answer in answers:
        check(made, texts, answer)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(dtype: str) -> None:
    made, chance, texts = model("windows", dtype), random.Random(dtype), dict[int, str]()
    with engine_of(made) as engine:
        session = engine.open(prefix=PREFIX, window=Window(tokens=60, hop=0.5))
        for number in range(1, 120):
            texts[number] = some_text(chance)
            session.push(texts[number])
            if number % 10 == 0:
                session.wait(timeout=60)
                answer = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)
                check(made, texts, answer, 0.05)
        assert engine.metrics().counts.windows_moved > 3


@pytest.mark.parametrize("around", [BLOCK, 2 * BLOCK, 5, 16, 31])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_borders_of_blocks_and_windows(around: int, off: int) -> None:
    """Windows of a block, of one cell less and more; entries of as many cells; those of the layers'
    own windows."""
    made, texts = model("windows"), dict[int, str]()
    with engine_of(made) as engine:
        window = Window(tokens=around + off, hop=0.5)
        session = engine.open(prefix=PREFIX, window=window)
        for number in range(1, 30):
            length = (around + off) if number % 3 == 0 else 1 + number % min(6, around + off)
            texts[number] = "abcdefghijklmnopqrstuvwxyz0123456789"[: length - 1]
            session.push(texts[number])
            session.wait(timeout=60)
            if number % 4 == 0:
                check(made, texts, session.ask(QUESTION, max_tokens=3, stop=[]))
        assert engine.metrics().counts.windows_moved > 3


@pytest.mark.parametrize("kind", ["windows", "full"])
@pytest.mark.parametrize("name", ["tokens", "key", "entries"])
def test_across_restarts(tmp_path: Path, kind: str, name: str) -> None:
    """With snapshots, and without: what is visible, and what is answered, is as before."""
    made, chance, texts = model(kind), random.Random(f"{kind} {name}"), dict[int, str]()
    before, number = None, 0
    for life in range(4):
        with engine_of(made, tmp_path / "j") as engine:
            if life == 0:
                session = engine.open("feed", prefix=PREFIX, window=WINDOWS[name])
            else:
                assert not engine.recovery.set_aside and not engine.recovery.failed
                session = engine.session("feed")
                session.wait(timeout=60)
                answer = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)
                assert before is not None and answer.visible == before.visible
                assert answer.token_ids == before.token_ids
                assert abs(answer.logprob - before.logprob) < 1e-3
            for _ in range(25):
                number += 1
                texts[number] = some_text(chance)
                session.push(texts[number])
            session.wait(timeout=60)
            before = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)
            check(made, texts, before)
            if life == 2:
                engine._durable.snapshots.take_all()  # pyright: ignore
                session.push("z1")  # behind the snapshot
                number += 1
                texts[number] = "z1"
                session.wait(timeout=60)
                before = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)


def test_a_window_goes_with_an_exported_session(tmp_path: Path) -> None:
    made, chance, texts = model("full"), random.Random(3), dict[int, str]()
    window = Window(tokens=60, key="^([a-z])", hop=0.5)
    with engine_of(made, tmp_path / "a") as engine:
        session = engine.open("feed", prefix=PREFIX, window=window)
        for number in range(1, 60):
            texts[number] = some_text(chance)
            session.push(texts[number])
        session.wait(timeout=60)
        before = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)
        session.export(tmp_path / "file")
    with engine_of(made, tmp_path / "b") as engine:
        session = engine.import_session(tmp_path / "file")
        assert session.info().window == window
        session.wait(timeout=60)
        after = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)
        assert (after.visible, after.token_ids) == (before.visible, before.token_ids)
        session.push("a1")
        texts[60] = "a1"
        session.wait(timeout=60)
        check(made, texts, session.ask(QUESTION, max_tokens=3, stop=[]))


def test_a_saved_session_is_frozen_in_the_next(tmp_path: Path) -> None:
    """`save` keeps what is in the context; a session that is restored begins with that."""
    made = model("full")
    with engine_of(made) as engine:
        session = engine.open(prefix=PREFIX, window=Window(tokens=30, hop=0.5))
        session.push([f"a{n}" for n in range(40)])
        session.wait(timeout=60)
        cells = session.info().tokens
        session.save(tmp_path / "saved")
        twin = engine.restore(tmp_path / "saved")
        twin.set_window(Window(tokens=20, hop=0.5))
        twin.push([f"b{n}" for n in range(60)])
        twin.wait(timeout=60)
        assert cells < twin.info().tokens <= cells + 30
        visible = twin.info().visible
        assert visible is not None and visible[0].first == 1 and visible[-1].last == 100


def test_a_restored_session_with_a_window_comes_back(tmp_path: Path) -> None:
    """What it was restored from is what it begins with; a snapshot, and a restart, know that."""
    made = model("full")
    with engine_of(made) as engine:
        session = engine.open(prefix=PREFIX)
        session.push(["a1", "a2"])
        session.wait(timeout=60)
        session.save(tmp_path / "saved")
    seen = None
    for life in range(3):
        with engine_of(made, tmp_path / "j") as engine:
            assert not engine.recovery.failed and not engine.recovery.set_aside
            if life == 0:
                session = engine.restore(tmp_path / "saved", "feed")
                session.set_window(Window(tokens=20, age_s=3600, key="^(..)", hop=0.5))
            else:
                session = engine.session("feed")
                session.wait(timeout=60)
                assert session.info().visible == seen
            session.push([f"b{n}" for n in range(20)])
            session.wait(timeout=60)
            seen = session.info().visible
            assert seen is not None and seen[0].first == 1


# --- windows that slide -------------------------------------------------------------------------


def test_in_one_layer_a_slide_changes_nothing() -> None:
    """There a cell is what its own token makes it, so what is left is what a fresh prefill gives,
    if positions are right: attention knows of them only how far apart two are. (Entries fill
    blocks, so nothing is cut; there is no prefix, which would be nearer.)"""
    layers = (dataclasses.replace(TINY_CONFIG.layers[0], window=None),)
    config = dataclasses.replace(TINY_CONFIG, layers=layers, max_context=4096)
    template = jaxstate.Template(bare="", opening=("", ""), asking=("", ""))
    made = dataclasses.replace(tiny_model(config, steps=FEW), template=template)
    chance, block = random.Random(1), FEW.block_cells
    texts: dict[int, str] = {}
    with jaxstate.Engine(made, cells=1024, session_cells=144, warm_up=False) as engine:
        session = engine.open(window=Window(tokens=6 * block, hop=0.5, mode="slide"))
        for number in range(1, 150):
            texts[number] = "".join(chance.choices("abcdef", k=block - 1))
            session.push(texts[number])
            session.wait(timeout=60)
            if number % 7:
                continue
            answer = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)
            assert answer.window == "slide" and answer.visible is not None
            tokens = [
                token
                for one in answer.visible
                for n in range(one.first, one.last + 1)
                for token in template.entry_tokens(made.text, texts[n])
            ]
            assert answer.usage.context_tokens == len(tokens)
            state = jaxstate.extend(made, jaxstate.init_state(made, 256), tokens)
            asked = template.question_tokens(made.text, QUESTION)
            wanted = jaxstate.query(made, state, asked, max_tokens=3)
            assert list(answer.token_ids) == wanted.tokens.tolist()
            assert abs(answer.logprob - float(wanted.logprobs.sum())) < 3e-4
        assert session.record.residence.slid_cells > 500
        assert engine.metrics().counts.window_tokens_read == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_slide_in_every_dtype_stays_near(dtype: str) -> None:
    """Approximate, in deeper layers; finite, and not adrift: the last answers are no further from a
    fresh prefill than the first."""
    made, chance, texts = model("full", dtype), random.Random(dtype), dict[int, str]()
    far: list[float] = []
    with engine_of(made) as engine:
        session = engine.open(prefix=PREFIX, window=Window(tokens=60, hop=0.5, mode="slide"))
        for number in range(1, 200):
            texts[number] = some_text(chance)
            session.push(texts[number])
            if number % 5 == 0:
                session.wait(timeout=60)
                answer = session.ask(QUESTION, max_tokens=3, stop=[], timeout=60)
                gap = np.diff(np.sort(fresh(made, texts, answer, exact=False).logits)[-2:])
                far.append(abs(answer.confidence - float(gap[0])))
    assert np.isfinite(far).all()
    assert np.median(far[-10:]) < 2 * np.median(far[:20]) + 0.1


def test_layers_with_windows_of_their_own_do_not_slide() -> None:
    with (
        engine_of(model("windows")) as engine,
        pytest.raises(jaxstate.InvalidInput, match="whose layers all see everything"),
    ):
        engine.open(window=Window(tokens=40, mode="slide"))
