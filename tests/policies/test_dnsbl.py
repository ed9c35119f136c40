"""DNS lists of client addresses."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from twisted.internet.defer import Deferred

from elemta.policies.dnsbl import DnsblPlugin, DnsblResult, question_name
from elemta.policy import CONTINUE, ConfigError, Quarantine, Reject, ResolverTrouble
from elemta.policy.testing import PolicyTester, Zone

ONE = {"zone": [{"name": "bl.example", "weight": 5}]}
LISTED = {("1.2.0.192.bl.example", "A"): ["127.0.0.2"]}


def policy(options=None, records=None, **how) -> PolicyTester:
    return PolicyTester(DnsblPlugin(), options or ONE, resolver=Zone(records_of=records or {}), **how)


def verdict(asked: PolicyTester) -> object:
    assert asked.connected() == CONTINUE
    asked.mail("a@example.org")
    return asked.rcpt("b@example.com")


@pytest.mark.parametrize(
    ("ip", "name"),
    [
        ("192.0.2.1", "1.2.0.192.bl.example"),
        ("::ffff:192.0.2.1", "1.2.0.192.bl.example"),
        ("2001:db8::1", "1." + "0." * 23 + "8.b.d.0.1.0.0.2.bl.example"),
    ],
)
def test_the_address_is_looked_up_backwards(ip, name):
    assert question_name(ip_address(ip), "bl.example.") == name


def test_a_client_that_is_listed_is_refused_at_rcpt_with_the_name_of_the_list():
    asked = policy(records=LISTED)
    found = verdict(asked)
    assert isinstance(found, Reject)
    assert (found.code, found.enhanced) == (554, "5.7.1")
    assert "192.0.2.1" in found.text
    assert "bl.example" in found.text
    assert asked.session.results.get(DnsblResult) == DnsblResult(5, ("bl.example",))


def test_a_client_that_is_not_listed_passes():
    assert verdict(policy()) == CONTINUE


@pytest.mark.parametrize("answer", [ResolverTrouble("no answer"), ["127.255.255.254"], ["198.51.100.7"], []])
def test_a_list_that_does_not_answer_or_refuses_or_has_lost_its_domain_weighs_nothing(answer):
    assert verdict(policy(records={("1.2.0.192.bl.example", "A"): answer})) == CONTINUE


def test_weights_add_up_and_allow_lists_take_away():
    zones = [
        {"name": "one.example", "weight": 3},
        {"name": "two.example", "weight": 3},
        {"name": "good.example", "weight": -4},
    ]
    records = {(f"1.2.0.192.{name}.example", "A"): ["127.0.0.2"] for name in ("one", "two")}
    options = {"zone": zones, "reject_at": 6}
    assert isinstance(verdict(policy(options, records)), Reject)
    records["1.2.0.192.good.example", "A"] = ["127.0.0.1"]
    assert verdict(policy(options, records)) == CONTINUE


@pytest.mark.parametrize(
    ("answer", "listed"), [("127.0.0.4", True), ("127.0.0.9", True), ("127.0.0.20", False)]
)
def test_only_the_answers_that_are_named_count(answer, listed):
    zone = {"name": "bl.example", "weight": 5, "answers": ["127.0.0.4", "127.0.0.8/29"]}
    found = verdict(policy({"zone": [zone]}, {("1.2.0.192.bl.example", "A"): [answer]}))
    assert isinstance(found, Reject) == listed


@pytest.mark.parametrize(
    ("answers", "answer", "listed"),
    [
        (["127.0.0.0/8", "10.0.0.0/8"], "127.255.255.254", False),
        (["127.0.0.0/8", "10.0.0.0/8"], "10.1.2.3", True),
        (["0.0.0.0/0"], "127.255.255.1", False),
        (["127.255.255.254"], "127.255.255.254", True),
        (["127.255.255.0/24"], "127.255.255.1", True),
        (["127.0.0.0/8", "127.255.255.1"], "127.255.255.1", True),
        (["127.0.0.0/8", "127.255.255.1"], "127.255.255.2", False),
        (["::/0"], "127.0.0.2", False),
    ],
)
def test_a_refused_question_counts_only_where_its_answer_is_named(answers, answer, listed):
    zone = {"name": "bl.example", "weight": 5, "answers": answers}
    found = verdict(policy({"zone": [zone]}, {("1.2.0.192.bl.example", "A"): [answer]}))
    assert isinstance(found, Reject) == listed


def test_a_score_in_between_holds_the_message():
    zone = {"name": "bl.example", "weight": 3}
    found = verdict(policy({"zone": [zone], "quarantine_at": 3}, LISTED))
    assert isinstance(found, Quarantine)


def test_users_and_networks_of_ours_pass():
    assert verdict(policy(records=LISTED, user="anna")) == CONTINUE
    assert verdict(policy(records=LISTED, relay_from=["192.0.2.0/24"])) == CONTINUE
    assert verdict(policy({**ONE, "exempt": ["192.0.2.1"]}, LISTED)) == CONTINUE


def test_every_recipient_gets_the_same_answer_from_one_lookup():
    asked = policy(records=LISTED)
    assert isinstance(verdict(asked), Reject)
    assert isinstance(asked.rcpt("c@example.com"), Reject)
    assert asked.metrics.total("elemta_plugin_dnsbl_answers_total", "bl.example", "listed") == 1


class TimedZone(Zone):
    """Keeps how long each lookup may take."""

    def __init__(self, **records):
        super().__init__(**records)
        self.seconds = []

    def of_user(self, _name):
        return self

    async def records(self, name, kind, *, timeout=None):
        self.seconds.append(timeout)
        return await super().records(name, kind)


@pytest.mark.parametrize(("timeout", "seconds"), [("5s", 2.0), ("2s", 1.8), ("500ms", 0.45)])
def test_a_list_that_does_not_answer_weighs_nothing_whatever_the_timeout_is(timeout, seconds):
    zone = TimedZone(records_of=LISTED)
    asked = PolicyTester(DnsblPlugin(), {**ONE, "timeout": timeout}, resolver=zone)
    assert asked.connected() == CONTINUE
    assert zone.seconds == [pytest.approx(seconds)]


class SilentZone(TimedZone):
    """Answers nothing, and keeps the names whose lookups were cancelled."""

    def __init__(self):
        super().__init__()
        self.cancelled = []

    async def records(self, name, kind, *, timeout=None):
        await Deferred(lambda _: self.cancelled.append(name))


def test_a_client_that_leaves_ends_the_lookups():
    zone = SilentZone()
    asked = PolicyTester(DnsblPlugin(), ONE, resolver=zone)
    assert asked.connected() == CONTINUE
    assert zone.cancelled == []
    asked.disconnected()
    assert zone.cancelled == ["1.2.0.192.bl.example"]


@pytest.mark.parametrize(
    "name", ["", "https://bl.example/", "b l.example", "x" * 64 + ".example", "a..", "bl.example:53", "\n"]
)
def test_a_name_that_can_not_be_looked_up_is_a_fault(name):
    with pytest.raises(ConfigError, match=r"zone\[2\]\.name"):
        policy({"zone": [{"name": "bl.example"}, {"name": name}]})


def test_a_list_without_a_name_is_a_fault():
    with pytest.raises(ConfigError, match=r"zone\[1\]\.name"):
        policy({"zone": [{"weight": 2}]})


@pytest.mark.parametrize("records", [{}, LISTED])
def test_a_score_of_0_refuses_never(records):
    options = {"zone": [{"name": "bl.example", "weight": 7}], "reject_at": 0}
    assert verdict(policy(options, records)) == CONTINUE
    with pytest.raises(ConfigError, match="reject_at"):
        policy({**options, "reject_at": -1})


def test_the_reply_names_the_lists_that_speak_against_the_client_each_once():
    zones = [
        {"name": "one.example", "weight": 3, "answers": ["127.0.0.2"]},
        {"name": "allow.example", "weight": -1},
        {"name": "one.example", "weight": 3, "answers": ["127.0.0.3"]},
    ]
    records = {
        ("1.2.0.192.one.example", "A"): ["127.0.0.2", "127.0.0.3"],
        ("1.2.0.192.allow.example", "A"): ["127.0.0.9"],
    }
    asked = policy({"zone": zones}, records)
    found = verdict(asked)
    assert isinstance(found, Reject)
    assert found.text == "Your address 192.0.2.1 is listed by one.example"
    result = asked.session.results.get(DnsblResult)
    assert result == DnsblResult(5, ("one.example", "allow.example", "one.example"))
