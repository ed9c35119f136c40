"""Faults in a row: each counts for its own message alone, and their memory has a bound."""

from __future__ import annotations

import pytest

from elemta.delivery.faulty_parts import MOST_REMEMBERED, RecentFaults


def test_the_second_fault_in_a_row_is_known_as_such() -> None:
    faults: RecentFaults[str] = RecentFaults()
    assert "a" not in faults
    assert not faults.note("a")
    assert not faults.note("b")
    assert faults.note("a")
    faults.forget("a")
    assert "a" not in faults
    assert not faults.note("a")
    assert faults.note("b")


@pytest.mark.parametrize(("now", "left_alone"), [(9.0, True), (10.0, False), (11.0, False)])
def test_what_failed_is_left_alone_until_its_time(now: float, left_alone: bool) -> None:
    faults: RecentFaults[str] = RecentFaults()
    faults.note("a", 10.0)
    assert faults.is_left_alone("a", now) is left_alone
    assert not faults.is_left_alone("b", now)


def test_any_number_of_faults_takes_no_more_room_and_the_last_ones_stay() -> None:
    faults: RecentFaults[int] = RecentFaults()
    faults.note(0)
    for number in range(1, MOST_REMEMBERED + 1):
        if number == MOST_REMEMBERED:
            assert faults.note(0)
        faults.note(number)
    assert len(faults) == MOST_REMEMBERED
    assert 0 in faults
    assert 1 not in faults
    assert MOST_REMEMBERED in faults
