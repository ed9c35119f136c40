"""Which clients may send where. Closed by default, by any form of address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.policies.relay import RelayPlugin
from elemta.policy import CONTINUE, Reject
from elemta.policy.testing import PolicyTester
from elemta.smtp.path import parse_forward_path

DENIED = Reject("Relay access denied", code=554, enhanced="5.7.1")
NO_MAILBOX = Reject("No such mailbox", code=550, enhanced="5.1.1")


def rehearse(*, user=None, client_ip="192.0.2.1", listener="mx", **domains):
    return PolicyTester(RelayPlugin(), user=user, client_ip=client_ip, listener=listener, **domains)


def rcpt(tester, path):
    """The verdict about what stood between the angle brackets of RCPT."""
    return tester.rcpt(Recipient(parse_forward_path(path, "example.com")))


def test_a_stranger_may_write_to_a_local_domain():
    assert rcpt(rehearse(), "someone@example.com") == CONTINUE


def test_a_stranger_may_not_write_to_any_other_domain():
    assert rcpt(rehearse(), "someone@example.org") == DENIED
    assert str(DENIED) == str(rcpt(rehearse(), "postmaster@example.org"))


@pytest.mark.parametrize("domain", ["EXAMPLE.com", "example.com.", "Example.Com."])
def test_a_local_domain_is_one_in_any_spelling(domain):
    assert rcpt(rehearse(), f"someone@{domain}") == CONTINUE


def test_an_international_domain_is_local_as_u_label_and_as_a_label():
    tester = rehearse(local=["bücher.example"])
    assert rcpt(tester, "someone@bücher.example") == CONTINUE
    assert rcpt(tester, "someone@xn--bcher-kva.example") == CONTINUE
    assert rcpt(tester, "someone@bucher.example") == DENIED


@pytest.mark.parametrize(
    "domain",
    ["sub.example.com", "example.com.example.org", "notexample.com", "example.co", "com", "localhost"],
)
def test_a_domain_that_only_looks_local_is_foreign(domain):
    assert rcpt(rehearse(), f"someone@{domain}") == DENIED


@pytest.mark.parametrize(
    "path",
    [
        "target%example.org@example.com",
        "example.org!target@example.com",
        "a!b!target@example.com",
        "target%example.org%example.net@example.com",
        '"target@example.org"@example.com',
        r'"target\@example.org"@example.com',
        '"@example.org:target@example.net"@example.com',
        '"example.org::target"@example.com',
        "target\uff05example.org@example.com",
        "target\uff20example.org@example.com",
        "postmaster%example.org@example.com",
        "@relay.example.net:target%example.org@example.com",
    ],
)
def test_a_local_part_that_names_a_next_hop_is_relaying(path):
    assert rcpt(rehearse(), path) == DENIED
    assert rcpt(rehearse(mailboxes=["@example.com"]), path) == DENIED
    assert rcpt(rehearse(mailboxes=["target@example.com"]), path) == DENIED


@pytest.mark.parametrize(
    "path",
    [
        "@example.com:target@example.org",
        "@example.com,@example.net:target@example.org",
        "target@example.org.",
        "target@[127.0.0.1]",
        "target@[192.0.2.1]",
        "target@[IPv6:::1]",
        "target@[IPv6:::ffff:127.0.0.1]",
        '"target"@example.org',
        '""@example.org'.replace('""', '" "'),
        "target%example.com@example.org",
        '"target@example.com"@example.org',
        "example.com!target@example.org",
    ],
)
def test_no_form_of_a_foreign_address_is_taken_for_local(path):
    assert rcpt(rehearse(), path) == DENIED


def test_a_source_route_to_a_local_mailbox_is_only_that_mailbox():
    assert rcpt(rehearse(), "@example.org,@example.net:someone@example.com") == CONTINUE


def test_an_address_literal_is_local_only_where_it_is_listed():
    tester = rehearse(local=["example.com", "[192.0.2.25]"])
    assert rcpt(tester, "someone@[192.0.2.25]") == CONTINUE
    assert rcpt(tester, "someone@[192.0.2.26]") == DENIED


def test_a_mailbox_with_such_a_sign_in_its_name_is_taken_where_it_is_listed():
    tester = rehearse(mailboxes=["50%off@example.com", "other@example.com"])
    assert rcpt(tester, "50%off@example.com") == CONTINUE
    assert rcpt(tester, "50%OFF@Example.com.") == CONTINUE
    assert rcpt(tester, "60%off@example.com") == DENIED


def test_a_mailbox_that_does_not_exist_is_refused_for_strangers_and_users_alike():
    for user in (None, "alice"):
        tester = rehearse(
            user=user, mailboxes=["someone@example.com", "@example.net"], local=["example.com", "example.net"]
        )
        assert rcpt(tester, "someone@example.com") == CONTINUE
        assert rcpt(tester, "Someone@example.com") == CONTINUE
        assert rcpt(tester, "nobody@example.com") == NO_MAILBOX
        assert rcpt(tester, "anybody@example.net") == CONTINUE


def test_postmaster_exists_whether_listed_or_not():
    tester = rehearse(mailboxes=["someone@example.com"])
    assert rcpt(tester, "postmaster") == CONTINUE
    assert rcpt(tester, "Postmaster@example.com") == CONTINUE
    assert rcpt(tester, "postmaster@example.org") == DENIED


@pytest.mark.parametrize("listener", ["mx", "submission"])
def test_a_user_may_send_anywhere_on_any_listener(listener):
    tester = rehearse(user="alice", listener=listener)
    for path in ("someone@example.org", "target@[192.0.2.9]", "a%b@example.org", "a%b@example.com"):
        assert rcpt(tester, path) == CONTINUE


def test_an_empty_user_name_is_no_stranger_and_no_user_is():
    assert rcpt(rehearse(user=None), "someone@example.org") == DENIED


@pytest.mark.parametrize(
    ("client_ip", "verdict"),
    [
        ("10.1.2.3", CONTINUE),
        ("::ffff:10.1.2.3", CONTINUE),
        ("11.1.2.3", DENIED),
        ("2001:db8::5", CONTINUE),
        ("2001:db9::5", DENIED),
        ("127.0.0.1", DENIED),
    ],
)
def test_only_a_client_from_a_trusted_network_may_send_anywhere_without_a_user(client_ip, verdict):
    tester = rehearse(client_ip=client_ip, relay_from=["10.0.0.0/8", "2001:db8::/32"])
    assert rcpt(tester, "someone@example.org") == verdict


def test_a_helo_name_and_a_sender_prove_nothing():
    tester = rehearse()
    tester.helo("mx.example.com")
    tester.mail("someone@example.com")
    assert rcpt(tester, "someone@example.org") == DENIED


def test_relay_is_asked_at_rcpt_only():
    tester = rehearse()
    assert tester.connected() == tester.helo() == tester.mail() == CONTINUE
    assert tester.data() == tester.message(b"\r\n") == CONTINUE


@given(
    local=st.text(min_size=1, max_size=30),
    domain=st.text(min_size=1, max_size=30).filter(lambda text: text.rstrip(".").lower() != "example.com"),
)
def test_a_stranger_reaches_no_foreign_domain_whatever_it_looks_like(local, domain):
    assert rehearse().rcpt(Recipient(Address(local, domain))) == DENIED


@given(local=st.text(min_size=1, max_size=30), sign=st.sampled_from("%!@:"), rest=st.text(max_size=30))
def test_a_stranger_reaches_no_local_part_with_a_routing_sign_in_it(local, sign, rest):
    assert rehearse().rcpt(Recipient(Address(f"{local}{sign}{rest}", "example.com"))) == DENIED
