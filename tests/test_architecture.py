"""The page that says where things are says it truly: names, files, floors, and who runs in a push
and in an ask."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from jaxstate.engine.executor.device import DeviceExecutor
from jaxstate.testing import FakeClock, SteppedEngine, tiny_model
from tests.engine.test_aio import FEW
from tests.test_layering import ENGINE_RANKS, RANKS

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "jaxstate" / "engine"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def named(title: str) -> set[tuple[str, str]]:
    """File and function of every step of a life."""
    found: set[tuple[str, str]] = set()
    for line in section(title).splitlines():
        file = ""
        for name in re.findall(r"`([^`]+)`", line):
            if name.endswith(".py"):
                file = name
            elif file and re.match(r"\d+\.", line):
                found.add((file, name))
    return found


def run_in(act: Callable[[], object]) -> set[tuple[str, str]]:
    """The engine's functions that run."""
    ran: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and ENGINE in path.parents:
            ran.add((path.relative_to(ENGINE).as_posix(), frame.f_code.co_qualname))

    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(None)
    return ran


@pytest.mark.parametrize("life", ["push", "ask"])
def test_the_life_of_a_push_and_of_an_ask(life: str) -> None:
    executor = DeviceExecutor(tiny_model(steps=FEW), session_cells=256, cells=256, sessions=2)
    engine = SteppedEngine(executor, FakeClock())
    session = engine.open()
    engine.run()

    def push() -> None:
        session.push("x")
        engine.run()

    def ask() -> None:
        future = session.submit("q", max_tokens=2)
        engine.run()
        future.result(timeout=0)

    wanted = named("The life of a push" if life == "push" else "The life of an ask")
    act = push if life == "push" else ask
    act()  # so that nothing is compiled while each call is looked at
    ran = run_in(act)
    engine.close()
    assert len(wanted) > 10
    # `ask` is `submit` on a thread that waits for the loop's; here there is one thread.
    assert wanted - ran - {("api/session.py", "Session.ask")} == set()


def test_the_floors() -> None:
    floors: dict[str, int] = {}
    for line in section("The engine's floors").splitlines():
        if (match := re.match(r"\| (\d+) \| `(\w+)` \|", line)) is not None:
            floors[match[2]] = int(match[1])
    assert floors == {name: rank + 1 for name, rank in ENGINE_RANKS.items()}
    upper = PAGE.split("## ")[0]
    order = [match[1] for match in re.finditer(r"^\| \d+ \| (.+?) \|", upper, re.MULTILINE)]
    ranks = [[RANKS[name] for name in re.findall(r"`(\w+)`", cell)] for cell in order]
    lowest = [max(one) for one in ranks]
    assert lowest == sorted(lowest, reverse=True)


def test_every_class_and_test_that_is_named_is_there() -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "jaxstate").rglob("*.py"))
    for name in re.findall(r"`([A-Z]\w+)`", PAGE):
        assert re.search(rf"^class {name}\b", source, re.MULTILINE), name
    for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / path).is_file(), path
