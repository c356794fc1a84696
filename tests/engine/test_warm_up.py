"""An engine works while its steps are compiled, and compiles each of them once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import jaxstate
from jaxstate.engine.api.engine import WarmUp
from jaxstate.errors import JaxstateError
from jaxstate.model.bundle import Model
from jaxstate.steps import compiled as compiled_module
from jaxstate.steps.compiled import compilations, compile_all, compiled, forget_compiled, plan_steps
from jaxstate.testing import tiny_config, tiny_model

STEPS = jaxstate.StepConfig(
    extend_tokens=(16,),
    question_tokens=(16,),
    tail_cells=(64,),
    question_rows=(1,),
    step_sessions=(1,),
    choice_tokens=(4,),
)


def model() -> Model:
    return dataclasses.replace(tiny_model(), steps=STEPS)


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    forget_compiled()
    yield
    forget_compiled()


def test_the_first_answer_comes_before_all_is_compiled(nothing_compiled: None) -> None:
    seen: list[tuple[int, int]] = []
    went_on = threading.Event()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        went_on.wait(60)  # holds up the compiler until the answer is there

    with jaxstate.Engine(model(), cells=512, session_cells=256, progress=progress) as engine:
        with pytest.raises(TimeoutError, match="not all compiled"):
            engine.wait_warm_up(timeout=0.01)
        session = engine.open()
        session.push("09:30 101.20")
        session.ask("What?", max_tokens=3)
        went_on.set()
        engine.wait_warm_up(timeout=120)
        before = compilations()
        session.push("09:31 101.30")
        session.ask("What now?", max_tokens=3)
        assert compilations() == before
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_closing_does_not_wait_for_the_rest(nothing_compiled: None) -> None:
    seen: list[int] = []
    begun = threading.Event()

    def progress(done: int, total: int) -> None:
        seen.append(total - done)
        begun.set()
        time.sleep(0.2)

    engine = jaxstate.Engine(model(), cells=512, session_cells=256, progress=progress)
    assert begun.wait(60)
    engine.close()
    assert seen[-1] > 0
    with pytest.raises(JaxstateError, match="closed before"):
        engine.wait_warm_up()


def test_without_a_warm_up_there_is_nothing_to_wait_for() -> None:
    with (
        jaxstate.Engine(model(), cells=512, session_cells=256, warm_up=False) as engine,
        pytest.raises(JaxstateError, match="warm_up=True"),
    ):
        engine.wait_warm_up()


def test_a_step_that_does_not_compile_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def fails(progress: Callable[[int, int], None], stopped: Callable[[], bool]) -> None:
        raise ValueError("no such kernel")

    warm_up = WarmUp(fails, None)
    with pytest.raises(JaxstateError, match="no such kernel"):
        warm_up.wait(10)
    warm_up.stop()
    assert "does not compile" in caplog.text


def test_whoever_comes_second_waits_for_the_first(
    nothing_compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[object] = []
    compile_one = compiled_module._compile

    def counted(spec: object) -> object:
        times.append(spec)
        time.sleep(0.1)
        return compile_one(spec)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(compiled_module, "_compile", counted)
    (spec,) = [plan_steps(tiny_config(), model().dtype, STEPS, 64).open_spec()]
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(compiled(spec))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1
    assert len(set(map(id, found))) == 1


def test_nothing_is_begun_once_it_is_stopped(nothing_compiled: None) -> None:
    specs = list(plan_steps(tiny_config(), model().dtype, STEPS, 64).specs())
    before = compilations()
    compile_all(specs, stopped=lambda: True)
    assert compilations() == before
