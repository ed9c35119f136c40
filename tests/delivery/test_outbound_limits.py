"""Outbound limits over a real limiter and store: which mail waits, how long, what is given back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from zope.interface import implementer

from elemta.address import NULL, Address
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
from elemta.delivery.outbound_limits import FREE, LOG_INTERVAL, LOOK_AGAIN, OutboundLimiter, Permit, Throttled
from elemta.envelope import Client, Envelope, Recipient
from elemta.errors import StoreUnavailable
from elemta.limits import ILimitStore, Limiter, LocalStore, rules_from_config
from elemta.limits.store import Decision, Receipt, Request
from elemta.metrics import LimitMetrics
from elemta.smtp.events import Stage
from tests.support.metrics import record

BIG = "big.example"
DESTINATION = (Identity.DESTINATION,)


def limit(
    *per: Identity, rates: tuple[Rate, ...] = (Rate(2, 60.0),), counts: Counts = Counts.MESSAGES, **more: Any
) -> LimitConfig:
    name = more.pop("name", "pace")
    return LimitConfig(name=name, per=per or DESTINATION, counts=counts, rates=rates, **more)


def connections(most: int, **more: Any) -> LimitConfig:
    return limit(counts=Counts.OPEN_CONNECTIONS, rates=(Rate(most),), **more)


def envelope(
    sender: str = "alice@example.org", *to: str, ip: str = "192.0.2.1", user: str | None = None
) -> Envelope:
    address = Address(*sender.split("@")) if sender else NULL
    recipients = tuple(Recipient(Address(*each.split("@"))) for each in to or (f"bob@{BIG}",))
    return Envelope("Q1", address, recipients, 0.0, 1000, client=Client(ip=ip, user=user))


class Node:
    """One node's pace; several can share a store."""

    def __init__(
        self, *limits: LimitConfig, clock: Clock | None = None, store: LocalStore | None = None
    ) -> None:
        self.clock = clock or Clock()
        self.store = store or LocalStore(self.clock)
        self.limiter = Limiter(rules_from_config(ResourcesConfig(), limits), self.store)
        self.pace = OutboundLimiter(self.limiter)

    def ask(self, destination: str = BIG, message: Envelope | None = None) -> Permit | Throttled:
        message = message or envelope()
        answer = self.pace.acquire(destination, message, message.recipients)
        assert not isinstance(answer, Deferred)
        return answer

    def go(self, destination: str = BIG, message: Envelope | None = None) -> Permit:
        answer = self.ask(destination, message)
        assert isinstance(answer, Permit)
        return answer

    def connect(self, destination: str = BIG) -> Permit | Throttled:
        answer = self.pace.connect(destination)
        assert not isinstance(answer, Deferred)
        return answer


def test_without_such_a_limit_everything_goes_and_the_store_is_not_asked() -> None:
    class Unasked(LocalStore):
        def acquire(self, requests: Sequence[Request]) -> Decision:
            raise AssertionError(f"asked for {requests}")

    clock = Clock()
    node = Node(limit(Identity.SENDER), clock=clock, store=Unasked(clock))
    assert node.ask() is FREE
    assert node.connect() is FREE
    assert node.pace.done(FREE, sent=False) is None


def test_who_is_over_the_limit_waits_exactly_as_long_as_it_takes() -> None:
    node = Node(limit())
    node.go()
    node.clock.advance(20)
    node.go()
    assert node.ask() == Throttled(40.0, "pace", whole_destination=True)
    node.clock.advance(39.999)
    assert isinstance(node.ask(), Throttled)
    node.clock.advance(0.001)
    node.go()


def test_other_destinations_have_counts_of_their_own_and_one_has_one_in_any_spelling() -> None:
    node = Node(limit())
    node.go("BIG.example.")
    node.go(BIG)
    assert isinstance(node.ask(), Throttled)
    node.go("small.example")
    node.go("bücher.example")
    node.go("xn--bcher-kva.example")
    assert isinstance(node.ask("BÜCHER.example"), Throttled)


def test_a_fleet_keeps_the_limit_together() -> None:
    clock = Clock()
    store = LocalStore(clock)
    nodes = [Node(limit(rates=(Rate(3, 60.0),)), clock=clock, store=store) for _ in range(3)]
    gone = [node.ask() for _ in range(4) for node in nodes]
    assert sum(isinstance(answer, Permit) for answer in gone) == 3


def test_what_never_left_is_given_back_and_what_left_is_not() -> None:
    node = Node(limit(rates=(Rate(1, 60.0),)))
    first = node.go()
    assert isinstance(node.ask(), Throttled)
    node.pace.done(first, sent=False)
    second = node.go()
    node.pace.done(second)
    assert isinstance(node.ask(), Throttled)
    node.pace.done(first, sent=False)
    assert isinstance(node.ask(), Throttled), "a receipt is good for one return"


def test_connections_count_until_they_are_closed() -> None:
    node = Node(connections(2))
    first, second = node.connect(), node.connect()
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    node.clock.advance(3600)
    assert node.connect() == Throttled(LOOK_AGAIN, "pace", whole_destination=True)
    node.pace.done(first)
    node.pace.done(first)
    assert isinstance(node.connect(), Permit)
    assert isinstance(node.connect(), Throttled)


def test_messages_and_connections_are_asked_for_apart() -> None:
    node = Node(connections(1, name="lines"), limit(name="messages", rates=(Rate(2, 60.0),)))
    assert isinstance(node.connect(), Permit)
    node.go()
    node.go()
    assert node.ask() == Throttled(60.0, "messages", whole_destination=True)
    assert node.connect() == Throttled(LOOK_AGAIN, "lines", whole_destination=True)


def test_a_message_is_charged_in_all_limits_or_in_none() -> None:
    node = Node(
        limit(name="each", rates=(Rate(1, 10.0),)),
        limit(Identity.DESTINATION, Identity.SENDER, name="sender", rates=(Rate(1, 100.0),)),
    )
    node.go()
    node.clock.advance(10)
    assert node.ask() == Throttled(90.0, "sender", whole_destination=False)
    node.go(message=envelope("carol@example.org"))


@pytest.mark.parametrize(
    ("identity", "one", "same", "other"),
    [
        (Identity.SENDER, envelope("a@b.example"), envelope("A@B.example"), envelope("c@b.example")),
        (Identity.SENDER, envelope(""), envelope(""), envelope("a@b.example")),
        (Identity.SENDER_DOMAIN, envelope("a@b.example"), envelope("c@b.example"), envelope("a@d.example")),
        (Identity.USER, envelope(user="jane"), envelope(user="Jane"), envelope(user="joe")),
        (
            Identity.RECIPIENT_DOMAIN,
            envelope("a@b.example", "x@one.example"),
            envelope("a@b.example", "x@two.example", "y@one.example"),
            envelope("a@b.example", "x@three.example"),
        ),
    ],
)
def test_a_destination_is_counted_together_with_what_is_known_on_the_way_out(
    identity: Identity, one: Envelope, same: Envelope, other: Envelope
) -> None:
    node = Node(limit(Identity.DESTINATION, identity, rates=(Rate(1, 60.0),)))
    node.go("relay.example:587", one)
    answer = node.ask("relay.example:587", same)
    assert isinstance(answer, Throttled)
    assert not answer.whole_destination
    node.go("relay.example:587", other)
    node.go("other.example:587", one)


def test_one_message_to_a_domain_is_one_however_many_recipients_it_has_there() -> None:
    per = (Identity.DESTINATION, Identity.RECIPIENT_DOMAIN)
    node = Node(limit(*per, rates=(Rate(2, 60.0),)))
    message = envelope("a@b.example", "x@one.example", "y@one.example", "x@two.example")
    assert len(node.go("relay.example", message).receipts) == 2
    node.go("relay.example", message)
    assert isinstance(node.ask("relay.example", message), Throttled)


def test_a_limit_per_user_is_not_for_mail_of_strangers() -> None:
    node = Node(limit(Identity.DESTINATION, Identity.USER, rates=(Rate(1, 60.0),)))
    assert [node.ask() for _ in range(3)] == [FREE] * 3


@pytest.mark.parametrize(
    ("exempt", "destination", "ip"),
    [
        (BIG, BIG, "192.0.2.1"),
        ("Relay.example:587", "relay.example:587", "192.0.2.1"),
        ("192.0.2.0/24", BIG, "192.0.2.77"),
        ("192.0.2.0/24", BIG, "::ffff:192.0.2.77"),
    ],
)
def test_who_is_exempt_does_not_wait(exempt: str, destination: str, ip: str) -> None:
    node = Node(limit(rates=(Rate(1, 60.0),), except_=(exempt,)))
    assert [node.ask(destination, envelope(ip=ip)) for _ in range(3)] == [FREE] * 3
    node.go("third.example", envelope(ip=""))
    assert isinstance(node.ask("third.example", envelope(ip="")), Throttled)


def test_an_observed_limit_lets_everything_go_and_counts_it() -> None:
    node = Node(limit(rates=(Rate(1, 60.0),), mode=Mode.OBSERVE))
    assert [isinstance(node.ask(), Permit) for _ in range(3)] == [True] * 3


def test_whatever_on_exceed_says_mail_only_waits() -> None:
    node = Node(limit(rates=(Rate(1, 60.0),), on_exceed=OnExceed.REJECT))
    node.go()
    assert isinstance(node.ask(), Throttled)


def test_a_limit_per_destination_is_charged_at_no_stage_of_a_conversation() -> None:
    node = Node(limit(), connections(1, name="lines"))
    charged = {stage for stage in Stage if node.limiter.charges(stage)}
    assert charged == {Stage.CONNECT}, "the two limits of [resources] and no more"


def test_what_was_charged_under_old_limits_is_given_back_under_new_ones() -> None:
    node = Node(connections(1))
    first = node.connect()
    assert isinstance(first, Permit)
    node.pace.limiter = Limiter(rules_from_config(ResourcesConfig(), (connections(1),)), node.store)
    assert isinstance(node.connect(), Throttled)
    node.pace.done(first)
    assert isinstance(node.connect(), Permit)


def test_what_waits_is_no_refusal_in_the_metrics() -> None:
    metrics = LimitMetrics()
    told = record(metrics, "checks")
    clock = Clock()
    limits = rules_from_config(ResourcesConfig(), (limit(rates=(Rate(1, 60.0),)),))
    pace = OutboundLimiter(Limiter(limits, LocalStore(clock), metrics))
    for _ in range(3):
        pace.acquire(BIG, envelope(), ())
    assert told == [("pace", "admitted"), ("pace", "throttled"), ("pace", "throttled")]


def test_that_mail_waits_is_told_now_and_then() -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)  # type: ignore[arg-type]
    try:
        node = Node(limit(rates=(Rate(1, 60.0),)))
        node.go()
        for _ in range(5):
            node.ask()
        node.clock.advance(LOG_INTERVAL)
        node.ask()
    finally:
        globalLogPublisher.removeObserver(events.append)  # type: ignore[arg-type]
    told = [event for event in events if event.get("event") == "delivery.throttled"]
    assert [(event["limit"], event["destination"], event["seconds"]) for event in told] == [
        ("pace", BIG, 60.0),
        ("pace", BIG, 50.0),
    ]


@implementer(ILimitStore)
class RemoteStore(LocalStore):
    """Answers later, or fails: what a store across a network does."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.waiting: list[tuple[Deferred[Any], Any]] = []

    def acquire(self, requests: Sequence[Request]) -> Any:
        return self._later(super().acquire(requests))

    def release(self, receipts: Sequence[Receipt]) -> Any:
        super().release(receipts)
        return self._later(None)

    def _later(self, answer: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred()
        self.waiting.append((deferred, answer))
        return deferred

    def answer(self) -> None:
        for deferred, answer in self.waiting:
            deferred.callback(answer)
        self.waiting.clear()


def test_a_store_that_answers_later_makes_mail_wait_for_the_answer_only() -> None:
    clock = Clock()
    store = RemoteStore(clock)
    node = Node(connections(1), clock=clock, store=store)
    answers: list[Any] = []
    for _ in range(2):
        asked = node.pace.connect(BIG)
        assert isinstance(asked, Deferred)
        asked.addCallback(answers.append)
    store.answer()
    assert [type(answer) for answer in answers] == [Permit, Throttled]
    released = node.pace.done(answers[0])
    assert isinstance(released, Deferred)
    store.answer()
    assert released.called


@pytest.mark.parametrize(("when_down", "goes"), [("local", True), ("allow", True), ("defer", False)])
def test_a_store_that_is_away_costs_what_the_operator_chose(when_down: str, goes: bool) -> None:
    class Away(LocalStore):
        def acquire(self, requests: Sequence[Request]) -> Decision:
            raise StoreUnavailable("away")

    clock = Clock()
    node = Node(limit(when_valkey_is_down=WhenValkeyIsDown(when_down)), clock=clock, store=Away(clock))
    answer = node.ask()
    assert isinstance(answer, Permit) is goes
    if isinstance(answer, Throttled):
        assert 0 < answer.seconds <= 60
