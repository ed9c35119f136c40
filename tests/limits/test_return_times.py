"""Clients that a limit refused together do not get one second; each gets the same one again."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.config import Counts, Identity, LimitConfig, Rate, ResourcesConfig, WhenValkeyIsDown
from elemta.errors import StoreUnavailable
from elemta.limits import Charge, Limiter, LimitRefusal, LocalStore, rules_from_config
from elemta.limits.explaining_limiter import ExplainingLimiter
from elemta.limits.return_times import CLIENTS_A_SECOND, LONGEST_SPREAD, MAX_PROMISES, SHORTEST_SPREAD
from elemta.policy import limit_verdict
from elemta.stage import Stage
from tests.support.limit_subjects import Session, Transaction

CROWD = 1000


class DownStore(LocalStore):
    def acquire(self, *_arguments: object) -> Any:
        raise StoreUnavailable("the breaker is open")


def limiter(
    clock: Clock, *per: Identity, rate: Rate, counts: Counts = Counts.MESSAGES, store: Any = None, **more: Any
) -> Limiter:
    limit = LimitConfig(name="crowded", per=per, counts=counts, rates=(rate,), **more)
    resources = ResourcesConfig(max_requests_per_window=0, max_connections_per_ip=1000)
    return Limiter(rules_from_config(resources, [limit]), LocalStore(clock) if store is None else store)


def client(number: int) -> Session:
    return Session(ip_address(0x0A000000 + number))


def ask(one: Limiter, session: Session, transaction: Transaction | None = None) -> LimitRefusal | None:
    stage = Stage.CONNECT if transaction is None else Stage.MAIL
    charge = one.charge(stage, session, transaction)
    assert isinstance(charge, Charge)
    return charge.refusal


def refusal(one: Limiter, session: Session, transaction: Transaction | None = None) -> LimitRefusal:
    refused = ask(one, session, transaction)
    assert refused is not None
    return refused


def seconds(refused: LimitRefusal, stage: Stage = Stage.MAIL) -> int:
    """What the reply says."""
    found = re.search(r"try again in (\d+) seconds?$", getattr(limit_verdict(refused, stage), "text", ""))
    assert found is not None
    return int(found[1])


def crowd(one: Limiter, clients: int = CROWD) -> list[tuple[Session, LimitRefusal]]:
    found = []
    for number in range(clients):
        session = client(number)
        found.append((session, refusal(one, session, Transaction())))
    return found


@pytest.mark.parametrize(
    ("rate", "most"),
    [
        (Rate(1, 1.0), CROWD / SHORTEST_SPREAD),
        (Rate(3, 60.0), CROWD / SHORTEST_SPREAD),
        (Rate(100, 60.0), CROWD / SHORTEST_SPREAD),
        (Rate(1000, 3600.0), CLIENTS_A_SECOND),
        (Rate(5, 86400.0), CLIENTS_A_SECOND),
        # A limit that passes 20 a second can hear 20 a second.
        (Rate(1200, 60.0), 20),
    ],
)
def test_a_crowd_that_one_count_refuses_is_spread(rate: Rate, most: float) -> None:
    clock = Clock()
    one = limiter(clock, rate=rate)
    for _ in range(rate.limit):
        assert ask(one, client(CROWD), Transaction()) is None
    refused = [each for _, each in crowd(one)]
    told = [seconds(each) for each in refused]
    exact = {each.retry_after for each in refused}
    assert len(exact) == 1
    assert min(told) == math.ceil(exact.pop())
    assert max(Counter(told).values()) <= math.ceil(most) + CLIENTS_A_SECOND
    assert max(told) - min(told) <= LONGEST_SPREAD


def test_a_crowd_of_identities_of_one_limit_is_spread_too() -> None:
    """Each has a count of its own, and all counts were filled in the same second."""
    clock = Clock()
    one = limiter(clock, Identity.IP, rate=Rate(1, 60.0))
    for number in range(CROWD):
        assert ask(one, client(number), Transaction()) is None
    told = [seconds(each) for _, each in crowd(one)]
    assert min(told) == 60
    assert max(Counter(told).values()) <= 2 * CLIENTS_A_SECOND + 1


@pytest.mark.parametrize("alone", [1, CLIENTS_A_SECOND])
def test_a_few_clients_are_told_the_exact_time(alone: int) -> None:
    clock = Clock()
    one = limiter(clock, rate=Rate(1, 60.0))
    assert ask(one, client(0), Transaction()) is None
    clock.advance(17.5)
    for _ in range(50):
        assert {seconds(each) for _, each in crowd(one, alone)} == {43}


def test_a_client_is_told_the_same_time_until_then_and_may_come_at_it() -> None:
    clock = Clock()
    one = limiter(clock, rate=Rate(1, 60.0))
    assert ask(one, client(0), Transaction()) is None
    first = {session.client_ip: seconds(refused) for session, refused in crowd(one, 300)}
    assert len(set(first.values())) == 30
    dice = random.Random(15)
    for _ in range(6):
        clock.advance(dice.uniform(0.1, 9.0))
        for session, refused in crowd(one, 300):
            due = first[session.client_ip] - clock.seconds()
            assert seconds(refused) == max(math.ceil(due - 1e-6), 1)
            # The exact time stays what it is, for callers that wait themselves.
            assert refused.retry_after == pytest.approx(60.0 - clock.seconds(), abs=1e-5)
    for _, refused in crowd(one, 300):
        assert seconds(refused) >= refused.retry_after


def test_a_time_is_never_earlier_than_the_limit_passes() -> None:
    """Charges meanwhile move the exact time; a client that got an earlier one gets another."""
    clock = Clock()
    one = limiter(clock, rate=Rate(20, 60.0))
    dice = random.Random(16)
    for _ in range(2000):
        clock.advance(dice.expovariate(2.0))
        refused = ask(one, client(dice.randrange(60)), Transaction())
        if refused is not None:
            assert refused.retry_after <= seconds(refused) <= refused.retry_after + SHORTEST_SPREAD + 1


def test_messages_of_one_client_are_spread_by_their_senders() -> None:
    clock = Clock()
    one = limiter(clock, rate=Rate(1, 3600.0))
    assert ask(one, client(0), Transaction()) is None
    told = [seconds(refusal(one, client(0), Transaction(Address(f"u{n}", "a.test")))) for n in range(CROWD)]
    assert max(Counter(told).values()) == CLIENTS_A_SECOND


def test_open_connections_are_told_the_same_wait_again() -> None:
    clock = Clock()
    one = limiter(clock, rate=Rate(1), counts=Counts.OPEN_CONNECTIONS)
    assert ask(one, client(CROWD)) is None
    first = [seconds(refusal(one, client(n)), Stage.CONNECT) for n in range(CROWD)]
    assert min(first) == 30
    assert max(Counter(first).values()) <= 2 * CLIENTS_A_SECOND
    clock.advance(5)
    assert [seconds(refusal(one, client(n)), Stage.CONNECT) for n in range(CROWD)] == first


def test_a_crowd_without_a_store_is_spread() -> None:
    clock = Clock()
    one = limiter(
        clock,
        rate=Rate(100, 60.0),
        store=DownStore(clock),
        when_valkey_is_down=WhenValkeyIsDown.DEFER,
    )
    told = [seconds(each) for _, each in crowd(one)]
    assert min(told) == 10
    assert max(Counter(told).values()) <= 2 * CLIENTS_A_SECOND


def test_what_is_remembered_is_bounded_and_a_flood_still_spreads() -> None:
    clock = Clock()
    one = limiter(clock, rate=Rate(1, 60.0))
    assert ask(one, client(0), Transaction()) is None
    clients = 2 * MAX_PROMISES
    told = [seconds(each) for _, each in crowd(one, clients)]
    assert len(one.return_times) == MAX_PROMISES
    even = clients / (SHORTEST_SPREAD + 1)
    assert max(Counter(told).values()) <= even + CLIENTS_A_SECOND


def test_what_explains_says_what_the_client_was_told_and_promises_nothing() -> None:
    clock = Clock()
    store = LocalStore(clock)
    one = limiter(clock, rate=Rate(1, 60.0), store=store)
    assert ask(one, client(0), Transaction()) is None
    session, refused = crowd(one, 100)[-1]
    explained = ExplainingLimiter(one, store)
    charge = explained.charge(Stage.MAIL, session, Transaction())
    assert isinstance(charge, Charge)
    assert charge.refusal is not None
    assert seconds(charge.refusal) == seconds(refused) > 60
    for number in range(100, 200):
        explained.charge(Stage.MAIL, client(number), Transaction())
    assert seconds(refusal(one, client(200), Transaction())) == seconds(refused) + 1
