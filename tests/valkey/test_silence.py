"""A server that stands still is silent from the first missed deadline to the first answer in time."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.valkey import ValkeyError, ValkeyFailure, silence
from elemta.valkey.client import Valkey
from tests.support.valkey import ValkeyServer
from tests.support.valkey_groups import Cluster, Replicated, slot_of
from tests.support.waiting import eventually, failure_of, pause, until

DEADLINE = 1.0


async def answered_in_time(valkey: Valkey, *words: str, key: bytes | None = None) -> None:
    """Ask until the answer comes within the deadline, as it may not at once on a busy machine."""

    async def asked() -> bool:
        with suppress(ValkeyError):
            await valkey.command(*words, key=key)
            return True
        return False

    await eventually(asked)


async def assert_silence_is_seen(valkey: Valkey, server: ValkeyServer, key: bytes | None) -> None:
    await until(lambda: valkey.answers)
    server.pause()
    error = await failure_of(valkey.command("GET", "k", key=key))
    assert getattr(error, "kind", None) is ValkeyFailure.DEADLINE
    assert valkey.up
    assert not valkey.answers
    assert "no answer in time" in valkey.trouble
    server.resume()
    # No caller asks for anything: the node finds out by itself.
    await until(lambda: valkey.answers)
    assert valkey.trouble == ""


@ensureDeferred
async def test_a_single_server(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(server.url, deadline=DEADLINE)
    await assert_silence_is_seen(valkey, server, None)


@ensureDeferred
async def test_an_answer_in_time_ends_it_at_once_and_a_late_one_does_not(
    server: ValkeyServer, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "ASK_SECONDS", 3600.0)
    valkey = await connect(server.url, deadline=DEADLINE)
    server.pause()
    patient = valkey.command("PING", deadline=20.0)
    await failure_of(valkey.command("PING"))
    server.resume()
    assert await patient == b"PONG"
    assert not valkey.answers
    await answered_in_time(valkey, "PING")
    assert valkey.answers


@ensureDeferred
async def test_a_primary_of_sentinels(connect: Any) -> None:
    with Replicated(down_after=60_000) as group:
        valkey = await connect(group.url, deadline=DEADLINE)
        await assert_silence_is_seen(valkey, group.primary, None)


@ensureDeferred
async def test_one_primary_of_a_cluster_whatever_the_others_answer(connect: Any) -> None:
    with Cluster(node_timeout=60_000) as group:
        valkey = await connect(group.url, deadline=DEADLINE)
        first = next(f"k{n}" for n in range(100) if group.owner(slot_of(f"k{n}")) is group.servers[0])
        other = next(f"k{n}" for n in range(100) if group.owner(slot_of(f"k{n}")) is group.servers[1])
        server = group.servers[0]
        server.pause()
        await failure_of(valkey.command("GET", first, key=first.encode()))
        await answered_in_time(valkey, "GET", other, key=other.encode())
        assert not valkey.answers
        server.resume()
        await until(lambda: valkey.answers)


@ensureDeferred
async def test_a_server_that_stands_still_for_long_is_away_all_the_time(
    server: ValkeyServer, connect: Any
) -> None:
    valkey = await connect(server.url, deadline=DEADLINE)
    server.pause()
    await failure_of(valkey.command("PING"))
    for _ in range(60):
        assert not valkey.answers
        await pause(0.1)
    server.resume()
    await until(lambda: valkey.answers)
