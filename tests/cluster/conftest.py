"""What the tests of a cluster share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.cluster.checks")

from tests.support.valkey import ValkeyServer, valkey_server  # noqa: E402  # not before they are rewritten


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """One real Valkey for the fleet of a module, whose tests use clients of their own."""
    with valkey_server() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """One for a fleet of the test's own: of two fleets on one Valkey each would know the other's nodes."""
    with valkey_server() as server:
        yield server
