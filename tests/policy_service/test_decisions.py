"""What the limits say to requests of Postfix's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from twisted.internet.task import Clock

from elemta.config import (
    ChargeMessagesAt,
    Counts,
    Identity,
    LimitConfig,
    Mode,
    OnExceed,
    Rate,
    ResourcesConfig,
)
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.policy_service.decisions import DUNNO, REMEMBERED_SECONDS, PolicyDecider
from elemta.policy_service.requests import RequestReader, policy_request
from tests.support.runtime import runtime_of

NO_OTHERS = ResourcesConfig(max_requests_per_window=0, max_connections_per_ip=0)


class World:
    """A decider over limits in memory."""

    def __init__(self, *limits: LimitConfig, at=ChargeMessagesAt.END_OF_MESSAGE, resources=NO_OTHERS) -> None:
        self.clock = Clock()
        rules = rules_from_config(resources, limits)
        self.limiter = Limiter(rules, LocalStore(runtime_of(self.clock)))
        self.decider = PolicyDecider(at, lambda: self.limiter)

    def ask(self, state: str = "RCPT", **attributes: object) -> str:
        given = {
            "protocol_state": state,
            "client_address": "192.0.2.1",
            "sender": "anna@example.org",
            "recipient": "bert@example.com" if state == "RCPT" else "",
            **{name: str(value) for name, value in attributes.items()},
        }
        answer = self.decider.decide(policy_request(given, "postfix"))
        assert isinstance(answer, str)
        return answer


def limit(counts: Counts, per: Identity, most: int, **more: object) -> LimitConfig:
    return replace(LimitConfig(name="mine", per=(per,), counts=counts, rates=(Rate(most, 60.0),)), **more)


def passed(answers: list[str]) -> int:
    return answers.count(DUNNO)


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        (Counts.CONNECTIONS, "CONNECT"),
        (Counts.RECIPIENTS, "RCPT"),
        (Counts.MESSAGES, "END-OF-MESSAGE"),
    ],
)
def test_each_kind_is_charged_at_its_state_and_at_no_other(counts, state):
    states = [
        "CONNECT",
        "EHLO",
        "HELO",
        "MAIL",
        "RCPT",
        "DATA",
        "END-OF-MESSAGE",
        "VRFY",
        "ETRN",
        "",
        "OTHER",
    ]
    for each in states:
        world = World(limit(counts, Identity.IP, 3))
        assert passed([world.ask(each) for _ in range(5)]) == (3 if each == state else 5), each


def test_a_refusal_says_why_and_when_to_come_back():
    world = World(limit(Counts.RECIPIENTS, Identity.SENDER, 1))
    world.ask()
    action, code, *words = world.ask().split()
    assert (action, code) == ("DEFER_IF_PERMIT", "4.7.1")
    assert "mine" in " ".join(words)
    assert "60 seconds" in " ".join(words)


@pytest.mark.parametrize(
    ("on_exceed", "begins"),
    [
        (OnExceed.DEFER, "DEFER_IF_PERMIT 4.7.1 "),
        (OnExceed.DELAY, "DEFER_IF_PERMIT 4.7.1 "),
        (OnExceed.REJECT, "REJECT 5.7.1 "),
        (OnExceed.DISCONNECT, "421 4.7.0 "),
    ],
)
@pytest.mark.parametrize("state", ["CONNECT", "RCPT", "END-OF-MESSAGE"])
def test_the_answer_is_what_the_limit_says(on_exceed, begins, state):
    counts = {"CONNECT": Counts.CONNECTIONS, "RCPT": Counts.RECIPIENTS}.get(state, Counts.MESSAGES)
    world = World(limit(counts, Identity.IP, 1, on_exceed=on_exceed))
    assert world.ask(state) == DUNNO
    assert world.ask(state).startswith(begins)


def test_a_limit_that_observes_refuses_nothing():
    world = World(limit(Counts.RECIPIENTS, Identity.IP, 1, mode=Mode.OBSERVE))
    assert passed([world.ask() for _ in range(5)]) == 5


def test_the_same_message_and_recipient_is_charged_once_however_often_postfix_asks():
    world = World(limit(Counts.RECIPIENTS, Identity.SENDER, 2))
    assert passed([world.ask(instance="1.2") for _ in range(5)]) == 5
    assert world.ask(instance="1.2", recipient="other@example.com") == DUNNO
    assert world.ask(instance="1.2", recipient="third@example.com") != DUNNO
    assert world.ask(instance="1.3") != DUNNO


def test_a_refused_recipient_was_not_charged_and_may_pass_later():
    world = World(limit(Counts.RECIPIENTS, Identity.SENDER, 1))
    assert world.ask(instance="1") == DUNNO
    assert world.ask(instance="2") != DUNNO
    world.clock.advance(61)
    assert world.ask(instance="2") == DUNNO


def test_without_an_instance_each_question_is_charged():
    world = World(limit(Counts.RECIPIENTS, Identity.SENDER, 2))
    assert passed([world.ask() for _ in range(5)]) == 2


def test_an_instance_is_forgotten_in_time_and_their_number_is_bounded(monkeypatch):
    monkeypatch.setattr("elemta.policy_service.decisions.MAX_REMEMBERED", 10)
    world = World(limit(Counts.RECIPIENTS, Identity.SENDER, 1000))
    for number in range(100):
        world.ask(instance=number)
        assert len(world.decider._remembered) <= 20
    assert len(world.decider._remembered) >= 10
    assert world.ask(instance=99) == DUNNO
    world.clock.advance(REMEMBERED_SECONDS + 1)
    small = World(limit(Counts.RECIPIENTS, Identity.SENDER, 1))
    small.ask(instance=1)
    small.clock.advance(REMEMBERED_SECONDS + 1)
    assert small.ask(instance=1) == DUNNO
    assert small.ask(instance=2) != DUNNO


def test_a_message_is_charged_once_at_its_first_recipient_where_the_service_says_so():
    world = World(limit(Counts.MESSAGES, Identity.SENDER, 2), at=ChargeMessagesAt.RCPT)
    for message in (1, 2):
        for recipient in ("a@example.com", "b@example.com", "c@example.com"):
            assert world.ask(instance=message, recipient=recipient) == DUNNO
    assert world.ask(instance=3) != DUNNO
    assert world.ask("END-OF-MESSAGE", instance=4) == DUNNO


def test_bytes_are_charged_once_a_message_by_its_size():
    for at, state in ((ChargeMessagesAt.RCPT, "RCPT"), (ChargeMessagesAt.END_OF_MESSAGE, "END-OF-MESSAGE")):
        world = World(limit(Counts.BYTES, Identity.SENDER, 1000), at=at)
        assert world.ask(state, instance=1, size=600) == DUNNO
        assert world.ask(state, instance=1, size=600, recipient="b@example.com") == DUNNO
        assert world.ask(state, instance=2, size=600) != DUNNO
        assert world.ask(state, instance=3, size=400) == DUNNO


def test_a_message_that_is_larger_than_the_limit_is_refused_for_good():
    world = World(limit(Counts.BYTES, Identity.SENDER, 1000))
    assert world.ask("END-OF-MESSAGE", size=1001).startswith("REJECT 5.3.4 ")


def test_the_end_of_a_message_without_a_recipient_charges_no_limit_per_recipient():
    world = World(limit(Counts.MESSAGES, Identity.RECIPIENT, 1))
    assert passed([world.ask("END-OF-MESSAGE", recipient="") for _ in range(3)]) == 3
    assert passed([world.ask("END-OF-MESSAGE", recipient="b@example.com") for _ in range(3)]) == 1


@pytest.mark.parametrize(
    ("per", "attribute", "others"),
    [
        (Identity.IP, "client_address", ("192.0.2.2", "2001:db8::1")),
        (Identity.NETWORK, "client_address", ("198.51.100.1", "2001:db8::1")),
        (Identity.HELO, "helo_name", ("other.example", "third.example")),
        (Identity.USER, "sasl_username", ("bert", "carl")),
        (Identity.SENDER, "sender", ("b@example.org", "")),
        (Identity.SENDER_DOMAIN, "sender", ("a@example.net", "a@example.com")),
        (Identity.RECIPIENT, "recipient", ("c@example.com", "d@example.com")),
        (Identity.RECIPIENT_DOMAIN, "recipient", ("c@example.net", "c@example.org")),
    ],
)
def test_every_identity_is_counted_apart(per, attribute, others):
    world = World(limit(Counts.RECIPIENTS, per, 1))
    first = {"helo_name": "client.example", "sasl_username": "anna"}
    assert world.ask(**first) == DUNNO
    assert world.ask(**first) != DUNNO
    for other in others:
        assert world.ask(**{**first, attribute: other}) == DUNNO


def test_the_listener_of_a_limit_is_the_name_of_the_service():
    world = World(limit(Counts.RECIPIENTS, Identity.LISTENER, 1, except_=("postfix",)))
    assert passed([world.ask() for _ in range(3)]) == 3


def test_the_rate_of_resources_counts_at_connect_and_open_connections_are_not_counted():
    resources = ResourcesConfig(max_requests_per_window=3, max_connections_per_ip=1)
    world = World(resources=resources)
    assert passed([world.ask("CONNECT") for _ in range(5)]) == 3


def test_several_limits_charge_all_or_none():
    small = limit(Counts.RECIPIENTS, Identity.RECIPIENT, 1)
    large = replace(limit(Counts.RECIPIENTS, Identity.SENDER, 3), name="large")
    world = World(small, large)
    assert world.ask(recipient="a@example.com") == DUNNO
    for _ in range(5):
        assert world.ask(recipient="a@example.com") != DUNNO
    assert world.ask(recipient="b@example.com") == DUNNO
    assert world.ask(recipient="c@example.com") == DUNNO
    assert world.ask(recipient="d@example.com") != DUNNO


ODD_NAMES = [
    b"a b",
    b" a",
    b'"a"',
    b"a\\b",
    b"a'b",
    b"a\tb",
    b"a|b",
    b"a=b",
    b"{a}",
    b"%s",
    b"*",
    b"#a",
    b"a~",
    b"x" * 5000,
    "jürg".encode(),
    "\u2028".encode(),
    "\U0001f600".encode(),
    b"\xff\xfe",
    b"\xed\xa0\x80",
]


@pytest.mark.parametrize(
    ("per", "attribute", "behind"),
    [
        (Identity.USER, "sasl_username", b""),
        (Identity.HELO, "helo_name", b""),
        (Identity.SENDER, "sender", b"@example.org"),
        (Identity.SENDER, "sender", b""),
        (Identity.RECIPIENT, "recipient", b"@example.org"),
        (Identity.RECIPIENT_DOMAIN, "recipient", b""),
    ],
)
def test_whatever_a_name_consists_of_it_is_counted_by_itself(per, attribute, behind):
    world = World(limit(Counts.RECIPIENTS, per, 2))
    for name in ODD_NAMES:
        given = b"a@" + name if per is Identity.RECIPIENT_DOMAIN else name + behind
        lines = {"protocol_state": b"RCPT", "recipient": b"b@b.test", attribute: given}
        reader = RequestReader()
        reader.receive(b"".join(key.encode() + b"=" + value + b"\n" for key, value in lines.items()) + b"\n")
        attributes = reader.next_request()
        answers = [world.decider.decide(policy_request(attributes, "postfix")) for _ in range(3)]
        assert passed(answers) == 2, name
        assert answers[2].startswith("DEFER_IF_PERMIT 4.7.1 "), name
        assert answers[2].isascii(), name
        assert answers[2].isprintable(), name


@pytest.mark.parametrize("per", [Identity.IP, Identity.NETWORK])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("::ffff:192.0.2.1", "::FFFF:c000:0201"),
        ("2001:db8::1", "2001:DB8:0:0:ffff::2"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", ""),
    ],
)
def test_two_spellings_of_a_client_are_counted_together(per, one, other):
    world = World(limit(Counts.RECIPIENTS, per, 3))
    answers = [world.ask(client_address=each) for each in (one, other, one, other, one)]
    assert passed(answers) == 3


def test_an_instance_is_charged_for_each_state_by_itself():
    world = World(
        limit(Counts.RECIPIENTS, Identity.USER, 1, name="recipients"),
        limit(Counts.MESSAGES, Identity.USER, 1, name="messages"),
    )
    about = {"instance": "1.2", "sasl_username": "anna"}
    for state in ("CONNECT", "EHLO", "MAIL", "RCPT", "RCPT", "DATA", "END-OF-MESSAGE", "END-OF-MESSAGE"):
        assert world.ask(state, **about) == DUNNO
    about["instance"] = "1.3"
    assert world.ask("END-OF-MESSAGE", **about) != DUNNO
    assert world.ask("RCPT", **about) != DUNNO


@pytest.mark.parametrize("count", ["", "0", "1", "1000", "-1", "many"])
def test_the_number_of_recipients_changes_no_amount(count):
    world = World(
        limit(Counts.RECIPIENTS, Identity.USER, 2, name="recipients"),
        limit(Counts.MESSAGES, Identity.USER, 2, name="messages"),
    )
    for state in ("RCPT", "END-OF-MESSAGE"):
        answers = [world.ask(state, sasl_username="anna", recipient_count=count) for _ in range(3)]
        assert passed(answers) == 2
    assert passed([world.ask("DATA", sasl_username="anna", recipient_count=count) for _ in range(5)]) == 5
