"""One real Valkey for the tests of a module, empty for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.valkey import ValkeyServer


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def empty_server(shared_server: ValkeyServer) -> ValkeyServer:
    shared_server.command("FLUSHALL")
    return shared_server
