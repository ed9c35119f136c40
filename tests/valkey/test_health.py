"""What is reported about Valkey: how it is, what failed of it, and that it came or went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.logger import LogEvent, globalLogPublisher

from elemta.metric_registry import MetricRegistry
from elemta.metrics import ValkeyMetrics
from elemta.valkey import ValkeyFailure
from tests.support.metrics import record, samples, value
from tests.support.valkey import ValkeyServer
from tests.support.waiting import failure_of, until


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
    registry = MetricRegistry()
    metrics = ValkeyMetrics(registry)
    with ValkeyServer(maxmemory="64mb") as server:
        for n in range(7):
            server.command("SET", n, n)
        valkey = await connect(server.url, metrics=metrics)
        await until(lambda: ("valkey_db0_keys", ()) in samples(registry))
        assert valkey.info.up
        assert value(registry, "valkey_commands_processed_total") >= 7
        assert value(registry, "valkey_maxmemory_bytes") == 64 * 1024 * 1024
        assert 100_000 < value(registry, "valkey_used_memory_bytes") < 64 * 1024 * 1024
        assert value(registry, "valkey_db0_keys") == 7
        assert value(registry, "valkey_evicted_keys_total") == 0
        assert value(registry, "valkey_connected_clients") >= 2
        assert (valkey.info.primaries, valkey.info.role) == (1, "master")
        assert valkey.info.maxmemory_policy == "noeviction"
        assert valkey.info.version.startswith("9.")
        server.kill()
        await until(lambda: not valkey.info.up)
        assert value(registry, "valkey_db0_keys") == 7  # the last that is known


def test_nothing_is_said_of_a_valkey_that_never_answered() -> None:
    registry = MetricRegistry()
    ValkeyMetrics(registry)
    assert samples(registry) == {}


@ensureDeferred
async def test_failures_are_counted_by_kind(server: ValkeyServer, connect: Any) -> None:
    metrics = ValkeyMetrics()
    failures = record(metrics, "failures")
    valkey = await connect(server.url, metrics=metrics)
    await until(lambda: valkey.info.commands_processed)
    await failure_of(valkey.command("INCRBY", "k", "x"))
    server.pause()
    await failure_of(valkey.command("PING", deadline=0.01))
    server.resume()
    assert failures == [ValkeyFailure.OTHER, ValkeyFailure.DEADLINE]


@ensureDeferred
async def test_an_eviction_policy_that_forgets_counts_is_said_once(connect: Any, events: Any) -> None:
    with ValkeyServer(maxmemory="64mb", maxmemory_policy="allkeys-lru") as server:
        valkey = await connect(server.url)
        await until(lambda: valkey.info.maxmemory_policy == "allkeys-lru")
        changes: list[bool] = []
        valkey.on_change(changes.append)
        server.restart_empty()
        await until(lambda: changes == [False, True] and valkey.info.up)
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
