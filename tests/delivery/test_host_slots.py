"""Connections to next hops over several workers of a host: one bound, and no standstill."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.delivery.connections import Connections
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.pool import ConnectionPool
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.slots import ConnectionSlot
from elemta.envelope import MailParameters, Recipient
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Outcome, Status
from elemta.smtp.client_commands import ClientTransaction
from elemta.workers.slot_client import WorkerSlots
from elemta.workers.slot_server import SlotServer
from tests.support.channels import socket_channels
from tests.support.post import Hop as Server
from tests.support.post import Post, reactor

CONTENT = b"Subject: x\r\n\r\nhello\r\n"


async def open_content() -> BinaryIO:
    return io.BytesIO(CONTENT)


async def read(content: BinaryIO) -> bytes:
    return content.read(65536)


class Told:
    """Places without a bound, and what was said about them."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.outages: Any = None

    def take(self, route: str, destination: str, most: int, per_destination: int) -> bool:
        self.words.append("take")
        return True

    def give_back(self, route: str, destination: str) -> None:
        self.words.append("give")

    def is_wanted(self, route: str, destination: str) -> bool:
        return False

    def watch(self, user: object) -> None: ...

    def leave(self, user: object) -> None: ...


class Worker:
    """The connections of one worker."""

    def __init__(self, server: SlotServer, port: int, most: int, *, keep_idle: float) -> None:
        self.supervisor, channel = socket_channels(reactor)
        server.serve(self.supervisor)
        settings = DeliverySettings("me.example", keep_idle=keep_idle, connection_wait=30.0)
        self.connections = Connections(reactor, settings, read, host=WorkerSlots(reactor, channel))
        self.hop = NextHop(
            "big.example",
            (Candidate("127.0.0.1", port),),
            route="mx:",
            destination="big.example",
            per_destination=most,
        )

    def send(self) -> Deferred[tuple[Outcome, ...]]:
        people = (Recipient(Address("bob", "big.example")),)
        transaction = ClientTransaction(Address("a", "b.example"), people, MailParameters(), len(CONTENT))
        return Deferred.fromCoroutine(self.connections.send(self.hop, transaction, open_content))


@pytest_twisted.async_yield_fixture
async def workers() -> AsyncIterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        await worker.connections.stop()
        worker.supervisor.close()


@ensureDeferred
async def test_workers_never_have_more_connections_open_than_the_destination_may_have(
    post: Post, workers: list[Worker]
) -> None:
    hop, server = Server(), SlotServer(lambda: 1)
    port = (await post.listen(hop)).port
    workers += [Worker(server, port, 2, keep_idle=0.2) for _ in range(3)]
    sent = await gatherResults([worker.send() for _ in range(15) for worker in workers])
    assert [each[0].status for each in sent] == [Status.DELIVERED] * 45
    assert hop.most_sessions == 2


@ensureDeferred
async def test_the_host_has_a_place_back_before_it_is_asked_for_the_next() -> None:
    host = Told()
    settings = DeliverySettings("me.example", connection_wait=30.0)
    pool = ConnectionPool(Clock(), settings, DeliveryMetrics(), host=host)
    hop = NextHop("b.example", (), route="mx:", destination="b.example", per_destination=1)
    first = await pool.claim(hop)
    assert isinstance(first, ConnectionSlot)
    second = Deferred.fromCoroutine(pool.claim(hop))
    assert host.words == ["take"]
    pool.release(first)
    assert host.words == ["take", "give", "take"]
    assert isinstance(await second, ConnectionSlot)


@ensureDeferred
async def test_a_connection_that_rests_makes_place_for_another_worker(
    post: Post, workers: list[Worker]
) -> None:
    hop, server = Server(), SlotServer(lambda: 1)
    port = (await post.listen(hop)).port
    # It would rest for an hour.
    workers += [Worker(server, port, 1, keep_idle=3600.0) for _ in range(2)]
    for worker in (*workers, *workers):
        assert (await worker.send())[0].status is Status.DELIVERED
    assert hop.most_sessions == 1


@ensureDeferred
async def test_a_dead_worker_leaves_its_connections_to_the_others(post: Post, workers: list[Worker]) -> None:
    hop, server = Server(), SlotServer(lambda: 1)
    port = (await post.listen(hop)).port
    workers += [Worker(server, port, 1, keep_idle=3600.0) for _ in range(2)]
    await workers[0].send()
    workers[0].supervisor.close()
    assert (await workers[1].send())[0].status is Status.DELIVERED
    assert server.held("mx:") == 1
