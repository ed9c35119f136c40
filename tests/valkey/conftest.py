"""Servers for this package, and a Valkey that is connected to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from elemta.config.valkey_url import parse_valkey_url
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest_twisted.async_yield_fixture
async def connect() -> AsyncIterator[Any]:
    """``await connect(url)``: a Valkey, up unless ``up=False`` says to return at once."""
    made: list[Valkey] = []

    async def connected(url: str, *, up: bool = True, deadline: float = 20.0, **options: Any) -> Valkey:
        valkey = Valkey(Runtime.of(reactor), parse_valkey_url(url), name="test", deadline=deadline, **options)
        made.append(valkey)
        valkey.start()
        if up:
            await until(lambda: valkey.up)
        return valkey

    yield connected
    for valkey in made:
        await valkey.stop()
