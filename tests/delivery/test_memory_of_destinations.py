"""Very many destinations: what each takes in memory, and how long the reactor waits for them at most."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.delivery.destinations import Destinations
from elemta.delivery.early_probes import EarlyProbes
from elemta.outcome import LocalFault, Outcome, Status
from tests.support.simulated import REFUSED, START, MemoryQueue, Simulation

FEW, MANY = 20_000, 500_000
# 200 MiB for 500,000.
MOST_OCTETS_EACH = 200 * 2**20 / MANY
# What is said of 10,000 that are down is kept, of however many there are.
REASONS = 5 * 2**20
LONGEST_STALL = 0.05
SIZES = [FEW, pytest.param(MANY, marks=[pytest.mark.campaign, pytest.mark.timeout(0)])]


def domain(number: int) -> str:
    return f"domain-{number:07}.example"


def said(number: int) -> Outcome:
    host = f"mx.{domain(number)}"
    text = f"no connection to {domain(number)}: {host}: 192.0.2.{number % 250}: Connection refused"
    bob = Address("bob", domain(number))
    return Outcome(f"Q{number}", bob, Status.DEFERRED, text, "mx:", host, START + number, 0.1, 0, "4.4.1")


@pytest.fixture
def octets() -> Iterator[list[int]]:
    """Where memory began; it is measured until the end of the test."""
    gc.collect()
    tracemalloc.start()
    yield [tracemalloc.get_traced_memory()[0]]
    tracemalloc.stop()


def each(octets: list[int], size: int) -> float:
    gc.collect()
    return (tracemalloc.get_traced_memory()[0] - octets[0]) / size


@pytest.mark.parametrize("size", SIZES)
def test_a_destination_takes_no_more_than_its_share_of_200_mib_whatever_its_state(
    size: int, octets: list[int]
) -> None:
    destinations, now = Destinations(lambda destination: 20, 500), START
    for number in range(size):
        destinations.due_at(domain(number), now + number / 10)
    assert len(destinations) == size
    listed = each(octets, size)
    # All are found down, one after the other.
    for number in range(size):
        name = domain(number)
        destinations.due_at(name, now)
        destinations.block(name, now + 600 + number / 1000, said(number))
        destinations._tidy(destinations._destination(name))
    assert (len(destinations), destinations.blocked) == (size, size)
    assert not destinations._destinations
    down = each(octets, size)
    # A reload has them all probed.
    names = destinations.names()
    for start in range(0, size, 500):
        destinations.probe_now(names[start : start + 500])
    del names
    assert not destinations._destinations
    probed = each(octets, size)
    print(f"octets of each of {size} destinations: listed {listed:.0f}, down {down:.0f}, reload {probed:.0f}")
    fixed = REASONS / size if size == FEW else 0.0
    assert max(listed, down - fixed, probed - fixed) <= MOST_OCTETS_EACH


def looked_at() -> int:
    """How many objects a whole collection of garbage looks at; it stalls the reactor for so long."""
    gc.collect()
    return len(gc.get_objects())


def test_no_number_of_destinations_gives_the_collector_of_garbage_more_to_do() -> None:
    size, first = 2_000, Destinations(lambda destination: 20, 500)
    probed: list[str] = []
    probes = EarlyProbes(Clock(), lambda: START, probed.extend, lambda: size)
    before = looked_at()
    for number in range(size):
        first.due_at(domain(number), START + number / 10)
    listed = looked_at() - before
    for number in range(size):
        name = domain(number)
        first.block(name, START + 600 + number / 1000, said(number))
        first._tidy(first._destination(name))
        probes.failed(name, LocalFault.NETWORK, START, answered_before=False)
    down = looked_at() - before
    first.probe_now(first.names())
    reloaded = looked_at() - before
    probes.answered(LocalFault.NETWORK, START, names_known=False)
    probes._clock.pump([0.1] * (size // 10))  # type: ignore[attr-defined]
    assert len(probed) == size
    early = looked_at() - before
    assert max(listed, down, reloaded, early) < size / 20, (listed, down, reloaded, early)


class LongQueue(MemoryQueue):
    """A queue that has one message for each of very many destinations, and answers later."""

    size = 0

    async def destinations(self, after: str | None, limit: int) -> list[tuple[str, float | None]]:
        answer: Deferred[None] = Deferred()
        self.clock.callLater(0.0, answer.callback, None)
        await answer
        start = 0 if after is None else int(after[7:14]) + 1
        end = min(start + limit, self.size)
        # An hour from now, and later.
        return [(domain(number), START + 3600.0 + number / 100) for number in range(start, end)]


def longest_turn(clock: Clock, seconds: float) -> float:
    """The longest that one call of the reactor takes while so much time passes."""
    longest, end = 0.0, clock.seconds() + seconds
    while clock.calls and clock.calls[0].getTime() <= end:
        call = clock.calls.pop(0)
        clock.rightNow = max(clock.rightNow, call.getTime())
        call.called = 1
        began = time.thread_time()
        call.func(*call.args, **call.kw)
        longest = max(longest, time.thread_time() - began)
    clock.rightNow = end
    return longest


@pytest.mark.parametrize("size", SIZES)
def test_no_number_of_destinations_stalls_the_reactor(size: int) -> None:
    simulation = Simulation(lambda destination, now: REFUSED, warn_after=0.0)
    queue = simulation.queue
    queue.__class__ = LongQueue
    queue.size = size  # type: ignore[attr-defined]
    gc.collect()
    try:
        began = time.thread_time()
        simulation.delivery.startService()
        stalls = {"start": time.thread_time() - began}
        stalls["start"] = max(stalls["start"], longest_turn(simulation.clock, 60.0))
        destinations = simulation.delivery._destinations
        assert len(destinations) == size
        stalls["listing"] = longest_turn(simulation.clock, 600.0)
        for number in range(size):
            destinations.block(domain(number), START + 7200.0 + number / 100, said(number))
            destinations._tidy(destinations._destination(domain(number)))
        began = time.thread_time()
        simulation.delivery.reconfigure(simulation.delivery.routes, simulation.settings)
        stalls["reload"] = time.thread_time() - began
        stalls["reload"] = max(stalls["reload"], longest_turn(simulation.clock, 0.0))
        print({name: f"{seconds * 1000:.1f} ms" for name, seconds in stalls.items()})
        assert max(stalls.values()) <= LONGEST_STALL
    finally:
        simulation.stop()
