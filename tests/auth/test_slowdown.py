"""The memory of failures is bounded and forgets."""

from __future__ import annotations

from twisted.internet.task import Clock

from elemta.auth.slowdown import FORGET_SECONDS, Slowdown


def test_at_most_so_many_failures_are_remembered_and_the_oldest_go_first() -> None:
    slowdown = Slowdown(Clock(), capacity=100)
    for number in range(1000):
        slowdown.failed("192.0.2.1", f"user-{number}")
    assert len(slowdown) == 100
    assert slowdown.failed("192.0.2.1", "user-999") == 2
    assert slowdown.failed("192.0.2.1", "user-0") == 1


def test_a_quarter_of_an_hour_without_a_failure_starts_over() -> None:
    clock = Clock()
    slowdown = Slowdown(clock)
    slowdown.failed("192.0.2.1", "anna")
    clock.advance(FORGET_SECONDS)
    assert slowdown.failed("192.0.2.1", "anna") == 2
    clock.advance(FORGET_SECONDS + 1)
    assert slowdown.failed("192.0.2.1", "anna") == 1


def test_what_was_forgotten_takes_no_memory() -> None:
    clock = Clock()
    slowdown = Slowdown(clock)
    for number in range(50):
        slowdown.failed(f"192.0.2.{number}", "anna")
    clock.advance(FORGET_SECONDS + 1)
    slowdown.failed("198.51.100.1", "berta")
    assert len(slowdown) == 1


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    slowdown = Slowdown(Clock())
    slowdown.failed("::ffff:192.0.2.1", "anna")
    assert slowdown.failed("192.0.2.1", "anna") == 2


def test_a_very_long_row_of_failures_waits_no_longer_than_ten_seconds() -> None:
    slowdown = Slowdown(Clock())
    assert [slowdown.failed("192.0.2.1", "anna") for _ in range(2000)][-1] == 10.0
