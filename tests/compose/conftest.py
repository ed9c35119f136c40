"""Collected only by `make compose-test`, which makes the images and the namespace that these tests run in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compose.engine import Engine

collect_ignore_glob = [] if "ELEMTA_COMPOSE" in os.environ else ["test_*.py"]

_shown: list[tuple[str, str]] = []

Show = Callable[[str, str], None]


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(Path(os.environ["ELEMTA_COMPOSE"]))


@pytest.fixture(scope="session", autouse=True)
def _addresses() -> None:
    """The clients': of a network for documentation, in the namespace of this test and nowhere else."""
    for last in range(1, 100):
        subprocess.run(["ip", "address", "add", f"198.51.100.{last}/32", "dev", "lo"], check=True)


@pytest.fixture
def show() -> Show:
    """Puts a line into the table: what was to be shown, and with which figures."""

    def note(what: str, figures: str) -> None:
        _shown.append((what, figures))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _shown:
        return
    terminalreporter.section("what was shown")
    width = max(len(what) for what, _ in _shown)
    for what, figures in _shown:
        terminalreporter.write_line(f"{what:{width}}  {figures}")
