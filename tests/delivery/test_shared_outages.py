"""Destinations that are down, over several workers of a host: one of them probes for all."""

from __future__ import annotations

from collections import Counter

import pytest
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.delivery.destination_judge import DestinationJudge
from elemta.delivery.early_probes import EarlyProbes
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.shared_outages import LATER, SharedOutages
from elemta.outcome import Outcome, ReachedStage, Status
from elemta.spool import QueuedMessage
from elemta.workers.limit_bodies import write
from elemta.workers.outages import DOWN, MOST_OUTAGES, MOST_UNREAD, UP, OutageServer, WorkerOutages
from tests.delivery.test_destinations import Scheduled
from tests.support.channels import ChannelPair, carry_all

DAY = 86400
DEAD = "dead.example"
SETTINGS = DeliverySettings("me.example")
LONGEST = SETTINGS.retries.longest_probe


def outcome(status: Status, reached: ReachedStage, at: float) -> Outcome:
    address = Address("bob", DEAD)
    return Outcome("Q", address, status, "connection refused", "mx:", "mx.dead.example", at, reached=reached)


class Worker:
    """The destinations of one worker, and what it tells the others."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.pair = ChannelPair(host.clock, name)
        host.server.serve(self.pair.supervisor)
        self.queue = Scheduled(now=host.seconds())
        self.outages = SharedOutages(
            host,  # type: ignore[arg-type]
            self.queue.destinations,
            WorkerOutages(host.seconds, self.pair.worker),
            lambda: None,
        )
        early = EarlyProbes(Clock(), host.seconds, lambda _: None, lambda: 0)
        self.judge = DestinationJudge(host, self.queue.destinations, early, SETTINGS, self.outages)  # type: ignore[arg-type]
        self.judge.start()
        self.pair.open()
        self.attempts = 0

    def attempt(self) -> None:
        """Try all that may be tried now; each attempt is over at once."""
        self.queue.now = self.host.seconds()
        taken, now = self.queue.take_all(), self.host.seconds()
        epochs = [self.queue.destinations.epoch(message.destination) for message in taken]
        for message, epoch in zip(taken, epochs, strict=True):
            self.end(message, now, epoch)

    def end(self, message: QueuedMessage, started: float, epoch: int) -> None:
        name, now = message.destination, self.host.seconds()
        self.attempts += 1
        self.host.attempts[name] += 1
        up = name not in self.host.dead
        status = Status.DELIVERED if up else Status.DEFERRED
        reached = ReachedStage.ANSWERED if up else ReachedStage.NOWHERE
        retry_at = self.judge.judged(name, [outcome(status, reached, now)], epoch, started)
        if up:
            del self.queue.queue[message.key]
            self.queue.end(message)
        else:
            self.queue.defer(message, now + 60.0 if retry_at is None else retry_at)

    @property
    def is_down(self) -> bool:
        return self.queue.destinations.failures(DEAD) > 0


class Host:
    def __init__(self, workers: int = 2) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.server = OutageServer(self.seconds)
        self.dead = {DEAD}
        self.attempts: Counter[str] = Counter()
        self.workers = [Worker(self, f"worker {number}") for number in range(workers)]

    def seconds(self) -> float:
        return self.clock.seconds()

    def send(self, number: int = 1) -> None:
        """Let so many messages for the dead destination come in at each worker."""
        for worker in self.workers:
            for _ in range(number):
                worker.queue.send(DEAD)

    def begin(self, name: str) -> Worker:
        """Start one more worker; a message comes in there, and is tried if it may be."""
        worker = Worker(self, name)
        self.workers.append(worker)
        self.carry()
        worker.queue.send(DEAD)
        worker.attempt()
        return worker

    def carry(self) -> None:
        carry_all(self.clock, (worker.pair for worker in self.workers))

    def run(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            for worker in self.workers:
                worker.attempt()
                self.carry()


def probes_of_a_day(workers: int) -> int:
    host = Host(workers)
    host.send(3)
    host.run(DAY, 5.0)
    assert all(worker.is_down for worker in host.workers)
    return host.attempts[DEAD]


def test_several_workers_probe_a_dead_destination_hardly_more_often_than_one() -> None:
    one, four = probes_of_a_day(1), probes_of_a_day(4)
    # At first each of them may find it out by itself.
    assert four <= one + 8


def test_what_one_worker_found_the_other_does_not_try() -> None:
    host = Host()
    first, second = host.workers
    first.queue.send(DEAD)
    first.attempt()
    host.carry()
    for _ in range(5):
        second.queue.send(DEAD)
    second.attempt()
    assert (second.attempts, second.is_down) == (0, True)
    status = second.queue.destinations.reason(DEAD)
    assert status is not None
    assert (status.text, status.next_hop) == ("connection refused", "mx.dead.example")


def test_mail_that_waited_already_stops_and_goes_on_when_the_first_worker_gets_through() -> None:
    host = Host()
    first, second = host.workers
    host.send(4)
    first.attempt()
    host.carry()
    second.attempt()
    assert second.attempts == 0
    host.dead.clear()
    host.run(SETTINGS.retries.delays[0] * 1.2)
    assert [len(worker.queue.queue) for worker in host.workers] == [0, 0]
    assert not second.is_down


def test_where_the_first_worker_dies_the_other_probes_a_little_later() -> None:
    host = Host()
    first, second = host.workers
    host.send()
    first.attempt()
    host.carry()
    host.workers.pop(0).pair.kill_worker()
    until = second.queue.destinations.shut_until(DEAD)
    assert (
        SETTINGS.retries.delays[0] <= until - host.seconds() - LATER <= SETTINGS.retries.delays[0] * 1.1 + 1
    )
    host.run(until - host.seconds() + 1)
    assert second.attempts == 1
    # From then on it has the pauses of one that found it down so often.
    assert second.queue.destinations.failures(DEAD) == 2


def test_a_worker_that_starts_hears_of_what_is_down() -> None:
    host = Host()
    host.workers[0].queue.send(DEAD)
    host.workers[0].attempt()
    host.carry()
    host.clock.advance(10)
    assert host.begin("worker 2").attempts == 0
    # Not after its time.
    host.clock.advance(LONGEST + LATER)
    assert host.begin("worker 3").attempts == 1


def test_a_destination_that_answers_here_is_not_blocked_for_what_another_found() -> None:
    host = Host(3)
    first, second, third = host.workers
    message = first.queue.send(DEAD)
    (taken,) = first.queue.take_all()
    epoch, started = first.queue.destinations.epoch(DEAD), host.seconds()
    third.queue.send(DEAD)
    host.clock.advance(1)
    host.dead.clear()
    second.queue.send(DEAD)
    second.queue.send(DEAD)
    second.queue.now = host.seconds()
    working, still = second.queue.take_all()
    epoch_there = second.queue.destinations.epoch(DEAD)
    second.end(working, started, epoch_there)
    host.dead = {DEAD}
    first.end(taken, started, epoch)
    host.carry()
    assert message.destination == DEAD
    assert (first.is_down, second.is_down, third.is_down) == (True, False, False)
    host.dead.clear()
    second.end(still, started, epoch_there)


def test_what_was_found_here_is_open_only_when_it_answers_here() -> None:
    host = Host()
    first, second = host.workers
    host.send()
    # Both find it out before they hear of each other.
    first.attempt()
    second.attempt()
    host.carry()
    host.server._pass_on(first.pair.supervisor, UP, write(DEAD))
    host.carry()
    assert (first.is_down, second.is_down) == (True, True)


def test_another_configuration_has_all_tried_again() -> None:
    host = Host()
    first, second = host.workers
    first.queue.send(DEAD)
    first.attempt()
    host.carry()
    host.server.clear()
    for worker in host.workers:
        worker.judge.reconfigure(SETTINGS)
    second.queue.send(DEAD)
    second.attempt()
    assert second.attempts == 1


def test_what_is_kept_and_what_waits_for_a_worker_is_bounded() -> None:
    host = Host()
    first, second = host.workers
    found = outcome(Status.DEFERRED, ReachedStage.NOWHERE, 0.0)
    now = host.seconds()
    for number in range(MOST_OUTAGES + 10):
        first.outages.found_down(f"{number}.example", now + 600, 1, found, now)
        # The second one does not read.
        if number % 100 == 0:
            data = first.pair.ends[1].value()
            first.pair.ends[1].clear()
            first.pair.supervisor.dataReceived(data)
    first.pair.supervisor.dataReceived(first.pair.ends[1].value())
    assert len(host.server._known) == MOST_OUTAGES
    assert second.pair.supervisor.is_open
    assert second.pair.supervisor.unsent <= 2 * MOST_UNREAD


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (DOWN, b"["),
        (DOWN, write([DEAD, -1, 0, 1, "", "", "", 0, ""])),
        (DOWN, write([DEAD, 1, 0, 0, "", "", "", 0, ""])),
        (DOWN, write([DEAD, 1, float("nan"), 1, "", "", "", 0, ""])),
        (DOWN, write([1, 1, 0, 1, "", "", "", 0, ""])),
        (UP, write([DEAD])),
    ],
)
def test_a_worker_that_breaks_the_rules_loses_its_channel(name: str, body: bytes) -> None:
    host = Host()
    host.workers[0].pair.worker.tell(name, body)
    host.carry()
    assert not host.workers[0].pair.supervisor.is_open
    assert host.workers[1].pair.supervisor.is_open
