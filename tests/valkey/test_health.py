"""What is reported about Valkey: how it is, what failed of it, and that it came or went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.logger import LogEvent, globalLogPublisher

from elemta.valkey import ValkeyFailure, ValkeyInfo
from tests.support.valkey import ValkeyServer
from tests.support.waiting import failure_of, until


class Told:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.infos: list[ValkeyInfo] = []
        self.kinds: list[ValkeyFailure] = []

    def info(self, info: ValkeyInfo) -> None:
        self.infos.append(info)

    def failed(self, kind: ValkeyFailure) -> None:
        self.kinds.append(kind)


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    seen: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if str(event.get("event", "")).startswith("valkey."):
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


@ensureDeferred
async def test_numbers_are_those_of_the_server(connect: Any) -> None:
    told = Told()
    with ValkeyServer(maxmemory="64mb") as server:
        for n in range(7):
            server.command("SET", n, n)
        await connect(server.url, observer=told)
        await until(lambda: told.infos[-1].commands_processed)
        info = told.infos[-1]
        assert info.up
        assert info.maxmemory == 64 * 1024 * 1024
        assert 100_000 < info.used_memory < info.maxmemory
        assert (info.keys_db0, info.evicted_keys, info.primaries) == (7, 0, 1)
        assert (info.role, info.maxmemory_policy) == ("master", "noeviction")
        assert info.version.startswith("9.")
        assert info.connected_clients >= 2
        server.kill()
        await until(lambda: not told.infos[-1].up)
        assert told.infos[-1].keys_db0 == 7  # the last that is known
    assert not told.infos[0].up


@ensureDeferred
async def test_failures_are_counted_by_kind(server: ValkeyServer, connect: Any) -> None:
    told = Told()
    valkey = await connect(server.url, observer=told)
    await until(lambda: told.infos[-1].commands_processed)
    await failure_of(valkey.command("INCRBY", "k", "x"))
    server.pause()
    await failure_of(valkey.command("PING", deadline=0.01))
    server.resume()
    assert told.kinds == [ValkeyFailure.OTHER, ValkeyFailure.DEADLINE]


@ensureDeferred
async def test_an_eviction_policy_that_forgets_counts_is_said_once(connect: Any, events: Any) -> None:
    told = Told()
    with ValkeyServer(maxmemory="64mb", maxmemory_policy="allkeys-lru") as server:
        await connect(server.url, observer=told)
        await until(lambda: told.infos[-1].maxmemory_policy == "allkeys-lru")
        server.restart_empty()
        await until(lambda: [info.up for info in told.infos].count(False) >= 2 and told.infos[-1].up)
    said = [event for event in events if event["event"] == "valkey.eviction_possible"]
    assert [event["policy"] for event in said] == ["allkeys-lru"]


@ensureDeferred
async def test_an_outage_is_two_lines_of_the_log_however_many_tries_it_takes(
    server: ValkeyServer, connect: Any, events: Any
) -> None:
    valkey = await connect(server.url)
    server.kill()
    await until(lambda: any(event["event"] == "valkey.unreachable" for event in events))
    await failure_of(valkey.command("PING"))
    server.start()
    await until(lambda: valkey.up)
    names = [event["event"] for event in events]
    assert names == ["valkey.connected", "valkey.disconnected", "valkey.unreachable", "valkey.connected"]
