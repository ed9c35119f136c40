"""Leases are renewed for as long as the daemon runs, whatever one renewal comes to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from elemta.deferred_value import MaybeDeferred
from elemta.errors import StoreUnavailable
from elemta.limits.lease_renewal import LeaseRenewal


def raise_unavailable() -> None:
    raise StoreUnavailable("away")


def raise_nonsense() -> None:
    raise ZeroDivisionError("never thought of")


class Leases:
    def __init__(self, renewal: float | None, outcome: Callable[[], MaybeDeferred[None]]) -> None:
        self.renewal, self.outcome, self.times = renewal, outcome, 0

    def renew(self) -> MaybeDeferred[None]:
        self.times += 1
        return self.outcome()


@pytest.mark.parametrize(
    ("outcome", "is_logged"),
    [
        (lambda: None, False),
        (lambda: succeed(None), False),
        (raise_unavailable, False),
        (lambda: fail(StoreUnavailable("away")), False),
        (raise_nonsense, True),
        (lambda: fail(ZeroDivisionError("never thought of")), True),
    ],
)
def test_the_next_renewal_comes_whatever_became_of_the_last(
    outcome: Callable[[], MaybeDeferred[None]], is_logged: bool
) -> None:
    clock, leases = Clock(), Leases(5.0, outcome)
    renewal = LeaseRenewal(clock, leases)
    renewal.start()
    assert leases.times == 0
    with capturedLogs() as records:
        clock.pump([5.0] * 4)
    assert leases.times == 4
    renewal.stop()
    assert clock.getDelayedCalls() == []
    assert [record["event"] for record in records] == (["limits.not_renewed"] * 4 if is_logged else [])


def test_a_renewal_under_way_is_waited_for() -> None:
    slow: Deferred[None] = Deferred()
    clock, leases = Clock(), Leases(5.0, lambda: slow)
    renewal = LeaseRenewal(clock, leases)
    renewal.start()
    clock.pump([5.0] * 4)
    assert leases.times == 1
    slow.callback(None)
    clock.advance(5.0)
    assert leases.times == 2


def test_a_store_that_needs_no_renewal_is_left_alone() -> None:
    clock, leases = Clock(), Leases(None, lambda: None)
    renewal = LeaseRenewal(clock, leases)
    renewal.start()
    assert clock.getDelayedCalls() == []
    renewal.stop()
