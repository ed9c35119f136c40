"""What the tests of a cluster share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.valkey import ValkeyServer, valkey_server


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """One real Valkey for all tests of a module: each uses clients of its own."""
    with valkey_server() as server:
        yield server
