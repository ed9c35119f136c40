"""An attacker that knows the algorithm, three nodes, and a real server on its own time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elemta.limits.store import LimitSpec, Request
from elemta.limits.valkey_store import ValkeyStore
from elemta.limits.window import Bound
from elemta.runtime import Runtime
from tests.support.blocking_valkey import BlockingValkey, result
from tests.support.valkey import ValkeyServer

WINDOW = 120_000  # microseconds: many of them in a short test
SKEWS = (0.0, 30.0, -30.0)
LOG = Bound.of(20, WINDOW)
BUCKETS = Bound.of(150, WINDOW)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


class SkewedClock(Clock):
    """The clock of a node that is wrong by so many seconds."""

    def __init__(self, skew: float) -> None:
        super().__init__()
        self._skew = skew

    def seconds(self) -> float:
        return time.time() + self._skew + float(super().seconds())


class Fleet:
    """Three nodes with one limit, each with its own connection and its own idea of the time."""

    def __init__(self, server: ValkeyServer, terms: LimitSpec) -> None:
        self._terms = terms
        self._links = [BlockingValkey(server) for _ in SKEWS]
        self._links[0].talk("FLUSHALL")
        self._clocks = [SkewedClock(skew) for skew in SKEWS]
        self._stores = [
            ValkeyStore(link, prefix="t:", node_id=f"mx{n}", runtime=Runtime.of(clock))  # type: ignore[arg-type]
            for n, (link, clock) in enumerate(zip(self._links, self._clocks, strict=True))
        ]
        self.admitted: list[int] = []

    def burst(self, node: int, size: int) -> None:
        """One turn of a node's reactor in which so many ask."""
        later = [self._stores[node].acquire([Request(self._terms, "a")]) for _ in range(size)]
        self._clocks[node].advance(0)
        for answer in map(result, later):
            self.admitted += [receipt.at for receipt in answer.receipts]

    def close(self) -> None:
        for link in self._links:
            link.talk.close()


def worst_window(times: list[int], window: int) -> int:
    """The most that any half-open interval of this length holds."""
    inside: deque[int] = deque()
    worst = 0
    for at in sorted(times):
        inside.append(at)
        while inside[0] <= at - window:
            inside.popleft()
        worst = max(worst, len(inside))
    return worst


def attack(server: ValkeyServer, bound: Bound, plan: list[tuple[int, int, int]]) -> None:
    """Go round the plan for six windows: wait for a phase of the window, then ask from a node."""
    fleet = Fleet(server, LimitSpec("l", (bound,)))
    end = time.monotonic() + 6 * WINDOW / 1e6
    try:
        while time.monotonic() < end:
            for phase, node, size in plan:
                elapsed = time.time() * 1e6 % WINDOW
                time.sleep((phase - elapsed) % WINDOW / 1e6 / 2)
                fleet.burst(node, size)
    finally:
        fleet.close()
    assert worst_window(fleet.admitted, bound.window) <= bound.limit


plans = st.lists(
    st.tuples(st.integers(0, WINDOW - 1), st.integers(0, 2), st.integers(1, 250)), min_size=1, max_size=8
)


@pytest.mark.parametrize("bound", [LOG, BUCKETS], ids=["log", "sub-buckets"])
def test_no_phase_of_the_traffic_and_no_clock_lets_more_pass(server: ValkeyServer, bound: Bound) -> None:
    @settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
    @given(plan=plans)
    def whatever(plan: list[tuple[int, int, int]]) -> None:
        attack(server, bound, plan)

    whatever()


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bound", [LOG, BUCKETS], ids=["log", "sub-buckets"])
def test_a_long_attack_lets_no_more_pass(server: ValkeyServer, bound: Bound) -> None:
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(plan=plans)
    def whatever(plan: list[tuple[int, int, int]]) -> None:
        attack(server, bound, plan)

    whatever()


@pytest.mark.parametrize("bound", [LOG, BUCKETS], ids=["log", "sub-buckets"])
def test_a_flood_gets_all_that_the_limit_allows_and_no_more(server: ValkeyServer, bound: Bound) -> None:
    fleet = Fleet(server, LimitSpec("l", (bound,)))
    began = time.monotonic()
    while len(fleet.admitted) <= 3 * bound.limit or worst_window(fleet.admitted, WINDOW) < bound.limit:
        assert time.monotonic() - began < 150
        for node in range(3):
            fleet.burst(node, 60)
    fleet.close()
    assert worst_window(fleet.admitted, bound.window) == bound.limit
