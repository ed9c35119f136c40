"""After an outage on this side: destinations are probed again within minutes, however long it was."""

from __future__ import annotations

import pytest

from tests.support.simulated import GOOD, UNREACHABLE, Answer, Simulation

MINUTE = 60.0
DESTINATIONS = 20


@pytest.mark.parametrize("minutes", [25, 90, 300])
def test_after_an_outage_each_destination_gets_its_mail_within_eleven_minutes(minutes: int) -> None:
    end = minutes * MINUTE

    def network(_: str, now: float) -> Answer:
        return GOOD if now >= end else UNREACHABLE

    simulation = Simulation(network, warn_after=0.0)
    simulation.start()
    try:
        for number in range(DESTINATIONS):
            simulation.send(f"d{number}.example")
        simulation.run(end + 11 * MINUTE)
        assert len(simulation.delivered) == DESTINATIONS
        # Each destination has one probe at a time, not one for each second of the outage.
        assert len(simulation.attempts) <= DESTINATIONS * (6 + minutes / 9)
    finally:
        simulation.stop()
