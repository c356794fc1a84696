"""Reports how far apart both sides were: a table at the end of the run, one row a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Measured = Callable[[str, float], None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes a number under a name, for the table."""

    def note(name: str, value: float) -> None:
        request.node.user_properties.append((f"parity: {name}", value))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        (report.nodeid.rpartition("/")[2], name.removeprefix("parity: "), value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, value in report.user_properties
        if name.startswith("parity: ")
    ]
    if rows:
        terminalreporter.section("parity: measured differences")
    for test, name, value in rows:
        terminalreporter.line(f"{value:10.2e}  {name:24}  {test}")
