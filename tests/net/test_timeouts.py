"""Deadlines of a connection, with the time passed in."""

from __future__ import annotations

import pytest

from elemta.net.timeouts import UNREAD_SECONDS, ConnectionTimeouts, TimeoutKind


def make() -> ConnectionTimeouts:
    deadlines = ConnectionTimeouts(command=300.0, data=600.0)
    deadlines.wait(TimeoutKind.COMMAND, 0.0)
    return deadlines


def test_a_command_has_its_whole_time_and_no_more() -> None:
    deadlines = make()
    assert not deadlines.has_passed(299.9)
    assert deadlines.has_passed(300.0)


def test_octets_of_a_command_line_move_nothing() -> None:
    deadlines = make()
    deadlines.received(1_000_000, 299.0)
    assert deadlines.has_passed(300.0)


def message(data: float = 600.0) -> ConnectionTimeouts:
    """A message that begins at 0."""
    deadlines = ConnectionTimeouts(command=300.0, data=data)
    deadlines.wait(TimeoutKind.MESSAGE, 0.0)
    return deadlines


def drip(deadlines: ConnectionTimeouts, octets: int, every: float, until: float, begin: float = 0.0) -> float:
    """Send so many octets again and again; gives the second at which a look once a second ends it."""
    sent, now = begin, begin
    while now < until:
        now += 1.0
        while sent + every <= now:
            sent += every
            deadlines.received(octets, sent)
        if deadlines.has_passed(now):
            return now
    return until


@pytest.mark.parametrize("data", [1.5, 5.0, 600.0])
@pytest.mark.parametrize(("octets", "every"), [(501, 1.0), (600, 1.0), (1000, 1.25), (75, 0.125)])
def test_a_slow_and_steady_sender_is_never_cut_off(data: float, octets: int, every: float) -> None:
    assert drip(message(data), octets, every, 20_000.0) == 20_000.0


@pytest.mark.parametrize("data", [2.0, 600.0, 86_400.0])
@pytest.mark.parametrize(
    ("octets", "every", "end"),
    [(1, 1.0, 12.0), (100, 1.0, 14.0), (250, 1.0, 22.0), (450, 1.0, 110.0), (1, 0.01, 14.0)],
)
def test_a_sender_below_the_pace_is_cut_off_whatever_data_timeout_is(
    data: float, octets: int, every: float, end: float
) -> None:
    assert 10.0 < drip(message(data), octets, every, 1000.0) <= end


@pytest.mark.parametrize("before", [0, 1, 5000, 10_000_000])
def test_a_pause_lasts_as_long_as_data_timeout_and_no_longer(before: int) -> None:
    deadlines = message(60.0)
    deadlines.received(before, 1.0)
    assert not deadlines.has_passed(60.9)
    assert deadlines.has_passed(61.0)


def test_one_pause_costs_nothing_and_the_next_counts_for_the_pace() -> None:
    deadlines = message()
    deadlines.received(1000, 590.0)
    assert not deadlines.has_passed(601.9)
    assert deadlines.has_passed(602.1)
    deadlines = message()
    deadlines.received(1000, 500.0)
    assert drip(deadlines, 600, 1.0, 5000.0, begin=500.0) == 5000.0
    assert not deadlines.has_passed(5400.0)
    deadlines.received(1, 5400.0)
    assert not deadlines.has_passed(5401.0)
    deadlines.received(1, 5950.0)
    assert not deadlines.has_passed(5951.0)


def test_pauses_just_within_data_timeout_hold_a_connection_for_one_of_them_only() -> None:
    assert drip(message(), 1, 599.0, 100_000.0) <= 599.0 + 12.0


def test_a_pause_that_was_ours_is_not_the_clients() -> None:
    deadlines = message(60.0)
    deadlines.received(1, 9.0)
    deadlines.stop_reading(10.0)
    assert not deadlines.has_passed(68.0)
    deadlines.hold(70.0, reading=False)
    deadlines.hold(129.0, reading=True)
    assert not deadlines.has_passed(188.0)
    assert deadlines.has_passed(189.0)
    deadlines.received(1, 129.5)
    assert drip(deadlines, 1, 1.0, 1000.0, begin=129.5) <= 129.5 + 12.0


def test_a_client_that_does_not_read_is_given_up_after_minutes() -> None:
    deadlines = make()
    deadlines.unread(10.0)
    assert not deadlines.gave_up_reading(10.0 + UNREAD_SECONDS - 0.1)
    assert deadlines.gave_up_reading(10.0 + UNREAD_SECONDS)
    deadlines.read_again()
    assert not deadlines.gave_up_reading(10.0 + UNREAD_SECONDS)
