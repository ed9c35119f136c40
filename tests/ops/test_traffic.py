"""The rings of traffic: what falls into which slot, and each limit's checks of the day."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from elemta.metric_registry import MetricRegistry, histogram_quantile
from elemta.metrics import FAST, Metrics
from elemta.ops.traffic import HOUR, TrafficHistory, TrafficRing

MINUTE = 60.0


@dataclass
class Watched:
    """A node's metrics, and its traffic by a clock that the test sets."""

    now: float = 1000.0
    wall: float = 86_400.0 * 20_000 + 3600
    metrics: Metrics = field(default_factory=lambda: Metrics("mx1"))

    def __post_init__(self) -> None:
        self.traffic = TrafficHistory(self.metrics, wall=lambda: self.wall, monotonic=lambda: self.now)

    def accept(self, count: int, listener: str = "mx") -> None:
        self.metrics.net.messages_accepted.labels(listener).inc(count)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


def test_what_was_counted_before_the_rings_began_is_not_theirs() -> None:
    metrics = Metrics("mx1")
    metrics.net.messages_accepted.labels("mx").inc(7)
    watched = Watched(metrics=metrics)
    assert sum(watched.traffic.hour().accepted) == 0


def test_each_kind_is_counted_over_all_labels_in_the_slot_of_its_time() -> None:
    watched = Watched()
    watched.accept(3)
    watched.accept(4, "submission")
    watched.metrics.net.message_refused("rcpt", "relay", transient=False)
    watched.metrics.net.message_refused("mail", "limits", transient=True)
    watched.metrics.net.message_refused("rcpt", "greylist", transient=True)
    watched.traffic.sample()
    watched.advance(2 * MINUTE)
    watched.accept(1)
    hour = watched.traffic.hour()
    assert hour.accepted[-3:] == (7, 0, 1)
    assert hour.deferred[-3:] == (2, 0, 0)
    assert hour.refused[-3:] == (1, 0, 0)
    assert hour.measured == 2 * MINUTE
    assert sum(watched.traffic.day().accepted) == 8


def test_an_hour_forgets_what_is_older_and_the_day_keeps_it() -> None:
    watched = Watched()
    watched.accept(5)
    watched.traffic.sample()
    watched.advance(61 * MINUTE)
    hour, day = watched.traffic.hour(), watched.traffic.day()
    assert (len(hour.accepted), sum(hour.accepted)) == (60, 0)
    assert (len(day.accepted), sum(day.accepted)) == (96, 5)
    assert hour.measured == 60 * MINUTE


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5000)), max_size=40))
def test_a_ring_has_what_came_in_its_time_and_no_more_slots(steps: list[tuple[int, float]]) -> None:
    ring, now = TrafficRing(*HOUR, 0.0), 0.0
    came: list[tuple[int, int]] = []
    for count, seconds in steps:
        now += seconds
        ring.add((count, 0, 0), now)
        came.append((int(now / 60), count))
    series = ring.series(now)
    last = came[-1][0] if came else 0
    assert len(series.accepted) == 60
    assert sum(series.accepted) == sum(count for slot, count in came if slot > last - 60)


def test_the_checks_of_a_limit_are_those_of_the_day() -> None:
    watched = Watched()
    checked = watched.metrics.limits.checked
    for _ in range(3):
        checked("per-sender", "observed", 0.001)
    checked("per-sender", "admitted", 0.001)
    checked("other", "refused", 0.001)
    assert watched.traffic.limits_today() == {
        ("per-sender", "observed"): 3,
        ("per-sender", "admitted"): 1,
        ("other", "refused"): 1,
    }
    watched.advance(86_400)
    assert watched.traffic.limits_today() == {}
    checked("per-sender", "observed", 0.001)
    assert watched.traffic.limits_today() == {("per-sender", "observed"): 1}


def test_a_quantile_is_within_the_bucket_of_the_number_that_it_stands_for() -> None:
    histogram = MetricRegistry("mx1").histogram("some_seconds", "Some.", FAST)
    assert histogram_quantile(0.5, histogram) is None
    for _ in range(95):
        histogram.observe(0.002)
    for _ in range(5):
        histogram.observe(0.3)
    half = histogram_quantile(0.5, histogram)
    most = histogram_quantile(0.99, histogram)
    assert half is not None
    assert most is not None
    assert 0.001 < half <= 0.0025
    assert 0.25 < most <= 0.5
    histogram.observe(1000)
    assert histogram_quantile(1, histogram) == FAST[-1]
