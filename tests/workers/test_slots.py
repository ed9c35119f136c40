"""Places for connections over all workers of a host: never more than is set, fair, free after a death."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elemta.workers import slot_server
from elemta.workers.limit_bodies import write
from elemta.workers.places import TAKE_SECONDS
from elemta.workers.slot_client import (
    GIVE,
    LESS,
    LOOK_SECONDS,
    NEED,
    OFFER_SECONDS,
    TAKE,
    ConnectionCredit,
    WorkerSlots,
)
from elemta.workers.slot_server import SlotServer
from tests.support.channels import ChannelPair, carry_all
from tests.support.waiting import answered


class Worker:
    """A worker with clients and connections to next hops, as far as places are concerned."""

    def __init__(self, clock: Clock, server: SlotServer, name: str) -> None:
        self.pair = ChannelPair(clock, name)
        server.serve(self.pair.supervisor)
        self.credit = ConnectionCredit(clock, self.pair.worker)
        self.slots = WorkerSlots(clock, self.pair.worker)
        self.slots.watch(self)
        self.clients = 0
        self.heard: list[tuple[str, str, str]] = []
        self.alive = True

    def offered(self, route: str, destination: str) -> None:
        self.heard.append(("offered", route, destination))

    def wanted(self, route: str, destination: str) -> None:
        self.heard.append(("wanted", route, destination))

    def accept(self) -> bool:
        admitted = self.credit.has_one(self.clients)
        self.clients += admitted
        return admitted


class Host:
    def __init__(self, workers: int = 2, most: int = 10) -> None:
        self.clock = Clock()
        self.most = most
        self.server = SlotServer(lambda: self.most)
        self.workers = [Worker(self.clock, self.server, f"worker {number}") for number in range(workers)]
        for worker in self.workers:
            worker.pair.open()
            worker.credit.start(lambda worker=worker: worker.clients)  # type: ignore[misc]
        self.carry()

    def carry(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        carry_all(self.clock, (worker.pair for worker in self.workers))

    def kill(self, number: int) -> None:
        worker = self.workers.pop(number)
        worker.credit.stop()
        worker.pair.kill_worker()
        self.carry()

    @property
    def clients(self) -> int:
        return sum(worker.clients for worker in self.workers)

    def take(self, worker: int, destination: str = "a", most: int = 10, per_destination: int = 3) -> bool:
        answer = self.workers[worker].slots.take("route", destination, most, per_destination)
        self.carry()
        return bool(answered(answer))

    def give(self, worker: int, destination: str = "a") -> None:
        self.workers[worker].slots.give_back("route", destination)
        self.carry()


# Clients


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("most", [1, 3, 10, 100])
def test_one_worker_can_have_all_places_and_no_more(workers: int, most: int) -> None:
    host = Host(workers, most)
    admitted = 0
    for _ in range(3 * most + 10):
        admitted += host.workers[0].accept()
        host.carry()
    assert admitted == most == host.clients
    assert host.server.granted == most


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_clients_that_come_to_one_worker_in_one_turn_find_places_in_its_hand(workers: int) -> None:
    host = Host(workers, 1000)
    # No answer of the supervisor can come meanwhile.
    assert all(host.workers[0].accept() for _ in range(1000 // (2 * workers)))


def fill(host: Host, number: int) -> int:
    """Clients come to one worker until the host is full; how many were refused before."""
    refused = 0
    for _ in range(2 * host.most):
        if host.clients < host.most:
            refused += not host.workers[number].accept()
            host.carry()
    assert host.clients == host.most
    return refused


@pytest.mark.parametrize("workers", [2, 4])
def test_what_a_worker_does_not_need_comes_to_another(workers: int) -> None:
    host = Host(workers, 100)
    # One for each other worker, which may have a place free.
    assert fill(host, 0) < workers
    host.workers[0].clients = 0
    host.carry(LOOK_SECONDS)
    assert fill(host, 1) < workers


def test_the_places_of_a_dead_worker_are_free() -> None:
    host = Host(2, 10)
    for _ in range(20):
        host.workers[0].accept()
        host.carry()
    assert not host.workers[1].accept()
    host.kill(0)
    assert host.server.granted <= 10
    for _ in range(20):
        host.workers[0].accept()
        host.carry()
    assert host.workers[0].clients == 10


def test_a_burst_in_one_turn_finds_places_in_advance() -> None:
    host = Host(2, 1000)
    assert sum(host.workers[0].accept() for _ in range(100)) == 100


def test_a_setting_that_is_lowered_and_raised() -> None:
    host = Host(2, 20)
    for _ in range(8):
        assert host.workers[0].accept()
        host.carry()
    host.most = 5
    host.carry(LOOK_SECONDS)
    assert host.server.granted == 8
    assert not host.workers[0].accept()
    assert not host.workers[1].accept()
    host.workers[0].clients = 1
    host.carry(LOOK_SECONDS)
    host.carry(LOOK_SECONDS)
    assert host.server.granted <= 5
    host.most = 20
    host.carry(LOOK_SECONDS)
    for _ in range(30):
        host.workers[1].accept()
        host.carry()
    assert host.clients == 20


def test_without_news_of_the_supervisor_a_worker_goes_on_with_what_it_has() -> None:
    host = Host(2, 100)
    had = host.workers[0].credit.granted
    assert sum(host.workers[0].accept() for _ in range(100)) == had > 0


def test_places_do_not_wander_when_nothing_happens() -> None:
    host = Host(3, 4)
    for worker in host.workers:
        worker.accept()
        host.carry()
    host.carry(LOOK_SECONDS)
    before = [worker.credit.granted for worker in host.workers]
    for _ in range(20):
        host.carry(LOOK_SECONDS)
    assert [worker.credit.granted for worker in host.workers] == before


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 12),
    st.lists(
        st.tuples(st.sampled_from(["come", "come", "go", "look", "kill", "lower"]), st.integers(0, 3)),
        max_size=60,
    ),
)
def test_never_more_clients_than_places(workers: int, most: int, turns: list[tuple[str, int]]) -> None:
    host = Host(workers, most)
    for turn, which in turns:
        worker = host.workers[which % len(host.workers)]
        before = host.clients
        if turn == "come":
            worker.accept()
            assert host.clients <= max(host.most, before)
        elif turn == "go":
            worker.clients = max(0, worker.clients - 1)
        elif turn == "look":
            host.carry(LOOK_SECONDS)
        elif turn == "kill" and len(host.workers) > 1:
            host.kill(which % len(host.workers))
        elif turn == "lower":
            host.most = max(host.clients, host.most - 1)
            host.carry(LOOK_SECONDS)
            host.carry(LOOK_SECONDS)
        if which % 2:
            host.carry()
        assert sum(each.credit.granted for each in host.workers) <= max(most, host.server.granted)
    host.carry()
    assert host.server.granted == sum(each.credit.granted for each in host.workers)


# Connections to next hops


def test_a_destination_has_its_connections_over_all_workers() -> None:
    host = Host(3)
    assert [host.take(number % 3) for number in range(5)] == [True] * 3 + [False] * 2
    assert host.take(0, "b")
    # And the route has its own number.
    assert not host.take(0, "c", most=4)
    assert host.server.held("route") == 4


def test_what_is_given_back_goes_to_the_one_that_waits_longest() -> None:
    host = Host(3)
    assert [host.take(0) for _ in range(3)] == [True] * 3
    assert not host.take(1)
    assert not host.take(2)
    assert not host.take(1)
    assert host.workers[0].slots.is_wanted("route", "a")
    assert ("wanted", "route", "a") in host.workers[0].heard
    host.give(0)
    assert host.workers[1].heard[-1] == ("offered", "route", "a")
    # The one that gave it back, and comes at once again, does not get it.
    assert not host.take(0)
    assert host.take(1)
    host.give(0)
    assert host.take(2)
    host.give(0)
    assert host.take(0)
    assert not host.workers[0].slots.is_wanted("route", "a")
    assert host.server.held("route", "a") == 3


def test_an_offer_that_is_not_used_goes_on_to_the_next() -> None:
    host = Host(3)
    for _ in range(3):
        host.take(0)
    host.take(1)
    host.take(2)
    host.give(0)
    host.carry(OFFER_SECONDS)
    assert host.workers[2].heard[-1] == ("offered", "route", "a")
    host.carry(OFFER_SECONDS)
    assert host.server.held("route", "a") == 2


def test_a_full_route_wants_any_of_its_connections() -> None:
    host = Host(2)
    assert host.take(0, "a", most=1)
    assert not host.take(1, "b", most=1)
    assert host.workers[0].heard == [("wanted", "route", "")]
    assert host.workers[0].slots.is_wanted("route", "a")
    host.give(0, "a")
    assert host.take(1, "b", most=1)


def test_what_is_wanted_follows_what_is_full() -> None:
    host = Host(2)
    assert host.take(0, "a", most=2, per_destination=1)
    assert host.take(0, "b", most=2, per_destination=1)
    assert not host.take(1, "a", most=2, per_destination=1)
    assert host.workers[0].slots.is_wanted("route", "b")
    host.give(0, "b")
    # A connection to another destination is of no use now.
    assert not host.take(1, "a", most=2, per_destination=1)
    assert not host.workers[0].slots.is_wanted("route", "b")
    assert host.workers[0].slots.is_wanted("route", "a")
    host.give(0, "a")
    assert host.take(1, "a", most=2, per_destination=1)
    assert not host.workers[0].slots.is_wanted("route", "a")


def test_a_dead_worker_leaves_its_connections_and_its_place_in_line() -> None:
    host = Host(3)
    for _ in range(3):
        host.take(0)
    host.take(1)
    host.take(2)
    host.kill(1)
    host.kill(0)
    assert host.workers[0].heard[-1] == ("offered", "route", "a")
    assert host.server.held("route", "a") == 1
    host.kill(0)
    assert host.server.held("route") == 0


def test_an_answer_that_comes_too_late_is_given_back() -> None:
    host = Host(2)
    answer = host.workers[0].slots.take("route", "a", 10, 3)
    host.clock.advance(TAKE_SECONDS)
    assert answered(answer) is False
    host.carry()
    assert host.server.held("route") == 0


def test_without_a_supervisor_there_is_no_further_connection() -> None:
    host = Host(2)
    host.workers[0].pair.supervisor.close()
    host.workers[0].pair.carry()
    assert answered(host.workers[0].slots.take("route", "a", 10, 3)) is False


def test_the_line_of_a_worker_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_server, "MOST_WAITING", 2)
    host = Host(2)
    host.take(0, "a", most=1)
    for destination in "bcdef":
        assert not host.take(1, destination, most=1)
    assert len(host.server._routes["route"].line) == 2


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "give", "wait", "kill"]),
            st.integers(0, 2),
            st.sampled_from("ab"),
        ),
        max_size=60,
    )
)
def test_never_more_connections_than_a_route_and_a_destination_may_have(
    turns: list[tuple[str, int, str]],
) -> None:
    host, held = Host(3), [[], [], []]  # type: ignore[var-annotated]
    for turn, which, destination in turns:
        number = which % len(host.workers)
        if turn == "take" and host.take(number, destination, most=4, per_destination=3):
            held[number].append(destination)
        elif turn == "give" and held[number]:
            host.give(number, held[number].pop())
        elif turn == "wait":
            host.carry(OFFER_SECONDS)
        elif turn == "kill" and len(host.workers) > 1:
            host.kill(number)
            held.pop(number)
        used = [each for own in held for each in own]
        assert len(used) <= 4
        assert max(used.count("a"), used.count("b")) <= 3
    # All in line get an offer, and use none.
    for _ in range(8):
        host.carry(OFFER_SECONDS)
    assert host.server.held("route") == sum(map(len, held))


# Garbled bodies


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (NEED, b"[1]"),
        (NEED, b"[-1,0,false]"),
        (LESS, b"1000"),
        (LESS, b"-1"),
        (LESS, b"null"),
        (GIVE, write(["route", "never had"])),
        (TAKE, write(["route", "a", 0, 1])),
        (TAKE, write(["route", "a", True, 1])),
        (TAKE, b"x"),
    ],
)
def test_a_garbled_body_closes_the_channel(name: str, body: bytes) -> None:
    host = Host(2)
    channel = host.workers[0].pair.worker
    if name == TAKE:
        channel.ask(name, body, 1).addErrback(lambda _: None)
    else:
        channel.tell(name, body)
    host.carry()
    assert not host.workers[0].pair.supervisor.is_open
    assert host.workers[1].pair.supervisor.is_open
