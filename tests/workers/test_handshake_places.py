"""TLS handshakes over all workers of a host: never more of one client than is set, free after a death."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from twisted.internet.task import Clock

from elemta.net.registry import ClientConnection
from elemta.net.shared_handshakes import SharedHandshakes
from elemta.workers.handshake_places import GIVE, TAKE, HandshakeServer, WorkerHandshakes
from elemta.workers.limit_bodies import write
from elemta.workers.places import TAKE_SECONDS
from tests.support.channels import ChannelPair

CLIENT, OTHER = "192.0.2.1", "192.0.2.2"


class Handshake(ClientConnection):
    """A client that has begun, and says nothing more."""

    refused = False

    def refuse_handshake(self) -> None:
        self.refused = True


class Worker:
    """A worker, as far as handshakes are concerned."""

    def __init__(self, clock: Clock, server: HandshakeServer, name: str, workers: int) -> None:
        self.pair = ChannelPair(clock, name)
        server.serve(self.pair.supervisor)
        self.handshakes = SharedHandshakes(WorkerHandshakes(clock, self.pair.worker, workers=workers))
        self.pair.open()

    def begin(self, most: int, client: str = CLIENT, *, binding: bool = True) -> Handshake:
        began = Handshake(ip_address(client))
        self.handshakes.begin(began, most, binding=binding)
        return began


class Host:
    def __init__(self, workers: int = 2) -> None:
        self.clock = Clock()
        self.server = HandshakeServer()
        self.workers = [Worker(self.clock, self.server, f"worker {n}", workers) for n in range(workers)]

    def carry(self) -> None:
        while sum(worker.pair.carry() for worker in self.workers):
            self.clock.advance(0)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("most", [1, 3, 10])
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "one after the other"])
def test_a_client_has_as_many_as_are_set_over_all_workers(workers: int, most: int, apart: bool) -> None:
    host = Host(workers)
    began = []
    for number in range(3 * most):
        began.append(host.workers[number % workers].begin(most))
        if apart:
            host.carry()
    other = host.workers[0].begin(most, OTHER)
    host.carry()
    assert (sum(not each.refused for each in began), other.refused) == (most, False)
    assert host.server.under_way(CLIENT) == most


def test_one_worker_may_have_all_of_them_and_what_is_over_is_free() -> None:
    host = Host()
    first, second = host.workers
    held = [first.begin(3) for _ in range(3)]
    host.carry()
    assert not any(each.refused for each in held)
    first.handshakes.end(held[0])
    # What is over before its answer is free, too; what ends twice is free once.
    first.handshakes.end(held[0])
    second.handshakes.end(second.begin(3))
    host.carry()
    assert host.server.under_way(CLIENT) == 2
    more = [second.begin(3), second.begin(3)]
    host.carry()
    assert [each.refused for each in more] == [False, True]
    second.handshakes.end(more[1])
    host.carry()
    assert host.server.under_way(CLIENT) == 3


def test_a_handshake_within_a_session_counts_and_is_let_through() -> None:
    host = Host()
    sessions = [host.workers[0].begin(2, binding=False) for _ in range(3)]
    host.carry()
    stalled = host.workers[1].begin(2)
    host.carry()
    assert ([each.refused for each in sessions], stalled.refused) == ([False] * 3, True)


def test_what_a_dead_worker_had_is_free() -> None:
    host = Host()
    for _ in range(3):
        host.workers[0].begin(3)
    host.carry()
    host.workers.pop(0).pair.kill_worker()
    assert host.server.under_way(CLIENT) == 0


def test_while_the_supervisor_hangs_a_client_has_its_share_with_each_worker() -> None:
    host = Host()
    worker = host.workers[0]
    began = [worker.begin(4) for _ in range(4)]
    host.clock.advance(TAKE_SECONDS)
    assert sorted(each.refused for each in began) == [False, False, True, True]
    # The answers that come later count for nothing.
    host.carry()
    assert host.server.under_way(CLIENT) == 0
    for each in began:
        worker.handshakes.end(each)
    host.carry()
    assert host.workers[1].pair.supervisor.is_open
    assert worker.pair.supervisor.is_open


@pytest.mark.parametrize(
    ("name", "body"),
    [(TAKE, b"["), (TAKE, write(["x", -1])), (TAKE, write([1, 1])), (GIVE, write(CLIENT)), (GIVE, b"7")],
)
def test_a_worker_that_breaks_the_rules_loses_its_channel(name: str, body: bytes) -> None:
    host = Host()
    worker = host.workers[0]
    if name == TAKE:
        worker.pair.worker.ask(name, body, 1.0).addErrback(lambda _: None)
    else:
        worker.pair.worker.tell(name, body)
    host.carry()
    assert not worker.pair.supervisor.is_open
