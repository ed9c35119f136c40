"""The Sender Rewriting Scheme."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.aliases import AliasLine
from elemta.domains import Domains
from elemta.policies.srs import Rewriter, SrsError, SrsPlugin
from elemta.policy import CONTINUE, Address, ConfigError, Reject
from elemta.policy.testing import PolicyTester

DAY = 20_000
LOCALS = st.from_regex(r"[a-zA-Z0-9.+=_-]{1,30}", fullmatch=True)
DOMAINS = st.from_regex(r"[a-z]{1,10}(\.[a-z]{1,10}){1,2}", fullmatch=True)


def rewriter(domain: str = "fwd.example", secrets=(b"secret",), day: int = DAY) -> Rewriter:
    return Rewriter(domain, secrets, lambda: day)


def rewritten(text: str, **how) -> str:
    return str(rewriter(**how).forward(address(text)))


def address(text: str) -> Address:
    local, _, domain = text.rpartition("@")
    return Address(local, domain)


def local_of(text: str) -> str:
    return address(text).local


@given(LOCALS, DOMAINS)
def test_what_is_rewritten_leads_back(local, domain):
    sender = f"{local}@{domain}"
    made = rewritten(sender)
    if made == sender:
        return  # ours already, or it looks rewritten
    assert made.endswith("@fwd.example")
    if made.startswith("SRS0="):
        assert rewriter().reverse(local_of(made)) == address(sender)
        back = rewriter().reverse(local_of(made).lower())
        assert (back.local.lower(), back.domain) == (local.lower(), domain)


def test_a_second_and_a_third_forwarder_do_not_make_it_longer_and_lead_back_to_the_first():
    anna = Address("anna", "example.org")
    first = rewriter("one.example", [b"1"]).forward(anna)
    second = rewriter("two.example", [b"2"]).forward(first)
    third = rewriter("three.example", [b"3"]).forward(second)
    assert second.local.startswith("SRS1=")
    assert third.local.startswith("SRS1=")
    assert len(str(third)) <= len(str(second)) + len("three.example")
    back = rewriter("three.example", [b"3"]).reverse(third.local)
    assert back == rewriter("two.example", [b"2"]).reverse(second.local) == first
    assert rewriter("one.example", [b"1"]).reverse(back.local) == anna


@pytest.mark.parametrize(
    "local", ["SRS0=h=XY=x.test=s", "SRS0+longer-hash=12345=x.test=s", "srs0-x", "SRS1=h=x.test=+y"]
)
def test_what_a_forwarder_of_another_kind_rewrote_is_not_rewritten_as_a_plain_address(local):
    there = Address(local, "other.test")
    made = rewriter().forward(there)
    assert made.local.startswith("SRS1=")
    back = rewriter().reverse(made.local)
    plain = local.startswith("SRS1")
    assert back == (Address("SRS0+y", "x.test") if plain else Address("SRS0" + local[4:], "other.test"))


@pytest.mark.parametrize("days", [0, 1, 21])
def test_an_address_holds_for_three_weeks(days):
    made = rewritten("anna@example.org")
    assert str(rewriter(day=DAY + days).reverse(local_of(made))) == "anna@example.org"


@pytest.mark.parametrize("days", [22, 100, -2, 1000])
def test_an_address_that_is_too_old_or_of_the_future_is_refused(days):
    made = rewritten("anna@example.org")
    with pytest.raises(SrsError):
        rewriter(day=DAY + days).reverse(local_of(made))


@pytest.mark.parametrize(
    "local",
    [
        "SRS0=AAAA=AA=example.org=anna",
        "SRS0=AAA=AA=example.org=anna",
        "SRS1=AAAA=one.example==AAAA=AA=example.org=anna",
        "SRS0=",
        "anna",
        "SRS2=AAAA=AA=example.org=anna",
    ],
)
def test_a_forged_address_is_refused(local):
    with pytest.raises(SrsError):
        rewriter().reverse(local)


def test_an_old_secret_is_accepted_until_it_is_removed():
    made = local_of(rewritten("anna@example.org", secrets=[b"old"]))
    assert str(rewriter(secrets=[b"new", b"old"]).reverse(made)) == "anna@example.org"
    with pytest.raises(SrsError):
        rewriter(secrets=[b"new"]).reverse(made)


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "srs"
    file.write_text("secret\n")
    return str(file)


def policy(secret, **how) -> PolicyTester:
    options = {"domain": "fwd.example", "secret_file": secret}
    return PolicyTester(SrsPlugin(), options, local=("example.com", "fwd.example"), may_relay=True, **how)


def sent(asked: PolicyTester, sender: str, *recipients: str) -> str:
    asked.mail(sender)
    for recipient in recipients:
        asked.rcpt(recipient)
    assert asked.data() == CONTINUE
    return str(asked.transaction.sender)


def test_the_sender_of_what_is_forwarded_elsewhere_is_rewritten(secret):
    assert sent(policy(secret), "a@example.org", "b@other.example").startswith("SRS0=")
    assert sent(policy(secret), "a@example.org", "b@example.com") == "a@example.org"
    assert sent(policy(secret), "", "b@other.example") == ""
    assert sent(policy(secret), "a@example.com", "b@other.example") == "a@example.com"
    assert sent(policy(secret, user="anna"), "a@example.org", "b@other.example") == "a@example.org"


@pytest.mark.parametrize(
    ("recipient", "leaves"),
    [
        ("team@example.com", True),
        ("Team+x@example.com", True),
        ("far@fwd.example", True),
        ("anyone@shop.example", True),
        ("chief@example.com", False),
        ("team@fwd.example", False),
        ("anna@example.com", False),
    ],
)
def test_the_sender_of_what_leaves_by_an_alias_is_rewritten(secret, recipient, leaves):
    asked = policy(secret)
    lines = (
        AliasLine(1, "team@example.com", (address("anna@example.com"), address("bob@other.example"))),
        AliasLine(2, "far", (address("team@example.com"),)),
        AliasLine(3, "chief", (address("anna@example.com"),)),
        AliasLine(4, "@shop.example", (Address("", "other.example"),)),
    )
    local = frozenset({"example.com", "fwd.example", "shop.example"})
    asked.policy._domains = Domains(local, delimiter="+", alias_lines=lines)
    assert sent(asked, "a@example.org", recipient).startswith("SRS0=") == leaves
    assert sent(asked, "", recipient) == ""


def test_a_bounce_goes_back_to_the_original_sender_and_a_forged_one_nowhere(secret):
    made = sent(policy(secret), "a@example.org", "b@other.example")
    asked = policy(secret)
    asked.mail("")
    assert asked.rcpt(made) == CONTINUE
    assert [str(one.address) for one in asked.transaction.recipients] == ["a@example.org"]
    refused = asked.rcpt("SRS0=AAAA=AA=example.org=x@fwd.example")
    assert isinstance(refused, Reject)
    assert asked.rcpt("b@example.com") == CONTINUE


@pytest.mark.parametrize(
    "sender",
    [
        Address("q u", "example.org"),
        Address("a@b", "example.org"),
        Address('"', "x.test"),
        Address("s", "[192.0.2.1]"),
        Address("s", "[IPv6:2001:db8::1]"),
    ],
)
def test_a_sender_that_needs_quotes_is_rewritten_and_its_bounce_leads_back(secret, sender):
    made = sent(policy(secret), str(sender), "b@other.example")
    assert made.startswith('"SRS0=')
    assert made.endswith('"@fwd.example')
    asked = policy(secret)
    asked.mail("")
    assert asked.rcpt(made) == CONTINUE
    assert [one.address for one in asked.transaction.recipients] == [sender]


def test_a_sender_that_is_too_long_to_be_rewritten_stays(secret):
    sender = "s" * 60 + "@" + ".".join(["d" * 60] * 4)
    asked = policy(secret)
    assert sent(asked, sender, "b@other.example") == sender
    assert [record["sender"] for record in asked.logged] == [sender]


def test_a_file_without_a_secret_is_a_fault(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="has no secret"):
        policy(str(tmp_path / "empty"))


@pytest.mark.parametrize("domain", ["b c", "a@b.example", "https://fwd.example/", "[192.0.2.1]"])
def test_what_is_no_domain_is_a_fault(secret, domain):
    with pytest.raises(ConfigError, match="domain"):
        PolicyTester(SrsPlugin(), {"domain": domain, "secret_file": secret})


def test_any_spelling_of_the_domain_is_one(secret):
    asked = PolicyTester(SrsPlugin(), {"domain": "FWD.Example.", "secret_file": secret}, may_relay=True)
    assert sent(asked, "a@example.org", "b@other.example").endswith("=a@fwd.example")
