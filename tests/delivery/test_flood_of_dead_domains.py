"""Any number of destinations that are dead: those that answer are served at once, and the dead ones end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from elemta.delivery import Retries
from tests.delivery.test_destinations import PLACES, Scheduled
from tests.support.simulated import GOOD, REFUSED, SILENT, Answer, Simulation

MINUTE = 60.0
GOOD_DOMAIN = "good.example"
DEAD = {"silent": SILENT, "refused": REFUSED}


def dead_but(good: str, dead: Answer, **settings: Any) -> Simulation:
    """All destinations are dead but those whose names begin so."""
    return Simulation(
        lambda destination, now: GOOD if destination.startswith(good) else dead,
        warn_after=0.0,
        poll=30.0,
        **settings,
    )


@pytest.fixture
def running() -> Iterator[list[Simulation]]:
    made: list[Simulation] = []
    yield made
    for simulation in made:
        simulation.stop()


def waits_of(simulation: Simulation, queue_ids: list[tuple[str, float]]) -> list[float]:
    first: dict[str, float] = {}
    for when, _, queue_id in simulation.attempts:
        first.setdefault(queue_id, when)
    return [first[queue_id] - sent for queue_id, sent in queue_ids]


@pytest.mark.parametrize(
    ("domains", "each", "kind"),
    [
        (100, 1, "silent"),
        (500, 8, "refused"),
        (2000, 8, "silent"),
        pytest.param(4000, 2, "refused", marks=pytest.mark.campaign),
        pytest.param(8000, 8, "silent", marks=pytest.mark.campaign),
        pytest.param(8000, 8, "refused", marks=pytest.mark.campaign),
    ],
)
def test_a_known_good_destination_waits_a_second_at_most_beside_any_number_of_dead_ones(
    running: list[Simulation], domains: int, each: int, kind: str
) -> None:
    simulation = dead_but("good", DEAD[kind])
    running.append(simulation)
    simulation.start()
    simulation.send(GOOD_DOMAIN)
    simulation.run(1.0)
    for number in range(domains * each):
        # One half of them is announced, the other is found in the queue.
        simulation.send(f"dead{number % domains}.example", tell=number % 2 == 0)
    sent = []
    for pause in (0.0, 1.0, 20.0, 5 * MINUTE, 20 * MINUTE, 30 * MINUTE):
        simulation.run(pause, step=1.0)
        sent.append((simulation.send(GOOD_DOMAIN), simulation.now))
        simulation.run(2.0)
        sent.append((simulation.send(GOOD_DOMAIN, tell=False), simulation.now))
        simulation.delivery.commands.probe_due([GOOD_DOMAIN])
        simulation.run(2.0)
    assert max(waits_of(simulation, sent)) <= 1.0
    # The dead ones are attempted all the same.
    attempted = Counter(destination for _, destination, _ in simulation.attempts)
    assert len(attempted) == domains + 1


@pytest.mark.parametrize("kind", DEAD)
def test_mail_for_dead_domains_ends_in_its_time_however_many_they_are(
    running: list[Simulation], kind: str
) -> None:
    simulation = dead_but("good", DEAD[kind], retries=Retries((60.0, 300.0), 3600.0))
    running.append(simulation)
    simulation.start()
    for number in range(200 * 4):
        simulation.send(f"dead{number % 200}.example")
    simulation.run(3600.0 + 15 * MINUTE, step=1.0)
    assert not list(simulation.queue.messages)
    assert len(simulation.delivery._destinations) == 0
    assert min(Counter(destination for _, destination, _ in simulation.attempts).values()) >= 3


def test_what_waits_in_memory_stays_bounded_when_unknown_destinations_answer() -> None:
    """Each that answers takes what waits for it along: from the space of the unknown to that of the known."""
    queue = Scheduled(limit=1)
    # Three parts of four wait in the spool.
    for number in range(2000):
        for _ in range(8):
            queue.send(f"new{number}.example")
    for _ in range(200):
        for message in queue.take_all()[: PLACES // 2]:
            queue.deliver(message)
        assert queue.destinations.waiting <= 4000


def test_a_destination_that_is_too_much_for_its_peer_is_halved_from_what_was_under_way() -> None:
    """Not from what might have been: else the number at one time stays as it was when little mail waits."""
    queue = Scheduled()
    for _ in range(60):
        queue.send("x.example")
    while batch := queue.take_all():
        for message in batch:
            queue.deliver(message)
    destination = queue.destinations.find("x.example")
    assert destination is None or destination.window > 8
    few = [queue.send("x.example") for _ in range(4)]
    epoch, started = queue.destinations.epoch("x.example"), queue.now
    destination = queue.destinations.find("x.example")
    assert destination is not None
    destination.window = 20
    assert queue.take_all() == few
    queue.now += 1.0
    queue.deliver(few[0])
    assert not queue.find_down(few[1], epoch, started)
    # Three were under way still.
    assert destination.window == 1
