"""The limiter over a store in memory and over one in a cluster says the same, whatever the limits are."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.address import NULL, Address
from elemta.config import Counts, Identity, LimitConfig, Mode, OnExceed, Rate, ResourcesConfig, Scope
from elemta.envelope import Recipient
from elemta.limits import Charge, Limiter, LocalStore, OutboundCharge, rules_from_config
from elemta.smtp.events import Stage
from tests.support.limit_subjects import Session, Transaction
from tests.support.remote import LATENCY, Node, pass_time

_ON_THE_WAY_OUT = {Identity.DESTINATION}
_OF_A_MESSAGE = {Identity.SENDER, Identity.SENDER_DOMAIN, Identity.RECIPIENT, Identity.RECIPIENT_DOMAIN}


@st.composite
def limits(draw: st.DrawFn) -> LimitConfig:
    counts = draw(st.sampled_from(list(Counts)))
    known = set(Identity) - _ON_THE_WAY_OUT
    if counts in (Counts.CONNECTIONS, Counts.OPEN_CONNECTIONS, Counts.AUTH_FAILURES):
        known -= _OF_A_MESSAGE
    per = draw(st.lists(st.sampled_from(sorted(known, key=str)), max_size=2, unique=True))
    if draw(st.booleans()) and counts in (Counts.MESSAGES, Counts.OPEN_CONNECTIONS):
        per = [Identity.DESTINATION]
    number = st.integers(1, 3) if counts is not Counts.BYTES else st.integers(1, 900)
    if counts is Counts.OPEN_CONNECTIONS:
        rates = [Rate(draw(number), None)]
    else:
        windows = draw(st.lists(st.sampled_from([1.0, 10.0, 60.0]), min_size=1, max_size=2, unique=True))
        rates = [Rate(draw(number), window) for window in windows]
    return LimitConfig(
        name="",
        per=tuple(per),
        counts=counts,
        rates=tuple(rates),
        scope=draw(st.sampled_from(list(Scope))),
        on_exceed=draw(st.sampled_from(list(OnExceed))),
        mode=draw(st.sampled_from([Mode.ENFORCE, Mode.ENFORCE, Mode.OBSERVE])),
        except_=tuple(draw(st.sets(st.sampled_from(["192.0.2.7", "a@one.test", "jane"]), max_size=1))),
    )


addresses = st.builds(Address, st.sampled_from(["a", "B"]), st.sampled_from(["one.test", "TWO.test."]))
sessions = st.builds(
    Session,
    client_ip=st.sampled_from(
        ["192.0.2.1", "192.0.2.7", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2"]
    ).map(ip_address),
    listener=st.sampled_from(["mx", "submission"]),
    helo=st.sampled_from(["a.test", "A.test.", "x" * 100]),
    user=st.sampled_from([None, "jane", "Bob"]),
)
transactions = st.builds(
    Transaction,
    sender=st.one_of(st.just(NULL), addresses),
    recipients=st.lists(st.builds(Recipient, addresses), min_size=1, max_size=2),
    size=st.integers(0, 600),
)
steps = st.lists(
    st.tuples(
        st.sampled_from([*Stage, "login", "message out", "connection out", "give back", "reset", "wait"]),
        sessions,
        transactions,
        st.integers(0, 100),
    ),
    max_size=25,
)


class Side:
    """A limiter with its own time, and what it granted so far."""

    def __init__(self, limits: Sequence[LimitConfig], *, cluster: bool) -> None:
        self.clock = Clock()
        self.latency = LATENCY if cluster else 0.0
        here = LocalStore(self.clock)
        store: Any = Node(self.clock, here, live=3).store if cluster else here
        if not cluster:
            pass_time(self.clock, 0.01)
        resources = ResourcesConfig(max_requests_per_window=5, max_connections_per_ip=3)
        self.limiter = Limiter(rules_from_config(resources, limits), store)
        self.granted: list[Charge] = []
        # What this node alone refuses the others are not asked about, so that the refusing limit may differ.
        self.mixed = any(limit.scope is Scope.NODE for limit in limits)

    def now(self, answer: Any) -> Any:
        """The answer; what comes later takes no time, so that both sides go by the same clock."""
        if not isinstance(answer, Deferred):
            return answer
        got: list[Any] = []
        answer.addCallback(got.append)
        began = self.clock.rightNow
        while not got:
            self.clock.advance(self.latency)
        self.clock.rightNow = began
        return got[0]

    def step(self, word: Any, session: Session, transaction: Transaction, number: int) -> Any:
        if word == "wait":
            pass_time(self.clock, number / 10)
            return None
        if word == "give back":
            if self.granted:
                charge = self.granted.pop(number % len(self.granted))
                self.now(self.limiter.refund(charge.receipts))
                self.now(self.limiter.release(charge.receipts))
                pass_time(self.clock, 0)
            return None
        if word == "reset":
            rule = self.limiter.rules[number % len(self.limiter.rules)]
            return self.now(self.limiter.reset(rule.name, "192.0.2.1"))
        charge = self.now(self._charge(word, session, transaction))
        if charge.receipts:
            self.granted.append(charge)
        refusal = charge.refusal
        granted = sorted(receipt.request.key for receipt in charge.receipts)
        if refusal is None or self.mixed:
            return granted, refusal is None
        return refusal.limit, refusal.identity, refusal.action, refusal.cause, round(refusal.retry_after, 2)

    def _charge(self, word: Any, session: Session, transaction: Transaction) -> Any:
        if word == "login":
            return self.limiter.charge_login(session, session.user or "nobody")
        if word == "message out":
            going = OutboundCharge("one.test", transaction.sender, session.user, transaction.recipients)
            return self.limiter.charge_outbound(going, Counts.MESSAGES)
        if word == "connection out":
            return self.limiter.charge_outbound(OutboundCharge("one.test"), Counts.OPEN_CONNECTIONS)
        return self.limiter.charge(word, session, transaction, transaction.recipients[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(limits(), max_size=4), steps)
def test_the_cluster_says_what_memory_says(made: list[LimitConfig], steps: list[Any]) -> None:
    named = [
        LimitConfig(**{**{key: getattr(one, key) for key in one.__slots__}, "name": f"l{number}"})
        for number, one in enumerate(made)
    ]
    memory, cluster = Side(named, cluster=False), Side(named, cluster=True)
    for word, session, transaction, number in steps:
        expected = memory.step(word, session, transaction, number)
        assert cluster.step(word, session, transaction, number) == expected, word
