"""The store over the daemon's own connections, with servers that stop, forget and are several."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from elemta.config.valkey_url import parse_valkey_url
from elemta.errors import StoreUnavailable
from elemta.limits.store import Decision, LimitSpec, Request
from elemta.limits.valkey_store import ValkeyStore
from elemta.limits.window import Bound
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey
from tests.support.valkey import ValkeyServer
from tests.support.valkey_groups import Cluster
from tests.support.waiting import eventually, until

SECOND = 10**6
# Long enough for nothing to expire while a slow machine thinks.
IP = LimitSpec("ip", (Bound.of(100, 3600 * SECOND),))
MANY = LimitSpec("many", (Bound.of(500, 3600 * SECOND),))
CONNECTIONS = LimitSpec("connections-per-ip", leases=30)


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest_twisted.async_yield_fixture
async def open_store() -> AsyncIterator[Any]:
    """``await open_store(url, node_id)``: a store whose connection is up."""
    made: list[tuple[ValkeyStore, Valkey]] = []

    async def opened(url: str, node_id: str = "mx1", *, deadline: float = 20.0) -> ValkeyStore:
        valkey = Valkey(Runtime.of(reactor), parse_valkey_url(url), name=node_id, deadline=deadline)
        store = ValkeyStore(valkey, prefix="elemta:ratelimit:", node_id=node_id, runtime=Runtime.of(reactor))  # type: ignore[arg-type]
        made.append((store, valkey))
        valkey.start()
        await until(lambda: valkey.up)
        return store

    yield opened
    for store, valkey in made:
        await store.leave()
        await valkey.stop()


async def used(store: ValkeyStore, terms: LimitSpec, identity: str) -> int:
    (fill,) = await store.peek([Request(terms, identity)])
    return fill.used[0]


async def when_it_works(store: ValkeyStore, *requests: Request) -> Decision:
    """Asked until there is an answer."""
    answers: list[Decision] = []

    async def answered() -> bool:
        try:
            answers.append(await store.acquire(requests))
        except StoreUnavailable:
            return False
        return True

    await eventually(answered)
    return answers[0]


@ensureDeferred
async def test_three_nodes_that_ask_at_the_same_time_get_what_one_limit_allows(
    server: ValkeyServer, open_store: Any
) -> None:
    stores = [await open_store(server.unix_url, f"mx{n}") for n in range(3)]
    asked = [store.acquire([Request(IP, "127.0.0.1")]) for _ in range(134) for store in stores]
    answers = await gatherResults(asked)
    assert sum(answer.granted for answer in answers) == 100
    assert server.command("ZCARD", "elemta:ratelimit:ip:127.0.0.1") == 100


@ensureDeferred
async def test_a_server_that_has_forgotten_the_scripts_learns_them_again(
    server: ValkeyServer, open_store: Any
) -> None:
    store = await open_store(server.unix_url)
    receipts = (await store.acquire([Request(IP, "a"), Request(CONNECTIONS, "a")])).receipts
    for what in ("acquire", "refund", "renew", "peek"):
        server.command("SCRIPT", "FLUSH")
        if what == "acquire":
            assert (await store.acquire([Request(IP, "a")])).granted
        elif what == "refund":
            await store.refund(receipts[:1])
        elif what == "renew":
            await store.renew()
        else:
            assert await used(store, IP, "a") == 1


@ensureDeferred
async def test_leases_are_in_a_restarted_server_again_without_being_asked_for(
    server: ValkeyServer, open_store: Any
) -> None:
    store = await open_store(server.unix_url)
    for _ in range(5):
        await store.acquire([Request(CONNECTIONS, "a")])
    server.restart_empty()
    await until(lambda: server.command("ZCARD", "elemta:ratelimit:connections-per-ip:a") == 5)


@ensureDeferred
async def test_what_a_stopped_server_charges_too_late_is_taken_back(
    server: ValkeyServer, open_store: Any
) -> None:
    store = await open_store(server.unix_url, deadline=0.2)
    requests = [Request(IP, "a"), Request(MANY, "a"), Request(CONNECTIONS, "a")]
    await when_it_works(store, *requests)
    server.pause()
    try:
        for _ in range(4):
            with pytest.raises(StoreUnavailable):
                await store.acquire(requests)
    finally:
        server.resume()

    async def as_known() -> bool:
        try:
            counts = [await used(store, terms, "a") for terms in (IP, MANY, CONNECTIONS)]
        except StoreUnavailable:
            return False
        return counts == [1, 1, 1]

    await eventually(as_known)


# A real cluster.


@ensureDeferred
async def test_on_a_cluster_a_thousand_refusals_leave_the_other_limit_as_it_was(
    cluster: Cluster, open_store: Any
) -> None:
    store = await open_store(cluster.url)
    full = LimitSpec("full", (Bound.of(1, 3600 * SECOND),))
    for terms, who in ((IP, "192.0.2.1"), (MANY, "sender@example.org")):
        await store.acquire([Request(terms, who, 3)])
    assert (await store.acquire([Request(full, "client-7")])).granted
    requests = [
        Request(IP, "192.0.2.1"),
        Request(MANY, "sender@example.org"),
        Request(full, "client-7"),
        Request(CONNECTIONS, "192.0.2.1"),
    ]
    for _ in range(20):
        answers = await gatherResults([store.acquire(requests) for _ in range(50)])
        assert not any(answer.granted for answer in answers)

    async def as_before() -> bool:
        keys = [
            (IP, "192.0.2.1"),
            (MANY, "sender@example.org"),
            (full, "client-7"),
            (CONNECTIONS, "192.0.2.1"),
        ]
        return [await used(store, *key) for key in keys] == [3, 3, 1, 0]

    await eventually(as_before)


@ensureDeferred
async def test_on_a_cluster_a_bound_holds_for_decisions_over_several_servers(
    cluster: Cluster, open_store: Any
) -> None:
    stores = [await open_store(cluster.url, f"mx{n}") for n in range(3)]
    requests = [Request(IP, "198.51.100.7"), Request(MANY, "someone@example.net")]
    asked = [store.acquire(requests) for _ in range(100) for store in stores]
    assert sum(answer.granted for answer in await gatherResults(asked)) == 100

    async def nothing_more() -> bool:
        return [await used(stores[0], one.spec, one.identity) for one in requests] == [100, 100]

    await eventually(nothing_more)


@ensureDeferred
async def test_on_a_cluster_leases_are_renewed_and_the_fullest_found_on_all_servers(
    cluster: Cluster, open_store: Any
) -> None:
    store = await open_store(cluster.url)
    for n in range(1, 21):
        await store.acquire([Request(CONNECTIONS, f"203.0.113.{n}", n)])
    for key in (f"elemta:ratelimit:connections-per-ip:{{203.0.113.{n}}}" for n in range(1, 21)):
        cluster.command(key, "DEL", key)
    await store.renew()
    ranking = await store.top(CONNECTIONS, 3)
    assert [(fill.request.identity, fill.used) for fill in ranking.usages] == [
        ("203.0.113.20", (20,)),
        ("203.0.113.19", (19,)),
        ("203.0.113.18", (18,)),
    ]
    assert ranking.complete
    terms = LimitSpec("reset-me", IP.bounds)
    await store.acquire([Request(terms, "x")])
    assert await store.reset(terms, "x")
    assert await used(store, terms, "x") == 0
