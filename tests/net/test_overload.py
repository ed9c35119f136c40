"""More load than this process can take: new clients get 421 at once, the others are served."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.internet.task import Clock

from elemta.metrics import NetMetrics
from elemta.net.overload import (
    BEAT_SECONDS,
    FEWEST_CONNECTIONS,
    LATE_SECONDS,
    LOOKS_TO_BEGIN,
    LOOKS_TO_GROW,
    SLOW_COMMIT_SECONDS,
    STILL_LATE_SECONDS,
    OverloadLimit,
)

from .conftest import Place

MOST = 1000


class Load:
    """A loop of events with so many connections."""

    def __init__(self, connections: int) -> None:
        self.clock = Clock()
        self.connections = connections
        self.commit = 0.0
        self.metrics = NetMetrics()
        self.overload = OverloadLimit(self.clock, self.metrics, lambda: self.connections, lambda: MOST)
        self.overload.commit_seconds = lambda: self.commit
        self.overload.watch()

    def look(self, times: int = 1, *, late: float = 0.0) -> None:
        """So many looks, each so late."""
        for _ in range(times):
            # A little more, because sums of floats are a little less.
            self.clock.advance(BEAT_SECONDS + late + 1e-6)

    @property
    def shown(self) -> float:
        return self.metrics.overloaded._value.get()


def test_a_loop_that_stays_late_takes_fewer_connections_step_by_step() -> None:
    load = Load(500)
    load.look(LOOKS_TO_BEGIN - 1, late=LATE_SECONDS)
    # Pauses may be none of the clients' doing.
    assert load.overload.has_capacity
    assert load.shown == 0
    load.look(1, late=LATE_SECONDS)
    assert load.overload.limit == 450
    assert not load.overload.has_capacity
    assert load.shown == 1
    load.connections = 440
    assert load.overload.has_capacity
    load.look(1, late=LATE_SECONDS)
    assert load.overload.limit == 396


def test_two_looks_that_are_as_late_together_begin_it_too_and_one_does_not() -> None:
    load = Load(500)
    load.look(1, late=9.0)
    assert load.overload.limit is None
    load.look(1)
    load.look(2, late=LOOKS_TO_BEGIN * LATE_SECONDS / 2 - 0.01)
    assert load.overload.limit is None
    load.look(1)
    load.look(2, late=LOOKS_TO_BEGIN * LATE_SECONDS / 2)
    assert load.overload.limit == 450


def test_it_begins_with_more_lateness_than_it_goes_on_with() -> None:
    load = Load(500)
    load.look(3 * LOOKS_TO_BEGIN, late=STILL_LATE_SECONDS)
    assert load.overload.limit is None
    load.look(LOOKS_TO_BEGIN, late=LATE_SECONDS)
    load.connections = 440
    load.look(1, late=STILL_LATE_SECONDS)
    assert load.overload.limit == 396
    load.look(LOOKS_TO_GROW)
    assert load.overload.limit == 435


def test_more_are_let_in_when_no_look_was_late_for_a_while() -> None:
    load = Load(500)
    load.look(LOOKS_TO_BEGIN, late=LATE_SECONDS)
    for _ in range(3):
        load.look(LOOKS_TO_GROW - 1)
        assert load.overload.limit == 450
        load.look(1, late=STILL_LATE_SECONDS)
    load.look(LOOKS_TO_GROW - 1)
    assert load.overload.limit == 450
    load.look(1)
    assert load.overload.limit == 495
    load.look(1)
    assert load.overload.limit == 544


def test_single_late_looks_with_others_between_them_change_nothing() -> None:
    load = Load(500)
    for _ in range(2 * LOOKS_TO_BEGIN):
        load.look(1, late=1.0)
        load.look(1)
    assert load.overload.limit is None


def test_a_late_look_of_an_earlier_burst_does_not_count() -> None:
    load = Load(FEWEST_CONNECTIONS)
    load.connections = FEWEST_CONNECTIONS - 1
    load.look(1, late=9.0)
    load.clock.advance(3600.0)
    load.connections = FEWEST_CONNECTIONS
    load.overload.watch()
    load.look(1, late=9.0)
    assert load.overload.limit is None
    load.look(1, late=LATE_SECONDS)
    assert load.overload.limit is not None


def test_it_ends_by_itself_when_the_loop_is_in_time_again() -> None:
    load = Load(500)
    load.look(LOOKS_TO_BEGIN, late=LATE_SECONDS)
    load.connections = 0
    limits = []
    while load.overload.limit is not None:
        limits.append(load.overload.limit)
        load.look()
    assert limits == sorted(limits)
    assert len(limits) * BEAT_SECONDS < 3.0
    assert load.shown == 0
    # Nothing looks any more, until there are enough connections again.
    assert load.clock.getDelayedCalls() == []
    load.connections = FEWEST_CONNECTIONS
    load.overload.watch()
    load.overload.watch()
    assert len(load.clock.getDelayedCalls()) == 1


def test_it_grows_back_within_five_seconds_also_where_looks_are_nearly_late() -> None:
    load = Load(FEWEST_CONNECTIONS)
    load.look(LOOKS_TO_BEGIN, late=LATE_SECONDS)
    assert load.overload.limit == FEWEST_CONNECTIONS
    began = load.clock.seconds()
    while load.overload.limit is not None and load.clock.seconds() - began <= 5.0:
        load.look(late=0.9 * STILL_LATE_SECONDS)
    assert load.overload.limit is None


def test_a_commit_that_hangs_counts_as_late() -> None:
    load = Load(500)
    load.commit = SLOW_COMMIT_SECONDS
    load.look(LOOKS_TO_BEGIN)
    assert not load.overload.has_capacity
    load.commit = 0.0
    load.look(30)
    assert load.overload.limit is None


def test_few_connections_are_never_refused_and_not_even_looked_at() -> None:
    load = Load(FEWEST_CONNECTIONS - 1)
    assert load.clock.getDelayedCalls() == []
    load.connections = FEWEST_CONNECTIONS
    load.overload.watch()
    load.connections = FEWEST_CONNECTIONS - 1
    load.look(1, late=9.0)
    assert load.clock.getDelayedCalls() == []


def test_sessions_that_stay_slow_become_few_but_never_none() -> None:
    load = Load(FEWEST_CONNECTIONS)
    for _ in range(100):
        load.look(1, late=9.0)
        load.connections = min(load.connections, load.overload.limit or MOST)
    assert load.overload.limit == FEWEST_CONNECTIONS
    # What is open and idle does not make the limit smaller, so that it grows back soon.
    load.connections = 900
    load.look(1, late=9.0)
    assert load.overload.limit == 810


def test_a_refused_client_gets_421_and_is_counted_but_a_health_check_is_answered(place: Place) -> None:
    place.registry.overload.limit = 0
    refused = place.connect()
    assert refused.said() == ["421 4.3.2 Too busy, try again later"]
    assert refused.transport.disconnecting
    assert place.counted.refused == [("mx", "overload")]
    assert place.registry.overload.refused == 1
    assert place.factory.why_refused(ip_address("192.0.2.1"), health_check=True) is None
    place.registry.overload.limit = None
    assert place.connect().said()[0].startswith("220 ")
