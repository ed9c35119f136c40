"""From a configuration to rules: what is charged when, and for which identity."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from elemta.address import Address
from elemta.config import (
    Counts,
    Identity,
    LimitConfig,
    Mode,
    OnExceed,
    Rate,
    ResourcesConfig,
    Scope,
    WhenValkeyIsDown,
)
from elemta.envelope import Recipient
from elemta.errors import ConfigError
from elemta.limits.rules import Rule, Subject, rules_from_config, stage_of
from elemta.smtp.events import Stage
from tests.support.limit_subjects import Session, Transaction


def recipient(text: str) -> Recipient:
    return Recipient(Address(*text.split("@")))


def rule(counts: Counts, *per: Identity, except_: tuple[str, ...] = (), **more: object) -> Rule:
    rates = (Rate(5, None) if counts is Counts.OPEN_CONNECTIONS else Rate(5, 60.0),)
    config = LimitConfig(name="r", per=per, counts=counts, rates=rates, except_=except_, **more)
    return rules_from_config(ResourcesConfig(), [config])[-1]


def keys(made: Rule, subject: Subject) -> list[str]:
    return [request.key for request in made.requests(subject)]


@pytest.mark.parametrize(
    ("counts", "per", "stage"),
    [
        (Counts.CONNECTIONS, [], Stage.CONNECT),
        (Counts.CONNECTIONS, [Identity.IP], Stage.CONNECT),
        (Counts.CONNECTIONS, [Identity.NETWORK, Identity.LISTENER], Stage.CONNECT),
        (Counts.CONNECTIONS, [Identity.HELO], Stage.HELO),
        (Counts.CONNECTIONS, [Identity.IP, Identity.USER], Stage.AUTH),
        (Counts.OPEN_CONNECTIONS, [Identity.IP], Stage.CONNECT),
        (Counts.OPEN_CONNECTIONS, [Identity.HELO], Stage.HELO),
        (Counts.OPEN_CONNECTIONS, [Identity.USER], Stage.AUTH),
        (Counts.MESSAGES, [], Stage.MAIL),
        (Counts.MESSAGES, [Identity.IP], Stage.MAIL),
        (Counts.MESSAGES, [Identity.USER], Stage.MAIL),
        (Counts.MESSAGES, [Identity.SENDER], Stage.MAIL),
        (Counts.MESSAGES, [Identity.SENDER_DOMAIN, Identity.IP], Stage.MAIL),
        (Counts.MESSAGES, [Identity.RECIPIENT], Stage.RCPT),
        (Counts.MESSAGES, [Identity.SENDER, Identity.RECIPIENT_DOMAIN], Stage.RCPT),
        (Counts.RECIPIENTS, [], Stage.RCPT),
        (Counts.RECIPIENTS, [Identity.SENDER], Stage.RCPT),
        (Counts.BYTES, [Identity.IP], Stage.MESSAGE),
        (Counts.BYTES, [Identity.RECIPIENT], Stage.MESSAGE),
        (Counts.AUTH_FAILURES, [Identity.IP], None),
        (Counts.REFUSALS, [Identity.IP], None),
        (Counts.MESSAGES, [Identity.DESTINATION], None),
    ],
)
def test_a_limit_is_charged_at_the_earliest_stage_that_knows_everything(
    counts: Counts, per: list[Identity], stage: Stage | None
) -> None:
    assert stage_of(counts, per) is stage


def test_resources_give_a_rate_and_open_connections_per_ip() -> None:
    rate, held = rules_from_config(ResourcesConfig(max_requests_per_window=7, rate_limit_window=30), [])
    assert (rate.name, rate.stage, rate.spec.bounds[0].limit) == ("ip", Stage.CONNECT, 7)
    assert rate.spec.bounds[0].window == 30_000_000
    assert (held.name, held.stage, held.spec.leases) == ("connections-per-ip", Stage.CONNECT, 50)
    subject = Subject(Session(ip_address("2001:db8::5")))
    assert keys(rate, subject) == ["ip:2001:db8::/64"]
    assert keys(held, subject) == ["connections-per-ip:2001:db8::/64"]


def test_no_rate_is_no_such_limit() -> None:
    rules = rules_from_config(ResourcesConfig(max_requests_per_window=0), [])
    assert [rule.name for rule in rules] == ["connections-per-ip"]


def test_the_words_of_a_limit_arrive_in_the_rule() -> None:
    made = rule(
        Counts.BYTES,
        Identity.IP,
        mode=Mode.OBSERVE,
        scope=Scope.NODE,
        on_exceed=OnExceed.DELAY,
        when_valkey_is_down=WhenValkeyIsDown.DEFER,
    )
    assert (made.mode, made.on_exceed, made.when_valkey_is_down) == (
        Mode.OBSERVE,
        OnExceed.DELAY,
        WhenValkeyIsDown.DEFER,
    )
    assert not made.spec.binding
    assert not made.spec.cluster
    assert made.spec.when_down is made.when_valkey_is_down
    assert made.spec.bounds[0].grain == 1_000_000


def test_a_rate_without_a_window_is_no_silent_permission() -> None:
    config = LimitConfig(name="r", per=(), counts=Counts.MESSAGES, rates=(Rate(5, None),))
    with pytest.raises(ConfigError, match="window"):
        rules_from_config(ResourcesConfig(), [config])


@pytest.mark.parametrize(
    ("per", "key"),
    [
        ((), "r:*"),
        ((Identity.IP,), "r:192.0.2.1"),
        ((Identity.NETWORK,), "r:192.0.2.0/24"),
        ((Identity.HELO,), "r:client.example"),
        ((Identity.USER,), "r:bob"),
        ((Identity.SENDER,), "r:jane@example.org"),
        ((Identity.SENDER_DOMAIN,), "r:example.org"),
        ((Identity.RECIPIENT,), "r:to@example.com"),
        ((Identity.RECIPIENT_DOMAIN,), "r:example.com"),
        ((Identity.LISTENER,), "r:mx"),
        ((Identity.SENDER, Identity.IP), "r:jane@example.org|192.0.2.1"),
    ],
)
def test_each_identity_has_its_key(per: tuple[Identity, ...], key: str) -> None:
    subject = Subject(Session(user="Bob"), Transaction(), recipient("to@example.com"))
    assert keys(rule(Counts.RECIPIENTS, *per), subject) == [key]


def test_a_limit_per_user_is_not_for_strangers() -> None:
    made = rule(Counts.MESSAGES, Identity.USER, Identity.IP)
    assert keys(made, Subject(Session(), Transaction())) == []


def test_bytes_per_recipient_are_charged_once_for_each() -> None:
    made = rule(Counts.BYTES, Identity.RECIPIENT_DOMAIN)
    to = [recipient(text) for text in ("a@one.example", "b@ONE.example", "c@two.example")]
    requests = made.requests(Subject(Session(), Transaction(recipients=to, size=700)))
    assert [(request.key, request.amount) for request in requests] == [
        ("r:one.example", 700),
        ("r:two.example", 700),
    ]


@pytest.mark.parametrize("exempt", ["192.0.2.0/24", "192.0.2.1", "jane@example.org"])
def test_who_is_exempt_is_not_asked_about(exempt: str) -> None:
    made = rule(Counts.MESSAGES, Identity.SENDER, except_=(exempt,))
    assert keys(made, Subject(Session(), Transaction())) == []
    other = Subject(Session(ip_address("198.51.100.1")), Transaction(Address("joe", "example.org")))
    assert keys(made, other) == ["r:joe@example.org"]


def test_a_listener_can_be_exempt() -> None:
    made = rule(Counts.MESSAGES, Identity.IP, Identity.LISTENER, except_=("submission",))
    assert keys(made, Subject(Session(listener="submission"), Transaction())) == []
    assert keys(made, Subject(Session(), Transaction())) == ["r:192.0.2.1|mx"]
