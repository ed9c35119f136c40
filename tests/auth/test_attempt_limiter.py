"""Turns of attempts to log in: few of one user and of one network at once, the others in order."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from elemta.auth.attempt_limiter import AttemptLimiter, AttemptPermit
from elemta.errors import CredentialsUnavailable

NETWORK, OTHER = "192.0.2.0/24", "198.51.100.0/24"


def taken(turns: AttemptLimiter, user: str = "anna", network: str = NETWORK) -> AttemptPermit:
    """A turn that comes at once."""
    turn: list[AttemptPermit] = []
    turns.take(user, network).addCallback(turn.append)
    return turn[0]


def begun(waiting: list[Deferred[AttemptPermit]]) -> int:
    return sum(each.called for each in waiting)


def test_of_one_user_few_are_under_way_and_the_next_begins_when_one_ends() -> None:
    turns = AttemptLimiter(Clock(), per_user=2)
    first, _second = taken(turns), taken(turns)
    third, fourth = turns.take("anna", NETWORK), turns.take("anna", NETWORK)
    assert begun([third, fourth]) == 0
    taken(turns, "berta")
    taken(turns, "anna", OTHER)
    turns.end(first)
    assert (third.called, fourth.called) == (True, False)


def test_of_one_network_few_are_under_way_whatever_their_users_are_called() -> None:
    turns = AttemptLimiter(Clock(), per_network=3)
    running = [taken(turns, f"user{number}") for number in range(3)]
    waiting = [turns.take(f"other{number}", NETWORK) for number in range(4)]
    assert begun(waiting) == 0
    taken(turns, "user0", OTHER)
    for count, turn in enumerate(running, start=1):
        turns.end(turn)
        assert begun(waiting) == count


@ensureDeferred
async def test_one_that_waits_too_long_is_local_trouble_and_takes_no_place() -> None:
    clock = Clock()
    turns = AttemptLimiter(clock, per_user=1, longest_wait=10)
    turn = taken(turns)
    waiting = turns.take("anna", NETWORK)
    clock.advance(10)
    with pytest.raises(CredentialsUnavailable, match="in time"):
        await waiting
    turns.end(turn)
    assert len(turns) == 0
    assert clock.getDelayedCalls() == []


@ensureDeferred
async def test_one_that_leaves_the_line_is_passed_over() -> None:
    turns = AttemptLimiter(Clock(), per_user=1)
    turn = taken(turns)
    leaving, staying = turns.take("anna", NETWORK), turns.take("anna", NETWORK)
    leaving.cancel()
    with pytest.raises(CancelledError):
        await leaving
    turns.end(turn)
    assert staying.called


def test_only_so_many_wait() -> None:
    turns = AttemptLimiter(Clock(), per_user=1, waiting_per_network=2, waiting=3)
    for network in (NETWORK, OTHER):
        taken(turns, network=network)
    for _ in range(2):
        turns.take("anna", NETWORK)
    with pytest.raises(CredentialsUnavailable):
        turns.take("anna", NETWORK)
    turns.take("anna", OTHER)
    with pytest.raises(CredentialsUnavailable):
        turns.take("anna", OTHER)


def test_a_thousand_that_end_at_once_do_not_recurse() -> None:
    turns = AttemptLimiter(Clock(), per_user=1, waiting_per_network=2000, waiting=2000)
    first = taken(turns)
    waiting = [turns.take("anna", NETWORK).addCallback(turns.end) for _ in range(1500)]
    turns.end(first)
    assert begun(waiting) == 1500
    assert len(turns) == 0
