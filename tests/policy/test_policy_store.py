"""The store of a policy: the same in this node's memory and in Valkey, bounded, under the limits' breaker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.config.valkey_url import parse_valkey_url
from elemta.errors import StoreUnavailable, ValkeyError, ValkeyFailure
from elemta.limits import LocalStore as LimitStore
from elemta.limits.failover_store import FailoverStore
from elemta.limits.nodes import About, Nodes, NodeState
from elemta.limits.valkey_store import ValkeyStore
from elemta.policy.policy_store import (
    MAX_AMOUNT,
    MAX_KEY,
    MAX_TTL,
    MAX_VALUE,
    MOST_UNDER_WAY,
    MemoryStore,
    Store,
    ValkeyStores,
)
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until

PREFIX = "elemta:ratelimit:"


class Direct:
    """A breaker that is always closed."""

    def ask_cluster(self, how: Any) -> Any:
        return how()


@pytest_twisted.async_yield_fixture(params=["memory", "valkey"])
async def store(request: Any) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(reactor.seconds)  # type: ignore[attr-defined]
        return
    with ValkeyServer() as server:
        runtime = Runtime.of(reactor)  # type: ignore[arg-type]
        valkey = Valkey(runtime, parse_valkey_url(server.unix_url), name="test", deadline=20.0)
        valkey.start()
        await until(lambda: valkey.up)
        yield ValkeyStores(valkey, Direct(), PREFIX).of_policy("greylist")
        await valkey.stop()


@ensureDeferred
async def test_what_was_set_is_read_and_forgotten(store: Store) -> None:
    assert await store.get("k") is None
    assert await store.set("k", b"\x00one\r\n", ttl=60) is True
    assert await store.get("k") == b"\x00one\r\n"
    assert await store.set("k", b"two", ttl=60, only_if_absent=True) is False
    assert await store.get("k") == b"\x00one\r\n"
    assert await store.set("new", b"two", ttl=60, only_if_absent=True) is True
    assert await store.delete("k") is True
    assert await store.delete("k") is False
    assert await store.get("k") is None
    assert await store.set("empty", b"", ttl=60) is True
    assert await store.get("empty") == b""


@ensureDeferred
async def test_a_number_is_added_to_and_keeps_the_expiry_of_its_first_addition(store: Store) -> None:
    assert await store.add("n", ttl=0.3) == 1
    assert await store.add("n", 41, ttl=600) == 42
    assert await store.add("n", -2, ttl=600) == 40
    assert await store.get("n") == b"40"
    await until_gone(store, "n")
    assert await store.add("n", 5, ttl=600) == 5
    assert await store.add("most", MAX_AMOUNT, ttl=60) == MAX_AMOUNT
    with pytest.raises(ValueError, match="too large"):
        await store.add("most", 1, ttl=60)
    await store.set("text", b"12x", ttl=60)
    with pytest.raises(ValueError, match="no number"):
        await store.add("text", 1, ttl=60)


@ensureDeferred
async def test_every_entry_ends(store: Store) -> None:
    await store.set("k", b"v", ttl=0.2)
    await until_gone(store, "k")
    assert await store.set("k", b"w", ttl=0.2, only_if_absent=True) is True


@pytest.mark.parametrize(
    ("key", "value", "ttl"),
    [
        ("", b"v", 60),
        (b"bytes", b"v", 60),
        ("k", "text", 60),
        ("k", b"v" * (MAX_VALUE + 1), 60),
        ("k", b"v", 0),
        ("k", b"v", -1),
        ("k", b"v", MAX_TTL + 1),
        ("k", b"v", float("nan")),
        ("k", b"v", float("inf")),
        ("k", b"v", True),
        ("k", b"v", None),
    ],
)
@ensureDeferred
async def test_what_can_not_be_kept_is_an_error_at_once(store: Store, key: Any, value: Any, ttl: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        await store.set(key, value, ttl=ttl)
    with pytest.raises((ValueError, TypeError)):
        await store.add(key if key != "k" else "", 1, ttl=ttl)


@ensureDeferred
async def test_long_keys_are_told_apart_by_their_whole_text(store: Store) -> None:
    one, other = "x" * MAX_KEY + "a" * 100_000, "x" * MAX_KEY + "b" * 100_000
    await store.set(one, b"one", ttl=60)
    assert await store.get(other) is None
    assert await store.get(one) == b"one"


async def until_gone(store: Store, key: str) -> None:
    from twisted.internet.task import deferLater

    for _ in range(600):
        if await store.get(key) is None:
            return
        await deferLater(reactor, 0.02)  # type: ignore[arg-type]
    raise AssertionError(f"{key} does not end")


def result_of(waiting: Any) -> Any:
    results: list[Any] = []
    Deferred.fromCoroutine(waiting).addBoth(results.append)
    return results[0]


@pytest.mark.parametrize(
    ("entries", "octets", "size"), [(100, 10**9, 10), (10**9, 50_000, 10), (10**9, 50_000, 5000)]
)
def test_the_memory_of_a_policy_is_bounded_and_its_oldest_entries_go(
    entries: int, octets: int, size: int
) -> None:
    store = MemoryStore(Clock().seconds, entries, octets)
    for number in range(2000):
        assert result_of(store.set(f"k{number}", b"v" * size, ttl=60)) is True
        assert len(store) <= entries
        assert store.octets <= octets
    assert result_of(store.get("k1999")) == b"v" * size
    assert result_of(store.get("k0")) is None
    for number in range(2000):
        result_of(store.delete(f"k{number}"))
    assert (len(store), store.octets) == (0, 0)


@ensureDeferred
async def test_the_keys_in_valkey_are_the_prefix_the_policy_and_the_key_and_all_expire() -> None:
    with ValkeyServer() as server:
        valkey = Valkey(Runtime.of(reactor), parse_valkey_url(server.unix_url), name="test", deadline=20.0)  # type: ignore[arg-type]
        valkey.start()
        await until(lambda: valkey.up)
        store = ValkeyStores(valkey, Direct(), PREFIX).of_policy("greylist")
        await store.set("192.0.2.0/24", b"1", ttl=60)
        await store.add("n", ttl=60)
        await store.set("y" * 1000, b"1", ttl=60)
        keys = sorted(server.command("KEYS", "*"))
        assert [key for key in keys if b"#" not in key] == [
            b"elemta:ratelimit:policy:greylist:192.0.2.0/24",
            b"elemta:ratelimit:policy:greylist:n",
        ]
        assert len(keys) == 3
        assert all(0 < server.command("PTTL", key) <= 60_000 for key in keys)
        await valkey.stop()


class Scripted:
    """A Valkey that answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Any]] = []

    def command(self, *words: Any, key: Any = None) -> Deferred[Any]:
        self.asked.append(Deferred())
        return self.asked[-1]


def test_more_calls_than_the_connection_has_room_for_fail_at_once() -> None:
    valkey: Any = Scripted()
    stores = ValkeyStores(valkey, Direct(), PREFIX)
    first, second = stores.of_policy("one"), stores.of_policy("two")
    waiting = [Deferred.fromCoroutine((first if n % 2 else second).get("k")) for n in range(MOST_UNDER_WAY)]
    failed = result_of(first.get("k"))
    assert failed.check(StoreUnavailable)
    for deferred in valkey.asked:
        deferred.callback(None)
    assert [each.result for each in waiting] == [None] * MOST_UNDER_WAY
    Deferred.fromCoroutine(first.get("k"))
    assert len(valkey.asked) == MOST_UNDER_WAY + 1


@ensureDeferred
async def test_the_store_shares_the_breaker_of_the_limits() -> None:
    """While it is open a call fails at once; a Valkey that is back is asked again."""
    with ValkeyServer() as server:
        runtime = Runtime.of(reactor)  # type: ignore[arg-type]
        valkey = Valkey(runtime, parse_valkey_url(server.unix_url), name="test", deadline=0.2)
        nodes = Nodes(
            runtime, valkey, prefix=PREFIX, node_id="mx1", about=About("1", "mx", "", 0.0), state=NodeState
        )
        remote = ValkeyStore(valkey, prefix=PREFIX, node_id="mx1", runtime=runtime)
        failover = FailoverStore(reactor, valkey, remote, LimitStore(runtime), nodes=nodes)  # type: ignore[arg-type]
        store = ValkeyStores(valkey, failover, PREFIX).of_policy("greylist")
        with pytest.raises(StoreUnavailable):
            await store.get("k")
        valkey.start()
        failover.start()
        assert await failover.joined(20.0)
        assert await store.set("k", b"v", ttl=60)
        server.kill()
        await until(lambda: not valkey.up)
        with pytest.raises(StoreUnavailable):
            await store.get("k")
        server.start()
        await until(lambda: failover.mode.value == "cluster")
        assert await store.set("k", b"v", ttl=60)
        failover.stop()
        await valkey.stop()


@pytest.mark.parametrize(
    ("kind", "opens"),
    [(ValkeyFailure.DEADLINE, True), (ValkeyFailure.OTHER, False), (ValkeyFailure.OOM, False)],
)
def test_only_silence_counts_for_the_breaker(kind: ValkeyFailure, opens: bool) -> None:
    class Counts:
        cluster, failures = True, 0

        def succeeded(self) -> None:
            raise AssertionError

        def failed(self, error: BaseException) -> None:
            self.failures += 1

    store: Any = object.__new__(FailoverStore)
    store._failover = counts = Counts()
    asked: Deferred[Any] = Deferred()
    failed: list[Any] = []
    store.ask_cluster(lambda: asked).addErrback(failed.append)
    asked.errback(ValkeyError(kind, "no"))
    assert failed
    assert counts.failures == opens
