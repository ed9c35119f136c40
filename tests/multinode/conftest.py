"""What the tests of a fleet behind a load balancer share, and the table of what they have shown."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.multinode.topology import Topology

_shown: list[tuple[str, str]] = []

# The default is 50 ms. With a long one a machine that stumbles changes no exact count.
_VALKEY_DEADLINE = os.environ.get("ELEMTA_VALKEY_DEADLINE_IN_TESTS", "2s")

Show = Callable[[str, str], None]


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """A fleet for the tests of a module; at the end a look at what anybody had to complain about."""
    with tempfile.TemporaryDirectory(prefix=f"multinode-{os.getpid()}-", ignore_cleanup_errors=True) as name:
        # HAProxy and nginx change to users of their own.
        Path(name).chmod(0o755)
        with Topology(Path(name), _VALKEY_DEADLINE) as topology:
            yield topology
            assert topology.faults() == []


@pytest.fixture
def nginx(topology: Topology) -> Iterator[None]:
    """nginx beside HAProxy while the test runs."""
    server = topology.start_nginx()
    try:
        yield
    finally:
        server.stop()


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
