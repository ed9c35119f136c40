"""Names of clients, HELO names and sender domains."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from elemta.policies.reverse_dns import ReverseDnsPlugin, ReverseDnsResult
from elemta.policy import CONTINUE, NULL_MX, Defer, MailExchanger, Reject, ResolverTrouble, Stage
from elemta.policy.testing import PolicyTester, Zone

TROUBLE = ResolverTrouble("no answer")
GOOD = {
    "names_of": {"192.0.2.1": ["client.example.org"]},
    "addresses_of": {"client.example.org": ["192.0.2.1"], "example.org": ["192.0.2.9"]},
}


def policy(require=(), **zone) -> PolicyTester:
    return PolicyTester(ReverseDnsPlugin(), {"require": list(require)}, resolver=Zone(**{**GOOD, **zone}))


def ask(asked: PolicyTester, sender: str = "a@example.org", helo: str = "client.example.org") -> object:
    asked.helo(helo)
    return asked.mail(sender)


def test_all_is_looked_up_and_published_and_nothing_is_refused_by_itself():
    asked = policy(names_of={})
    assert ask(asked, "a@nowhere.example", "nowhere.example") == CONTINUE
    assert asked.transaction.results.get(ReverseDnsResult) == ReverseDnsResult((), False, False, False, False)
    asked = policy()
    ask(asked)
    found = asked.transaction.results.get(ReverseDnsResult)
    assert found == ReverseDnsResult(("client.example.org",), True, True, True, True)


@pytest.mark.parametrize(
    ("require", "zone", "enhanced"),
    [
        ("ptr", {"names_of": {}}, "5.7.25"),
        ("fcrdns", {"names_of": {"192.0.2.1": ["other.example"]}}, "5.7.25"),
        ("fcrdns", {"addresses_of": {"client.example.org": ["192.0.2.2"], "example.org": []}}, "5.7.25"),
        ("helo", {"addresses_of": {"example.org": ["192.0.2.9"]}}, "5.7.1"),
        ("sender_domain", {"addresses_of": {"client.example.org": ["192.0.2.1"]}}, "5.1.8"),
        (
            "sender_domain",
            {
                "addresses_of": {"client.example.org": ["192.0.2.1"]},
                "exchangers_of": {"example.org": [NULL_MX]},
            },
            "5.1.8",
        ),
    ],
)
def test_what_is_required_and_not_there_is_refused(require, zone, enhanced):
    found = ask(policy([require], **zone))
    assert isinstance(found, Reject)
    assert found.enhanced == enhanced
    assert ask(policy([], **zone)) == CONTINUE


@pytest.mark.parametrize(
    ("require", "zone"),
    [
        ("ptr", {"names_of": {"192.0.2.1": TROUBLE}}),
        ("fcrdns", {"addresses_of": {"client.example.org": TROUBLE, "example.org": ["192.0.2.9"]}}),
        ("helo", {"addresses_of": {"client.example.org": TROUBLE, "example.org": ["192.0.2.9"]}}),
        ("sender_domain", {"addresses_of": {**GOOD["addresses_of"], "example.org": TROUBLE}}),
    ],
)
def test_trouble_with_dns_defers_and_never_refuses(require, zone):
    assert isinstance(ask(policy([require], **zone)), Defer)
    assert ask(policy([], **zone)) == CONTINUE


@pytest.mark.parametrize("require", ["ptr", "fcrdns", "helo", "sender_domain"])
def test_what_is_there_passes(require):
    assert ask(policy([require])) == CONTINUE


def test_a_domain_with_an_exchanger_only_is_known():
    zone = {"addresses_of": {}, "exchangers_of": {"example.org": [MailExchanger(10, "mx.example.org")]}}
    assert ask(policy(["sender_domain"], **zone)) == CONTINUE


class SilentZone(Zone):
    """Answers for no address before it is let go; keeps what was asked."""

    def __init__(self, **records):
        super().__init__(**records)
        self.asked = []
        self.waiting = Deferred()

    async def addresses(self, host, *, timeout=None):
        self.asked.append(host)
        mine = Deferred()
        self.waiting.addCallback(lambda _: mine.callback(None))
        await mine
        return await super().addresses(host)


@pytest.mark.parametrize("last", [["192.0.2.1"], ["192.0.2.2"], TROUBLE])
def test_all_names_of_a_client_are_looked_up_at_once(last):
    names = [f"n{number}.example.org" for number in range(12)]
    known = {"n3.example.org": TROUBLE, "n9.example.org": last, "n11.example.org": ["192.0.2.1"]}
    zone = SilentZone(names_of={"192.0.2.1": names}, addresses_of=known)
    asked = PolicyTester(ReverseDnsPlugin(), resolver=zone)
    asked.helo("[192.0.2.1]")
    answer = asked.ask(Stage.MAIL)
    # So a dead zone of many of them takes the time of one wait.
    assert zone.asked[:10] == names[:10]
    assert set(zone.asked[10:]) == {"example.org"}
    zone.waiting.callback(None)
    assert answer.result == CONTINUE
    found = asked.transaction.results.get(ReverseDnsResult)
    assert found.fcrdns is (True if last == ["192.0.2.1"] else None)


@pytest.mark.parametrize(
    ("helo", "good"),
    [
        ("[192.0.2.1]", True),
        ("[IPv6:2001:db8::1]", True),
        ("[ipv6:2001:db8::1]", True),
        ("[x]", False),
        ("[]", False),
        ("[192.0.2.1", False),
        ("[2001:db8::1]", False),
        ("[IPv6:192.0.2.1]", False),
    ],
)
def test_an_address_literal_is_a_helo_name(helo, good):
    assert (ask(policy(["helo"]), helo=helo) == CONTINUE) == good


def test_the_null_sender_has_no_domain_to_require():
    assert ask(policy(["sender_domain"]), sender="") == CONTINUE
