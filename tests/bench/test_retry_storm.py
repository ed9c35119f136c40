"""The simulation of clients that come again: its schedules, and the figures that the page shows."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elemta.config import Rate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rate-limiting.md").read_text(encoding="utf-8")
CLIENTS = 300
RATE = Rate(50, 60.0)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        yield importlib.import_module("retry_storm")
    finally:
        sys.path.remove(str(ROOT / "bench"))


def waits(model: Any, name: str, attempts: int) -> list[float]:
    """The seconds between the attempts of one host that is always refused."""
    again = model.SCHEDULES[name](random.Random(1))
    found, now = [], 0.0
    for number in range(attempts):
        after = again(model.Attempt(now, now, number, 60.0))
        found.append(after - now)
        now = after
    return found


def test_schedules_are_those_of_the_documentation(model: Any) -> None:
    assert waits(model, "Exchange", 4) == [900.0] * 4
    assert waits(model, "Mailgun", 6) == [60.0 * minutes for minutes in (10, 15, 30, 60, 120, 240)]
    postfix = waits(model, "Postfix", 12)
    assert 300 <= postfix[0] <= 600
    assert all(wait % 300 == pytest.approx(0, abs=1e-6) or wait % 300 > 299.9 for wait in postfix[1:])
    assert all(4000 <= wait <= 4300 for wait in postfix[-3:])
    exim = waits(model, "Exim", 40)
    # Queue runs every half an hour are further apart than 15 minutes.
    assert exim[1:4] == [pytest.approx(1800.0)] * 3
    assert exim[-1] == pytest.approx(6 * 3600.0)
    kumomta = waits(model, "KumoMTA", 3)
    assert all(1200 * 2**n <= wait <= 1320 * 2**n for n, wait in enumerate(kumomta))


def test_programs_that_read_the_time_come_apart_and_others_come_as_before(model: Any) -> None:
    for name, schedule in model.SCHEDULES.items():
        exact, spread = (
            model.storm([schedule], told, clients=CLIENTS, rate=RATE) for told in (model.exact, model.spread)
        )
        if name == "programs that read the time":
            assert exact.busiest > CLIENTS / 2
            assert spread.busiest <= 25
            assert spread.last <= exact.last + 300
        else:
            assert (spread.arrivals, spread.refused) == (exact.arrivals, exact.refused)


def test_no_window_of_a_storm_passes_more_than_the_limit(model: Any) -> None:
    found = model.storm(tuple(model.SCHEDULES.values()), model.spread, clients=CLIENTS, rate=RATE)
    assert found.passed == CLIENTS
    assert found.last >= 60.0 * (CLIENTS / RATE.limit - 1)


def test_the_page_has_the_figures_that_the_simulation_prints() -> None:
    command = [sys.executable, str(ROOT / "bench" / "retries")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout in PAGE
