"""The breaker between a node and the shared store."""

from __future__ import annotations

from elemta.limits.failover import (
    FAILURES,
    GOOD_PROBES,
    MOST_GOOD_PROBES,
    PROBE_INTERVAL,
    PROBE_SPACING,
    RELAPSE,
    BreakerState,
    StoreBreaker,
)


def closed(now: float = 0.0) -> StoreBreaker:
    breaker = StoreBreaker()
    assert breaker.probed(good=True)
    breaker.close(now)
    return breaker


def probes_until_it_may_close(breaker: StoreBreaker) -> int:
    count = 1
    while not breaker.probed(good=True):
        assert breaker.state is BreakerState.HALF_OPEN
        count += 1
    return count


def test_it_begins_open_and_the_first_good_probe_is_enough() -> None:
    breaker = StoreBreaker()
    assert breaker.state is BreakerState.OPEN
    assert not breaker.probed(good=False)
    assert probes_until_it_may_close(breaker) == 1


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = closed()
    assert [breaker.failed(now) for now in (1.0, 1.1)] == [False, False]
    breaker.succeeded()
    assert [breaker.failed(now) for now in (1.2, 1.3, 1.4)] == [False, False, True]
    assert breaker.state is BreakerState.OPEN
    assert not breaker.failed(1.5)


def test_what_fails_at_one_moment_is_one_failure() -> None:
    breaker = closed()
    assert not any(breaker.failed(1.0 + number / 5_000) for number in range(100))
    assert breaker.closed
    assert [breaker.failed(1.0 + number / 10) for number in range(1, FAILURES)] == [False, True]


def test_the_way_back_takes_several_good_probes_in_a_row() -> None:
    breaker = closed()
    assert breaker.trip(100.0)
    assert not breaker.trip(100.0)
    assert breaker.pause == PROBE_INTERVAL
    assert not breaker.probed(good=True)
    assert breaker.pause == PROBE_SPACING
    assert not breaker.probed(good=False)
    assert breaker.state is BreakerState.OPEN
    assert probes_until_it_may_close(breaker) == GOOD_PROBES


def test_who_relapses_soon_is_trusted_later_and_later_but_not_never() -> None:
    breaker, now, needed = closed(), 100.0, []
    for _ in range(5):
        breaker.trip(now)
        needed.append(probes_until_it_may_close(breaker))
        breaker.close(now)
        now += RELAPSE / 2
    assert needed == [2, 4, 5, MOST_GOOD_PROBES, MOST_GOOD_PROBES]
    breaker.trip(now + RELAPSE)
    assert probes_until_it_may_close(breaker) == GOOD_PROBES


def test_the_slowest_way_back_is_shorter_than_two_seconds() -> None:
    # A connection takes up to a second to come back, and begins with a probe.
    assert (MOST_GOOD_PROBES - 1) * PROBE_SPACING < 0.5
