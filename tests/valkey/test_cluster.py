"""A cluster: every key goes to the primary that has its slot, also while slots and primaries change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from elemta.valkey import Script, ValkeyError, ValkeyFailure
from elemta.valkey.resp import slot_of
from tests.support.valkey import ValkeyServer
from tests.support.valkey_groups import Cluster
from tests.support.waiting import failure_of, pause, until

COUNT = Script("count", "return server.call('INCR', KEYS[1])")
KEYS = [b"elemta:ip:{192.0.2.%d}" % n for n in range(200)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def counted(cluster: Cluster, key: bytes) -> int:
    return int(cluster.command(key.decode(), "GET", key) or 0)


class Load:
    """Counts on a few keys at once for as long as it runs; every answer must be the next number."""

    def __init__(self, valkey: Any, keys: list[bytes]) -> None:
        self.troubles: list[ValkeyError] = []
        self.answers = dict.fromkeys(keys, 0)
        self._valkey = valkey
        self._running = True
        self._all: list[Deferred[None]] = [Deferred.fromCoroutine(self._count(key)) for key in keys]

    async def stop(self) -> None:
        self._running = False
        await gatherResults(self._all)

    async def _count(self, key: bytes) -> None:
        while self._running:
            try:
                answer = await self._valkey.run(COUNT, [key])
                assert answer == self.answers[key] + 1
                self.answers[key] = answer
            except ValkeyError as trouble:
                self.troubles.append(trouble)
            await pause(0)


@ensureDeferred
async def test_every_key_is_counted_on_the_primary_of_its_slot(cluster: Cluster, connect: Any) -> None:
    valkey = await connect(cluster.url)
    assert valkey.clustered
    assert await gatherResults([valkey.run(COUNT, [key]) for key in KEYS]) == [1] * len(KEYS)
    assert [counted(cluster, key) for key in KEYS] == [1] * len(KEYS)
    sizes = await valkey.each_primary("DBSIZE")
    assert len(sizes) == 3
    assert sum(sizes) == len(KEYS)
    assert min(sizes) > 0
    errors = [server.info("errorstats") for server in cluster.servers]
    assert all("errorstat_MOVED" not in each for each in errors)


@ensureDeferred
async def test_slots_are_those_that_the_server_computes(cluster: Cluster) -> None:
    for key in (*KEYS, b"", b"{}", b"{}x", b"{a", b"a{b}{c}", b"{{a}}", b"\xff{\x00}", b"}{a}"):
        assert slot_of(key) == cluster.servers[0].command("CLUSTER", "KEYSLOT", key), key


@ensureDeferred
async def test_keys_of_all_primaries_are_found(cluster: Cluster, connect: Any) -> None:
    valkey = await connect(cluster.url)
    keys = {b"scan:%d" % n for n in range(300)}
    await gatherResults([valkey.command("SET", key, 1, key=key) for key in keys])
    found = await valkey.scan("scan:*")
    assert set(found.keys) == keys
    assert len(found.keys) == len(keys)
    assert found.complete
    part = await valkey.scan("scan:*", count=50, limit=100)
    assert not part.complete
    assert set(part.keys) < keys


@ensureDeferred
async def test_one_seed_that_answers_is_enough_even_if_it_is_a_replica(
    cluster: Cluster, connect: Any
) -> None:
    nobody = ValkeyServer()
    try:
        valkey = await connect(f"valkey+cluster://{nobody.address},{cluster.servers[5].address}")
        await gatherResults([valkey.command("GET", key, key=key) for key in KEYS])
    finally:
        nobody.stop()


@ensureDeferred
async def test_keys_without_a_common_tag_are_an_error_and_not_a_wrong_count(
    cluster: Cluster, connect: Any
) -> None:
    valkey = await connect(cluster.url)
    error = await failure_of(valkey.run(COUNT, [b"a", b"b"]))
    assert isinstance(error, ValkeyError)
    assert error.kind is ValkeyFailure.OTHER
    assert "CROSSSLOT" in str(error)


@pytest.mark.parametrize("way", ["move", "move_with_ask"])
@ensureDeferred
async def test_a_slot_that_moves_under_load_costs_no_error_and_no_count(
    way: str, cluster: Cluster, connect: Any
) -> None:
    valkey = await connect(cluster.url)
    tag = b"moving-%s" % way.encode()
    keys = [b"{%s}%d" % (tag, n) for n in range(8)]
    slot = slot_of(keys[0])
    source = cluster.owner(slot)
    target = next(each for each in cluster.primaries() if each is not source)
    load = Load(valkey, keys)
    await until(lambda: min(load.answers.values()) > 10)
    await deferToThread(getattr(cluster, way), slot, target)
    seen = dict(load.answers)
    await until(lambda: all(load.answers[key] > seen[key] + 10 for key in keys))
    await load.stop()
    assert load.troubles == []
    assert {key: counted(cluster, key) for key in keys} == load.answers
    assert cluster.owner(slot) is target


@ensureDeferred
async def test_new_keys_in_a_slot_that_is_moving_are_counted_where_it_goes(
    cluster: Cluster, connect: Any
) -> None:
    valkey = await connect(cluster.url)
    slot = slot_of(b"{asked}")
    source = cluster.owner(slot)
    target = next(each for each in cluster.primaries() if each is not source)
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.command("CLUSTER", "MYID"))
    try:
        for n in range(1, 20):
            assert await valkey.run(COUNT, [b"{asked}"]) == n
        assert cluster.owner(slot) is source
        # Of several keys some are here and some there: no server can run that, until the slot has moved.
        error = await failure_of(valkey.run(COUNT, [b"{asked}", b"{asked}2"], deadline=0.3))
        assert isinstance(error, ValkeyError)
        assert error.kind in (ValkeyFailure.DEADLINE, ValkeyFailure.REDIRECTED)
        both = valkey.run(COUNT, [b"{asked}", b"{asked}2"])
        await pause(0.1)
    finally:
        for server in (target, source):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", target.command("CLUSTER", "MYID"))
    assert await both == 20


@ensureDeferred
async def test_a_script_that_looks_for_a_key_that_is_not_there_waits_until_the_slot_has_moved(
    cluster: Cluster, connect: Any
) -> None:
    valkey = await connect(cluster.url)
    script = Script("aside", "redis.call('GET', KEYS[1] .. '~') return redis.call('INCR', KEYS[1])")
    key = b"{aside}"
    assert await valkey.run(script, [key]) == 1
    slot = slot_of(key)
    target = next(each for each in cluster.primaries() if each is not cluster.owner(slot))
    moving = deferToThread(cluster.move_with_ask, slot, target, pause=0.1)
    for n in range(2, 50):
        assert await valkey.run(script, [key]) == n
    await moving
    assert await valkey.run(script, [key]) == 50
    assert cluster.owner(slot) is target


@ensureDeferred
async def test_when_a_primary_dies_its_replica_is_used(cluster: Cluster, connect: Any) -> None:
    valkey = await connect(cluster.url)
    key = b"{failing over}"
    dead = cluster.owner(slot_of(key))
    names = [b"{%d}" % n for n in range(30)]
    load = Load(valkey, [name for name in names if cluster.owner(slot_of(name)) is not dead])
    await until(lambda: min(load.answers.values()) > 10)
    dead.kill()
    await until(lambda: not valkey.up)
    await until(lambda: valkey.up)
    assert await valkey.run(COUNT, [key]) == 1
    seen = dict(load.answers)
    await until(lambda: all(load.answers[name] > count for name, count in seen.items()))
    await load.stop()
    # As long as no server has its slots, the other nodes serve theirs no more, by their own default.
    assert {trouble.kind for trouble in load.troubles} <= {ValkeyFailure.REDIRECTED}
    assert {name: counted(cluster, name) for name in load.answers} == load.answers
    dead.start()
    await until(lambda: not cluster.is_primary(dead))
