"""Deadlines of a connection, with the time passed in."""

from __future__ import annotations

from elemta.net.timeouts import LEAST_OCTETS_PER_WINDOW, UNREAD_SECONDS, ConnectionTimeouts, TimeoutKind


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
    deadlines.received(LEAST_OCTETS_PER_WINDOW, 299.0)
    assert deadlines.has_passed(300.0)


def test_a_message_that_keeps_its_pace_may_take_for_ever() -> None:
    deadlines = make()
    deadlines.wait(TimeoutKind.MESSAGE, 0.0)
    for minute in range(1, 1000):
        now = minute * 60.0
        assert not deadlines.has_passed(now)
        deadlines.received(LEAST_OCTETS_PER_WINDOW // 8, now)


def test_a_message_below_the_pace_ends_at_the_first_window() -> None:
    deadlines = make()
    deadlines.wait(TimeoutKind.MESSAGE, 0.0)
    for second in range(599):
        deadlines.received(100, float(second))
    assert not deadlines.has_passed(599.9)
    assert deadlines.has_passed(600.0)


def test_the_octet_that_fills_a_window_begins_a_new_one() -> None:
    deadlines = make()
    deadlines.wait(TimeoutKind.MESSAGE, 0.0)
    deadlines.received(LEAST_OCTETS_PER_WINDOW - 1, 500.0)
    assert deadlines.has_passed(600.0)
    deadlines.received(1, 599.0)
    assert not deadlines.has_passed(1198.9)
    assert deadlines.has_passed(1199.0)


def test_a_pause_that_was_ours_is_not_the_clients() -> None:
    deadlines = make()
    deadlines.wait(TimeoutKind.MESSAGE, 0.0)
    deadlines.hold(599.0)
    assert not deadlines.has_passed(1198.0)


def test_a_client_that_does_not_read_is_given_up_after_minutes() -> None:
    deadlines = make()
    deadlines.unread(10.0)
    assert not deadlines.gave_up_reading(10.0 + UNREAD_SECONDS - 0.1)
    assert deadlines.gave_up_reading(10.0 + UNREAD_SECONDS)
    deadlines.read_again()
    assert not deadlines.gave_up_reading(10.0 + UNREAD_SECONDS)
