"""Delivery over simulated hours: many destinations at once, dead ones, paced ones, outages of our own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError

from elemta.config import Counts, Identity, LimitConfig, Rate
from elemta.delivery import Retries
from elemta.errors import SpoolError
from elemta.spool import QueuedMessage
from tests.support.simulated import GOOD, SILENT, Simulation


@pytest.fixture
def simulations() -> Iterator[list[Simulation]]:
    made: list[Simulation] = []
    yield made
    for simulation in made:
        simulation.stop()


def test_any_number_of_destinations_may_wait_for_limits_that_answer_at_once(
    simulations: list[Simulation],
) -> None:
    """The places of unknown destinations are taken; when one is free, 3,600 others have to wait."""
    limit = LimitConfig("pace", (Identity.DESTINATION,), Counts.MESSAGES, (Rate(1, 600.0),))
    simulation = Simulation(
        lambda destination, now: SILENT if destination.startswith("slow") else GOOD, limit
    )
    simulations.append(simulation)
    simulation.start()
    for number in range(375):
        simulation.send(f"slow{number}.example")
    paced = [f"paced{number}.example" for number in range(3600)]
    for destination in paced:
        queue_id = simulation.send(destination)
        message = simulation.queue.find(queue_id)
        assert message is not None
        simulation.pace.acquire(destination, message.envelope, message.pending)
    simulation.run(60.0)
    assert simulation.delivery.under_way == 0
    destinations = [simulation.delivery._destinations.find(destination) for destination in paced]
    assert not [
        destination for destination in destinations if destination is not None and destination.under_way
    ]
    simulation.run(660.0)
    assert len(simulation.delivered) == len(paced)


@pytest.mark.parametrize(
    "error", [RecursionError(), MemoryError(), CancelledError(), RuntimeError(), SpoolError("disk")], ids=repr
)
def test_a_part_whose_attempt_breaks_in_any_way_is_not_under_way_any_more(
    simulations: list[Simulation], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    simulation = Simulation(lambda destination, now: GOOD, retries=Retries((60.0,)))
    simulations.append(simulation)
    simulation.start()

    async def broken(message: QueuedMessage) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(simulation.delivery._attempts, "make", broken)
        queue_id = simulation.send("x.example")
        simulation.run(1.0)
        assert simulation.delivery.under_way == 0
    simulation.run(70.0)
    assert queue_id in simulation.delivered


@pytest.mark.parametrize(
    "error", [RecursionError(), MemoryError(), CancelledError(), RuntimeError(), SpoolError("disk")], ids=repr
)
def test_a_limit_that_can_not_be_given_back_costs_no_record_of_a_delivery(
    simulations: list[Simulation], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    limit = LimitConfig("pace", (Identity.DESTINATION,), Counts.MESSAGES, (Rate(1000, 600.0),))
    simulation = Simulation(lambda destination, now: GOOD, limit, retries=Retries((60.0,)))
    simulations.append(simulation)
    simulation.start()

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(simulation.pace, "done", broken)
    queue_id = simulation.send("x.example")
    simulation.run(600.0)
    assert [attempt[2] for attempt in simulation.attempts] == [queue_id]
    assert simulation.queue.find(queue_id) is None


def test_one_turn_of_the_reactor_starts_few_attempts_however_many_may_start_or_end(
    simulations: list[Simulation],
) -> None:
    simulation = Simulation(lambda destination, now: GOOD)
    simulations.append(simulation)
    for number in range(300):
        for _ in range(3):
            simulation.send(f"d{number}.example", tell=False)
    simulation.delivery.startService()
    most = 0
    while len(simulation.delivered) < 900 and simulation.now < 600.0:
        before = len(simulation.attempts)
        next_turn(simulation)
        most = max(most, len(simulation.attempts) - before)
    assert len(simulation.delivered) == 900
    assert most <= 20


def next_turn(simulation: Simulation) -> None:
    """Let the next one of all delayed calls be made."""
    clock = simulation.clock
    call = clock.calls.pop(0)
    clock.rightNow = max(clock.rightNow, call.getTime())
    call.called = 1
    call.func(*call.args, **call.kw)


@ensureDeferred
async def test_a_stop_amid_many_starts_does_not_keep_the_next_start_from_delivering(
    simulations: list[Simulation],
) -> None:
    simulation = Simulation(lambda destination, now: GOOD)
    simulations.append(simulation)
    for number in range(100):
        simulation.send(f"d{number}.example", tell=False)
    simulation.delivery.startService()
    while not simulation.attempts:
        next_turn(simulation)
    assert len(simulation.attempts) < 100
    stopped = simulation.delivery.stopService()
    simulation.run(60.0)
    await stopped
    simulation.delivery.startService()
    simulation.delivery._transports.deliver = simulation._carry  # type: ignore[method-assign]
    simulation.run(60.0)
    assert len(simulation.delivered) == 100
