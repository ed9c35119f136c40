"""The policy dkim-sign."""

from __future__ import annotations

import base64
from dataclasses import replace

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from elemta.policies.dkim_sign import DkimSignPlugin
from elemta.policy import Address, Client, ConfigError, Envelope, Recipient
from elemta.policy.testing import PolicyTester

RSA = generate_private_key(65537, 2048)
ED = Ed25519PrivateKey.generate()
MESSAGE = b"From: Anna <anna@example.com>\r\nTo: b@other.example\r\nSubject: s\r\n\r\n text \r\n\r\n\r\n"
RECORDS = {
    "rsa": b"v=DKIM1; k=rsa; p="
    + base64.b64encode(RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
    "ed": b"v=DKIM1; k=ed25519; p="
    + base64.b64encode(ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
}


@pytest.fixture
def files(tmp_path):
    for name, key in (("rsa", RSA), ("ed", ED)):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / name).write_bytes(pem)
    return tmp_path


def options(files, *selectors: str, domain: str = "example.com", **more) -> dict:
    keys = [{"domain": domain, "selector": each, "file": str(files / each)} for each in selectors]
    return {"key": keys, **more}


def envelope(**client: object) -> Envelope:
    return Envelope(
        queue_id="Q1",
        sender=Address("anna", "example.com"),
        recipients=(Recipient(Address("b", "other.example")),),
        received_at=0.0,
        size=len(MESSAGE),
        client=replace(Client(ip="192.0.2.1", listener="mx"), **client),
    )


OURS = envelope(user="anna")
NOTICE = envelope(listener="bounce", ip="")


def policy(given, **how) -> PolicyTester:
    return PolicyTester(DkimSignPlugin(), given, **how)


def lookup(name: bytes, timeout: float = 5) -> bytes:
    return RECORDS[name.split(b".")[0].decode()]


def verified(signed: bytes) -> list[bool]:
    checker = dkim.DKIM(signed)
    count = signed.count(b"DKIM-Signature:")
    return [checker.verify(index, dnsfunc=lookup) for index in range(count)]


def test_mail_of_a_user_is_signed_and_an_independent_verifier_agrees(files):
    fields = policy(options(files, "rsa")).sign(MESSAGE, OURS)
    assert fields.startswith(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com;")
    assert verified(fields + MESSAGE) == [True]
    assert max(map(len, fields.split(b"\r\n"))) <= 78


def test_a_signed_message_with_another_from_or_subject_is_not_valid(files):
    signed = policy(options(files, "rsa")).sign(MESSAGE, OURS) + MESSAGE
    assert verified(signed.replace(b"Subject: s", b"Subject: t")) == [False]
    assert verified(signed.replace(b"To:", b"From: x@example.org\r\nTo:")) == [False]
    assert verified(signed.replace(b"To:", b"Subject: x\r\nTo:")) == [False]


def test_every_key_of_the_domain_signs(files):
    fields = policy(options(files, "rsa", "ed")).sign(MESSAGE, OURS)
    assert fields.count(b"DKIM-Signature:") == 2
    assert b"a=ed25519-sha256" in fields
    assert verified(fields + MESSAGE) == [True, True]


@pytest.mark.parametrize(
    "author", [b"x@example.org", b"x@sub.example.com", b"a@example.com, b@example.org", b"nobody", b""]
)
def test_a_key_signs_for_its_own_domain_only(files, author):
    message = MESSAGE.replace(b"anna@example.com", author)
    assert policy(options(files, "rsa")).sign(message, OURS) == b""


@pytest.mark.parametrize(
    ("about", "for_whom"),
    [
        (OURS, "submission"),
        (NOTICE, "notices"),
        (envelope(ip="198.51.100.9"), "relay_from"),
    ],
)
def test_whose_mail_is_signed_is_the_operator_s_choice(files, about, for_whom):
    how = {"relay_from": ["198.51.100.0/24"], "hostname": "example.com"}
    assert policy(options(files, "rsa", sign_for=[for_whom]), **how).sign(MESSAGE, about) != b""
    others = [each for each in ("submission", "relay_from", "notices") if each != for_whom]
    assert policy(options(files, "rsa", sign_for=others), **how).sign(MESSAGE, about) == b""


def test_mail_from_outside_is_never_signed_as_ours(files):
    assert policy(options(files, "rsa")).sign(MESSAGE, envelope()) == b""


@pytest.mark.parametrize(
    ("hostname", "signs"),
    [("mx1.example.com", True), ("example.com", True), ("mx.other.example", False)],
)
def test_a_notice_is_signed_by_the_key_of_the_host_or_its_nearest_parent(files, hostname, signs):
    notice = MESSAGE.replace(b"anna@example.com", b"MAILER-DAEMON@mx1.example.com")
    fields = policy(options(files, "rsa"), hostname=hostname).sign(notice, NOTICE)
    assert bool(fields) == signs
    assert not fields or verified(fields + notice) == [True]


def test_forwarded_mail_is_sealed_over_what_mail_auth_found(files):
    field = (
        b"Authentication-Results: mx.example.com;\r\n\tspf=pass smtp.mailfrom=x@y.example;\r\n\tarc=none\r\n"
    )
    asked = policy(options(files, "rsa", arc=True))
    fields = asked.sign(field + MESSAGE, envelope())
    assert [line.split(b":")[0] for line in fields.split(b"\r\n") if line[:4] == b"ARC-"] == [
        b"ARC-Seal",
        b"ARC-Message-Signature",
        b"ARC-Authentication-Results",
    ]
    verdict, _, why = dkim.arc_verify(fields + field + MESSAGE, dnsfunc=lookup)
    assert verdict == dkim.CV_Pass, why
    again = field.replace(b"arc=none", b"arc=pass") + fields + field + MESSAGE
    second = asked.sign(again, envelope())
    verdict, _, why = dkim.arc_verify(second + again, dnsfunc=lookup)
    assert verdict == dkim.CV_Pass, why
    assert b"i=2" in second
    assert b"DKIM-Signature" not in fields


def test_without_results_of_ours_or_without_arc_nothing_is_sealed(files):
    assert policy(options(files, "rsa", arc=True)).sign(MESSAGE, envelope()) == b""
    forged = b"Authentication-Results: other.example; arc=none\r\n" + MESSAGE
    assert policy(options(files, "rsa", arc=True)).sign(forged, envelope()) == b""


@pytest.mark.parametrize(
    "words",
    [
        b'smtp.mailfrom="\\"x; arc=pass\\"@mallory.example"',
        b'smtp.helo="x arc=pass (" x=")"',
        b"smtp.mailfrom=x (arc=pass; arc = pass)",
    ],
)
def test_no_word_of_a_client_becomes_what_a_chain_is_worth(files, words):
    asked = policy(options(files, "rsa", arc=True))
    said = b"Authentication-Results: mx.example.com;\r\n\tspf=none %s;\r\n\tarc=%s\r\n"
    sealed = asked.sign(said % (words, b"none") + MESSAGE, envelope()) + MESSAGE
    assert b"cv=none" in sealed
    broken = sealed.replace(b"Subject: s", b"Subject: other")
    assert b"cv=fail" in asked.sign(said % (words, b"fail") + broken, envelope())


OUR_FIELD = b"Authentication-Results: %s; arc=none; dmarc=pass header.from=bank.example\r\n"
RECEIVED = b"Received: from x by mx.example.com with ESMTP id Q1; now\r\n"


@pytest.mark.parametrize(
    ("above", "below", "sealed"),
    [
        # What mail-auth writes stands above our Received field, and what the client sent below it.
        (OUR_FIELD % b"mx.example.com", b"", True),
        (OUR_FIELD % b"auth.example.com", b"", True),
        (OUR_FIELD % b"rspamd.example.com" + OUR_FIELD % b"mx.example.com", b"", True),
        (b"", OUR_FIELD % b"mx.example.com", False),
        (b"", OUR_FIELD % b"auth.example.com", False),
        (b"X-Spam: no\r\n", b"X: y\r\n" + OUR_FIELD % b"mx.example.com" + RECEIVED, False),
    ],
)
def test_a_seal_never_covers_results_that_came_with_the_message(files, above, below, sealed):
    message = above + RECEIVED + below + MESSAGE
    fields = policy(options(files, "rsa", arc=True)).sign(message, envelope())
    assert bool(fields) == sealed
    if sealed:
        assert b"rspamd" not in fields
        verdict, _, why = dkim.arc_verify(fields + message, dnsfunc=lookup)
        assert verdict == dkim.CV_Pass, why


@pytest.mark.parametrize(
    "content", [None, b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_key_that_can_not_be_used_is_a_fault_with_its_place(files, content):
    if content is not None:
        (files / "bad").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        policy(options(files, "rsa", "bad"))
    (fault,) = raised.value.faults
    assert fault.key == "key[2].file"
    assert "bad" in fault.problem


def test_the_message_may_be_of_any_size_and_shape(files):
    asked = policy(options(files, "rsa"))
    large = MESSAGE + b"x" * 70 + b"\r\n" * 100_000
    assert verified(asked.sign(large, OURS) + large) == [True]
    for broken in (b"", b"\r\n", b"no header\r\n", b"From: a@example.com\r\nbroken line\r\n\r\n"):
        asked.sign(broken, OURS)


@pytest.mark.parametrize("domain", ["a b.example", "*.example.com", "a..example", "x" * 64 + ".example"])
def test_what_is_no_domain_of_a_key_is_a_fault(files, domain):
    with pytest.raises(ConfigError, match=r"key\[1\]\.domain"):
        policy(options(files, "ed", domain=domain))


@pytest.mark.parametrize("selector", ["a b", "s;d=other.example", "ü", "s.", "s..t"])
def test_what_is_no_selector_is_a_fault(files, selector):
    given = options(files, "ed")
    key = {**given["key"][0], "selector": selector}
    with pytest.raises(ConfigError, match=r"key\[1\]\.selector"):
        policy({**given, "key": [key]})


@pytest.mark.parametrize("selector", ["s", "2026", "a.b", "under_score", "a-b"])
def test_a_selector_may_have_several_labels(files, selector):
    given = options(files, "ed")
    policy({**given, "key": [{**given["key"][0], "selector": selector}]})
