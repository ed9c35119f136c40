"""A time of day that is set, in either direction, makes no mail old before its time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime

import pytest

from elemta.delivery import Retries
from elemta.spool import MessageState
from tests.support.simulated import GOOD, GREYLISTED, SILENT, Answer, Simulation

WARNED, EXPIRED = 300.0, 600.0
# An attempt may be under way, and the queue is walked every 5 s.
LATE = 70.0
DAY = 86_400.0


@pytest.fixture(params=[GREYLISTED, SILENT], ids=["deferred", "down"])
def simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    answer: Answer = request.param
    made = Simulation(
        lambda destination, now: answer, retries=Retries((60.0,), EXPIRED, jitter=0.0), warn_after=WARNED
    )
    made.start()
    yield made
    made.stop()


def notices(simulation: Simulation, since: float) -> list[tuple[str, float]]:
    """The notices to senders, and when they were queued."""
    return [
        ("delayed" if "Action: delayed" in text else "failed", at - since)
        for at, text in simulation.queue.notices
    ]


def has_its_time(simulation: Simulation) -> bool:
    """Whether a message that is sent now is tried, and its sender hears of it, as the settings say."""
    simulation.queue.notices.clear()
    simulation.attempts.clear()
    since = simulation.clock.seconds()
    simulation.send("hop.example")
    simulation.run(EXPIRED + LATE)
    (first, delayed), (last, failed) = notices(simulation, since)
    assert (first, last) == ("delayed", "failed")
    return WARNED <= delayed <= WARNED + LATE and EXPIRED <= failed <= EXPIRED + LATE


@pytest.mark.parametrize("step", [-120.0, -3600.0, -6 * DAY])
def test_mail_that_comes_after_the_clock_was_put_back_has_its_whole_time(
    simulation: Simulation, step: float
) -> None:
    assert has_its_time(simulation)
    simulation.step = step
    assert has_its_time(simulation)
    assert len(simulation.attempts) >= 5


@pytest.mark.parametrize("step", [-90.0, -3600.0, -6 * DAY])
def test_notices_have_the_dates_of_the_clock_that_was_put_back(simulation: Simulation, step: float) -> None:
    simulation.step = step
    simulation.run(10.0)
    sent = simulation.clock.seconds()
    simulation.send("hop.example")
    simulation.run(EXPIRED + LATE)
    assert len(simulation.queue.notices) == 2
    for (at, text), date in zip(simulation.queue.notices, simulation.queue.dates, strict=True):
        assert date - step == pytest.approx(at, abs=2.0)
        dates = re.findall(r"^(Last-Attempt-Date|Will-Retry-Until|Arrival-Date): (.*)$", text, re.MULTILINE)
        found = {name: parsedate_to_datetime(text.strip()).timestamp() - step for name, text in dates}
        assert found["Arrival-Date"] == pytest.approx(sent, abs=2.0)
        assert sent - 2.0 <= found["Last-Attempt-Date"] <= at + 2.0
        if "Will-Retry-Until" in found:
            assert found["Will-Retry-Until"] == pytest.approx(sent + EXPIRED, abs=2.0)


def test_mail_that_waits_while_the_clock_is_put_back_waits_no_longer_for_an_attempt(
    simulation: Simulation,
) -> None:
    simulation.send("hop.example")
    simulation.run(90.0)
    simulation.attempts.clear()
    simulation.step = -DAY
    simulation.run(400.0)
    assert len(simulation.attempts) >= 4


@pytest.mark.parametrize("step", [120.0, 3600.0, 6 * DAY])
def test_a_clock_that_is_ahead_for_minutes_makes_nothing_old(simulation: Simulation, step: float) -> None:
    simulation.send("hop.example")
    simulation.run(60.0)
    simulation.step = step
    simulation.run(200.0)
    simulation.step = 0.0
    assert simulation.queue.notices == []
    simulation.run(EXPIRED + LATE - 260.0)
    assert [kind for kind, _ in notices(simulation, 0.0)] == ["delayed", "failed"]


@pytest.mark.parametrize("step", [120.0, 3600.0, 6 * DAY])
def test_a_clock_that_is_ahead_for_an_hour_is_right(simulation: Simulation, step: float) -> None:
    simulation.step = step
    simulation.run(3700.0)
    assert has_its_time(simulation)


@pytest.mark.parametrize("ahead", [3600.0, 30 * DAY])
@pytest.mark.parametrize("answer", [GOOD, GREYLISTED], ids=["good", "deferred"])
def test_what_was_deferred_by_a_clock_that_was_ahead_is_tried_after_the_next_start(
    answer: Answer, ahead: float
) -> None:
    simulation = Simulation(lambda destination, now: answer, retries=Retries((60.0,), 100 * DAY, jitter=0.0))
    for number in range(40):
        queue_id = simulation.send(f"hop{number % 2}.example", tell=False)
        message = simulation.queue.find(queue_id)
        assert message is not None
        due = simulation.clock.seconds() + ahead + number
        simulation.queue.put(replace(message, state=MessageState.DEFERRED, next_attempt_at=due, attempts=1))
    simulation.start()
    simulation.run(90.0)
    tried = [queue_id for _, _, queue_id in simulation.attempts]
    assert len(set(tried)) == 40
    if answer is GOOD:
        assert len(tried) == 40
    else:
        # Then they wait as always.
        assert len(tried) <= 80
    simulation.stop()


def test_what_waits_for_a_usual_time_at_the_start_is_not_tried_before_it() -> None:
    simulation = Simulation(lambda destination, now: GOOD, retries=Retries((60.0, 600.0), jitter=0.1))
    message = simulation.queue.find(simulation.send("hop.example", tell=False))
    assert message is not None
    due = simulation.clock.seconds() + 650.0
    simulation.queue.put(replace(message, state=MessageState.DEFERRED, next_attempt_at=due, attempts=2))
    simulation.start()
    simulation.run(640.0)
    assert simulation.attempts == []
    simulation.run(20.0)
    assert len(simulation.attempts) == 1
    simulation.stop()
