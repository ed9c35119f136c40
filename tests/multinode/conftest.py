"""What the tests of a fleet behind a load balancer share, and the table of what they have shown."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.topology import Topology
from tests.support.showing import pytest_terminal_summary, show

__all__ = ["pytest_terminal_summary", "show"]

# The default is 50 ms. With a long one a machine that stumbles changes no exact count.
_VALKEY_DEADLINE = os.environ.get("ELEMTA_VALKEY_DEADLINE_IN_TESTS", "2s")


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """A fleet for the tests of a module; at the end a look at what any part complained about."""
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
