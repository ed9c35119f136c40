"""Greylisting."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from elemta.policies.greylist import GreylistPlugin, network_of, shape_of
from elemta.policies.results import DKIMResult, DKIMSignature
from elemta.policy import CONTINUE, ConfigError, Defer, StoreUnavailable
from elemta.policy.doubles import UnavailableStore
from elemta.policy.testing import PolicyTester, Zone

NO_SPF = {"pass_with": []}


def policy(options=None, **how) -> PolicyTester:
    return PolicyTester(GreylistPlugin(), NO_SPF if options is None else options, **how)


def ask(asked: PolicyTester, recipient: str = "b@example.com", sender: str = "a@example.org") -> object:
    asked.mail(sender)
    return asked.rcpt(recipient)


def test_a_new_sender_waits_and_passes_when_it_tries_again_in_time():
    asked = policy()
    first = ask(asked)
    assert isinstance(first, Defer)
    assert (first.code, first.enhanced) == (451, "4.7.1")
    asked.clock.advance(299)
    assert isinstance(ask(asked), Defer)
    asked.clock.advance(2)
    assert ask(asked) == CONTINUE
    assert ask(asked) == CONTINUE


def test_a_sender_that_comes_back_too_late_is_new_again():
    asked = policy()
    ask(asked)
    asked.clock.advance(4 * 3600 + 1)
    assert isinstance(ask(asked), Defer)


def test_a_sender_that_passed_is_known_for_long_and_each_mail_renews_it():
    asked = policy()
    ask(asked)
    asked.clock.advance(301)
    assert ask(asked) == CONTINUE
    for _ in range(3):
        asked.clock.advance(34 * 86400)
        assert ask(asked) == CONTINUE
    asked.clock.advance(36 * 86400)
    assert isinstance(ask(asked), Defer)


def test_another_recipient_or_sender_is_new_and_a_neighbour_is_not():
    asked = policy()
    ask(asked)
    asked.clock.advance(301)
    assert ask(asked) == CONTINUE
    assert isinstance(ask(asked, "c@example.com"), Defer)
    assert isinstance(ask(asked, sender="other@example.org"), Defer)
    neighbour = policy(store=asked.store, client_ip="192.0.2.200")
    assert ask(neighbour) == CONTINUE
    stranger = policy(store=asked.store, client_ip="198.51.100.1")
    assert isinstance(ask(stranger), Defer)


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
)
def test_clients_are_counted_by_network(ip, network):
    assert network_of(ip_address(ip)) == network


@pytest.mark.parametrize(
    ("sender", "shape"),
    [
        ("list-bounces-1234@example.org", "list-bounces-#@example.org"),
        ("Anna+tag77@Example.ORG", "anna@example.org"),
        ("", ""),
    ],
)
def test_numbers_and_tags_of_senders_do_not_matter(sender, shape):
    assert shape_of(sender) == shape


def test_users_and_networks_of_ours_never_wait():
    assert ask(policy(user="anna")) == CONTINUE
    assert ask(policy(relay_from=["192.0.2.0/24"])) == CONTINUE
    assert ask(policy({**NO_SPF, "exempt": ["192.0.2.0/24"]})) == CONTINUE


def test_a_sender_with_an_spf_pass_never_waits():
    zone = Zone(texts_of={"example.org": ["v=spf1 ip4:192.0.2.1 -all"]})
    assert ask(policy({}, resolver=zone)) == CONTINUE
    assert isinstance(ask(policy({}, resolver=zone, client_ip="198.51.100.1")), Defer)


def test_a_domain_that_signed_a_message_from_a_network_is_known_there():
    asked = policy({"pass_with": ["dkim"]})
    ask(asked)
    asked.clock.advance(301)
    assert ask(asked) == CONTINUE
    asked.transaction.results.publish(DKIMResult((DKIMSignature("pass", "example.org", "s"),)))
    assert asked.message(b"Subject: s\r\n\r\ntext\r\n") == CONTINUE
    assert ask(asked, "new@example.com", "new@example.org") == CONTINUE
    assert isinstance(ask(asked, "new@example.com", "new@example.net"), Defer)
    # An operator that takes dkim out of pass_with need not wait until all is forgotten.
    assert isinstance(ask(policy(store=asked.store), "other@example.com", "new@example.org"), Defer)


def test_a_store_that_does_not_answer_is_a_failure_of_the_policy():
    with pytest.raises(StoreUnavailable):
        ask(policy(store=UnavailableStore()))


@pytest.mark.parametrize("options", [{"delay": "4h"}, {"delay": "5h"}, {"within": "5m"}, {"within": 1}])
def test_a_delay_that_no_sender_can_wait_is_a_fault(options):
    with pytest.raises(ConfigError, match="delay"):
        PolicyTester(GreylistPlugin(), options)
