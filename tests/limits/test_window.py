"""The reference model against its own definition, under any sequence of times and amounts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.limits.window import LOG_LIMIT, SUB_BUCKETS, Bound, WindowCounter

MINUTE = 60_000_000

steps = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 4)), min_size=1, max_size=150
)  # how far time goes on, and how much is asked for


@dataclass
class Admitted:
    """What was charged and not given back, as an outsider would write it down."""

    at: int
    amount: int


def worst_window(admissions: list[Admitted], window: int) -> int:
    """The largest sum in any half-open interval of this length; the worst begins at an admission."""
    return max(
        (
            sum(other.amount for other in admissions if first.at <= other.at < first.at + window)
            for first in admissions
        ),
        default=0,
    )


def run(bounds: tuple[Bound, ...], sequence: list[tuple[int, int]], start: int = 10**15) -> list[Admitted]:
    counter, now, admissions = WindowCounter(bounds), start, []
    for step, amount in sequence:
        now += step
        if counter.earliest(now, amount) == now:
            counter.charge(now, amount)
            admissions.append(Admitted(now, amount))
    return admissions


@st.composite
def some_bounds(draw: st.DrawFn) -> tuple[Bound, ...]:
    """One to three bounds, on the log's grid or in sub-buckets of a width that rarely divides the window."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        limit, window = draw(st.integers(1, 12)), draw(st.integers(1, 3000))
        made.append(Bound.of(limit, window, weighted=draw(st.booleans())))
    return tuple(made)


@given(bounds=some_bounds(), sequence=steps)
def test_no_rolling_window_admits_more_than_any_of_its_limits(
    bounds: tuple[Bound, ...], sequence: list[tuple[int, int]]
) -> None:
    admissions = run(bounds, sequence)
    for bound in bounds:
        assert worst_window(admissions, bound.window) <= bound.limit


@given(sequence=steps, limit=st.integers(1, 12), window=st.integers(1, 3000))
def test_the_exact_log_refuses_only_what_a_rolling_window_would(
    sequence: list[tuple[int, int]], limit: int, window: int
) -> None:
    counter, now, admissions = WindowCounter((Bound.of(limit, window),)), 10**15, []
    for step, amount in sequence:
        now += step
        counted = sum(one.amount for one in admissions if one.at > now - window)
        passes = counter.earliest(now, amount) == now
        assert passes == (counted + amount <= limit)
        if passes:
            counter.charge(now, amount)
            admissions.append(Admitted(now, amount))


@given(sequence=steps, limit=st.integers(1, 12), window=st.integers(60, 6000))
def test_sub_buckets_refuse_nothing_that_a_window_longer_by_one_sub_bucket_would_admit(
    sequence: list[tuple[int, int]], limit: int, window: int
) -> None:
    bound = Bound.of(limit, window, weighted=True)
    counter, now, admissions = WindowCounter((bound,)), 10**15, []
    for step, amount in sequence:
        now += step
        counted = sum(one.amount for one in admissions if one.at > now - window - bound.grain)
        passes = counter.earliest(now, amount) == now
        if counted + amount <= limit:
            assert passes
        if passes:
            counter.charge(now, amount)
            admissions.append(Admitted(now, amount))


@given(bounds=some_bounds(), sequence=steps, amount=st.integers(1, 12))
def test_a_refusal_names_the_very_microsecond_at_which_the_same_charge_passes(
    bounds: tuple[Bound, ...], sequence: list[tuple[int, int]], amount: int
) -> None:
    counter, now = WindowCounter(bounds), 10**15
    for step, _ in sequence:
        now += step
        if counter.earliest(now, 1) == now:
            counter.charge(now, 1)
    passes = counter.earliest(now, amount)
    if amount > min(bound.limit for bound in bounds):
        assert passes is None
        return
    assert passes is not None
    if passes > now:
        assert counter.earliest(passes - 1, amount) == passes
    assert counter.earliest(passes, amount) == passes


@given(bounds=some_bounds(), before=steps, after=steps, step=st.integers(0, 4000))
def test_a_refund_leaves_the_counter_as_though_nothing_had_been_charged(
    bounds: tuple[Bound, ...], before: list[tuple[int, int]], after: list[tuple[int, int]], step: int
) -> None:
    charged, spared = WindowCounter(bounds), WindowCounter(bounds)
    now = 10**15
    for gone, amount in before:
        now += gone
        if spared.earliest(now, amount) == now:
            charged.charge(now, amount)
            spared.charge(now, amount)
    at = now
    charged.charge(at, 3)
    for gone, amount in after:
        now += gone
        charged.charge(now, amount)
        spared.charge(now, amount)
    now += step
    charged.used(now)
    charged.refund(at, 3)
    assert charged.used(now) == spared.used(now)


@given(
    sequence=st.lists(st.tuples(st.integers(-2000, 400), st.integers(1, 3)), max_size=120),
    bounds=some_bounds(),
)
def test_a_clock_that_goes_back_makes_charges_count_longer_and_never_shorter(
    bounds: tuple[Bound, ...], sequence: list[tuple[int, int]]
) -> None:
    """The clock's errors are steps back; what really passed is the sum of the steps on."""
    counter, shown, real, admissions = WindowCounter(bounds), 10**15, 0, []
    for step, amount in sequence:
        shown += step
        real += max(step, 0)
        if counter.earliest(shown, amount) == shown:
            counter.charge(shown, amount)
            admissions.append(Admitted(real, amount))
    for bound in bounds:
        assert worst_window(admissions, bound.window) <= bound.limit


@given(
    changes=st.lists(st.tuples(some_bounds(), steps), min_size=2, max_size=5), window=st.integers(50, 3000)
)
def test_a_change_of_the_numbers_carries_the_count_over(
    changes: list[tuple[tuple[Bound, ...], list[tuple[int, int]]]], window: int
) -> None:
    """After a change nothing passes that the new limit, looking back, forbids."""
    counter, now, admissions = WindowCounter(()), 10**15, []
    for drawn, sequence in changes:
        # Only a window that was counted before can be looked back over, so all have the same.
        bounds = tuple(Bound.of(one.limit, window, weighted=one.grain > 1) for one in drawn)
        counter.rebind(bounds)
        for step, amount in sequence:
            now += step
            if counter.earliest(now, amount) == now:
                counter.charge(now, amount)
                admissions.append(Admitted(now, amount))
                counted = sum(one.amount for one in admissions if one.at > now - window)
                assert counted <= min(bound.limit for bound in bounds)


def test_a_charge_counts_until_the_last_microsecond_of_its_window_and_not_at_its_end() -> None:
    counter = WindowCounter((Bound.of(1, MINUTE),))
    counter.charge(1_000_000, 1)
    assert counter.earliest(1_000_000 + MINUTE - 1, 1) == 1_000_000 + MINUTE
    assert counter.used(1_000_000 + MINUTE - 1) == (1,)
    assert counter.used(1_000_000 + MINUTE) == (0,)


@pytest.mark.parametrize(
    ("limit", "weighted", "grain"),
    [(LOG_LIMIT, False, 1), (LOG_LIMIT + 1, False, MINUTE // SUB_BUCKETS), (5, True, MINUTE // SUB_BUCKETS)],
)
def test_the_log_ends_at_128_and_amounts_always_go_to_sub_buckets(
    limit: int, weighted: bool, grain: int
) -> None:
    assert Bound.of(limit, MINUTE, weighted=weighted).grain == grain


@pytest.mark.parametrize(("before", "after"), [(128, 129), (129, 128)])
def test_a_limit_that_crosses_128_is_still_full_when_it_was_full(before: int, after: int) -> None:
    counter = WindowCounter((Bound.of(before, MINUTE),))
    now = 10**15
    for _ in range(before):
        counter.charge(now, 1)
        now += 1000
    counter.rebind((Bound.of(after, MINUTE),))
    assert counter.used(now) == (before,)
    spare = after - before
    if spare > 0:
        assert counter.earliest(now, spare) == now
    assert counter.earliest(now, spare + 1 if spare > 0 else 1) > now


def test_sub_buckets_never_keep_more_than_one_entry_each() -> None:
    bound = Bound.of(10**9, MINUTE)
    counter = WindowCounter((bound,))
    for now in range(10**15, 10**15 + 2 * MINUTE, MINUTE // 500):
        counter.charge(now, 7)
    (series,) = counter._series
    assert len(series._times) <= SUB_BUCKETS + 1


def test_an_amount_above_the_limit_never_passes_and_an_equal_one_does() -> None:
    counter = WindowCounter((Bound.of(1000, MINUTE, weighted=True),))
    assert counter.earliest(10**15, 1001) is None
    assert counter.earliest(10**15, 1000) == 10**15


def test_a_refund_after_its_expiry_takes_nothing_from_anybody() -> None:
    counter = WindowCounter((Bound.of(10, MINUTE, weighted=True),))
    at = 10**15
    counter.charge(at, 4)
    later = 10**15 + 2 * MINUTE
    counter.charge(later, 5)
    counter.refund(at, 4)
    assert counter.used(later) == (5,)


def test_several_rates_name_the_time_at_which_all_of_them_pass() -> None:
    counter = WindowCounter((Bound.of(2, 1_000_000), Bound.of(3, MINUTE)))
    for now in (0, 500_000, 1_500_000):
        assert counter.earliest(now, 1) == now
        counter.charge(now, 1)
    assert counter.earliest(1_600_000, 1) == MINUTE


def test_another_set_of_rates_looks_back_as_far_as_was_counted() -> None:
    counter = WindowCounter((Bound.of(9, 1_000_000), Bound.of(9, 60 * MINUTE), Bound.of(9, MINUTE)))
    for now in (0, 30_000_000, 90_000_000):
        counter.charge(now, 1)
    counter.rebind((Bound.of(5, MINUTE), Bound.of(7, 30 * MINUTE), Bound.of(6, 120 * MINUTE)))
    assert counter.used(90_000_001) == (1, 3, 3)
    assert counter.used(149_999_999) == (1, 3, 3)


def test_a_sub_bucket_counts_as_though_all_had_come_at_its_end() -> None:
    grain = MINUTE // SUB_BUCKETS
    counter = WindowCounter((Bound.of(500, MINUTE),))
    counter.charge(10 * grain + 1, 3)
    counter.charge(11 * grain, 4)
    counter.charge(11 * grain + 1, 5)
    assert counter.used(11 * grain + MINUTE - 1) == (12,)
    assert counter.used(11 * grain + MINUTE) == (5,)


def test_what_is_charged_after_a_step_back_expires_in_its_own_turn() -> None:
    counter = WindowCounter((Bound.of(9, MINUTE),))
    for at in (500, 600, 700, 100):
        counter.charge(at, 1)
    assert counter.used(MINUTE + 99) == (4,)
    assert counter.used(MINUTE + 100) == (3,)
    assert counter.used(MINUTE + 600) == (1,)
