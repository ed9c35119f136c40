"""The limiter over a real store in memory, over one that answers later, and over one that does not answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from zope.interface import implementer

from elemta.address import Address
from elemta.config import (
    Counts,
    Identity,
    LimitConfig,
    Mode,
    OnExceed,
    Rate,
    ResourcesConfig,
    WhenValkeyIsDown,
)
from elemta.envelope import Recipient
from elemta.errors import StoreUnavailable
from elemta.limits import Charge, Limiter, LocalStore, RefusalCause, rules_from_config
from elemta.limits.refusals import LEASE_REMEMBERED, LOG_INTERVAL, RETURNABLE_REMEMBERED, RememberedRefusals
from elemta.limits.rules import Subject
from elemta.limits.store import Decision, ILimitStore, LimitSpec, Request, Usage
from elemta.metrics import LimitMetrics
from elemta.smtp.events import Stage
from tests.support.limit_subjects import Session, Transaction
from tests.support.metrics import record


class Counted(LimitMetrics):
    def __init__(self) -> None:
        super().__init__()
        self.seen = record(self, "checks")


class CountingStore(LocalStore):
    """How often it was asked."""

    asked = 0

    def acquire(self, requests: Sequence[Request]) -> Decision:
        self.asked += 1
        return super().acquire(requests)


@implementer(ILimitStore)
class LateStore:
    """A real store whose answers come later, or not at all: what a store across a network does."""

    renewal = None

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.pending: list[Callable[[], None]] = []
        self.down = False

    def seconds(self) -> float:
        return self._store.seconds()

    def __getattr__(self, name: str) -> Any:
        def later(*arguments: Any) -> Deferred[Any]:
            if self.down:
                return fail(StoreUnavailable("no answer within its deadline"))
            answer: Deferred[Any] = Deferred()
            self.pending.append(lambda: answer.callback(getattr(self._store, name)(*arguments)))
            return answer

        return later

    def deliver(self) -> None:
        pending, self.pending = self.pending, []
        for each in pending:
            each()


class DownStore(LocalStore):
    """Knows at once that there is no answer to be had, as an open breaker does."""

    def acquire(self, requests: Sequence[Request]) -> Decision:
        raise StoreUnavailable("the breaker is open")

    peek = refund = release = acquire  # type: ignore[assignment]


def limit(
    name: str, counts: Counts, *per: Identity, rates: Sequence[str] = ("2/1m",), **more: Any
) -> LimitConfig:
    numbers = [rate.split("/") for rate in rates]
    units = {"1s": 1.0, "10s": 10.0, "1m": 60.0, "1h": 3600.0}
    made = tuple(Rate(int(one[0]), units[one[1]] if len(one) > 1 else None) for one in numbers)
    return LimitConfig(name=name, per=per, counts=counts, rates=made, **more)


def limiter(clock: Clock, *limits: LimitConfig, store: Any = None, metrics: Counted | None = None) -> Limiter:
    rules = rules_from_config(ResourcesConfig(max_requests_per_window=0, max_connections_per_ip=1000), limits)
    return Limiter(rules, LocalStore(clock) if store is None else store, metrics)


def usages(one: Limiter, store: LocalStore) -> dict[str, Usage]:
    """How full the limits of MAIL are for a message."""
    subject = Subject(Session(), Transaction())
    asked = [request for rule in one.rules if rule.stage is Stage.MAIL for request in rule.requests(subject)]
    return {usage.request.spec.name: usage for usage in store.peek(asked)}


def now(answer: Charge | Deferred[Charge]) -> Charge:
    assert isinstance(answer, Charge)
    return answer


def test_connections_over_the_rate_are_refused_with_name_and_exact_time() -> None:
    clock = Clock()
    one = Limiter(rules_from_config(ResourcesConfig(max_requests_per_window=3), []), LocalStore(clock))
    for _ in range(3):
        assert now(one.charge(Stage.CONNECT, Session())).refusal is None
        clock.advance(5)
    refusal = now(one.charge(Stage.CONNECT, Session())).refusal
    assert refusal is not None
    assert (refusal.limit, refusal.action, refusal.retry_after) == ("ip", OnExceed.DEFER, 45.0)
    assert refusal.identity == "192.0.2.1"
    assert now(one.charge(Stage.CONNECT, Session(ip_address("192.0.2.2")))).refusal is None
    clock.advance(44.999999)
    assert now(one.charge(Stage.CONNECT, Session())).refusal is not None
    clock.advance(0.000001)
    assert now(one.charge(Stage.CONNECT, Session())).refusal is None


def test_a_stage_that_no_limit_is_for_is_answered_at_once() -> None:
    one = limiter(Clock(), limit("m", Counts.MESSAGES))
    assert not one.charges(Stage.RCPT)
    assert now(one.charge(Stage.RCPT, Session(), Transaction())) == Charge()


def test_a_refused_charge_of_several_limits_charges_none() -> None:
    clock = Clock()
    store = LocalStore(clock)
    limits = limit("wide", Counts.MESSAGES, rates=["9/1m"]), limit("narrow", Counts.MESSAGES, Identity.IP)
    one = limiter(clock, *limits, store=store)
    for _ in range(1000):
        one.charge(Stage.MAIL, Session(), Transaction())
    assert usages(one, store)["wide"].used == (2,)


def test_the_refusal_is_of_the_limit_that_takes_longest() -> None:
    one = limiter(
        Clock(),
        limit("hour", Counts.MESSAGES, rates=["1/1h"], on_exceed=OnExceed.REJECT),
        limit("minute", Counts.MESSAGES, rates=["1/1m"]),
    )
    one.charge(Stage.MAIL, Session(), Transaction())
    refusal = now(one.charge(Stage.MAIL, Session(), Transaction())).refusal
    assert refusal is not None
    assert (refusal.limit, refusal.action, refusal.retry_after) == ("hour", OnExceed.REJECT, 3600.0)


def test_a_refund_makes_room_also_for_one_who_was_refused() -> None:
    one = limiter(Clock(), limit("m", Counts.MESSAGES, rates=["1/1m"]))
    first = now(one.charge(Stage.MAIL, Session(), Transaction()))
    assert now(one.charge(Stage.MAIL, Session(), Transaction())).refusal is not None
    one.refund(first.receipts)
    assert now(one.charge(Stage.MAIL, Session(), Transaction())).refusal is None


@pytest.mark.parametrize(
    ("counts", "stage", "questions"),
    [
        pytest.param(Counts.CONNECTIONS, Stage.CONNECT, 1, id="what is never given back"),
        # One a second, in 50 s.
        pytest.param(Counts.MESSAGES, Stage.MAIL, 50, id="what may be given back"),
    ],
)
def test_a_refused_flood_costs_the_store_next_to_nothing(
    counts: Counts, stage: Stage, questions: int
) -> None:
    clock = Clock()
    store = CountingStore(clock)
    one = limiter(clock, limit("m", counts, rates=["1/1m"]), store=store)
    for _ in range(5000):
        clock.advance(0.01)
        one.charge(stage, Session(), Transaction())
    assert store.asked - 1 <= questions
    refusal = now(one.charge(stage, Session(), Transaction())).refusal
    assert refusal is not None
    assert refusal.retry_after == pytest.approx(60 - 49.99)
    clock.advance(refusal.retry_after)
    assert now(one.charge(stage, Session(), Transaction())).refusal is None


def test_a_smaller_amount_is_asked_about_though_a_larger_one_was_refused() -> None:
    one = limiter(Clock(), limit("b", Counts.BYTES, rates=["1000/1m"]))
    assert now(one.charge(Stage.MESSAGE, Session(), Transaction(size=600))).refusal is None
    assert now(one.charge(Stage.MESSAGE, Session(), Transaction(size=500))).refusal is not None
    assert now(one.charge(Stage.MESSAGE, Session(), Transaction(size=400))).refusal is None


def test_what_can_never_pass_is_told_so_though_something_smaller_was_refused_for_now() -> None:
    one = limiter(Clock(), limit("b", Counts.BYTES, rates=["1000/1m"]))
    one.charge(Stage.MESSAGE, Session(), Transaction(size=600))
    deferred = now(one.charge(Stage.MESSAGE, Session(), Transaction(size=500))).refusal
    refused = now(one.charge(Stage.MESSAGE, Session(), Transaction(size=1001))).refusal
    assert deferred is not None
    assert refused is not None
    assert (deferred.cause, refused.cause) == (RefusalCause.EXCEEDED, RefusalCause.IMPOSSIBLE)


def test_a_refusal_that_will_be_asked_once_more_is_a_delay_and_else_a_refusal() -> None:
    counted = Counted()
    one = limiter(
        Clock(),
        limit("slow", Counts.MESSAGES, rates=["1/1m"], on_exceed=OnExceed.DELAY),
        limit("hard", Counts.RECIPIENTS, rates=["1/1m"]),
        metrics=counted,
    )
    to = Recipient(Address("a", "example.com"))
    for stage in (Stage.MAIL, Stage.RCPT):
        for may_delay in (True, True, False):
            one.charge(stage, Session(), Transaction(), to, may_delay=may_delay)
    assert counted.seen == [
        ("slow", "admitted"),
        ("slow", "delayed"),
        ("slow", "refused"),
        ("hard", "admitted"),
        ("hard", "refused"),
        ("hard", "refused"),
    ]


def test_an_amount_above_the_limit_is_told_apart() -> None:
    one = limiter(Clock(), limit("b", Counts.BYTES, rates=["1000/1m"]))
    refusal = now(one.charge(Stage.MESSAGE, Session(), Transaction(size=1001))).refusal
    assert refusal is not None
    assert (refusal.cause, refusal.retry_after) == (RefusalCause.IMPOSSIBLE, math.inf)


def test_a_reset_clears_the_count_and_the_memory_of_the_refusal() -> None:
    one = limiter(Clock(), limit("m", Counts.MESSAGES, Identity.IP, rates=["1/1m"]))
    for _ in range(3):
        one.charge(Stage.MAIL, Session(), Transaction())
    assert [each.identity for each in one.refused()] == ["192.0.2.1"]
    assert one.reset("m", "192.0.2.1") is True
    assert now(one.charge(Stage.MAIL, Session(), Transaction())).refusal is None


def test_what_is_counted_once_is_not_charged_again_for_the_same_key() -> None:
    one = limiter(
        Clock(),
        limit("per-domain", Counts.MESSAGES, Identity.RECIPIENT_DOMAIN),
        limit("rcpt", Counts.RECIPIENTS, Identity.IP, rates=["9/1m"]),
    )
    to = Recipient(Address("a", "example.com"))
    first = now(one.charge(Stage.RCPT, Session(), Transaction(), to))
    already = {receipt.request.key for receipt in first.receipts}
    again = now(one.charge(Stage.RCPT, Session(), Transaction(), to, already=already))
    assert [receipt.request.spec.name for receipt in again.receipts] == ["rcpt"]
    assert [request.key for request in again.covered] == ["per-domain:example.com"]


def test_leases_are_released_and_rates_stay() -> None:
    clock = Clock()
    rules = rules_from_config(ResourcesConfig(max_connections_per_ip=2, max_requests_per_window=3), [])
    one = Limiter(rules, LocalStore(clock))
    charges = [now(one.charge(Stage.CONNECT, Session())) for _ in range(2)]
    refusal = now(one.charge(Stage.CONNECT, Session())).refusal
    assert refusal is not None
    assert refusal.limit == "connections-per-ip"
    one.release(charges[0].receipts)
    one.release(charges[0].receipts)
    assert now(one.charge(Stage.CONNECT, Session())).refusal is None
    one.release(charges[1].receipts)
    refusal = now(one.charge(Stage.CONNECT, Session())).refusal
    assert refusal is not None
    assert refusal.limit == "ip"


def test_a_flood_over_open_connections_asks_rarely_and_at_once_when_one_closes_here() -> None:
    clock = Clock()

    class Counting(LocalStore):
        asked = 0

        def acquire(self, requests: Sequence[Request]) -> Decision:
            self.asked += 1
            return super().acquire(requests)

    store = Counting(clock)
    rules = rules_from_config(ResourcesConfig(max_connections_per_ip=1, max_requests_per_window=0), [])
    one, other = Limiter(rules, store), Limiter(rules, store)
    here = now(one.charge(Stage.CONNECT, Session()))
    for _ in range(100):
        assert now(one.charge(Stage.CONNECT, Session())).refusal is not None
        clock.advance(0.005)
    assert store.asked <= 1 + 6
    assert now(one.charge(Stage.CONNECT, Session())).refusal is not None
    one.release(here.receipts)
    there = now(one.charge(Stage.CONNECT, Session()))
    assert there.refusal is None
    assert now(one.charge(Stage.CONNECT, Session())).refusal is not None
    other.release(there.receipts)
    clock.advance(LEASE_REMEMBERED)
    assert now(one.charge(Stage.CONNECT, Session())).refusal is None


def test_an_observed_limit_refuses_nothing_and_is_logged_now_and_then() -> None:
    clock, counted = Clock(), Counted()
    one = limiter(clock, limit("w", Counts.MESSAGES, rates=["1/1h"], mode=Mode.OBSERVE), metrics=counted)
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        for _ in range(50):
            assert now(one.charge(Stage.MAIL, Session(), Transaction())).refusal is None
        clock.advance(LOG_INTERVAL)
        one.charge(Stage.MAIL, Session(), Transaction())
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert counted.seen == [("w", "admitted"), *[("w", "observed")] * 50]
    told = [event for event in events if event.get("event") == "limit.observed"]
    assert [event["others_since"] for event in told] == [0, 48]
    assert told[0]["limit"] == "w"


def test_every_check_is_counted() -> None:
    counted = Counted()
    one = limiter(Clock(), limit("m", Counts.MESSAGES, rates=["1/1m"]), metrics=counted)
    for _ in range(3):
        one.charge(Stage.MAIL, Session(), Transaction())
    assert counted.seen == [("m", "admitted"), ("m", "refused"), ("m", "refused")]


def test_failed_logins_are_counted_and_then_further_attempts_refused() -> None:
    clock = Clock()
    one = limiter(
        clock,
        limit("per-ip", Counts.AUTH_FAILURES, Identity.IP, rates=["3/1m"]),
        limit("per-user", Counts.AUTH_FAILURES, Identity.USER, rates=["2/1m"]),
    )
    for _ in range(2):
        assert now(one.charge_login(Session(), "Bob")).refusal is None
    refusal = now(one.charge_login(Session(), "BOB")).refusal
    assert refusal is not None
    assert (refusal.limit, refusal.retry_after) == ("per-user", 60.0)
    assert now(one.charge_login(Session(), "carol")).refusal is None
    refusal = now(one.charge_login(Session(), "carol")).refusal
    assert refusal is not None
    assert refusal.limit == "per-ip"
    clock.advance(60)
    assert now(one.charge_login(Session(), "bob")).refusal is None


def test_good_logins_are_no_failures_and_attempts_under_way_may_be_some() -> None:
    clock = Clock()
    one = limiter(clock, limit("guesses", Counts.AUTH_FAILURES, Identity.IP, rates=["3/1m"]))
    for _ in range(20):
        one.refund(now(one.charge_login(Session(), "bob")).receipts)
    under_way = [now(one.charge_login(Session(), "bob")) for _ in range(5)]
    assert [attempt.refusal is None for attempt in under_way] == [True] * 3 + [False] * 2
    one.refund(under_way[0].receipts)
    assert now(one.charge_login(Session(), "bob")).refusal is None


def test_a_refused_login_is_asked_about_again_after_a_second_because_others_may_prove_good() -> None:
    clock = Clock()
    store = CountingStore(clock)
    one = limiter(clock, limit("guesses", Counts.AUTH_FAILURES, Identity.IP, rates=["1/1h"]), store=store)
    other = limiter(clock, limit("guesses", Counts.AUTH_FAILURES, Identity.IP, rates=["1/1h"]), store=store)
    under_way = now(one.charge_login(Session(), "bob"))
    for _ in range(100):
        assert now(other.charge_login(Session(), "bob")).refusal is not None
    assert store.asked == 2
    assert [refused.seconds for refused in other.refused()] == [3600.0]
    one.refund(under_way.receipts)
    clock.advance(RETURNABLE_REMEMBERED)
    assert now(other.charge_login(Session(), "bob")).refusal is None


def test_an_observed_limit_of_failed_logins_refuses_none() -> None:
    one = limiter(Clock(), limit("w", Counts.AUTH_FAILURES, rates=["1/1m"], mode=Mode.OBSERVE))
    for _ in range(3):
        assert now(one.charge_login(Session(), "bob")).refusal is None


def test_who_is_refused_can_be_seen_also_where_it_may_end_any_moment() -> None:
    clock = Clock()
    one = limiter(
        clock,
        limit("m", Counts.MESSAGES, Identity.SENDER, rates=["1/1m"]),
        limit("open", Counts.OPEN_CONNECTIONS, Identity.IP, rates=["1"]),
    )
    for _ in range(2):
        one.charge(Stage.MAIL, Session(), Transaction())
        clock.advance(1)
        first = one.charge(Stage.CONNECT, Session())
    shown = [(refused.limit, refused.identity, refused.seconds) for refused in one.refused()]
    assert shown == [("open", "192.0.2.1", 30.0), ("m", "jane@example.org", 58.0)]
    assert [refused.limit for refused in one.refused(1)] == ["open"]
    clock.advance(58)
    assert one.refused() == ()
    assert now(first).refusal is not None


def test_a_reset_elsewhere_is_asked_about_anew() -> None:
    clock = Clock()
    one = limiter(clock, limit("m", Counts.MESSAGES, Identity.SENDER, rates=["1/1m"]))
    for _ in range(2):
        one.charge(Stage.MAIL, Session(), Transaction())
    one.forget("m", "jane@example.org")
    assert one.refused() == ()


def test_a_store_that_answers_later_gives_the_same_answers_later() -> None:
    clock, counted = Clock(), Counted()
    counted_in = LocalStore(clock)
    store = LateStore(counted_in)
    one = limiter(clock, limit("m", Counts.MESSAGES, rates=["1/1m"]), store=store, metrics=counted)
    got: list[Charge] = []
    for _ in range(2):
        answer = one.charge(Stage.MAIL, Session(), Transaction())
        assert isinstance(answer, Deferred)
        answer.addCallback(got.append)
    assert got == []
    clock.advance(0.01)
    store.deliver()
    assert [charge.refusal is None for charge in got] == [True, False]
    refused = one.charge(Stage.MAIL, Session(), Transaction())
    assert isinstance(refused, Charge)  # remembered: the store is not asked
    assert refused.refusal is not None
    given_back = one.refund(got[0].receipts)
    assert isinstance(given_back, Deferred)
    store.deliver()
    again = one.charge(Stage.MAIL, Session(), Transaction())
    assert isinstance(again, Deferred)
    store.deliver()
    assert usages(one, counted_in)["m"].used == (1,)


def test_what_another_node_gives_back_is_noticed_within_a_second() -> None:
    clock = Clock()
    store = LocalStore(clock)
    held, mine = (limiter(clock, limit("m", Counts.MESSAGES, rates=["1/1h"]), store=store) for _ in range(2))
    charge = held.charge(Stage.MAIL, Session(), Transaction())
    assert isinstance(charge, Charge)
    refused = mine.charge(Stage.MAIL, Session(), Transaction())
    assert isinstance(refused, Charge)
    assert refused.refusal is not None
    assert len(mine.refused()) == 1
    held.refund(charge.receipts)
    clock.advance(RETURNABLE_REMEMBERED)
    passed = mine.charge(Stage.MAIL, Session(), Transaction())
    assert isinstance(passed, Charge)
    assert passed.refusal is None
    assert mine.refused() == ()


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("words", list(WhenValkeyIsDown))
def test_without_its_store_a_limit_does_what_it_was_told(words: WhenValkeyIsDown, at_once: bool) -> None:
    clock, counted = Clock(), Counted()
    late = LateStore(LocalStore(clock))
    late.down = True
    store = DownStore(clock) if at_once else late
    one = limiter(
        clock,
        limit("m", Counts.MESSAGES, when_valkey_is_down=words, on_exceed=OnExceed.REJECT),
        limit("a", Counts.AUTH_FAILURES, when_valkey_is_down=words),
        store=store,
        metrics=counted,
    )
    got: list[Any] = []
    for answer in (one.charge(Stage.MAIL, Session(), Transaction()), one.charge_login(Session(), "bob")):
        answer.addCallback(got.append) if isinstance(answer, Deferred) else got.append(answer)
    charge, login = got
    assert charge.receipts == ()
    assert counted.seen == [("m", "error"), ("a", "error")]
    if words is WhenValkeyIsDown.DEFER:
        assert (charge.refusal.limit, charge.refusal.action, charge.refusal.cause) == (
            "m",
            OnExceed.DEFER,
            RefusalCause.UNAVAILABLE,
        )
        assert login.refusal.cause is RefusalCause.UNAVAILABLE
    else:
        assert charge.refusal is None
        assert login.refusal is None


def test_an_error_that_is_not_the_stores_absence_is_not_hidden() -> None:
    class BrokenStore(LocalStore):
        def acquire(self, requests: Sequence[Request]) -> Decision:
            raise ZeroDivisionError

    one = limiter(Clock(), limit("m", Counts.MESSAGES), store=BrokenStore(Clock()))
    with pytest.raises(ZeroDivisionError):
        one.charge(Stage.MAIL, Session(), Transaction())


def test_remembered_refusals_are_bounded_and_the_oldest_is_forgotten() -> None:
    refusals = RememberedRefusals(capacity=3)
    terms = LimitSpec("r")
    for number in range(10):
        refusals.remember(Request(terms, str(number)), until=100.0)
    assert len(refusals) == 3
    assert refusals.wait(Request(terms, "6"), now=1.0) == 0
    assert refusals.wait(Request(terms, "9"), now=1.0) == 99.0
    assert refusals.wait(Request(terms, "9"), now=100.0) == 0
    assert len(refusals) == 2
