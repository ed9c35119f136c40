"""The table of what a run has shown; a conftest takes ``show`` and ``pytest_terminal_summary`` from here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Show = Callable[[str, str], None]

_shown: list[tuple[str, str]] = []


@pytest.fixture
def show() -> Show:
    """Puts a line into the table: what was to be shown, and with which figures."""

    def note(what: str, figures: str) -> None:
        _shown.append((what, figures))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table once, however many conftests have this."""
    if not _shown:
        return
    terminalreporter.section("what was shown")
    width = max(len(what) for what, _ in _shown)
    for what, figures in _shown:
        terminalreporter.write_line(f"{what:{width}}  {figures}")
    _shown.clear()
