"""What the tests of a fleet behind a load balancer share, and the table of what they have shown."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.multinode.topology import Topology
from tests.support.open_directory import open_directory
from tests.support.showing import pytest_terminal_summary, show

__all__ = ["pytest_terminal_summary", "show"]

# The default is 50 ms. With a long one a machine that stumbles changes no exact count.
_VALKEY_DEADLINE = os.environ.get("ELEMTA_VALKEY_DEADLINE_IN_TESTS", "2s")


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """A fleet for the tests of a module; at the end a look at what any part complained about."""
    # HAProxy and nginx change to users of their own.
    with open_directory(f"multinode-{os.getpid()}-") as path, Topology(path, _VALKEY_DEADLINE) as topology:
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
