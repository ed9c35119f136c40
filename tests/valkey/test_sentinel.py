"""Sentinels: the primary that they name is used, and the next one when they say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from elemta.valkey import Script, ValkeyError, ValkeyFailure
from tests.support.valkey import ServerError, ValkeyServer
from tests.support.valkey_groups import Replicated
from tests.support.waiting import eventually, failure_of, until

COUNT = Script("count", "return server.call('INCR', KEYS[1])")


@pytest.fixture(scope="module")
def replicated() -> Iterator[Replicated]:
    with Replicated() as group:
        yield group


def agreed_to_fail_over(replicated: Replicated) -> bool:
    try:
        return bool(replicated.sentinels[0].command("SENTINEL", "FAILOVER", replicated.name) == b"OK")
    except ServerError:  # one is under way, or the replica is not known yet
        return False


async def port_of(valkey: Any) -> int:
    reply = await valkey.command("CONFIG", "GET", "port")
    return int(reply[1])


@ensureDeferred
async def test_the_primary_that_sentinels_name_is_used(replicated: Replicated, connect: Any) -> None:
    valkey = await connect(replicated.url)
    assert await port_of(valkey) == replicated.primary_by_sentinels()
    assert await valkey.run(COUNT, [b"n"]) == 1


@ensureDeferred
async def test_one_sentinel_that_answers_is_enough(replicated: Replicated, connect: Any) -> None:
    nobody = ValkeyServer()
    sentinel = replicated.sentinels[2]
    url = f"valkey+sentinel://{nobody.address},{sentinel.address}/{replicated.name}"
    try:
        valkey = await connect(url)
        assert await port_of(valkey) == replicated.primary_by_sentinels()
    finally:
        nobody.stop()


@ensureDeferred
async def test_a_service_that_no_sentinel_knows_is_said_to_be_so(
    replicated: Replicated, connect: Any
) -> None:
    valkey = await connect(replicated.url.replace(f"/{replicated.name}/", "/nobody/"), up=False)

    async def said() -> bool:
        error = await failure_of(valkey.command("PING"))
        assert isinstance(error, ValkeyError)
        return "No such master" in str(error)

    await eventually(said)


@ensureDeferred
async def test_a_primary_that_was_made_a_replica_is_left_for_the_new_one(
    replicated: Replicated, connect: Any
) -> None:
    valkey = await connect(replicated.url)
    before = await port_of(valkey)
    await until(lambda: agreed_to_fail_over(replicated))

    kinds: set[ValkeyFailure] = set()

    async def count() -> bool:
        try:
            await valkey.run(COUNT, [b"n"])
            return await port_of(valkey) != before
        except ValkeyError as trouble:
            kinds.add(trouble.kind)
            return False

    await eventually(count)
    assert kinds <= {ValkeyFailure.DISCONNECTED, ValkeyFailure.READONLY, ValkeyFailure.LOADING}
    assert await port_of(valkey) == replicated.primary_by_sentinels()


@ensureDeferred
async def test_the_next_primary_is_used_when_one_dies(replicated: Replicated, connect: Any) -> None:
    valkey = await connect(replicated.url)
    before = await port_of(valkey)
    dead = next(each for each in (replicated.primary, replicated.replica) if each.port == before)
    dead.kill()
    await until(lambda: not valkey.up)
    await until(lambda: valkey.up)
    assert await port_of(valkey) not in (before, 0)
    assert await valkey.run(COUNT, [b"another"]) == 1


@ensureDeferred
async def test_sentinels_may_want_a_password_of_their_own(connect: Any) -> None:
    with ValkeyServer(requirepass="inner") as primary:
        settings: dict[str, Any] = {
            "sentinel monitor limits": f"127.0.0.1 {primary.port} 1",
            "sentinel auth-pass limits": "inner",
            "requirepass": "outer",
        }
        with ValkeyServer("--sentinel", **settings) as sentinel:
            url = f"valkey+sentinel://:inner@{sentinel.address}/limits?sentinel_password=outer"
            valkey = await connect(url)
            assert await port_of(valkey) == primary.port
