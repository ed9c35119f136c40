"""The simulation of larger fleets says what can be reckoned by hand, where it can be."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
WAY = 1e-4
IDLE = 1e-5


@pytest.fixture(scope="module")
def simulation() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module("simulation")
    finally:
        sys.path.remove(str(BENCH))


def costs(simulation: Any, *, write: float = 1e-5, call: float = 2e-5, asked: float = 1e-5) -> Any:
    return simulation.Costs(write, call, asked)


def fleet(simulation: Any, nodes: int, rate: float, shape: Any, message: float = 5e-4) -> Any:
    return simulation.Fleet(nodes, rate, message, shape, costs(simulation), IDLE, WAY)


def test_a_quiet_fleet_waits_for_the_network_and_one_call(simulation: Any) -> None:
    found = simulation.simulate(fleet(simulation, 3, 20.0, simulation.SINGLE))
    assert found.p50 == pytest.approx(2 * WAY + 4e-5, rel=0.01)
    assert found.late == 0
    assert found.together == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("nodes", [5, 20])
def test_a_server_is_as_busy_as_what_all_messages_cost_it(simulation: Any, nodes: int) -> None:
    found = simulation.simulate(fleet(simulation, nodes, 100.0, simulation.SINGLE))
    # Three calls a message, hardly ever shared, and what idle nodes cost.
    assert found.busy == pytest.approx(nodes * (100.0 * 3 * 4e-5 + IDLE), rel=0.05)
    assert found.done == pytest.approx(found.offered, rel=0.05)


def test_the_servers_of_a_cluster_share_the_work(simulation: Any) -> None:
    alone = simulation.simulate(fleet(simulation, 20, 100.0, simulation.SINGLE))
    shared = simulation.simulate(fleet(simulation, 20, 100.0, simulation.CLUSTER))
    assert shared.busy == pytest.approx(alone.busy / 3, rel=0.15)


def test_busy_nodes_put_many_questions_into_a_call(simulation: Any) -> None:
    quiet = simulation.simulate(fleet(simulation, 2, 100.0, simulation.SINGLE))
    busy = simulation.simulate(fleet(simulation, 2, 1900.0, simulation.SINGLE))
    assert quiet.together < 1.2
    assert busy.together > 2.0


def test_a_server_that_is_asked_too_much_is_overloaded(simulation: Any) -> None:
    found = simulation.simulate(fleet(simulation, 200, 200.0, simulation.SINGLE))
    assert found.overloaded
    assert found.late > 0.5


def test_costs_are_taken_apart_as_they_were_put_together(simulation: Any) -> None:
    true = costs(simulation, write=7e-6, call=1.9e-5, asked=1.1e-5)
    one, pipelined, together = true.of(1, 1, 1), true.of(1 / 16, 1, 1), true.of(1 / 32, 1 / 32, 1)
    found = simulation.Costs.solved(one, pipelined, together)
    assert (found.write, found.call, found.asked) == pytest.approx((true.write, true.call, true.asked))
