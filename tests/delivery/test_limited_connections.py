"""Limits on open connections per destination, with real connections: a bound for a fleet, no standstill."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import BinaryIO

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.config import Counts, Identity, LimitConfig, Rate, ResourcesConfig
from elemta.delivery.connections import Connections
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.outbound_limits import OutboundLimiter, Permit, Throttled
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.slots import ConnectionSlot, ConnectionSlots, NoSlotError
from elemta.envelope import MailParameters, Recipient
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.outcome import Outcome, ReachedStage, Status
from elemta.runtime import ProcessRuntime
from elemta.smtp.client_commands import ClientTransaction
from tests.support.post import STALL, Post, reactor
from tests.support.post import Hop as Server

CONTENT = b"Subject: x\r\n\r\nhello\r\n"


async def open_content() -> BinaryIO:
    return io.BytesIO(CONTENT)


async def read(content: BinaryIO) -> bytes:
    return content.read(65536)


def pace(most: int, store: LocalStore) -> OutboundLimiter:
    limit = LimitConfig("lines", (Identity.DESTINATION,), Counts.OPEN_CONNECTIONS, (Rate(most),))
    return OutboundLimiter(Limiter(rules_from_config(ResourcesConfig(), (limit,)), store))


class Node:
    """One node of a fleet: connections of its own, limits in a store that it shares."""

    def __init__(self, port: int, most: int, store: LocalStore, wait: float = 10.0) -> None:
        settings = DeliverySettings("me.example", keep_idle=0.2, connection_wait=wait)
        self.pace = pace(most, store)
        self.connections = Connections(reactor, settings, read, gate=self.pace)
        self.hop = NextHop(
            "big.example", (Candidate("127.0.0.1", port),), route="mx:", destination="big.example"
        )

    def send(self) -> Deferred[tuple[Outcome, ...]]:
        people = (Recipient(Address("bob", "big.example")),)
        transaction = ClientTransaction(Address("a", "b.example"), people, MailParameters(), len(CONTENT))
        return Deferred.fromCoroutine(self.connections.send(self.hop, transaction, open_content))


@pytest_twisted.async_yield_fixture
async def nodes() -> AsyncIterator[list[Node]]:
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        await node.connections.stop()


@ensureDeferred
async def test_a_fleet_never_has_more_connections_open_than_the_limit_says(
    post: Post, nodes: list[Node]
) -> None:
    server = Server()
    port = (await post.listen(server)).port
    store = LocalStore(ProcessRuntime.of_system())
    nodes += [Node(port, 2, store) for _ in range(3)]
    sent = await gatherResults([node.send() for _ in range(10) for node in nodes])
    assert [each[0].status for each in sent] == [Status.DELIVERED] * 30
    assert len(server.messages) == 30
    assert server.most_sessions == 2


@ensureDeferred
async def test_a_node_that_gets_no_connection_knows_that_it_waits_for_the_limit(
    post: Post, nodes: list[Node]
) -> None:
    server = Server({".": STALL})
    port = (await post.listen(server)).port
    store = LocalStore(ProcessRuntime.of_system())
    nodes += [Node(port, 1, store) for _ in range(2)]
    busy, kept = nodes
    busy.send().addErrback(lambda _: None)
    await post.until(lambda: server.most_sessions == 1)
    kept.send().addErrback(lambda _: None)
    await post.until(lambda: kept.pace.paced("big.example") is not None)
    assert kept.connections.pool.is_kept_from("big.example")
    assert not kept.connections.pool.is_kept_from("small.example")
    assert not busy.connections.pool.is_kept_from("big.example")
    assert kept.pace.all_paced() == ["big.example"]


@pytest.mark.parametrize("later", [False, True])
@ensureDeferred
async def test_a_limit_that_can_not_be_given_back_takes_no_connection_for_good(
    post: Post, nodes: list[Node], monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    server = Server({".": b"250 ok\r\n"})
    nodes.append(
        Node((await post.listen(server)).port, 100, LocalStore(ProcessRuntime.of_system()), wait=1.0)
    )
    node = nodes[0]
    node.hop = replace(node.hop, per_destination=1)
    told: list[Permit] = []

    def done(go: Permit, *, sent: bool = True) -> Deferred[None] | None:
        told.append(go)
        if later:
            return fail(RuntimeError("a fault of ours"))
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(node.pace, "done", done)
    for count in range(1, 4):
        sent = await node.send()
        assert sent[0].status is Status.DELIVERED
        node.connections.pool.drain()
        await post.until(lambda count=count: len(told) == count)
    assert not node.connections.open


@ensureDeferred
async def test_a_connection_that_is_gone_makes_room_at_once(
    post: Post, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elemta.delivery.outbound_limits.LOOK_AGAIN", 9.0)
    server = Server({"MAIL": [b"421 not now\r\n"] * 4 + [b"250 ok\r\n"] * 4})
    port = (await post.listen(server)).port
    nodes.append(Node(port, 1, LocalStore(ProcessRuntime.of_system())))
    started = reactor.seconds()
    sent = await gatherResults([nodes[0].send() for _ in range(6)])
    assert sum(each[0].status is Status.DELIVERED for each in sent) >= 2
    assert server.most_sessions == 1
    assert reactor.seconds() - started < 8, "it waited for the time to look again"


@ensureDeferred
async def test_who_gets_no_connection_in_time_is_told_that_none_was_free(
    post: Post, nodes: list[Node]
) -> None:
    port = (await post.listen(Server())).port
    store = LocalStore(ProcessRuntime.of_system())
    elsewhere = pace(1, store)
    taken = elsewhere.connect("big.example")
    assert isinstance(taken, Permit)
    nodes.append(Node(port, 1, store, wait=0.3))
    sent = await nodes[0].send()
    assert (sent[0].reached, sent[0].status) == (ReachedStage.NOTHING_FREE, Status.DEFERRED)
    elsewhere.done(taken)
    # This node was not notified; it looks again by itself.
    await post.until(lambda: isinstance(nodes[0].pace.connect("big.example"), Permit))


@ensureDeferred
async def test_a_connection_that_never_came_to_be_is_given_back(post: Post, nodes: list[Node]) -> None:
    store = LocalStore(ProcessRuntime.of_system())
    nodes.append(Node(1, 1, store))
    for _ in range(2):
        sent = await nodes[0].send()
        assert sent[0].reached is ReachedStage.NOWHERE
    assert isinstance(nodes[0].pace.connect("big.example"), Permit)
    assert isinstance(nodes[0].pace.connect("big.example"), Throttled)


# The slots alone


def test_a_slot_that_is_kept_back_stops_its_destination_for_a_while_and_no_other() -> None:
    clock = Clock()
    slots: ConnectionSlots[str] = ConnectionSlots(clock, 10)
    granted: list[str] = []

    def ask(destination: str) -> None:
        slots.acquire("mx:", destination, 20, 60.0, lambda _: True).addCallbacks(
            lambda slot: granted.append(f"{slot.destination}"), lambda failure: failure.trap(NoSlotError)
        )

    ask("a")
    slots.keep_back(ConnectionSlot("mx:", "a"), 1.0)
    ask("a")
    ask("b")
    assert granted == ["a", "b"]
    clock.advance(1.0)
    assert granted == ["a", "b", "a"]
    assert not [call for call in clock.getDelayedCalls() if call.getTime() < 60.0]


def test_who_waits_behind_a_slot_that_is_kept_back_gets_a_connection_that_becomes_free() -> None:
    clock = Clock()
    slots: ConnectionSlots[str] = ConnectionSlots(clock, 10)
    came: list[object] = []
    for _ in range(2):
        slots.acquire("mx:", "a", 20, 60.0, lambda _: True).addCallback(came.append)
    first, second = came
    assert isinstance(second, ConnectionSlot)
    slots.keep_back(second, 1.0)
    slots.acquire("mx:", "a", 20, 60.0, lambda _: True).addCallback(came.append)
    assert len(came) == 2
    assert isinstance(first, ConnectionSlot)
    assert slots.pass_on(first, "a connection")
    assert came[2] == "a connection"
