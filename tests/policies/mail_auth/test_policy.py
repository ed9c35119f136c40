"""The policy mail-auth: results, the field, and what is refused."""

from __future__ import annotations

import base64

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from twisted.internet.defer import Deferred

from elemta.policies.mail_auth import MailAuthPlugin
from elemta.policies.mail_auth.field import claims, property_of
from elemta.policies.results import ARCResult, DKIMResult, DMARCResult, SPFResult
from elemta.policy import CONTINUE, ConfigError, Quarantine, Reject, ResolverTrouble, Stage
from elemta.policy.testing import PolicyTester, Zone, make_message

KEY = rsa.generate_private_key(65537, 2048)
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
PUBLIC = base64.b64encode(
    KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).decode()
MESSAGE = b"From: Anna <anna@example.org>\r\nTo: b@example.com\r\nSubject: s\r\n\r\ntext\r\n"
RECORDS = {
    "example.org": ["v=spf1 ip4:192.0.2.1 -all"],
    "_dmarc.example.org": ["v=DMARC1; p=reject"],
    "s._domainkey.example.org": [f"v=DKIM1; k=rsa; p={PUBLIC}"],
    "list.example": ["v=spf1 ip4:192.0.2.1 -all"],
    "s._domainkey.list.example": [f"v=DKIM1; k=rsa; p={PUBLIC}"],
}


def signed(message: bytes = MESSAGE, domain: bytes = b"example.org") -> bytes:
    return dkim.sign(message, b"s", domain, PRIVATE) + message


class Asked:
    """One message that was asked about."""

    def __init__(self, message=MESSAGE, options=None, *, sender="anna@example.org", records=None, **how):
        zone = Zone(texts_of={**RECORDS, **(records or {})})
        self.policy = PolicyTester(MailAuthPlugin(), options, resolver=zone, **how)
        self.policy.connected()
        self.policy.helo("client.example.org")
        self.policy.mail(sender)
        self.policy.rcpt("b@example.com")
        self.results = self.policy.transaction.results
        self.verdict = self.policy.message(message)

    @property
    def fields(self) -> list[str]:
        """All fields of this name, unfolded."""
        header, _ = dkim.rfc822_parse(self.policy.edited_message)
        found = [value.decode() for name, value in header if name.lower() == b"authentication-results"]
        return [" ".join(value.split()) for value in found]

    @property
    def field(self) -> str:
        (value,) = self.fields
        return value


def test_a_message_that_is_signed_and_sent_by_its_domain_passes_everything():
    asked = Asked(signed())
    assert asked.verdict == CONTINUE
    assert asked.results.get(SPFResult).result == "pass"
    assert asked.results.get(DKIMResult).domains == ("example.org",)
    assert asked.results.get(ARCResult).result == "none"
    assert asked.results.get(DMARCResult).result == "pass"
    field = asked.field
    assert field.startswith(
        "mx.example.com; spf=pass smtp.mailfrom=anna@example.org; dkim=pass header.d=example.org"
    )
    assert "arc=none" in field
    assert field.endswith("dmarc=pass (p=reject dis=none) header.from=example.org")


def test_a_forged_message_is_reported_by_default_and_refused_where_it_is_enforced():
    forged = {"sender": "x@other.example", "client_ip": "198.51.100.1"}
    reported = Asked(**forged)
    assert reported.verdict == CONTINUE
    assert "dmarc=fail (p=reject dis=reject)" in reported.field
    refused = Asked(options={"dmarc": "enforce"}, **forged)
    assert isinstance(refused.verdict, Reject)
    assert (refused.verdict.code, refused.verdict.enhanced) == (550, "5.7.26")


def test_quarantine_is_a_mark_and_none_is_nothing():
    how = {"sender": "x@other.example", "options": {"dmarc": "enforce"}}
    records = {"_dmarc.example.org": ["v=DMARC1; p=quarantine"]}
    assert isinstance(Asked(records=records, **how).verdict, Quarantine)
    records = {"_dmarc.example.org": ["v=DMARC1; p=none"]}
    assert Asked(records=records, **how).verdict == CONTINUE


@pytest.mark.parametrize("name", ["_dmarc.example.org", "s._domainkey.example.org", "example.org"])
def test_trouble_with_dns_never_refuses(name):
    asked = Asked(
        signed(),
        {"dmarc": "enforce"},
        client_ip="198.51.100.1",
        records={name: ResolverTrouble("no answer")},
    )
    assert asked.verdict == CONTINUE
    assert "temperror" in asked.field


@pytest.mark.parametrize(
    "message",
    [
        b"X : y\r\n" + MESSAGE,
        b"X: y\r\nno field\r\n" + MESSAGE,
        MESSAGE.replace(b"From:", b"FROM \t:"),
        MESSAGE.replace(b"Anna", b"Group: somewhere, Anna").replace(b">", b">;"),
        MESSAGE.replace(b"Anna ", b"x@[192.0.2.7],\r\n\t"),
        MESSAGE.replace(b"From:", b"From: nowhere\r\nFrom:"),
        b"From: " + b"(" + b"x" * 9000 + b") anna@example.org\r\n\r\ntext\r\n",
        b"From: " + b"".join(b"a@%d.example," % n for n in range(6)) + b"anna@example.org\r\n\r\ntext\r\n",
    ],
)
@pytest.mark.parametrize("sender", ["x@other.example", "x@dead.example", ""])
def test_no_form_of_header_carries_a_forged_author_past_dmarc(message, sender):
    records = {"dead.example": ResolverTrouble("no answer"), "other.example": ["v=spf1 +all"]}
    records["s._domainkey.dead.example"] = ResolverTrouble("no answer")
    for forged in (message, signed(MESSAGE, b"dead.example").partition(b"From:")[0] + message):
        asked = Asked(forged, {"dmarc": "enforce"}, sender=sender, records=records)
        assert isinstance(asked.verdict, Reject), asked.field
        assert asked.verdict.enhanced == "5.7.26"


@pytest.mark.parametrize("line", [b"X : y\r\n z :\r\n", b"X\t: y\r\n"])
def test_a_signature_counts_beside_obsolete_syntax(line):
    asked = Asked(b"A: b\r\n" + line + signed(), {"dmarc": "enforce"}, client_ip="198.51.100.1")
    assert asked.results.get(DKIMResult).domains == ("example.org",)
    assert asked.verdict == CONTINUE


def test_no_signature_counts_beside_a_line_that_is_no_field():
    # To some readers what follows is the body, which that signature did not cover.
    asked = Asked(b"A: b\r\nno field\r\n" + signed(), {"dmarc": "enforce"}, client_ip="198.51.100.1")
    assert asked.results.get(DKIMResult).signatures == ()
    assert isinstance(asked.verdict, Reject)


class SlowZone(Zone):
    """Answers nothing before it is let go; keeps what was asked meanwhile."""

    def __init__(self, **records):
        super().__init__(**records)
        self.waiting = Deferred()
        self.asked = []

    async def text(self, name, *, timeout=None):
        self.asked.append(name)
        if not self.waiting.called:
            mine = Deferred()
            self.waiting.addCallback(lambda _: mine.callback(None))
            await mine
        return await super().text(name)


def test_what_every_check_will_need_is_asked_at_once_before_the_first():
    zone = SlowZone(texts_of=RECORDS)
    policy = PolicyTester(MailAuthPlugin(), resolver=zone)
    policy.helo("client.example.org")
    policy.mail("anna@list.example")
    message = signed(signed().replace(b"anna@example.org", b"anna@mail.example.org"), b"list.example")
    answer = policy.ask(Stage.MESSAGE, make_message(message))
    # So a name server that does not answer takes the time of one wait, not that of one for each.
    assert zone.asked == [
        "list.example",
        "_dmarc.mail.example.org",
        "_dmarc.example.org",
        "s._domainkey.list.example",
        "s._domainkey.example.org",
    ]
    zone.waiting.callback(None)
    assert answer.result == CONTINUE
    assert len(zone.asked) == 5
    assert policy.transaction.results.get(DMARCResult).result == "fail"


@pytest.mark.parametrize(
    "helo", ["[192.0.2.1]", "localhost", "a b", "", "[IPv6:2001:db8::1]", "x:y@z.example"]
)
def test_what_has_no_spf_record_is_not_asked_for(helo):
    zone = SlowZone(texts_of=RECORDS)
    zone.waiting.callback(None)
    policy = PolicyTester(MailAuthPlugin(), resolver=zone)
    policy.helo(helo)
    policy.mail("")
    assert policy.message(MESSAGE) == CONTINUE
    assert zone.asked == ["_dmarc.example.org"]
    assert policy.transaction.results.get(SPFResult).result == "none"


def test_an_spf_fail_is_refused_where_the_operator_says_so():
    refused = Asked(options={"spf_reject": True}, client_ip="198.51.100.1")
    assert isinstance(refused.verdict, Reject)
    assert refused.verdict.enhanced == "5.7.23"


def test_the_null_sender_s_spf_is_that_of_the_helo_name():
    asked = Asked(sender="", records={"client.example.org": ["v=spf1 ip4:192.0.2.1 -all"]})
    assert asked.results.get(SPFResult).domain == "client.example.org"
    assert "spf=pass smtp.helo=client.example.org" in asked.field


def test_fields_that_claim_our_name_are_removed_and_others_stay():
    forged = (
        b"Authentication-Results: mx.example.com; dmarc=pass header.from=bank.example\r\n"
        b"authentication-results:\r\n\t(a comment (nested)) MX.Example.Com. ; spf=pass\r\n"
        b'Authentication-Results: "mx.example.com" 1; spf=pass\r\n'
        b"Authentication-Results: other.example; spf=fail\r\n"
    )
    asked = Asked(forged + MESSAGE)
    ours, others = asked.fields
    assert ours.startswith("mx.example.com; spf=pass")
    assert others == "other.example; spf=fail"


@pytest.mark.parametrize(
    "value",
    ["mx.example.com; spf=pass", "MX.EXAMPLE.COM;x", ' "mx.example.com"; x', "(c) mx.example.com", ""],
)
def test_any_spelling_of_our_name_is_ours(value):
    assert claims(value, "mx.example.com")
    assert not claims("other.example; spf=pass", "mx.example.com")


@pytest.mark.parametrize(
    ("value", "written"),
    [("a@b.example", "x=a@b.example"), ('a"b\\c@d', 'x="a\\"b\\\\c@d"'), ("a;b\r\nc", 'x="a;bc"')],
)
def test_a_value_can_not_end_its_field(value, written):
    assert property_of("x", value) == written


def test_users_and_networks_of_ours_are_not_checked_and_lose_forged_fields():
    for how in ({"user": "anna"}, {"relay_from": ["192.0.2.0/24"]}):
        asked = Asked(b"Authentication-Results: mx.example.com; spf=pass\r\n" + MESSAGE, **how)
        assert asked.verdict == CONTINUE
        assert asked.fields == []


def sealed(domain: bytes = b"list.example") -> bytes:
    field = b"Authentication-Results: list.example; spf=pass; dmarc=pass header.from=example.org\r\n"
    return b"".join(dkim.arc_sign(field + MESSAGE, b"s", domain, PRIVATE, b"list.example")) + MESSAGE


def test_a_trusted_forwarder_s_seal_excuses_a_failed_dmarc():
    how = {"sender": "bounce@list.example"}
    options = {"dmarc": "enforce", "trusted_arc": ["list.example"]}
    asked = Asked(sealed(), options, **how)
    assert asked.results.get(ARCResult) == ARCResult("pass", ("list.example",))
    assert asked.verdict == CONTINUE
    assert "dmarc=fail" in asked.field
    assert isinstance(Asked(sealed(), {"dmarc": "enforce"}, **how).verdict, Reject)
    other = {"dmarc": "enforce", "trusted_arc": ["other.example"]}
    assert isinstance(Asked(sealed(), other, **how).verdict, Reject)
    broken = sealed().replace(b"text\r\n", b"other text\r\n")
    assert isinstance(Asked(broken, options, **how).verdict, Reject)


@pytest.mark.parametrize(
    "message", [b"\r\ntext\r\n", b"no header at all\r\n", b"From: \xff\xfe\r\n\r\n", b"x" * 5000]
)
def test_a_message_that_is_none_is_checked_without_an_error(message):
    asked = Asked(message, {"dmarc": "enforce"})
    assert asked.verdict == CONTINUE
    assert "dkim=none" in asked.field


@pytest.mark.parametrize("name", ["a b", "mx.example.com; spf=pass", "bücher.example", "(x)", '"mx"'])
def test_what_can_not_stand_in_the_field_is_no_name_of_ours(name):
    with pytest.raises(ConfigError, match="authserv_id"):
        PolicyTester(MailAuthPlugin(), {"authserv_id": name})


def test_a_trusted_forwarder_is_a_domain():
    PolicyTester(
        MailAuthPlugin(), {"trusted_arc": ["list.example", "Bücher.example", "xn--bcher-kva.example."]}
    )
    for wrong in ("a b", "", "*.example", "anna@list.example"):
        with pytest.raises(ConfigError, match=r"trusted_arc\[2\]"):
            PolicyTester(MailAuthPlugin(), {"trusted_arc": ["list.example", wrong]})
    options = {"dmarc": "enforce", "trusted_arc": ["LIST.Example."]}
    assert Asked(sealed(), options, sender="bounce@list.example").verdict == CONTINUE
