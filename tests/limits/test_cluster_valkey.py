"""Nodes over a real Valkey that stops, dies, comes back empty, or is not there when they start."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from elemta.config.valkey_url import parse_valkey_url
from elemta.limits.failover_store import FailoverStore
from elemta.limits.memory import LocalStore
from elemta.limits.nodes import About, Nodes, NodeState
from elemta.limits.store import Decision, LimitSpec, Request
from elemta.limits.valkey_store import MOST_WAITING, ValkeyStore
from elemta.limits.window import Bound
from elemta.runtime import ProcessRuntime, Runtime
from elemta.valkey.client import Valkey
from tests.support.valkey import ValkeyServer
from tests.support.waiting import pause, until

PREFIX = "t:"
HOUR = 3_600_000_000
RATE = Request(LimitSpec("rate", (Bound.of(9, HOUR),)), "jane")
OPEN = Request(LimitSpec("open", leases=9), "jane")
WIDE = Request(LimitSpec("wide", (Bound.of(300, HOUR),)), "jane")


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


class Member:
    """All that a node has of its limits, as the daemon puts it together."""

    def __init__(self, server: ValkeyServer, node_id: str, deadline: float) -> None:
        self.valkey = Valkey(
            Runtime.of(reactor), parse_valkey_url(server.unix_url), name=node_id, deadline=deadline
        )
        self.remote = ValkeyStore(self.valkey, prefix=PREFIX, node_id=node_id, runtime=Runtime.of(reactor))
        about = About("1", node_id, "", 0.0)
        self.nodes = Nodes(
            Runtime.of(reactor), self.valkey, prefix=PREFIX, node_id=node_id, about=about, state=NodeState
        )
        self.store = FailoverStore(
            reactor, self.valkey, self.remote, LocalStore(ProcessRuntime.of_system()), nodes=self.nodes
        )
        self.valkey.start()
        self.store.start()
        self.nodes.start()

    @property
    def mode(self) -> str:
        return self.store.mode.value

    async def ask(self, *requests: Request) -> Decision:
        answer = self.store.acquire(requests)
        return await answer if isinstance(answer, Deferred) else answer

    async def admitted(self, request: Request, attempts: int) -> int:
        return sum([(await self.ask(request)).granted for _ in range(attempts)])

    async def stop(self) -> None:
        self.store.stop()
        await self.remote.leave()
        await self.nodes.stop()
        await self.valkey.stop()


@pytest_twisted.async_yield_fixture
async def fleet() -> AsyncIterator[Any]:
    made: list[Member] = []

    async def start(server: ValkeyServer, *names: str, deadline: float = 5.0) -> list[Member]:
        members = [Member(server, name, deadline) for name in names]
        made.extend(members)
        if server.running:
            await until(lambda: all(member.mode == "cluster" for member in members))
            for member in members:
                member.nodes._heartbeat()
            await until(lambda: all(member.nodes.live == len(members) for member in members))
        return members

    yield start
    for member in made:
        await member.stop()


def in_the_log(server: ValkeyServer, request: Request) -> int:
    return int(server.command("ZCARD", f"{PREFIX}{request.key}"))


@ensureDeferred
async def test_three_nodes_admit_what_one_may(server: ValkeyServer, fleet: Any) -> None:
    members = await fleet(server, "a", "b", "c")
    answers = [member.store.acquire([RATE, OPEN]) for _ in range(20) for member in members]
    granted = [(await answer).granted for answer in answers]
    assert granted.count(True) == 9
    assert (in_the_log(server, RATE), in_the_log(server, OPEN)) == (9, 9)


@ensureDeferred
async def test_a_valkey_that_stands_still_is_left_alone_and_told_afterwards(
    server: ValkeyServer, fleet: Any
) -> None:
    one, two, three = await fleet(server, "a", "b", "c", deadline=1.0)
    assert await one.admitted(RATE, 2) == 2
    held = [await one.ask(OPEN) for _ in range(3)]
    server.pause()
    # Whatever was known is a part of the share of 3.
    assert await one.admitted(RATE, 10) == 1
    assert await two.admitted(RATE, 10) == 3
    await until(lambda: one.mode == two.mode == three.mode == "local")
    assert isinstance(one.store.acquire([RATE]), Decision)
    one.store.release([receipt for answer in held[:2] for receipt in answer.receipts])
    meanwhile = [await two.ask(OPEN) for _ in range(2)]
    assert all(answer.granted for answer in meanwhile)
    server.resume()
    await until(lambda: one.mode == two.mode == three.mode == "cluster")
    await until(lambda: in_the_log(server, OPEN) == 3)


@ensureDeferred
async def test_more_decisions_than_can_wait_are_no_reason_to_count_alone(
    server: ValkeyServer, fleet: Any
) -> None:
    (one,) = await fleet(server, "a")
    answers = [one.store.acquire([Request(WIDE.spec, str(n))]) for n in range(3 * MOST_WAITING)]
    alone = [answer for answer in answers if isinstance(answer, Decision)]
    assert len(alone) == 2 * MOST_WAITING
    assert all(answer.granted for answer in alone)
    assert all([(await answer).granted for answer in answers if isinstance(answer, Deferred)])
    assert one.mode == "cluster"
    assert isinstance(one.store.acquire([WIDE]), Deferred)


@ensureDeferred
async def test_a_process_that_was_busy_for_longer_than_the_deadline_hears_what_valkey_said(
    server: ValkeyServer, fleet: Any
) -> None:
    (one,) = await fleet(server, "a", deadline=2.0)
    asked = [one.store.acquire([RATE]) for _ in range(3)]
    time.sleep(2.1)
    assert [(await answer).granted for answer in asked] == [True] * 3
    assert in_the_log(server, RATE) == 3
    assert one.mode == "cluster"


@ensureDeferred
async def test_a_valkey_that_comes_back_empty_learns_who_is_connected(
    server: ValkeyServer, fleet: Any
) -> None:
    one, two = await fleet(server, "a", "b")
    held = [await member.ask(OPEN, WIDE) for member in (one, two) for _ in range(2)]
    server.kill()
    await until(lambda: one.mode == two.mode == "local")
    one.store.release(held[0].receipts)
    one.store.refund(held[0].receipts)
    for member in (one, two):
        held.append(await member.ask(OPEN))
    server.start()
    await until(lambda: one.mode == two.mode == "cluster")
    await until(lambda: in_the_log(server, OPEN) == 5)
    assert await one.admitted(OPEN, 9) == 4
    assert one.nodes.live == two.nodes.live == 2


@ensureDeferred
async def test_a_node_that_starts_without_valkey_joins_when_it_comes(
    server: ValkeyServer, fleet: Any
) -> None:
    (one,) = await fleet(server, "a")
    server.kill()
    (late,) = await fleet(server, "b")
    assert await late.admitted(RATE, 20) == 9
    assert late.mode == "local"
    server.start()
    await until(lambda: late.mode == one.mode == "cluster")
    assert await late.admitted(RATE, 20) + await one.admitted(RATE, 20) == 9


@ensureDeferred
async def test_a_full_valkey_is_as_good_as_none_until_there_is_room(server: ValkeyServer, fleet: Any) -> None:
    (one,) = await fleet(server, "a")
    server.command("CONFIG", "SET", "maxmemory", "1")
    for _ in range(5):
        assert (await one.ask(WIDE)).granted
        await pause(0.02)
    assert one.mode == "local"
    server.command("CONFIG", "SET", "maxmemory", "0")
    await until(lambda: one.mode == "cluster")


@ensureDeferred
async def test_a_replica_is_as_good_as_none_until_it_is_a_primary(server: ValkeyServer, fleet: Any) -> None:
    (one,) = await fleet(server, "a")
    server.command("REPLICAOF", "127.0.0.1", "1")
    for _ in range(5):
        assert (await one.ask(WIDE)).granted
        await pause(0.02)
    await until(lambda: one.mode == "local")
    server.command("REPLICAOF", "NO", "ONE")
    await until(lambda: one.mode == "cluster")


@ensureDeferred
async def test_a_reset_is_forgotten_by_the_memory_of_all_nodes(server: ValkeyServer, fleet: Any) -> None:
    one, two = await fleet(server, "a", "b")
    assert await two.admitted(RATE, 9) == 9
    assert await one.store.reset(RATE.spec, "jane") is True
    two.nodes._heartbeat()
    await until(lambda: two.nodes._heartbeat_due is None)
    server.kill()
    await until(lambda: two.mode == "local")
    assert await two.admitted(RATE, 20) == 4
