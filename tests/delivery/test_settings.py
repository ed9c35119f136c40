"""When a deferred message is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elemta.delivery import Retries

RETRIES = Retries((60.0, 300.0), expire=10_000.0)


def test_each_attempt_has_its_wait_and_the_last_repeats() -> None:
    for attempts, wait in [(1, 60.0), (2, 300.0), (3, 300.0), (50, 300.0)]:
        at = RETRIES.next_attempt(attempts, 0.0, 100.0)
        assert at is not None
        assert 100.0 + wait <= at <= 100.0 + wait * 1.1


def test_there_is_an_attempt_at_the_end_and_none_after_it() -> None:
    assert RETRIES.next_attempt(9, 0.0, 9_900.0) == 10_000.0
    assert RETRIES.next_attempt(9, 0.0, 9_999.9) == 10_000.0
    assert RETRIES.next_attempt(9, 0.0, 10_000.0) is None


def test_what_failed_together_does_not_come_back_together() -> None:
    assert len({RETRIES.next_attempt(1, 0.0, 0.0) for _ in range(50)}) > 10


@given(st.integers(0, 10**6), st.floats(0, 2e9), st.floats(0, 2e9))
def test_the_next_attempt_is_always_later(attempts: int, received_at: float, now: float) -> None:
    at = RETRIES.next_attempt(attempts, received_at, now)
    assert at is None or at > now or at == received_at + RETRIES.expire


@given(st.integers(0, 10**6), st.floats(0, 2e9), st.lists(st.floats(1.0, 10**6), min_size=1, max_size=6))
def test_a_destination_is_probed_within_ten_minutes_however_long_it_is_down(
    failures: int, now: float, delays: list[float]
) -> None:
    for retries in (Retries(), Retries(tuple(sorted(delays)))):
        assert now < retries.next_probe(failures, now) <= now + 600.0
